"""What came of a `shoal pull`, and how that is told."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer.cli.outcome import Outcome

if TYPE_CHECKING:
    from peer.cli.pull_plan import PullPlan


class Result:
    """What came of the whole command."""

    def __init__(self, reference: str, output: str) -> None:
        self.reference = reference
        self.output = output
        self.digest: str | None = None
        self.plan: PullPlan | None = None
        self.end = Outcome([])

    def as_json(self, seconds: float) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "reference": self.reference,
            "digest": self.digest,
            "output": self.output,
            "layers": self.plan.as_json() if self.plan is not None else [],
            "ok": self.end.ok,
            "reason": self.end.reason or None,
            "detail": self.end.detail,
            "seconds": round(seconds, 4),
            "origin_bytes": self.end.origin_bytes,
            "peer_bytes": self.end.peer_bytes,
        }


def print_result(options: argparse.Namespace, result: Result, seconds: float) -> None:
    """The end of the command, for people or for scripts."""
    if options.events:
        print_event({"event": "result", **result.as_json(seconds)})
    elif options.json:
        sys.stdout.write(json.dumps(result.as_json(seconds)) + "\n")
    elif result.end.ok and not options.quiet and result.plan is not None:
        for layer in result.plan.layers:
            for path in sorted(result.plan.files_of(layer)):
                sys.stdout.write(f"{Path(options.output) / path}  {layer.descriptor.digest}\n")
    if not result.end.ok:
        sys.stderr.write(f"shoal pull: {result.end.reason}: {result.end.detail}\n")


def print_event(event: dict[str, Any]) -> None:
    """One line of `--events`."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
