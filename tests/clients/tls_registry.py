"""The process `docker-registry` with TLS, perhaps with a password, and with its own access log.

Serves the storage that a plain registry was pushed to. Ends only the process that it started.
"""

import re
import ssl
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Final, Self

import trustme

from benchmarks.real.registry import Registry
from tests.conftest import require_tool

ANSWER_S: Final = 2.0
USER: Final = "ann"
PASSWORD: Final = "secret"
_HASHED: Final = "$2b$04$5.X0cqQSF5gLq4KkgFPJ.u7zN20MpTxU3lLFl0ioySWaeOOqBDshm"

_WITH_TLS: Final = """\
  tls: {{certificate: {directory}/server.pem, key: {directory}/server-key.pem}}
"""
"""Goes on in the section `http`, the last one of a plain registry."""
_WITH_PASSWORD: Final = """\
auth:
  htpasswd: {{realm: registry, path: {directory}/htpasswd}}
"""
_LINE: Final = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (\d+) (?P<bytes>\d+)')


class TlsRegistry(Registry):
    """To be used as a context manager. `ca`: what its certificate is to be trusted by."""

    def __init__(self, directory: Path, storage: Path, *, private: bool = False) -> None:
        require_tool("docker-registry")
        directory.mkdir()
        super().__init__(directory, storage)
        self._private = private
        self._read_to = 0
        self.ca = directory / "ca.pem"

    def __enter__(self) -> Self:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        server = authority.issue_cert("127.0.0.1")
        server.cert_chain_pems[0].write_to_path(str(self.work / "server.pem"))
        server.private_key_pem.write_to_path(str(self.work / "server-key.pem"))
        (self.work / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
        super().__enter__()
        self.forget()
        return self

    def configure(self) -> list[str]:
        """Writes its configuration, with TLS."""
        arguments = super().configure()
        text = _WITH_TLS + (_WITH_PASSWORD if self._private else "")
        with (self.work / "registry.yml").open("a") as configuration:
            configuration.write(text.format(directory=self.work))
        return arguments

    def listens(self) -> bool:
        """Whether it answers with its certificate."""
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
        self._read_to = len(self.log.read_text(errors="replace"))

    def told(self) -> str:
        """What its log says since."""
        return self.log.read_text(errors="replace")[self._read_to :]

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
