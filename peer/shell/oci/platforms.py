"""Names of platforms as registries write them: `linux/amd64`, `linux/arm64/v8`."""

import os
from typing import Final

from shoal.wire.errors import UsageError

MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def own_platform() -> str:
    """This machine's, as registries write it."""
    machine = os.uname().machine.lower()
    return f"linux/{MACHINES.get(machine, machine)}"


def parse_platform(text: str) -> str:
    """`os/architecture[/variant]` in its usual form. Raises UsageError."""
    parts = text.lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(part.replace("_", "").isalnum() for part in parts):
        raise UsageError(f"platform {text[:80]!r}: write it as linux/amd64 or linux/arm64/v8")
    parts[1] = MACHINES.get(parts[1], parts[1])
    return "/".join(parts)
