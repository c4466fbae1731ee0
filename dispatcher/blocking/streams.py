"""Many messages at once from synchronous code: `send_many` and `stream`, on top of a blocking `put`.

Outcomes come in the order of the messages; a message that is refused on admission takes its place with its
error. Everything runs in the caller's thread, while the dispatcher's own sends. Used by `blocking` only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable  # noqa: TC003 - a NamedTuple's types
from typing import TYPE_CHECKING, Final, NamedTuple

from dispatcher.blocking.handover import BlockingDelivery
from dispatcher.errors import AdmissionError, DispatcherError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dispatcher.message import Message, Receipt

Place = BlockingDelivery | AdmissionError
FILL_MIN: Final = 2
"""Messages submitted for each outcome that is read at least: so the window fills while outcomes flow."""


class Intake(NamedTuple):
    """What a dispatcher lends: the steps of `put`, taken apart."""

    prepare: Callable[[Message], BlockingDelivery]
    """Check and encode; raises `AdmissionError`."""
    admit: Callable[[BlockingDelivery], bool]
    """Take it in; false if there is no room. Raises `AdmissionError`."""
    wait_for_room: Callable[[BlockingDelivery], object]
    """Raises `AdmissionError`."""


def send_many(intake: Intake, messages: Iterable[Message]) -> list[Receipt | DispatcherError]:
    """See `BlockingDispatcher.send_many`."""
    places: list[Place] = []
    try:
        for message in messages:
            places.append(_place(intake, message))  # noqa: PERF401 - kept even if it breaks off
        return [_outcome(place) for place in places]
    except BaseException:
        _disclaim(places)
        raise


def stream(intake: Intake, messages: Iterable[Message], window: int) -> Iterator[Receipt | DispatcherError]:
    """See `BlockingDispatcher.stream`."""
    source = _Source(intake, iter(messages), window)
    places = source.places
    try:
        while source.fill():
            outcome = _outcome(places[0])
            places.popleft()
            yield outcome
    finally:
        _disclaim(places)
    if source.error is not None:
        raise source.error


class _Source:
    """Keeps the window of a stream full. An error of the iterable waits until all before it is read."""

    def __init__(self, intake: Intake, messages: Iterator[Message], window: int) -> None:
        self.places: deque[Place] = deque()
        self.error: Exception | None = None
        self._intake = intake
        self._messages: Iterator[Message] | None = messages
        self._window = window
        self._held_back: BlockingDelivery | None = None

    def fill(self) -> bool:
        """Submit what fits, until there is something to read; false at the end."""
        places = self.places
        submitted = 0
        while len(places) < self._window:
            if submitted >= FILL_MIN and _is_settled(places[0]):
                break
            place = self._next()
            if place is None:
                break
            places.append(place)
            submitted += 1
        return bool(places)

    def _next(self) -> Place | None:
        """The next message, submitted; `None` at the end, or if what is read first makes room for it."""
        delivery, self._held_back = self._held_back, None
        if delivery is None:
            if self._messages is None:
                return None
            try:
                message = next(self._messages)
            except StopIteration:
                self._messages = None
                return None
            except Exception as error:
                self._messages, self.error = None, error
                return None
            place = _prepared(self._intake, message)
            if not isinstance(place, BlockingDelivery):
                return place
            delivery = place
        return self._submitted(delivery)

    def _submitted(self, delivery: BlockingDelivery) -> Place | None:
        if not self.places:
            return _submitted(self._intake, delivery)
        try:
            if self._intake.admit(delivery):
                return delivery
        except AdmissionError as error:
            return error
        self._held_back = delivery
        return None


def _place(intake: Intake, message: Message) -> Place:
    """Submit one message, waiting for room."""
    place = _prepared(intake, message)
    return _submitted(intake, place) if isinstance(place, BlockingDelivery) else place


def _prepared(intake: Intake, message: Message) -> Place:
    try:
        delivery = intake.prepare(message)
    except AdmissionError as error:
        return error
    delivery.is_claimed = True
    return delivery


def _submitted(intake: Intake, delivery: BlockingDelivery) -> Place:
    try:
        if not intake.admit(delivery):
            intake.wait_for_room(delivery)
    except AdmissionError as error:
        return error
    except BaseException:
        delivery.is_claimed = False  # interrupted, perhaps as there was room
        raise
    return delivery


def _is_settled(place: Place) -> bool:
    return not isinstance(place, BlockingDelivery) or place.outcome is not None


def _outcome(place: Place) -> Receipt | DispatcherError:
    if not isinstance(place, BlockingDelivery):
        return place
    place.settles_within(None)
    assert place.outcome is not None
    return place.outcome


def _disclaim(places: Iterable[Place]) -> None:
    """Nobody will read these outcomes: their failures are reported like any that nobody waits for."""
    for place in places:
        if isinstance(place, BlockingDelivery):
            place.is_claimed = False
