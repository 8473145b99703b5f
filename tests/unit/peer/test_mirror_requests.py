"""What requests to the registry mirror mean: paths, ranges, registries, grants, images."""

import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from peer.shell.mirror.grants import GRANTS_MAX, Grants, token_seconds_left
from peer.shell.mirror.images import IMAGES_MAX, ImageBook, Manifest, blobs_of, digest_of
from peer.shell.mirror.paths import Asked, parse_path, parse_upload
from peer.shell.mirror.relay import LOOP_HEADER, asked_headers, told_headers
from peer.shell.mirror.upstreams import Upstream, UpstreamRefusedError, Upstreams, parse_upstream
from peer.shell.ranges import ByteRange, Unsatisfiable, parse_range
from shoal.wire.errors import UsageError
from shoal.wire.limits import SECOND_NS

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
REGISTRIES = frozenset({"reg.example", "127.0.0.1:5001"})

# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v2/lib/img/manifests/v1", Asked("", "lib/img", "manifests", "v1")),
        (f"/v2/img/manifests/{DIGEST}", Asked("", "img", "manifests", DIGEST)),
        (f"/v2/a/b/c/blobs/{DIGEST}", Asked("", "a/b/c", "blobs", DIGEST)),
        ("/v2/lib/img/tags/list", Asked("", "lib/img", "tags", "list")),
        (f"/v2/lib/img/referrers/{DIGEST}", Asked("", "lib/img", "referrers", DIGEST)),
        (
            "/v2/reg.example/lib/img/manifests/v1",
            Asked("reg.example", "lib/img", "manifests", "v1"),
        ),
        (f"/v2/127.0.0.1:5001/img/blobs/{DIGEST}", Asked("127.0.0.1:5001", "img", "blobs", DIGEST)),
        ("/v2/manifests/blobs/manifests/v1", Asked("", "manifests/blobs", "manifests", "v1")),
        # The name of a registry alone is a repository.
        ("/v2/reg.example/manifests/v1", Asked("", "reg.example", "manifests", "v1")),
    ],
)
def test_paths_of_the_protocol_are_read(path: str, asked: Asked) -> None:
    assert parse_path(path, REGISTRIES) == asked


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/",
        "/v2/img",
        "/v1/img/manifests/v1",
        "/v2/../etc/manifests/v1",
        "/v2/lib//img/manifests/v1",
        "/v2/Lib/img/manifests/v1",
        "/v2/lib/img/manifests/",
        "/v2/lib/img/manifests/a b",
        "/v2/lib/img/manifests/sha256:baddigeststring",
        "/v2/lib/img/blobs/v1",
        f"/v2/lib/img/blobs/{DIGEST.upper()}",
        "/v2/lib/img/blobs/uploads",
        "/v2/lib/img/tags/other",
        "/v2/other.example:99/lib/img/manifests/v1",
        "/v2/" + "a/" * 128 + "b/manifests/v1",
    ],
)
def test_other_paths_are_none(path: str) -> None:
    assert parse_path(path, REGISTRIES) is None


