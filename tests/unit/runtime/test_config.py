"""Loading, refusing, describing and dumping configurations."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from shoal.runtime.config import ConfigError, dump, load, option, options, reference, section
from shoal.runtime.config_values import Duration, Endpoint, Rate, SecretFile, Size
from shoal.wire.errors import UsageError

# ruff: noqa: RUF009 - option() and section() return dataclasses.field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tank:
    root: Path = option(Path("/tank"), help="Where.")
    capacity: Size = option(Size(0), minimum=0, maximum=2**40, unit="bytes", help="How much.")
    upload_rate: Rate = option(Rate(0), help="How fast.")
    idle: Duration = option(Duration(10**9), minimum=1000, help="How long.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    environment_prefix: ClassVar[str] = "SAMPLE"

    name: str = option("", help="Who | what.")
    count: int = option(3, minimum=1, maximum=9, help="How many.")
    wet: bool = option(default=True, help="Whether.")
    mode: Literal["calm", "wild"] = option("calm", help="How.")
    hosts: tuple[Endpoint, ...] = option((), help="With whom.")
    key: SecretFile | None = option(None, help="The key.")
    log: Path | None = option(None, help="The log.")
    tank: Tank = section(Tank)

    def check(self) -> None:
        if self.name == "forbidden":
            raise UsageError("name = forbidden: take another")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sample.toml"
    path.write_text(text)
    return path


def problems(
    path: Path | None = None,
    environ: dict[str, str] | None = None,
    overrides: dict[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Sample, path, environ or {}, overrides or {})
    return str(caught.value)


def test_defaults() -> None:
    assert load(Sample, None, {}, {}) == Sample()


def test_every_type_from_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        name = "reef"
        count = 4
        wet = false
        mode = "wild"
        hosts = ["10.0.0.1:4001", "[::1]:2"]
        key = "secrets/key.pem"
        log = "/var/log/x"
        [tank]
        root = "here"
        capacity = "1GiB"
        upload_rate = 25000000
        idle = "250ms"
        """,
    )
    config = load(Sample, path, {}, {})
    assert config == Sample(
        name="reef",
        count=4,
        wet=False,
        mode="wild",
        hosts=(Endpoint("10.0.0.1", 4001), Endpoint("::1", 2)),
        key=SecretFile(tmp_path / "secrets/key.pem"),
        log=Path("/var/log/x"),
        tank=Tank(
            root=tmp_path / "here",
            capacity=Size(2**30),
            upload_rate=Rate(25_000_000),
            idle=Duration(250_000_000),
        ),
    )


def test_flags_beat_the_environment_beats_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'count = 2\nname = "file"\n[tank]\ncapacity = "1MB"\n')
    environ = {"SAMPLE_COUNT": "5", "SAMPLE_TANK_CAPACITY": "2MB", "OTHER": "x"}
    config = load(Sample, path, environ, {"tank.capacity": "3MB"})
    assert (config.name, config.count, config.tank.capacity) == ("file", 5, 3_000_000)


def test_texts_of_every_type_from_the_environment() -> None:
    environ = {
        "SAMPLE_WET": "no",
        "SAMPLE_HOSTS": "a:1, b:2",
        "SAMPLE_KEY": "/k",
        "SAMPLE_LOG": "",
        "SAMPLE_TANK_ROOT": "/r",
    }
    config = load(Sample, None, environ, {})
    assert config.wet is False
    assert config.hosts == (Endpoint("a", 1), Endpoint("b", 2))
    assert config.key == SecretFile(Path("/k"))
    assert config.log is None
    assert config.tank.root == Path("/r")


def test_unknown_names_are_told_with_place_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "cuont = 2\n[tank]\ncapacty = 1\n[tnak]\nroot = 'x'\n")
    text = problems(path, {"SAMPLE_TANK_ROT": "x"}, {"tank.idel": "1s"})
    assert f"{path}:cuont: unknown option, did you mean count?" in text
    assert f"{path}:tank.capacty: unknown option, did you mean tank.capacity?" in text
    assert f"{path}:tnak: unknown option, did you mean tank?" in text
    assert "environment SAMPLE_TANK_ROT: unknown option, did you mean SAMPLE_TANK_ROOT?" in text
    assert "flag tank.idel: unknown option, did you mean tank.idle?" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("count = 'three'", "'three' is not a whole number (legal: whole number, at least 1"),
        ("count = true", "True is not a whole number"),
        ("count = 10", "10 is out of range (legal: whole number, at least 1, at most 9)"),
        ("wet = 'yes'", "'yes' is not true or false (without quotes)"),
        ("mode = 'wet'", "'wet' is not one of calm, wild"),
        ("hosts = 'a:1'", "'a:1' is not a list"),
        ("hosts = ['a']", "'a' is not host:port"),
        ("name = 3", "3 is not text"),
        ("tank = 3", "is a section: write [tank]"),
        ("[tank]\nidle = 30", "30 is not a duration: write a quoted string"),
        ("[tank]\nidle = '0s'", "0s is out of range (legal: duration, at least 1us)"),
        ("[tank]\ncapacity = true", "True is not a size"),
        ("[tank]\ncapacity = '2TiB'", "2TiB is out of range"),
        ("[tank]\nroot = ''", "'' is not a path"),
        ("[count]\nx = 1", "is not a whole number"),
    ],
)
def test_wrong_values_name_option_value_and_what_is_legal(
    tmp_path: Path, line: str, expected: str
) -> None:
    path = write(tmp_path, line)
    text = problems(path)
    assert text.startswith(f"{path}:")
    assert expected in text


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert "No such file" in problems(tmp_path / "none.toml")
    assert "not valid TOML" in problems(write(tmp_path, "a = = 2"))
    (tmp_path / "sample.toml").write_bytes(b"\xff\xfe")
    assert "not valid TOML" in problems(tmp_path / "sample.toml")
    assert "more than" in problems(write(tmp_path, "#" * 1024 * 1024 + "\n"))


def test_checks_of_the_whole() -> None:
    assert problems(overrides={"name": "forbidden"}) == "name = forbidden: take another"


def test_service_links_of_container_platforms_are_not_typing_errors() -> None:
    environ = {
        "SAMPLE_PORT": "tcp://10.0.0.1:80",
        "SAMPLE_PORT_80_TCP_ADDR": "10.0.0.1",
        "SAMPLE_SERVICE_HOST": "10.0.0.1",
        "SAMPLE_SERVICE_PORT_HTTP": "80",
        "SAMPLE_CONFIG": "/etc/sample.toml",
    }
    assert load(Sample, None, environ, {}) == Sample()


def test_a_dump_reads_back(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("hidden treasure")
    config = Sample(
        name='quo"te\\ \x7f ü\n',
        hosts=(Endpoint("a", 1),),
        key=SecretFile(tmp_path / "k"),
        tank=Tank(capacity=Size(12345), idle=Duration(90 * 10**9)),
    )
    text = dump(config)
    assert "hidden treasure" not in text
    assert load(Sample, write(tmp_path, text), {}, {}) == config
    assert load(Sample, write(tmp_path, dump(Sample())), {}, {}) == Sample()


def test_the_reference_names_every_option() -> None:
    table = reference(Sample)
    lines = table.splitlines()
    assert len(lines) == 2 + len(options(Sample)) == 13
    assert all(line.count("|") - line.count("\\|") == 6 for line in lines)
    assert '`tank.capacity` | size, at least 0, at most 1TiB | `"0"`' in table
    assert "How much. Unit: bytes. | `SAMPLE_TANK_CAPACITY` |" in table
