"""The first frames of a connection: who is there, and which version is spoken.

Decides whether a greeting is acceptable; sends nothing.
"""

import secrets

from shoal.wire.errors import ProtocolError
from shoal.wire.frames import NONCE_BYTES, PEER_VERSION_MAX, PEER_VERSION_MIN, Hello
from shoal.wire.ids import HostId


def new_hello(host_id: HostId) -> Hello:
    """This host's greeting, with a nonce of its own for this connection."""
    return Hello(PEER_VERSION_MIN, PEER_VERSION_MAX, host_id, secrets.token_bytes(NONCE_BYTES))


def check_hello(hello: Hello, certified: str | None) -> int:
    """The version that both sides speak: the newest of both. `certified` is the host id that the
    other side's certificate proved, if there was one. Raises ProtocolError."""
    version = min(hello.version_max, PEER_VERSION_MAX)
    if version < max(hello.version_min, PEER_VERSION_MIN):
        raise ProtocolError(
            f"the other side speaks versions {hello.version_min} to {hello.version_max} between "
            f"peers, this one {PEER_VERSION_MIN} to {PEER_VERSION_MAX}: upgrade the older one"
        )
    if len(hello.nonce) < NONCE_BYTES:
        raise ProtocolError(f"the nonce has {len(hello.nonce)} bytes, not {NONCE_BYTES}")
    if certified is not None and certified != hello.host_id:
        raise ProtocolError(f"host {hello.host_id!r} shows the certificate of {certified!r}")
    return version
