"""The progress bars of `shoal get` and `shoal pull`: shown only to a person, and only for what
takes a while. One for everything, and one each for a few of the files that are under way."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from peer.cli.outcome import Outcome

SHOW_AFTER_S: Final = 0.3
"""Loading the display costs a tenth of a second: not for what is over by then."""


FILES_SHOWN_MAX: Final = 8
"""What is under way at once may be hundreds of files; a terminal has some twenty lines."""

NAME_CHARACTERS_MAX: Final = 40


class Bar:
    """Follows an `Outcome`; `update()` after each event. `verbose` writes a line for each. `names`
    are the files', in order, if each is to have a bar of its own."""

    def __init__(
        self,
        title: str,
        outcome: "Outcome",
        *,
        wanted: bool,
        verbose: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self._title = title
        self._outcome = outcome
        self._verbose = verbose
        self._wanted = wanted and sys.stderr.isatty()
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._names = names
        self._rows: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def update(self, event: dict[str, Any] | None = None) -> None:
        """Shows how far it is."""
        if self._verbose and event is not None and event["event"] != "progress":
            fields = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
            sys.stderr.write(f"{event['event']} {fields}\n")
        if not self._wanted:
            return
        if self._progress is None:
            if time.monotonic() - self._began < SHOW_AFTER_S:
                return
            self._open()
        assert self._progress is not None
        assert self._task is not None
        outcome = self._outcome
        moved = outcome.origin_bytes + outcome.peer_bytes
        share = f"{100 * outcome.peer_bytes // moved} % from peers" if moved else ""
        self._progress.update(
            self._task,
            completed=outcome.received_bytes,
            total=outcome.size_bytes,
            share=share,
        )

        if self._names:
            self._update_files(self._progress)

    def _update_files(self, progress: "Progress") -> None:
        """Shows the first few files that are under way; a bar stays with its file."""
        outcome = self._outcome
        sizes = {
            index: size
            for index, done in outcome.file_bytes.items()
            if (size := outcome.files[index].size_bytes) and 0 < done < size
        }
        from rich.markup import escape

        for index in [index for index in self._rows if index not in sizes]:
            progress.remove_task(self._rows.pop(index))
        for index in sorted(sizes):
            if index in self._rows:
                progress.update(self._rows[index], completed=outcome.file_bytes[index])
            elif len(self._rows) < FILES_SHOWN_MAX:
                name = self._names[index]
                if len(name) > NAME_CHARACTERS_MAX:
                    name = f"…{name[1 - NAME_CHARACTERS_MAX :]}"
                self._rows[index] = progress.add_task(
                    escape(name), total=sizes[index], completed=outcome.file_bytes[index], share=""
                )

    def titles(self) -> list[str]:
        """What each bar that is shown is of."""
        return [task.description for task in self._progress.tasks] if self._progress else []

    def rename(self, title: str) -> None:
        """Shows another title from now on."""
        self._title = title
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=title)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[share]}"),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=None, share="")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self.update()
            self._progress.stop()
