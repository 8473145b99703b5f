"""`python -m benchmarks.real.pull`: one model, many hosts, links like a cluster's.

A registry, a scheduler and so many hosts, each in a network namespace behind a link of its own that
carries a fixed rate each way. On every host a `shoal peer` runs, and all hosts run `shoal pull` of
one ModelPack artifact at the same moment. Prints how long the last one took over the least time
that the links allow, how many copies left the registry, and what it cost in CPU. Needs root.

The bound is S / rate for equal links: the registry's link, and each host's, has to carry one copy
of the S bytes, and headers of packets count against us. Bytes of bodies are from the registry's
access log; bytes of its link from the kernel's counter.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.real.command import run, undisturbed
from benchmarks.real.machine import (
    busy_seconds,
    children_cpu_s,
    cpu_seconds,
    facts,
    load_average,
    peak_rss_bytes,
)
from benchmarks.real.model import Model, make_model
from benchmarks.real.network import Network, check_possible
from benchmarks.real.registry import Registry
from benchmarks.real.site import wait_connected
from peer.cli.demo_processes import Processes
from peer.cli.local import human
from shoal.runtime.config_values import parse_size
from shoal.wire.errors import ShoalError

PORT: Final = 4000
REPOSITORY: Final = "bench/model"
PULL_TIMEOUT_S: Final = 900.0
COPIES_EXTRA: Final = 3
"""Of the model beside one per host: the layout, the registry's, and room for others."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real.pull",
        description=__doc__,
        epilog="exit codes: 0 measured, and within the limits; 1 something failed; 2 wrong usage; "
        "3 beyond a limit; 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=8, help="that pull at the same time")
    parser.add_argument("--size", default="1GiB", help="of the model")
    parser.add_argument("--shards", type=int, default=5, help="big layers; there are 4 small ones")
    parser.add_argument("--rate-mbit", type=float, default=200.0, help="of each link, each way")
    parser.add_argument("--tell-rates", action="store_true",
        help="tell the peers their rate (upload_rate, download_rate)")  # fmt: skip
    parser.add_argument("--limit", type=float, help="most makespan over the bound")
    parser.add_argument("--egress-limit", type=float, help="most copies from the registry, by body")
    parser.add_argument("--directory", type=Path, help="where files go; default: TMPDIR")
    parser.add_argument("--keep", action="store_true", help="leave the files and logs there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parser().parse_args(arguments)

    def checked(work: Path) -> dict[str, Any]:
        check_possible()
        return measure(work, Plan.of(options))

    result = run(
        "benchmarks.real.pull",
        options,
        checked,
        table,
        place=lambda: options.directory,
        keep=options.keep,
    )
    if isinstance(result, int):
        return result
    return 3 if _beyond(options, result) else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    hosts: int
    size_bytes: int
    shards: int
    rate_bytes_s: int
    tell_rates: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Plan":
        """Raises UsageError for numbers that make no sense."""
        return cls(
            hosts=max(1, options.hosts),
            size_bytes=int(parse_size(options.size)),
            shards=max(1, options.shards),
            rate_bytes_s=int(options.rate_mbit * 1e6 / 8),
            tell_rates=options.tell_rates,
        )


@dataclass(frozen=True, slots=True)
class Host:
    """One host that pulls."""

    name: str
    pid: int
    socket: Path
    output: Path


@dataclass(slots=True)
class Pulled:
    """How one command ended."""

    host: str
    seconds: float = 0.0
    code: int = -1
    told: str = ""


def measure(work: Path, plan: Plan) -> dict[str, Any]:
    """One run, as one object. Raises ShoalError if something fails or a file is wrong."""
    free_bytes = shutil.disk_usage(work).free
    needed_bytes = (plan.hosts + COPIES_EXTRA) * plan.size_bytes
    if free_bytes < needed_bytes:
        raise ShoalError(f"{needed_bytes} bytes are needed in {work}, {free_bytes} are free")
    result: dict[str, Any] = {"machine": facts(work)}
    sys.stderr.write("making the model ...\n")
    model = make_model(work / "layout", plan.size_bytes, plan.shards)
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        network.add("registry", plan.rate_bytes_s)
        network.add("scheduler", 0)
        for number in range(plan.hosts):
            network.add(f"host-{number}", plan.rate_bytes_s)
        (work / "registry").mkdir()
        with network.inside("registry"):
            registry = stack.enter_context(
                Registry(work / "registry", work / "storage", network.address_of("registry"))
            )
            reference = registry.push(model, REPOSITORY)
        shutil.rmtree(model.layout)
        processes = stack.enter_context(Processes(work))
        scheduler, hosts = _start(network, processes, work, plan)
        sys.stderr.write("pulling ...\n")
        pids = {"registry": registry.pid, "scheduler": scheduler}
        pids |= {host.name: host.pid for host in hosts}
        cpu_before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        busy_before = busy_seconds()
        sent_before = network.sent_bytes("registry")
        registry.reads()  # Of filling it, if any.
        commands_before = children_cpu_s()
        pulled = _pull(network, hosts, reference)
        busy_s = busy_seconds() - busy_before
        cpu_s = {name: cpu_seconds(pid) - cpu_before[name] for name, pid in pids.items()}
        cpu_s["commands"] = children_cpu_s() - commands_before
        makespan_s = max(each.seconds for each in pulled)
        sent_bytes = network.sent_bytes("registry") - sent_before
        rss_bytes = max(peak_rss_bytes(host.pid) for host in hosts)
        _check(hosts, pulled, model)
        reads = registry.reads()
    body_bytes = sum(reads.body_bytes.values())
    bound_s = model.size_bytes / plan.rate_bytes_s
    result |= {
        "hosts": plan.hosts,
        "rate_bytes_s": plan.rate_bytes_s,
        "size_bytes": model.size_bytes,
        "layers": model.layers,
        "bound_s": round(bound_s, 3),
        "makespan_s": round(makespan_s, 3),
        "makespan_over_bound": round(makespan_s / bound_s, 3),
        "seconds": [round(each.seconds, 2) for each in pulled],
        "registry": {
            "requests": reads.requests,
            "body_bytes": body_bytes,
            "copies_by_body": round(body_bytes / model.size_bytes, 4),
            "link_bytes": sent_bytes,
            "copies_by_link": round(sent_bytes / model.size_bytes, 4),
        },
        "cpu": {
            "cores": result["machine"]["cores"],
            "own_share": round(sum(cpu_s.values()) / makespan_s / result["machine"]["cores"], 3),
            "busy_share": round(busy_s / makespan_s / result["machine"]["cores"], 3),
            "seconds": {name: round(value, 2) for name, value in cpu_s.items()},
        },
        "peak_rss_bytes": rss_bytes,
    }
    result["machine"]["load_average_after"] = load_average()
    return result


def _start(
    network: Network, processes: Processes, work: Path, plan: Plan
) -> tuple[int, tuple[Host, ...]]:
    """The scheduler's process, and the hosts, all connected to it."""
    scheduler = processes.start(
        "scheduler",
        *("peer.cli", "scheduler", "--listen", f"{network.address_of('scheduler')}:{PORT}"),
        *("--status", "", "--set", "tls.insecure=true", "--log-format", "json"),
        "--ready-file",
        within=network.command("scheduler"),
    )
    address = scheduler.facts()["address"]
    rate = f"{plan.rate_bytes_s}B/s"
    rates = ("--upload-rate", rate, "--download-rate", rate) if plan.tell_rates else ()
    started = [
        processes.start(
            name,
            *("peer.cli", "peer", "--host-id", name, "--scheduler", address, *rates),
            *("--listen", f"{network.address_of(name)}:{PORT}", "--status", ""),
            *("--set", "tls.insecure=true", "--log-format", "json"),
            *("--store-root", str(work / f"{name}.store")),
            *("--socket", str(work / f"{name}.sock")),
            "--ready-file",
            within=network.command(name),
        )
        for name in (f"host-{number}" for number in range(plan.hosts))
    ]
    hosts = []
    for each in started:
        socket = Path(each.facts()["socket"])
        wait_connected(each.name, socket)
        hosts.append(Host(each.name, each.process.pid, socket, work / f"{each.name}.out"))
    return scheduler.process.pid, tuple(hosts)


def _pull(network: Network, hosts: Sequence[Host], reference: str) -> list[Pulled]:
    """Starts all commands at once and waits for every one of them."""
    pulled = [Pulled(host.name) for host in hosts]
    running: list[subprocess.Popen[bytes]] = []

    def wait(process: "subprocess.Popen[bytes]", end: Pulled, began_s: float) -> None:
        told, problem = process.communicate()
        end.seconds = time.monotonic() - began_s
        end.code, end.told = process.returncode, (problem or told).decode(errors="replace")

    threads = []
    began_s = time.monotonic()
    try:
        with undisturbed():
            for host, end in zip(hosts, pulled, strict=True):
                command = [
                    *network.command(host.name), sys.executable, "-m", "peer.cli", "pull",
                    reference, "--plain-http", "--output", str(host.output),
                    "--endpoint", str(host.socket), "--json", "--timeout", f"{PULL_TIMEOUT_S:.0f}s",
                ]  # fmt: skip
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                running.append(process)
                threads.append(threading.Thread(target=wait, args=(process, end, began_s)))
                threads[-1].start()
        for thread in threads:
            thread.join(PULL_TIMEOUT_S)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
        for thread in threads:
            thread.join()
    return pulled


def _check(hosts: Sequence[Host], pulled: Sequence[Pulled], model: Model) -> None:
    """Raises ShoalError unless every host has every file, right to the last byte."""
    for host, end in zip(hosts, pulled, strict=True):
        if end.code != 0:
            raise ShoalError(f"shoal pull on {host.name} ended with {end.code}: {end.told[-1000:]}")
        for path, wanted in model.files.items():
            with (host.output / path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    raise ShoalError(f"{host.name} has other bytes in {path}")


def _beyond(options: argparse.Namespace, result: dict[str, Any]) -> bool:
    ratio, copies = result["makespan_over_bound"], result["registry"]["copies_by_body"]
    return (options.limit is not None and ratio > options.limit) or (
        options.egress_limit is not None and copies > options.egress_limit
    )


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    machine, registry, cpu = result["machine"], result["registry"], result["cpu"]
    by_host = [value for name, value in cpu["seconds"].items() if name.startswith("host-")]
    rows: list[tuple[str, str]] = [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}"),
        (
            "load average",
            f"{machine['load_average_before']} before, {machine['load_average_after']} after",
        ),
        (
            "model",
            f"{human(result['size_bytes'])} in {result['layers']} layers, {result['hosts']} hosts, "
            f"links of {result['rate_bytes_s'] * 8 / 1e6:.0f} Mbit/s each way",
        ),
        ("makespan", f"{result['makespan_s']:.2f} s, the bound is {result['bound_s']:.2f} s"),
        ("over the bound", f"{result['makespan_over_bound']:.3f}"),
        (
            "registry, bodies",
            f"{registry['copies_by_body']:.4f} copies in {registry['requests']} reads "
            "(its access log)",
        ),
        ("registry, link", f"{registry['copies_by_link']:.4f} copies (counter of its interface)"),
        ("CPU of a peer", f"{sum(by_host) / len(by_host):.2f} s, at most {max(by_host):.2f} s"),
        (
            "CPU of the rest",
            ", ".join(
                f"{name} {value:.2f} s"
                for name, value in cpu["seconds"].items()
                if not name.startswith("host-")
            ),
        ),
        (
            "share of all cores",
            f"{100 * cpu['own_share']:.0f} % by these processes, {100 * cpu['busy_share']:.0f} % "
            "busy in all",
        ),
        ("peak memory", f"{human(result['peak_rss_bytes'])} of a peer"),
    ]
    return "\n".join(f"{name:20}{text}" for name, text in rows)


if __name__ == "__main__":
    sys.exit(main())
