"""What a soak's samples say: whether memory and descriptors stay flat, and nothing went wrong or missing.

Pure: no clock, no process, no socket. Judged is the second half, when caches are full and the collector has
found its pace. A slope is the median of the slopes of all pairs of samples (Theil and Sen): a few outliers do
not move it. Used by `soak`.
"""

from __future__ import annotations

from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

MB = 1_000_000
SETTLED_SHARE = 0.1
"""Of the second half, at both of its ends, goes into what it grew from and to."""


BACKLOG_SECONDS = 0.25


class Sample(Struct, frozen=True):
    """The sidecar at one instant under load."""

    at: float
    """Seconds since the load began."""
    resident_bytes: int
    descriptors: int
    connections: int
    held: int
    answers: int
    """Since the last sample."""
    p50: float
    """Seconds from the instant a request was due to the last byte of its answer, since the last sample."""
    p99: float


class Totals(Struct, frozen=True):
    """What came of the whole load."""

    wanted: int
    """Requests that were due."""
    answered: int
    hung_up: int
    """Requests whose callers went without waiting."""
    unexpected: int
    """Answers that should not have been, and connections that ended without one."""
    confirmed_messages: int
    hung_up_messages: int
    upstream_messages: int
    idle_descriptors_before: int
    idle_descriptors_after: int
    exit_code: int


class Bounds(Struct, frozen=True):
    """What is allowed."""

    slope_mb: float = 1.0
    """Resident memory, MB a minute."""
    growth: float = 0.05
    """Of the resident memory in the second half."""
    descriptors: float = 2.0
    """Slope, a minute; above the spread of connections that come and go."""
    kept_descriptors: int = 8
    """More of them after the load than before it."""
    answered: float = 0.97
    """Share of what was due that was answered at all."""
    backlog: float = 0.02
    """Share of the samples in which half of the requests waited for longer than `BACKLOG_SECONDS`: more, and
    the load was above what the machine had left, whatever it was to be."""


class Finding(Struct, frozen=True):
    """One figure and its bound."""

    name: str
    value: float
    bound: float
    holds: bool

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g} (bound {self.bound:g}{'' if self.holds else ': MISSED'})"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of y over x, robust; 0 for fewer than two points."""
    found = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in combinations(points, 2) if x1 > x0]
    return median(found) if found else 0.0


def growth(values: Sequence[float]) -> float:
    """How much the last of them are above the first, as a share."""
    few = max(1, int(len(values) * SETTLED_SHARE))
    first = median(values[:few])
    return median(values[-few:]) / first - 1.0 if first else 0.0


def judge(samples: Sequence[Sample], totals: Totals, bounds: Bounds) -> list[Finding]:
    """Every figure with its bound."""
    half = samples[len(samples) // 2 :]
    memory = [float(one.resident_bytes) for one in half]
    per_minute = 60 / MB * slope([(one.at, float(one.resident_bytes)) for one in half])
    descriptors = 60 * slope([(one.at, float(one.descriptors - one.connections)) for one in half])
    kept = totals.idle_descriptors_after - totals.idle_descriptors_before
    missing = totals.confirmed_messages - totals.upstream_messages
    invented = totals.upstream_messages - totals.confirmed_messages - totals.hung_up_messages
    late = sum(one.p50 > BACKLOG_SECONDS for one in samples) / len(samples) if samples else 0.0
    share = (totals.answered + totals.hung_up) / totals.wanted if totals.wanted else 0.0
    return [
        _at_most("memory MB/min", per_minute, bounds.slope_mb),
        _at_most("memory growth", growth(memory), bounds.growth),
        _at_most("descriptors/min", abs(descriptors), bounds.descriptors),
        _at_most("descriptors kept", kept, bounds.kept_descriptors),
        _at_most("unexpected answers", totals.unexpected, 0),
        _at_most("messages lost", max(0, missing), 0),
        _at_most("messages nobody sent", max(0, invented), 0),
        Finding("share answered", share, bounds.answered, share >= bounds.answered),
        _at_most("samples with a backlog", late, bounds.backlog),
        _at_most("exit code", abs(totals.exit_code), 0),
    ]


def _at_most(name: str, value: float, bound: float) -> Finding:
    return Finding(name, float(value), float(bound), value <= bound)
