"""A file through a whole swarm: one copy from the origin, then again without any origin."""

from collections.abc import Iterator

import pytest

from tests.integration.swarm_rig import DOWNLOAD_S, Origin, Result, Swarm, finish, say, swarm_of

pytestmark = pytest.mark.slow

NODES = 8
RATE_BYTES_S = 25_000_000
FROM_STORE_S_MAX = 0.5


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Swarm, Origin]]:
    """Eight peers that have not downloaded anything yet."""
    with swarm_of(tmp_path_factory.mktemp("swarm"), NODES, RATE_BYTES_S) as started:
        yield started


@pytest.fixture(scope="module")
def downloaded(swarm: tuple[Swarm, Origin]) -> tuple[list[Result], int]:
    """What the first download of each node came to, and the origin's payload for all of them."""
    peers, origin = swarm
    results = [future.result(DOWNLOAD_S) for future in peers.begin(origin.url)]
    return results, origin.sent_bytes


def test_eight_nodes_read_one_copy_from_the_origin(
    swarm: tuple[Swarm, Origin], downloaded: tuple[list[Result], int]
) -> None:
    _, origin = swarm
    results, origin_bytes = downloaded
    say(f"copies {origin_bytes / len(origin.content):.4f}, s {[r.seconds for r in results]}")
    for result in results:
        result.check(origin.sha256)
    assert origin_bytes <= 1.02 * len(origin.content)
    # What the nodes say of themselves adds up to what each of them got.
    for result in results:
        assert result.origin_bytes + result.peer_bytes >= len(origin.content)


def test_a_second_download_comes_from_the_local_store(
    swarm: tuple[Swarm, Origin], downloaded: tuple[list[Result], int]
) -> None:
    peers, origin = swarm
    _, before = downloaded
    for peer in peers.peers[:3]:
        (result,) = finish(peers.begin(origin.url, [peer], "again"), origin.sha256)
        say(f"{peer.name} again: {result.seconds:.3f} s")
        assert result.seconds < FROM_STORE_S_MAX
        assert (result.origin_bytes, result.peer_bytes) == (0, 0)
    assert origin.sent_bytes == before


def test_a_late_node_needs_no_origin(
    swarm: tuple[Swarm, Origin], downloaded: tuple[list[Result], int]
) -> None:
    peers, origin = swarm
    _, before = downloaded
    late = peers.add_peer("late")
    late.wait_ready()
    late.wait_connected()
    origin.stop()
    (result,) = finish(peers.begin(origin.url, [late]), origin.sha256)
    say(f"late: {result.seconds:.3f} s, {result.last}")
    assert result.origin_bytes == 0
    assert result.peer_bytes >= len(origin.content)
    assert origin.sent_bytes == before
