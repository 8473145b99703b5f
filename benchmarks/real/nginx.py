"""An nginx that serves one directory on loopback: the origin, and the yardstick, of benchmarks.

Keeps everything that it writes in a directory of its own and stops only what it started.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shoal.wire.errors import ShoalError

START_TIMEOUT_S: Final = 10.0
SYSTEM_PATHS: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian keeps it, which is not on everybody's PATH."""

_CONFIGURATION: Final = """\
{user}
daemon off;
master_process off;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    etag on;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""


def program() -> str:
    """The path of nginx. Raises ShoalError if it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    found = shutil.which("nginx", path=path)
    if found is None:
        raise ShoalError("nginx is not installed; on Debian: apt-get install nginx-light")
    return found


class Nginx:
    """Serves `root`; `work` is an existing directory for its own files. A context manager."""

    def __init__(self, root: Path, work: Path) -> None:
        self._root = root
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def pid(self) -> int:
        """Its one process."""
        assert self._process is not None, "not started"
        return self._process.pid

    def url(self, name: str) -> str:
        """Where a file of the directory is served."""
        return f"http://127.0.0.1:{self._port}/{name}"

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        configuration = self._work / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                # Started by root it would give up the right to read a private directory.
                user="user root;" if os.geteuid() == 0 else "",
                work=self._work,
                root=self._root,
                port=self._port,
            )
        )
        self._process = subprocess.Popen(
            [program(), "-p", str(self._work), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > end:
                log = self._work / "error.log"
                told = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise ShoalError(f"nginx did not start: {told or 'it says nothing'}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it and waits until it is gone. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
