"""What the tests of `shoal runtime` share: files in memory, and how texts differ."""

import difflib
from collections.abc import Sequence

from peer.cli.runtimes.wanted import Mirror, Plan, Planner, Registry

MIRROR = Mirror("http://127.0.0.1:4004")


class Files(dict[str, str]):
    """A machine's files by path."""

    def read(self, path: str) -> str | None:
        return self.get(path)

    def names(self, path: str) -> list[str]:
        inside = [name[len(path) + 1 :] for name in self if name.startswith(f"{path}/")]
        return sorted({name.partition("/")[0] for name in inside})

    def configured(
        self, planner: Planner, registries: Sequence[Registry] = (), mirror: Mirror = MIRROR
    ) -> tuple["Files", Plan]:
        """The files after one run, and its plan; checks that a second run changes nothing."""
        plan = planner(self, mirror, registries)
        after = Files(self)
        after.update({edit.path: edit.after for edit in plan.edits})
        assert [edit.before for edit in plan.edits] == [self.get(edit.path) for edit in plan.edits]
        again = planner(after, mirror, registries)
        assert all(edit.before == edit.after for edit in again.edits)
        return after, plan


def lost_lines(before: str, after: str) -> list[str]:
    """Lines of a text that are no longer there, in their order."""
    compared = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line[2:] for line in compared if line.startswith("- ")]


def new_lines(before: str, after: str) -> list[str]:
    """Lines that came to a text."""
    return lost_lines(after, before)
