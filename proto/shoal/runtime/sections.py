"""Sections of configuration that both daemons have: TLS, logs, status endpoints.

Also the rule of what may listen where: nothing listens beyond loopback without TLS unless the
operator said `insecure`. Knows no daemon.
"""

# ruff: noqa: RUF009 - option() and section() return dataclasses.field()

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoal.runtime.config import option
from shoal.runtime.config_values import Endpoint, SecretFile
from shoal.wire.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSection:
    """Mutual TLS: every side shows a certificate of one private CA."""

    certificate: Path | None = option(
        None,
        help="This host's certificate and its chain, PEM; the common name of a peer's must be its "
        "host_id.",
    )
    key: SecretFile | None = option(None, help="File with the certificate's private key, PEM.")
    ca: Path | None = option(
        None, help="CA certificates, PEM, that other hosts' certificates must be signed by."
    )
    insecure: bool = option(
        default=False,
        help="Allow listening beyond loopback, and connecting to other hosts, without TLS.",
    )

    @property
    def enabled(self) -> bool:
        """Whether connections between hosts use TLS."""
        return self.certificate is not None

    def check(self) -> None:
        """Raises UsageError if only a part of what TLS needs is set."""
        parts = {"certificate": self.certificate, "key": self.key, "ca": self.ca}
        missing = [name for name, value in parts.items() if value is None]
        if missing and len(missing) < len(parts):
            raise UsageError(f"TLS needs certificate, key and ca: {', '.join(missing)} not set")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection:
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = option(
        "info", help="The least severe lines that are written."
    )
    format: Literal["text", "json"] = option(
        "text", help="Lines for people, or one JSON object per line."
    )


def check_listen(name: str, endpoint: Endpoint, tls: TlsSection) -> None:
    """Raises UsageError if other hosts could reach an endpoint that nothing protects."""
    if endpoint.is_loopback or tls.enabled or tls.insecure:
        return
    raise UsageError(
        f"{name} = {endpoint} would be open to other hosts without TLS: set tls.certificate, "
        "tls.key and tls.ca, or tls.insecure = true if the network is trusted, "
        "or listen on 127.0.0.1"
    )
