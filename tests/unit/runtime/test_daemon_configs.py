"""The options of both daemons: defaults that work, and rules across options."""

from pathlib import Path

import pytest

from peer.shell.config import PeerConfig
from scheduler.core.limits import SchedulerLimits
from scheduler.shell.config import SchedulerConfig
from shoal.runtime.config import ConfigError, dump, load, options
from shoal.wire.limits import MIB


@pytest.mark.parametrize("config_type", [PeerConfig, SchedulerConfig])
def test_defaults_load_and_read_back(
    config_type: type[PeerConfig] | type[SchedulerConfig], tmp_path: Path
) -> None:
    config = load(config_type, None, {}, {})
    path = tmp_path / "config.toml"
    path.write_text(dump(config))
    assert load(config_type, path, {}, {}) == config


@pytest.mark.parametrize("config_type", [PeerConfig, SchedulerConfig])
def test_every_option_is_described(config_type: type[PeerConfig] | type[SchedulerConfig]) -> None:
    for entry in options(config_type):
        assert entry.help.endswith("."), entry.key
        assert entry.environment_name.startswith(config_type.environment_prefix + "_")


def test_nothing_listens_beyond_loopback_by_default() -> None:
    peer, scheduler = PeerConfig(), SchedulerConfig()
    for endpoint in (
        peer.piece.listen,
        peer.scheduler.embedded_listen,
        peer.status.listen,
        scheduler.listen,
        scheduler.status.listen,
    ):
        assert endpoint is not None
        assert endpoint.is_loopback
    assert peer.piece.memory_budget == 128 * MIB


@pytest.mark.parametrize(
    ("config_type", "option", "others"),
    [
        (PeerConfig, "piece.listen", {}),
        (PeerConfig, "scheduler.embedded_listen", {"scheduler.embedded": "true"}),
        (SchedulerConfig, "listen", {}),
    ],
)
def test_an_open_port_needs_tls_or_a_clear_word(
    config_type: type[PeerConfig] | type[SchedulerConfig], option: str, others: dict[str, str]
) -> None:
    overrides = {option: "0.0.0.0:4001", **others}
    with pytest.raises(ConfigError, match=r"tls.insecure = true") as caught:
        load(config_type, None, {}, overrides)
    assert option in str(caught.value)
    load(config_type, None, {}, {**overrides, "tls.insecure": "true"})
    tls = {"tls.certificate": "/c", "tls.key": "/k", "tls.ca": "/a"}
    assert load(config_type, None, {}, {**overrides, **tls}).tls.enabled


def test_half_of_tls_is_not_tls() -> None:
    with pytest.raises(ConfigError, match="key, ca not set"):
        load(PeerConfig, None, {}, {"tls.certificate": "/c"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("store.low_water_percent", "95", "must be below"),
        ("piece.advertise", "node7:4001", "not an IP address"),
        ("piece.advertise", ",".join(f"10.0.0.{n}:1" for n in range(17)), "more than 16"),
        ("piece.advertise", "0.0.0.0:4000", "no address that other hosts can reach"),
        ("piece.advertise", "[::]:4000", "no address that other hosts can reach"),
        ("piece.memory_budget", "1MiB", "at least 16MiB"),
        ("host_id", "x" * 65, "more than 64 characters"),
    ],
)
def test_peer_options_that_contradict(key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(PeerConfig, None, {}, {key: value})


def test_the_report_interval_has_its_bounds_in_order() -> None:
    with pytest.raises(ConfigError, match="longer than"):
        load(SchedulerConfig, None, {}, {"swarm.report_interval_min": "3s"})


def test_scheduler_limits_come_from_the_options() -> None:
    assert SchedulerConfig().limits() == SchedulerLimits()
    overrides = {"swarm.hosts_max": "7", "origin.lease_ttl": "5s", "swarm.token_ttl": "10m"}
    limits = load(SchedulerConfig, None, {}, overrides).limits()
    assert limits.hosts_max == 7
    assert limits.lease_ttl_ns == 5 * 10**9
    assert limits.token_ttl_ns == 600 * 10**9
