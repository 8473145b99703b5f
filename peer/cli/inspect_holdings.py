"""What `shoal inspect` asks the daemon of this host: what is held here, and what the swarm holds.

What cannot be known is told as such and never fails the command: there may be no daemon, no
scheduler, or one of an older version.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any, Final

from peer.cli.local_client import DaemonError, LocalClient, socket_path

SWARM_TIMEOUT_S: Final = 10.0
"""For a daemon that hangs; one that does not gives its scheduler less."""

SWARM_PATH: Final = "/v1/swarm"

Json = dict[str, Any]


class Holdings:
    """The daemon's answers. Asks when it is made; raises DaemonError if a daemon that was named
    does not say what it holds."""

    def __init__(self, options: argparse.Namespace, digests: Sequence[str]) -> None:
        self.held: dict[str, int] | None = None
        """Bytes held here, by digest; None without a daemon."""
        self.swarm: Json | None = None
        """Hosts of all the contents together; None if not known."""
        self.unknown: Json | None = None
        """Why it is not known what the swarm holds: `reason` and `detail`."""
        self._contents: dict[str, Json] = {}
        path = socket_path(options.endpoint)
        client = LocalClient(path)
        if not options.endpoint and not client.answers():
            self.unknown = _why("no-daemon", "no daemon runs here")
            return
        self.held = {}
        for task in client.get_json("/v1/tasks")["tasks"]:
            if task["digest"]:
                held = self.held.get(task["digest"], 0)
                self.held[task["digest"]] = max(held, task["held_bytes"])
        self._ask_for_swarm(path, digests)

    def _ask_for_swarm(self, path: str, digests: Sequence[str]) -> None:
        if not digests:
            self.unknown = _why("nothing", "there is nothing to hold")
            return
        client = LocalClient(path, time.monotonic() + SWARM_TIMEOUT_S)
        body = {"digests": list(dict.fromkeys(digests))}
        try:
            with client.request("POST", SWARM_PATH, body) as response:
                told = response.json()
            self._contents = {content["digest"]: content for content in told["contents"]}
            self.swarm = {"hosts": told["hosts"], "whole_hosts": told["whole_hosts"]}
        except DaemonError as error:
            old = error.reason == "usage"
            detail = "the daemon is of an older version" if old else error.detail
            self.unknown = _why(error.reason, detail)

    def held_bytes(self, digest: str) -> int | None:
        """Of one content, on this host."""
        return None if self.held is None else self.held.get(digest, 0)

    def of_swarm(self, digest: str) -> Json | None:
        """Of one content, in the swarm; None if not known."""
        content = self._contents.get(digest)
        if content is None:
            return None
        return {name: content[name] for name in ("hosts", "whole_hosts", "covered_bytes")}


def _why(reason: str, detail: str) -> Json:
    return {"reason": reason, "detail": detail}
