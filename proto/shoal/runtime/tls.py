"""Mutual TLS from files: contexts for sockets (`grpc_tls` has the credentials for gRPC).

Both sides show a certificate that the configured CA signed. A scheduler is checked against the
name or address that it was configured by; a host between hosts is known by its id, which its
certificate's common name must be, because its addresses change. Files are checked when the daemon
starts, so that a mistake is an error that names the file. Decides nothing else.
"""

import contextlib
import ssl
from pathlib import Path
from typing import Final

from shoal.runtime.config_values import SecretFile
from shoal.runtime.sections import TlsSection
from shoal.wire.errors import UsageError

PEM_BYTES_MAX: Final = 1024 * 1024
HANDSHAKE_TURNS: Final = 4
"""Of a handshake within the process; TLS 1.3 needs two."""


def server_context(tls: TlsSection) -> ssl.SSLContext:
    """For sockets that accept connections of other hosts. Raises UsageError for bad files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, tls)
    return context


def client_context(tls: TlsSection, *, check_name: bool = False) -> ssl.SSLContext:
    """For sockets that connect to other hosts. Unless `check_name`, the caller must compare
    `common_name` with the id of the host that it meant to reach. Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_name
    _load(context, tls)
    return context


def common_name(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """The common name that the other side's certificate proved, "" if it has none."""
    certificate = connection.getpeercert() or {}
    for attributes in certificate.get("subject", ()):
        for attribute in attributes:
            if attribute[0] == "commonName":
                return str(attribute[1])
    return ""


def own_name(tls: TlsSection) -> str:
    """The common name of this host's own certificate, by which others know it. Raises UsageError
    for bad files, an expired certificate and one without a name."""
    server = server_context(tls)
    certificate, _, _ = _files(tls)
    # Its own certificate is its anchor here: who signed it is for others to judge.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    server.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(HANDSHAKE_TURNS):
            for side in (asking, answering):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError as error:
        what = getattr(error, "verify_message", error.reason)
        raise UsageError(f"tls.certificate {certificate}: {what}") from None
    name = common_name(asking)
    if not name:
        raise UsageError(
            f"tls.certificate {certificate}: has no common name, which is the host's id"
        )
    return name


def pem_files(tls: TlsSection) -> tuple[bytes, bytes, bytes]:
    """Contents of the certificate, key and CA files, after the same checks that contexts make.
    Raises UsageError for bad files."""
    server_context(tls)
    certificate, key, ca = _files(tls)
    return _readable("tls.certificate", certificate), key.read(), _readable("tls.ca", ca)


def _load(context: ssl.SSLContext, tls: TlsSection) -> None:
    certificate, key, ca = _files(tls)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    for name, path in (("tls.certificate", certificate), ("tls.key", key.path), ("tls.ca", ca)):
        _readable(name, path)
    try:
        # An encrypted key would make OpenSSL ask at the terminal; an empty answer ends that.
        context.load_cert_chain(certificate, key.path, password=lambda: b"")
    except (ssl.SSLError, ValueError):
        raise UsageError(
            f"tls.certificate {certificate} and tls.key {key.path}: not a PEM certificate and its "
            "own unencrypted private key"
        ) from None
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise UsageError(f"tls.ca {ca}: holds no PEM certificate") from None


def _files(tls: TlsSection) -> tuple[Path, SecretFile, Path]:
    if tls.certificate is None or tls.key is None or tls.ca is None:
        raise UsageError("TLS needs tls.certificate, tls.key and tls.ca")
    return tls.certificate, tls.key, tls.ca


def _readable(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{name} {path}: {error.strerror}") from None
    if len(content) > PEM_BYTES_MAX:
        raise UsageError(f"{name} {path}: more than {PEM_BYTES_MAX} bytes")
    return content
