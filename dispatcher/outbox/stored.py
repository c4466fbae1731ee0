"""What `Outbox.put` gives: a message that is durable, to be awaited for its receipt. Made by `outbox`."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING, Any

from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Generator

    from dispatcher.errors import DispatcherError, OutboxError
    from dispatcher.outbox.watching import Watching


class Stored:
    """One accepted message; await it for its receipt, which may take as long as an outage.

    Raises on awaiting:
        MessageRejected: The service refused it: it is a dead letter.
        OutcomeUnknown: It may have been sent, and `after_window` is `fail`: it is a dead letter.
        OutboxError: Nothing is known of it any more, or the outbox was closed: it stays in the store.
    """

    __slots__ = ("_waiter", "_watching", "committed", "deduplication_id", "id", "outcome", "refusal")

    def __init__(
        self, identity: str, deduplication_id: str | None, committed: asyncio.Future[None], watching: Watching
    ) -> None:
        self.id = identity
        """`out_…`, for `find` and `cancel`."""
        self.deduplication_id = deduplication_id
        """What makes every repetition safe; `None` of a message that is deduplicated by its content."""
        self.committed = committed
        """Done once it is durable or refused; shared by all that were committed together."""
        self.refusal: OutboxError | None = None
        """Why it was not kept."""
        self.outcome: Receipt | DispatcherError | None = None
        """Set once it is known here."""
        self._waiter: asyncio.Future[None] | None = None
        self._watching = watching

    def __await__(self) -> Generator[Any, None, Receipt]:
        if self.outcome is None:
            yield from self._watching.wait_for(self).__await__()
        return self.result()

    def result(self) -> Receipt:
        """The receipt, once the outcome is known here.

        Raises:
            DispatcherError: It failed.
            asyncio.InvalidStateError: It is not known.
        """
        if isinstance(self.outcome, Receipt):
            return self.outcome
        if self.outcome is None:
            raise asyncio.InvalidStateError("the message has not settled; await it")
        raise copy(self.outcome)

    def wait(self) -> asyncio.Future[None]:
        """A future that is done once `tell` was called; shared by all who wait."""
        if self._waiter is None or self._waiter.done():
            self._waiter = self.committed.get_loop().create_future()
            if self.outcome is not None:
                self._waiter.set_result(None)
        return self._waiter

    def tell(self, outcome: Receipt | DispatcherError) -> None:
        """This is what became of it."""
        self.outcome = outcome
        self.wake()

    def wake(self) -> None:
        """Have those who wait look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __repr__(self) -> str:
        if self.outcome is None:
            state = "accepted"
        else:
            state = "delivered" if isinstance(self.outcome, Receipt) else type(self.outcome).__name__
        return f"<Stored {self.id} {state}>"
