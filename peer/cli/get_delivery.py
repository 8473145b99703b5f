"""Outputs that `shoal get` writes itself, from what the daemon holds: for a user whom the daemon
does not write files for, or for a place that it cannot see.

Checks the bytes against the digest that the daemon names, and puts the file in place whole or not
at all.
"""

import errno
import hashlib
import os
import secrets
from pathlib import Path

from peer.cli.local_client import DaemonError, LocalClient
from peer.cli.outcome import Outcome, disk_reason


def write_contents(
    client: LocalClient, outputs: list[Path | None], outcome: Outcome, *, overwrite: bool
) -> None:
    """Fetches and writes every content that is ready. Raises DaemonError if one breaks off; a disk
    that fails ends in the outcome."""
    for index, path in outcome.ready.items():
        target = outputs[index]
        assert target is not None
        known = outcome.files[index]
        try:
            write_content(client, path, target, known.digest, overwrite=overwrite)
        except OSError as error:
            outcome.fail(disk_reason(error), f"{target}: {error.strerror or error}")
            return
        known.how = "copy"


def write_content(
    client: LocalClient, path: str, target: Path, digest: str | None, *, overwrite: bool
) -> None:
    """Fetches one content to `target`. Raises DaemonError, OSError; then nothing is left behind."""
    algorithm, _, wanted = (digest or "").partition(":")
    hasher = hashlib.new(algorithm) if wanted else None
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.shoal-part")
    with client.request("GET", path) as response:
        try:
            with part.open("xb") as sink:
                for chunk in response.chunks():
                    sink.write(chunk)
                    if hasher is not None:
                        hasher.update(chunk)
            if hasher is not None and hasher.hexdigest() != wanted:
                raise DaemonError("digest-mismatch", f"{target}: the daemon sent other bytes")
            _put_in_place(part, target, overwrite=overwrite)
        finally:
            part.unlink(missing_ok=True)


def _put_in_place(part: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        part.replace(target)
        return
    try:
        # A link never replaces what somebody else made meanwhile.
        os.link(part, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without links: the name is taken first, then the file moved over it.
        target.touch(exist_ok=False)
        part.replace(target)
