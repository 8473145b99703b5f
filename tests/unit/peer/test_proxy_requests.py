"""What requests to the forward proxy mean and where they may go: targets, hosts, places, rules."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from peer.shell.mirror.upstreams import parse_upstream
from peer.shell.origin.places import PlaceRules, parse_network
from peer.shell.proxy.headers import (
    asked_headers,
    credential_headers,
    is_conditional,
    passed,
    told_headers,
)
from peer.shell.proxy.policy import Policy, RefusedError
from peer.shell.proxy.rules import Wishes, parse_rule, rule_for, wishes_of
from peer.shell.proxy.targets import (
    Target,
    TargetError,
    parse_absolute,
    parse_connect,
    parse_pattern,
    parse_target,
)
from shoal.wire.errors import UsageError

DIGEST = "sha256:" + "ab" * 32
BLOB = f"/v2/lib/img/blobs/{DIGEST}"

# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("text", "target", "rest"),
    [
        ("http://reg.example/v2/", Target("http", "reg.example", 80), "/v2/"),
        ("HTTP://Reg.Example:80", Target("http", "reg.example", 80), "/"),
        ("https://reg.example./a?b=%2F", Target("https", "reg.example", 443), "/a?b=%2F"),
        ("http://[::1]:8080?x", Target("http", "::1", 8080), "/?x"),
        ("http://[0:0::1]/", Target("http", "::1", 80), "/"),
        ("http://a/b#c", None, ""),
        ("http://a@b/", None, ""),
        ("http://", None, ""),
        ("http:///x", None, ""),
        ("http://a:0/", None, ""),
        ("http://a:65536/", None, ""),
        ("http://a b/", None, ""),
        ("http://a\\@b/", None, ""),
        ("http://ä/", None, ""),
        ("http://[::1%25lo]/", None, ""),
        ("ftp://a/", None, ""),
        ("/v2/", None, ""),
        ("*", None, ""),
    ],
)
def test_absolute_urls(text: str, target: Target | None, rest: str) -> None:
    if target is None:
        with pytest.raises(TargetError):
            parse_absolute(text)
    else:
        assert parse_absolute(text) == (target, rest)


@given(st.text() | st.from_regex(r"https?://[a-z0-9.\[\]:%@\\/?#-]*", fullmatch=True))
@example("http://a:1:2/")
def test_an_absolute_url_is_read_as_it_is_asked_or_not_at_all(text: str) -> None:
    try:
        target, rest = parse_absolute(text)
    except TargetError:
        return
    assert rest.startswith("/")
    assert parse_absolute(target.url + rest) == (target, rest)
    assert parse_target(target.authority, target.scheme) == target


@given(st.binary(max_size=200))
@example(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nX:\r\nProxy-Authorization: Basic eA==")
def test_a_connect_request_is_read_or_refused(head: bytes) -> None:
    try:
        target = parse_connect(head)
    except TargetError:
        return
    assert target == Target("https", "a", 1)


# ---------------------------------------------------------------- hosts and places


@pytest.mark.parametrize(
    ("pattern", "url", "covered"),
    [
        ("reg.example", "http://reg.example", True),
        ("reg.example", "https://REG.example", True),
        ("reg.example", "http://reg.example:443", False),
        ("reg.example", "https://reg.example:8443", False),
        ("reg.example:8443", "https://reg.example:8443", True),
        ("reg.example:8443", "https://reg.example", False),
        ("reg.example", "http://a.reg.example", False),
        ("*.example", "http://a.b.example", True),
        ("*.example", "http://example", False),
        ("*.example", "http://anexample", False),
        ("*.example:81", "http://a.example:81", True),
        ("*", "https://anything.test", True),
        ("*", "https://anything.test:22", False),
        ("*:81", "http://anything.test:81", True),
        ("[::1]:81", "http://[0::1]:81", True),
        ("10.0.0.1", "http://10.0.0.1", True),
    ],
)
def test_patterns_of_hosts(pattern: str, url: str, covered: bool) -> None:
    assert parse_pattern(pattern).covers(parse_absolute(url)[0]) is covered


@pytest.mark.parametrize(
    "text",
    ["", "a b", "http://a", "a/", "*.", "**", "a:0", "a:x", "*:0", "*.10.0.0.1", "[::1", "@"],
)
def test_what_is_no_pattern_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is no host"):
        parse_pattern(text)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "::",
        "::1", "fe80::1", "fe80::1%1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::",
        "2002:a9fe:a9fe::1", "reg.example", "127.1", "",
    ],
)  # fmt: skip
def test_private_places_need_to_be_listed(address: str) -> None:
    assert not PlaceRules().allows(address)


def test_public_places_and_listed_networks_are_allowed() -> None:
    rules = PlaceRules((parse_network("10.1.0.0/16"), parse_network("fd00::/8")))
    for address in ("8.8.8.8", "2001:4860:4860::8888", "10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert rules.allows(address), address
    assert not rules.allows("10.2.0.1")
    with pytest.raises(UsageError, match=r"10\.1\.0\.0/16"):
        parse_network("10.1.0.1/16")


def test_what_only_looks_like_an_address_is_no_name() -> None:
    rules = PlaceRules(exact=("127.0.0.1", 80))
    for host in ("127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "a.1"):
        assert not rules.allows_host(host, 80), host
    assert rules.allows_host("127.0.0.1", 80)
    assert not rules.allows_host("127.0.0.1", 81)
    assert not rules.allows("127.0.0.1"), "no name leads there"
    assert rules.allows_host("reg.example", 80)
    assert rules.allows_host("1a.example", 80)


def policy(
    *,
    allow: str = "web.example",
    networks: str = "",
    rules: tuple[str, ...] = (),
    upstreams: str = "reg.example docker.io lan.example=http://10.0.0.5:5000",
) -> Policy:
    return Policy(
        allow=[parse_pattern(text) for text in allow.split()],
        networks=[parse_network(text) for text in networks.split()],
        rules=[parse_rule(text) for text in rules],
        upstreams=[parse_upstream(text) for text in upstreams.split()],
        intercept=[parse_pattern("reg.example")],
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://web.example/", ""),
        ("https://reg.example/", ""),
        ("https://registry-1.docker.io/", ""),
        ("http://10.0.0.5:5000/", ""),
        ("http://lan.example/", ""),
        ("http://10.0.0.5/", "proxy.allow"),
        ("https://reg.example:22/", "proxy.allow"),
        ("http://other.example/", "proxy.allow"),
    ],
)
def test_only_what_is_listed_is_reached(url: str, why: str) -> None:
    target = parse_absolute(url)[0]
    if not why:
        policy().check(target)
        return
    with pytest.raises(RefusedError, match=why):
        policy().check(target)


def test_with_any_host_allowed_private_addresses_still_are_not() -> None:
    for host in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "127.1", "[::1]"):
        target = parse_absolute(f"http://{host}/")[0]
        with pytest.raises(RefusedError, match=r"proxy\.networks"):
            policy(allow="*").check(target)
    target = parse_absolute("http://10.0.0.1/")[0]
    policy(allow="*", networks="10.0.0.0/8").check(target)
    policy(allow="* 10.0.0.1").check(target)
    # What is listed by its address is allowed to who asks for it, and to no name.
    listed = policy().places_of(parse_absolute("http://10.0.0.5:5000/")[0])
    assert listed.allows_host("10.0.0.5", 5000)
    assert not listed.allows("10.0.0.5")


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("swarm blobs/sha256.*", ("swarm", "blobs/sha256.*", False, "")),
        (r"direct  \.json$", ("direct", r"\.json$", False, "")),
        ("swarm tls redirect=hub:8443 ^http://a/", ("swarm", "^http://a/", True, "hub:8443")),
    ],
)
def test_rules(text: str, rule: tuple[str, str, bool, str]) -> None:
    found = parse_rule(text)
    assert (found.action, found.pattern.pattern, found.tls, found.redirect) == rule


@pytest.mark.parametrize(
    "text",
    ["", "swarm", "p2p x", "swarm (", "swarm redirect= x", "swarm redirect=a/b x", "swarm tsl x"],
)
def test_what_is_no_rule_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"rule|regular|tls"):
        parse_rule(text)


def test_the_first_rule_counts_and_queries_are_not_looked_at() -> None:
    rules = [parse_rule("direct json$"), parse_rule("swarm models")]
    assert rule_for(rules, "http://a/models/x.json?y") is rules[0]
    assert rule_for(rules, "http://a/models/x?json") is rules[1]
    assert rule_for(rules, "http://a/?models") is None


@pytest.mark.parametrize(
    ("rule", "url", "goes"),
    [
        ("swarm x", "http://a:81", "http://a:81"),
        ("swarm tls x", "http://a", "https://a"),
        ("swarm tls x", "http://a:81", "https://a:81"),
        ("swarm tls redirect=b x", "http://a:81", "https://b"),
        ("swarm redirect=b:82 x", "http://a", "http://b:82"),
    ],
)
def test_where_rules_lead(rule: str, url: str, goes: str) -> None:
    applied = parse_rule(rule).applied(parse_absolute(url)[0])
    assert applied.url == goes
    if "redirect" in rule:
        Policy(rules=[parse_rule(rule)]).check(applied)


RULES = ("direct /direct/", "swarm /models/", "swarm blobs/sha256")


@pytest.mark.parametrize(
    ("method", "url", "headers", "way"),
    [
        ("GET", f"https://reg.example{BLOB}", {}, "registry"),
        ("HEAD", f"http://reg.example{BLOB}", {"If-None-Match": "x"}, "registry"),
        ("GET", "https://reg.example/v2/", {}, "registry"),
        ("GET", f"http://10.0.0.5:5000{BLOB}", {}, "registry"),
        ("PUT", f"https://reg.example{BLOB}", {}, "pass"),
        ("POST", "https://reg.example/v2/lib/img/blobs/uploads/", {}, "pass"),
        ("GET", "https://reg.example/v2/_catalog", {}, "pass"),
        ("GET", "https://reg.example/token", {}, "pass"),
        ("GET", f"https://reg.example/v2/direct/img/blobs/{DIGEST}", {}, "pass"),
        ("GET", f"https://web.example{BLOB}", {}, "swarm"),
        ("GET", "https://web.example/models/a", {"Range": "bytes=0-1"}, "swarm"),
        ("GET", "https://web.example/models/a", {"If-None-Match": "x"}, "pass"),
        ("GET", "https://web.example/models/a", {"If-Range": "x"}, "pass"),
        ("HEAD", "https://web.example/models/a", {}, "pass"),
        ("POST", "https://web.example/models/a", {}, "pass"),
        ("GET", "https://web.example/a", {}, "pass"),
        ("GET", "https://web.example/a", {"X-Dragonfly-Use-P2P": "TRUE"}, "swarm"),
        ("GET", "https://web.example/direct/", {"X-Dragonfly-Use-P2P": "true"}, "pass"),
    ],
)
def test_who_answers(method: str, url: str, headers: dict[str, str], way: str) -> None:
    target, rest = parse_absolute(url)
    given_headers = CIMultiDict(headers)
    plan = policy(rules=RULES).plan(
        method, target, rest, rest, wishes_of(given_headers), given_headers
    )
    registry = ("lan.example" if "10.0" in url else "reg.example") if way == "registry" else ""
    assert (plan.way, plan.registry) == (way, registry)


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        ("http://lan.example/v2/", "http://10.0.0.5:5000"),
        ("https://lan.example/v2/_catalog", "http://10.0.0.5:5000"),
        ("https://docker.io/v2/", "https://registry-1.docker.io"),
        ("http://reg.example/token", "https://reg.example"),
        ("http://10.0.0.5:5000/v2/", "http://10.0.0.5:5000"),
        ("http://web.example/v2/", "http://web.example"),
    ],
)
def test_a_registry_is_where_the_configuration_says(url: str, goes: str) -> None:
    target, rest = parse_absolute(url)
    for method in ("GET", "POST"):
        plan = policy().plan(method, target, rest, rest, Wishes(), CIMultiDict())
        assert plan.target.url == goes
        policy().check(plan.target)


def test_tls_is_opened_only_for_what_is_listed() -> None:
    assert policy().intercepts(Target("https", "reg.example", 443))
    assert not policy().intercepts(Target("https", "reg.example", 444))
    assert not policy().intercepts(Target("https", "web.example", 443))


def test_what_dragonflys_clients_wish() -> None:
    headers = CIMultiDict(
        {
            "x-dragonfly-tag": "t",
            "X-Dragonfly-Application": "a" * 1000,
            "X-Dragonfly-Priority": "3",
            "X-Dragonfly-Filtered-Query-Params": "Signature, Expires,,",
            "X-Dragonfly-Piece-Length": str(4 * 1024 * 1024),
            "X-Dragonfly-Output-Path": "/etc/passwd",
        }
    )
    assert wishes_of(headers) == Wishes(
        False, "t", "a" * 256, 3, ("Signature", "Expires"), 4 * 1024 * 1024
    )
    nonsense = {"X-Dragonfly-Priority": "-1", "X-Dragonfly-Piece-Length": "5"}
    assert wishes_of(CIMultiDict(nonsense)) == Wishes()


# ---------------------------------------------------------------- headers


def test_what_goes_on_and_what_ends_here() -> None:
    headers = CIMultiDict(
        [
            ("Host", "a"),
            ("Accept", "x"),
            ("accept", "y"),
            ("Authorization", "secret"),
            ("Connection", "keep-alive, X-Mine"),
            ("X-Mine", "1"),
            ("Keep-Alive", "1"),
            ("Proxy-Authorization", "secret"),
            ("Proxy-Connection", "close"),
            ("TE", "trailers"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("Expect", "100-continue"),
            ("X-Dragonfly-Tag", "t"),
            ("Via", "1.0 first"),
            ("Range", "bytes=0-1"),
            ("Accept-Encoding", "gzip"),
        ]
    )
    assert list(asked_headers(headers, "me").items()) == [
        ("Accept", "x"),
        ("accept", "y"),
        ("Authorization", "secret"),
        ("Via", "1.0 first"),
        ("Range", "bytes=0-1"),
        ("Accept-Encoding", "gzip"),
        ("Via", "1.1 me"),
    ]
    assert credential_headers(headers) == (
        ("Accept", "x"),
        ("accept", "y"),
        ("Authorization", "secret"),
    )
    told = told_headers([("Content-Encoding", "gzip"), ("connection", "close")], "me")
    assert list(told.items()) == [("Content-Encoding", "gzip"), ("Via", "1.1 me")]


def test_a_loop_is_known_by_its_name() -> None:
    assert passed("1.1 other, 1.1 shoal-1 (comment)", "shoal-1")
    assert passed("HTTP/1.1 shoal-1", "shoal-1")
    assert not passed("1.1 shoal-12, shoal-1", "shoal-1")
    assert not passed("", "shoal-1")


def test_conditions_are_seen() -> None:
    assert is_conditional(CIMultiDict({"if-none-match": "x"}))
    assert not is_conditional(CIMultiDict({"Range": "x"}))
