"""Runs in the engine until they are answered: when they leave, and what settles them before that."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.batch import IN_FLIGHT, WAITING, Batch, Failure, Reply, Run
from dispatcher.errors import Abandoned, DeadlineExceeded, Halted, QuotaExhausted
from tests.core.known_run import carried
from tests.core.rig import Rig, accepted, certainty, numbers, word_of

SMALL: dict[str, Any] = {"batch_max_messages": 4, "limit_max_in_flight": 2}


def kinds(rig: Rig) -> list[bool]:
    """Of each request so far: did it carry a run as it was?"""
    return [batch.run is not None for batch in rig.started]


def test_a_full_run_leaves_at_once_and_whole() -> None:
    """As a full batch of entries does, with the same figures in the counters."""
    rig = Rig(**SMALL)
    run = rig.put_run(4)
    (batch,) = rig.poll()
    assert (batch.run, batch.reason, batch.size_bytes, batch.timeout) == (run, "messages", 40, 10.0)
    assert (run.state, run.number, run.epoch) == (IN_FLIGHT, 0, 0)
    assert rig.engine.populations()["in_flight"] == 4
    assert rig.engine.tally.batches == {"messages": 1}
    assert rig.engine.tally.batch_messages.total == 4
    assert rig.engine.tally.batch_bytes.total == 40


def test_a_small_run_lingers_like_anything_else() -> None:
    """From its admission on, where its neighbours take the slots that need no company."""
    rig = Rig(batch_max_messages=4, batch_linger=0.01, limit_max_in_flight=8)
    rig.put_run(4)
    rig.put_run(4)
    rig.poll()
    rig.put_run(2)
    assert rig.poll() == []
    assert rig.wake_at == pytest.approx(rig.now + 0.01)
    (batch,) = rig.advance(0.01)
    assert (batch.reason, len(batch.members)) == ("linger", 2)


def test_a_flush_covers_a_run() -> None:
    """It leaves without lingering, and the flush is over as soon as it has settled, not before."""
    rig = Rig(batch_max_messages=4, batch_linger=10.0, limit_max_in_flight=8)
    for _ in range(2):
        rig.put_run(4)
    rig.poll()
    rig.put_run(2)
    epoch = rig.engine.flush()
    (batch,) = rig.poll()
    assert (batch.reason, kinds(rig)) == ("flush", [True] * 3)
    rig.put_run(1)  # which this flush does not cover
    for each in list(rig.out):
        assert not rig.engine.is_flushed(epoch)
        rig.ok(each)
    assert rig.engine.is_flushed(epoch)
    assert not rig.engine.is_flushed(rig.engine.flush())


def test_a_flush_between_a_run_and_what_came_in_the_same_instant() -> None:
    """The run was first, and is covered: who came after it in that instant does not hide it."""
    rig = Rig(batch_max_messages=4, batch_linger=10.0, limit_max_in_flight=8)
    for _ in range(2):
        rig.put_run(4)
    rig.poll()
    rig.put_run(2)
    rig.engine.flush()
    rig.put(1)
    (batch,) = rig.poll()
    assert (batch.reason, numbers(carried(batch))) == ("flush", [8, 9])


def test_a_run_that_a_flush_does_not_cover_lingers() -> None:
    """It came after it."""
    rig = Rig(batch_max_messages=4, batch_linger=10.0, limit_max_in_flight=8)
    for _ in range(2):
        rig.put_run(4)
    rig.poll()
    rig.engine.flush()
    rig.put_run(2)
    assert rig.poll() == []


def test_a_run_at_its_deadline_settles_by_the_message() -> None:
    """Waiting for a slot, it was not sent; nothing of it is left."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    rig.put_run(4)
    rig.poll()
    late = rig.put_run(3, within=5.0)
    kept = rig.put_run(3)
    rig.poll()
    rig.advance(5.0)
    assert [type(entry.outcome) for entry in late.known] == [DeadlineExceeded] * 3
    assert {certainty(entry) for entry in late.known} == {"not_sent"}
    assert [entry.outcome for entry in kept.known] == [None] * 3
    assert [entry.state for entry in kept.open()] == [WAITING] * 3


