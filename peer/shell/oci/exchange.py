"""A question to a web server and its whole answer, on the standard library alone.

Exists because a command asks a registry three small things, and importing an HTTP library takes
many times as long as that. HTTP/1.1; a connection is kept for the next question to its place. No
redirects, proxies or cookies: what an answer means is decided in `peer.shell.oci.registry`. Every
wait and body is bounded.
"""

import http.client
import io
import select
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import SplitResult, urlencode, urlsplit

from peer.shell import failures
from peer.shell.errors import OriginError
from peer.shell.oci.dialing import dial
from peer.shell.urls import SCHEMES, legal_text
from shoal.wire.errors import Reason, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_TIMEOUT_S: Final = 15.0
"""TLS included."""
TOTAL_TIMEOUT_S: Final = 60.0
"""For one question: manifests and tokens are small."""
ERROR_BYTES_MAX: Final = 64 * 1024
"""Of an answer that is not 200: the rest is left out."""
INTERIMS_MAX: Final = 16
"""Answers that only say that the real one comes, as early hints do."""

_Place = tuple[str, str, int]


class Heard(NamedTuple):
    """One whole answer. Names of headers are in lower case, and of several with one name the first
    counts, save that `challenges` has every `WWW-Authenticate`."""

    url: str
    """What was asked for."""
    status: int
    headers: Mapping[str, str]
    challenges: tuple[str, ...]
    body: bytes

    def __repr__(self) -> str:
        # The rest may be secret.
        return f"Heard(status={self.status}, challenges={self.challenges})"

    @property
    def host(self) -> str:
        """Who answered, with the port if the URL names one: for people."""
        return urlsplit(self.url).netloc


class Exchange:
    """Asks web servers, one question after the other. `ca_file`: who is trusted beside those whom
    the system trusts."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Raises UsageError for a file of which nothing can be read."""
        self._ca_file = ca_file
        self._context = _tls(ca_file) if ca_file is not None else None
        self._kept: dict[_Place, socket.socket] = {}

    def close(self) -> None:
        """Ends all connections."""
        while self._kept:
            self._kept.popitem()[1].close()

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most_bytes: int,
    ) -> Heard:
        """The answer to one question; `form` is what a POST sends. Raises OriginError, also for a
        good answer of more than `most_bytes`."""
        host = urlsplit(url).netloc
        try:
            return self._ask(method, url, headers, form, most_bytes)
        except (OSError, ValueError, http.client.HTTPException) as error:
            # Not `from error`: its text may quote the URL or a header.
            raise _translated(error, host) from None

    def _ask(
        self,
        method: str,
        whole_url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most_bytes: int,
    ) -> Heard:
        url = urlsplit(whole_url)
        end_s = time.monotonic() + TOTAL_TIMEOUT_S
        place = url.scheme, url.hostname or "", url.port or SCHEMES[url.scheme]
        link = self._kept.pop(place, None)
        if link is not None and _has_ended(link):
            link.close()
            link = None
        link = link or self._open(place, url.netloc)
        body = None if form is None else urlencode(form).encode()
        kept = False
        try:
            _send(link, end_s, method, url, headers, body)
            with _Answer(link, method, end_s) as answer:
                answer.begin()
                heard = _heard(answer, whole_url, most_bytes)
                kept = answer.isclosed() and not answer.will_close
        finally:
            if not kept:
                link.close()
        if kept:
            self._kept[place] = link
        return heard

    def _open(self, place: _Place, shown: str) -> socket.socket:
        scheme, host, port = place
        end_s = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            link = dial(host, port, end_s)
        except socket.gaierror as error:
            raise failures.unknown_name(shown, failures.system_text(error)) from None
        except TimeoutError:
            raise failures.connected_too_late(shown, CONNECT_TIMEOUT_S) from None
        except OSError as error:
            raise failures.no_connection(shown, failures.system_text(error)) from None
        if scheme == "http":
            return link
        self._context = self._context or _tls(None)
        try:
            link.settimeout(max(0.001, end_s - time.monotonic()))
            return self._context.wrap_socket(link, server_hostname=host.removesuffix("."))
        except TimeoutError:
            raise failures.connected_too_late(shown, CONNECT_TIMEOUT_S) from None
        finally:
            link.close()  # Of what TLS was put on nothing is left in it.


