"""The conformance suite of the OCI distribution specification: built once, run against a registry.

The suite is a Go program from the Go module proxy. Its binary is kept in the user's cache by
version. What it says is read from what it prints: for registries that are only read this version
ends with a panic after its results. Judges nothing.
"""

import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.clients.registry_rig import bare_environment
from tests.conftest import require_that, require_tool

MODULE: Final = "github.com/opencontainers/distribution-spec/conformance"
VERSION: Final = "v0.0.0-20260831232431-97274622c111"
_TOTAL: Final = re.compile(r"^  (Pass|FAIL|Skip|Disabled|Error|Total)\.+: +(\d+)$", re.MULTILINE)
BUILD_S: Final = 300.0
RUN_S: Final = 240.0

_RESULT: Final = re.compile(r" *(OCI Conformance Test[^\n]*): (Pass|FAIL|Skip|Disabled|Error)")


@dataclass(frozen=True, slots=True)
class Results:
    """What the suite says of one registry."""

    cases: tuple[tuple[str, str], ...]
    """Names with Pass, FAIL, Skip, Disabled or Error. A name may be there many times."""
    text: str

    @property
    def failed(self) -> "Counter[str]":
        """How often each case failed."""
        return Counter(name for name, result in self.cases if result in ("FAIL", "Error"))

    def __str__(self) -> str:
        return ", ".join(f"{count} {result}" for result, count in _TOTAL.findall(self.text))

    def why(self, name: str) -> str:
        """What the suite says to a case that failed."""
        at = self.text.find(f"{name}: FAIL")
        return self.text[at : at + 600]


def conformance_suite() -> Path:
    """The program. Builds it where that was not done yet; skips the calling test (fails it under
    CI) where that cannot be done."""
    go = require_tool("go")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "shoal-tests" / f"conformance-{VERSION}"
    program = folder / "conformance"
    if not program.exists():
        built = subprocess.run(
            [go, "install", f"{MODULE}@{VERSION}"],
            env={**os.environ, "GOBIN": str(folder), "GOTOOLCHAIN": "local"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_S,
        )
        told = built.stdout.decode(errors="replace")[-2000:]
        require_that(built.returncode == 0, f"the conformance suite cannot be built: {told}")
    return program


def run_suite(program: Path, address: str, directory: Path, **settings: str) -> Results:
    """Runs it against the registry at host:port. `settings`: names without their `OCI_`."""
    directory.mkdir(parents=True)
    given = {
        "REGISTRY": address,
        "TLS": "disabled",
        "VERSION": "1.1",
        "LOG": "error",
        "RESULTS_DIR": str(directory / "results"),
        **settings,
    }
    done = subprocess.run(
        [program],
        cwd=directory,
        env={
            **bare_environment(directory / "home"),
            **{f"OCI_{name}": value for name, value in given.items()},
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=RUN_S,
    )
    text = done.stdout.decode(errors="replace")
    found = (_RESULT.fullmatch(line) for line in text.splitlines())
    cases = tuple((match[1], match[2]) for match in found if match is not None)
    assert cases, f"no results:\n{text[-4000:]}"
    return Results(cases, text)
