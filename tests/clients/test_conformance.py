"""The conformance suite of the OCI distribution specification, run against a registry straight and
through a mirror for it: no case may fail through the mirror that the registry itself passes.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.real.registry import Registry
from tests.clients.conformance_rig import Results, conformance_suite, run_suite
from tests.clients.images import make_image, push
from tests.clients.registry_rig import plain_registry
from tests.integration.swarm_rig import Swarm, say, wait_for_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "registry.test"
RATE_BYTES_S = 200_000_000
CASES_MIN = 600
CASES_FOR_READING_MIN = 15


class Pair:
    """A registry, and a mirror for it that passes writes through or does not."""

    def __init__(self, directory: Path, registry: Registry, swarm: Swarm) -> None:
        self.directory = directory
        self.registry = registry
        self.swarm = swarm

    def mirror(self, *, writes: bool) -> str:
        """Starts one; gives its address."""
        peer = self.swarm.add_peer(
            "peer-0",
            options=(
                *("--set", f"mirror.dedicated=127.0.0.1:0={NAME}"),
                *("--set", f"mirror.upstreams={NAME}=http://{self.registry.address}"),
                *("--set", f"mirror.writes={str(writes).lower()}"),
            ),
        )
        self.swarm.wait_connected()
        ready = wait_for_ready(peer.process, self.swarm.directory / f"{peer.name}.ready")
        return str(ready["mirrors"][0])

    def run(self, mirror: str, **settings: str) -> tuple[Results, Results]:
        """The suite against both, side by side; settings may have the {name} of a run in them."""
        program = conformance_suite()

        def one(name: str, address: str) -> Results:
            given = {key: value.format(name=name) for key, value in settings.items()}
            return run_suite(program, address, self.directory / name, **given)

        with ThreadPoolExecutor(2) as pool:
            straight = pool.submit(one, "straight", self.registry.address)
            mirrored = pool.submit(one, "mirrored", mirror)
            return straight.result(), mirrored.result()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    conformance_suite()
    with ExitStack() as stack:
        registry = stack.enter_context(plain_registry(tmp_path / "registry"))
        swarm = stack.enter_context(Swarm(tmp_path, RATE_BYTES_S))
        swarm.start_scheduler()
        yield Pair(tmp_path, registry, swarm)


def check(what: str, straight: Results, mirrored: Results) -> None:
    say(f"conformance, {what}: straight {straight}; through the mirror {mirrored}\n")
    assert sorted({name for name, _ in straight.cases}) == sorted(
        {name for name, _ in mirrored.cases}
    )
    worse = mirrored.failed - straight.failed
    assert not worse, "\n".join(mirrored.why(name) for name in worse)


def test_a_mirror_that_passes_writes_through_fails_no_case_that_its_registry_passes(
    pair: Pair,
) -> None:
    straight, mirrored = pair.run(
        pair.mirror(writes=True), REPO1="conformance/{name}1", REPO2="conformance/{name}2"
    )
    assert len(straight.cases) >= CASES_MIN
    check("all", straight, mirrored)


def test_a_mirror_for_reading_fails_no_case_that_its_registry_passes(pair: Pair) -> None:
    image = make_image(seed=11)
    push(image, pair.registry.address, "conformance/read", "v1")
    straight, mirrored = pair.run(
        pair.mirror(writes=False),
        REPO1="conformance/read",
        API_PUSH="false",
        API_BLOBS_DELETE="false",
        API_MANIFESTS_DELETE="false",
        API_TAGS_DELETE="false",
        RO_DATA_TAGS="v1",
        RO_DATA_MANIFESTS=image.manifest.digest,
        RO_DATA_BLOBS=" ".join(blob.digest for blob in image.blobs),
        RO_DATA_REFERRERS=image.manifest.digest,
    )
    assert len(straight.cases) >= CASES_FOR_READING_MIN
    check("reading", straight, mirrored)