class _Answer(http.client.HTTPResponse):
    """One answer, every wait for which ends in time."""

    def __init__(self, link: socket.socket, method: str, end_s: float) -> None:
        super().__init__(link, method=method)
        self.fp = io.BufferedReader(_Timed(self.fp, link, end_s))

    def begin(self) -> None:
        """Reads up to the body of the real answer, past those that only announce it: of them
        `http.client` passes over 100 alone, as many as come in time."""
        super().begin()
        interims = 0
        while self.status // 100 == 1 and self.status != http.client.SWITCHING_PROTOCOLS:
            interims += 1
            if interims > INTERIMS_MAX:
                raise http.client.HTTPException("nothing but interim answers")
            # By this it knows that another one is to be read.
            self.headers = None  # type: ignore[assignment]
            super().begin()
        if self.status == http.client.SWITCHING_PROTOCOLS:
            # From here on the connection carries whatever else it is.
            self.will_close = True


class _Timed(io.RawIOBase):
    """What arrives on a connection until an end in time; TimeoutError after it."""

    def __init__(self, source: io.BufferedReader, link: socket.socket, end_s: float) -> None:
        self._source = source.detach()
        self._link = link
        self._end_s = end_s

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, target: "WriteableBuffer") -> int | None:
        """Waits for the next bytes."""
        _wait_until(self._link, self._end_s)
        return self._source.readinto(target)

    def close(self) -> None:
        """Lets go of the connection, without ending it."""
        self._source.close()
        super().close()


def _wait_until(link: socket.socket, end_s: float) -> None:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    link.settimeout(left_s)


def _send(
    link: socket.socket,
    end_s: float,
    method: str,
    url: SplitResult,
    headers: Mapping[str, str],
    body: bytes | None,
) -> None:
    """One request. Its line and headers are checked by `http.client`: nothing in them begins a
    line of its own."""
    _wait_until(link, end_s)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else (url.hostname or "")
    port = "" if url.port in (None, SCHEMES[url.scheme]) else f":{url.port}"
    target = legal_text(url.path or "/") + (f"?{legal_text(url.query)}" if url.query else "")
    sender = http.client.HTTPConnection("")
    # It only writes: a connection that it made itself would be one without TLS.
    sender.auto_open = 0
    sender.sock = link
    sender.putrequest(method, target, skip_host=True)
    sender.putheader("Host", host.encode("ascii" if host.isascii() else "idna") + port.encode())
    sender.putheader("User-Agent", "shoal")
    for name, text in headers.items():
        sender.putheader(name, text.encode())
    if body is not None:
        sender.putheader("Content-Type", "application/x-www-form-urlencoded")
        sender.putheader("Content-Length", str(len(body)))
    sender.endheaders(body)


def _heard(answer: http.client.HTTPResponse, url: str, most_bytes: int) -> Heard:
    headers: dict[str, str] = {}
    for name, text in answer.headers.items():
        headers.setdefault(name.lower(), str(text))
    return Heard(
        url=url,
        status=answer.status,
        headers=headers,
        challenges=tuple(map(str, answer.headers.get_all("www-authenticate", ()))),
        body=_body(answer, most_bytes, urlsplit(url).netloc),
    )


def _body(answer: http.client.HTTPResponse, most_bytes: int, host: str) -> bytes:
    """The whole body of a good answer; of another one as much as is allowed."""
    good = answer.status == 200
    limit = most_bytes if good else ERROR_BYTES_MAX
    body = answer.read(limit + 1)
    if len(body) > limit and good:
        raise OriginError(Reason.ORIGIN_INVALID, f"{host} answered with more than {limit} bytes")
    if len(body) <= limit and answer.length:
        raise failures.cut_short(host)
    return body[:limit]


def _has_ended(link: socket.socket) -> bool:
    """Whether a connection that should be silent is not: its end, or what nobody asked for."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    return bool(poll.poll(0))


def _translated(error: Exception, host: str) -> OriginError:
    if isinstance(error, ssl.SSLError):
        return failures.tls_failure(error, host)
    if isinstance(error, TimeoutError):
        return failures.silent(host, TOTAL_TIMEOUT_S)
    if isinstance(error, http.client.RemoteDisconnected):
        return failures.no_answer(host)
    if isinstance(error, http.client.IncompleteRead):
        return failures.cut_short(host)
    if isinstance(error, http.client.InvalidURL):
        return failures.no_url(host)
    if isinstance(error, OSError):
        return failures.broken(host, failures.system_text(error))
    return failures.no_http(host)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"--ca-file {ca_file}: {error.strerror or 'no PEM certificates in it'}"
            ) from None
    return context
