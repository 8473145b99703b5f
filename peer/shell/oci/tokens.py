"""Bearer tokens of registries: how one is asked for, and what the token service answered.

Pure: `peer.shell.oci.registry` does the asking. A token never gets into a `repr`.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlencode

from peer.shell.errors import DownloadError
from peer.shell.oci.challenge import Challenge
from peer.shell.oci.credentials import Credential
from peer.shell.oci.manifest import json_object
from shoal.wire.errors import Reason

DEFAULT_LIFE_S: Final = 60
"""Of a token that does not say how long it is good, by the token specification."""

SPARE_SHARE: Final = 0.1
"""A token is used for the first nine tenths of its life: clocks and networks take the rest."""

TOKEN_CHARACTERS_MAX: Final = 15 * 1024
"""What still fits into a header."""


class Token(NamedTuple):
    """The value of an Authorization header, and until when (`time.monotonic()`) it is good."""

    header: str
    until_s: float

    def __repr__(self) -> str:
        return f"Token(until_s={self.until_s})"

    @classmethod
    def lasting(cls, header: str) -> "Token":
        """One without an end."""
        return cls(header, float("inf"))


def token_request(
    challenge: Challenge, credential: Credential | None, repository: str
) -> tuple[str, dict[str, str], dict[str, str] | None]:
    """URL, headers and form (None: a GET) that ask the token service for the right to pull."""
    query = {"scope": challenge.parameters.get("scope") or f"repository:{repository}:pull"}
    if service := challenge.parameters.get("service"):
        query["service"] = service
    if credential is not None and credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            "client_id": "shoal",
            "refresh_token": credential.identity_token,
            **query,
        }
        return challenge.realm, {}, form
    headers = {"Authorization": credential.basic} if credential is not None else {}
    joint = "&" if "?" in challenge.realm else "?"
    return f"{challenge.realm}{joint}{urlencode(query)}", headers, None


def token_in(body: bytes, asked_s: float, host: str) -> Token:
    """The token in the service's answer. Raises DownloadError if there is none."""
    fields: Mapping[str, object] = json_object(body, f"the answer of {host}")
    token = fields.get("token") or fields.get("access_token")
    if (
        not isinstance(token, str)
        or len(token) > TOKEN_CHARACTERS_MAX
        or not token.isascii()
        or not token.isprintable()
    ):
        raise DownloadError(Reason.ORIGIN_INVALID, f"the token service {host} gave no token")
    life = fields.get("expires_in")
    life_s = life if isinstance(life, int) and not isinstance(life, bool) and life > 0 else 0
    life_s = min(life_s or DEFAULT_LIFE_S, 365 * 24 * 3600)
    return Token(f"Bearer {token}", asked_s + life_s * (1 - SPARE_SHARE))
