"""`kill -9` in mid-download: of a peer, of the scheduler, of a command without a daemon."""

from pathlib import Path

import pytest

from tests.integration.swarm_rig import (
    SIZE_BYTES,
    Origin,
    Swarm,
    finish,
    make_content,
    say,
    sha256_of,
    swarm_of,
    wait_for,
)

pytestmark = pytest.mark.slow

RATE_BYTES_S = 10_000_000
NODES = 4
WAITING_S_MAX = 20.0
UNJOURNALLED_BYTES_MAX = SIZE_BYTES // 4
"""What may be lost of a killed daemon's pieces. They are journalled five times a second, so it is
far less unless the machine is very busy."""


def test_a_killed_peer_does_not_fetch_again_what_was_durable(tmp_path: Path) -> None:
    with swarm_of(tmp_path, NODES, RATE_BYTES_S) as (swarm, origin):
        victim, *others = swarm.peers
        downloads = swarm.begin(origin.url, others)
        broken = swarm.begin(origin.url, [victim])[0]
        wait_for(lambda: victim.held_bytes() >= SIZE_BYTES // 2, "the victim has half")
        held_before = victim.held_bytes()
        victim.process.kill()
        assert broken.result().last["event"] != "done", "it was killed too late"

        victim.restart()
        durable = victim.held_bytes()
        assert durable >= held_before - UNJOURNALLED_BYTES_MAX
        victim.wait_connected()
        (result,) = finish(swarm.begin(origin.url, [victim], "again"), origin.sha256)
        fetched = result.origin_bytes + result.peer_bytes
        say(f"held {held_before}, durable {durable}, fetched {fetched}, {origin.copies:.3f}")
        assert fetched <= SIZE_BYTES - durable
        # Far below a lease's lifetime: what the victim had leased is given to others at once.
        assert max(each.seconds for each in finish(downloads, origin.sha256)) < WAITING_S_MAX


def test_a_lone_peer_killed_at_half_reads_the_rest_alone(tmp_path: Path) -> None:
    with swarm_of(tmp_path, 1, RATE_BYTES_S) as (swarm, origin):
        (victim,) = swarm.peers
        broken = swarm.begin(origin.url)[0]
        wait_for(lambda: victim.held_bytes() >= SIZE_BYTES // 2, "the victim has half")
        victim.process.kill()
        assert broken.result().last["event"] != "done", "it was killed too late"

        victim.restart()
        durable = victim.held_bytes()
        assert durable >= SIZE_BYTES // 2 - UNJOURNALLED_BYTES_MAX
        victim.wait_connected()
        before = origin.sent_bytes
        (result,) = finish(swarm.begin(origin.url, suffix="again"), origin.sha256)
        read = origin.sent_bytes - before
        say(f"durable {durable}, read {read}, said {result.origin_bytes}")
        assert read <= SIZE_BYTES - durable
        assert result.origin_bytes <= SIZE_BYTES - durable


def test_downloads_finish_without_the_scheduler_that_began_them(tmp_path: Path) -> None:
    with swarm_of(tmp_path, NODES, RATE_BYTES_S) as (swarm, origin):
        downloads = swarm.begin(origin.url)
        wait_for(lambda: swarm.peers[0].held_bytes() >= SIZE_BYTES // 3, "a third is there")
        assert swarm.scheduler is not None
        swarm.scheduler.kill()
        assert not any(each.done() for each in downloads), "it was killed too late"
        results = finish(downloads, origin.sha256)
        say(f"copies {origin.copies:.3f}, s {max(each.seconds for each in results):.2f}")


def test_a_restarted_scheduler_learns_from_the_hosts_who_has_what(tmp_path: Path) -> None:
    with swarm_of(tmp_path, NODES, RATE_BYTES_S) as (swarm, origin):
        downloads = swarm.begin(origin.url)
        wait_for(lambda: swarm.peers[0].held_bytes() >= SIZE_BYTES // 3, "a third is there")
        assert swarm.scheduler is not None
        swarm.scheduler.kill()
        swarm.start_scheduler(swarm.scheduler_address)
        assert not any(each.done() for each in downloads), "it was restarted too late"
        results = finish(downloads, origin.sha256)
        say(f"copies {origin.copies:.3f}, s {max(each.seconds for each in results):.2f}")
        assert origin.copies <= 1.1
        for peer in swarm.peers:
            peer.wait_connected()


def test_a_killed_command_without_a_daemon_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out.bin"
    content = make_content()
    with Origin(content, RATE_BYTES_S) as origin, Swarm(tmp_path, RATE_BYTES_S) as swarm:
        command = (
            "-m", "peer.cli", "get", origin.url, "-O", str(output), "--no-progress",
            "--digest", f"sha256:{origin.sha256}",
        )  # fmt: skip
        nobody = {"SHOAL_PEER_API_SOCKET": str(tmp_path / "nobody.sock")}
        first = swarm.run("get", *command, **nobody)
        wait_for(lambda: origin.sent_bytes >= SIZE_BYTES // 2, "half of it was sent")
        first.kill()
        assert not output.exists(), "something is delivered that is not whole"
        before = origin.sent_bytes

        second = swarm.run("get", *command, **nobody)
        assert second.wait() == 0, second.tail()
        again = origin.sent_bytes - before
        say(f"sent {before} before and {again} after, of {SIZE_BYTES}")
        assert sha256_of(output) == origin.sha256
        assert again <= SIZE_BYTES // 2 + UNJOURNALLED_BYTES_MAX
        assert [path.name for path in tmp_path.glob(".out.bin*")] == [], "its state is left over"
