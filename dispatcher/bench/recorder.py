"""What a load met: latencies by stage, errors by kind, and one row for each stretch of time.

Filled by `generator` (what was due) and `targets` (what became of it); memory depends on neither the rate nor
the duration. It judges nothing. Instants are those of
`time.perf_counter`: uvloop's own clock counts whole milliseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.bench.histogram import LogHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

TICK_SECONDS: Final = 0.25
ROWS_MAX: Final = 240
LATE_SECONDS: Final = 0.005
"""Taken in later than this, not counting the time without room, a message was late for our own reasons."""
LIVE_TICKS: Final = 4
"""The live line tells of the last second."""
KINDS_MAX: Final = 50
OTHER_KINDS: Final = "others"


class Gauges(Struct, frozen=True):
    """A target at one instant."""

    held: int = 0
    """Messages it has taken and not settled."""
    in_flight: int = 0
    """Requests."""
    limit: int = 0
    """Requests that may be in flight."""
    state: str = "open"
    """`refused`: of the token or the URL; nothing was accepted."""
    reason: str = ""
    """The service's words for that."""


class Row(Struct, frozen=True):
    """One stretch of time; latencies are of the messages whose delivery was confirmed in it, from their
    intended starts."""

    at: float
    """Its end, in seconds from the beginning."""
    seconds: float
    asked: int
    """Messages whose intended start lies in it."""
    delivered: int
    failed: int
    waiting: int
    """Due and not taken by the target, at its end."""
    held: int
    in_flight: int
    limit: int
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    """`None` where nothing was delivered."""


class Recorder:
    """One run.

    Args:
        began: When the schedule's 0 lies.
        duration: Of the schedule, which decides how long a row is.
    """

    def __init__(self, began: float, duration: float) -> None:
        self.began = began
        self.lag = LogHistogram()
        """Intended to handed over: the generator's own."""
        self.admission = LogHistogram()
        """Handed over to taken in by the target."""
        self.room = LogHistogram()
        """Of that, the time in which the target was full."""
        self.dispatch = LogHistogram()
        """Taken in to confirmed."""
        self.total = LogHistogram()
        """Intended to confirmed; and of what stayed unfinished, its age."""
        self.due = self.taken = self.refused = self.late = 0
        self.delivered = self.failed = self.unfinished = 0
        self.errors: Counter[str] = Counter()
        self.ended_at = began
        self.rows: list[Row] = []
        self._row_seconds = max(TICK_SECONDS, duration / ROWS_MAX)
        self._row = LogHistogram()
        self._row_before = (0, 0, 0)
        self._row_at = 0.0
        self._tick = LogHistogram()
        self._ticks: deque[tuple[float, int, int, LogHistogram]] = deque(maxlen=LIVE_TICKS + 1)
        self._ticks.append((0.0, 0, 0, self._tick))

    def hand_over(self, intended: float, now: float) -> None:
        """A message is due, and handed over now."""
        self.due += 1
        self.lag.record(now - intended)

    def take(self, intended: float, handed_at: float, full: float, now: float) -> None:
        """The target has it; for `full` seconds since it was handed over there was no room."""
        self.taken += 1
        self.admission.record(now - handed_at)
        self.room.record(full)
        if now - intended - full > LATE_SECONDS:
            self.late += 1

    def deliver(self, intended: float, taken_at: float, now: float) -> None:
        """It was confirmed."""
        self.delivered += 1
        self.dispatch.record(now - taken_at)
        self.ended_at = now
        latency = now - intended
        self.total.record(latency)
        self._tick.record(latency)

    def refuse(self, kind: str, now: float) -> None:
        """The target did not take it."""
        self.refused += 1
        self.fail(kind, now)

    def fail(self, kind: str, now: float) -> None:
        """It failed, by this name."""
        self.failed += 1
        self.ended_at = now
        is_known = kind in self.errors or len(self.errors) < KINDS_MAX
        self.errors[kind if is_known else OTHER_KINDS] += 1

    def leave(self, intended: Iterable[float], now: float) -> None:
        """What was neither confirmed nor failed when the run was ended: it took at least so long."""
        for instant in intended:
            self.unfinished += 1
            self.total.record(now - instant)

    def tick(self, now: float, asked: int, waiting: int, gauges: Gauges) -> None:
        """Close a tick, and with it a row if that is long enough; `asked` is the schedule's count by now."""
        at = now - self.began
        self._ticks.append((at, asked, self.delivered, self._tick))
        self._row.merge(self._tick)
        self._tick = LogHistogram()
        if at - self._row_at >= self._row_seconds - TICK_SECONDS / 2:
            self._close_row(at, asked, waiting, gauges)

    def close(self, now: float, waiting: int, gauges: Gauges) -> None:
        """The last row, however short, if there is anything in it."""
        self.tick(now, self.due, waiting, gauges)
        if self._row_before != (self.due, self.delivered, self.failed):
            self._close_row(now - self.began, self.due, waiting, gauges)

    def last_second(self) -> tuple[float, float, LogHistogram]:
        """Rates asked for and achieved, and latencies, of the last ticks."""
        latest = LogHistogram()
        for _, _, _, tick in list(self._ticks)[1:]:
            latest.merge(tick)
        (then, asked_then, delivered_then, _), (now, asked, delivered, _) = self._ticks[0], self._ticks[-1]
        seconds = (now - then) or TICK_SECONDS
        return (asked - asked_then) / seconds, (delivered - delivered_then) / seconds, latest

    def _close_row(self, at: float, asked: int, waiting: int, gauges: Gauges) -> None:
        before_asked, before_delivered, before_failed = self._row_before
        row = self._row
        p50, p90, p99, most = (row.quantile(share) if row.count else None for share in (0.5, 0.9, 0.99, 1.0))
        self.rows.append(
            Row(
                at=at,
                seconds=at - self._row_at,
                asked=asked - before_asked,
                delivered=self.delivered - before_delivered,
                failed=self.failed - before_failed,
                waiting=waiting,
                held=gauges.held,
                in_flight=gauges.in_flight,
                limit=gauges.limit,
                p50=p50,
                p90=p90,
                p99=p99,
                max=most,
            )
        )
        self._row, self._row_at = LogHistogram(), at
        self._row_before = (asked, self.delivered, self.failed)
