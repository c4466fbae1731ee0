"""Latencies in logarithmic buckets: constant memory, mergeable, each value kept to within 1 %.

A bucket's upper bound is 2 % above its lower one, and a bucket stands for its middle. From 1 µs to an hour
that makes some 1,100 integers; what lies outside is counted in the outermost buckets, and the smallest and
largest value are kept as they are. Pure. Filled by `recorder`, and from the core's own counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GROWTH: Final = 1.02
LEAST: Final = 1e-6
MOST: Final = 3_600.0
_SCALE: Final = 1.0 / math.log(GROWTH)
_SHIFT: Final = -math.log(LEAST) * _SCALE
LAST: Final = math.ceil(math.log(MOST / LEAST) * _SCALE)
BOUNDS: Final = tuple(LEAST * GROWTH**place for place in range(LAST))
"""Upper bounds of all buckets but the last: with them the core's histograms count as this one does."""
_MIDDLE: Final = 2.0 / (1.0 + GROWTH)
"""Of a bucket's upper bound: from there both ends are equally far, relatively."""


class LogHistogram:
    """Counts of seconds by bucket."""

    __slots__ = ("count", "counts", "greatest", "least", "total")

    def __init__(self) -> None:
        self.counts = [0] * (LAST + 1)
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.greatest = 0.0

    @classmethod
    def from_counts(cls, counts: Sequence[int], total: float) -> LogHistogram:
        """From counts by `BOUNDS`; the extremes are then those of the buckets."""
        made = cls()
        made.counts = list(counts)
        made.count, made.total = sum(counts), max(0.0, total)
        filled = [place for place, number in enumerate(counts) if number]
        if filled:
            made.least, made.greatest = _middle(filled[0]), _middle(filled[-1])
        return made

    def record(self, seconds: float, times: int = 1) -> None:
        """Count one value, `times` times; below 0 is 0."""
        if seconds <= LEAST:
            seconds, place = max(0.0, seconds), 0
        else:
            place = min(math.ceil(math.log(seconds) * _SCALE + _SHIFT), LAST)
        self.counts[place] += times
        self.count += times
        self.total += seconds * times
        if seconds > self.greatest:
            self.greatest = seconds
        if seconds < self.least:
            self.least = seconds

    def merge(self, other: LogHistogram) -> None:
        """Add the other's counts."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.greatest = max(self.greatest, other.greatest)
        self.least = min(self.least, other.least)

    @property
    def mean(self) -> float:
        """Of all values; 0 without any."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value that this share of all does not exceed, to within 1 %; 0 without any."""
        goal = max(1, math.ceil(share * self.count - 1e-9))
        if goal >= self.count:
            return self.greatest
        seen = 0
        for place, number in enumerate(self.counts):
            seen += number
            if seen >= goal:
                return self._clamped(place)
        return self.greatest  # pragma: no cover - the counts add up

    def above(self, seconds: float) -> int:
        """How many values are above this one, to within its bucket."""
        return sum(number for place, number in enumerate(self.counts) if number and _middle(place) > seconds)

    def curve(self) -> Iterator[tuple[float, float]]:
        """Each filled bucket: the share of all that does not exceed it, and its value."""
        seen = 0
        for place, number in enumerate(self.counts):
            if number:
                seen += number
                yield seen / self.count, self._clamped(place)

    def _clamped(self, place: int) -> float:
        return self.least if place == 0 else min(max(_middle(place), self.least), self.greatest)


def _middle(place: int) -> float:
    return LEAST if place == 0 else LEAST * math.exp(place / _SCALE) * _MIDDLE
