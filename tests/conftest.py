"""What all tests share: hypothesis profiles and how a missing tool is treated.

On a bare machine a test that needs a tool or root is skipped and says what is missing; where
`CI=true` promises a complete machine, the same test fails, so that nothing is left out in silence.
"""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

# Speed depends on who else uses the machine, so no example has a deadline of its own.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _COMMON, max_examples=50)
settings.register_profile("ci", _COMMON, max_examples=300, derandomize=True, print_blob=True)
settings.register_profile("nightly", _COMMON, max_examples=5000, print_blob=True)


def on_ci() -> bool:
    """Whether this machine is promised to have every tool."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if on_ci() else "dev"))


def require_tool(name: str) -> str:
    """The path of a program that a test needs. Skips the test without it; fails under CI."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        _missing(f"{name} is not installed")
    return found


def require_file(path: Path, hint: str) -> None:
    """Skips the calling test (fails it under CI) unless the file is there."""
    if not path.is_file():
        _missing(f"{path.name} is not there: {hint}")


def require_root() -> None:
    """Skips the calling test (fails it under CI) unless it runs as root."""
    if os.geteuid() != 0:
        _missing("needs root")


def require_that(there: bool, what: str) -> None:
    """Skips the calling test (fails it under CI) unless something is there; says what is not."""
    if not there:
        _missing(what)


def _missing(what: str) -> NoReturn:
    if on_ci():
        pytest.fail(f"{what}, and CI=true promises a complete machine", pytrace=False)
    pytest.skip(what)
