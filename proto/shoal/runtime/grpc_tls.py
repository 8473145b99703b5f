"""Mutual TLS of control streams: gRPC's credentials from the same files as `shoal.runtime.tls`.

gRPC reports bad files late and by a number, so they are checked by the standard library first.
Decides nothing.
"""

from shoal.runtime.grpc_polling import grpc
from shoal.runtime.sections import TlsSection
from shoal.runtime.tls import pem_files


def grpc_server_credentials(tls: TlsSection) -> grpc.ServerCredentials:
    """Credentials of a server that demands a certificate of every client. Raises UsageError for
    bad files."""
    certificate, key, ca = pem_files(tls)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=True
    )


def grpc_channel_credentials(tls: TlsSection) -> grpc.ChannelCredentials:
    """Credentials of a client that shows its own certificate. Raises UsageError for bad files."""
    certificate, key, ca = pem_files(tls)
    return grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=certificate
    )
