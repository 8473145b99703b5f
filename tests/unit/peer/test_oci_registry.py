"""What a client of registries does with answers: whom it shows what, and what it refuses."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from peer.shell.errors import DownloadError, OriginError
from peer.shell.oci.credentials import Credential
from peer.shell.oci.exchange import Heard
from peer.shell.oci.manifest import Manifest
from peer.shell.oci.reference import parse_reference
from peer.shell.oci.registry import REDIRECTS_MAX, TRIES_MAX, RegistryClient
from shoal.wire.errors import Reason

DIGEST = "sha256:" + "ab" * 32
TYPE = "application/vnd.oci.image.manifest.v1+json"
BODY = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": TYPE,
        "config": {"mediaType": "a/b", "digest": DIGEST, "size": 2},
        "layers": [],
    }
).encode()
REFERENCE = parse_reference("reg.example/team/model:v1")
HOST = "https://reg.example"
MANIFEST = f"{HOST}/v2/team/model/manifests/v1"
TOKENS = "https://auth.example/token"
BEARER = f'Bearer realm="{TOKENS}",service="reg",scope="repository:team/model:pull"'
ANN = Credential("ann", "horse")
BASIC = f"Basic {base64.b64encode(b'ann:horse').decode()}"


def heard(status: int = 200, body: bytes = BODY, *challenges: str, **headers: str) -> Heard:
    return Heard("", status, {"content-type": TYPE, **headers}, challenges, body)


def moved(to: str, status: int = 307) -> Heard:
    return heard(status, b"", location=to)


TOKEN = heard(200, b'{"token": "t1", "expires_in": 100}')
UNAUTHORIZED = heard(401, b"", BEARER)


@dataclass
class Script:
    """Answers as it was told to, and remembers who was asked with which Authorization."""

    answers: list[Heard | OriginError]
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    forms: list[Mapping[str, str]] = field(default_factory=list)
    closed: bool = False

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most_bytes: int,
    ) -> Heard:
        self.asked.append((method, url, headers.get("Authorization", "")))
        if form is not None:
            self.forms.append(form)
        answer = self.answers.pop(0)
        if isinstance(answer, OriginError):
            raise answer
        return answer._replace(url=url)

    def close(self) -> None:
        self.closed = True


class Client(RegistryClient):
    """Over a script; it has a credential or none, and a clock that is set by hand."""

    def __init__(
        self,
        *answers: Heard | OriginError,
        credential: Credential | None = ANN,
        plain: bool = False,
    ) -> None:
        self.script = Script(list(answers))
        self.time_s = 0.0
        self.paused_s: list[float] = []
        super().__init__(
            lambda _: credential,
            self.script,
            plain_http=plain,
            now_s=lambda: self.time_s,
            pause=self.paused_s.append,
        )

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        return self.script.asked


def refused(doing: Callable[[], object]) -> tuple[Reason, str]:
    with pytest.raises(DownloadError) as caught:
        doing()
    assert "horse" not in repr(caught.value)
    return caught.value.reason, caught.value.detail


def test_a_name_that_everybody_may_read() -> None:
    with Client(heard()) as client:
        manifest = client.resolve(REFERENCE)
        assert client.authorization(REFERENCE, DIGEST) is None
    assert manifest.digest == f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert client.asked == [("GET", MANIFEST, "")]
    assert client.script.closed


def test_a_token_is_fetched_once_and_kept_for_the_registry() -> None:
    client = Client(UNAUTHORIZED, TOKEN, heard(), heard(200, b"{}"), credential=ANN)
    client.resolve(REFERENCE)
    digest = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
    assert client.authorization(REFERENCE, digest) == "Bearer t1"
    query = "scope=repository%3Ateam%2Fmodel%3Apull&service=reg"
    assert client.asked == [
        ("GET", MANIFEST, ""),
        ("GET", f"{TOKENS}?{query}", BASIC),
        ("GET", MANIFEST, "Bearer t1"),
    ]
    client.time_s = 99
    assert client.authorization(REFERENCE, digest) is None, "its time is over"


def test_a_fresh_right_is_asked_for_by_the_head_of_a_blob() -> None:
    client = Client(UNAUTHORIZED, TOKEN, heard(200, b""))
    assert client.authorization(REFERENCE, DIGEST, fresh=True) == "Bearer t1"
    url = f"{HOST}/v2/team/model/blobs/{DIGEST}"
    assert [each for each in client.asked if each[1] == url] == [
        ("HEAD", url, ""), ("HEAD", url, "Bearer t1"),
    ]  # fmt: skip


def test_an_identity_token_is_sent_in_a_form_and_follows_no_redirect() -> None:
    identity = Credential(identity_token="refresh")
    client = Client(UNAUTHORIZED, TOKEN, heard(), credential=identity)
    client.resolve(REFERENCE)
    assert client.asked[1] == ("POST", TOKENS, "")
    assert client.script.forms[0]["refresh_token"] == "refresh"
    client = Client(UNAUTHORIZED, moved("https://evil.example/"), credential=identity)
    assert refused(lambda: client.resolve(REFERENCE))[0] is Reason.ORIGIN_INVALID
    assert len(client.asked) == 2


def test_basic_goes_to_the_registry_itself() -> None:
    client = Client(heard(401, b"", 'Basic realm="x"'), heard())
    client.resolve(REFERENCE)
    assert client.asked[1] == ("GET", MANIFEST, BASIC)


def test_an_authorization_stays_where_it_is_for() -> None:
    client = Client(
        UNAUTHORIZED, TOKEN, moved("/elsewhere"), moved("https://cdn.example/x"),
        moved(f"{HOST}/back"), heard(),
    )  # fmt: skip
    client.resolve(REFERENCE)
    assert client.asked[2:] == [
        ("GET", MANIFEST, "Bearer t1"),
        ("GET", f"{HOST}/elsewhere", "Bearer t1"),
        ("GET", "https://cdn.example/x", ""),
        ("GET", f"{HOST}/back", ""),
    ]


@pytest.mark.parametrize("to", ["https://reg.example:444/x", "https://other.example/x"])
def test_credentials_for_the_token_service_stay_there(to: str) -> None:
    client = Client(UNAUTHORIZED, moved(to), TOKEN, heard())
    client.resolve(REFERENCE)
    assert client.asked[1][2] == BASIC
    assert client.asked[2] == ("GET", to, "")


def test_a_challenge_of_where_a_redirect_led_is_not_answered() -> None:
    evil = heard(401, b"", 'Bearer realm="https://evil.example/token"')
    client = Client(moved("https://cdn.example/x"), evil)
    assert refused(lambda: client.resolve(REFERENCE))[0] is Reason.ORIGIN_UNAUTHORIZED
    assert [each[1] for each in client.asked] == [MANIFEST, "https://cdn.example/x"]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([moved("http://reg.example/x")], "redirects from https to plain http: refused"),
        ([moved("ftp://reg.example/x")], "redirects to something that is no HTTP(S) URL"),
        ([moved("/x")] * (REDIRECTS_MAX + 1), f"redirects more than {REDIRECTS_MAX} times"),
        (
            [heard(401, b"", 'Bearer realm="http://auth.example/"')],
            "reg.example names a token service without TLS: refused, because anybody on the way "
            "could read the credentials (--plain-http allows it)",
        ),
    ],
)
def test_ways_that_are_refused(answers: list[Heard], words: str) -> None:
    client = Client(*answers)
    reason, detail = refused(lambda: client.resolve(REFERENCE))
    assert reason is Reason.ORIGIN_INVALID
    assert detail.endswith(words)
    assert len(client.asked) == len(answers), "nobody else was asked"


@pytest.mark.parametrize(
    ("answers", "credential", "reason", "words"),
    [
        ([UNAUTHORIZED, heard(401)], None, Reason.ORIGIN_UNAUTHORIZED, "wants credentials for"),
        ([UNAUTHORIZED, heard(403)], ANN, Reason.ORIGIN_UNAUTHORIZED, "refused the credentials"),
        ([UNAUTHORIZED, TOKEN, heard(401)], ANN, Reason.ORIGIN_UNAUTHORIZED, "log in again"),
        ([heard(401, b"", "Negotiate")], ANN, Reason.ORIGIN_UNAUTHORIZED, "kind of login"),
        ([heard(401, b"", "Basic")], None, Reason.ORIGIN_UNAUTHORIZED, "wants credentials for"),
        ([heard(403)], ANN, Reason.ORIGIN_FORBIDDEN, "may not pull it"),
        ([heard(404)], ANN, Reason.ORIGIN_NOT_FOUND, "check the name and the tag"),
        ([heard(418)], ANN, Reason.ORIGIN_INVALID, "makes no sense"),
    ],
)
def test_refusals_in_words(
    answers: list[Heard], credential: Credential | None, reason: Reason, words: str
) -> None:
    client = Client(*answers, credential=credential)
    found, detail = refused(lambda: client.resolve(REFERENCE))
    assert found is reason
    assert words in detail
    assert client.paused_s == []


def test_what_may_mend_is_tried_again() -> None:
    broken = OriginError(Reason.ORIGIN_FAILED, "no connection to reg.example: gone")
    client = Client(broken, heard(503), heard())
    assert isinstance(client.resolve(REFERENCE), Manifest)
    assert client.paused_s == [0.5, 1.0]
    client = Client(*[broken] * TRIES_MAX)
    assert refused(lambda: client.resolve(REFERENCE)) == (broken.reason, broken.detail)
    lost = OriginError(Reason.ORIGIN_INVALID, "the certificate of reg.example was refused: no")
    client = Client(lost)
    assert refused(lambda: client.resolve(REFERENCE)) == (lost.reason, lost.detail)


def test_other_bytes_than_the_registry_names_are_refused() -> None:
    headers = {"content-type": TYPE, "docker-content-digest": DIGEST}
    client = Client(Heard("", 200, headers, (), BODY))
    assert refused(lambda: client.resolve(REFERENCE))[0] is Reason.DIGEST_MISMATCH
