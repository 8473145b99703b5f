"""Query parameters that carry a right rather than a name: signatures, tokens, their envelopes.

Tells which parameters of a URL to leave out of its identity, and which smell of a credential.
Names that are also common words (`Expires`, `sig`, `se`) count only beside the parameter that
makes a signature of them. Wrong guesses are cheap in one direction only: a signature that stays
in costs sharing between hosts, so no parameter that may choose the bytes (`versionId`,
`generation`, `x-oss-process`) is ever listed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to sign a URL: parameters that count when all the markers are there. Lower case."""

    markers: frozenset[str]
    names: frozenset[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _prefixed(prefix: str, endings: str) -> frozenset[str]:
    return frozenset(prefix + ending for ending in endings.split())


_V4_ENDINGS: Final = "algorithm credential date expires signedheaders signature security-token"

SCHEMES: Final = (
    # AWS signature version 4, and what S3 clients add to it; also MinIO, R2, Ceph.
    Scheme(
        frozenset({"x-amz-signature"}),
        _prefixed("x-amz-", _V4_ENDINGS + " content-sha256 user-agent sdk-checksum-algorithm")
        | {"x-id"},
    ),
    # AWS signature version 2.
    Scheme(
        frozenset({"awsaccesskeyid", "signature"}),
        frozenset({"awsaccesskeyid", "signature", "expires", "x-amz-security-token"}),
    ),
    # Google Cloud Storage, version 4 and version 2.
    Scheme(frozenset({"x-goog-signature"}), _prefixed("x-goog-", _V4_ENDINGS + " content-sha256")),
    Scheme(
        frozenset({"googleaccessid", "signature"}),
        frozenset({"googleaccessid", "signature", "expires"}),
    ),
    # CloudFront, canned and custom policies; model hubs put their downloads behind it.
    Scheme(
        frozenset({"key-pair-id", "signature"}),
        frozenset({"key-pair-id", "signature", "expires", "policy", "hash-algorithm"}),
    ),
    # Azure shared access signatures: account, service and user delegation.
    Scheme(
        frozenset({"sig", "sv"}),
        _words(
            "sig sv ss srt sr sp st se sip spr si sdd ses skoid sktid skt ske sks skv saoid suoid "
            "sduoid skdutid scid"
        ),
    ),
    # Alibaba OSS, version 1 and version 4.
    Scheme(
        frozenset({"ossaccesskeyid", "signature"}),
        frozenset({"ossaccesskeyid", "signature", "expires", "security-token"}),
    ),
    Scheme(
        frozenset({"x-oss-signature"}),
        _prefixed(
            "x-oss-",
            "signature signature-version credential date expires additional-headers security-token "
            "ac-source-ip ac-subnet-mask ac-vpc-id ac-forward-allow",
        ),
    ),
    # Huawei OBS, in its own form and in the form of version 4.
    Scheme(
        frozenset({"accesskeyid", "signature"}),
        frozenset({"accesskeyid", "signature", "expires", "x-obs-security-token"}),
    ),
    Scheme(frozenset({"x-obs-signature"}), _prefixed("x-obs-", _V4_ENDINGS)),
    # Tencent COS.
    Scheme(
        frozenset({"q-signature"}),
        _prefixed("q-", "sign-algorithm ak sign-time key-time header-list url-param-list signature")
        | {"x-cos-security-token"},
    ),
    # Who asked, as a model hub's storage adds it to its signed URLs.
    Scheme(frozenset({"x-xet-cas-uid"}), frozenset({"x-xet-cas-uid", "x-xet-session-id"})),
    # A signed token in one parameter, as model hubs used for gated files.
    Scheme(frozenset({"__sign"}), frozenset({"__sign"})),
)

_CREDENTIAL_WORDS: Final = (
    "sig", "sign", "signature", "token", "secret", "password", "passwd", "credential", "auth",
    "authorization", "jwt", "apikey", "key", "session", "ticket", "policy",
)  # fmt: skip


def signature_names(names: Collection[str]) -> frozenset[str]:
    """Which of a URL's parameter names (lower case) belong to a signature."""
    present = frozenset(names)
    found: frozenset[str] = frozenset()
    for scheme in SCHEMES:
        if scheme.markers <= present:
            found |= scheme.names & present
    return found


def looks_like_credential(name: str) -> bool:
    """Whether a parameter name (lower case) has a word in it that credentials go by. Errs on the
    safe side: whoever is not sure to be anonymous proves its right to the origin itself."""
    words = name.replace("-", "_").replace(".", "_").split("_")
    return any(word in _CREDENTIAL_WORDS or word.endswith("token") for word in words)
