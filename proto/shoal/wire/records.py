"""Values that nobody changes once they are made, and that are made by the thousand.

`record` is `dataclass` to the type checker, which refuses every assignment to a frozen one. At run
time nothing stands guard: setting a guarded field is a call, and events, effects, frames and
messages are made several times for each piece. They compare and hash by their fields.
"""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen: bool, **options: bool):
        """`dataclass`, frozen for the type checker alone."""
        assert frozen, "records are never changed"
        return dataclasses.dataclass(unsafe_hash=True, **options)


__all__ = ["record"]
