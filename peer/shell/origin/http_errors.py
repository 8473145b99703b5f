"""What goes wrong under an HTTP request, in words: every error of aiohttp, TLS and sockets becomes
an `OriginError` that names the host and nothing secret.

The original's text is never used where it may quote a URL or a header. Decides which errors may
mend (ORIGIN_FAILED) and which will not (ORIGIN_INVALID: a certificate, an unreadable answer).
"""

import os
import ssl
from typing import Final

import aiohttp

from peer.shell.errors import OriginError
from shoal.wire.errors import Reason

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
        return tls_failure(tls, host)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _failed(f"the name of {host} can't be resolved ({_system_text(error)})")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return _failed(f"no connection to {host} within {connect_timeout_s:g} s")
    if isinstance(error, TimeoutError):
        return _failed(f"{host} sent nothing for {stall_timeout_s:g} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        return _failed(f"no connection to {host}: {_system_text(error)}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return _failed(f"{host} ended the connection before the end of the content")
    if isinstance(error, aiohttp.InvalidURL):
        return OriginError(Reason.ORIGIN_INVALID, f"the URL at {host} can't be asked for")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return _failed(f"{host} closed the connection without an answer")
    if isinstance(error, OSError):
        return _failed(f"the connection to {host} broke: {_system_text(error)}")
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return OriginError(Reason.ORIGIN_INVALID, f"what {host} answered is not proper HTTP")
    return _failed(f"the connection to {host} broke ({type(error).__name__})")


def tls_failure(error: ssl.SSLError | ssl.CertificateError, host: str) -> OriginError:
    """The OriginError for a TLS handshake or record that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or "not trusted"
        return OriginError(
            Reason.ORIGIN_INVALID,
            f"the certificate of {host} was refused: {why}; name its CA file if it is your own",
        )
    why = (getattr(error, "reason", None) or "handshake failed").replace("_", " ").lower()
    return _failed(f"TLS with {host} failed: {why}")


def _tls_error(error: Exception) -> ssl.SSLError | ssl.CertificateError | None:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
        return inner if isinstance(inner, ssl.SSLError | ssl.CertificateError) else ssl.SSLError()
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        cause = error.os_error
        return cause if isinstance(cause, ssl.SSLError) else ssl.SSLError()
    return error if isinstance(error, ssl.SSLError) else None


def _system_text(error: OSError) -> str:
    """The system's own words, which name no host or URL."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if inner.errno is None:
        return type(inner).__name__
    if inner.errno > 0:
        return os.strerror(inner.errno)
    return inner.strerror or type(inner).__name__


def _failed(detail: str) -> OriginError:
    return OriginError(Reason.ORIGIN_FAILED, detail)
