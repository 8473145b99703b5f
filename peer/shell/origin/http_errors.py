"""What goes wrong under a request of aiohttp: every error of it, TLS and sockets becomes an
`OriginError` of `peer.shell.failures`.

The original's text is never used where it may quote a URL or a header.
"""

import ssl
from typing import Final

import aiohttp

from peer.shell import failures
from peer.shell.errors import OriginError

RAISED: Final = (aiohttp.ClientError, OSError, ValueError, RuntimeError)
"""What aiohttp raises for other people's faults: ValueError for what can't be sent or read as HTTP,
RuntimeError for a connection or session that was closed meanwhile. TimeoutError and TLS errors
are OSErrors."""


def translate(
    error: Exception, host: str, *, connect_timeout_s: float, stall_timeout_s: float
) -> OriginError:
    """The OriginError for something of `RAISED`."""
    if isinstance(error, OriginError):
        return error
    tls = _tls_error(error)
    if tls is not None:
        return failures.tls_failure(tls, host)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return failures.unknown_name(host, _system_text(error))
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return failures.connected_too_late(host, connect_timeout_s)
    if isinstance(error, TimeoutError):
        return failures.silent(host, stall_timeout_s)
    if isinstance(error, aiohttp.ClientConnectorError):
        return failures.no_connection(host, _system_text(error))
    if isinstance(error, aiohttp.ClientPayloadError):
        return failures.cut_short(host)
    if isinstance(error, aiohttp.InvalidURL):
        return failures.no_url(host)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return failures.no_answer(host)
    if isinstance(error, OSError):
        return failures.broken(host, _system_text(error))
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return failures.no_http(host)
    return failures.broken_somehow(host, error)


def _tls_error(error: Exception) -> ssl.SSLError | ssl.CertificateError | None:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
        return inner if isinstance(inner, ssl.SSLError | ssl.CertificateError) else ssl.SSLError()
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        cause = error.os_error
        return cause if isinstance(cause, ssl.SSLError) else ssl.SSLError()
    return error if isinstance(error, ssl.SSLError) else None


def _system_text(error: OSError) -> str:
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return failures.system_text(inner)
