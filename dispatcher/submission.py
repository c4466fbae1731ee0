"""Many messages handed in at once: checked, encoded and admitted by the batch, as far as they are plain.

A batch's worth of plain messages becomes a run, without a delivery for each; whatever is not plain goes one
by one, as `put` does it. Used by `dispatcher` for its streams. Nothing here waits.
"""

from __future__ import annotations

from copy import copy
from itertools import chain, islice
from typing import TYPE_CHECKING, cast

from msgspec import UNSET, UnsetType

from dispatcher.delivery import Delivery, DeliveryRun
from dispatcher.errors import AdmissionError, DispatcherClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatcher.core.wire import Encoder
    from dispatcher.message import Message
    from dispatcher.observing import EncodeRun, Observer, Prepare
    from dispatcher.pump import Pump
    from dispatcher.streams import Places


class Submission:
    """Hands many messages in for one dispatcher, which lends it the steps of `put`.

    Args:
        deliver_within: Seconds that a message has.
        check_open: Raises `DispatcherClosed` where nothing is admitted.
        prepare: Check and encode one message.
        admit: Take it in; false if there is no room.
        refused: Counts a refusal, and gives it back.
    """

    encoder: Encoder
    """Set as the dispatcher opens."""

    def __init__(
        self,
        pump: Pump,
        deliver_within: float,
        check_open: Callable[[], None],
        prepare: Prepare,
        admit: Callable[[Delivery], bool],
        refused: Callable[[AdmissionError], AdmissionError],
    ) -> None:
        self._pump = pump
        self._deliver_within = deliver_within
        self._check_open = check_open
        self.prepare = prepare
        self.observer: Observer | None = None
        self._admit = admit
        self._refused = refused

    def submit(self, messages: Iterator[Message], places: Places) -> Delivery | None:
        """Check, encode and admit messages, as `put` does it one by one.

        Ends early with the delivery there is no room for: it is in no place yet.
        """
        try:
            self._check_open()
        except DispatcherClosed as error:
            for _ in messages:
                places.append(self._refused(copy(error)))
            return None
        self._pump.schedule()
        odd: Message | UnsetType = UNSET
        most = self._pump.engine.lanes.max_messages
        while True:
            run, odd, is_over = self._next_run(messages if odd is UNSET else chain((odd,), messages), places)
            if is_over:
                return None
            if odd is UNSET or 2 * len(run) >= most:
                continue  # what had no place in that run may have one in the next
            # They are of many kinds, or of another: go on one by one for a while.
            for message in islice(chain((odd,), messages), most):
                unplaced = self._submit_one(message, places)
                if unplaced is not None:
                    return unplaced
            odd = UNSET

    def _next_run(
        self, messages: Iterator[Message], places: Places
    ) -> tuple[DeliveryRun, Message | UnsetType, bool]:
        """Admit a batch's worth of plain messages; also the one that ended it, or that there are no more."""
        pump, room, lanes = self._pump, self._pump.engine.room, self._pump.engine.lanes
        now = pump.turn_at
        run = DeliveryRun([], [], [], now, now + self._deliver_within, pump.home, True)
        most, most_bytes = room.reserve(lanes.max_messages, lanes.max_bytes - lanes.max_messages - 1)
        odd: Message | UnsetType = UNSET
        try:
            encode_run: EncodeRun = self.encoder.encode_run
            if self.observer is not None:
                encode_run = self.observer.around_run(encode_run)
            odd = encode_run(messages, run, most, most_bytes) if most else next(messages, UNSET)
        finally:  # also if the iterable breaks off
            room.release(most - len(run), most_bytes - run.size_bytes)
            self._take_in(run, places)
        return run, odd, odd is UNSET and len(run) < max(1, most)

    def _take_in(self, run: DeliveryRun, places: Places) -> None:
        """Hand a run that has its room to the core; what is far from full needs company, and is opened."""
        admission, lanes = self._pump.admission, self._pump.engine.lanes
        if 2 * len(run) < lanes.max_messages and 2 * run.size_bytes < lanes.max_bytes:
            deliveries = cast("list[Delivery]", run.open())
            admission.admitted += deliveries
            places.extend(deliveries)
            return
        try:
            admission.tell()
            self._pump.engine.offer_run(run)
        except BaseException as error:
            admission.admitted += cast("list[Delivery]", run.open())  # to be given up with the rest
            self._pump.fail(error)
            raise
        places.append_run(run)

    def _submit_one(self, message: Message, places: Places) -> Delivery | None:
        """The same for one message of any kind."""
        pump = self._pump
        try:
            delivery = self.prepare(message, Delivery, pump.home, pump.turn_at, True)
        except AdmissionError as error:
            places.append(self._refused(error))
            return None
        if not self._admit(delivery):
            return delivery
        places.append(delivery)
        return None
