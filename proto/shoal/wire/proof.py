"""What a host shows to another one's piece port: that the scheduler let it into the swarm."""

import hmac
from typing import Final

PROOF_BYTES: Final = 32


def swarm_proof(token: bytes, nonce: bytes, host_id: str, task_id: str) -> bytes:
    """What a child shows to a piece port: HMAC-SHA256 of the port's nonce, the child and the task
    under the collection's swarm token (RFC 2104). The token itself never crosses the wire."""
    message = b"shoal-open\0" + nonce + b"\0" + host_id.encode() + b"\0" + task_id.encode()
    return hmac.digest(token, message, "sha256")


def same(left: bytes, right: bytes) -> bool:
    """Compares secrets in constant time."""
    return hmac.compare_digest(left, right)
