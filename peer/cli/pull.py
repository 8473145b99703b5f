"""`shoal pull`: a model or an image from a registry into a directory, through the node's daemon or
by itself.

The command line and what is told at the end; `peer.cli.pull_work` does what lies between.
"""

import time
from collections.abc import Sequence

from peer.cli.get_options import UsageProblem
from peer.cli.local_client import DaemonError
from peer.cli.outcome import disk_reason
from peer.cli.pull_options import Wish, parser
from peer.cli.pull_result import Result, print_result
from peer.shell.errors import DownloadError
from shoal.wire.errors import UsageError


def run(_name: str, arguments: Sequence[str]) -> int:
    """Runs `shoal pull`; returns the exit code."""
    options = parser("pull").parse_args(arguments)
    # What `shoal get` lets its users choose.
    options.transfer_from_dfdaemon = False
    result = Result(options.reference, options.output)
    began = time.monotonic()
    try:
        wish = Wish(options)
        # It loads an HTTP client: not for `--help`, nor for arguments that make no sense.
        from peer.cli.pull_work import pull

        pull(wish, result)
    except (UsageError, UsageProblem) as error:
        result.end.fail("usage", str(error))
    except (DownloadError, DaemonError) as error:
        result.end.fail(str(error.reason), error.detail)
    except OSError as error:
        result.end.fail(disk_reason(error), str(error))
    except KeyboardInterrupt:
        result.end.fail("interrupted", "stopped; run the same command again to resume")
    print_result(options, result, time.monotonic() - began)
    return result.end.exit_code
