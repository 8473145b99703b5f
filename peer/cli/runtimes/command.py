"""`shoal runtime configure`: tells a container runtime of this host to pull through shoal's mirror.

Works out every edit before the first write, shows what changes, and says how to make the runtime
read it. Never starts, stops or restarts anything.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peer.cli.runtimes import containerd, containers, docker
from peer.cli.runtimes.files import Root, State
from peer.cli.runtimes.wanted import (
    MIRROR_URL,
    Plan,
    Planner,
    Refused,
    mirror_of,
    registries_of,
)
from shoal.wire.errors import UsageError

STATE_DIRECTORY: Final = Path("/var/lib/shoal/runtime")

EPILOG: Final = """\
examples:
  shoal runtime configure containerd
  shoal runtime configure crio --registry docker.io --registry reg.example:5000
  shoal runtime configure podman --registry models=https://reg.example --dry-run
  shoal runtime configure docker --undo

CRI-O, podman, buildah and skopeo share their files: what is done or undone for one holds for all.

exit codes: 0 done, or nothing to do; 1 failed, or a file can't be edited; 2 wrong usage.
"""

_SECRET = re.compile(
    r"(?i)^(.\s*[\"']?[\w.-]*(?:password|passwd|secret|token|auth|authorization|credential)s?[\"']?"
    r"\s*[=:]\s*).*\S"
)
_USER_IN_URL = re.compile(r"(://)[^/@\s\"']+@")


@dataclass(frozen=True)
class _Runtime:
    family: str
    """Runtimes of one family read the same files and share one record."""
    planner: Planner
    advice: str
    undo_advice: str = ""
    """Where it takes more than that to forget the mirror."""


_CONTAINERS: Final = (
    "podman, buildah and skopeo read it each time that they start; a running podman service: "
    "systemctl restart podman.service"
)

RUNTIMES: Final = {
    "containerd": _Runtime(
        "containerd",
        containerd.plan,
        "systemctl restart containerd (hosts.toml alone is read at each pull; config.toml is not)",
    ),
    "crio": _Runtime("containers", containers.plan, "systemctl restart crio"),
    "podman": _Runtime("containers", containers.plan, _CONTAINERS),
    "docker": _Runtime(
        "docker",
        docker.plan,
        "systemctl reload docker",
        "systemctl restart docker (a reload keeps the mirrors of before)",
    ),
}


@dataclass
class Outcome:
    """What the command did or would do."""

    files: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether any file is to differ from what it was."""
        return any(one["diff"] for one in self.files)


def parser(name: str) -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog=f"shoal {name}",
        description="Make the container runtime of this host pull through shoal's registry mirror.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", choices=["configure"])
    add("runtime", choices=list(RUNTIMES))
    add("--mirror", metavar="URL", help=f"the daemon's registry mirror ({MIRROR_URL})")
    add("--registry", action="append", default=[], metavar="NAME[=URL]",
        help="a registry as images name it, and where it is if that is elsewhere; again for each. "
        "containerd: all of them without it; docker: docker.io alone")  # fmt: skip
    add("--dedicated", action="store_true",
        help="the mirror is a listener for the one --registry (mirror.dedicated of the daemon): "
        "for CRI-O and podman with a private registry or one with a port")  # fmt: skip
    add("--config-root", type=Path, default=Path("/"), metavar="DIR",
        help="where the host's / is, such as /host in a container (/)")  # fmt: skip
    add("--state-dir", type=Path, default=STATE_DIRECTORY, metavar="DIR",
        help=f"copies of the files before the first change ({STATE_DIRECTORY})")  # fmt: skip
    add("--dry-run", action="store_true", help="show what would change, write nothing")
    add("--undo", action="store_true", help="put back every file as it was before")
    add("--force", action="store_true", help="undo, though somebody else changed a file since")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = parser(name).parse_args(arguments)
    try:
        outcome = _undo(options) if options.undo else _configure(options)
    except UsageError as error:
        sys.stderr.write(f"shoal {name}: {error}\n")
        return 2
    except Refused as error:
        sys.stderr.write(f"shoal {name}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"shoal {name}: {_told(error)}\n")
        return 1
    _print(options, outcome)
    return 0


def _told(error: OSError) -> str:
    text = f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, PermissionError):
        return f"{text}: run this as root"
    return f"{text}: mend that and run this again; --undo puts back what was written already"


