"""Messages into the outbox: durable first, answered then. The sidecar's other way in, beside `submission`.

It has the interface that `intake` and `bulk` use of a `Submission`. What is accepted within one turn of the
loop is one commit. A caller is told the service's own id if that comes within its patience, else the
outbox's; never anything before the commit. A caller that goes changes nothing: what it handed in is kept and
sent. Where the upstream is away or refuses us, messages are accepted all the same.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import AdmissionError, DispatcherError, OutboxError, StoreFull
from dispatcher.outbox import Stored
from dispatcher.sidecar.alone import Alone
from dispatcher.sidecar.answers import Accepted
from dispatcher.sidecar.dialect import Refused
from dispatcher.sidecar.durable_parts import AT_ONCE, Group, Uncommitted, release
from dispatcher.sidecar.durable_window import DurableWindow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.core.room import Room
    from dispatcher.message import Message, Receipt
    from dispatcher.outbox import Outbox
    from dispatcher.sidecar.answers import Outcome
    from dispatcher.sidecar.counters import IntakeCounters

ROOM_BYTES: Final = 16_384
"""What a message has beside its body, amply."""

Place = Stored | DispatcherError | Refused
"""What stands in a message's place."""


class DurableSubmission:
    """The sidecar's way into an outbox.

    Args:
        respond_after: Seconds that a caller waits for the service's id once its message is durable.
        patience: Seconds that a message waits while too much is on its way to the disk.
        room: Bounds of that, as the dispatcher has them for what it holds.
    """

    def __init__(
        self,
        outbox: Outbox,
        respond_after: float,
        patience: float,
        room: Room[Any],
        counters: IntakeCounters,
    ) -> None:
        self.patience = patience
        self.room = Uncommitted(room.max_messages, room.max_bytes)
        self._outbox = outbox
        self._respond_after = respond_after
        self._counters = counters
        self._group: Group | None = None

    # ------------------------------------------------------------------------------------------- accepting

    def has_room(self, _size_bytes: int) -> bool:
        """Whether so much more may be on its way to the disk."""
        return not self.room.is_full

    def check_halt(self) -> None:
        """The upstream may refuse us: what is accepted waits for better days."""

    def accept(self, message: Message) -> Stored:
        """Have it committed with this turn's.

        Raises:
            AdmissionError: The service would refuse it.
            OutboxError: The outbox is closed.
        """
        message.deliver_within = None  # of its caller's patience, not of the message
        stored = self._outbox.accept(message)
        group = self._group
        if group is None or group.committed is not stored.committed:
            self._group = group = Group(stored.committed)
            group.committed.add_done_callback(lambda _: self._on_commit(group))
        size = len(message.body or b"") + ROOM_BYTES
        group.messages += 1
        group.size_bytes += size
        self.room.held_messages += 1
        self.room.held_bytes += size
        return stored

    def _on_commit(self, group: Group) -> None:
        self.room.held_messages -= group.messages
        self.room.held_bytes -= group.size_bytes
        for stored, waiter in group.waiters:
            if stored.refusal is not None and not waiter.done():
                waiter.set_result(None)
        if group.left:
            loop = asyncio.get_running_loop()
            group.timer = loop.call_later(self._respond_after, release, group.waiters)
        else:
            group.waiters = []

    async def send(self, message: Message) -> Receipt:
        """Keep it; its receipt, or an `Accepted` if that does not come in time.

        Raises:
            DispatcherError: It was not kept, or the service refused it.
        """
        wait = message.deliver_within
        stored = self.accept(message)
        if wait == AT_ONCE:
            await committed(stored)
            return Accepted(stored.id)
        group = self._group
        assert group is not None
        self._outbox.watch(stored)
        waiter = stored.wait()
        group.waiters.append((stored, waiter))
        group.left += 1
        timer = None
        if wait is not None and wait < self._respond_after:
            timer = asyncio.get_running_loop().call_later(wait, self._release_when_kept, stored, waiter)
        try:
            await waiter
        finally:
            self._outbox.forget(stored)
            group.leave()
            if timer is not None:
                timer.cancel()
        if stored.refusal is not None:
            raise stored.refusal
        return receipt_of(stored)

    @staticmethod
    def _release_when_kept(stored: Stored, waiter: asyncio.Future[None]) -> None:
        if stored.committed.done():
            release([(stored, waiter)])
        else:
            stored.committed.add_done_callback(lambda _: release([(stored, waiter)]))

    async def send_patiently(self, message: Message) -> Receipt:
        """As `send`, waiting until less is on its way to the disk."""
        await self._wait_for_room(asyncio.get_running_loop().time() + self.patience)
        return await self.send(message)

    async def _wait_for_room(self, until: float) -> None:
        """Raises `StoreFull` if there is no room by that instant of the loop's clock."""
        self._counters.waiting(1)
        self.room.waiting += 1
        try:
            async with asyncio.timeout_at(until):
                while self.room.is_full:
                    assert self._group is not None
                    await asyncio.shield(self._group.committed)
                    await asyncio.sleep(0)  # its callback counts
        except TimeoutError:
            held, most = self.room.held_messages, self.room.max_messages
            raise StoreFull(
                f"the disk is too slow: {held} of {most} messages are on their way to it"
            ) from None
        finally:
            self.room.waiting -= 1
            self._counters.waiting(-1)

    def count(self, message: Message) -> None:
        """Count it if it is sent alone."""
        if isinstance(message, Alone):
            self._counters.alone(message.reason)

    # ------------------------------------------------------------------------------------------ JSON batches

    def place_now(self, message: Message | Refused) -> Place | None:
        """What becomes of a message that needs no waiting, `None` of one that does."""
        if isinstance(message, Refused):
            return message
        return None if self.room.is_full else self._place(message)

    async def place(self, message: Message, until: float) -> Place:
        """The same, waiting for room until an instant of the loop's clock."""
        try:
            await self._wait_for_room(until)
        except StoreFull as error:
            return error
        return self._place(message)

    def _place(self, message: Message) -> Place:
        wants_receipt = message.deliver_within != AT_ONCE
        try:
            stored = self.accept(message)
        except (AdmissionError, OutboxError) as error:
            return error
        if wants_receipt:
            self._outbox.watch(stored)
        self.count(message)
        return stored

    async def outcomes(self, places: Sequence[Place], wait: float | None) -> list[Outcome]:
        """What became of each; `wait` is the caller's own, in seconds."""
        try:
            for place in places:
                if isinstance(place, Stored) and not place.committed.done():
                    await asyncio.shield(place.committed)
            if wait != AT_ONCE:
                await self._wait_for_receipts(places, wait or self._respond_after)
            return [outcome_of(place) for place in places]
        finally:
            self.take_back(places)

    @staticmethod
    async def _wait_for_receipts(places: Sequence[Place], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                for place in places:
                    if isinstance(place, Stored) and place.refusal is None and place.outcome is None:
                        await place.wait()
        except TimeoutError:
            pass

    def take_back(self, places: Iterable[Place]) -> None:
        """Their caller has its answer, or has gone; nothing that was accepted is taken back."""
        for place in places:
            if isinstance(place, Stored):
                self._outbox.forget(place)

    # ---------------------------------------------------------------------------------------------- streams

    def window(self) -> DurableWindow:
        """An empty one."""
        return DurableWindow(self._outbox, self._respond_after)

    async def put_many(self, messages: Sequence[Message], places: DurableWindow, patience: float) -> None:
        """Accept all of them in one commit; each waits for room for the patience, in seconds.

        What becomes of them stands in `places`, in their order. Returns before they are durable, unless too
        much is on its way to the disk.
        """
        wait = messages[0].deliver_within
        if self.room.is_full:
            try:
                await self._wait_for_room(asyncio.get_running_loop().time() + (patience or self.patience))
            except StoreFull as error:
                for _ in messages:
                    places.append(error)
                return
        accept, run = self.accept, list[Stored | DispatcherError]()
        for message in messages:
            try:
                run.append(accept(message))
            except (AdmissionError, OutboxError) as error:
                run.append(error)
        places.append_all(run, self._respond_after if wait is None else wait)


async def committed(stored: Stored) -> None:
    """Return once it is durable; raises why it is not."""
    await asyncio.shield(stored.committed)
    if stored.refusal is not None:
        raise stored.refusal


def receipt_of(stored: Stored) -> Receipt:
    """Of a durable message: its receipt, or that it is accepted. Raises the service's refusal."""
    outcome = stored.outcome
    if outcome is None or isinstance(outcome, OutboxError):  # as the outbox closes, it stays in the store
        return Accepted(stored.id)
    return stored.result()


def outcome_of(place: Place) -> Outcome:
    """What became of it, as its caller is told."""
    if not isinstance(place, Stored):
        return place
    if place.refusal is not None:
        return place.refusal
    outcome = place.outcome
    return Accepted(place.id) if outcome is None or isinstance(outcome, OutboxError) else outcome
