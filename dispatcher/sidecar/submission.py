"""Messages into the dispatcher: at once while there is room, else with the patience that callers have.

The good path has no timer and no task. What has no room waits in the dispatcher's own line, first come first
served, and is refused with `QueueFull` when the patience ends: its clients never repeat a 429, so waiting is
kinder. A caller that goes takes back what has not left. Used by `intake` and `bulk`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dispatcher.delivery import Delivery, DeliveryRun
from dispatcher.errors import AdmissionError, QueueFull
from dispatcher.sidecar.alone import Alone
from dispatcher.sidecar.answers import HALT_SECONDS
from dispatcher.sidecar.dialect import Refused
from dispatcher.streams import Places

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.message import Message, Receipt
    from dispatcher.sidecar.answers import Outcome
    from dispatcher.sidecar.counters import IntakeCounters

Place = Delivery | AdmissionError | Refused
"""What stands in a message's place: its delivery, or why there is none."""
ESCAPED: Final = 6
"""Bytes that one byte of a text may become in JSON, at most."""
ITEM_BYTES: Final = 16_384
"""What an item has beside its body, amply; above it the slower way is taken, and is as right."""


class Submission:
    """The sidecar's way into a dispatcher.

    Args:
        patience: Seconds that a message waits for room.
    """

    def __init__(self, dispatcher: Dispatcher, patience: float, counters: IntakeCounters) -> None:
        self.room = dispatcher.engine.room
        self.send = dispatcher.send
        """For a message that `has_room`: its receipt, or its error."""
        self.patience = patience
        self._dispatcher = dispatcher
        self._lent = dispatcher.intake
        self._room = dispatcher.engine.room
        self._gate = dispatcher.engine.gate
        self._counters = counters

    def has_room(self, size_bytes: int) -> bool:
        """Whether a body of this size surely has room, now, and nothing speaks against taking it.

        Raises:
            Refused: The upstream refuses our token or URL, and something is held to find out when it ends.
        """
        room = self._room
        if self._gate.refusal is not None:
            self.check_halt()
        return not room.waiting and (
            not room.held_messages
            or (
                room.held_messages < room.max_messages
                and room.held_bytes + ESCAPED * size_bytes + ITEM_BYTES <= room.max_bytes
            )
        )

    def check_halt(self) -> None:
        """Refuse what would only be held; see `has_room`."""
        refusal = self._gate.refusal
        if refusal is None or self._gate.is_first_contact or not self._room.held_messages:
            return  # at first contact the dispatcher says so itself, at once
        words = f"the upstream refuses this token or URL with {refusal.status}: {refusal.reason}"
        raise Refused(503, words, HALT_SECONDS)

    def put_now(self, message: Message, size_bytes: int) -> Delivery | None:
        """Hand it in, if there surely is room.

        Raises:
            AdmissionError: It is never taken.
            Refused: As `has_room` does.
        """
        if not self.has_room(size_bytes):
            return None
        try:
            delivery = self._dispatcher.put_nowait(message)
        except QueueFull:
            return None
        delivery.is_claimed = True
        return delivery

    async def put(self, message: Message, until: float) -> Delivery:
        """Hand it in, waiting for room until an instant of the loop's clock.

        Raises:
            AdmissionError: It is never taken; `QueueFull`: there was no room in time.
        """
        self._counters.waiting(1)
        try:
            async with asyncio.timeout_at(until):
                delivery = await self._dispatcher.put(message)
        except TimeoutError:
            raise self._full() from None
        finally:
            self._counters.waiting(-1)
        delivery.is_claimed = True
        return delivery

    def _full(self) -> QueueFull:
        room = self._room
        return QueueFull(room.held_messages, room.max_messages, room.held_bytes, room.max_bytes)

    def place_now(self, message: Message | Refused) -> Place | None:
        """What becomes of a message that needs no waiting, `None` of one that does."""
        if isinstance(message, Refused):
            return message
        try:
            delivery = self.put_now(message, len(message.body or b""))
        except (AdmissionError, Refused) as error:
            return error
        if delivery is not None:
            self.count(message)
        return delivery

    async def place(self, message: Message, until: float) -> Place:
        """The same, waiting for room until an instant of the loop's clock."""
        try:
            delivery = await self.put(message, until)
        except AdmissionError as error:
            return error
        self.count(message)
        return delivery

    async def outcomes(self, places: Sequence[Place], _wait: float | None) -> list[Outcome]:
        """What became of each, once that is known."""
        return [await _outcome(place) for place in places]

    def take_back(self, places: Iterable[object]) -> None:
        """Their caller has gone: what has not left is withdrawn, the rest goes on without it."""
        take_back(places)

    def count(self, message: Message) -> None:
        """Count it if it is sent alone."""
        if isinstance(message, Alone):
            self._counters.alone(message.reason)

    async def put_many(self, messages: Iterable[Message], places: Window, patience: float) -> None:
        """Hand in all of them, in batches' worth; each waits for room for the patience, in seconds.

        What becomes of them stands in `places`, in their order.
        """
        source = iter(messages)
        while (unplaced := self._lent.submit(source, places)) is not None:
            self._counters.waiting(1)
            try:
                async with asyncio.timeout(patience):
                    await self._lent.wait_for_room(unplaced)
            except AdmissionError as error:
                places.append(error)
            except TimeoutError:
                places.append(self._full())
            else:
                places.append(unplaced)
            finally:
                self._counters.waiting(-1)

    def window(self) -> Window:
        """An empty one."""
        return Window(self._dispatcher)

    async def send_patiently(self, message: Message) -> Receipt:
        """As `send`, waiting for room as long as callers have patience.

        Raises:
            DispatcherError: It was never taken, or not confirmed.
        """
        patience = min(self.patience, message.deliver_within or self.patience)
        delivery = await self.put(message, asyncio.get_running_loop().time() + patience)
        try:
            if delivery.outcome is None:
                await delivery.wait()
        except asyncio.CancelledError:
            take_back((delivery,))
            raise
        return delivery.result()


class Window(Places):
    """What becomes of messages of a stream, in their order; those whose caller has gone can be taken back."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._lanes = dispatcher.engine.lanes

    def take_back(self) -> None:
        """As the function does; what travels together is looked at one by one for it."""
        self._lanes.open_runs()
        for place in self._places:
            take_back((place.entries or ()) if isinstance(place, DeliveryRun) else (place,))
        self.disclaim()


def take_back(places: Iterable[object]) -> None:
    """Their caller has gone: what has not left is withdrawn, the rest goes on without it."""
    for place in places:
        if isinstance(place, Delivery) and place.outcome is None and not place.withdraw():
            place.is_claimed = False


async def _outcome(place: Place) -> Outcome:
    outcome = outcome_of(place)
    if outcome is None:
        assert isinstance(place, Delivery)
        await place.wait()
        assert place.outcome is not None
        return place.outcome
    return outcome


def outcome_of(place: Place) -> Outcome | None:
    """What became of a message, `None` if that is not known yet."""
    return place.outcome if isinstance(place, Delivery) else place
