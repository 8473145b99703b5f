"""What goes wrong under an HTTP request, in words: the same ones whichever library asked.

Each names the host and nothing secret. Decides which errors may mend (ORIGIN_FAILED) and which
will not (ORIGIN_INVALID: a certificate, an unreadable answer). Which error of a library is which is
known where the library is.
"""

import os
import ssl

from peer.shell.errors import OriginError
from shoal.wire.errors import Reason


def unknown_name(host: str, why: str) -> OriginError:
    """Nobody knows an address for it."""
    return _failed(f"the name of {host} can't be resolved ({why})")


def no_connection(host: str, why: str) -> OriginError:
    """It could not be connected to."""
    return _failed(f"no connection to {host}: {why}")


def connected_too_late(host: str, timeout_s: float) -> OriginError:
    """It was not connected in time."""
    return _failed(f"no connection to {host} within {timeout_s:g} s")


def silent(host: str, timeout_s: float) -> OriginError:
    """It took too long."""
    return _failed(f"{host} sent nothing for {timeout_s:g} s")


def no_answer(host: str) -> OriginError:
    """It closed before it said anything."""
    return _failed(f"{host} closed the connection without an answer")


def cut_short(host: str) -> OriginError:
    """It closed within its answer."""
    return _failed(f"{host} ended the connection before the end of the content")


def broken(host: str, why: str) -> OriginError:
    """The connection ended in some other way."""
    return _failed(f"the connection to {host} broke: {why}")


def broken_somehow(host: str, error: Exception) -> OriginError:
    """The connection ended, and nobody put into words why."""
    return _failed(f"the connection to {host} broke ({type(error).__name__})")


def no_http(host: str) -> OriginError:
    """What came back can't be read."""
    return OriginError(Reason.ORIGIN_INVALID, f"what {host} answered is not proper HTTP")


def no_url(host: str) -> OriginError:
    """The question can't be put."""
    return OriginError(Reason.ORIGIN_INVALID, f"the URL at {host} can't be asked for")


def tls_failure(error: ssl.SSLError | ssl.CertificateError, host: str) -> OriginError:
    """A TLS handshake or record failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or "not trusted"
        return OriginError(
            Reason.ORIGIN_INVALID,
            f"the certificate of {host} was refused: {why}; name its CA file if it is your own",
        )
    why = (getattr(error, "reason", None) or "handshake failed").replace("_", " ").lower()
    return _failed(f"TLS with {host} failed: {why}")


def system_text(error: OSError) -> str:
    """The system's own words, which name no host or URL."""
    if error.errno is None:
        return type(error).__name__
    if error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__


def _failed(detail: str) -> OriginError:
    return OriginError(Reason.ORIGIN_FAILED, detail)
