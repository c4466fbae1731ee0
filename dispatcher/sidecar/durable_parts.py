"""What `durable` is made of: how a caller's patience is heard, what is on its way to the disk, who waits.

Nothing here knows a request or a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.sidecar.dialect import Dialect

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from dispatcher.outbox import Stored

AT_ONCE: Final = 0.0
"""The wait of a caller who asked for `respond-async`."""


class DurableDialect(Dialect):
    """Also hears `Prefer: respond-async` (RFC 7240, section 4.1): no wait at all."""

    def wait_of(self, preferences: Iterable[str]) -> float | None:
        """As the `Dialect`'s; 0 of a caller who wants no more than that its message is kept."""
        wishes = [wish for line in preferences for wish in line.split(",")]
        if any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes):
            return AT_ONCE
        return super().wait_of(wishes)


class Uncommitted:
    """What is on its way to the disk: the room that bodies and messages ask for, like a dispatcher's."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.held_messages = 0
        self.held_bytes = 0
        self.waiting = 0
        """Callers that wait for it."""

    @property
    def is_full(self) -> bool:
        """Nothing more before something is committed."""
        return self.held_messages >= self.max_messages or self.held_bytes >= self.max_bytes


class Group:
    """Messages of one commit, and the callers that wait for them."""

    __slots__ = ("committed", "left", "messages", "size_bytes", "timer", "waiters")

    def __init__(self, committed: asyncio.Future[None]) -> None:
        self.committed = committed
        self.messages = 0
        self.size_bytes = 0
        self.waiters: list[tuple[Stored, asyncio.Future[None]]] = []
        self.left = 0
        """Callers that were not answered yet."""
        self.timer: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        """One was answered, or has gone."""
        self.left -= 1
        if not self.left and self.timer is not None:
            self.timer.cancel()


def release(waiters: Iterable[tuple[Stored, asyncio.Future[None]]]) -> None:
    """Have these wait no longer."""
    for _, waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
