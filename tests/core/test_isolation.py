"""Isolation: who is found, at what cost, in which order, and what it does when entries leave meanwhile."""

from __future__ import annotations

from collections import deque
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.isolation import cost, costs, entries, search, table
from dispatcher.core.batch import SETTLED, Entry, Lane
from dispatcher.core.isolation import Isolation


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 16, 31, 64, 99, 100, 101, 200, 333, 500])
def test_one_culprit_at_every_position(size: int) -> None:
    """Exactly the culprit is rejected wherever it is, at a logarithmic cost."""
    assert max(costs(size, 1)) <= 2 * size.bit_length()


def test_one_culprit_in_a_hundred_costs_what_was_measured() -> None:
    """Simulated beforehand: 10.9 more requests on average, 14 at most."""
    found = costs(100, 1)
    assert mean(found) <= 10.9
    assert max(found) <= 14


def test_ten_culprits_in_a_hundred_cost_what_was_measured() -> None:
    """Simulated beforehand: about 61 more requests."""
    assert mean(costs(100, 10)) == pytest.approx(61, abs=2)


@given(st.integers(2, 300), st.data())
def test_exactly_the_culprits_are_rejected(size: int, data: st.DataObject) -> None:
    """Any number of culprits anywhere: they are rejected, in order, and every other message passes."""
    culprits = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=12))
    requests = cost(size, culprits)  # asserts who was rejected
    assert requests <= 2 * size


@given(st.integers(2, 120), st.data())
def test_sizes_and_counts_are_not_inferred_from(size: int, data: st.DataObject) -> None:
    """Refusals of size or count prove nothing of the other half: both are sent, and both may pass."""
    culprits = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    _, rejected = search(entries(size), culprits, infers=False)
    assert rejected == sorted(culprits)


def test_many_culprits_end_the_bisection() -> None:
    """After max(3, n/8) rejected alone the rest goes singly: never much more than one request a message."""
    for size in (24, 100, 400):
        assert cost(size, range(size)) <= size + size // 3
        assert cost(size, range(size // 2, size)) <= 1.4 * size


def test_the_rest_goes_singly_from_the_third_on() -> None:
    """Three of sixteen rejected alone: each of those behind them gets a request of its own."""
    batch = entries(16)
    isolation = Isolation(batch, is_whole=True, infers=True, text="")
    rejected = 0
    sizes = []
    while (probe := isolation.next_probe()) is not None:
        if rejected >= 3:
            sizes.append(len(probe))
        bad = any(entry.number in (0, 1, 2) for entry in probe)
        if bad and isolation.on_refused(infers=True) is not None:
            rejected += 1
            probe[0].state = SETTLED
        elif not bad:
            isolation.on_accepted()
            for entry in probe:
                entry.state = SETTLED
    assert sizes == [1] * 13


def test_a_named_suspect_is_tried_first() -> None:
    """If the words name one item's value, two requests suffice: the suspect, and the rest."""
    requests, rejected = search(entries(100), {37}, text='deduplication id "id000037" is invalid')
    assert (requests, rejected) == (2, [37])


def test_a_wrongly_named_suspect_costs_one_request() -> None:
    """If the suspect passes, the culprit is in the rest, which is not sent whole."""
    requests, rejected = search(entries(100), {80}, text="see id000037")
    assert rejected == [80]
    assert requests <= 15


def test_a_value_found_in_many_items_names_nobody() -> None:
    """All items go to the destination that is named: plain bisection."""
    requests, _ = search(entries(100), {37}, text="cannot deliver to https://example.com/")
    assert requests > 5


def test_a_named_suspect_stays_behind_its_own_lane() -> None:
    """In an ordered lane the suspect does not pass those before it."""
    batch = entries(10)
    lane = Lane("q", True, deque())
    for entry in batch[2:8]:
        entry.lane = lane
    isolation = Isolation(batch, is_whole=True, infers=True, text="id000005")
    sent: list[int] = []
    while (probe := isolation.next_probe()) is not None:
        if 5 in [entry.number for entry in probe]:
            culprit = isolation.on_refused(infers=True)
            if culprit is not None:
                culprit.state = SETTLED
        else:
            sent += [entry.number for entry in probe]
            isolation.on_accepted()
            for entry in probe:
                entry.state = SETTLED
    assert [number for number in sent if 2 <= number < 8] == [2, 3, 4, 6, 7]


@given(st.integers(2, 80), st.data())
def test_order_is_kept(size: int, data: st.DataObject) -> None:
    """What passes, passes from left to right (without a named suspect)."""
    culprits = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=6))
    isolation = Isolation(entries(size), is_whole=True, infers=True, text="")
    passed: list[int] = []
    while (probe := isolation.next_probe()) is not None:
        if culprits & {entry.number for entry in probe}:
            culprit = isolation.on_refused(infers=True)
            if culprit is not None:
                passed.append(culprit.number)
                culprit.state = SETTLED
        else:
            isolation.on_accepted()
            passed += _settle(probe)
    assert passed == sorted(passed) == list(range(size))


def _settle(probe: list[Entry]) -> list[int]:
    for entry in probe:
        entry.state = SETTLED
    return [entry.number for entry in probe]


@given(st.integers(2, 60), st.data())
def test_nobody_is_blamed_for_one_who_left(size: int, data: st.DataObject) -> None:
    """Entries expire while the search goes on, the culprit perhaps among them: no other is blamed."""
    culprits = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    batch = entries(size)
    isolation = Isolation(batch, is_whole=True, infers=True, text="")
    rejected: set[int] = set()
    while (probe := isolation.next_probe()) is not None:
        gone = data.draw(st.sets(st.integers(0, size - 1), max_size=2))
        assert all(entry.state != SETTLED for entry in probe)
        is_bad = bool(culprits & {entry.number for entry in probe})
        for number in gone - {entry.number for entry in probe}:
            batch[number].state = SETTLED
        if not is_bad:
            isolation.on_accepted()
            _settle(probe)
        elif (culprit := isolation.on_refused(infers=True)) is not None:
            rejected.add(culprit.number)
            culprit.state = SETTLED
    assert rejected <= culprits
    assert all(entry.state == SETTLED for entry in batch)


def test_a_shrunk_probe_proves_nothing() -> None:
    """If the probe is repeated without one of its entries, its passing does not condemn the rest."""
    batch = entries(4)
    isolation = Isolation(batch, is_whole=True, infers=True, text="")
    probe = isolation.next_probe()
    assert probe == batch[:2]
    batch[0].state = SETTLED
    isolation.shrink([batch[1]])
    isolation.on_accepted()
    batch[1].state = SETTLED
    assert isolation.next_probe() == batch[2:]  # sent whole, not split unseen


def test_followers_are_taken_out() -> None:
    """What is pending of a lane can be taken out; the rest goes on without inference."""
    batch = entries(8)
    lane = Lane("q", True, deque())
    batch[3].lane = batch[5].lane = lane
    isolation = Isolation(batch, is_whole=True, infers=True, text="")
    assert isolation.next_probe() == batch[:4]
    isolation.on_accepted()  # the culprit must be on the right …
    assert isolation.extract({id(lane)}) == [batch[5]]  # … unless it has just left
    _settle(batch[:4])
    assert isolation.next_probe() == [batch[4], batch[6], batch[7]]


def test_the_table_is_made_from_real_searches() -> None:
    """The benchmark's table has a row for each size and names no cost that was not measured."""
    rows = table().splitlines()
    assert len(rows) == 12
    assert rows[9].startswith("| 100 | ")
