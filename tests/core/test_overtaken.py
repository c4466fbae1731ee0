"""Requests that are given up because a later one has succeeded: once, safely, and heard no more."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.batch import Batch, Entry
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, certainty, is_held, numbers, receipts


def hanging(number: int = 1, **shape: Any) -> tuple[Rig, list[Entry], Batch]:
    """A rig with a request that went out at 100 and hangs."""
    rig = Rig(rng=Extremes())
    entries = rig.put(number, **shape)
    return rig, entries, rig.poll()[0]


def succeed(rig: Rig) -> None:
    """A fresh message goes and is taken at once; where two are out it lingers first."""
    rig.put(1)
    (batch,) = rig.poll() or rig.advance(0.02)
    rig.ok(batch)


def test_one_that_is_overtaken_is_sent_again() -> None:
    """After two seconds, by the first success of what began later; its outcome is not known then."""
    rig, entries, batch = hanging()
    rig.advance(1.99)
    succeed(rig)
    assert batch.number in rig.engine.out
    rig.advance(0.01)
    succeed(rig)
    assert batch.number not in rig.engine.out
    assert rig.engine.tally.retried == {"overtaken": 1}
    assert rig.engine.tally.requests == {"200": 2, "overtaken": 1}
    assert certainty_of(entries[0]) == "unknown"
    again = rig.next()
    assert again.entries == entries
    rig.ok(again)
    assert receipts(rig)[0].attempts == 2


def certainty_of(entry: Entry) -> str:
    """What is known of an entry that is held."""
    assert entry.trouble is not None
    return entry.trouble.certainty


def test_patience_grows_with_what_requests_take() -> None:
    """Where they take half a second, four are not yet long."""
    rig = Rig()
    for _ in range(50):
        rig.engine.stalls.on_success(0.5)
    rig.put(1)
    (batch,) = rig.poll()
    rig.advance(3.0)
    succeed(rig)
    assert batch.number in rig.engine.out
    rig.advance(1.0)
    succeed(rig)
    assert batch.number not in rig.engine.out


@pytest.mark.parametrize("answer", ["ok", "400", "500", "lost"])
def test_a_late_answer_is_not_heard(answer: str) -> None:
    """It settles nothing, blames nobody, and moves no number; the second attempt does."""
    rig, entries, batch = hanging(3)
    rig.advance(2.0)
    succeed(rig)
    before = str(rig.engine.populations()), dict(rig.engine.tally.requests), rig.engine.room.held_bytes
    if answer == "ok":
        rig.ok(batch)
    elif answer == "lost":
        rig.fail(batch)
    else:
        rig.refuse(batch, int(answer))
    assert before == (
        str(rig.engine.populations()),
        dict(rig.engine.tally.requests),
        rig.engine.room.held_bytes,
    )
    assert all(is_held(entry) for entry in entries)
    rig.ok(rig.next())
    assert all(isinstance(entry.outcome, Receipt) for entry in entries)
    assert (rig.engine.room.held_messages, rig.engine.room.held_bytes) == (0, 0)
    assert len(rig.settled) == 4


def test_a_late_answer_after_the_second_one() -> None:
    """Everything is settled long since."""
    rig, entries, batch = hanging()
    rig.advance(2.0)
    succeed(rig)
    rig.ok(rig.next())
    outcome = entries[0].outcome
    rig.refuse(batch, 400)
    assert entries[0].outcome is outcome
    assert rig.engine.tally.finished == {"delivered": 2}


def test_once_for_each_message() -> None:
    """Is it only slow, the second attempt is let finish, however many overtake it."""
    rig, entries, _ = hanging()
    rig.advance(2.0)
    succeed(rig)
    again = rig.next()
    for _ in range(8):
        rig.advance(1.0)
        succeed(rig)
    assert again.number in rig.engine.out
    assert rig.engine.tally.retried == {"overtaken": 1}
    rig.ok(again)
    assert isinstance(entries[0].outcome, Receipt)


def test_one_of_a_batch_that_was_overtaken_before_keeps_all() -> None:
    """The others go when it does: a batch is given up whole or not at all."""
    rig, entries, _ = hanging()
    rig.advance(2.0)
    succeed(rig)
    rig.put(2)
    rig.now = rig.wake_at
    (both,) = rig.poll()
    assert len(both.entries) == 3
    assert entries[0] in both.entries
    rig.advance(3.0)
    succeed(rig)
    assert both.number in rig.engine.out


@pytest.mark.parametrize("number", [0, 1])
def test_without_an_id_it_is_never_given_up(number: int) -> None:
    """To send it again is not safe; nor is a batch with one such message given up."""
    rig = Rig()
    rig.put(number)
    rig.put(1, idempotent=False)
    (batch,) = rig.poll()
    for _ in range(9):
        rig.advance(1.0)
        succeed(rig)
    assert batch.number in rig.engine.out
    assert rig.engine.tally.retried == {}


def test_only_what_began_later_overtakes() -> None:
    """One that was out before it and is answered at last says nothing."""
    rig = Rig()
    rig.put(1, queue="a")
    (older,) = rig.poll()
    rig.put(1, queue="b")
    (batch,) = rig.poll()
    rig.advance(5.0)
    rig.ok(older)
    assert batch.number in rig.engine.out


@pytest.mark.parametrize("kind", ["disconnect", "timeout", "connect"])
def test_a_failure_overtakes_nothing(kind: str) -> None:
    """Only a success shows that the upstream answers."""
    rig, _, batch = hanging()
    rig.advance(5.0)
    rig.put(1)
    rig.fail(rig.poll()[0], kind)
    assert batch.number in rig.engine.out


def test_all_of_them_at_once() -> None:
    """Those that hang long enough, and not the one that has just begun."""
    rig = Rig(batch_max_messages=1)
    rig.put(5)
    old = rig.poll()
    rig.advance(1.0)
    rig.put(1)
    (young,) = rig.poll()
    rig.advance(1.0)
    succeed(rig)
    assert not any(batch.number in rig.engine.out for batch in old)
    assert young.number in rig.engine.out
    assert rig.engine.tally.retried == {"overtaken": 5}


def test_a_queue_keeps_its_order() -> None:
    """Its lane stays muted until the second attempt is answered, also if the first one's answer comes."""
    rig, first, batch = hanging(2, queue="q")
    second = rig.put(2, queue="q")
    rig.advance(2.0)
    succeed(rig)
    again = rig.next()
    assert again.entries[:2] == first
    later = [entry for entry in second if entry not in again.entries]
    rig.ok(batch)
    assert rig.advance(1.0) == []
    rig.ok(again)
    assert numbers(first + second) == sorted(numbers(first + second))
    for left in [*rig.out]:
        rig.ok(left)
    assert all(isinstance(entry.outcome, Receipt) for entry in first + second + later)


