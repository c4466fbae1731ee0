"""Requests that have been out for too long to be only slow.

A connection can die without a word: what is out on it hangs until its attempt times out, ten seconds later,
and holds its slot meanwhile. Two things tell sooner, both measured against what requests take here:

*Overtaken.* A request that began later has succeeded, and this one is still out after `patience`: it is given
up and its messages are sent again, under their deduplication ids, at most once for each message, so that one
which is only slow is let finish the second time. Its answer is not waited for any more.

*Stalled.* Nothing has begun for `patience` because every slot is taken: the limit grows by one, so that one
more request can find out whether the upstream is back.

Measured on the model, 20 s in which nothing is answered: everything has arrived 3 s after it instead of 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import Failure

if TYPE_CHECKING:
    from dispatcher.core.batch import Batch

PATIENCE_MIN: Final = 2.0
PATIENCE_ROUND_TRIPS: Final = 8.0
SMOOTHING: Final = 1 / 8
LOOK_SHARE: Final = 1 / 8
"""Of the patience, between two looks at what is out: some may hang for long, and not be given up."""
OVERTAKEN: Final = Failure("overtaken", "no answer, while what was sent later was answered", "unknown")


class Stalls:
    """What requests take, and which of them take too long."""

    __slots__ = ("_looks_at", "round_trip")

    def __init__(self) -> None:
        self._looks_at = float("-inf")
        self.round_trip = 0.0
        """Mean seconds of the requests that succeeded last; 0 before the first."""

    @property
    def patience(self) -> float:
        """Seconds after which a request is more likely lost than slow."""
        return max(PATIENCE_MIN, PATIENCE_ROUND_TRIPS * self.round_trip)

    def on_success(self, seconds: float) -> None:
        """A request took so long."""
        self.round_trip += SMOOTHING * (seconds - self.round_trip)

    def overtaken(self, out: dict[int, Batch], by: Batch, now: float) -> list[Batch]:
        """Those that are out since long before `by` began, which has just succeeded."""
        started_before = now - self.patience
        oldest = next(iter(out.values()), None)
        if oldest is None or oldest.started_at > started_before or now < self._looks_at:
            return []
        self._looks_at = now + self.patience * LOOK_SHARE
        return [
            batch
            for batch in out.values()
            if batch.started_at <= started_before and batch.number < by.number and _may_be_given_up(batch)
        ]


def _may_be_given_up(batch: Batch) -> bool:
    return all(
        entry.idempotent and (entry.trouble is None or not entry.trouble.was_overtaken)
        for entry in batch.entries
    )
