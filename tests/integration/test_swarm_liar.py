"""A host that serves wrong bytes: nobody keeps them, and nobody else is blamed."""

from pathlib import Path

import pytest

from tests.integration.swarm_rig import Origin, Swarm, finish, make_content, say

pytestmark = pytest.mark.slow

HONEST = 7
RATE_BYTES_S = 16_000_000
WAITING_S_MAX = 12.0
LIAR_PROGRAM = str(Path(__file__).with_name("liar.py"))


@pytest.mark.parametrize("mode", ["bytes", "digest"])
def test_wrong_bytes_harm_nobody_and_their_sender_alone_is_blamed(
    tmp_path: Path, mode: str
) -> None:
    with Origin(make_content(), RATE_BYTES_S) as origin, Swarm(tmp_path, RATE_BYTES_S) as swarm:
        swarm.start_scheduler()
        liar = swarm.add_peer("liar", LIAR_PROGRAM, mode)
        swarm.add_peers(HONEST)
        results = finish(swarm.begin(origin.url), origin.sha256)
        seconds = [round(each.seconds, 2) for each in results]
        say(f"{mode}: copies {origin.copies:.3f}, s {seconds}")
        say(f"lies: {liar.process.tail().count('lied about')}, blamed: {swarm.blamed()}")
        assert "lied about" in liar.process.log.read_text(), "nobody asked the liar for anything"
        assert swarm.blamed() == {"liar"}
        # Far below any quarantine: nobody waits for pieces that only the liar claims.
        assert max(seconds) < WAITING_S_MAX
