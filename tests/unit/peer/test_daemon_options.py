"""From the peer's configuration to what its node is made of."""

from pathlib import Path

import pytest

from peer.shell.config import PeerConfig, StoreSection
from peer.shell.daemon import node_options
from shoal.runtime.config_values import SecretFile
from shoal.runtime.sections import TlsSection
from shoal.wire.errors import UsageError

CERTIFICATES = Path(__file__).parents[1] / "runtime" / "certificates"
TLS = TlsSection(
    certificate=CERTIFICATES / "alpha.pem",
    key=SecretFile(CERTIFICATES / "alpha.key"),
    ca=CERTIFICATES / "trusted-ca.pem",
)


def host_id(root: Path, *, host_id: str = "", tls: TlsSection | None = None) -> str:
    config = PeerConfig(
        host_id=host_id, store=StoreSection(root=root), tls=TlsSection() if tls is None else tls
    )
    return node_options(config, schedulers=()).host_id


def test_without_tls_the_id_is_the_stores_or_the_users(tmp_path: Path) -> None:
    assert host_id(tmp_path) != host_id(tmp_path)
    (tmp_path / "host-id").write_text("kept\n")
    assert host_id(tmp_path) == "kept"
    assert host_id(tmp_path, host_id="mine") == "mine"


def test_with_tls_the_id_is_the_certificates_name(tmp_path: Path) -> None:
    (tmp_path / "host-id").write_text("kept\n")
    assert host_id(tmp_path, tls=TLS) == "alpha"
    assert host_id(tmp_path, tls=TLS, host_id="alpha") == "alpha"
    with pytest.raises(UsageError, match=r"host_id = mine: .*alpha.pem is of 'alpha'"):
        host_id(tmp_path, tls=TLS, host_id="mine")
