"""The process `docker-registry` with TLS, perhaps with a password, and with its own access log.

Serves the storage that a plain registry was pushed to. Ends only the process that it started.
"""

import re
import ssl
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trustme

from tests.clients.registry_rig import ANSWER_S, PORT_TRIES, Program, bare_environment, free_port
from tests.conftest import require_tool
from tests.integration.swarm_rig import wait_for

USER: Final = "ann"
PASSWORD: Final = "secret"
_HASHED: Final = "$2b$04$5.X0cqQSF5gLq4KkgFPJ.u7zN20MpTxU3lLFl0ioySWaeOOqBDshm"

_CONFIGURATION: Final = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: 127.0.0.1:{port}
  relativeurls: true
  tls: {{certificate: {directory}/server.pem, key: {directory}/server-key.pem}}
"""
_WITH_PASSWORD: Final = """\
auth:
  htpasswd: {{realm: registry, path: {directory}/htpasswd}}
"""
_LINE: Final = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (\d+) (?P<bytes>\d+)')


class TlsRegistry:
    """To be used as a context manager. `ca`: what its certificate is to be trusted by."""

    def __init__(self, directory: Path, storage: Path, *, private: bool = False) -> None:
        self._program = require_tool("docker-registry")
        self._directory = directory
        self._storage = storage
        self._private = private
        self._process: Program | None = None
        self._read_to = 0
        self.port = 0
        self.ca = directory / "ca.pem"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._directory.mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        server = authority.issue_cert("127.0.0.1")
        server.cert_chain_pems[0].write_to_path(str(self._directory / "server.pem"))
        server.private_key_pem.write_to_path(str(self._directory / "server-key.pem"))
        (self._directory / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
        for _ in range(PORT_TRIES):
            if self._start(free_port()):
                self.forget()
                return self
        tail = self._process.tail() if self._process is not None else ""
        raise AssertionError(f"the registry does not start:\n{tail}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.close()

    def _start(self, port: int) -> bool:
        """False when it ended, for somebody else may have taken the port."""
        self.port = port
        text = _CONFIGURATION + (_WITH_PASSWORD if self._private else "")
        configuration = self._directory / "registry.yml"
        configuration.write_text(
            text.format(root=self._storage, port=port, directory=self._directory)
        )
        process = self._process = Program(
            [self._program, "serve", str(configuration)],
            self._directory / "registry.log",
            bare_environment(self._directory / "home"),
        )
        try:
            wait_for(lambda: not process.running or self._answers(), "the registry answers")
        except AssertionError:
            process.close()
            raise
        return process.running

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.ca))
        try:
            with urllib.request.urlopen(
                f"https://{self.address}/v2/", timeout=ANSWER_S, context=context
            ):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 401
        except OSError:
            return False

    def forget(self) -> None:
        """What its log says so far is not counted."""
        assert self._process is not None
        self._read_to = len(self._process.log.read_text(errors="replace"))

    def told(self) -> str:
        """What its log says since."""
        assert self._process is not None
        return self._process.log.read_text(errors="replace")[self._read_to :]

    def read_bytes(self) -> Counter[str]:
        """Bytes that its log says were sent of each blob, by digest."""
        read: Counter[str] = Counter()
        for found in _LINE.finditer(self.told()):
            place, _, digest = found["path"].rpartition("/blobs/")
            if place and found["method"] == "GET":
                read[digest.partition("?")[0]] += int(found["bytes"])
        return read

    def requests(self, method: str, part: str) -> int:
        """How often its log has a method and a part of a path."""
        return sum(
            found["method"] == method and part in found["path"]
            for found in _LINE.finditer(self.told())
        )
