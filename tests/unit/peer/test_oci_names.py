"""References, challenges, manifests and paths of registries: what is read, and what is refused."""

import contextlib
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.shell.errors import DownloadError
from peer.shell.oci.challenge import best_challenge, parse_challenges
from peer.shell.oci.layers import Packing, files_of, parse_time
from peer.shell.oci.manifest import Index, Manifest, choose, parse_manifest
from peer.shell.oci.paths import patterns, safe_link, safe_path
from peer.shell.oci.reference import parse_reference
from shoal.wire.errors import Reason, UsageError

DIGEST = "sha256:" + "ab" * 32
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("team/app:1", "docker.io/team/app:1"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("Reg.Example:5000/a/b:v1", "reg.example:5000/a/b:v1"),
        (f"[::1]:5000/a@{DIGEST}", f"[::1]:5000/a@{DIGEST}"),
        (f"reg.example/a:v1@{DIGEST}", f"reg.example/a:v1@{DIGEST}"),
    ],
)
def test_references(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full
    assert str(parse_reference(full)) == full


@pytest.mark.parametrize(
    "text",
    ["", "https://reg.example/a", "reg.example/A", "reg.example:0/a", "[::g]/a", "a:", "a/../b",
     "reg.example/a@sha256:12", "reg.example/", "x" * 2000],
)  # fmt: skip
def test_references_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        known = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(known)) == known


def test_where_docker_hub_answers() -> None:
    url = parse_reference("nginx").url("manifests", "latest")
    assert url == "https://registry-1.docker.io/v2/library/nginx/manifests/latest"


def test_challenges() -> None:
    header = (
        'Basic realm="a, b", Bearer realm="https://t.example/x",service="s",scope="r:a:pull,push"'
    )
    found = parse_challenges([header])
    assert [each.scheme for each in found] == ["basic", "bearer"]
    best = best_challenge(found)
    assert best is not None
    assert best.parameters == {
        "realm": "https://t.example/x", "service": "s", "scope": "r:a:pull,push",
    }  # fmt: skip
    assert best_challenge(parse_challenges(["Negotiate", 'Bearer realm="file:///x"'])) is None


@given(st.lists(st.text(alphabet='abB=", \\\t', max_size=40), max_size=3))
def test_no_header_breaks_the_reader(headers: list[str]) -> None:
    best_challenge(parse_challenges(headers))


@pytest.mark.parametrize("path", ["/a", "../a", "a/../../b", "", ".", "a\0b", "a\\b", "a\nb",
                                  ".shoal-pull/x", ".shoal-pull.json", "x" * 300])  # fmt: skip
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(DownloadError, match="refused"):
        safe_path(path, "layer")


@given(st.text(alphabet="a./", max_size=12))
def test_a_safe_path_never_climbs(path: str) -> None:
    try:
        safe = safe_path(path, "layer")
    except DownloadError:
        return
    assert not safe.startswith("/")
    assert not {"", ".", ".."} & set(safe.split("/"))


@pytest.mark.parametrize(
    ("path", "target"), [("a", ".."), ("a", "/x"), ("d/a", "../../x"), ("d/a", "b/../../x")]
)
def test_links_that_are_refused(path: str, target: str) -> None:
    with pytest.raises(DownloadError, match="out of the directory"):
        safe_link(path, target, "layer")
    assert safe_link("d/a", "../x", "layer") == "../x"


def test_patterns() -> None:
    chosen = patterns(["*.json", "docs/**"], ["docs/private/*"])
    assert chosen.wants("a/b.json")
    assert chosen.wants("docs/x/y.md")
    assert not chosen.wants("docs/private/y")
    assert not chosen.wants("weights.bin")
    assert patterns([], ["*.bin"]).wants("a")


def manifest_of(*layers: dict[str, object], **more: object) -> Manifest:
    fields = {
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": DIGEST,
                   "size": 2}, **more,
    }  # fmt: skip
    found = parse_manifest(json.dumps(fields).encode(), MANIFEST, None)
    assert isinstance(found, Manifest)
    return found


def layer(packing: str, path: str | None, size: object = 3) -> dict[str, object]:
    named = {} if path is None else {"annotations": {"org.cnai.model.filepath": path}}
    media_type = f"application/vnd.cncf.model.weight.v1.{packing}"
    return {"mediaType": media_type, "digest": DIGEST, "size": size, **named}


def test_what_is_shown_of_a_manifest_is_short() -> None:
    manifest = manifest_of(*[layer("raw", f"{number}") for number in range(500)])
    assert repr(manifest) == f"Manifest(digest={manifest.digest!r}, layers=500)"
    assert f"{[manifest]}" == f"[{manifest!r}]"


def test_a_model_and_its_layers() -> None:
    files = files_of(manifest_of(layer("raw", "a/b"), layer("tar+zstd", None)))
    assert files is not None
    assert [(each.packing, each.path) for each in files] == [
        (Packing.RAW, "a/b"), (Packing.TAR_ZSTD, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "layers",
    [
        [layer("raw", None)],
        [layer("raw", "../a")],
        [layer("raw", "a"), layer("raw", "a")],
        [layer("raw", "a"), layer("raw", "a/b")],
        [layer("rar", "a")],
        [layer("raw", "a", -1)],
        [layer("raw", "a", True)],
    ],
)
def test_models_that_are_refused(layers: list[dict[str, object]]) -> None:
    with pytest.raises(DownloadError) as caught:
        files_of(manifest_of(*layers))
    assert caught.value.reason is Reason.ORIGIN_INVALID


def test_other_bytes_than_the_digest_are_refused() -> None:
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []}).encode()
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert isinstance(parse_manifest(body, "", digest), Index)
    with pytest.raises(DownloadError) as caught:
        parse_manifest(body, "", DIGEST)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from(["layers", "config", "manifests", "size",
    "digest", "mediaType", "annotations"]), inner, max_size=5), max_leaves=12))  # fmt: skip
def test_no_manifest_breaks_the_reader(value: object) -> None:
    # Anything but a DownloadError fails the test.
    with contextlib.suppress(DownloadError):
        parse_manifest(json.dumps(value).encode(), MANIFEST, None)


def test_a_platform_is_chosen() -> None:
    entries = [
        {"mediaType": MANIFEST, "digest": DIGEST, "size": size,
         "platform": {"os": "linux", "architecture": name}}
        for size, name in ((1, "amd64"), (2, "arm64"))
    ]  # fmt: skip
    index = parse_manifest(json.dumps({"manifests": entries}).encode(), "", None)
    assert isinstance(index, Index)
    assert choose(index, "linux/arm64/v8").size_bytes == 2
    with pytest.raises(DownloadError, match="linux/amd64, linux/arm64"):
        choose(index, "linux/s390x")


def test_times() -> None:
    assert parse_time("1970-01-01T01:00:01.5+01:00") == 1_500_000_000
    assert parse_time("1970-01-01T00:00:00.123456789Z") == 123_456_789
    assert parse_time("0001-01-01T00:00:00Z") is None
    assert parse_time("yesterday") is None
