"""What is admitted in one turn of the loop is told to the core at its end: as runs, as far as that goes.

So the core's work is done once for a hundred messages, also where each was handed in by itself. Room is taken
and a message is encoded when it is admitted; nothing here decides, and nothing may be left here when the loop
goes on. Used by `pump` and `dispatcher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.core import failures
from dispatcher.core.batch import SETTLED
from dispatcher.delivery import Delivery, HandedRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.core.engine import Engine


class Admission:
    """Deliveries that have room, on their way to the core."""

    __slots__ = ("_engine", "_is_broken", "admitted")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_broken = False
        """The core failed while it was told: what it has of that, and what not, is found out by `give_up`."""
        self.admitted: list[Delivery] = []
        """Added to directly: one call less for each message."""

    def tell(self) -> None:
        """Offer what was admitted since the last time."""
        if not self.admitted or self._is_broken:
            return
        told = self.admitted[:]
        self.admitted.clear()  # the same list: whoever adds to it may have it in hand
        engine = self._engine
        most = engine.lanes.max_messages
        try:
            for start in range(0, len(told), most):
                part = told[start : start + most]
                run = self._run_of(part) if len(part) == most > 1 else None
                if run is None:
                    engine.offer_many(part)
                else:
                    engine.offer_run(run)
        except BaseException:
            self._is_broken = True
            self.admitted += told
            raise

    def give_up(self, why: str) -> list[Delivery]:
        """The core is broken and has settled what it had: fail the rest."""
        rest = [delivery for delivery in self.admitted if delivery.outcome is None]
        self.admitted.clear()
        for delivery in rest:
            delivery.outcome = failures.abandoned(delivery, why)
            delivery.state = SETTLED
            self._engine.room.release(1, len(delivery.data))
        return rest

    def _run_of(self, part: Sequence[Delivery]) -> HandedRun | None:
        """A batch's worth as a run, if they are plain and fit."""
        first = part[0]
        deadline, lanes = first.deadline, self._engine.lanes
        for each in part:
            if (
                each.queue is not None
                or each.single is not None
                or not each.owns_id
                or each.deadline != deadline
            ):
                return None
        items = [each.data for each in part]
        size = sum(map(len, items))
        if size + len(items) + 1 > lanes.max_bytes:
            return None
        ids = [each.deduplication_id or "" for each in part]
        return HandedRun([], items, ids, first.admitted_at, deadline, size_bytes=size, handles=part)
