"""Real daemons and nginx for measurements: started, measured by what the kernel counted, ended."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from peer.cli.demo_processes import Processes
from peer.cli.local_client import LocalClient
from shoal.wire.errors import ShoalError

START_TIMEOUT_S: Final = 20.0
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

NGINX_CONFIG: Final = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; root {directory}/www; }}
}}
"""


class Nginx:
    """nginx as the origin, serving the directory `www`."""

    def __init__(self, directory: Path) -> None:
        binary = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if binary is None:
            raise ShoalError("nginx is missing: apt-get install nginx-light")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.www = directory / "www"
        self.www.mkdir()
        # Its worker runs as another user and has to reach the files.
        for each in (directory, self.www):
            each.chmod(0o755)
        config = directory / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(directory=directory, port=self.port))
        self._process = subprocess.Popen(
            [binary, "-c", str(config), "-e", str(directory / "nginx-start.log")]
        )
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self.stop()
                    raise ShoalError("nginx did not start") from None
                time.sleep(0.02)

    def url(self, name: str) -> str:
        """Where a file of `www` is."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def cpu_s(self) -> float:
        """CPU seconds of nginx and its worker."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(cpu_s(each) for each in [pid, *map(int, children)])

    def stop(self) -> None:
        """Ends nginx."""
        self._process.terminate()
        self._process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_peak_bytes(pid: int) -> int:
    """The largest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ShoalError(f"no VmHWM for process {pid}")


class Swarm:
    """A scheduler and peers, unlimited, on loopback."""

    def __init__(self, directory: Path, processes: Processes, peers: int) -> None:
        scheduler = processes.start(
            "scheduler", "peer.cli", "scheduler", "--listen", "127.0.0.1:0", "--status", "",
            "--ready-file",
        ).facts()  # fmt: skip
        started = [
            processes.start(
                f"peer-{number}", "peer.cli", "peer",
                "--host-id", f"peer-{number}",
                "--scheduler", scheduler["address"],
                "--listen", "127.0.0.1:0",
                "--status", "",
                "--store-root", str(directory / f"store-{number}"),
                "--socket", str(directory / f"peer-{number}.sock"),
                "--ready-file",
            )
            for number in range(peers)
        ]  # fmt: skip
        self.sockets: list[Path] = []
        self.pids: list[int] = []
        for each in started:
            facts = each.facts()
            self.sockets.append(Path(facts["socket"]))
            self.pids.append(int(facts["pid"]))
        self.clients = [LocalClient(path) for path in self.sockets]
        end = time.monotonic() + START_TIMEOUT_S
        for client in self.clients:
            while not client.get_json("/v1/status")["scheduler_connected"]:
                if time.monotonic() > end:
                    raise ShoalError("a peer did not reach the scheduler")
                time.sleep(0.02)

    def download(self, peer: int, url: str, output: Path, **more: Any) -> float:
        """Downloads on one peer; the seconds that it took."""
        body = {"urls": [{"url": url}], "outputs": [str(output)], "overwrite": True, **more}
        began = time.perf_counter()
        last: dict[str, Any] = {}
        for event in self.clients[peer].lines("/v1/downloads", body):
            last = event
        if last.get("event") != "done":
            raise ShoalError(f"the download failed: {last}")
        return time.perf_counter() - began
