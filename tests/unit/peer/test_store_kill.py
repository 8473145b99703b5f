"""kill -9 of a real process in the middle of its work, again and again on one store."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest

from shoal.runtime.files import RealFiles
from tests.fakes.store import (
    PIECE_BYTES,
    check_truth,
    describe,
    digest_of,
    open_store,
    put,
    some_bytes,
    task_id_of,
)

WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tests.fakes.store import *

    store = open_store(Path(sys.argv[1]))
    store.load()
    data = some_bytes(64 * PIECE_BYTES)
    descriptor = describe(size_bytes=len(data))
    other = describe("b", size_bytes=len(data))
    print("ready", flush=True)
    while True:
        store.remove(other.task_id)
        for one in (descriptor, other):
            held = store.open_task(one).held
            for piece in range(64):
                put(store, one, data, piece)
                if piece % 5 == 0:
                    store.flush()
                if piece % 16 == 0:
                    store.sync_some()
                if piece == 40:
                    print("round", flush=True)
        store.drop_pieces(descriptor.task_id, 0xF0F0)
    """
)


@pytest.mark.slow
def test_kill_in_the_middle(tmp_path: Path) -> None:
    root = tmp_path / "store"
    data = some_bytes(64 * PIECE_BYTES)
    dice = Random(1)
    repository = Path(__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{repository}:{repository / 'proto'}",
    }
    held = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        with process:
            assert process.stdout is not None
            for _ in range(1 + dice.randrange(8)):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        store = open_store(root)
        _, loaded = store.load()
        for stored in loaded:
            check_truth(store, RealFiles(), stored, data)
            held += stored.held.bit_count()
        assert store.recovered.wrong_pieces == 0, "the page cache survives a killed process"
        store.validate()
        store.close()
    assert held > 100
    store = open_store(root)
    store.load()
    descriptor = describe(size_bytes=len(data))
    store.open_task(descriptor)
    put(store, descriptor, data)
    store.seal(descriptor.task_id, digest_of(data))
    store.deliver(task_id_of("a"), tmp_path / "out", overwrite=False)
    assert (tmp_path / "out").read_bytes() == data
    store.close()
