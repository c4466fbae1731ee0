"""What `/status` says, and the last minutes of it: plain data made of counters that are kept anyway.

A `Monitor` is asked for a sample once a second; rates and latencies are differences between samples. It
changes nothing, reads no message, and says no body, token or query string. Used by `admin`.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dispatcher import __version__
from dispatcher.sidecar.counters import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.core.tally import Histogram
    from dispatcher.dispatcher import Dispatcher
    from dispatcher.sidecar.admin_outbox import OutboxAdmin
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.state import State
    from dispatcher.statistics import Statistics

HISTORY_SAMPLES: Final = 300
"""Seconds that a page sees when it is opened."""
WINDOW_SAMPLES: Final = 10
"""Seconds over which latencies, and the rates beside the charts, are taken."""
RATES: Final = ("taken", "delivered", "failed", "requests", "intake")
"""Totals of a `Mark` of which a `Sample` has the rate."""
EVENTS_MAX: Final = 50
QUEUES_MAX: Final = 50
"""Stopped queues that are named."""
OLDEST_SHARE: Final = 0.005
"""Of the time may go into looking for the oldest message, a walk over everything that is held."""


class Mark(NamedTuple):
    """Running totals at one instant."""

    at: float
    """Monotonic seconds."""
    taken: int
    delivered: int
    failed: int
    requests: int
    """To the upstream, ended."""
    carried: float
    """Messages in the requests started."""
    batches: int
    """Requests started."""
    intake: int
    """Requests of callers, answered."""
    message_counts: tuple[int, ...]
    """Of the histogram of messages' latencies."""
    request_counts: tuple[int, ...]
    """The same of the requests'."""


class Sample(NamedTuple):
    """One second, as the charts show it."""

    at: float
    """Unix seconds."""
    taken: float
    """Messages a second."""
    delivered: float
    failed: float
    requests: float
    """Requests to the upstream a second."""
    intake: float
    """Requests of callers a second."""
    held: int
    held_bytes: int
    oldest: float
    """Seconds."""
    in_flight: int
    limit: int
    message_p50: float | None
    """Seconds; none where nothing was delivered."""
    message_p99: float | None
    request_p50: float | None
    request_p99: float | None


