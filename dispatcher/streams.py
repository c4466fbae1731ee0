"""Many messages at once: `send_many` and `stream`, on top of a dispatcher's `put`.

Work is done per batch: messages are submitted without a task or a future each, and one wake-up reads all
that settled together. Outcomes come in the order of the messages; a message that is refused on admission
takes its place with its error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from dispatcher.delivery import Delivery, DeliveryRun
from dispatcher.errors import AdmissionError, DispatcherError
from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from dispatcher.message import Message

BATCHES_A_TURN: Final = 8
"""Batches submitted before the loop gets its turn: after each it costs a third, after 16 it lags."""

Place = Delivery | AdmissionError
Outcome = Receipt | DispatcherError


class Places:
    """What becomes of messages, in their order: read at the front once it is known."""

    __slots__ = ("_places", "messages")

    def __init__(self) -> None:
        self._places: deque[Place | DeliveryRun] = deque()
        self.messages = 0
        """Those whose outcome was not read yet."""

    def append(self, place: Place) -> None:
        """The next message."""
        self._places.append(place)
        self.messages += 1

    def extend(self, places: Sequence[Place]) -> None:
        """The next messages."""
        self._places.extend(places)
        self.messages += len(places)

    def append_run(self, run: DeliveryRun) -> None:
        """The next messages."""
        self._places.append(run)
        self.messages += len(run)

    async def wait(self) -> None:
        """Return once the first outcome can be read."""
        while not self._is_known(self._places[0]):
            self._open_head()
            head = self._places[0]
            assert not isinstance(head, AdmissionError), "a refusal is known"
            await head.wait()

    def read(self, most: int) -> list[Outcome]:
        """The outcomes that are known at the front, up to about so many."""
        outcomes: list[Outcome] = []
        places = self._places
        while places and len(outcomes) < most:
            self._open_head()
            head = places[0]
            if not self._is_known(head):
                break
            places.popleft()
            if isinstance(head, DeliveryRun):
                outcomes += cast("list[Receipt]", head.receipts)
            else:
                outcomes.append(_outcome(head))
        self.messages -= len(outcomes)
        return outcomes

    def disclaim(self) -> None:
        """Nobody will read these: their failures are reported like any that is not awaited."""
        for place in self._places:
            if isinstance(place, Delivery):
                place.is_claimed = False
            elif isinstance(place, DeliveryRun):
                place.disclaim()

    def _open_head(self) -> None:
        """Have the messages of an opened run stand for themselves."""
        head = self._places[0]
        if isinstance(head, DeliveryRun) and head.entries is not None:
            self._places.popleft()
            self._places.extendleft(reversed(cast("list[Delivery]", head.entries)))

    @staticmethod
    def _is_known(place: Place | DeliveryRun) -> bool:
        if isinstance(place, Delivery):
            return place.outcome is not None
        return not isinstance(place, DeliveryRun) or place.receipts is not None


class Intake(NamedTuple):
    """What a dispatcher lends to its streams: the steps of `put`, taken apart."""

    prepare: Callable[[Message], Delivery]
    """Check and encode; raises `AdmissionError`."""
    admit: Callable[[Delivery], bool]
    """Take it in; false if there is no room."""
    submit: Callable[[Iterator[Message], Places], Delivery | None]
    """Both, for many; ends early with the delivery there is no room for."""
    wait_for_room: Callable[[Delivery], Awaitable[None]]
    max_messages: int
    """Of a batch."""


async def send_many(intake: Intake, messages: Iterable[Message] | AsyncIterable[Message]) -> list[Outcome]:
    """See `Dispatcher.send_many`."""
    places = Places()
    outcomes: list[Outcome] = []
    try:
        await _submit_all(intake, messages, places, outcomes)
        while places.messages:
            await places.wait()
            outcomes += places.read(places.messages)
    except BaseException:
        places.disclaim()
        raise
    return outcomes


async def _submit_all(
    intake: Intake,
    messages: Iterable[Message] | AsyncIterable[Message],
    places: Places,
    outcomes: list[Outcome],
) -> None:
    turn = BATCHES_A_TURN * intake.max_messages
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            places.append(await _place(intake, message))
            outcomes += places.read(turn)
        return
    source = iter(messages)
    while True:
        before = places.messages
        unplaced = intake.submit(islice(source, turn), places)
        if unplaced is not None:
            places.append(await _when_there_is_room(intake, unplaced))
        elif places.messages - before < turn:
            return
        else:
            await asyncio.sleep(0)
        outcomes += places.read(2 * turn)  # what is read is not kept longer than it takes


async def stream(
    intake: Intake, messages: Iterable[Message] | AsyncIterable[Message], window: int
) -> AsyncGenerator[Outcome, None]:
    """See `Dispatcher.stream`."""
    if window < 1:
        raise ValueError(f"window is {window}; at least 1 outcome must fit")
    source: _Source = (
        _Fed(intake, messages, window)
        if isinstance(messages, AsyncIterable)
        else _Pulled(intake, iter(messages), window)
    )
    places = source.places
    try:
        while await source.fill():
            await places.wait()
            for outcome in places.read(intake.max_messages):
                yield outcome
                source.on_read()
    finally:
        places.disclaim()
        await source.aclose()
    if source.error is not None:
        raise source.error


class _Source:
    """Keeps the window of a stream full. An error of the iterable waits until all before it is read."""

    def __init__(self, intake: Intake, window: int) -> None:
        self.places = Places()
        self.error: BaseException | None = None
        self._intake = intake
        self._window = window

    async def fill(self) -> bool:
        """Submit what fits; returns once there is something to read, false at the end."""
        raise NotImplementedError

    def on_read(self) -> None:
        """An outcome left the window."""

    async def aclose(self) -> None:
        """The reader is done."""


class _Pulled(_Source):
    """From an ordinary iterable: pulled as room and window allow, in the reader's own task."""

    def __init__(self, intake: Intake, messages: Iterator[Message], window: int) -> None:
        super().__init__(intake, window)
        self._messages: Iterator[Message] | None = messages
        self._held_back: Delivery | None = None
        self._turn = BATCHES_A_TURN * intake.max_messages

    async def fill(self) -> bool:
        if self._held_back is not None:
            place, self._held_back = self._held_back, None
            await self._place(place)
        wanted = min(self._turn, self._window - self.places.messages)
        if self._messages is None or self._held_back is not None or wanted <= 0:
            return bool(self.places.messages)
        before = self.places.messages
        try:
            unplaced = self._intake.submit(islice(self._messages, wanted), self.places)
        except Exception as error:
            self._messages, self.error = None, error
            return bool(self.places.messages)
        taken = self.places.messages - before
        if unplaced is not None:
            await self._place(unplaced)
        elif taken < wanted:
            self._messages = None
        elif taken == self._turn:
            await asyncio.sleep(0)
        return bool(self.places.messages)

    async def _place(self, delivery: Delivery) -> None:
        """Admit it, at the latest when there is nothing else to read: what is read makes room."""
        if self._intake.admit(delivery):
            self.places.append(delivery)
        elif self.places.messages:
            self._held_back = delivery
        else:
            self.places.append(await _when_there_is_room(self._intake, delivery))


