"""The `shoal` command: finds the subcommand and hands over. Imports little but that one.

A `shoal get` of a small file lives for a few tens of milliseconds, most of them spent on imports;
so every subcommand is a function `run(name, arguments) -> exit code` of a module that is imported
when it is called.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from shoal import garbage

USAGE = """\
usage: shoal COMMAND [OPTION...]

Moves big immutable files from one origin to many hosts, peer to peer.

commands:
  get URL... -O FILE   download, through the daemon if one runs here, else by itself
  pull REF -o DIR      download a model or an image from a registry, in the same way
  inspect REF          what a registry has under a name, and what of it this host and the swarm hold
  peer                 run the peer daemon of this host
  scheduler            run the scheduler of a swarm
  status               what the daemon of this host is and does
  tasks                what the daemon holds; `shoal tasks rm ID...` deletes
  runtime              make containerd, CRI-O, podman or docker pull through shoal
  proxy                make the CA by which the proxy of a daemon opens TLS
  demo                 a swarm of many nodes on this machine, with a result table
  version              print the version

`shoal COMMAND --help` tells more.
"""

COMMANDS = (
    "get", "pull", "inspect", "peer", "scheduler", "status", "tasks", "runtime", "proxy", "demo",
    "version",
)  # fmt: skip


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    execute: Callable[[str, Sequence[str]], int]
    match command:
        case "get":
            from peer.cli import get

            execute = get.run
        case "pull":
            from peer.cli import pull

            execute = pull.run
        case "inspect":
            from peer.cli import inspect

            execute = inspect.run
        case "peer" | "scheduler":
            from peer.cli import daemons

            execute = daemons.run
        case "status" | "tasks":
            from peer.cli import local

            execute = local.run
        case "runtime":
            from peer.cli.runtimes import command as runtimes

            execute = runtimes.run
        case "proxy":
            from peer.cli import proxy

            execute = proxy.run
        case "demo":
            from peer.cli import demo

            execute = demo.run
        case "version" | "--version" | "-V":
            from peer.cli import version

            execute = version.run
        case "-h" | "--help" | "help":
            sys.stdout.write(USAGE)
            return 0
        case "":
            sys.stderr.write(USAGE)
            return 2
        case _:
            return _unknown(command)
    return execute(command, rest)


def _unknown(command: str) -> int:
    import difflib

    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
    sys.stderr.write(f"shoal: unknown command {command!r}; {hint}\n")
    return 2


def entry() -> NoReturn:
    """The console script: exits with the command's exit code."""
    gc.set_threshold(garbage.LOOKED_FOR_AFTER)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    # Python looks through everything for garbage before it ends: a tenth of the CPU that
    # `shoal pull` takes, for memory that the system takes back at once. It leaves out the frozen.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    entry()
