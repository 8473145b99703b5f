"""Real processes for whole-swarm tests: an origin, a scheduler, peers, and `kill -9`.

Starts each as its own process with a directory of its own, waits for ready files and for what the
local API says, and ends only what it started. Every wait is bounded and fails with the log of the
process that was waited for. Judges nothing; the tests do.
"""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from peer.cli.local_client import DaemonError, LocalClient
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.rates import RateLimiter
from shoal.wire.limits import MIB
from tests.integration.origin_server import OriginServer, Resource

ROOT: Final = Path(__file__).resolve().parents[2]

WAIT_S: Final = 20.0
DOWNLOAD_S: Final = 40.0
STOP_S: Final = 5.0
POLL_S: Final = 0.01
"""Between two looks at a ready file or a status: the wait ends with what is seen, not with time."""

SIZE_BYTES: Final = 32 * MIB
PATH: Final = "/file.bin"


def wait_for(done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Looks until it is so. Raises AssertionError with `what` when it takes too long."""
    end_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(POLL_S)


def say(text: str) -> None:
    """Numbers of a run, for whoever runs pytest with `-s`."""
    sys.stdout.write(f"\n{text}")


def make_content(size_bytes: int = SIZE_BYTES, seed: int = 1) -> bytes:
    """The same bytes every time; no piece of it equals another."""
    return random.Random(seed).randbytes(size_bytes)


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


class Origin:
    """The controllable origin on a thread of its own, with one file at `PATH`."""

    def __init__(self, content: bytes, rate_bytes_s: int = 0) -> None:
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._rate_bytes_s = rate_bytes_s
        self._listening = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._server: OriginServer | None = None
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="origin")

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        limiter = RateLimiter(self._rate_bytes_s, MonotonicClock())
        async with OriginServer(limiter=limiter) as server:
            server.put(PATH, Resource(content=self.content))
            self._server = server
            self._listening.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(WAIT_S), "the origin did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Port and connections are closed when this returns. Safe to call twice."""
        if self._thread.is_alive():
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive(), "the origin did not stop"

    @property
    def url(self) -> str:
        """Of its file."""
        assert self._server is not None
        return self._server.url(PATH)

    @property
    def sent_bytes(self) -> int:
        """Payload so far."""
        assert self._server is not None
        return self._server.total_payload_bytes

    @property
    def copies(self) -> float:
        """Payload so far over the size of the file."""
        return self.sent_bytes / len(self.content)


class Process:
    """One process that the rig started."""

    def __init__(
        self, name: str, arguments: list[str], directory: Path, environment: dict[str, str]
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        # Output is appended: after a restart the log tells of both lives.
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=environment,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        self._process.kill()
        self._process.wait(WAIT_S)

    def wait(self, timeout_s: float = DOWNLOAD_S) -> int:
        """Its exit code. Raises AssertionError when it takes too long."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs:\n{self.tail()}") from None

    def terminate(self) -> None:
        """SIGTERM, without waiting. Does nothing to a process that has ended."""
        if self.running:
            self._process.terminate()

    def close(self) -> None:
        """SIGTERM, and SIGKILL to what does not heed it soon. Safe to call twice."""
        self.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of its structured log."""
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                yield json.loads(line)


class Peer:
    """A peer daemon: its process, which may be restarted, and the client of its API."""

    def __init__(self, name: str, start: Callable[[], Process], directory: Path) -> None:
        self.name = name
        self.client = LocalClient(directory / f"{name}.sock")
        self._start = start
        self._ready = directory / f"{name}.ready"
        self.process = start()

    def restart(self) -> None:
        """Starts it again with the same store. It must not run."""
        assert not self.process.running
        self._ready.unlink()
        self.process = self._start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until it listens."""
        wait_for_ready(self.process, self._ready)

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return self.client.get_json("/v1/status")

    def wait_connected(self) -> None:
        """Until it has its session with the scheduler."""
        wait_for(
            lambda: bool(self.status()["scheduler_connected"]), f"{self.name} finds the scheduler"
        )

    def held_bytes(self) -> int:
        """Of all tasks together."""
        tasks = self.client.get_json("/v1/tasks")["tasks"]
        return sum(int(task["held_bytes"]) for task in tasks)

    def download(self, url: str, output: Path) -> "Result":
        """Downloads to a path, and waits for the end of it."""
        client = LocalClient(self.client.path, time.monotonic() + DOWNLOAD_S)
        began_s = time.monotonic()
        last: dict[str, Any] = {}
        try:
            for event in client.lines(
                "/v1/downloads", {"urls": [{"url": url}], "outputs": [str(output)]}
            ):
                last = event
        except DaemonError as error:
            last = {"event": "broken", "detail": str(error)}
        return Result(self.name, output, last, time.monotonic() - began_s)


@dataclass(frozen=True, slots=True)
class Result:
    """How one download ended."""

    name: str
    output: Path
    last: dict[str, Any]
    seconds: float

    def check(self, sha256: str) -> None:
        """Raises AssertionError unless it was done, and the file at the output is right."""
        assert self.last.get("event") == "done", f"{self.name}: {self.last}"
        assert sha256_of(self.output) == sha256, f"{self.name} delivered wrong bytes"

    @property
    def origin_bytes(self) -> int:
        """Read from the origin for this download."""
        return int(self.last["origin_bytes"])

    @property
    def peer_bytes(self) -> int:
        """Received from other hosts for this download."""
        return int(self.last["peer_bytes"])


class Swarm:
    """A scheduler and peers. To be used as a context manager."""

    def __init__(self, directory: Path, rate_bytes_s: int) -> None:
        self.directory = directory
        self.rate_bytes_s = rate_bytes_s
        self.peers: list[Peer] = []
        self._stack = ExitStack()
        self._processes: list[Process] = []
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="download")
        self.scheduler: Process | None = None
        self.scheduler_address = ""

    def __enter__(self) -> Self:
        self._stack.enter_context(self._pool)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.terminate()
        # Daemons end first: that ends the downloads which the pool still waits for.
        self._stack.close()

    def environment(self) -> dict[str, str]:
        """Of every process: nothing of this machine's user gets in."""
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}
        return {
            **kept,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
        }

    def run(self, name: str, *arguments: str, **environment: str) -> Process:
        """Starts a Python process that ends with the swarm at the latest."""
        process = Process(
            name, list(arguments), self.directory, {**self.environment(), **environment}
        )
        self._stack.callback(process.close)
        self._processes.append(process)
        return process

    def start_scheduler(self, listen: str = "127.0.0.1:0") -> None:
        """Starts it, or starts it again at an address that it had."""
        ready = self.directory / "scheduler.ready"
        ready.unlink(missing_ok=True)
        self.scheduler = self.run(
            "scheduler", "-m", "peer.cli", "scheduler", "--listen", listen, "--status", "",
            "--log-format", "json", "--ready-file", str(ready),
        )  # fmt: skip
        self.scheduler_address = str(wait_for_ready(self.scheduler, ready)["address"])

    def add_peer(self, name: str, *program: str, options: tuple[str, ...] = ()) -> Peer:
        """Starts a peer, without waiting for it. `program` stands in for the shoal command;
        `options` are added to its arguments."""
        arguments = (
            *(program or ("-m", "peer.cli")), "peer",
            "--host-id", name,
            "--scheduler", self.scheduler_address,
            "--listen", "127.0.0.1:0",
            "--status", "",
            "--store-root", str(self.directory / f"{name}.store"),
            "--socket", str(self.directory / f"{name}.sock"),
            "--upload-rate", f"{self.rate_bytes_s}B/s",
            "--download-rate", f"{self.rate_bytes_s}B/s",
            "--log-format", "json",
            "--ready-file", str(self.directory / f"{name}.ready"),
            *options,
        )  # fmt: skip
        peer = Peer(name, lambda: self.run(name, *arguments), self.directory)
        self.peers.append(peer)
        return peer

    def add_peers(self, count: int) -> None:
        """Starts `peer-0` and so on side by side, and waits until the scheduler has them."""
        for number in range(count):
            self.add_peer(f"peer-{number}")
        self.wait_connected()

    def wait_connected(self) -> None:
        """Until every peer has its session with the scheduler."""
        for peer in self.peers:
            peer.wait_ready()
            peer.wait_connected()

    def begin(
        self, url: str, peers: list[Peer] | None = None, suffix: str = "out"
    ) -> "list[Future[Result]]":
        """Begins a download on each of the peers at once."""
        return [
            self._pool.submit(peer.download, url, self.directory / f"{peer.name}.{suffix}")
            for peer in (self.peers if peers is None else peers)
        ]

    def blamed(self) -> set[str]:
        """Host ids that any log names as blamed."""
        processes = [peer.process for peer in self.peers]
        if self.scheduler is not None:
            processes.append(self.scheduler)
        return {
            str(line["host"])
            for process in processes
            for line in process.log_lines()
            if line.get("kind") == "blamed" and line.get("host")
        }


def wait_for_ready(process: Process, ready: Path) -> dict[str, Any]:
    """What a daemon's ready file says, once it is there. Raises AssertionError with its log."""

    def there() -> bool:
        assert process.running, f"{process.name} ended:\n{process.tail()}"
        return ready.exists()

    wait_for(there, f"{process.name} listens")
    facts: dict[str, Any] = json.loads(ready.read_text())
    return facts


@contextmanager
def swarm_of(
    directory: Path, count: int, rate_bytes_s: int, size_bytes: int = SIZE_BYTES
) -> Iterator[tuple[Swarm, Origin]]:
    """A scheduler and so many connected peers beside an origin of the same rate."""
    content = make_content(size_bytes)
    with Origin(content, rate_bytes_s) as origin, Swarm(directory, rate_bytes_s) as swarm:
        swarm.start_scheduler()
        swarm.add_peers(count)
        yield swarm, origin


def finish(futures: "list[Future[Result]]", sha256: str) -> list[Result]:
    """Waits for every download; all must have ended with the right bytes."""
    results = [future.result(DOWNLOAD_S) for future in futures]
    for result in results:
        result.check(sha256)
    return results
