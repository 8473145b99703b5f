"""URLs from users: what is taken, what is shown, and which URLs name the same source."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.shell.errors import OriginError
from peer.shell.origin.base import Origins
from peer.shell.origin.request import OriginRequest
from peer.shell.urls import display_url, place_of, redirect_url
from peer.shell.wanted_urls import (
    check_headers,
    credential_of,
    identity_url,
    is_anonymous,
    origin_request,
    parse_header,
)
from shoal.wire.errors import Reason, UsageError


class TestOriginRequest:
    @pytest.mark.parametrize(
        ("url", "made"),
        [
            ("https://example.com", "https://example.com/"),
            ("HTTPS://Example.COM:443/A", "https://example.com/A"),
            ("http://example.com:8080/a?b=c#part", "http://example.com:8080/a?b=c"),
            ("http://[2001:DB8::1]:81/a", "http://[2001:db8::1]:81/a"),
            ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC"),
            (
                "https://h/a%2fb/./c%7e?x=%61+b&sig=a%3D%3d",
                "https://h/a%2fb/./c%7e?x=%61+b&sig=a%3D%3d",
            ),
            ("https://h/100%", "https://h/100%25"),
            ("https://h/a?q={x}|y", "https://h/a?q=%7Bx%7D%7Cy"),
            ("http://my_host.internal./x", "http://my_host.internal./x"),
        ],
    )
    def test_url_is_made_proper_and_else_left_to_the_letter(self, url: str, made: str) -> None:
        assert origin_request(url).url == made

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.com/a",
            "/a/b",
            "s3://bucket/key",
            "ftp://h/a",
            "file:///etc/passwd",
            "http:/h/a",
            "http://",
            "http:///a",
            "http://h:0/",
            "http://h:99999/",
            "http://h:x/",
            "http://[::1/",
            "http://[zz]/",
            "http://a..b/",
            "http://-a/",
            "http://a b/",
            "http://h/a b",
            "http://h/\n",
            "http://h/\x7f",
            "http://%41/",
            "http://" + "a" * 64 + ".com/",
            "http://h/" + "a" * 20_000,
            "ht\u212aps://h/",
        ],
    )
    def test_nonsense_is_a_usage_error(self, url: str) -> None:
        for function in (origin_request, display_url, identity_url):
            with pytest.raises(UsageError):
                function(url)

    def test_scheme_error_tells_what_would_do(self) -> None:
        with pytest.raises(UsageError, match="give an http:// or https:// URL"):
            origin_request("s3://bucket/key")

    @pytest.mark.parametrize("url", ["http://u:s3cr3t@h:x/s3cr3t", "http://u:s3cr3t@[/?s3cr3t"])
    def test_errors_show_no_secrets(self, url: str) -> None:
        with pytest.raises(UsageError) as caught:
            origin_request(url)
        assert "s3cr3t" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_user_info_becomes_a_header(self) -> None:
        request = origin_request("https://me:p%40ss@example.com/a")
        assert request.url == "https://example.com/a"
        ((name, value),) = request.headers
        assert name == "Authorization"
        assert base64.b64decode(value.removeprefix("Basic ")) == b"me:p@ss"

    def test_user_info_gives_way_to_a_header(self) -> None:
        headers = (("authorization", "Bearer x"),)
        request = origin_request("https://me@example.com/a", headers)
        assert request.headers == headers

    def test_secrets_are_never_shown(self) -> None:
        request = origin_request(
            "https://me:s3cr3t@example.com/a?sig=s3cr3t", [("X-Token", "s3cr3t")]
        )
        for text in (repr(request), str(request), f"{request}", request.display, repr([request])):
            assert "s3cr3t" not in text
            assert "https://example.com/a" in text
        assert "X-Token" in repr(request)
        assert "s3cr3t" not in repr(OriginRequest("https://me:s3cr3t@example.com/?s3cr3t"))

    def test_options_are_kept_and_requests_compare(self) -> None:
        first = origin_request("http://h/a", insecure_skip_verify=True, ca_file=Path("/ca"))
        assert (first.insecure_skip_verify, first.ca_file) == (True, Path("/ca"))
        assert first == origin_request("http://H/a", insecure_skip_verify=True, ca_file=Path("/ca"))
        assert len({first, origin_request("http://h/a")}) == 2


class TestHeaders:
    def test_header_line(self) -> None:
        assert parse_header("X-A:  b: c ") == ("X-A", "b: c")

    @pytest.mark.parametrize(
        "line", ["Bearer s3cr3t", "Authorization Bearer s3cr3t: x", ": s3cr3t"]
    )
    def test_bad_lines_show_nothing(self, line: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_header(line)
        assert "s3cr3t" not in str(caught.value)
        assert "Name: value" in str(caught.value)

    @pytest.mark.parametrize("name", ["Range", "host", "Accept-Encoding", "IF-RANGE", "Connection"])
    def test_headers_that_are_ours(self, name: str) -> None:
        with pytest.raises(UsageError, match="leave it out"):
            check_headers([(name, "x")])

    @pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb", "a\x00", "x" * 20_000])
    def test_values_that_cannot_be_sent(self, value: str) -> None:
        with pytest.raises(UsageError) as caught:
            check_headers([("X-A", value)])
        assert value not in str(caught.value)

    def test_too_many(self) -> None:
        with pytest.raises(UsageError, match="at most"):
            check_headers([("X-A", "b")] * 65)


class TestDisplay:
    def test_no_secret_is_left(self) -> None:
        shown = display_url("https://u:p@Example.com:8443/a/b.bin?X-Amz-Signature=abc#f")
        assert shown == "https://example.com:8443/a/b.bin"


SIGNED = {
    "aws4": "X-Amz-Algorithm=A&X-Amz-Credential=B&X-Amz-Date=C&X-Amz-Expires=1"
    "&X-Amz-SignedHeaders=host&X-Amz-Signature=ff&X-Amz-Security-Token=t&x-id=GetObject",
    "aws2": "AWSAccessKeyId=A&Expires=1&Signature=b%2B",
    "gcs4": "X-Goog-Algorithm=A&X-Goog-Credential=B&X-Goog-Date=C&X-Goog-Expires=1"
    "&X-Goog-SignedHeaders=host&X-Goog-Signature=ff",
    "gcs2": "GoogleAccessId=a&Expires=1&Signature=b",
    "azure": "sv=2024-11-04&ss=b&srt=o&sp=r&se=2026&st=2025&spr=https&sig=x&skoid=1&sktid=2"
    "&skt=3&ske=4&sks=b&skv=5",
    "oss1": "OSSAccessKeyId=a&Expires=1&Signature=b&security-token=t",
    "oss4": "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=a&x-oss-date=d"
    "&x-oss-expires=1&x-oss-signature=f",
    "obs": "AccessKeyId=a&Expires=1&Signature=b&x-obs-security-token=t",
    "cos": "q-sign-algorithm=sha1&q-ak=a&q-sign-time=1&q-key-time=1&q-header-list="
    "&q-url-param-list=&q-signature=f&x-cos-security-token=t",
    "cloudfront": "Policy=p&Signature=s&Key-Pair-Id=k",
    "canned": "Expires=1&Signature=s&Key-Pair-Id=k",
    "hub": "X-Xet-Cas-Uid=public&Expires=1&Policy=p&Signature=s&Key-Pair-Id=k",
    "hub-token": "__sign=eyJhbGciOi",
}


class TestIdentity:
    @pytest.mark.parametrize("signature", SIGNED.values(), ids=SIGNED.keys())
    def test_signatures_are_left_out_and_the_rest_stays(self, signature: str) -> None:
        plain = "https://bucket.example/a?versionId=3&x-oss-process=y"
        for query in (
            f"versionId=3&{signature}&x-oss-process=y",
            f"{signature}&x-oss-process=y&versionId=3",
        ):
            url = f"https://bucket.example/a?{query}"
            assert identity_url(url) == plain
            assert not is_anonymous(origin_request(url))
        assert identity_url(f"https://bucket.example/a?{signature}") == "https://bucket.example/a"

    @pytest.mark.parametrize(
        "query",
        ["Expires=1", "sp=r", "se=2&sv=1", "sig=1", "Signature=1&Expires=2", "Policy=x", "st=page"],
    )
    def test_common_words_alone_are_no_signature(self, query: str) -> None:
        assert identity_url(f"https://h/a?{query}") == (
            "https://h/a?" + "&".join(sorted(query.split("&")))
        )

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            ("HTTP://Example.com:80", "http://example.com/"),
            ("https://u:p@h/a", "https://h/a"),
            ("https://h/a#x", "https://h/a#y"),
            ("https://h/a?b=1&a=2", "https://h/a?a=2&b=1"),
            ("https://h/a?", "https://h/a"),
            ("https://h/a?&b=1&", "https://h/a?b=1"),
            ("https://h/%7eu/%c3%bc", "https://h/~u/ü"),
        ],
    )
    def test_same_source(self, left: str, right: str) -> None:
        assert identity_url(left) == identity_url(right)

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            ("https://h/a", "http://h/a"),
            ("https://h/a", "https://h:8443/a"),
            ("https://h/a", "https://h/A"),
            ("https://h/a%2Fb", "https://h/a/b"),
            ("https://h/a?b=1", "https://h/a?b=2"),
            ("https://h/a?b=1&b=2", "https://h/a?b=2&b=1"),
            ("https://h/a?b", "https://h/a"),
            ("https://h/a?b=%26c", "https://h/a?b=&c"),
            ("https://h/a?versionId=1", "https://h/a?versionId=2"),
            ("https://h/a?generation=1", "https://h/a"),
        ],
    )
    def test_other_source(self, left: str, right: str) -> None:
        assert identity_url(left) != identity_url(right)

    def test_user_may_leave_parameters_out(self) -> None:
        url = "https://h/a?Trace=1&b=2&trace=3"
        assert identity_url(url, ["trace"]) == "https://h/a?b=2"
        assert not is_anonymous(origin_request(url), ["TRACE"])
        assert is_anonymous(origin_request(url))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "Expires", "Signature", "AWSAccessKeyId", "sv", "sig"]),
                st.text("xyz%20&=", max_size=4),
            ),
            max_size=6,
        )
    )
    def test_identity_is_stable_under_itself(self, pairs: list[tuple[str, str]]) -> None:
        query = "&".join(f"{name}={value}" for name, value in pairs)
        try:
            once = identity_url(f"http://h/p?{query}")
        except UsageError:
            return
        assert identity_url(once) == once
        assert "signature" not in once.lower() or "awsaccesskeyid" not in once.lower()


class TestAnonymous:
    @pytest.mark.parametrize(
        "headers", [(), (("User-Agent", "x"), ("accept", "*/*"), ("Accept-Language", "de"))]
    )
    def test_harmless_headers(self, headers: tuple[tuple[str, str], ...]) -> None:
        assert is_anonymous(origin_request("https://h/a?download=true&revision=main", headers))

    @pytest.mark.parametrize("name", ["Authorization", "cookie", "X-Api-Key", "Private-Token", "X"])
    def test_any_other_header_is_a_credential(self, name: str) -> None:
        assert not is_anonymous(origin_request("https://h/a", [(name, "x")]))

    @pytest.mark.parametrize(
        "query",
        [
            "token=1",
            "access_token=1",
            "Signature=1",
            "sig=1",
            "api_key=1",
            "X-Auth=1",
            "accesstoken=1",
        ],
    )
    def test_suspicious_parameters(self, query: str) -> None:
        assert not is_anonymous(origin_request(f"https://h/a?{query}"))

    def test_user_info(self) -> None:
        assert not is_anonymous(origin_request("https://u:p@h/a"))
        assert not is_anonymous(OriginRequest("https://u:p@h/a"))

    def test_credential_tells_users_apart_and_nothing_else(self) -> None:
        def of(url: str, *headers: tuple[str, str], key: bytes = b"k") -> str:
            return credential_of(origin_request(url, headers), key)

        assert of("https://h/a?x=1", ("User-Agent", "me")) == ""
        mine = of("https://h/a", ("Authorization", "mine"))
        assert mine == of("https://other/b?x=1", ("authorization", "mine"), ("Accept", "x"))
        assert "mine" not in mine
        others = {
            of("https://h/a", ("Authorization", "yours")),
            of("https://h/a", ("Cookie", "mine")),
            of("https://h/a", ("Authorization", "mine"), key=b"other"),
            of("https://h/a?sv=1&sig=a"),
            of("https://h/a?sv=1&sig=b"),
            of("https://mine@h/a"),
        }
        assert len(others | {mine, ""}) == 8


class TestRedirect:
    @pytest.mark.parametrize(
        ("location", "target"),
        [
            ("/b?c#d", "https://h/b?c"),
            ("b", "https://h/x/b"),
            ("?c=1", "https://h/x/y?c=1"),
            ("//other/b", "https://other/b"),
            ("http://u:p@other:81/b", "http://other:81/b"),
            (" /with space ", "https://h/with%20space"),
        ],
    )
    def test_target(self, location: str, target: str) -> None:
        assert redirect_url("https://h/x/y?z", location) == target

    def test_place(self) -> None:
        assert place_of("https://h/a") == place_of("https://h:443/b") == ("https", "h", 443)
        assert place_of("http://h/") != place_of("https://h/")


def test_no_origin_for_a_scheme() -> None:
    with pytest.raises(OriginError, match="no origin for s3://") as caught:
        Origins({}).of(OriginRequest("S3://bucket/key"))
    assert caught.value.reason is Reason.ORIGIN_INVALID
