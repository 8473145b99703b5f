"""Every cap of the protocol, each with its unit and the reason for its value.

What bounds a core alone is in the core's own `limits`.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024
GIB: Final = 1024 * 1024 * 1024
MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000

PIECE_LENGTH_BYTES_MIN: Final = 256 * KIB
"""Below this the cost per piece (frames, hashing calls, bookkeeping) outweighs its bytes."""

PIECE_LENGTH_BYTES_MAX: Final = 8 * MIB
"""A piece is held in memory until it is verified; larger ones would eat the buffer budget."""

PIECE_LENGTH_BYTES_USUAL: Final = 512 * KIB
"""Contents of more than 16 MiB have no shorter pieces: each piece costs a host a millisecond or two
of CPU in all, however short."""

PIECES_PER_TASK_FEW: Final = 64
"""Pieces that a shorter content is cut into at least, as far as they may be that short."""

PIECES_PER_TASK_TARGET: Final = 1024
"""Pieces that a task is cut into where the bounds above allow it."""

PIECES_PER_TASK_MAX: Final = 1 << 20
"""8 TiB at the largest piece; bounds bitmaps to 128 KiB."""

RUN_BYTES_MAX: Final = 64 * MIB
"""The largest unit of leases and of the swarm map; larger ones leave the last host waiting."""

UNIT_BYTES_MIN: Final = 1 * MIB
"""The least unit that is dealt out to stripes and read from the origin at once."""

UNIT_BYTES_MAX: Final = RUN_BYTES_MAX

UNIT_BYTES_USUAL: Final = 2 * MIB
"""Collections of more than 64 MiB have no shorter units: some origins do as much for a short
request as for a longer one. docker-registry reads 4 MiB of a blob before it answers."""

MAP_UNITS_FEW: Final = 64
"""A collection has at most so many units of the least length; a larger one has longer units."""

MAP_UNITS_TARGET: Final = 512
"""Units that a collection is cut into where the bounds above allow it: enough that the last one
costs a five hundredth, few enough to tell everybody of everybody's."""

STRIPES_MAX: Final = 64
"""Trees of one swarm that a host can be told of; a handful is the best that simulations know."""

DIRECTORY_HOSTS_MAX: Final = 1 << 20
"""Numbers that hosts of one swarm get, one after the other, while it lasts."""

MAP_CHANGES_MAX: Final = 65_536
"""Entries of each kind in one map: some ten bytes each, so that they fit a message. A larger map
is told in several."""

FRAME_BYTES_MAX: Final = 256 * KIB
"""Longest frame without payload: a bitmap of the largest task and its envelope."""

REQUESTS_PER_FRAME_MAX: Final = 256
"""More than a full pipeline of one parent."""

RANGES_PER_FRAME_MAX: Final = 8192
"""Worst case of alternating pieces still fits a frame; a longer list is split."""

COLLECTION_TASKS_MAX: Final = 10_000
"""Files of the largest model repositories seen, times ten."""

ADDRESSES_PER_HOST_MAX: Final = 16
HOST_ID_CHARACTERS_MAX: Final = 64
VALIDATOR_CHARACTERS_MAX: Final = 1024
TEXT_CHARACTERS_MAX: Final = 2048
"""Free text from another host (an error's detail) is cut to this before it is kept."""

HOLDER_TASKS_MAX: Final = 1024
"""Tasks in one question for holders: files of the largest model repositories seen. Its answer is
worked out at once, over every holder of each, so more are asked in several questions."""

STATEMENTS_PER_MESSAGE_MAX: Final = 8192
"""Piece digests in one control message: about 200 kB, well under gRPC's own 4 MiB."""

CONTROL_MESSAGE_BYTES_MAX: Final = 4 * MIB
