"""Who is let in to the test registry: basic authentication, or tokens of a service of its own.

Pure apart from the clock: from a request's path and header to a refusal. Knows nothing of sockets;
the recording proxy asks it.
"""

import base64
import binascii
import json
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SERVICE: Final = "registry.test"
TOKEN_HOLDS_S: Final = 300.0

_REPOSITORY: Final = re.compile(r"^/v2/(.+)/(?:manifests|blobs|tags|referrers)/")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in place of the registry's, or of the token service."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def _unauthorized(challenge: str) -> Refusal:
    body = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
    headers = {"WWW-Authenticate": challenge, "Docker-Distribution-Api-Version": "registry/2.0"}
    return Refusal(401, body, headers)


def basic_pair(authorization: str | None) -> tuple[str, str] | None:
    """User and password of an Authorization header; None if it does not have them."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


class Gate(ABC):
    """Decides about requests."""

    @abstractmethod
    def refusal(self, path: str, authorization: str | None, realm: str) -> Refusal | None:
        """None lets the request in."""

    def answer_token(self, asked: Mapping[str, str], headers: Mapping[str, str]) -> Refusal:
        """What the token service says to a query or a form."""
        del asked, headers
        return Refusal(404, {"details": "no tokens here"})


class BasicGate(Gate):
    """One user with one password."""

    def __init__(self, user: str, password: str) -> None:
        self._pair = (user, password)

    def refusal(self, path: str, authorization: str | None, realm: str) -> Refusal | None:
        """None for the right user and password."""
        del path, realm
        if basic_pair(authorization) == self._pair:
            return None
        return _unauthorized(f'Basic realm="{SERVICE}"')


class TokenGate(Gate):
    """Tokens for one repository each, which say when they end. Given to everybody, or only to one
    user."""

    def __init__(
        self,
        user: str | None = None,
        password: str | None = None,
        *,
        holds_s: float = TOKEN_HOLDS_S,
    ) -> None:
        self.given = 0
        """How many tokens the service gave out."""
        self._holds_s = holds_s
        self._pair = None if user is None or password is None else (user, password)
        self._tokens: dict[str, tuple[frozenset[str], float]] = {}

    def revoke(self) -> None:
        """No token that was given out holds any longer."""
        self._tokens.clear()

    def refusal(self, path: str, authorization: str | None, realm: str) -> Refusal | None:
        """None for a token that holds for the repository of the path."""
        found = _REPOSITORY.match(path)
        repository = found.group(1) if found else None
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and token in self._tokens:
            repositories, until_s = self._tokens[token]
            if time.monotonic() < until_s and (repository is None or repository in repositories):
                return None
        challenge = f'Bearer realm="{realm}",service="{SERVICE}"'
        if repository is not None:
            challenge += f',scope="repository:{repository}:pull"'
        return _unauthorized(challenge)

    def answer_token(self, asked: Mapping[str, str], headers: Mapping[str, str]) -> Refusal:
        """A token for the repositories of the scope, to whom it is due."""
        if asked.get("service") != SERVICE:
            return Refusal(400, {"details": "another service"})
        pair = basic_pair(headers.get("Authorization"))
        if asked.get("grant_type") == "password":
            pair = (asked.get("username", ""), asked.get("password", ""))
        if self._pair is not None and pair != self._pair:
            return Refusal(401, {"details": "wrong user or password"})
        repositories = frozenset(
            ":".join(scope.split(":")[1:-1])
            for scope in asked.get("scope", "").split()
            if scope.startswith("repository:")
        )
        token = _web_token(time.time() + self._holds_s)
        self._tokens[token] = (repositories, time.monotonic() + self._holds_s)
        self.given += 1
        told = {"token": token, "access_token": token, "expires_in": int(self._holds_s)}
        return Refusal(200, told)


def _web_token(until_s: float) -> str:
    """In the form of RFC 7519. Its signature is drawn: the gate knows its tokens by heart."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"exp": int(until_s), "jti": secrets.token_hex(8)})
    shown = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts
    ]
    return ".".join((*shown, secrets.token_urlsafe(32)))
