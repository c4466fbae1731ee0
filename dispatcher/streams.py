"""Many messages at once: `send_many` and `stream`, on top of a dispatcher's `put`.

Work is done per batch: messages are submitted without a task or a future each, and one wake-up reads all
that settled together. Outcomes come in the order of the messages; a message that is refused on admission
takes its place with its error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from dispatcher.delivery import Delivery
from dispatcher.errors import AdmissionError, DispatcherError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from dispatcher.message import Message, Receipt

BATCHES_A_TURN: Final = 8
"""Batches submitted before the loop gets its turn: after each it costs a third, after 16 it lags."""

Place = Delivery | AdmissionError
Places = list[Place] | deque[Place]


class Intake(NamedTuple):
    """What a dispatcher lends to its streams: the steps of `put`, taken apart."""

    prepare: Callable[[Message], Delivery]
    """Check and encode; raises `AdmissionError`."""
    admit: Callable[[Delivery], bool]
    """Take it in; false if there is no room."""
    submit: Callable[[Iterable[Message], Places], Delivery | None]
    """Both, for many; ends early with the delivery there is no room for."""
    wait_for_room: Callable[[Delivery], Awaitable[None]]
    max_messages: int
    """Of a batch."""


async def send_many(
    intake: Intake, messages: Iterable[Message] | AsyncIterable[Message]
) -> list[Receipt | DispatcherError]:
    """See `Dispatcher.send_many`."""
    places: list[Place] = []
    try:
        await _submit_all(intake, messages, places)
        outcomes: list[Receipt | DispatcherError] = []
        for place in places:
            if isinstance(place, Delivery) and place.outcome is None:
                await place.wait()
            outcomes.append(_outcome(place))
    except BaseException:
        _disclaim(places)
        raise
    return outcomes


async def _submit_all(
    intake: Intake, messages: Iterable[Message] | AsyncIterable[Message], places: list[Place]
) -> None:
    turn = BATCHES_A_TURN * intake.max_messages
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            places.append(await _place(intake, message))  # noqa: PERF401 - kept even if it breaks off
        return
    source = iter(messages)
    while True:
        before = len(places)
        unplaced = intake.submit(islice(source, turn), places)
        if unplaced is not None:
            places.append(await _when_there_is_room(intake, unplaced))
        elif len(places) - before < turn:
            return
        else:
            await asyncio.sleep(0)


async def stream(
    intake: Intake, messages: Iterable[Message] | AsyncIterable[Message], window: int
) -> AsyncGenerator[Receipt | DispatcherError, None]:
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
            head = places[0]
            if isinstance(head, Delivery) and head.outcome is None:
                await head.wait()
            for _ in range(intake.max_messages):
                yield _outcome(places.popleft())
                source.on_read()
                if not places or (isinstance(places[0], Delivery) and places[0].outcome is None):
                    break
    finally:
        _disclaim(places)
        await source.aclose()
    if source.error is not None:
        raise source.error


class _Source:
    """Keeps the window of a stream full. An error of the iterable waits until all before it is read."""

    def __init__(self, intake: Intake, window: int) -> None:
        self.places: deque[Place] = deque()
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
        wanted = min(self._turn, self._window - len(self.places))
        if self._messages is None or self._held_back is not None or wanted <= 0:
            return bool(self.places)
        before = len(self.places)
        try:
            unplaced = self._intake.submit(islice(self._messages, wanted), self.places)
        except Exception as error:
            self._messages, self.error = None, error
            return bool(self.places)
        taken = len(self.places) - before
        if unplaced is not None:
            await self._place(unplaced)
        elif taken < wanted:
            self._messages = None
        elif taken == self._turn:
            await asyncio.sleep(0)
        return bool(self.places)

    async def _place(self, delivery: Delivery) -> None:
        """Admit it, at the latest when there is nothing else to read: what is read makes room."""
        if self._intake.admit(delivery):
            self.places.append(delivery)
        elif self.places:
            self._held_back = delivery
        else:
            self.places.append(await _when_there_is_room(self._intake, delivery))


class _Fed(_Source):
    """From an asynchronous iterable: a task feeds the window, so that a slow source delays no outcome."""

    def __init__(self, intake: Intake, messages: AsyncIterable[Message], window: int) -> None:
        super().__init__(intake, window)
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self._feeder = asyncio.create_task(self._feed(messages))
        self._feeder.add_done_callback(lambda _: self._changed.set())

    async def fill(self) -> bool:
        while not self.places:
            if self._feeder.done():
                if self._feeder.cancelled():  # not by us: the source itself raised it
                    self.error = asyncio.CancelledError()
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def on_read(self) -> None:
        self._space.set()

    async def aclose(self) -> None:
        self._feeder.cancel()
        await asyncio.wait([self._feeder])

    async def _feed(self, messages: AsyncIterable[Message]) -> None:
        try:
            async for message in messages:
                while len(self.places) >= self._window:
                    self._space.clear()
                    await self._space.wait()
                self.places.append(await _place(self._intake, message))
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


def _disclaim(places: Iterable[Place]) -> None:
    """Nobody will read these outcomes: their failures are reported like any that is not awaited."""
    for place in places:
        if isinstance(place, Delivery):
            place.is_claimed = False


def _outcome(place: Place) -> Receipt | DispatcherError:
    if isinstance(place, Delivery):
        assert place.outcome is not None
        return place.outcome
    return place
