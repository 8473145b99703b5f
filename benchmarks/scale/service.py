"""`python -m benchmarks.scale service`: what a scheduler costs, over real gRPC on this machine.

Three phases, each with a scheduler of its own. `join`: hosts with open streams join one collection
at once; how long until each has its reply, and the scheduler's CPU time per join. `cold`: hosts
connect, say Hello and join, all at once. `steady`: hosts report progress of a 64 GiB task; the
scheduler's CPU, memory, and bytes told to each host, for several numbers of hosts. Clients and
scheduler share the machine, so latencies include the clients' own work; to keep it small, hosts
speak just the HTTP/2 that gRPC needs. `--clients grpc` gives each a gRPC channel, as real hosts
have.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.real.machine import facts, load_average
from benchmarks.real.small import percentile
from benchmarks.scale.service_rig import Rig
from benchmarks.scale.service_streams import KINDS
from shoal.wire.errors import ShoalError, UsageError

PHASES: Final = ("join", "cold", "steady")
OPEN_TIMEOUT_S: Final = 120.0
REPLY_TIMEOUT_S: Final = 60.0
ANSWER_MARGIN_S: Final = 20.0

LIMITS: Final = {
    "join_p99_ms": 300.0,
    "join_cpu_ms": 0.3,
    "join_reply_bytes": 32_000,
    "cold_s": 5.0,
    "steady_cores_at_1000": 0.5,
    "steady_bytes_s": 150_000,
}
"""What must be met; the table says where it is not."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale service", description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000, help="in the phases join and cold")
    parser.add_argument("--phase", default=",".join(PHASES), help="some of join,cold,steady")
    parser.add_argument(
        "--steady-hosts", default="500,1000,5000", help="numbers of hosts in the steady phase"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of the steady phase")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before it is measured")
    parser.add_argument("--rounds", type=int, default=3, help="of join and cold")
    parser.add_argument("--report-ms", default="250-500", help="pauses between reports of a host")
    parser.add_argument("--task-seconds", type=float, default=60.0, help="a host takes for 64 GiB")
    parser.add_argument("--processes", type=int, default=1, help="that play the hosts")
    parser.add_argument(
        "--clients",
        choices=KINDS,
        default=KINDS[0],
        help="grpc: hosts as heavy as real ones, on the same machine",
    )
    parser.add_argument(
        "--engine",
        choices=("core", "stub"),
        default="core",
        help="stub: what the shell alone costs",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with lists taken apart. Raises UsageError."""
    options.phases = options.phase.split(",")
    for phase in options.phases:
        if phase not in PHASES:
            raise UsageError(f"--phase {phase}: one of {', '.join(PHASES)}")
    try:
        options.steady_numbers = [int(number) for number in options.steady_hosts.split(",")]
    except ValueError:
        raise UsageError(f"--steady-hosts {options.steady_hosts}: numbers and commas") from None
    first, dash, last = options.report_ms.partition("-")
    try:
        options.report_min_ms = int(first)
        options.report_max_ms = int(last) if dash else int(first)
    except ValueError:
        raise UsageError(f"--report-ms {options.report_ms}: write it as 250-500") from None
    numbers = [options.hosts, *options.steady_numbers]
    if min(numbers) < 2 * options.processes or options.processes < 1 or options.rounds < 1:
        raise UsageError("at least one process and round, and two hosts per process")
    return options


def main(argv: list[str]) -> int:
    """Measures and prints; returns the exit code."""
    try:
        options = checked(parser().parse_args(argv))
        result = measure(options)
    except UsageError as error:
        sys.stderr.write(f"benchmarks.scale service: {error}\n")
        return 2
    except (ShoalError, OSError) as error:
        sys.stderr.write(f"benchmarks.scale service: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write((json.dumps(result) if options.json else table(result)) + "\n")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers as one object."""
    result: dict[str, Any] = {
        "machine": facts(Path(tempfile.gettempdir())),
        "engine": options.engine,
        "processes": options.processes,
        "clients": options.clients,
        "limits": LIMITS,
    }
    if "join" in options.phases:
        result["join"] = [join_round(options) for _ in range(options.rounds)]
    if "cold" in options.phases:
        result["cold"] = [cold_round(options) for _ in range(options.rounds)]
    if "steady" in options.phases:
        result["steady"] = [steady_round(options, hosts) for hosts in options.steady_numbers]
    result["machine"]["load_average_after"] = load_average()
    return result


def join_round(options: argparse.Namespace) -> dict[str, Any]:
    """Hosts with open streams join at once; one that came before made the content known."""
    sys.stderr.write(f"{options.hosts} hosts join ...\n")
    with _rig(options, options.hosts + 1) as rig:
        opened = _open(rig)
        _seed(rig)
        idle_rss = rig.rss_bytes()
        cpu_before_s = rig.cpu_s()
        load = load_average()[0]
        answers = _join_all(rig)
        _settle(rig)
        cpu_s = rig.cpu_s() - cpu_before_s
        return summed_up(answers, options.hosts, cpu_s) | {
            "open_seconds": opened,
            "rss_bytes_before": idle_rss,
            "rss_bytes": rig.rss_bytes(),
            "load_average": load,
        }


def cold_round(options: argparse.Namespace) -> dict[str, Any]:
    """Hosts come to a scheduler that knows nothing, all at once."""
    sys.stderr.write(f"{options.hosts} hosts come cold ...\n")
    with _rig(options, options.hosts) as rig:
        cpu_before_s = rig.cpu_s()
        load = load_average()[0]
        rig.tell_all("cold", timeout_s=REPLY_TIMEOUT_S)
        answers = rig.answers(REPLY_TIMEOUT_S + ANSWER_MARGIN_S)
        _settle(rig)
        cpu_s = rig.cpu_s() - cpu_before_s
        return summed_up(answers, options.hosts, cpu_s) | {
            "rss_bytes": rig.rss_bytes(),
            "load_average": load,
        }


def steady_round(options: argparse.Namespace, hosts: int) -> dict[str, Any]:
    """Hosts that joined report, and are told what the scheduler tells."""
    sys.stderr.write(f"{hosts} hosts report ...\n")
    with _rig(options, hosts) as rig:
        _open(rig)
        _seed(rig)
        joined = _join_all(rig)
        load = load_average()[0]
        rig.tell_all(
            "steady",
            seconds=options.warm_up + options.seconds,
            warm_up_s=options.warm_up,
            report_min_ms=options.report_min_ms,
            report_max_ms=options.report_max_ms,
            task_s=options.task_seconds,
            processes=options.processes,
        )
        timeout_s = options.warm_up + options.seconds + REPLY_TIMEOUT_S
        rig.answers(timeout_s)  # The warm-up is over.
        cpu_before_s = rig.cpu_s()
        answers = rig.answers(timeout_s)
        cpu_s = rig.cpu_s() - cpu_before_s
        rss = rig.rss_bytes()
    seconds = max(answer["seconds"] for answer in answers)
    bytes_s = [rate for answer in answers for rate in answer["bytes_s"]]
    return {
        "hosts": hosts,
        "seconds": seconds,
        "cores": cpu_s / seconds,
        "rss_bytes": rss,
        "bytes_s_mean": sum(bytes_s) / len(bytes_s),
        "bytes_s_max": max(bytes_s),
        "reports_s": sum(answer["reports"] for answer in answers) / seconds,
        "batches_s": sum(answer["batches"] for answer in answers) / seconds,
        "interval_ms_max": max(answer["interval_ms_max"] for answer in answers),
        "clients_cores": sum(answer["cpu_s"] for answer in answers)
        / (options.warm_up + options.seconds),
        "not_joined": sum(answer["missing"] for answer in joined),
        "lost": _lost(answers),
        "load_average": load,
    }


def _rig(options: argparse.Namespace, hosts: int) -> Rig:
    return Rig(
        engine=options.engine, kind=options.clients, hosts=hosts, processes=options.processes
    )


def _open(rig: Rig) -> float:
    """Every host has a stream and is welcome; how long it took."""
    rig.tell_all("open")
    answers = rig.answers(OPEN_TIMEOUT_S)
    if lost := _lost(answers):
        raise ShoalError(f"hosts lost their streams while they connected: {lost}")
    return max(float(answer["seconds"]) for answer in answers)


def _seed(rig: Rig) -> None:
    """The first host joins alone and tells what the origin says of the content."""
    rig.clients[0].tell("join", first=0, count=1, timeout_s=REPLY_TIMEOUT_S)
    answer = rig.clients[0].answer(REPLY_TIMEOUT_S + ANSWER_MARGIN_S)
    if answer["missing"]:
        raise ShoalError(f"the first host got no reply: {answer['lost']}")


def _join_all(rig: Rig) -> list[dict[str, Any]]:
    """All others join at once."""
    for number, clients in enumerate(rig.clients):
        # The first host of the first process is there already.
        seeds = 1 if number == 0 else 0
        clients.tell(
            "join",
            first=clients.first + seeds,
            count=clients.count - seeds,
            timeout_s=REPLY_TIMEOUT_S,
        )
    return rig.answers(REPLY_TIMEOUT_S + ANSWER_MARGIN_S)


def _settle(rig: Rig) -> None:
    """What the joins led to besides the replies belongs to them: waits for its end. The clients'
    answer says that the second is over."""
    rig.tell_all("rest", seconds=1.0)
    rig.answers(ANSWER_MARGIN_S)


def summed_up(answers: list[dict[str, Any]], hosts: int, cpu_s: float) -> dict[str, Any]:
    """One row: what all client processes saw."""
    latencies = [value for answer in answers for value in answer["latencies_ms"]]
    reply_bytes = [value for answer in answers for value in answer["reply_bytes"]]
    first_bytes = [value for answer in answers for value in answer["first_bytes"]]
    if not latencies:
        raise ShoalError(f"no host got a reply: {_lost(answers)}")
    return {
        "hosts": hosts,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "max_ms": max(latencies),
        "cpu_ms_per_join": 1000 * cpu_s / hosts,
        "reply_bytes_mean": sum(reply_bytes) / len(reply_bytes),
        "reply_bytes_max": max(reply_bytes),
        "bytes_until_reply_max": max(first_bytes),
        "missing": sum(answer["missing"] for answer in answers),
        "lost": _lost(answers),
        "clients_cpu_s": sum(answer["cpu_s"] for answer in answers),
    }


def _lost(answers: list[dict[str, Any]]) -> dict[str, int]:
    lost: dict[str, int] = {}
    for answer in answers:
        for reason, count in answer["lost"].items():
            lost[reason] = lost.get(reason, 0) + count
    return lost


def table(result: dict[str, Any]) -> str:
    """The same for people; `!` marks what misses its limit."""
    machine = result["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python "
        f"{machine['python']}, grpcio {machine['libraries']['grpcio']}",
        f"load average before {machine['load_average_before']}, after "
        f"{machine['load_average_after']}; engine: {result['engine']}; client processes: "
        f"{result['processes']}, {result['clients']}",
    ]
    for phase in ("join", "cold"):
        if phase in result:
            lines += ["", *_reply_rows(phase, result[phase])]
    if "steady" in result:
        lines += ["", *_steady_rows(result["steady"])]
    return "\n".join(lines)


def _mark(text: str, *, missed: bool) -> str:
    return text + ("!" if missed else " ")


def _reply_rows(phase: str, rounds: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{phase:8}{'hosts':>7}{'p50 ms':>9}{'p99 ms':>9} {'max ms':>9} {'CPU ms/join':>12} "
        f"{'reply kB':>9} {'RSS MB':>8}{'load':>6}  missing"
    ]
    for row in rounds:
        late = row["p99_ms"] > LIMITS["join_p99_ms"]
        slow = row["max_ms"] > 1000 * LIMITS["cold_s"]
        dear = row["cpu_ms_per_join"] > LIMITS["join_cpu_ms"]
        join = phase == "join"
        lines.append(
            f"{'':8}{row['hosts']:7}{row['p50_ms']:9.1f}"
            + _mark(f"{row['p99_ms']:9.1f}", missed=join and late)
            + _mark(f"{row['max_ms']:9.1f}", missed=not join and slow)
            + _mark(f"{row['cpu_ms_per_join']:12.3f}", missed=join and dear)
            + _mark(
                f"{row['reply_bytes_max'] / 1000:9.1f}",
                missed=row["reply_bytes_max"] > LIMITS["join_reply_bytes"],
            )
            + f"{row['rss_bytes'] / 1e6:8.0f}{row['load_average']:6.1f}  "
            + _losses(row["missing"], row["lost"])
        )
    return lines


def _steady_rows(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'steady':8}{'hosts':>7}{'cores':>7} {'RSS MB':>8}{'kB/s per host':>15} {'(max)':>8} "
        f"{'reports/s':>11}{'batches/s':>11}{'load':>6}  missing"
    ]
    for row in rows:
        over = row["hosts"] <= 1000 and row["cores"] > LIMITS["steady_cores_at_1000"]
        limit = LIMITS["steady_bytes_s"]
        lines.append(
            f"{'':8}{row['hosts']:7}"
            + _mark(f"{row['cores']:7.2f}", missed=over)
            + f"{row['rss_bytes'] / 1e6:8.0f}"
            + _mark(f"{row['bytes_s_mean'] / 1000:15.1f}", missed=row["bytes_s_mean"] > limit)
            + _mark(f"{row['bytes_s_max'] / 1000:8.1f}", missed=row["bytes_s_max"] > limit)
            + f"{row['reports_s']:11.0f}{row['batches_s']:11.0f}{row['load_average']:6.1f}  "
            + _losses(row["not_joined"], row["lost"])
        )
    return lines


def _losses(missing: int, lost: dict[str, int]) -> str:
    return " ".join([str(missing), *(f"{count} x {reason}" for reason, count in lost.items())])