def test_paths_of_uploads_are_read_as_they_were_sent() -> None:
    found = parse_upload("/v2/reg.example/lib/img/blobs/uploads/a%2Fb=", REGISTRIES)
    assert found == Asked("reg.example", "lib/img", "uploads", "a%2Fb=")
    assert found.upstream_path == "/v2/lib/img/blobs/uploads/a%2Fb="
    assert parse_upload("/v2/img/blobs/uploads/", REGISTRIES) == Asked("", "img", "uploads", "")
    for path in (
        "/v2/blobs/uploads/",
        "/v2/lib/img/blobs/uploads",
        "/v2/lib/img/blobs/uploads/a/b",
        "/v2/lib/img/blobs/uploads/..",
        "/v2/lib/../img/blobs/uploads/a",
        "/v2/lib%2Fimg/blobs/uploads/a",
    ):
        assert parse_upload(path, REGISTRIES) is None, path


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", ByteRange(0, 100)),
        ("bytes=10-19", ByteRange(10, 20)),
        ("bytes=90-500", ByteRange(90, 100)),
        ("bytes=-5", ByteRange(95, 100)),
        ("bytes=-500", ByteRange(0, 100)),
        ("bytes=0-1,5-6", None),
        ("bytes=20-10", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
    ],
)
def test_one_range_is_answered_and_nonsense_is_ignored(
    header: str | None, expected: ByteRange | None
) -> None:
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=-0", 9), ("bytes=0-", 0)]
)
def test_a_range_outside_of_the_content_is_refused(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(header, size)


@given(st.integers(1, 10_000), st.integers(0, 20_000), st.integers(0, 20_000))
@example(1, 0, 0)
def test_a_range_lies_within_the_content(size: int, first: int, last: int) -> None:
    try:
        found = parse_range(f"bytes={first}-{last}", size)
    except Unsatisfiable:
        assert first >= size
        return
    if found is None:
        assert last < first
    else:
        assert 0 <= found.start < found.end <= size
        assert (found.start, found.end) == (first, min(last + 1, size))


# ---------------------------------------------------------------- registries


def test_registries_are_written_as_names_or_with_where_they_are() -> None:
    assert parse_upstream("docker.io") == Upstream("docker.io", "https://registry-1.docker.io")
    assert parse_upstream("index.docker.io").name == "docker.io"
    assert parse_upstream("reg.example:5000").url == "https://reg.example:5000"
    assert parse_upstream("reg.example=http://10.0.0.5:5000/").url == "http://10.0.0.5:5000"
    assert parse_upstream("[::1]:5000=http://[::1]:5000").name == "[::1]:5000"


@pytest.mark.parametrize(
    "text", ["", "a b", "x=ftp://x", "x=http://", "x=http://u:p@x", "x=http://x/path", "../x"]
)
def test_what_is_no_registry_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_upstream(text)


def test_a_request_names_its_registry_in_several_ways() -> None:
    names = ("a.example", "b.example", "c.example:5000", "docker.io")
    upstreams = Upstreams([parse_upstream(name) for name in names], default="docker.io")
    assert upstreams.choose().name == "docker.io"
    assert upstreams.choose(listener="a.example").name == "a.example"
    assert upstreams.choose(prefix="b.example", listener="a.example").name == "b.example"
    assert upstreams.choose(namespace="c.example:5000", prefix="b.example").name == "c.example:5000"
    header = "https://a.example"
    assert upstreams.choose(header=header, namespace="b.example").name == "a.example"
    assert upstreams.choose(namespace="index.docker.io").name == "docker.io"


@pytest.mark.parametrize(
    "namespace", ["169.254.169.254", "localhost:22", "evil.example", "a.example@evil.example", "\n"]
)
def test_no_request_leads_to_a_registry_that_is_not_listed(namespace: str) -> None:
    upstreams = Upstreams([parse_upstream("a.example")])
    with pytest.raises(UpstreamRefusedError):
        upstreams.choose(namespace=namespace)
    with pytest.raises(UpstreamRefusedError):
        upstreams.choose(header=f"http://{namespace}")
    with pytest.raises(UpstreamRefusedError):
        upstreams.choose()


def test_headers_that_come_in_several_lines_are_joined_and_others_stay_here() -> None:
    headers = CIMultiDict([("Accept", "a"), ("accept", "b"), ("Cookie", "c"), ("Host", "h")])
    asked = asked_headers(headers)
    assert asked["Accept"] == "a, b"
    assert set(asked) == {"Accept", "Accept-Encoding", LOOP_HEADER}
    told = told_headers(
        [
            ("Www-Authenticate", "x"),
            ("Www-Authenticate", "y"),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "z"),
            ("Server", "registry"),
        ]
    )
    assert list(told.items()) == [("Www-Authenticate", "x"), ("Www-Authenticate", "y")]


# ---------------------------------------------------------------- grants


class Now:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.ns = SECOND_NS

    def now_ns(self) -> int:
        return self.ns


