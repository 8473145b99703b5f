"""Where credentials are found, which entry fits, and that none is ever shown."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from peer.shell.oci.credentials import Credential, Credentials
from peer.shell.oci.reference import parse_reference
from peer.shell.oci.tokens import Token, token_in
from shoal.wire.errors import UsageError

REFERENCE = parse_reference("reg.example:5000/team/app:1")


def auth(name: str, secret: str = "s3cret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{secret}".encode()).decode()}


def written(path: Path, value: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_the_environment_comes_first(tmp_path: Path) -> None:
    both = {"SHOAL_REGISTRY_USERNAME": "ann", "SHOAL_REGISTRY_PASSWORD": "s3cret"}
    found = Credentials(both).find(REFERENCE)
    assert found == Credential("ann", "s3cret")
    with pytest.raises(UsageError, match="set both"):
        Credentials({"SHOAL_REGISTRY_USERNAME": "ann"}).find(REFERENCE)


@pytest.mark.parametrize(
    "secretive",
    [
        Credential("ann", "s3cret"),
        Credential(identity_token="s3cret"),
        Credential(registry_token="s3cret"),
        Token("Bearer s3cret", 7.0),
        Token.lasting(Credential("ann", "s3cret").basic),
        token_in(b'{"token": "s3cret"}', 0.0, "auth.example"),
    ],
)
def test_no_secret_is_in_what_is_shown(secretive: Credential | Token) -> None:
    basic = Credential("ann", "s3cret").basic.removeprefix("Basic ")
    for shown in (repr(secretive), str(secretive), f"{secretive}", f"{[secretive]}"):
        assert "s3cret" not in shown
        assert basic not in shown


def test_dockers_file(tmp_path: Path) -> None:
    written(
        tmp_path / ".docker/config.json",
        {"auths": {"https://index.docker.io/v1/": auth("hub"), "reg.example:5000": auth("own")}},
    )
    credentials = Credentials({"HOME": str(tmp_path)})
    assert credentials.find(REFERENCE) == Credential("own", "s3cret")
    assert credentials.find(parse_reference("nginx")) == Credential("hub", "s3cret")
    assert credentials.find(parse_reference("other.example/a")) is None


def test_the_longest_repository_wins(tmp_path: Path) -> None:
    path = written(
        tmp_path / "auth.json",
        {
            "auths": {
                "reg.example:5000": auth("registry"),
                "reg.example:5000/team": auth("team"),
                "reg.example:5000/team/ap": auth("other"),
            }
        },
    )
    found = Credentials({"HOME": str(tmp_path)}, path).find(REFERENCE)
    assert found == Credential("team", "s3cret")
    told = Credentials({"REGISTRY_AUTH_FILE": str(path)}).find(REFERENCE)
    assert told == found


def test_a_helper_gets_the_server_on_its_standard_input(tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text(
        '#!/bin/sh\nread server\nprintf \'{"Username": "%s", "Secret": "s3cret"}\' "$server"\n'
    )
    helper.chmod(0o755)
    written(tmp_path / ".docker/config.json", {"credHelpers": {"reg.example:5000": "fake"}})
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment["PATH"])
        found = Credentials(environment).find(REFERENCE)
    assert found == Credential("reg.example:5000", "s3cret")


def test_files_that_cannot_be_used_are_named_without_their_secrets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Credentials({}, tmp_path / "nothing").find(REFERENCE)
    path = written(tmp_path / "a", {"auths": {"reg.example:5000": {"auth": "s3cret!"}}})
    with pytest.raises(UsageError, match="log in again") as caught:
        Credentials({}, path).find(REFERENCE)
    assert "s3cret" not in str(caught.value)
    path = written(tmp_path / "b", {"credsStore": "../evil"})
    with pytest.raises(UsageError, match="helper has a name"):
        Credentials({}, path).find(REFERENCE)
