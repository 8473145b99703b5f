"""Facts of the machine and of its processes, as Linux tells them. Measures; judges nothing."""

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from peer.cli.local import human

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_LIBRARIES: Final = ("aiohttp", "grpcio", "msgpack", "protobuf", "uvloop", "xxhash")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, in user and kernel mode, all threads (proc(5), `stat`)."""
    # The name in parentheses may hold spaces; the fields that count come behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def children_cpu_s() -> float:
    """CPU time of commands that this process ran and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def busy_seconds() -> float:
    """CPU time of all processes and the kernel so far, all cores together (proc(5), `/proc/stat`);
    what a hypervisor gave to others counts too."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICKS_PER_S


def peak_rss_bytes(pid: int) -> int:
    """The largest resident memory that a process ever had (`VmHWM`)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise AssertionError("Linux tells VmHWM of every process")


def load_average() -> list[float]:
    """Runnable processes, averaged over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _first(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _file_system(directory: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if directory.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def facts(directory: Path) -> dict[str, Any]:
    """What somebody must know to compare numbers; `directory` is where the files lie."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_bytes": int(_first("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "file_system": _file_system(directory.resolve()),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "load_average_before": load_average(),
    }


def described(machine: dict[str, Any]) -> list[str]:
    """The facts for people, with `load_average_after` added: lines above a table."""
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {human(machine['memory_bytes'])}, "
        f"{machine['file_system']}, Linux {machine['kernel']}, Python {machine['python']}",
        f"load average before {machine['load_average_before']}, after "
        f"{machine['load_average_after']}",
    ]
