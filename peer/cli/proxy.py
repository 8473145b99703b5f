"""`shoal proxy ca`: makes the CA by which the proxy opens TLS, in a directory. Starts nothing."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal.wire.errors import UsageError

CERTIFICATE: Final = "ca.pem"
KEY: Final = "ca-key.pem"


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="shoal proxy")
    commands = parser.add_subparsers(dest="command", required=True)
    ca = commands.add_parser(
        "ca",
        help="make a CA for proxy.intercept",
        description="Makes a CA whose certificates the proxy shows to clients that trust it. Its "
        f"key, {KEY}, is for the daemon alone: keep it on this host.",
    )
    ca.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    ca.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host, with all names below it, or an IP address that the CA may speak for, and "
        "for no other; may be repeated. Without any: for all hosts",
    )
    ca.add_argument("--name", default="", help="the CA's name; default: one with this host's")
    return parser


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        make(options.out, options.host, options.name)
    except UsageError as error:
        sys.stderr.write(f"shoal {name} {options.command}: {error}\n")
        return 2
    sys.stdout.write(
        f"{options.out / CERTIFICATE}: for clients to trust, as in SSL_CERT_FILE\n"
        f"{options.out / KEY}: for the daemon alone\n"
        "[proxy]\n"
        f'ca_cert = "{(options.out / CERTIFICATE).absolute()}"\n'
        f'ca_key = "{(options.out / KEY).absolute()}"\n'
    )
    return 0


def make(directory: Path, hosts: Sequence[str], name: str) -> None:
    """Writes certificate and key. Raises UsageError; overwrites nothing."""
    from peer.shell.proxy.certificates import NAME_CHARACTERS_MAX, make_ca
    from peer.shell.proxy.contexts import utc_now
    from peer.shell.proxy.targets import parse_pattern

    for host in hosts:
        pattern = parse_pattern(host)
        if pattern.port is not None or "*" in pattern.host:
            raise UsageError(f"--host {host}: give a name or an address alone")
    name = name or f"shoal proxy {socket.gethostname()}"
    made = make_ca(name[:NAME_CHARACTERS_MAX], [host.strip("[]") for host in hosts], utc_now())
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The key first: a certificate without its key would be of no use to anybody.
        _write(directory / KEY, made.key, 0o600)
        _write(directory / CERTIFICATE, made.certificate, 0o644)
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename} exists: remove it if no client trusts it any longer, or give "
            "another directory"
        ) from None
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from None


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
