"""What lies in deploy/ fits the program that it starts."""

import configparser
import re
from pathlib import Path

import pytest

from peer.cli.main import run
from peer.shell.config import PeerConfig
from scheduler.shell.config import SchedulerConfig
from shoal.runtime.config import load
from tests.tidy.tree import ROOT

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


@pytest.mark.parametrize("daemon", ["peer", "scheduler"])
def test_an_example_configuration_passes_its_check(
    daemon: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {})
    assert run([daemon, "--config", str(DEPLOY / f"{daemon}.toml"), "--check-config"]) == 0
    assert "[tls]" in capsys.readouterr().out


def test_example_configurations_say_what_they_show() -> None:
    peer = load(PeerConfig, DEPLOY / "peer.toml", {}, {})
    scheduler = load(SchedulerConfig, DEPLOY / "scheduler.toml", {}, {})
    assert peer.tls.enabled
    assert scheduler.tls.enabled
    # Told to other hosts as it is: an address that they could not reach would help nobody.
    assert not peer.piece.listen.host.startswith("0.")
    assert all(address.port == scheduler.listen.port for address in peer.scheduler.addresses)


def test_every_configuration_in_the_readme_is_one(tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    read = []
    for example in examples:
        (tmp_path / "peer.toml").write_text(example)
        read.append(load(PeerConfig, tmp_path / "peer.toml", {}, {}))
    assert [config.mirror.enabled for config in read] == [True, False, False]
    assert [config.proxy.enabled for config in read] == [False, True, False]
    assert read[2].zone == "rack-12"


def directives(unit: Path) -> dict[str, str]:
    """The last value of each directive of a unit's [Service]."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return dict(parser["Service"])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_hardened_and_start_a_daemon_that_exists(unit: Path) -> None:
    found = directives(unit)
    assert found["NoNewPrivileges"] == "true"
    assert found["ProtectSystem"] == "strict"
    assert found["CapabilityBoundingSet"] == ""
    assert found.get("DynamicUser") == "true" or found["User"] == "shoal"
    program, daemon, *arguments = found["ExecStart"].split()
    assert Path(program).name == "shoal"
    assert unit.stem == f"shoal-{daemon}"
    assert arguments == ["--config", f"/etc/shoal/{daemon}.toml"]


def test_there_is_a_unit_for_each_daemon() -> None:
    assert [unit.stem for unit in UNITS] == ["shoal-peer", "shoal-scheduler"]


def test_the_image_copies_every_package_and_is_not_root() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY ")}
    assert {"peer", "proto", "scheduler"} <= copied
    assert "USER shoal" in lines
