"""What becomes of the messages of a stream that are accepted durably, in their order.

The `Window` of `durable`, with the interface of a `submission.Window`. Nothing is known of a message before
its commit; then its receipt is, or, once its caller's wait is over, that it is accepted. Used by `bulk`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from dispatcher.errors import OutboxError
from dispatcher.message import Receipt
from dispatcher.outbox import Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.errors import DispatcherError
    from dispatcher.outbox import Outbox
    from dispatcher.sidecar.answers import Outcome


class Run:
    """Messages that were accepted together."""

    __slots__ = ("ends_at", "places")

    def __init__(self, places: Sequence[Any], ends_at: float) -> None:
        self.places = deque(places)
        self.ends_at = ends_at
        """When nobody waits for a receipt of theirs any more, by the loop's clock."""


class DurableWindow:
    """Messages of one stream whose outcome was not read yet."""

    def __init__(self, outbox: Outbox, respond_after: float) -> None:
        self.messages = 0
        self._outbox = outbox
        self._respond_after = respond_after
        self._runs: deque[Run] = deque()

    def append(self, place: Any) -> None:
        """The next one, of which all is known."""
        self.messages += 1
        self._runs.append(Run([place], 0.0))

    def append_all(self, places: Sequence[Stored | DispatcherError], wait: float) -> None:
        """The next ones; receipts are waited for so many seconds."""
        self.messages += len(places)
        self._runs.append(Run(places, asyncio.get_running_loop().time() + wait))
        if wait:
            for place in places:
                if isinstance(place, Stored):
                    self._outbox.watch(place)

    async def wait(self) -> None:
        """Return once the first outcome can be read."""
        loop = asyncio.get_running_loop()
        while True:
            run = self._runs[0]
            if self._outcome(run.places[0], run.ends_at, loop.time()) is not None:
                return
            place = run.places[0]
            if not place.committed.done():
                await asyncio.shield(place.committed)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(run.ends_at):
                    await place.wait()

    def read(self, most: int) -> list[Outcome]:
        """The outcomes that are known at the front, up to about so many."""
        outcomes: list[Outcome] = []
        now, runs, outcome_of = asyncio.get_running_loop().time(), self._runs, self._outcome
        while runs and len(outcomes) < most:
            places, ends_at = runs[0].places, runs[0].ends_at
            while places and (outcome := outcome_of(places[0], ends_at, now)) is not None:
                outcomes.append(outcome)
                place = places.popleft()
                if type(place) is Stored and place.outcome is None:
                    self._outbox.forget(place)
            if places:
                break
            runs.popleft()
        self.messages -= len(outcomes)
        return outcomes

    def take_back(self) -> None:
        """Their caller has gone; what was accepted is sent all the same."""
        for run in self._runs:
            for place in run.places:
                if isinstance(place, Stored):
                    self._outbox.forget(place)

    @staticmethod
    def _outcome(place: Any, ends_at: float, now: float) -> Outcome | None:
        if type(place) is not Stored:
            return cast("Outcome", place)
        if not place.committed.done():
            return None
        outcome = place.refusal or place.outcome
        if outcome is not None and (place.refusal is not None or not isinstance(outcome, OutboxError)):
            return outcome
        if outcome is not None or now >= ends_at:
            return Receipt(place.id)
        return None
