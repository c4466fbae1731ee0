"""The schedules: how many starts, where, and that nothing but their arguments decides."""

from __future__ import annotations

from itertools import islice, pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.bench.schedule import Schedule, bursts, constant, steps

RATES = st.floats(min_value=0.5, max_value=2_000.0)
DURATIONS = st.floats(min_value=0.01, max_value=3.0)
SCHEDULES = st.one_of(
    st.builds(constant, RATES, DURATIONS, is_poisson=st.booleans(), seed=st.integers(0, 9)),
    st.builds(steps, st.lists(RATES, min_size=1, max_size=4), DURATIONS, is_poisson=st.booleans()),
    st.builds(bursts, st.integers(1, 50), st.floats(0.05, 2.0), DURATIONS),
)


@given(SCHEDULES)
def test_starts_ascend_within_the_duration(schedule: Schedule) -> None:
    """None before 0, none at or after the end, none before the one before it; the same ones every time."""
    instants = list(schedule.instants())
    assert all(0.0 <= at < schedule.duration for at in instants)
    assert all(one <= other for one, other in pairwise(instants))
    assert instants == list(schedule.instants())


@given(st.integers(1, 2_000), st.integers(1, 3))
def test_a_constant_rate_is_evenly_spaced(rate: int, seconds: int) -> None:
    """Exactly so many, one after the other, no error adding up."""
    instants = list(constant(rate, seconds).instants())
    assert len(instants) == rate * seconds == constant(rate, seconds).expected
    assert instants[-1] == pytest.approx((rate * seconds - 1) / rate)


def test_poisson_arrivals_have_their_mean_and_spread() -> None:
    """Gaps as of an exponential distribution: their spread is their mean."""
    instants = list(constant(1_000, 20, is_poisson=True, seed=3).instants())
    gaps = [other - one for one, other in pairwise(instants)]
    assert len(instants) == pytest.approx(20_000, rel=0.03)
    assert fmean(gaps) == pytest.approx(0.001, rel=0.03)
    assert pstdev(gaps) == pytest.approx(0.001, rel=0.05)
    assert instants != list(constant(1_000, 20, is_poisson=True, seed=4).instants())


def test_steps_share_the_duration() -> None:
    """Each rate for its part, and no start is lost at an edge."""
    schedule = steps([100, 300, 50], 6)
    instants = list(schedule.instants())
    parts = [sum(start <= at < start + 2 for at in instants) for start in (0, 2, 4)]
    assert parts == [200, 600, 100]
    assert [schedule.rate_at(at) for at in (0.0, 1.99, 2.0, 5.9, 6.0)] == [100, 100, 300, 50, 0]


def test_bursts_come_all_at_once() -> None:
    """So many at each instant, the first at 0."""
    schedule = bursts(3, 0.5, 1.2)
    assert list(schedule.instants()) == [0.0] * 3 + [0.5] * 3 + [1.0] * 3
    assert (schedule.expected, schedule.rate_at(0.3)) == (9.0, 6.0)


def test_a_schedule_is_never_held_in_memory() -> None:
    """A week at a high rate begins at once."""
    assert list(islice(constant(1_000_000, 604_800).instants(), 3)) == [0.0, 1e-6, 2e-6]


def test_it_says_what_it_is() -> None:
    """In words, for the report."""
    assert constant(1_500, 30).words == "1,500 msg/s, evenly spaced, for 30 s"
    assert steps([10, 20], 1, is_poisson=True).words == "steps of 10, 20 msg/s, Poisson, for 1 s"
    assert bursts(500, 2.5, 10).words == "bursts of 500 every 2.5 s, for 10 s"
