"""The body of one HTTP answer as bytes of a range, counted to the byte.

Knows how many bytes must come, and raises when fewer or more do. aiohttp cuts the body out of its
framing; this module only copies its chunks into the reader's memory and never keeps more than one.
"""

from collections.abc import Callable

import aiohttp

from peer.shell.errors import OriginError
from peer.shell.origin.http_answer import Answer
from peer.shell.origin.http_errors import RAISED
from shoal.wire.errors import Reason


class HttpBody:
    """An `OriginBody` over an aiohttp response.

    `start_byte`, `end_byte`: the half-open range that was asked for, `end_byte` None for the end.
    `size_bytes`: the size that the task began with, None if it is not known yet.
    """

    def __init__(
        self,
        host: str,
        response: aiohttp.ClientResponse,
        answer: Answer,
        *,
        start_byte: int,
        end_byte: int | None,
        size_bytes: int | None,
        translate: Callable[[Exception, str], OriginError],
    ) -> None:
        self._host = host
        self._response = response
        self._translate = translate
        self._size_bytes = answer.size_bytes
        self._skip_bytes = start_byte - answer.start_byte
        size = answer.size_bytes if size_bytes is None else size_bytes
        end = end_byte if end_byte is not None else size
        if end is None:
            end = answer.end_byte
        # A whole content given for a range rightly goes on behind it, and the answer of 416 is a
        # page of text; all other bodies must end with the range.
        body_end = answer.end_byte if answer.ranges else size
        self._ends_with_body = response.status != 416 and body_end in (None, end)
        self._expected_bytes = None if end is None else end - answer.start_byte
        self._received_bytes = 0
        self._chunk = memoryview(b"")

    @property
    def size_bytes(self) -> int | None:
        """Size of the whole content, None if the answer does not tell it."""
        return self._size_bytes

    @property
    def skip_bytes(self) -> int:
        """Bytes before the start that was asked for: an origin without ranges sends them all."""
        return self._skip_bytes

    async def wait(self) -> bool:
        """Waits until there are bytes to receive; False at the end. Raises OriginError."""
        expected = self._expected_bytes
        if expected is not None and self._received_bytes >= expected:
            return False
        if not self._chunk:
            self._chunk = memoryview(await self._next())
            if not self._chunk and expected is not None:
                raise self._short(expected)
        return bool(self._chunk)

    async def receive_into(self, view: memoryview) -> int:
        """Puts the next bytes into a prefix of the view; 0 at the end. Raises OriginError."""
        if not view or not await self.wait():
            return 0
        expected = self._expected_bytes
        room = len(view) if expected is None else min(len(view), expected - self._received_bytes)
        count = min(room, len(self._chunk))
        view[:count] = self._chunk[:count]
        self._chunk = self._chunk[count:]
        self._received_bytes += count
        return count

    async def finish(self) -> None:
        """Raises OriginError if the origin sends more than it announced. Does nothing where the
        body goes on rightly, because the origin can't cut ranges."""
        if self._ends_with_body and (self._chunk or await self._next()):
            raise OriginError(
                Reason.ORIGIN_CHANGED,
                f"{self._host} sent more than the {self._received_bytes} bytes expected",
            )

    async def _next(self) -> bytes:
        try:
            # One chunk as it came: all that has come, in one piece, would be a copy of it.
            content = self._response.content
            chunk, _ = await content.readchunk()
            while not chunk and not content.at_eof():
                chunk, _ = await content.readchunk()
            return chunk
        except RAISED as error:
            if isinstance(error, aiohttp.ClientPayloadError) and self._expected_bytes is not None:
                raise self._short(self._expected_bytes) from None
            raise self._translate(error, self._host) from None

    def _short(self, expected: int) -> OriginError:
        received = self._received_bytes + len(self._chunk)
        return OriginError(
            Reason.ORIGIN_FAILED,
            f"{self._host} ended its answer after {received} of {expected} bytes",
        )
