"""The retry budget by itself: a bucket that time and successes fill."""

from __future__ import annotations

import pytest

from dispatcher.core.budget import EARNED, REFILL_PER_SECOND, RETRY_COST, THROTTLED_COST, Budget
from tests.core.rig import Rig


def spent(capacity: float = 100.0, *, now: float = 10.0) -> Budget:
    """A budget out of which everything was taken at `now`."""
    budget = Budget(capacity)
    assert budget.try_pay(int(capacity), now)
    return budget


def test_the_numbers() -> None:
    """The algorithm's: 14 for a retry, 5 after a 429, one earned by a first success, five a second."""
    assert (RETRY_COST, THROTTLED_COST, EARNED, REFILL_PER_SECOND) == (14, 5, 1.0, 5.0)
    assert Rig().engine.budget.capacity == 500


def test_it_is_full_at_first() -> None:
    """And time adds nothing then."""
    budget = Budget(100.0)
    assert (budget.is_full, budget.tokens(0.0), budget.tokens(1e6)) == (True, 100.0, 100.0)


def test_to_pay() -> None:
    """What is there, and nothing less; who cannot pay leaves it as it is."""
    budget = Budget(20.0)
    assert budget.try_pay(14, 10.0)
    assert (budget.is_full, budget.tokens(10.0)) == (False, 6.0)
    assert not budget.try_pay(14, 10.0)
    assert budget.tokens(10.0) == 6.0
    assert budget.try_pay(5, 10.0)
    assert budget.tokens(10.0) == 1.0


def test_time_fills_it() -> None:
    """Five a second up to its capacity; to ask changes nothing."""
    budget = spent()
    assert [budget.tokens(10.0 + seconds) for seconds in (20.0, 1.0, 0.0, 1e6)] == [100.0, 5.0, 0.0, 100.0]
    assert not budget.try_pay(6, 11.0)
    assert budget.try_pay(5, 11.0)
    assert budget.tokens(13.0) == 10.0


def test_a_clock_that_stands_still_or_goes_back() -> None:
    """Takes nothing out, and fills nothing twice."""
    budget = spent(now=20.0)
    assert budget.tokens(10.0) == 0.0
    assert not budget.try_pay(1, 10.0)
    assert budget.tokens(21.0) == 5.0


@pytest.mark.parametrize("cost", [5, 14])
@pytest.mark.parametrize("at", [10.0, 1_000.1, 123_456.7])
def test_when_it_is_ready(cost: int, at: float) -> None:
    """At that instant it can be paid, for all that floats round, and not before; what is earned is sooner."""
    budget = spent(now=at)
    ready_at = budget.ready_at(cost)
    assert ready_at == pytest.approx(at + cost / 5)
    assert not budget.try_pay(cost, ready_at - 0.001)
    assert budget.ready_at(cost) == pytest.approx(ready_at), "to ask in vain moves nothing"
    assert budget.try_pay(cost, budget.ready_at(cost))
    budget.earn(1.0)
    assert budget.ready_at(cost) == pytest.approx(ready_at + (cost - 1) / 5)


def test_earned_up_to_the_capacity() -> None:
    """No success makes it more than full."""
    budget = spent(10.0)
    budget.earn(4.0)
    assert (budget.tokens(10.0), budget.is_full) == (4.0, False)
    budget.earn(7.0)
    assert (budget.tokens(10.0), budget.is_full) == (10.0, True)


def test_no_budget_at_all() -> None:
    """Without an end: always full, whatever is taken."""
    budget = Budget(float("inf"))
    assert all(budget.try_pay(14, 10.0) for _ in range(1_000))
    assert budget.is_full
    assert budget.ready_at(14) <= 10.0