def test_what_has_settled_meanwhile_is_not_sent_again() -> None:
    """A deadline that passed while it hung: only the rest goes, and the queue goes on."""
    rig = Rig(rng=Extremes())
    short, long = rig.put(1, queue="q", within=1.0), rig.put(1, queue="q")
    rig.poll()
    rig.advance(2.0)
    assert certainty(short[0]) == "unknown"
    succeed(rig)
    again = rig.next()
    assert again.entries == long
    rig.ok(again)
    follower = rig.put(1, queue="q")
    (last,) = rig.poll()
    assert last.entries == follower


def test_a_probe_of_a_search_is_repeated_whole() -> None:
    """And the search goes on to find its culprit."""
    rig = Rig(rng=Extremes())
    entries = rig.put(4)
    rig.refuse(rig.poll()[0])
    probe = rig.out[0]
    assert probe.isolation is not None
    rig.advance(2.0)
    succeed(rig)
    again = rig.next()
    assert (again.entries, again.isolation) == (probe.entries, probe.isolation)
    rig.out.remove(probe)
    rig.serve(lambda entry: entry is entries[2])
    assert rig.engine.tally.finished == {"delivered": 4, "rejected": 1}


def test_the_halves_of_a_search_go_on_too() -> None:
    """A sealed half that hangs stays a half."""
    rig = Rig(rng=Extremes())
    entries = rig.put(4)
    (batch,) = rig.poll()
    for _ in range(2):
        rig.fail(batch)
        succeed(rig)
        if not rig.engine.tally.halvings:
            batch = rig.next()
    halves = rig.advance(0.2)
    assert [half.is_sealed for half in halves] == [True, True]
    rig.advance(2.0)
    succeed(rig)
    again = rig.advance(5.0)
    assert [half.entries for half in again] == [entries[:2], entries[2:]]
    assert all(half.is_sealed for half in again)


def test_it_is_no_refusal() -> None:
    """The limit is not cut for it, no message is suspected, and nothing closes."""
    rig = Rig(limit_mode="adaptive")
    rig.put(1)
    rig.poll()
    rig.advance(2.0)
    before = rig.engine.limit.value
    succeed(rig)
    assert rig.engine.limit.value >= before
    assert rig.engine.tally.cuts == {}
    assert rig.engine.gate.state == "open"


def test_what_may_not_be_given_up_is_looked_at_once() -> None:
    """A success must not cost more because hundreds of requests hang that are not to be sent again."""
    looks = 0

    class Counted(Entry):
        """An entry that counts how often it is asked."""

        def __getattribute__(self, name: str) -> object:
            nonlocal looks
            looks += name == "idempotent"
            return super().__getattribute__(name)

    rig = Rig(limit_max_in_flight=1_000, batch_max_messages=1)
    rig.is_checked = False
    rig.put(500, idempotent=False, within=1e6)
    rig.poll()
    for batch in rig.out:
        batch.entries[0].__class__ = Counted
    rig.now += 5.0
    for _ in range(20):
        succeed(rig)
    assert looks <= 1_000
