"""Whose head has waited longest: against a plain minimum, with stale ones, and in bounded memory."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.batch import Lane
from dispatcher.core.heads import Heads

STEPS = st.lists(
    st.tuples(st.integers(0, 7), st.one_of(st.none(), st.integers(0, 30))),
    max_size=80,
)


def lanes(number: int) -> list[Lane]:
    """Empty ones."""
    return [Lane(f"q{index}", True, deque()) for index in range(number)]


@given(steps=STEPS)
def test_the_first_is_the_one_with_the_earliest_head(steps: list[tuple[int, int | None]]) -> None:
    """Whatever was added, moved or forgotten in whatever order."""
    heads, all_lanes = Heads(), lanes(8)
    for index, at in steps:
        lane = all_lanes[index]
        if at is None:
            lane.head_at = -1.0
        else:
            heads.add(lane, float(at))
        known = [one.head_at for one in all_lanes if one.head_at >= 0]
        first = heads.first()
        assert (None if first is None else first.head_at) == min(known, default=None)


def test_who_stands_first_at_the_same_instant_came_first() -> None:
    """Equal instants keep the order in which they were added."""
    heads, (one, two) = Heads(), lanes(2)
    heads.add(one, 1.0)
    heads.add(two, 1.0)
    assert heads.first() is one


def test_lanes_that_come_and_go_do_not_pile_up() -> None:
    """While nobody asks who is first, what is stale at the front is dropped as others are added."""
    heads, some = Heads(), lanes(10)
    for turn in range(1_000):
        lane = some[turn % 10]
        lane.head_at = -1.0
        heads.add(lane, float(turn))
    assert len(heads) <= 20
