"""The dispatcher inside a `BlockingDispatcher`: its messages come through a `Handover`, from any thread.

Its methods are the loop's, if they are not marked otherwise. Made and closed by `worker`; it must never wait
for a thread, and decides nothing: that is `core`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.blocking.handover import CLOSED, BlockingDelivery, Handover
from dispatcher.dispatcher import Dispatcher
from dispatcher.errors import AdmissionError, DispatcherClosed
from dispatcher.statistics import DrainReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.config import Config
    from dispatcher.core.batch import Entry
    from dispatcher.errors import DeliveryError
    from dispatcher.message import Message
    from dispatcher.renewal import TokenProvider
    from dispatcher.transport import Transport


class Served(Dispatcher):
    """A dispatcher with a `Handover` for its room."""

    def __init__(
        self,
        handover: Handover,
        config: Config,
        *,
        name: str,
        transport: Transport | None,
        on_failure: Callable[[list[DeliveryError]], None] | None,
        token_provider: TokenProvider | None,
    ) -> None:
        super().__init__(
            config, name=name, transport=transport, on_failure=on_failure, token_provider=token_provider
        )
        self._handover = handover
        self._engine.room = handover
        handover.explain = self._why_not

    @property
    def state(self) -> str:
        """As in the statistics. Any thread."""
        return self._state

    @property
    def drained(self) -> DrainReport:
        """How the drain went. Any thread."""
        return self._pump.report or DrainReport()

    def prepare(self, message: Message) -> BlockingDelivery:
        """Check and encode one message.

        Any thread: all that the encoder shares is a cache, of which each step is atomic and at worst a prefix
        made twice, and the source of ids, which no thread can interrupt.

        Raises:
            AdmissionError: It would be refused, or nothing is admitted any more.
        """
        try:
            if self._handover.is_closed:
                raise DispatcherClosed(self._why_not() or CLOSED)
            # Its deadline counts from when the loop takes it, by the loop's clock.
            delivery = self._prepare(message, BlockingDelivery, self._handover.home, 0.0, False)
        except AdmissionError as error:
            raise self.refused(error) from None
        delivery.handover = self._handover
        return delivery

    def refused(self, error: AdmissionError) -> AdmissionError:
        """Count a refusal. Any thread."""
        with self._handover.lock:
            return self._refused(error)

    def take(self) -> None:
        """Admit everything that was submitted since the last time."""
        pump, submitted = self._pump, self._handover.take()
        pump.schedule()
        now = pump.turn_at
        for delivery in submitted:
            delivery.admitted_at = now
            delivery.deadline += now
        pump.admission.admitted += submitted
        if pump.has_ended:
            pump.abandon(pump.death or CLOSED)

    def take_back(self, delivery: Entry) -> bool:
        """Withdraw a message, if it has not left."""
        self.take()
        return self._pump.withdraw(delivery)

    def let_go(self, delivery: BlockingDelivery) -> bool:
        """The same; one that may have left goes on without its caller, and a failure is reported."""
        if self.take_back(delivery):
            return True
        delivery.is_claimed = False
        return False

    def bury(self) -> None:
        """Fail whatever is left: nothing runs any more."""
        self._pump.dismiss_waiters()
        self.take()
        self._pump.abandon(self._pump.death or CLOSED)
