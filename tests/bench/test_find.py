"""The search for the highest rate, in virtual time: a server whose knee is known, and a scripted one."""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING

import pytest

from dispatcher.bench.find import TRIALS_MAX, Finding, Goal, Search, Trial, Window, find
from dispatcher.bench.histogram import LogHistogram
from dispatcher.bench.schedule import constant

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = 0.001
"""Seconds that the model server takes for each message, one after the other."""
GOAL = Goal(0.99, 0.010)
MESSAGES = 20_000


def sojourn_beyond(rate: float, seconds: float) -> float:
    """Share of the messages that an M/D/1 server keeps longer than this (Erlang's formula for the wait)."""
    load, wait = rate * SERVICE, seconds - SERVICE
    terms = (
        (rate * (place * SERVICE - wait)) ** place
        / math.factorial(place)
        * math.exp(-rate * (place * SERVICE - wait))
        for place in range(math.floor(wait / SERVICE + 1e-9) + 1)
    )
    return 1.0 - (1.0 - load) * sum(terms)


def known_knee(goal: Goal) -> float:
    """The rate above which the quantile exceeds the bound."""
    low, high = 1.0, 1.0 / SERVICE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if sojourn_beyond(middle, goal.seconds) <= 1 - goal.share else (low, middle)
        )
    return low


def served(rate: float, seed: int) -> Window:
    """One window of Poisson arrivals at a server that takes one message after the other."""
    latencies = LogHistogram()
    free_at = 0.0
    for at in constant(rate, MESSAGES / rate, is_poisson=True, seed=seed).instants():
        free_at = max(free_at, at) + SERVICE
        latencies.record(free_at - at)
    return Window(latencies.quantile(GOAL.share), latencies.count, rate, failed=0)


async def search(
    measure: Callable[[float], Window | None], *, start: float, precision: float = 0.02, most: float = 1e7
) -> Finding:
    """Run one with a model for a target."""
    told: list[Trial] = []

    async def asked(rate: float) -> Window | None:
        return measure(rate)

    finding = await find(GOAL, Search(start, precision, most), asked, told.append)
    assert tuple(told) == finding.trials
    return finding


@pytest.mark.anyio
@pytest.mark.parametrize("start", [100.0, 5_000.0])
async def test_it_finds_the_known_knee(start: float) -> None:
    """Within 5 % of the formula's, from below and from above."""
    seeds = count()
    finding = await search(lambda rate: served(rate, next(seeds)), start=start)
    assert finding.is_complete
    assert finding.rate == pytest.approx(known_knee(GOAL), rel=0.05)
    assert finding.fails_at is not None
    assert finding.rate is not None
    assert finding.fails_at > finding.rate


def window(*, holds: bool) -> Window:
    return Window(0.001 if holds else 1.0, 100, 100.0, failed=0)


@pytest.mark.anyio
async def test_two_of_three_windows_decide() -> None:
    """One bad window is forgiven, two are not, and no more are measured than are needed."""
    script = iter([True, False, True, False, True, False, *[True] * 100])
    finding = await search(lambda _: window(holds=next(script)), start=100.0, precision=1.0, most=200.0)
    first, second = finding.trials[:2]
    assert (first.rate, first.holds, len(first.windows)) == (100.0, True, 3)
    assert (second.rate, second.holds, len(second.windows)) == (200.0, False, 3)


@pytest.mark.anyio
async def test_what_was_only_lucky_is_not_reported() -> None:
    """The rate that bisection ends at is measured again, and goes down until it holds."""
    asked: dict[float, int] = {}

    def lucky(rate: float) -> Window:
        asked[rate] = asked.get(rate, 0) + 1
        is_over = max(asked.values()) > 2  # a rate is measured again: there is no luck any more
        return window(holds=rate <= 100 or (rate <= 140 and not is_over))

    finding = await search(lucky, start=50.0, precision=0.1)
    assert finding.is_complete
    assert finding.rate is not None
    assert 80 < finding.rate <= 100
    assert finding.trials[-1].holds
    assert finding.trials[-1].rate == finding.rate


@pytest.mark.anyio
async def test_failures_are_no_latency() -> None:
    """A window in which a message failed, or none was delivered, does not hold, however fast it was."""
    assert not Window(0.0, 100, 100.0, failed=1).holds(GOAL)
    assert not Window(0.0, 0, 0.0, failed=0).holds(GOAL)
    assert Window(0.0, 1, 1.0, failed=0).holds(GOAL)
    finding = await search(lambda _: Window(0.001, 10, 10.0, failed=1), start=64.0)
    assert finding.rate is None
    assert [trial.rate for trial in finding.trials] == [64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0]


@pytest.mark.anyio
async def test_it_ends_where_it_may_not_go_further() -> None:
    """At the highest rate allowed; when it is told to stop; after so many trials at most."""
    assert (await search(lambda _: window(holds=True), start=10.0, most=80.0)).rate == 80.0
    finding = await search(lambda rate: None if rate > 30 else window(holds=True), start=10.0)
    assert (finding.rate, finding.is_complete) == (20.0, False)
    fickle = count()
    endless = await search(lambda _: window(holds=next(fickle) % 4 < 2), start=1_000.0, precision=0.001)
    assert len(endless.trials) <= TRIALS_MAX


def test_windows_are_long_enough_for_their_quantile() -> None:
    """Ten messages beyond it, but no more than ten times as long."""
    assert GOAL.window_seconds(10_000, 5.0) == 5.0
    assert GOAL.window_seconds(100, 5.0) == pytest.approx(10.0)
    assert GOAL.window_seconds(1, 5.0) == 50.0
    assert Goal(1.0, 1.0).window_seconds(1, 5.0) == 5.0