def test_a_run_in_flight_at_its_deadline_settles_as_unknown() -> None:
    """It may have been taken; an answer that comes later is counted as late, and settles nothing."""
    rig = Rig(**SMALL)
    run = rig.put_run(3, within=10.0)
    (batch,) = rig.poll()
    assert batch.run is run
    rig.advance(10.0)
    assert [type(entry.outcome) for entry in run.known] == [DeadlineExceeded] * 3
    assert {certainty(entry) for entry in run.known} == {"unknown"}
    assert batch.has_expired
    rig.ok(batch)
    assert rig.engine.tally.late == 3
    assert rig.engine.tally.finished == {"deadline_exceeded": 3}


def test_an_attempt_does_not_outlast_a_run() -> None:
    """Its timeout ends at the run's deadline."""
    rig = Rig(**SMALL)
    rig.put_run(3, within=4.0)
    (batch,) = rig.poll()
    assert batch.timeout == pytest.approx(4.0)


def test_a_drain_sends_runs_and_abandons_what_is_left() -> None:
    """It does not linger; at the deadline nothing is held, in flight or not."""
    rig = Rig(batch_max_messages=4, batch_linger=60.0, limit_max_in_flight=2)
    sent, waiting = rig.put_run(4), [rig.put_run(2) for _ in range(3)]
    rig.engine.drain(rig.now + 5.0, rig.now)
    rig.poll()
    assert kinds(rig) == [True, True]
    rig.ok(rig.out[1])
    rig.advance(5.0)
    assert rig.delivered == waiting[:1]
    left = [*sent.known, *waiting[1].known, *waiting[2].known]
    assert [type(entry.outcome) for entry in left] == [Abandoned] * 8
    assert [certainty(entry) for entry in sent.known] == ["unknown"] * 4
    assert rig.engine.room.held_messages == rig.engine.room.held_bytes == 0
    assert not rig.engine.out


def test_abandoning_runs() -> None:
    """Whatever state they are in; an answer that comes later changes nothing."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    sent, waiting = rig.put_run(4), rig.put_run(3)
    (batch,) = rig.poll()
    rig.engine.abandon("the test is over")
    rig.poll()
    assert {type(entry.outcome) for entry in (*sent.known, *waiting.known)} == {Abandoned}
    assert {certainty(entry) for entry in waiting.known} == {"not_sent"}
    rig.engine.complete(batch, Failure("timeout", "late", "unknown"), rig.now)
    rig.poll()
    assert rig.engine.settled_total == 7


def test_first_contact_is_refused() -> None:
    """Everything fails with the reason: the run that was sent, the one that waits, the one that comes."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    runs = [rig.put_run(4), rig.put_run(4)]
    (batch,) = rig.poll()
    rig.refuse(batch, 401, "invalid token")
    runs.append(rig.put_run(4))
    rig.poll()
    assert [type(entry.outcome) for run in runs for entry in run.known] == [Halted] * 12
    assert rig.engine.room.held_messages == 0


def test_a_halt_holds_runs() -> None:
    """Once something was accepted, they wait for another token, and are all delivered under it."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    rig.put_run(4)
    rig.ok(rig.poll()[0])
    runs = [rig.put_run(4), rig.put_run(4)]
    (batch,) = rig.poll()
    rig.refuse(batch, 401, "expired token")
    rig.advance(5.0)
    assert not any(entry.outcome for run in runs for entry in run.known)
    rig.engine.unhalt()
    rig.poll()
    while rig.out:
        rig.ok(rig.out[0])
    assert rig.engine.tally.finished == {"delivered": 12}


def test_a_spent_quota() -> None:
    """What cannot live to see its reset fails at once, also what comes later; what can, waits."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    rig.put_run(4)
    (batch,) = rig.poll()
    short, long = rig.put_run(4, within=50.0), rig.put_run(4, within=500.0)
    rig.spend_quota(batch, 100.0)
    later, patient = rig.put_run(4, within=60.0), rig.put_run(4, within=600.0)
    rig.poll()
    assert [type(entry.outcome) for run in (short, later) for entry in run.known] == [QuotaExhausted] * 8
    assert not any(entry.outcome for run in (long, patient) for entry in run.known)
    assert patient.entries is None
    rig.play(_taken, 130.0)
    assert rig.engine.tally.finished == {"quota_exhausted": 8, "delivered": 12}


def _taken(batch: Batch) -> Reply:
    return accepted(carried(batch))


