"""Whom the daemon's own questions to registries and web servers trust: the system's CAs, and those
of `origin.ca_file`."""

import asyncio
import ssl
from pathlib import Path

from shoal.wire.errors import UsageError


async def web_context(ca_file: Path | None) -> ssl.SSLContext:
    """For HTTP/1.1 clients. Reads files beside the event loop. Raises UsageError."""
    return await asyncio.to_thread(_load, ca_file)


def _load(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # What TLS finds wrong with it is one, too.
            tls = isinstance(error, ssl.SSLError)
            why = "no PEM certificates in it" if tls else error.strerror
            raise UsageError(f"origin.ca_file = {ca_file}: {why}") from error
    return context