class _Fed(_Source):
    """From an asynchronous iterable: a task feeds the window, so that a slow source delays no outcome."""

    def __init__(self, intake: Intake, messages: AsyncIterable[Message], window: int) -> None:
        super().__init__(intake, window)
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self.unread = 0
        """Messages whose outcome the reader has not had yet."""
        self._feeder = asyncio.create_task(self._feed(messages))
        self._feeder.add_done_callback(lambda _: self._changed.set())

    async def fill(self) -> bool:
        while not self.places.messages:
            if self._feeder.done():
                if self._feeder.cancelled():  # not by us: the source itself raised it
                    self.error = asyncio.CancelledError()
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def on_read(self) -> None:
        self.unread -= 1
        self._space.set()

    async def aclose(self) -> None:
        self._feeder.cancel()
        await asyncio.wait([self._feeder])

    async def _feed(self, messages: AsyncIterable[Message]) -> None:
        try:
            async for message in messages:
                while self.unread >= self._window:
                    self._space.clear()
                    await self._space.wait()
                self.places.append(await _place(self._intake, message))
                self.unread += 1
                self._changed.set()
        except Exception as error:
            self.error = error


async def _place(intake: Intake, message: Message) -> Place:
    """Submit one message, waiting for room."""
    place = _prepared(intake, message)
    if isinstance(place, Delivery) and not intake.admit(place):
        return await _when_there_is_room(intake, place)
    return place


async def _when_there_is_room(intake: Intake, delivery: Delivery) -> Place:
    try:
        await intake.wait_for_room(delivery)
    except AdmissionError as error:
        return error
    return delivery


def _prepared(intake: Intake, message: Message) -> Place:
    try:
        delivery = intake.prepare(message)
    except AdmissionError as error:
        return error
    delivery.is_claimed = True
    return delivery


def _outcome(place: Place) -> Outcome:
    if isinstance(place, Delivery):
        assert place.outcome is not None
        return place.outcome
    return place
