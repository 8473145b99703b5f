"""An nginx that serves one directory on loopback: the origin, and the yardstick, of benchmarks."""

import os
from pathlib import Path
from typing import Final

from benchmarks.real.processes import Server

_CONFIGURATION: Final = """\
{user}
daemon off;
master_process off;
pid {work}/nginx.pid;
error_log stderr warn;
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
        listen {address};
        root {root};
    }}
}}
"""


class Nginx(Server):
    """Serves `root`."""

    name = "nginx"
    package = "nginx-light"

    def __init__(self, root: Path, work: Path) -> None:
        super().__init__(work)
        self._root = root

    def url(self, name: str) -> str:
        """Where a file of the directory is served."""
        return f"http://{self.address}/{name}"

    def configure(self) -> list[str]:
        """Writes its configuration."""
        configuration = self.work / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                # Started by root it would give up the right to read a private directory.
                user="user root;" if os.geteuid() == 0 else "",
                work=self.work,
                root=self._root,
                address=self.address,
            )
        )
        # Before it has read its configuration it would write to a log of the system.
        return ["-e", "stderr", "-p", str(self.work), "-c", str(configuration)]
