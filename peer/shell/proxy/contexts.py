"""TLS contexts for hosts whose TLS the proxy opens, made when first wanted and kept for a while."""

import asyncio
import datetime
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from peer.shell.proxy.certificates import Authority, Minted
from shoal.runtime.config_values import SecretFile
from shoal.wire.errors import UsageError
from shoal.wire.limits import MIB

CONTEXTS_MAX: Final = 256
RENEW_BEFORE: Final = datetime.timedelta(hours=2)


def utc_now() -> datetime.datetime:
    """The time of day, which certificates go by."""
    return datetime.datetime.now(datetime.UTC)


def load_authority(certificate: Path, key: SecretFile) -> Authority:
    """The CA from its files. Raises UsageError."""
    try:
        mode = key.path.stat().st_mode
        with certificate.open("rb") as file:
            text = file.read(MIB)
    except OSError as error:
        raise UsageError(
            f"proxy.ca_cert, proxy.ca_key: {error.filename}: {error.strerror}"
        ) from None
    if mode & 0o077:
        raise UsageError(
            f"proxy.ca_key {key.path}: others than its owner may read it; chmod 600 it"
        )
    authority = Authority(text, key.read())
    authority.check_time(utc_now())
    return authority


class Contexts:
    """Keeps them. `now`: the time of day."""

    def __init__(
        self, authority: Authority, now: Callable[[], datetime.datetime] = utc_now
    ) -> None:
        self._authority = authority
        self._now = now
        self._kept: OrderedDict[str, tuple[datetime.datetime, ssl.SSLContext]] = OrderedDict()
        self._making = asyncio.Lock()
        self.minted = 0

    async def of(self, host: str) -> ssl.SSLContext:
        """For a connection of a client that wants this host. Raises UsageError."""
        found = self._fresh(host)
        if found is not None:
            return found
        # One at a time: a client that opens many connections at once wants one certificate.
        async with self._making:
            found = self._fresh(host)
            if found is not None:
                return found
            minted = await asyncio.to_thread(self._authority.mint, host, self._now())
            context = await asyncio.to_thread(_context, minted)
            self.minted += 1
            self._kept[host] = (minted.until, context)
            while len(self._kept) > CONTEXTS_MAX:
                self._kept.popitem(last=False)
            return context

    def _fresh(self, host: str) -> ssl.SSLContext | None:
        until, context = self._kept.get(host, (None, None))
        if until is None or until - RENEW_BEFORE <= self._now():
            return None
        self._kept.move_to_end(host)
        return context


def _context(minted: Minted) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL reads files alone; this one is in memory and has no name.
    descriptor = os.memfd_create("shoal-proxy", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, minted.key + minted.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
