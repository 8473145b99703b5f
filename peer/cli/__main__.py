"""`python -m peer.cli` is `shoal`."""

from peer.cli.main import entry

entry()
