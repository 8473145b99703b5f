"""One question to a web server without a library: what is heard, and what goes wrong in words."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from peer.shell.errors import OriginError
from peer.shell.oci import dialing, exchange
from peer.shell.oci.exchange import ERROR_BYTES_MAX, INTERIMS_MAX, Exchange, Heard
from shoal.wire.errors import Reason, UsageError

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
SECRET = "Bearer s3cret"


class Server:
    """Answers each request with the next text, on as many connections as are made; b"" closes."""

    def __init__(self, *texts: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._texts = list(texts)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[bytes] = []
        self.connections = 0
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def url(self, path: str = "/a") -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{path}"

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return  # The test is over.
            self.connections += 1
            try:
                if self._tls is not None:
                    link = self._tls.wrap_socket(link, server_side=True)
                self._answer(link)
            except OSError:
                continue  # The client did not like it.
            finally:
                link.close()

    def _answer(self, link: socket.socket) -> None:
        link.settimeout(10)
        request = b""
        while data := link.recv(65536):
            if data.startswith(b"\x16"):
                return  # A handshake.
            request += data
            head, end, body = request.partition(b"\r\n\r\n")
            if not end or (b"POST" in head and not body):
                continue
            self.asked.append(request)
            request = b""
            text = self._texts.pop(0)
            link.sendall(text)
            if not text or b"\r\nConnection: close" in text:
                return


@contextmanager
def asking(ca_file: Path | None = None) -> Iterator[Exchange]:
    asks = Exchange(ca_file)
    try:
        yield asks
    finally:
        asks.close()


def ask(asks: Exchange, url: str, most_bytes: int = 100, method: str = "GET") -> Heard:
    return asks.ask(method, url, {"Authorization": SECRET}, None, most_bytes)


def told(text: bytes, most_bytes: int = 100) -> Heard:
    """What is heard of a server that says so."""
    with Server(text) as server, asking() as asks:
        return ask(asks, server.url(), most_bytes)


def refused(doing: Callable[[], object]) -> tuple[Reason, str]:
    with pytest.raises(OriginError) as caught:
        doing()
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.reason, caught.value.detail


def test_a_question_and_its_answer() -> None:
    text = (
        b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nX-One: a\r\nx-one: b\r\n"
        b"WWW-Authenticate: Basic realm=x\r\nWWW-Authenticate: Bearer realm=y\r\n\r\nno"
    )
    with Server(text) as server, asking() as asks:
        heard = ask(asks, server.url("/v2/a b?c=%41"))
    assert (heard.status, heard.body, heard.headers["x-one"]) == (401, b"no", "a")
    assert heard.challenges == ("Basic realm=x", "Bearer realm=y")
    line, *headers = server.asked[0].rstrip().split(b"\r\n")
    assert line == b"GET /v2/a%20b?c=%41 HTTP/1.1"
    assert sorted(headers) == [
        b"Accept-Encoding: identity",
        b"Authorization: Bearer s3cret",
        b"Host: 127.0.0.1:%d" % server.port,
        b"User-Agent: shoal",
    ]
    assert repr(heard) == f"Heard(status=401, challenges={heard.challenges})"


def test_a_form_is_posted() -> None:
    with Server(GOOD) as server, asking() as asks:
        heard = asks.ask("POST", server.url(), {}, {"a": "x y", "b": "&"}, 100)
    assert heard.body == b"ok"
    head, _, body = server.asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a HTTP/1.1\r\n")
    assert b"Content-Type: application/x-www-form-urlencoded\r\n" in head
    assert body == b"a=x+y&b=%26"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
        EARLY + GOOD,
        b"HTTP/1.1 102 Processing\r\n\r\n" + EARLY * (INTERIMS_MAX - 1) + GOOD,
        b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY + b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
    ],
)
def test_bodies_of_every_framing(text: bytes) -> None:
    assert told(text).body == b"ok"
    assert told(text, 2).body == b"ok"


def test_a_connection_is_kept_and_nothing_is_left_of_what_came_before_an_answer() -> None:
    early = EARLY.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    with Server(early + GOOD, GOOD) as server, asking() as asks:
        heard = ask(asks, server.url())
        assert (heard.status, heard.body, heard.headers) == (200, b"ok", {"content-length": "2"})
        assert ask(asks, server.url()).body == b"ok"
    assert server.connections == 1


def test_another_protocol_is_an_answer_of_its_own() -> None:
    heard = told(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + GOOD)
    assert (heard.status, heard.body) == (101, b"")


def test_what_speaks_another_protocol_is_asked_nothing_more() -> None:
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    with Server(switched, GOOD) as server, asking() as asks:
        assert ask(asks, server.url()).status == 101
        assert ask(asks, server.url()).body == b"ok"
    assert server.connections == 2


def test_an_answer_about_the_head_alone_may_be_announced() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n"
    with Server(EARLY + head, GOOD) as server, asking() as asks:
        assert ask(asks, server.url(), 0, "HEAD").headers["content-length"] == "2000"
        assert ask(asks, server.url()).body == b"ok"
    assert server.connections == 1


def test_a_question_about_the_head_alone_has_no_body() -> None:
    with Server(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n") as server, asking() as asks:
        assert ask(asks, server.url(), 0, "HEAD").body == b""


def test_a_connection_is_kept_while_its_server_keeps_it() -> None:
    closing = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with Server(GOOD, closing, GOOD) as server, asking() as asks:
        for _ in range(3):
            assert ask(asks, server.url()).body == b"ok"
    assert server.connections == 2


def test_a_connection_that_ended_meanwhile_is_made_again() -> None:
    with Server(GOOD) as server, asking() as asks:
        ask(asks, server.url())
        (link,) = asks._kept.values()
        link.shutdown(socket.SHUT_RD)
        server._texts.append(GOOD)
        assert ask(asks, server.url()).body == b"ok"
    assert server.connections == 2


def test_a_good_answer_that_is_too_long_is_refused_and_another_one_cut() -> None:
    reason, detail = refused(lambda: told(GOOD, 1))
    assert reason is Reason.ORIGIN_INVALID
    assert detail.endswith("answered with more than 1 bytes")
    long = b"x" * (ERROR_BYTES_MAX + 10)
    bad = told(b"HTTP/1.1 500 Bad\r\nContent-Length: %d\r\n\r\n" % len(long) + long)
    assert bad.body == long[:ERROR_BYTES_MAX]


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        (b"", Reason.ORIGIN_FAILED, "closed the connection without an answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nok",
            Reason.ORIGIN_FAILED,
            "ended the connection before the end of the content",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n9\r\nok",
            Reason.ORIGIN_FAILED,
            "ended the connection before the end of the content",
        ),
        (EARLY * (INTERIMS_MAX + 1) + GOOD, Reason.ORIGIN_INVALID, "answered is not proper HTTP"),
        (
            EARLY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
            Reason.ORIGIN_FAILED,
            "closed the connection without an answer",
        ),
        (b"SSH-2.0\r\n", Reason.ORIGIN_INVALID, "answered is not proper HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
            Reason.ORIGIN_FAILED,
            "ended the connection before the end of the content",
        ),
        (
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
            Reason.ORIGIN_INVALID,
            "answered is not proper HTTP",
        ),
    ],
)
def test_answers_that_are_none(text: bytes, reason: Reason, detail: str) -> None:
    found, words = refused(lambda: told(text))
    assert found is reason
    assert words.endswith(detail)


def test_all_waits_for_an_answer_together_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_s = iter(range(0, 1000, 15))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(looks_s)))
    monkeypatch.setattr(
        exchange, "dial", lambda host, port, _: socket.create_connection((host, port))
    )
    with Server(b"HTTP/1.1 200 OK\r\n\r\nthe beginning") as server, asking() as asks:
        found = refused(lambda: ask(asks, server.url()))
    assert found == (Reason.ORIGIN_FAILED, f"127.0.0.1:{server.port} sent nothing for 60 s")
    assert next(looks_s) > 60, "it looked at the clock before each wait"


def test_nothing_begins_a_line_of_its_own() -> None:
    with Server() as server, asking() as asks:
        reason, _ = refused(
            lambda: asks.ask("GET", server.url(), {"Authorization": f"{SECRET}\r\nX: y"}, None, 9)
        )
    assert reason is Reason.ORIGIN_INVALID
    assert server.asked == []


def test_who_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with asking() as asks:
        found = refused(lambda: ask(asks, f"http://127.0.0.1:{port}/"))
        assert found == (
            Reason.ORIGIN_FAILED, f"no connection to 127.0.0.1:{port}: Connection refused",
        )  # fmt: skip

        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        found = refused(lambda: ask(asks, "http://reg.example/"))
    detail = "the name of reg.example can't be resolved (Name or service not known)"
    assert found == (Reason.ORIGIN_FAILED, detail)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
def test_only_a_certificate_of_who_was_asked_is_good(
    tmp_path: Path, authority: trustme.CA, name: str
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    with Server(GOOD, GOOD, tls=context) as server:
        with asking() as asks:
            reason, detail = refused(lambda: ask(asks, server.url()))
            assert reason is Reason.ORIGIN_INVALID
            assert detail.startswith(f"the certificate of 127.0.0.1:{server.port} was refused: ")
        with asking(tmp_path / "ca.pem") as asks:
            if name != "127.0.0.1":
                assert refused(lambda: ask(asks, server.url()))[0] is Reason.ORIGIN_INVALID
                assert server.asked == []
                return
            for _ in range(2):
                assert ask(asks, server.url()).body == b"ok"
    assert server.connections == 2, "one was refused, one kept"


def test_a_server_that_speaks_no_tls() -> None:
    with Server(GOOD) as server, asking() as asks:
        reason, detail = refused(lambda: ask(asks, server.url().replace("http:", "https:")))
    assert reason is Reason.ORIGIN_FAILED
    assert server.asked == []
    assert detail.startswith((f"TLS with 127.0.0.1:{server.port} failed", "no connection to"))


def test_a_file_that_holds_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(UsageError, match="--ca-file"):
        Exchange(tmp_path / "ca.pem")


def place(listener: socket.socket) -> dialing.Place:
    return listener.family, socket.SOCK_STREAM, 0, "", listener.getsockname()


@pytest.mark.parametrize("silent", [True, False])
def test_the_next_address_is_tried_when_one_fails_or_is_silent(
    monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(dialing, "STAGGER_S", 0.01)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        places = [place(first), place(second)]
        # Its queue is full: what comes now is not answered.
        fillers = [socket.create_connection(first.getsockname())]
        if not silent:
            first.close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
        with dialing.dial("two.example", 443, time.monotonic() + 5) as link:
            assert link.getpeername() == second.getsockname()
        for filler in fillers:
            filler.close()


def test_nobody_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "CONNECT_TIMEOUT_S", 0.02)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as first,
        socket.create_connection(first.getsockname()),
        asking() as asks,
    ):
        port = first.getsockname()[1]
        found = refused(lambda: ask(asks, f"http://127.0.0.1:{port}/"))
    assert found == (Reason.ORIGIN_FAILED, f"no connection to 127.0.0.1:{port} within 0.02 s")


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("reg.example", b"reg.example"),
        ("127.0.0.1", b"127.0.0.1"),
        ("bücher.example", b"xn--bcher-kva.example"),
    ],
)
def test_names_are_asked_for_in_the_letters_that_they_are_known_by(
    monkeypatch: pytest.MonkeyPatch, host: str, asked: bytes
) -> None:
    names: list[object] = []

    def unknown(name: object, *_: object, **__: object) -> None:
        names.append(name)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror):
        dialing.dial(host, 443, time.monotonic() + 5)
    assert names == [asked]


def test_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    places = [(family, 1, 6, "", number) for number, family in enumerate([six, six, six, four])]
    assert [found[4] for found in dialing.by_turns(places)] == [0, 3, 1, 2]
    assert dialing.by_turns([]) == []
