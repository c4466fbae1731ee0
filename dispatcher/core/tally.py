"""Plain counters and histograms, filled by the core and the runtime, read at a scrape.

Plain integers, because a labelled Prometheus counter costs 1.7–3.2 µs an increment and an `int += 1`
0.02 µs. Keys are fixed words of ours (outcomes, causes, status codes), never user data.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dispatcher.core.batch import Entry, Run

SECONDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
)
MESSAGES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0)
BYTES: Final = (1e3, 4e3, 16e3, 64e3, 128e3, 256e3, 512e3, 1e6, 2e6, 4e6, 16e6, 64e6)

OUTCOMES: Final = (
    *("delivered", "rejected", "unknown", "deadline_exceeded", "retries_exhausted", "halted"),
    *("quota_exhausted", "abandoned", "withdrawn"),
)
"""How a message settles: the keys of `Tally.finished`."""
REFUSALS: Final = ("full", "invalid", "too_large", "closed")
"""Why a message is not admitted: the keys of `Tally.refused`."""
CAUSES: Final = (
    *("throttled", "server_error", "timed_out", "disconnected", "connect_failed", "unreadable_reply"),
    *("overtaken", "error_entry", "token_refused", "redirected", "forbidden", "not_found"),
)
"""Why messages are put back: the keys of `Tally.retried`; all but the error entry are `retry`'s rulings."""
REASONS: Final = (
    *("messages", "bytes", "linger", "idle", "flush", "room", "drain", "retry", "isolation", "single"),
    *("probe", "halving"),
)
"""Why a batch leaves: the keys of `Tally.batches`."""
PAUSES: Final = ("throttle", "quota", "outage")
"""Why the gate closed: the keys of `Tally.pauses`."""
CUTS: Final = ("throttled", "server_error", "timed_out", "connect_failed")
"""Why the limit was lowered: the keys of `Tally.cuts`."""
STAGES: Final = ("queue", "delivery", "total")
"""queue: admitted to its first request; delivery: that request to the receipt, retries included; total."""


class Histogram:
    """Counts of observations by upper bound, with their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def quantile(self, share: float) -> float:
        """Upper bound of the bucket in which this share of the observations is reached; 0 without any."""
        goal = share * sum(self.counts)
        seen = 0
        for bound, number in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += number
            if seen and seen >= goal:
                return bound
        return 0.0


def add(counts: dict[str, int], key: str, number: int = 1) -> None:
    """Add to one of several counters."""
    counts[key] = counts.get(key, 0) + number


class Tally:
    """What happened since the dispatcher was made."""

    __slots__ = (
        "admitted",
        "batch_bytes",
        "batch_messages",
        "batches",
        "cuts",
        "finished",
        "halvings",
        "isolations",
        "late",
        "order_violations",
        "pauses",
        "refused",
        "request_seconds",
        "requests",
        "retried",
        "stage_seconds",
        "unawaited_failures",
    )  # fmt: skip

    def __init__(self) -> None:
        self.admitted = 0
        self.refused: dict[str, int] = {}
        """Messages not admitted, by reason: full, invalid, too_large, closed."""
        self.finished: dict[str, int] = {}
        """Messages settled, by outcome."""
        self.retried: dict[str, int] = {}
        """Messages put back for another attempt, by cause."""
        self.batches: dict[str, int] = {}
        """Requests started, by why the batch left."""
        self.requests: dict[str, int] = {}
        """Requests ended, by status code or kind of failure."""
        self.isolations = 0
        self.halvings = 0
        """Times that what failed together was halved."""
        self.pauses: dict[str, int] = {}
        """Replies that asked us to wait, by what for, and outages."""
        self.cuts: dict[str, int] = {}
        """Times that the limit was lowered, by why."""
        self.order_violations = 0
        """Messages of an ordered lane that the service refused while it accepted later ones of the batch."""
        self.late = 0
        """Accepted by the service after they had settled here, at their deadline or at a drain's end."""
        self.unawaited_failures = 0
        self.request_seconds = Histogram(SECONDS)
        self.stage_seconds = {stage: Histogram(SECONDS) for stage in STAGES}
        self.batch_messages = Histogram(MESSAGES)
        self.batch_bytes = Histogram(BYTES)

    def delivered(self, entries: list[Entry], started_at: float, now: float) -> None:
        """Observe the latencies of what one request delivered, in runs of one admission instant."""
        add(self.finished, "delivered", len(entries))
        run = 0
        admitted_at = entries[0].admitted_at
        for entry in entries:
            if entry.trouble is not None:
                self._observe(entry.admitted_at, entry.trouble.first_sent_at, now, 1)
                continue
            if entry.admitted_at != admitted_at:
                self._observe(admitted_at, started_at, now, run)
                admitted_at, run = entry.admitted_at, 0
            run += 1
        self._observe(admitted_at, started_at, now, run)

    def delivered_run(self, run: Run, started_at: float, now: float) -> None:
        """The same for a run."""
        add(self.finished, "delivered", len(run))
        self._observe(run.admitted_at, started_at, now, len(run))

    def _observe(self, admitted_at: float, started_at: float, now: float, times: int) -> None:
        if times == 0:
            return
        self.stage_seconds["queue"].observe(max(0.0, started_at - admitted_at), times)
        self.stage_seconds["delivery"].observe(now - started_at, times)
        self.stage_seconds["total"].observe(now - admitted_at, times)
