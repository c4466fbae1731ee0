"""Bodies that are not here yet: let in while there is room for them, read within bounds.

A small body comes with its head and never passes here. For any other the sidecar needs memory before it is a
message, so it stays in the caller's socket until messages have room again and the bodies being read together
stay below a bound. Those who wait are let in first come first served. Used by `intake`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from dispatcher.errors import QueueFull
from dispatcher.sidecar import refusals
from dispatcher.sidecar.dialect import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dispatcher.core.room import Room
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.server import Request

UNKNOWN_BYTES: Final = 65_536
"""What a body of undeclared length is let in with; it asks for more as it grows."""
LOOK_AGAIN: Final = 0.5
"""Seconds after which who is first in the line looks again: room may come without a request's end."""


class Bodies:
    """Reads the bodies of requests.

    Args:
        room: The dispatcher's: nothing is let in while messages wait for it.
        budget_bytes: What the bodies that are being read may have together; one alone may have more.
        patience: Seconds that a caller waits to be let in.
    """

    def __init__(self, room: Room[Any], budget_bytes: int, patience: float, counters: IntakeCounters) -> None:
        self.reading_bytes = 0
        self._room = room
        self._budget_bytes = budget_bytes
        self._patience = patience
        self._counters = counters
        self._line: deque[asyncio.Event] = deque()

    @asynccontextmanager
    async def read(
        self, request: Request, max_bytes: int, patience: float | None = None
    ) -> AsyncIterator[bytes]:
        """The body, while its memory is accounted for.

        Args:
            patience: Seconds that this caller waits, if it has less.

        Raises:
            Refused: It is longer than `max_bytes`, or broken.
            QueueFull: There was no room for it in time.
        """
        declared = request.content_length
        if declared is not None and declared > max_bytes:
            raise too_large(max_bytes)
        size = UNKNOWN_BYTES if declared is None else declared
        if self._line or not self._may_enter(size):
            await self._wait(size, self._patience if patience is None else min(patience, self._patience))
        lease = Lease(self, size)
        try:
            yield await self._read(request, max_bytes, lease)
        finally:
            self.reading_bytes -= lease.size_bytes
            self.wake()

    @contextmanager
    def lend(self) -> Iterator[Lease]:
        """Memory for what is read bit by bit, and let go of in between."""
        lease = Lease(self, 0)
        try:
            yield lease
        finally:
            lease.shrink_to(0)

    def wake(self) -> None:
        """Have who is first in the line look again."""
        if self._line:
            self._line[0].set()

    def _may_enter(self, size_bytes: int) -> bool:
        room = self._room
        has_room = room.held_messages < room.max_messages and room.held_bytes < room.max_bytes
        fits = not self.reading_bytes or self.reading_bytes + size_bytes <= self._budget_bytes
        return has_room and fits and not room.waiting

    async def _wait(self, size_bytes: int, patience: float) -> None:
        turn = asyncio.Event()
        self._line.append(turn)
        self._counters.waiting(1)
        try:
            async with asyncio.timeout(patience):
                while self._line[0] is not turn or not self._may_enter(size_bytes):
                    turn.clear()
                    await _set_within(turn, LOOK_AGAIN)
        except TimeoutError:
            raise self.full() from None
        finally:
            self._counters.waiting(-1)
            self._line.remove(turn)
            asyncio.get_running_loop().call_soon(self.wake)  # once this one's bytes are counted

    def full(self) -> QueueFull:
        """There is no room."""
        room = self._room
        return QueueFull(room.held_messages, room.max_messages, room.held_bytes, room.max_bytes)

    async def _read(self, request: Request, max_bytes: int, lease: Lease) -> bytes:
        content, parts, size = request.content, list[bytes](), 0  # (this asks a caller for it that waits)
        try:
            while part := await content.readany():
                size += len(part)
                if size > max_bytes:
                    raise too_large(max_bytes)
                lease.grow_to(size)
                parts.append(part)
        except web.RequestPayloadError as error:
            raise broken(error) from None
        return b"".join(parts)

    def grow(self, size_bytes: int, *, is_alone: bool) -> None:
        """Account for more bytes of a body of undeclared length; see `Lease`."""
        if self.reading_bytes + size_bytes > self._budget_bytes and not is_alone:
            raise self.full()
        self.reading_bytes += size_bytes


class Lease:
    """The memory that one body has."""

    __slots__ = ("_bodies", "size_bytes")

    def __init__(self, bodies: Bodies, size_bytes: int) -> None:
        self._bodies = bodies
        self.size_bytes = 0
        self._take(size_bytes, is_alone=True)

    def shrink_to(self, size_bytes: int) -> None:
        """It needs no more than this any longer."""
        if size_bytes < self.size_bytes:
            self._bodies.reading_bytes -= self.size_bytes - size_bytes
            self.size_bytes = size_bytes
            self._bodies.wake()

    def grow_to(self, size_bytes: int) -> None:
        """It has become so large. Raises `QueueFull` if there is no room for that."""
        if size_bytes > self.size_bytes:
            is_alone = self.size_bytes == self._bodies.reading_bytes
            self._take(max(size_bytes - self.size_bytes, self.size_bytes), is_alone=is_alone)

    def _take(self, size_bytes: int, *, is_alone: bool) -> None:
        self._bodies.grow(size_bytes, is_alone=is_alone)
        self.size_bytes += size_bytes


def too_large(max_bytes: int) -> Refused:
    """A body above its bound."""
    return Refused(413, f"request too large, the limit is {max_bytes} bytes")


def broken(error: Exception) -> Refused:
    """A body that ended early, stopped coming or was not framed as announced."""
    if isinstance(error, refusals.Refused):  # of ours: it knows its status
        return Refused(error.status, f"the body could not be read: {error.text}")
    return Refused(400, f"the body could not be read: {' '.join(str(error).split())}")


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for it, no longer than so."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
