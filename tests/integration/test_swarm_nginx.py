"""A large file of a real web server: once for everybody, then again, then without the server."""

import hashlib
import os
from pathlib import Path

import pytest

from benchmarks.real.nginx import Nginx
from tests.conftest import require_tool
from tests.integration.swarm_rig import Swarm, finish, say

SIZE_BYTES = 300_000_000
FROM_STORE_S_MAX = 0.5


@pytest.mark.slow
def test_nginx_is_read_once_for_four_daemons_and_not_needed_for_the_fifth(tmp_path: Path) -> None:
    require_tool("nginx")
    for name in ("www", "work", "swarm"):
        (tmp_path / name).mkdir()
    content = os.urandom(SIZE_BYTES)
    (tmp_path / "www" / "model.bin").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    with Swarm(tmp_path / "swarm", 0) as swarm:
        swarm.start_scheduler()
        swarm.add_peers(4)
        swarm.wait_connected()
        with Nginx(tmp_path / "www", tmp_path / "work") as nginx:
            url = nginx.url("model.bin")
            first = finish(swarm.begin(url, suffix="first"), sha256)
            copies = sum(result.origin_bytes for result in first) / SIZE_BYTES
            say(f"first: {max(r.seconds for r in first):.2f} s, {copies:.3f} copies")
            assert copies <= 1.02
            for peer in swarm.peers:
                (again,) = finish(swarm.begin(url, [peer], "again"), sha256)
                say(f"{peer.name} again: {again.seconds:.3f} s")
                assert again.seconds < FROM_STORE_S_MAX
                assert (again.origin_bytes, again.peer_bytes) == (0, 0)
        late = swarm.add_peer("late")
        swarm.wait_connected()
        (result,) = finish(swarm.begin(url, [late], "late"), sha256)
        say(f"late, nginx stopped: {result.seconds:.2f} s")
        assert result.origin_bytes == 0