class Monitor:
    """Samples one dispatcher and its intake.

    Args:
        clock: Monotonic seconds.
        wall: Unix seconds.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        counters: IntakeCounters,
        state: State,
        outbox: OutboxAdmin | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._dispatcher = dispatcher
        self._counters = counters
        self._state = state
        self._outbox = outbox
        self._clock = clock
        self._wall = wall
        self._samples: deque[Sample] = deque(maxlen=HISTORY_SAMPLES)
        self._marks: deque[Mark] = deque([self._mark()], maxlen=WINDOW_SAMPLES + 1)
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        """Changes of state, the latest first."""
        self._oldest = 0.0
        self._oldest_again_at = clock()

    # ------------------------------------------------------------------------------------- once a second

    def sample(self) -> Sample:
        """Take one more sample; to be called once a second."""
        mark, last = self._mark(), self._marks[-1]
        self._marks.append(mark)
        self._note_state()
        engine = self._dispatcher.engine
        message_p50, message_p99 = self._quantiles("message_counts")
        request_p50, request_p99 = self._quantiles("request_counts")
        sample = Sample(
            at=round(self._wall(), 3),
            held=engine.room.held_messages,
            held_bytes=engine.room.held_bytes,
            oldest=self._oldest_age(),
            in_flight=len(engine.out),
            limit=engine.limit.value,
            message_p50=message_p50,
            message_p99=message_p99,
            request_p50=request_p50,
            request_p99=request_p99,
            **{name: _rate(last, mark, name) for name in RATES},
        )
        self._samples.append(sample)
        return sample

    async def look(self) -> None:
        """Read what cannot be read at once: the outbox's dead letters."""
        if self._outbox is not None:
            await self._outbox.look()

    def _mark(self) -> Mark:
        statistics, tally = self._dispatcher.statistics(), self._dispatcher.engine.tally
        return Mark(
            self._clock(),
            statistics.admitted,
            statistics.delivered,
            statistics.failed,
            sum(statistics.requests.values()),
            tally.batch_messages.total,
            sum(tally.batch_messages.counts),
            sum(self._counters.requests.values()),
            tuple(tally.stage_seconds["total"].counts),
            tuple(tally.request_seconds.counts),
        )

    def _oldest_age(self) -> float:
        """Seconds; where the walk is long it is made less often, and the last answer stands."""
        if not self._dispatcher.engine.room.held_messages:
            return 0.0
        began = self._clock()
        if began >= self._oldest_again_at:
            self._oldest = round(self._dispatcher.oldest_age(), 3)
            self._oldest_again_at = began + (self._clock() - began) / OLDEST_SHARE
        return self._oldest

    def _quantiles(self, name: str) -> tuple[float | None, float | None]:
        first, last = self._marks[0], self._marks[-1]
        counts = [new - old for old, new in zip(getattr(first, name), getattr(last, name), strict=True)]
        bounds = self._histogram(name).bounds
        return quantile(bounds, counts, 0.5), quantile(bounds, counts, 0.99)

    def _histogram(self, name: str) -> Histogram:
        tally = self._dispatcher.engine.tally
        return tally.stage_seconds["total"] if name == "message_counts" else tally.request_seconds

    def _note_state(self) -> None:
        """Remember a change of the process's phase, of the gate, or of what stands still."""
        statistics = self._dispatcher.statistics()
        now = {
            "phase": self._state.phase,
            "state": statistics.state,
            "reason": self._shown(statistics.reason),
            "stopped_queues": len(statistics.stopped_queues),
        }
        latest = self._events[0] if self._events else {}
        if any(latest.get(name) != value for name, value in now.items()):
            self._events.appendleft({"at": round(self._wall(), 3), **now})

    def _shown(self, text: str) -> str:
        return clean(text, self._counters.hidden)

    # ------------------------------------------------------------------------------------ what is told

    def history(self) -> dict[str, list[Any]]:
        """The samples by column, the oldest first."""
        columns = zip(*self._samples, strict=True) if self._samples else [()] * len(Sample._fields)
        return {name: list(column) for name, column in zip(Sample._fields, columns, strict=True)}

    def report(self) -> dict[str, Any]:
        """Everything now."""
        statistics = self._dispatcher.statistics()
        why_not = self._state.why_not_ready(statistics.state)
        return {
            "version": __version__,
            "name": self._dispatcher.name,
            "at": round(self._wall(), 3),
            "started_at": round(self._state.started_at, 3),
            "uptime": round(self._state.uptime, 3),
            "phase": self._state.phase,
            "ready": not why_not,
            "why_not_ready": why_not,
            "gate": self._gate(statistics),
            "rates": self._rates(),
            "latency": self._latency(),
            "held": self._held(statistics),
            "in_flight": self._in_flight(statistics),
            "messages": self._messages(statistics),
            "requests": self._requests(statistics),
            "intake": self._counters.snapshot(),
            "outbox": None if self._outbox is None else self._outbox.status(),
            "events": list(self._events),
            "sample": self._samples[-1]._asdict() if self._samples else None,
        }

    def _gate(self, statistics: Statistics) -> dict[str, Any]:
        stopped = statistics.stopped_queues
        return {
            "state": statistics.state,
            "reason": self._shown(statistics.reason),
            "since": self._events[0]["at"] if self._events else None,
            "paused_for": round(statistics.paused_for, 3),
            "pauses": dict(self._dispatcher.engine.tally.pauses),
            "stopped_queues": [self._shown(name) for name in stopped[:QUEUES_MAX]],
            "stopped_queues_total": len(stopped),
        }

    def _rates(self) -> dict[str, Any]:
        first, last = self._marks[0], self._marks[-1]
        batches = last.batches - first.batches
        return {
            "window": round(last.at - first.at, 3),
            **{name: _rate(first, last, name) for name in RATES},
            "messages_per_request": round((last.carried - first.carried) / batches, 2) if batches else None,
        }

    def _latency(self) -> dict[str, Any]:
        found: dict[str, Any] = {"window": round(self._marks[-1].at - self._marks[0].at, 3)}
        for name in ("message", "request"):
            p50, p99 = self._quantiles(f"{name}_counts")
            found[name] = {"p50": p50, "p99": p99}
        return found

    def _held(self, statistics: Statistics) -> dict[str, Any]:
        room = self._dispatcher.engine.room
        return {
            "messages": statistics.held,
            "messages_limit": room.max_messages,
            "bytes": statistics.held_bytes,
            "bytes_limit": room.max_bytes,
            "oldest_age": self._oldest_age(),
            "waiting_for_room": statistics.waiting_for_room,
            "by_state": dict(statistics.by_state),
        }

    def _in_flight(self, statistics: Statistics) -> dict[str, Any]:
        return {
            "requests": statistics.batches_in_flight,
            "limit": statistics.limit,
            "limit_max": self._dispatcher.config.limit.max_in_flight,
            "cuts": dict(statistics.cuts),
            "retry_budget": round(statistics.retry_budget, 1),  # infinite without one: null in JSON
        }

    def _messages(self, statistics: Statistics) -> dict[str, Any]:
        tally = self._dispatcher.engine.tally
        return {
            "taken": statistics.admitted,
            "delivered": statistics.delivered,
            "failed": statistics.failed,
            "refused": dict(tally.refused),
            "finished": dict(statistics.finished),
            "retried": dict(statistics.retried),
            "isolations": statistics.isolations,
            "halvings": tally.halvings,
            "order_violations": statistics.order_violations,
            "late_acceptances": tally.late,
            "unawaited_failures": statistics.unawaited_failures,
        }

    def _requests(self, statistics: Statistics) -> dict[str, Any]:
        return {"by_code": dict(statistics.requests), "by_reason": dict(statistics.batches)}


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Estimate of a quantile, on a straight line between the bounds of its bucket; none without any.

    What is above the last bound is said to be at it.
    """
    goal = share * sum(counts)
    seen, low = 0, 0.0
    for bound, number in zip(bounds, counts, strict=False):
        if number and seen + number >= goal:
            return round(low + (bound - low) * (goal - seen) / number, 6)
        seen, low = seen + number, bound
    return low if any(counts) else None


def _rate(first: Mark, last: Mark, name: str) -> float:
    """A second, between two marks."""
    seconds = last.at - first.at
    return round((getattr(last, name) - getattr(first, name)) / seconds, 2) if seconds > 0 else 0.0
