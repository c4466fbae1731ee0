"""What `put` gives: a `Delivery`, the admitted message as its producer sees it.

It *is* the core's entry, so a message costs one record. Futures are made for those who wait and only then;
there is no callback for a message. Waiting for it is a matter of the waiter: cancelling one cancels nothing
else.

It is outside the garbage collector's care, which would walk over all that is held again and again (0.7 µs a
message), and so must be in no reference cycle once it has settled: its `Home` forgets the dispatcher as that
closes, and it raises copies of its error, since a raised one refers to every frame it passed, and these to
the delivery.
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING, Any

from dispatcher.core.batch import SETTLED, Entry, Run
from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from dispatcher.errors import DeliveryError

Waiter = asyncio.Future[None]


class Home:
    """What the deliveries of one dispatcher have in common."""

    __slots__ = ("loop", "take_back")

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None, take_back: Callable[[Entry], bool] | None
    ) -> None:
        self.loop = loop
        self.take_back = take_back
        """Withdraws a message that has not left; `None` once the dispatcher has ended."""


class Delivery(Entry, eq=False, gc=False):
    """One admitted message; await it, any number of times, for its receipt.

    Raises on awaiting:
        DeliveryError: The message was not confirmed; the error's class says why, `certainty` what is known.
    """

    home: Any = None
    """A `Home`."""
    waiters: Any = None
    """One future or a list of them; locks where threads wait (`blocking.handover`)."""
    is_withdrawn: bool = False

    def __await__(self) -> Generator[Any, None, Receipt]:
        if self.outcome is None:
            yield from self.wait().__await__()
        return self.result()

    def done(self) -> bool:
        """Has it settled, either way?"""
        return self.outcome is not None

    def result(self) -> Receipt:
        """The receipt of a settled delivery.

        Raises:
            DeliveryError: It failed.
            asyncio.InvalidStateError: It has not settled yet.
        """
        outcome = self.outcome
        if isinstance(outcome, Receipt):
            return outcome
        if outcome is None:
            raise asyncio.InvalidStateError("the delivery has not settled; await it")
        raise copy(outcome)

    def exception(self) -> DeliveryError | None:
        """The error of a settled delivery that failed, `None` of one that is delivered.

        Raises:
            asyncio.InvalidStateError: It has not settled yet.
        """
        if self.outcome is None:
            raise asyncio.InvalidStateError("the delivery has not settled; await it")
        return None if isinstance(self.outcome, Receipt) else copy(self.outcome)

    def withdraw(self) -> bool:
        """Take the message back; false if it is too late because it may have left."""
        take_back = self.home.take_back
        return self.outcome is None and take_back is not None and take_back(self)

    def wait(self) -> Waiter:
        """A future of the dispatcher's loop that is done once this has settled."""
        waiter: Waiter = self.home.loop.create_future()
        waiters: Waiter | list[Waiter] | None = self.waiters
        if self.outcome is not None:
            waiter.set_result(None)
        elif waiters is None:
            self.waiters = waiter
        elif isinstance(waiters, list):
            waiters.append(waiter)
        else:
            self.waiters = [waiters, waiter]
        return waiter

    def wake(self) -> bool:
        """Wake everyone who waits; false if nobody did. Called by the pump once it has settled."""
        waiters, self.waiters = self.waiters, None
        if type(waiters) is not list:
            if waiters is None or waiters.done():
                return False
            waiters.set_result(None)
            return True
        woken = [waiter for waiter in waiters if not waiter.done()]
        for waiter in woken:
            waiter.set_result(None)
        return bool(woken)

    def __repr__(self) -> str:
        if self.outcome is None:
            state = "pending"
        else:
            state = "delivered" if isinstance(self.outcome, Receipt) else type(self.outcome).__name__
        return f"<Delivery {state} of {self.message!r}>"


class HandedRun(Run, eq=False, kw_only=True):
    """Deliveries that were admitted in one turn, each of them in someone's hands."""

    handles: Sequence[Delivery]

    def entry(self, index: int) -> Delivery:
        """One of them."""
        return self.handles[index]

    def wake(self) -> None:
        """Give each its receipt, and wake who waits. Called by the pump once the run is delivered."""
        assert self.receipts is not None
        for delivery, receipt in zip(self.handles, self.receipts, strict=True):
            delivery.outcome = receipt
            delivery.state = SETTLED
            if delivery.waiters is not None:
                delivery.wake()


class DeliveryRun(Run, eq=False):
    """Messages of one `send_many` or `stream` that are not looked at one by one, unless something happens."""

    home: Any = None
    waiter: Waiter | None = None

    def entry(self, index: int) -> Delivery:
        """One of its messages as a delivery."""
        return Delivery(
            self.messages[index],
            self.items[index],
            None,
            self.deduplication_ids[index],
            True,
            True,
            self.admitted_at,
            self.deadline,
            None,
            self.home,
            self.is_claimed,
        )

    def open(self) -> list[Entry]:
        """Its messages as deliveries; who waits for the run waits for the first of them then."""
        entries = Run.open(self)
        if self.waiter is not None:
            first = entries[0]
            assert isinstance(first, Delivery)
            first.waiters, self.waiter = self.waiter, None
        return entries

    def disclaim(self) -> None:
        """Nobody will look at the outcomes."""
        self.is_claimed = False
        for entry in self.entries or ():
            entry.is_claimed = False

    def wait(self) -> Waiter:
        """A future that is done once it has settled as a whole, or its first message has."""
        waiter: Waiter = self.home.loop.create_future()
        self.waiter = waiter
        return waiter

    def wake(self) -> None:
        """Wake who waits. Called by the pump once it has settled as a whole."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
