"""A client of registries (the OCI distribution API): manifests, small blobs, and the Authorization
that others then read big blobs with.

Answers a 401 once, with a bearer token or Basic. An Authorization goes to the place that it is for
and nowhere else, whatever redirects say. Every body, wait and retry is bounded; every failure is a
DownloadError. Reads no big blob and writes nothing to disk.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from peer.shell.errors import DownloadError
from peer.shell.oci.challenge import Challenge, best_challenge, parse_challenges
from peer.shell.oci.credentials import Credential
from peer.shell.oci.manifest import (
    ACCEPTED,
    CONFIG_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    Descriptor,
    Index,
    Manifest,
    check_digest,
    choose,
    parse_manifest,
)
from peer.shell.oci.reference import Reference
from peer.shell.oci.tokens import Token, token_in, token_request
from peer.shell.origin.http_errors import RAISED, translate
from peer.shell.urls import place_of, redirect_url
from shoal.wire.errors import TRANSIENT_ORIGIN, Reason, UsageError

CONNECT_TIMEOUT_S: Final = 15.0
TOTAL_TIMEOUT_S: Final = 60.0
"""For one question: manifests and tokens are small."""

REDIRECTS_MAX: Final = 5
TRIES_MAX: Final = 3
RETRY_PAUSE_S: Final = 0.5
"""Before the second try; twice as long before the third."""

ERROR_BYTES_MAX: Final = 64 * 1024
TOKEN_BYTES_MAX: Final = 256 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

FindCredential = Callable[[Reference], Credential | None]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One whole answer. `own` says that it came from the place that was asked, not from one that
    a redirect led to."""

    status: int
    host: str
    own: bool
    headers: Mapping[str, str] = field(repr=False)
    challenges: tuple[Challenge, ...]
    body: bytes = field(repr=False)


