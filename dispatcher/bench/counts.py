"""Reads what a target has counted, and the difference between two readings: the counts of one run.

A dispatcher outlives the warm-up and the windows of a search, so its counters are read before and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from dispatcher.bench.histogram import LogHistogram
from dispatcher.bench.result import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.bench.http import HTTPTarget
    from dispatcher.core.tally import Histogram
    from dispatcher.dispatcher import Dispatcher

WORDS = ("requests", "retried", "pauses", "cuts", "batches")
OWN_STAGES = ("queue", "delivery")


class Reading(Struct, frozen=True):
    """Every counter of a target at one instant."""

    words: Mapping[str, Mapping[str, int]]
    carried: int
    stages: Mapping[str, tuple[list[int], float]] = {}
    """Counts by bucket, and the sum."""


def read_dispatcher(dispatcher: Dispatcher, requests: Histogram) -> Reading:
    """A dispatcher's, by its core's tally, and what its requests took."""
    tally = dispatcher.engine.tally
    words = {name: dict(getattr(tally, name)) for name in WORDS}
    stages = {name: _copy(tally.stage_seconds[name]) for name in OWN_STAGES}
    stages["request"] = _copy(requests)
    return Reading(words, int(tally.batch_messages.total), stages)


def read_http(target: HTTPTarget) -> Reading:
    """A bare upstream's."""
    stages = {"request": _copy(target.seconds)}
    return Reading({"requests": dict(target.requests)}, target.messages, stages)


def between(before: Reading, after: Reading) -> Counts:
    """What was counted from the one to the other."""
    words = {name: _grown(before.words.get(name, {}), now) for name, now in after.words.items()}
    stages = {
        name: LogHistogram.from_counts(
            [mine - theirs for mine, theirs in zip(counts, before.stages[name][0], strict=True)],
            total - before.stages[name][1],
        )
        for name, (counts, total) in after.stages.items()
    }
    return Counts(carried=after.carried - before.carried, stages=stages, **words)


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    grown = {key: number - before.get(key, 0) for key, number in after.items()}
    return {key: number for key, number in grown.items() if number}


def _copy(histogram: Histogram) -> tuple[list[int], float]:
    return list(histogram.counts), histogram.total
