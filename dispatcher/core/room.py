"""Room: how much may be held, and who waits for more.

Numbers only: a waiter is any object of the caller's, handed back when its room is reserved. Waiters are
served first come first served (a large head blocks smaller ones: that is fair), and only once what is
held has fallen below `resume_below`, so that a full queue does not wake a producer for each message.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")

SWEEP_AT_LEAST: Final = 64
"""Cancelled tickets are swept out of the line when there are more of them than this and those who wait."""


class Ticket(Struct, Generic[T], eq=False):
    """One waiter's place in the line."""

    waiter: T
    size_bytes: int
    is_cancelled: bool = False


class Room(Generic[T]):
    """Counts of messages and bytes under two bounds.

    Room is reserved on admission and released when a message settles.
    """

    __slots__ = ("_line", "_resume_below", "_resume_bytes", "_resume_messages", "_resuming", "_waiting",
                 "held_bytes", "held_messages", "max_bytes", "max_messages")  # fmt: skip

    def __init__(self, max_messages: int, max_bytes: int, resume_below: float) -> None:
        self._resume_below = resume_below
        self.resize(max_messages, max_bytes)
        self.held_messages = 0
        self.held_bytes = 0
        self._line: deque[Ticket[T]] = deque()
        self._waiting = 0
        self._resuming = False

    def resize(self, max_messages: int, max_bytes: int) -> None:
        """Other bounds from now on; what is held above them stays held, and nothing more is taken."""
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._resume_messages = max_messages * self._resume_below
        self._resume_bytes = max_bytes * self._resume_below

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return self._waiting

    def try_take(self, size_bytes: int) -> bool:
        """Reserve room for one message now; never past those who wait."""
        messages, held_bytes = self.held_messages, self.held_bytes + size_bytes
        if self._waiting or (messages and (messages >= self.max_messages or held_bytes > self.max_bytes)):
            return False
        self.held_messages = messages + 1
        self.held_bytes = held_bytes
        return True

    def reserve(self, messages: int, size_bytes: int) -> tuple[int, int]:
        """Reserve room for up to so many messages and bytes; what was reserved, to be used or released."""
        if self._waiting:
            return 0, 0
        messages = max(0, min(messages, self.max_messages - self.held_messages))
        size_bytes = max(0, min(size_bytes, self.max_bytes - self.held_bytes))
        self.held_messages += messages
        self.held_bytes += size_bytes
        return messages, size_bytes

    def wait(self, waiter: T, size_bytes: int) -> Ticket[T]:
        """Join the line."""
        ticket = Ticket(waiter, size_bytes)
        self._line.append(ticket)
        self._waiting += 1
        return ticket

    def cancel(self, ticket: Ticket[T]) -> None:
        """Leave the line; a granted ticket is no longer in it (its room is released by settling)."""
        if not ticket.is_cancelled:
            ticket.is_cancelled = True
            self._waiting -= 1
            if len(self._line) > 2 * self._waiting + SWEEP_AT_LEAST:
                self._line = deque(each for each in self._line if not each.is_cancelled)

    def release(self, messages: int, size_bytes: int) -> None:
        """Give back what settled."""
        self.held_messages -= messages
        self.held_bytes -= size_bytes
        assert self.held_messages >= 0, "more was released than taken"
        assert self.held_bytes >= 0, "more bytes were released than taken"

    def grants(self) -> list[T]:
        """The waiters whose room is reserved by this call, in the order in which they came."""
        granted: list[T] = []
        while self._waiting:
            ticket = self._line[0]
            if ticket.is_cancelled:
                self._line.popleft()
                continue
            if not self._may_grant(ticket.size_bytes):
                break
            self._line.popleft()
            ticket.is_cancelled = True  # served: a later cancel must not count it again
            self._waiting -= 1
            self.held_messages += 1
            self.held_bytes += ticket.size_bytes
            granted.append(ticket.waiter)
        if not self._waiting:
            self._line.clear()
            self._resuming = False
        return granted

    def dismiss(self) -> list[T]:
        """Everyone who waits, sent away without room."""
        dismissed = [ticket.waiter for ticket in self._line if not ticket.is_cancelled]
        for ticket in self._line:
            ticket.is_cancelled = True
        self._line.clear()
        self._waiting = 0
        return dismissed

    def _may_grant(self, size_bytes: int) -> bool:
        if not self._resuming:
            self._resuming = (
                self.held_messages < self._resume_messages and self.held_bytes < self._resume_bytes
            ) or self.held_messages == 0
        if self._resuming and not self._fits(size_bytes):
            self._resuming = self.held_messages == 0
        return self._resuming and self._fits(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        if self.held_messages == 0:
            return True  # an encoding above the whole bound must not wait for ever
        return self.held_messages < self.max_messages and self.held_bytes + size_bytes <= self.max_bytes
