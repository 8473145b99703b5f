"""A client of registries (the OCI distribution API): manifests, small blobs, and the Authorization
that others then read big blobs with.

Answers a 401 once, with a bearer token or Basic. An Authorization goes to the place that it is for
and nowhere else, whatever redirects say. Every body, wait and retry is bounded; every failure is a
DownloadError. Reads no big blob and writes nothing to disk.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self
from urllib.parse import urlsplit

from peer.shell.errors import DownloadError, OriginError
from peer.shell.oci.exchange import Heard
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
from peer.shell.urls import place_of, redirect_url
from shoal.wire.errors import TRANSIENT_ORIGIN, Reason, UsageError

if TYPE_CHECKING:
    from peer.shell.oci.challenge import Challenge
    from peer.shell.oci.credentials import Credential
    from peer.shell.oci.tokens import Token

REDIRECTS_MAX: Final = 5
TRIES_MAX: Final = 3
RETRY_PAUSE_S: Final = 0.5
"""Before the second try; twice as long before the third."""

TOKEN_BYTES_MAX: Final = 256 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

FindCredential = Callable[[Reference], "Credential | None"]


class Asks(Protocol):
    """`peer.shell.oci.exchange.Exchange`."""

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most_bytes: int,
    ) -> Heard:
        """The answer to one question. Raises OriginError."""
        ...

    def close(self) -> None:
        """No further question comes."""
        ...


class RegistryClient:
    """Asks registries, through an exchange that it closes at its end. To be used as `with`; every
    question blocks, as `find` may."""

    def __init__(
        self,
        find: FindCredential,
        exchange: Asks,
        *,
        plain_http: bool = False,
        now_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._find = find
        self._exchange = exchange
        self.plain_http = plain_http
        self._now_s = now_s
        self._pause = pause
        self._tokens: dict[tuple[str, str], Token] = {}
        """By registry and repository: one client asks for few of them."""
        self._credentials: dict[tuple[str, str], Credential | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exchange.close()

    def resolve(self, reference: Reference, platform: str | None = None) -> Manifest:
        """The manifest that a name stands for, on a platform. Raises DownloadError, UsageError."""
        found = self.manifest(reference, reference.digest)
        if isinstance(found, Manifest):
            return found
        chosen = choose(found, platform)
        inner = self.manifest(reference, chosen.digest)
        if isinstance(inner, Index):
            raise DownloadError(
                Reason.ORIGIN_INVALID, f"{reference}: an index within an index; name the inner one"
            )
        return inner

    def manifest(self, reference: Reference, digest: str | None) -> Manifest | Index:
        """One manifest or index: by digest, or by the reference's tag. Raises DownloadError."""
        url = reference.url("manifests", digest or reference.target, plain_http=self.plain_http)
        answer = self._get(reference, url, ", ".join(ACCEPTED), MANIFEST_BYTES_MAX)
        stated = answer.headers.get("docker-content-digest", "")
        if digest is None and stated.startswith("sha256:"):
            check_digest(answer.body, stated, f"the manifest of {reference}")
        return parse_manifest(answer.body, answer.headers.get("content-type", ""), digest)

    def small_blob(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """The bytes of a configuration, checked. Raises DownloadError, also for a big one."""
        if descriptor.size_bytes > CONFIG_BYTES_MAX:
            raise DownloadError(
                Reason.ORIGIN_INVALID,
                f"a configuration of {descriptor.size_bytes} bytes: {CONFIG_BYTES_MAX} at most",
            )
        url = reference.url("blobs", descriptor.digest, plain_http=self.plain_http)
        answer = self._get(reference, url, "*/*", CONFIG_BYTES_MAX)
        check_digest(answer.body, descriptor.digest, "the configuration")
        return answer.body

    def authorization(
        self, reference: Reference, digest: str, *, fresh: bool = False
    ) -> str | None:
        """The Authorization to read the repository's blobs with, None where none is needed. With
        `fresh` the registry is asked for a new one. Raises DownloadError, UsageError."""
        if fresh:
            self._tokens.pop((reference.registry, reference.repository), None)
            url = reference.url("blobs", digest, plain_http=self.plain_http)
            self._get(reference, url, "*/*", 0, method="HEAD")
        return self._header(reference)

    # ------------------------------------------------------------ asking

    def _get(
        self, reference: Reference, url: str, accept: str, most_bytes: int, method: str = "GET"
    ) -> Heard:
        for attempt in range(TRIES_MAX):
            try:
                return self._get_once(reference, url, accept, most_bytes, method)
            except DownloadError as error:
                if error.reason not in TRANSIENT_ORIGIN or attempt + 1 == TRIES_MAX:
                    raise
            self._pause(RETRY_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _get_once(
        self, reference: Reference, url: str, accept: str, most_bytes: int, method: str
    ) -> Heard:
        answer = self._follow(url, self._headers(reference, accept), most_bytes, method)
        if answer.status == 401 and answer.url == url:
            # From the place that was asked, not from one that a redirect led to.
            self._authorize(reference, answer)
            answer = self._follow(url, self._headers(reference, accept), most_bytes, method)
        if answer.status == 200:
            return answer
        raise _refused(reference, answer)

    def _headers(self, reference: Reference, accept: str) -> dict[str, str]:
        header = self._header(reference)
        return {"Accept": accept, **({"Authorization": header} if header else {})}

    def _header(self, reference: Reference) -> str | None:
        token = self._tokens.get((reference.registry, reference.repository))
        return token.header if token is not None and self._now_s() < token.until_s else None

    def _follow(self, url: str, headers: Mapping[str, str], most_bytes: int, method: str) -> Heard:
        """One question with its redirects; Authorization stays at the place of `url`. They may lead
        to internal addresses, unlike a daemon's: whoever asks is the user, who alone hears of the
        answer, and which internal hosts a daemon's operator has listed is not known here."""
        at, sent = url, dict(headers)
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._send(method, at, sent, None, most_bytes)
            if answer.status not in _REDIRECTS:
                return answer
            at = _redirected(at, answer)
            if place_of(at) != place_of(url):
                sent.pop("Authorization", None)
        raise DownloadError(
            Reason.ORIGIN_INVALID,
            f"{urlsplit(url).netloc} redirects more than {REDIRECTS_MAX} times",
        )

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most_bytes: int,
    ) -> Heard:
        try:
            return self._exchange.ask(method, url, headers, form, most_bytes)
        except OriginError as error:
            raise DownloadError(error.reason, error.detail) from None

    # ------------------------------------------------------------ being let in

    def _authorize(self, reference: Reference, answer: Heard) -> None:
        """Gets what the challenge asks for. Raises DownloadError if that can't be had."""
        # Only now: many a registry lets everybody in.
        from peer.shell.oci.challenge import best_challenge, parse_challenges
        from peer.shell.oci.tokens import Token

        key = reference.registry, reference.repository
        if key not in self._credentials:
            self._credentials[key] = self._find(reference)
        credential = self._credentials[key]
        challenge = best_challenge(parse_challenges(answer.challenges))
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
            self._tokens[key] = self._fetch_token(reference, challenge, credential)

    def _fetch_token(
        self, reference: Reference, challenge: "Challenge", credential: "Credential | None"
    ) -> "Token":
        # Loaded by now, with the challenge.
        from peer.shell.oci.tokens import token_in, token_request

        url, headers, form = token_request(challenge, credential, reference.repository)
        if url.startswith("http:") and not self.plain_http:
            raise DownloadError(
                Reason.ORIGIN_INVALID,
                f"{reference.registry} names a token service without TLS: refused, because "
                "anybody on the way could read the credentials (--plain-http allows it)",
            )
        asked_s = self._now_s()
        if form is not None:
            answer = self._send("POST", url, headers, form, TOKEN_BYTES_MAX)
        else:
            answer = self._follow(url, headers, TOKEN_BYTES_MAX, "GET")
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


def _redirected(url: str, answer: Heard) -> str:
    try:
        target = redirect_url(url, answer.headers.get("location", ""))
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


def _refused(reference: Reference, answer: Heard) -> DownloadError:
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
