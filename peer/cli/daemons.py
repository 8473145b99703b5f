"""`shoal peer` and `shoal scheduler`: configuration from file, environment and flags, then run.

The top floor: the only place that sees both daemons, for a scheduler embedded in a peer.
"""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shoal.runtime import config as configuration
from shoal.runtime.config_values import toml_value
from shoal.runtime.logs import configure_logs
from shoal.wire.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from peer.shell.config import PeerConfig
    from scheduler.shell.daemon import SchedulerDaemon

FLAGS: Final = {
    "peer": {
        "--listen": "piece.listen",
        "--scheduler": "scheduler.addresses",
        "--store-root": "store.root",
        "--upload-rate": "piece.upload_rate",
        "--download-rate": "piece.download_rate",
        "--socket": "api.socket",
        "--status": "status.listen",
        "--zone": "zone",
        "--host-id": "host_id",
        "--log-level": "log.level",
        "--log-format": "log.format",
    },
    "scheduler": {
        "--listen": "listen",
        "--status": "status.listen",
        "--log-level": "log.level",
        "--log-format": "log.format",
    },
}


def config_type(name: str) -> type[Any]:
    """The configuration of a daemon."""
    if name == "peer":
        from peer.shell.config import PeerConfig

        return PeerConfig
    from scheduler.shell.config import SchedulerConfig

    return SchedulerConfig


def settings_text(kind: type[Any]) -> str:
    """Every setting with what is legal, its unit, default and meaning: the end of `--help`."""
    lines = ["settings, in the TOML file, the environment, or with --set:"]
    for entry in configuration.options(kind):
        unit = f" ({entry.unit})" if entry.unit else ""
        default = entry.default_text.replace("`", "") or toml_value(entry.kind, entry.default)
        lines += [
            f"  {entry.key}  [{entry.environment_name}]",
            f"      {entry.legal}{unit}; default {default}",
            *textwrap.wrap(entry.help, 88, initial_indent=" " * 6, subsequent_indent=" " * 6),
        ]
    return "\n".join(lines)


def parser(name: str) -> argparse.ArgumentParser:
    """The options; `--help` lists every setting with its unit and default."""
    parser = argparse.ArgumentParser(
        prog=f"shoal {name}",
        epilog=settings_text(config_type(name)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    variable = f"{config_type(name).environment_prefix}_CONFIG"
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file; else the one that {variable} names"
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="print the settings, or what is wrong; exit 0 or 2",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="any of the settings below; may be repeated",
    )  # fmt: skip
    parser.add_argument("--ready-file", type=Path, help="written once everything listens (JSON)")
    if name == "peer":
        parser.add_argument("--embedded-scheduler", action="store_true", help="one process for all")
    known = {entry.key: entry for entry in configuration.options(config_type(name))}
    for flag, key in FLAGS[name].items():
        # Written several times, a list gathers all of them; of anything else the last one counts.
        parser.add_argument(
            flag, action="append", dest=f"key {key}", metavar="VALUE",
            help=f"{key} ({known[key].kind.legal}): {known[key].help}".replace("%", "%%"),
        )  # fmt: skip
    return parser


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs a daemon until it is told to stop; returns the exit code."""
    options = parser(name).parse_args(arguments)
    try:
        kind = config_type(name)
        named = options.config or os.environ.get(f"{kind.environment_prefix}_CONFIG")
        config = configuration.load(
            kind, Path(named) if named else None, os.environ, overrides(name, options)
        )
    except UsageError as error:
        sys.stderr.write(f"shoal {name}: {error}\n")
        return 2
    if options.check_config:
        sys.stdout.write(configuration.dump(config))
        return 0
    configure_logs(config.log.level, config.log.format)

    def ready(facts: dict[str, Any]) -> None:
        if options.ready_file is not None:
            # In place at once: whoever waits for it must never read half of it.
            part = options.ready_file.with_suffix(".part")
            part.write_text(json.dumps(facts))
            part.replace(options.ready_file)

    try:
        import uvloop

        if name == "peer":
            uvloop.run(_run_peer(config, ready))
        else:
            uvloop.run(_run_scheduler(config, ready))
    except (ShoalError, OSError) as error:
        sys.stderr.write(f"shoal {name}: {error}\n")
        return 1
    return 0


def overrides(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Settings given on the command line. Raises UsageError."""
    found: dict[str, str] = {}
    for setting in options.settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"--set {setting}: write it as key=value")
        found[key.strip()] = value.strip()
    sequences = {
        entry.key for entry in configuration.options(config_type(name)) if entry.kind.sequence
    }
    for key in FLAGS[name].values():
        values = getattr(options, f"key {key}")
        if values:
            found[key] = ",".join(values) if key in sequences else values[-1]
    if getattr(options, "embedded_scheduler", False):
        found["scheduler.embedded"] = "true"
    return found


async def _run_peer(config: "PeerConfig", ready: Any) -> None:
    from peer.shell.daemon import PeerDaemon

    embedded = None
    if config.scheduler.embedded:

        def embedded() -> "SchedulerDaemon":
            from scheduler.shell.config import SchedulerConfig
            from scheduler.shell.daemon import SchedulerDaemon

            scheduler = configuration.load(
                SchedulerConfig,
                None,
                {},
                {"listen": str(config.scheduler.embedded_listen), "status.listen": ""},
            )
            scheduler = replace(scheduler, tls=config.tls, log=config.log)
            return SchedulerDaemon(scheduler, process_metrics=False)

    await PeerDaemon(config, embedded=embedded, ready=ready).run()


async def _run_scheduler(config: Any, ready: Any) -> None:
    from scheduler.shell.daemon import SchedulerDaemon

    daemon = SchedulerDaemon(config)

    def tell() -> None:
        status = daemon.status_address
        ready(
            {
                "pid": os.getpid(),
                "address": str(daemon.address),
                "status_port": status.port if status is not None else None,
            }
        )

    await daemon.run(on_started=tell)