def _configure(options: argparse.Namespace) -> Outcome:
    if options.force:
        raise UsageError("--force belongs to --undo")
    runtime = RUNTIMES[options.runtime]
    mirror = mirror_of(options.mirror or MIRROR_URL, dedicated=options.dedicated)
    registries = registries_of(options.registry, mirror)
    root = _root_of(options)
    state = State(options.state_dir, runtime.family)
    state.check(root, mirror.url)
    plan: Plan = runtime.planner(root, mirror, registries)
    edits = [edit for edit in plan.edits if edit.before != edit.after]
    if edits and not options.dry_run:
        state.apply(root, mirror.url, edits)
    outcome = Outcome(notes=plan.notes)
    for edit in plan.edits:
        place = str(root.place(edit.path))
        action = "created" if edit.before is None else "changed"
        if edit not in edits:
            action = "unchanged"
        outcome.files.append(_file(place, action, edit.before, edit.after))
    return outcome


def _undo(options: argparse.Namespace) -> Outcome:
    if options.registry or options.mirror or options.dedicated:
        raise UsageError(
            "--undo puts back everything: leave --registry, --mirror and --dedicated out"
        )
    root = _root_of(options)
    state = State(options.state_dir, RUNTIMES[options.runtime].family)
    returns = state.returns(root, force=options.force)
    outcome = Outcome()
    for one in returns:
        action = "unchanged" if one.now == one.then else "restored"
        if one.then is None and one.now is not None:
            action = "removed"
        now, then = (_text_of(content) for content in (one.now, one.then))
        outcome.files.append(_file(str(one.place), action, now, then))
    if returns and not options.dry_run:
        left = state.undo(root, force=options.force)
        outcome.notes = [f"{folder} stays, for it holds other files" for folder in left]
    return outcome


def _root_of(options: argparse.Namespace) -> Root:
    if not options.config_root.is_dir():
        raise UsageError(f"--config-root {options.config_root}: name a directory that exists")
    return Root(options.config_root)


def _text_of(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", errors="replace")


def _file(place: str, action: str, before: str | None, after: str | None) -> dict[str, str]:
    return {"path": place, "action": action, "diff": diff_of(place, before, after)}


def diff_of(place: str, before: str | None, after: str | None) -> str:
    """A unified diff for people; values that look like credentials are masked."""
    lines = difflib.unified_diff(
        _lines(before),
        _lines(after),
        "/dev/null" if before is None else place,
        "/dev/null" if after is None else place,
    )
    shown = []
    for line in lines:
        body = _USER_IN_URL.sub(r"\1***@", _SECRET.sub(r"\1***", line.rstrip("\r\n")))
        cut = "" if line.endswith("\n") else "\n\\ No newline at end of file"
        shown.append(f"{body}{cut}\n")
    return "".join(shown)


def _lines(text: str | None) -> list[str]:
    # Not splitlines(), which takes other characters for ends of lines too.
    return [] if not text else re.findall(r"[^\n]*\n|[^\n]+", text)


def _print(options: argparse.Namespace, outcome: Outcome) -> None:
    runtime = RUNTIMES[options.runtime]
    advice = (options.undo and runtime.undo_advice) or runtime.advice if outcome.changed else None
    if options.json:
        told: dict[str, Any] = {
            "runtime": options.runtime,
            "undo": options.undo,
            "dry_run": options.dry_run,
            "changed": outcome.changed,
            "files": outcome.files,
            "notes": outcome.notes,
            "next": advice,
        }
        sys.stdout.write(json.dumps(told) + "\n")
        return
    for one in outcome.files:
        sys.stdout.write(one["diff"])
    if options.dry_run and outcome.changed:
        _print_notes(outcome.notes)
        return
    for one in outcome.files:
        sys.stdout.write(f"{one['action']}: {one['path']}\n")
    if not outcome.changed:
        nothing = "nothing to undo" if options.undo else "it is configured so already"
        sys.stdout.write(f"nothing changed: {nothing}\n")
    _print_notes(outcome.notes)
    if advice is not None:
        sys.stdout.write(f"to make the runtime read it: {advice}\n")


def _print_notes(notes: Sequence[str]) -> None:
    # On stderr, so that a dry run prints a diff and nothing else.
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
