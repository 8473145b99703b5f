"""Progress for people: one bar for everything, a few for files, nothing without a terminal."""

import io
import sys

import pytest

from peer.cli import progress as module
from peer.cli.outcome import FileOutcome, Outcome
from peer.cli.progress import FILES_SHOWN_MAX, Bar


class Terminal(io.StringIO):
    """Looks like a person."""

    def isatty(self) -> bool:
        return True


def outcome_of(count: int) -> Outcome:
    outcome = Outcome(
        [FileOutcome(f"http://r/{number}", f"/o/{number}") for number in range(count)]
    )
    for number in range(count):
        outcome.take(
            {"event": "resolved", "index": number, "task_id": "t", "size": 100, "digest": None}
        )
    return outcome


def progress(outcome: Outcome, *files: tuple[int, int]) -> None:
    outcome.take(
        {
            "event": "progress",
            "bytes": sum(count for _, count in files),
            "size": 100,
            "origin_bytes": 10,
            "peer_bytes": 30,
            "rate": 1,
            "files": [list(file) for file in files],
        }
    )


def test_nothing_is_shown_to_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SHOW_AFTER_S", 0.0)
    outcome = outcome_of(2)
    with Bar("0/2 files", outcome, wanted=True, names=["a", "b"]) as bar:
        progress(outcome, (0, 50))
        bar.update()
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


def test_files_that_are_under_way_have_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    count = FILES_SHOWN_MAX + 4
    outcome = outcome_of(count)
    names = [f"weights-{number}[x].bin" for number in range(count)]
    names[1] = "deep/" * 20 + "last.bin"
    with Bar(f"0/{count} files", outcome, wanted=True, names=names) as bar:
        progress(outcome, *((number, 10) for number in range(count)))
        bar.update()
        assert bar.titles()[0] == f"0/{count} files"
        assert len(bar.titles()) == 1 + FILES_SHOWN_MAX
        assert bar.titles()[1] == r"weights-0\[x].bin"
        assert bar.titles()[2].startswith("…")
        assert bar.titles()[2].endswith("deep/last.bin")
        outcome.take(
            {"event": "delivered", "index": 0, "task_id": "t", "size": 100, "digest": "d",
             "how": "copy"}
        )  # fmt: skip
        progress(outcome, (2, 100), (3, 60))
        bar.update()
        # Two have come to their end, and two others take their lines.
        assert r"weights-0\[x].bin" not in bar.titles()
        assert r"weights-2\[x].bin" not in bar.titles()
        assert len(bar.titles()) == 1 + FILES_SHOWN_MAX
