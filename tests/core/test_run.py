"""A run: columns of messages that were admitted together, and the entries they become when it is opened."""

from __future__ import annotations

from collections import deque

import pytest

from dispatcher.core.batch import BACKING_OFF, IN_FLIGHT, SETTLED, WAITING, Batch, Entry, Lane, Run
from tests.core.known_run import KnownRun, carried, is_out, known_run
from tests.core.rig import make_entry


def run_of(number: int = 3) -> KnownRun:
    """A run that was numbered from 7 on."""
    run = known_run([make_entry(size=10 + place, identity=f"id-{place}") for place in range(number)])
    run.number, run.epoch, run.lane = 7, 2, Lane(None, False, deque())
    return run


def test_its_columns() -> None:
    """As many as there are messages, with the sum of the items' bytes; nothing is open."""
    run = run_of()
    assert len(run) == 3
    assert run.size_bytes == 33
    assert (run.entries, run.receipts, run.state) == (None, None, WAITING)


def test_a_run_does_not_know_its_entries() -> None:
    """What an entry is, the runtime says."""
    with pytest.raises(NotImplementedError):
        Run([], [], []).entry(0)


@pytest.mark.parametrize("state", [WAITING, IN_FLIGHT])
def test_opening_it_gives_each_message_its_place(state: int) -> None:
    """Numbers in a row, and the lane, the epoch and the state that the run is in."""
    run = run_of()
    run.state = state
    entries = run.open()
    assert entries == list(run.known)
    assert [entry.number for entry in entries] == [7, 8, 9]
    assert {(entry.lane, entry.epoch, entry.state) for entry in entries} == {(run.lane, 2, state)}


def test_it_is_opened_once() -> None:
    """The same entries each time: whatever became of them is not undone."""
    run = run_of()
    entries = run.open()
    entries[1].state = BACKING_OFF
    assert run.open() is entries is run.entries
    assert [entry.state for entry in entries] == [WAITING, BACKING_OFF, WAITING]


def test_an_empty_one_opens_into_nothing() -> None:
    """A run that nothing was added to."""
    run = KnownRun([], [], [])
    assert (run.open(), len(run)) == ([], 0)


def test_a_batch_of_a_run_is_closed_until_its_entries_are_asked_for() -> None:
    """Its run, its length and its body say nothing about single messages; `entries` opens it for good."""
    run = run_of()
    batch = Batch(run, run.size_bytes, "messages")
    assert batch.run is run
    assert len(batch.members) == 3
    assert batch.body() == b"[" + b",".join([b"x" * 10, b"x" * 11, b"x" * 12]) + b"]"
    assert run.entries is None
    body, entries = batch.body(), batch.entries
    assert entries == list(run.known)
    assert batch.members is run.open() is entries
    assert batch.body() == body


def test_opening_a_batch() -> None:
    """The same by a word of its own, any number of times; a batch without a run has its entries already."""
    run = run_of()
    batch = Batch(run, run.size_bytes, "messages")
    assert batch.open() is batch.open() is batch.members is run.entries
    entries: list[Entry] = [make_entry()]
    other = Batch(entries, 10, "messages")
    assert other.open() is other.entries is entries
    assert other.run is None


def test_looking_at_a_batch_without_opening_it() -> None:
    """What the tests themselves use: the run stays closed, and its entries know nothing of its state."""
    run = run_of()
    run.state = IN_FLIGHT
    batch = Batch(run, run.size_bytes, "messages")
    assert carried(batch) == list(run.known)
    assert [entry.state for entry in run.known] == [WAITING] * 3
    assert all(is_out(batch, entry) for entry in run.known)
    assert run.entries is None
    run.state = SETTLED
    assert not any(is_out(batch, entry) for entry in run.known)
