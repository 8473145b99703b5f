"""A user's credentials for registries, where other tools have put them: Docker's config.json with
its helpers, containers' auth.json, the environment.

Reads files and runs `docker-credential-*` programs with a bounded time. A secret never gets into a
`repr`, an error, a log or an argument list. Decides which entry fits, never whether it is right.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from peer.shell.oci.reference import DOCKER_HUB, DOCKER_HUB_NAMES, Reference
from shoal.wire.errors import UsageError

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
HELPER_TIMEOUT_S: Final = 30.0
"""A helper may ask a cloud's service for a token."""
HELPER_OUTPUT_BYTES_MAX: Final = 64 * 1024

USERNAME_VARIABLE: Final = "SHOAL_REGISTRY_USERNAME"
PASSWORD_VARIABLE: Final = "SHOAL_REGISTRY_PASSWORD"

DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
"""Under which Docker keeps what is for Docker Hub."""

_HELPER_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NOT_FOUND: Final = "credentials not found in native keychain"


class Credential(NamedTuple):
    """What to show a registry: a name and a password, or a token that stands for both."""

    username: str = ""
    secret: str = ""
    identity_token: str = ""
    """Exchanged for access tokens at the token service (OAuth2's refresh token)."""
    registry_token: str = ""
    """Shown to the registry as it is."""

    def __repr__(self) -> str:
        return "Credential()"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        pair = f"{self.username}:{self.secret}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


class _AuthFile(NamedTuple):
    """A file that may be there, how its keys are compared, and whether it has to be there."""

    path: Path
    by_repository: bool
    required: bool = False