def bearer(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"Bearer e30.{body}.c2ln"


def test_a_grant_is_for_one_credential_repository_and_content_and_for_a_while() -> None:
    now = Now()
    grants = Grants(now, lambda: 0.0, 60 * SECOND_NS)
    grants.grant("Basic eA==", "reg", "lib/img", (DIGEST,))
    assert grants.allows("Basic eA==", "reg", "lib/img", DIGEST)
    for other in (
        ("", "reg", "lib/img", DIGEST),
        ("Basic eQ==", "reg", "lib/img", DIGEST),
        ("Basic eA==", "other", "lib/img", DIGEST),
        ("Basic eA==", "reg", "lib/other", DIGEST),
        ("Basic eA==", "reg", "lib/img", OTHER),
    ):
        assert not grants.allows(*other)
    now.ns += 60 * SECOND_NS
    assert not grants.allows("Basic eA==", "reg", "lib/img", DIGEST)


def test_a_grant_ends_with_its_token() -> None:
    now = Now()
    grants = Grants(now, lambda: 1000.0, 60 * SECOND_NS)
    token, over = bearer({"exp": 1010}), bearer({"exp": 999})
    grants.grant(token, "reg", "img", (DIGEST,))
    grants.grant(over, "reg", "img", (DIGEST,))
    assert not grants.allows(over, "reg", "img", DIGEST)
    now.ns += 9 * SECOND_NS
    assert grants.allows(token, "reg", "img", DIGEST)
    now.ns += 2 * SECOND_NS
    assert not grants.allows(token, "reg", "img", DIGEST)


def test_tokens_that_do_not_say_when_they_end_are_taken_as_they_are() -> None:
    for text in ("Bearer opaque", "Bearer a.b.c", bearer([1]), bearer({"exp": "soon"}), "Basic x"):
        assert token_seconds_left(text, 0.0) is None
    assert token_seconds_left("Bearer a." + "b" * 70_000 + ".c", 0.0) == 0.0


def test_a_registry_may_take_back_what_it_said() -> None:
    grants = Grants(Now(), lambda: 0.0, 60 * SECOND_NS)
    for credential in ("Basic eA==", "Basic eQ=="):
        grants.grant(credential, "reg", "img", (DIGEST, OTHER))
    grants.revoke("Basic eA==", "reg", "img", DIGEST)
    grants.revoke("Basic eA==", "reg", "never", DIGEST)
    assert not grants.allows("Basic eA==", "reg", "img", DIGEST)
    assert grants.allows("Basic eQ==", "reg", "img", DIGEST)
    grants.forget("reg", "img", OTHER)
    assert not grants.allows("Basic eQ==", "reg", "img", OTHER)
    grants.revoke("Basic eQ==", "reg", "img", DIGEST)
    assert grants.count == 0


def test_grants_are_bounded() -> None:
    grants = Grants(Now(), lambda: 0.0, 60 * SECOND_NS)
    grants.grant("", "reg", "img", tuple(f"sha256:{number}" for number in range(GRANTS_MAX + 1)))
    assert not grants.allows("", "reg", "img", "sha256:0")
    assert grants.allows("", "reg", "img", f"sha256:{GRANTS_MAX}")


# ---------------------------------------------------------------- images


def manifest_of(*digests: str, config: str = "") -> Manifest:
    body = json.dumps(
        {
            "config": {"digest": config} if config else {},
            "layers": [{"digest": digest, "size": 1} for digest in digests],
        }
    ).encode()
    return Manifest(digest_of(body), "application/vnd.oci.image.manifest.v1+json", body)


def test_the_blobs_of_a_manifest_are_one_image() -> None:
    book = ImageBook()
    image = book.note("reg/img", manifest_of(DIGEST, DIGEST, config=OTHER))
    assert image is not None
    assert image.blobs == (OTHER, DIGEST)
    assert book.image_of("reg/img", DIGEST) == image
    assert book.image_of("reg/other", DIGEST) is None


def test_a_manifest_that_is_forgotten_leaves_nothing() -> None:
    book = ImageBook()
    manifest = manifest_of(DIGEST, OTHER)
    book.note("reg/img", manifest)
    book.note("reg/other", manifest)
    for _ in range(2):
        book.forget("reg/img", manifest.digest)
    assert book.manifest("reg/img", manifest.digest) is None
    assert book.image_of("reg/img", DIGEST) is None
    assert book.image_of("reg/other", DIGEST) is not None


def test_the_last_image_with_a_blob_counts_and_few_are_kept() -> None:
    book = ImageBook()
    book.note("reg/img", manifest_of(DIGEST))
    newer = book.note("reg/img", manifest_of(DIGEST, OTHER))
    assert book.image_of("reg/img", DIGEST) == newer
    for number in range(IMAGES_MAX):
        book.note("reg/img", manifest_of(f"sha256:{number:064x}"))
    assert book.image_of("reg/img", DIGEST) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"manifests": []}',
        b'{"layers": {"digest": 1}}',
        b'{"layers": [1, {}, {"digest": 5}, {"digest": "md5:00"}, {"digest": "sha256:zz"}]}',
        json.dumps({"layers": [{"digest": DIGEST, "urls": ["http://elsewhere"]}]}).encode(),
    ],
)
def test_what_names_no_blob_of_this_registry_is_no_image(body: bytes) -> None:
    assert blobs_of(body) == ()
