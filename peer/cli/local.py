"""`shoal status`, `shoal tasks`, `shoal tasks rm`: what the local daemon does and holds."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from peer.cli.help import HelpFormatter
from peer.cli.local_client import DaemonError, LocalClient, socket_path

ID_CHARACTERS_MIN: Final = 4
"""An empty variable in a script must not remove the only task there is."""


def parser(name: str) -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog=f"shoal {name}", formatter_class=HelpFormatter)
    parser.add_argument("-e", "--endpoint", metavar="SOCKET", help="the daemon's Unix socket")
    parser.add_argument("--json", action="store_true", help="print JSON")
    if name == "tasks":
        parser.add_argument("action", nargs="?", choices=["ls", "rm"], default="ls")
        parser.add_argument("ids", nargs="*", metavar="ID", help="task ids, or their beginnings")
    return parser


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = parser(name).parse_intermixed_args(arguments)
    client = LocalClient(socket_path(options.endpoint))
    try:
        if name == "status":
            return _status(client, options)
        if options.action == "rm":
            return _remove(client, options)
        return _list(client, options)
    except DaemonError as error:
        sys.stderr.write(f"shoal {name}: {error.reason}: {error.detail}\n")
        return 1


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def _status(client: LocalClient, options: argparse.Namespace) -> int:
    status = client.get_json("/v1/status")
    if options.json:
        _print_json(status)
        return 0
    flat = {**status, **{f"store.{key}": value for key, value in status["store"].items()}}
    del flat["store"]
    for key, value in flat.items():
        shown = human(value) if key.endswith("_bytes") else value
        sys.stdout.write(f"{key:<24} {shown}\n")
    return 0


def _list(client: LocalClient, options: argparse.Namespace) -> int:
    tasks = client.get_json("/v1/tasks")["tasks"]
    if options.json:
        _print_json(tasks)
        return 0
    sys.stdout.write(f"{'TASK':<18} {'HELD':>10} {'SIZE':>10} {'STATE':<8} DIGEST\n")
    for task in tasks:
        state = "sealed" if task["sealed"] else "partial"
        sys.stdout.write(
            f"{task['task_id'][:16]:<18} {human(task['held_bytes']):>10} "
            f"{human(task['size']):>10} {state:<8} {task['digest'] or '-'}\n"
        )
    return 0


def _remove(client: LocalClient, options: argparse.Namespace) -> int:
    if not options.ids:
        sys.stderr.write("shoal tasks rm: name at least one task (see `shoal tasks`)\n")
        return 2
    known = [task["task_id"] for task in client.get_json("/v1/tasks")["tasks"]]
    results: list[dict[str, Any]] = []
    for prefix in options.ids:
        matching = [task_id for task_id in known if task_id.startswith(prefix)]
        error = ""
        if len(prefix) < ID_CHARACTERS_MIN:
            error = f"give at least {ID_CHARACTERS_MIN} characters of the task's id"
        elif len(matching) != 1:
            error = "no such task" if not matching else "more than one task begins so"
        else:
            try:
                client.request("DELETE", f"/v1/tasks/{matching[0]}").close()
            except DaemonError as failure:
                error = failure.detail
        results.append({"id": prefix, "removed": not error, "detail": error})
        if not options.json and error:
            sys.stderr.write(f"shoal tasks rm: {prefix}: {error}\n")
    if options.json:
        _print_json(results)
    return 0 if all(result["removed"] for result in results) else 1


def human(count: int | None) -> str:
    """A number of bytes for people."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