def test_looking_opens_nothing() -> None:
    """Neither the age of what is held, nor how many there are, nor a walk over all of it."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    sent = rig.put_run(4)
    rig.poll()
    rig.now += 3.0
    waiting = rig.put_run(4)
    (entry,) = rig.put(1)
    engine = rig.engine
    assert engine.oldest_at() == sent.admitted_at
    assert list(engine.holdings()) == [waiting, entry, sent]
    assert engine.populations() == {"waiting": 5, "in_flight": 4, "backing_off": 0, "isolated": 0}
    assert (sent.entries, waiting.entries) == (None, None)
    assert numbers(engine.parked()) == [4, 5, 6, 7, 8]
    assert (sent.entries is None, waiting.entries is None) == (True, False)
    assert sorted(numbers(engine.held())) == list(range(9))
    assert sent.entries is not None


def test_withdrawing_from_a_run_that_waits() -> None:
    """It is opened for that: the one is taken back, its neighbours are delivered."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    rig.put_run(4)
    rig.poll()
    run = rig.put_run(4)
    assert rig.engine.withdraw(run.known[1])
    assert not rig.engine.withdraw(run.known[1])
    rig.poll()
    while rig.out:
        rig.ok(rig.out[0])
    assert [word_of(entry) for entry in run.known] == ["delivered", "withdrawn", "delivered", "delivered"]
    assert certainty(run.known[1]) == "not_sent"


def test_what_left_in_a_run_is_not_withdrawn() -> None:
    """Neither in flight nor delivered nor while it is sent again after an unknown outcome."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    run = rig.put_run(4)
    (batch,) = rig.poll()
    assert not rig.engine.withdraw(run.known[0])
    rig.engine.complete(batch, accepted(run.known), rig.now)
    assert not rig.engine.withdraw(run.known[0])
    rig.poll()
    assert not rig.engine.withdraw(run.known[0])
    again = rig.put_run(4)
    rig.out.clear()
    rig.fail(rig.poll()[0])
    assert not rig.engine.withdraw(again.known[0])
    assert not any(entry.outcome for entry in again.known)


def test_what_was_refused_in_a_run_can_be_withdrawn() -> None:
    """The service did not take it, and it backs off."""
    rig = Rig(batch_max_messages=4)
    run = rig.put_run(4)
    rig.fail(rig.poll()[0], "connect")
    assert rig.engine.withdraw(run.known[3])
    rig.ok(rig.next())
    assert rig.engine.tally.finished == {"delivered": 3, "withdrawn": 1}


def test_runs_are_numbered_with_everything_else() -> None:
    """In the order of admission, by the message."""
    rig = Rig(limit_max_in_flight=1, batch_max_messages=4)
    rig.put(2)
    first = rig.put_run(3)
    rig.put(1)
    second = rig.put_run(2)
    assert (first.number, second.number, rig.engine.tally.admitted) == (2, 6, 8)


def test_the_machine_slept() -> None:
    """What was in flight is older by that, run or not: its messages may be repeated for less long."""
    rig = Rig(**SMALL)
    run = rig.put_run(3, within=2_000.0)
    (batch,) = rig.poll()
    rig.engine.age(400.0)
    rig.fail(batch)
    assert [entry.trouble.first_sent_at for entry in run.known if entry.trouble] == [rig.now - 400.0] * 3
    assert all(entry.deadline == pytest.approx(rig.now + 170.0) for entry in run.known)


def test_an_outage_is_probed_with_a_run() -> None:
    """Where there is nothing else; its messages are sent again once somebody is there."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=3)
    runs = [rig.put_run(4) for _ in range(5)]
    rig.poll()
    for batch in list(rig.out):
        rig.fail(batch, "connect")
    assert rig.engine.gate.is_outage
    rig.play(lambda _: Failure("connect", "refused", "not_sent"), 3.0)
    rig.play(_taken, 10.0)
    assert rig.engine.tally.finished == {"delivered": 20}
    assert all(entry.outcome for run in runs for entry in run.known)


def test_an_overtaken_run_is_sent_again() -> None:
    """It hangs while a later one was answered: given up, and its messages travel under the same ids."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=2)
    hanging = rig.put_run(4)
    rig.poll()
    rig.advance(5.0)
    rig.put_run(4)
    (later,) = rig.poll()
    rig.ok(later)
    assert rig.engine.tally.requests == {"200": 1, "overtaken": 1}
    (again,) = rig.advance(3.0)
    assert again.reason == "retry"
    assert again.entries == list(hanging.known)
    rig.out = [again]
    rig.ok(again)
    assert rig.engine.tally.finished == {"delivered": 8}
    assert isinstance(rig.delivered[0], Run)