class RegistryClient:
    """Asks registries. To be used as `async with`; `find` may block and runs in a thread."""

    def __init__(
        self,
        find: FindCredential,
        *,
        plain_http: bool = False,
        ca_file: Path | None = None,
        now_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._find = find
        self.plain_http = plain_http
        self._ca_file = ca_file
        self._now_s = now_s
        self._pause = pause
        self._session: aiohttp.ClientSession | None = None
        self._tokens: dict[tuple[str, str], Token] = {}
        """By registry and repository: one client asks for few of them."""
        self._credentials: dict[tuple[str, str], Credential | None] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=await asyncio.to_thread(self._tls), limit=8),
            timeout=aiohttp.ClientTimeout(total=TOTAL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": "shoal", "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def resolve(self, reference: Reference, platform: str | None = None) -> Manifest:
        """The manifest that a name stands for, on a platform. Raises DownloadError, UsageError."""
        found = await self.manifest(reference, reference.digest)
        if isinstance(found, Manifest):
            return found
        chosen = choose(found, platform)
        inner = await self.manifest(reference, chosen.digest)
        if isinstance(inner, Index):
            raise DownloadError(
                Reason.ORIGIN_INVALID, f"{reference}: an index within an index; name the inner one"
            )
        return inner

    async def manifest(self, reference: Reference, digest: str | None) -> Manifest | Index:
        """One manifest or index: by digest, or by the reference's tag. Raises DownloadError."""
        url = reference.url("manifests", digest or reference.target, plain_http=self.plain_http)
        answer = await self._get(reference, url, ", ".join(ACCEPTED), MANIFEST_BYTES_MAX)
        stated = answer.headers.get("Docker-Content-Digest", "")
        if digest is None and stated.startswith("sha256:"):
            check_digest(answer.body, stated, f"the manifest of {reference}")
        return parse_manifest(answer.body, answer.headers.get("Content-Type", ""), digest)

    async def small_blob(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """The bytes of a configuration, checked. Raises DownloadError, also for a big one."""
        if descriptor.size_bytes > CONFIG_BYTES_MAX:
            raise DownloadError(
                Reason.ORIGIN_INVALID,
                f"a configuration of {descriptor.size_bytes} bytes: {CONFIG_BYTES_MAX} at most",
            )
        url = reference.url("blobs", descriptor.digest, plain_http=self.plain_http)
        answer = await self._get(reference, url, "*/*", CONFIG_BYTES_MAX)
        check_digest(answer.body, descriptor.digest, "the configuration")
        return answer.body

    async def authorization(
        self, reference: Reference, digest: str, *, fresh: bool = False
    ) -> str | None:
        """The Authorization to read the repository's blobs with, None where none is needed. With
        `fresh` the registry is asked for a new one. Raises DownloadError, UsageError."""
        if fresh:
            self._tokens.pop((reference.registry, reference.repository), None)
            url = reference.url("blobs", digest, plain_http=self.plain_http)
            await self._get(reference, url, "*/*", 0, method="HEAD")
        return self._header(reference)

    # ------------------------------------------------------------ asking

    async def _get(
        self, reference: Reference, url: str, accept: str, most_bytes: int, method: str = "GET"
    ) -> _Answer:
        for attempt in range(TRIES_MAX):
            try:
                return await self._get_once(reference, url, accept, most_bytes, method)
            except DownloadError as error:
                if error.reason not in TRANSIENT_ORIGIN or attempt + 1 == TRIES_MAX:
                    raise
            await self._pause(RETRY_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    async def _get_once(
        self, reference: Reference, url: str, accept: str, most_bytes: int, method: str
    ) -> _Answer:
        answer = await self._follow(url, self._headers(reference, accept), most_bytes, method)
        if answer.status == 401 and answer.own:
            await self._authorize(reference, answer)
            answer = await self._follow(url, self._headers(reference, accept), most_bytes, method)
        if answer.status == 200:
            return answer
        raise _refused(reference, answer)

    def _headers(self, reference: Reference, accept: str) -> dict[str, str]:
        header = self._header(reference)
        return {"Accept": accept, **({"Authorization": header} if header else {})}

    def _header(self, reference: Reference) -> str | None:
        token = self._tokens.get((reference.registry, reference.repository))
        return token.header if token is not None and self._now_s() < token.until_s else None

    async def _follow(
        self, url: str, headers: Mapping[str, str], most_bytes: int, method: str
    ) -> _Answer:
        """One question with its redirects; Authorization stays at the place of `url`."""
        at, sent = url, dict(headers)
        for _ in range(REDIRECTS_MAX + 1):
            answer = await self._send(method, at, sent, None, most_bytes, own=at == url)
            if answer.status not in _REDIRECTS:
                return answer
            at = _redirected(at, answer)
            if place_of(at) != place_of(url):
                sent.pop("Authorization", None)
        raise DownloadError(
            Reason.ORIGIN_INVALID,
            f"{urlsplit(url).netloc} redirects more than {REDIRECTS_MAX} times",
        )

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most_bytes: int,
        *,
        own: bool,
    ) -> _Answer:
        assert self._session is not None, "used outside `async with`"
        host = urlsplit(url).netloc
        try:
            async with self._session.request(
                method, URL(url, encoded=True), headers=headers, data=form, allow_redirects=False
            ) as response:
                good = response.status == 200
                body = b""
                if method != "HEAD":
                    body = await _body(
                        response, most_bytes if good else ERROR_BYTES_MAX, host, good
                    )
                return _Answer(
                    status=response.status,
                    host=host,
                    own=own,
                    headers=response.headers.copy(),
                    challenges=parse_challenges(response.headers.getall("WWW-Authenticate", [])),
                    body=body,
                )
        except RAISED as error:
            told = translate(
                error, host, connect_timeout_s=CONNECT_TIMEOUT_S, stall_timeout_s=TOTAL_TIMEOUT_S
            )
            raise DownloadError(told.reason, told.detail) from None

    # ------------------------------------------------------------ being let in

    async def _authorize(self, reference: Reference, answer: _Answer) -> None:
        """Gets what the challenge asks for. Raises DownloadError if that can't be had."""
        key = reference.registry, reference.repository
        if key not in self._credentials:
            self._credentials[key] = await asyncio.to_thread(self._find, reference)
        credential = self._credentials[key]
        challenge = best_challenge(answer.challenges)
        if credential is not None and credential.registry_token:
            self._tokens[key] = Token.lasting(f"Bearer {credential.registry_token}")
        elif challenge is None:
            raise DownloadError(
                Reason.ORIGIN_UNAUTHORIZED,
                f"{answer.host} wants a kind of login that shoal does not know (Bearer and Basic)",
            )
        elif challenge.scheme == "basic":
            if credential is None or not credential.secret:
                raise _no_credentials(reference)
            self._tokens[key] = Token.lasting(credential.basic)
        else:
            self._tokens[key] = await self._fetch_token(reference, challenge, credential)

    async def _fetch_token(
        self, reference: Reference, challenge: Challenge, credential: Credential | None
    ) -> Token:
        url, headers, form = token_request(challenge, credential, reference.repository)
        if url.startswith("http:") and not self.plain_http:
            raise DownloadError(
                Reason.ORIGIN_INVALID,
                f"{reference.registry} names a token service without TLS: refused, because "
                "anybody on the way could read the credentials (--plain-http allows it)",
            )
        asked_s = self._now_s()
        if form is not None:
            answer = await self._send("POST", url, headers, form, TOKEN_BYTES_MAX, own=True)
        else:
            answer = await self._follow(url, headers, TOKEN_BYTES_MAX, "GET")
        if answer.status in (401, 403) and credential is None:
            raise _no_credentials(reference)
        if answer.status in (400, 401, 403):
            raise DownloadError(
                Reason.ORIGIN_UNAUTHORIZED,
                f"the token service {answer.host} refused the credentials for "
                f"{reference.registry}: check them, or log in again",
            )
        if answer.status != 200:
            raise _refused(reference, answer)
        return token_in(answer.body, asked_s, answer.host)

    def _tls(self) -> ssl.SSLContext | bool:
        if self._ca_file is None:
            return True
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(self._ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"--ca-file {self._ca_file}: {error.strerror or 'no PEM certificates in it'}"
            ) from None
        return context


async def _body(response: aiohttp.ClientResponse, most_bytes: int, host: str, good: bool) -> bytes:
    """The whole body of a good answer; of another one as much as is allowed."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > most_bytes:
            if good:
                raise DownloadError(
                    Reason.ORIGIN_INVALID, f"{host} answered with more than {most_bytes} bytes"
                )
            return bytes(body[:most_bytes])
    return bytes(body)


def _redirected(url: str, answer: _Answer) -> str:
    try:
        target = redirect_url(url, answer.headers.get("Location", ""))
    except UsageError:
        raise DownloadError(
            Reason.ORIGIN_INVALID, f"{answer.host} redirects to something that is no HTTP(S) URL"
        ) from None
    if url.startswith("https:") and not target.startswith("https:"):
        raise DownloadError(
            Reason.ORIGIN_INVALID, f"{answer.host} redirects from https to plain http: refused"
        )
    return target


def _no_credentials(reference: Reference) -> DownloadError:
    return DownloadError(
        Reason.ORIGIN_UNAUTHORIZED,
        f"{reference.registry} wants credentials for {reference.repository}: log in with docker or "
        "podman, or set SHOAL_REGISTRY_USERNAME and SHOAL_REGISTRY_PASSWORD",
    )


def _refused(reference: Reference, answer: _Answer) -> DownloadError:
    what = f"{answer.host} answered {answer.status} for {reference}"
    match answer.status:
        case 401:
            return DownloadError(
                Reason.ORIGIN_UNAUTHORIZED, f"{what}: check the credentials, or log in again"
            )
        case 403 | 412:
            return DownloadError(
                Reason.ORIGIN_FORBIDDEN,
                f"{what}: this user may not pull it, or a policy forbids it",
            )
        case 404:
            return DownloadError(
                Reason.ORIGIN_NOT_FOUND,
                f"{what}: check the name and the tag; some registries hide private repositories so",
            )
        case 429 | 503:
            return DownloadError(Reason.ORIGIN_BUSY, f"{what}: try again later")
        case status if status >= 500:
            return DownloadError(Reason.ORIGIN_FAILED, f"{what}: try again later")
        case _:
            return DownloadError(Reason.ORIGIN_INVALID, f"{what}, which makes no sense")