class Credentials:
    """Looks up credentials. `authfile` is the user's own choice and then the only file."""

    def __init__(self, environment: Mapping[str, str], authfile: Path | None = None) -> None:
        self._environment = environment
        self._authfile = authfile

    def find(self, reference: Reference) -> Credential | None:
        """The credential for a repository, None for nobody's. May take as long as a helper.
        Raises UsageError for a file or a helper that can't be used."""
        environment = self._environment
        username = environment.get(USERNAME_VARIABLE, "")
        secret = environment.get(PASSWORD_VARIABLE, "")
        if username and secret:
            return Credential(username, secret)
        if username or secret:
            raise UsageError(f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE}: set both or none")
        for file in self._files():
            fields = _read(file)
            if fields is not None and (found := self._in_file(file, fields, reference)):
                return found
        return None

    def _files(self) -> Iterator[_AuthFile]:
        environment = self._environment
        if self._authfile is not None:
            yield _AuthFile(self._authfile, by_repository=True, required=True)
            return
        if told := environment.get("REGISTRY_AUTH_FILE"):
            yield _AuthFile(Path(told), by_repository=True, required=True)
            return
        home = environment.get("HOME") or os.path.expanduser("~")
        if runtime := environment.get("XDG_RUNTIME_DIR"):
            yield _AuthFile(Path(runtime) / "containers/auth.json", by_repository=True)
        config_home = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        yield _AuthFile(Path(config_home) / "containers/auth.json", by_repository=True)
        docker = environment.get("DOCKER_CONFIG") or f"{home}/.docker"
        yield _AuthFile(Path(docker) / "config.json", by_repository=False)

    def _in_file(
        self, file: _AuthFile, fields: dict[str, Any], reference: Reference
    ) -> Credential | None:
        helpers = _mapping(file.path, fields, "credHelpers")
        for name in _names(reference.registry):
            if name in helpers:
                return self._ask_helper(file.path, helpers[name], reference.registry)
        auths = _mapping(file.path, fields, "auths")
        for key in _keys(reference, by_repository=file.by_repository):
            for stored, entry in auths.items():
                if _plain_key(stored, by_repository=file.by_repository) == key and (
                    found := _entry(file.path, stored, entry)
                ):
                    return found
        store = fields.get("credsStore")
        return self._ask_helper(file.path, store, reference.registry) if store else None

    def _ask_helper(self, path: Path, name: object, registry: str) -> Credential | None:
        if not isinstance(name, str) or not re.fullmatch(_HELPER_NAME, name):
            raise UsageError(f"{path}: a credential helper has a name such as `pass`")
        # Most users have none.
        import subprocess

        program = f"docker-credential-{name}"
        server = DOCKER_HUB_KEY if registry == DOCKER_HUB else registry
        try:
            done = subprocess.run(
                [program, "get"],
                input=server.encode(),
                capture_output=True,
                check=False,
                timeout=HELPER_TIMEOUT_S,
                env=dict(self._environment),
            )
        except FileNotFoundError:
            raise UsageError(f"{path} names {program}, which is not installed") from None
        except subprocess.TimeoutExpired:
            raise UsageError(f"{program} gave no answer within {HELPER_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise UsageError(f"{program} can't be run: {error.strerror}") from None
        if done.returncode:
            # The protocol has no other way to say so; what else it printed may be secret.
            if _NOT_FOUND in done.stdout.decode(errors="replace").lower():
                return None
            raise UsageError(
                f"{program} failed for {registry} with exit code {done.returncode}: log in again"
            )
        return _helper_answer(program, done.stdout)


def _helper_answer(program: str, output: bytes) -> Credential | None:
    try:
        fields = json.loads(output) if len(output) <= HELPER_OUTPUT_BYTES_MAX else None
    except ValueError:
        fields = None
    match fields:
        case {"Username": "<token>", "Secret": str(token)}:
            return Credential(identity_token=token) if token else None
        case {"Username": str(username), "Secret": str(secret)}:
            return Credential(username, secret) if secret else None
        case _:
            raise UsageError(f"{program} gave no proper answer: log in again")


def _read(file: _AuthFile) -> dict[str, Any] | None:
    path = file.path
    try:
        with path.open("rb") as opened:
            body = opened.read(FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        if file.required:
            raise UsageError(f"{path}: there is no such file with credentials") from None
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: it should hold credentials") from None
    try:
        fields = json.loads(body) if len(body) <= FILE_BYTES_MAX else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: it should hold credentials as a JSON object")
    return fields


def _mapping(path: Path, fields: dict[str, Any], name: str) -> dict[str, Any]:
    found = fields.get(name) or {}
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {name} should be a JSON object")
    return found


def _names(registry: str) -> tuple[str, ...]:
    """The names that a registry goes by in files."""
    if registry == DOCKER_HUB:
        return (DOCKER_HUB, *sorted(DOCKER_HUB_NAMES - {DOCKER_HUB}), DOCKER_HUB_KEY)
    return (registry, f"https://{registry}", f"https://{registry}/v2/", f"https://{registry}/v1/")


def _keys(reference: Reference, *, by_repository: bool) -> Iterator[str]:
    """Keys that fit, the longest first: the repository's, those of its parents, the registry's."""
    names = DOCKER_HUB_NAMES if reference.registry == DOCKER_HUB else {reference.registry}
    parts = reference.repository.split("/") if by_repository else []
    for length in range(len(parts), -1, -1):
        for name in sorted(names):
            yield "/".join([name, *parts[:length]])


def _plain_key(stored: str, *, by_repository: bool) -> str:
    """A key of a file as host[:port], with a path where the file may have some."""
    plain = stored.partition("://")[2] if "://" in stored else stored
    host, _, path = plain.partition("/")
    # Keys with a scheme or `/v1/` are Docker's old ones: the path is the API's.
    if not by_repository or "://" in stored or path.strip("/") in ("", "v1", "v2"):
        return host.lower()
    return f"{host.lower()}/{path.rstrip('/')}"


def _entry(path: Path, key: str, entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: the entry of {key[:200]} should be a JSON object")
    fields = {name: text for name, text in entry.items() if isinstance(text, str) and text}
    if token := fields.get("registrytoken"):
        return Credential(registry_token=token)
    if token := fields.get("identitytoken"):
        return Credential(identity_token=token)
    if "auth" in fields:
        try:
            pair = base64.b64decode(fields["auth"], validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            pair = ""
        username, colon, secret = pair.partition(":")
        if not colon:
            raise UsageError(f"{path}: `auth` of {key[:200]} can't be read: log in again")
        return Credential(username, secret)
    if "username" in fields and "password" in fields:
        return Credential(fields["username"], fields["password"])
    return None
