"""The histogram against exact quantiles: within 1 %, mergeable, of constant size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.bench.histogram import BOUNDS, LAST, LEAST, MOST, LogHistogram
from dispatcher.core.tally import Histogram

SECONDS = st.floats(min_value=LEAST, max_value=MOST, allow_nan=False)
SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0])


def filled(values: list[float]) -> LogHistogram:
    made = LogHistogram()
    for value in values:
        made.record(value)
    return made


def exact(values: list[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


@given(st.lists(SECONDS, min_size=1, max_size=200), SHARES)
def test_quantiles_are_exact_to_within_one_percent(values: list[float], share: float) -> None:
    """Whatever the values, from a microsecond to an hour."""
    found, right = filled(values).quantile(share), exact(values, share)
    assert abs(found - right) <= 0.0101 * right


@given(st.lists(SECONDS, max_size=100), st.lists(SECONDS, max_size=100))
def test_merging_is_counting_together(one: list[float], other: list[float]) -> None:
    """As if one histogram had seen everything."""
    merged, together = filled(one), filled(one + other)
    merged.merge(filled(other))
    assert merged.counts == together.counts
    assert (merged.count, merged.least, merged.greatest) == (
        together.count,
        together.least,
        together.greatest,
    )
    assert merged.mean == pytest.approx(together.mean)


@given(st.lists(SECONDS, min_size=1, max_size=100), SHARES)
def test_the_cores_histogram_counts_alike(values: list[float], share: float) -> None:
    """With the bounds of this one, what the core has counted has the same quantiles, to within a bucket."""
    core = Histogram(BOUNDS)
    for value in values:
        core.observe(value)
    made = LogHistogram.from_counts(core.counts, core.total)
    assert made.count == len(values)
    assert made.quantile(share) == pytest.approx(exact(values, share), rel=0.0301)


@given(st.lists(SECONDS, min_size=1, max_size=100))
def test_the_curve_rises_to_all(values: list[float]) -> None:
    """Shares and values ascend, and end at 1 and the greatest."""
    made = filled(values)
    curve = list(made.curve())
    assert curve == sorted(curve)
    assert curve[-1][0] == 1.0
    assert curve[-1][1] == pytest.approx(max(values), rel=0.0101)
    assert all(made.quantile(share) == value for share, value in curve[:-1])


def test_what_lies_outside_is_kept() -> None:
    """Below a microsecond, above an hour, and less than nothing: counted, the greatest as it is."""
    made = filled([-1.0, 0.0, 1e-9, 10 * MOST])
    assert made.count == 4
    assert made.least == 0.0
    assert made.quantile(1.0) == made.greatest == 10 * MOST
    assert made.quantile(0.5) <= LEAST


def test_it_has_a_constant_size() -> None:
    """Some thousand integers, however many values there are."""
    made = LogHistogram()
    made.record(0.001, times=10**12)
    assert made.count == 10**12
    assert len(made.counts) == LAST + 1 < 1_200
    assert LogHistogram().quantile(0.5) == LogHistogram().mean == 0.0
