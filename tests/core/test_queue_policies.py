"""Strict queues have one message in flight; stopping ones wait for `resume` after a failed message."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.config import Queue
from dispatcher.core.batch import Batch, Reply
from dispatcher.errors import DeadlineExceeded, MessageRejected
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, accepted, is_held, numbers


def stopping(**config: Any) -> Rig:
    """The queue `q` stops at a failed message."""
    return Rig(queues={"q": Queue(on_failure="stop")}, **config)


def strict(**config: Any) -> Rig:
    """The queue `q` is strict."""
    return Rig(queues={"q": Queue(strict=True)}, **config)


def stopped(**config: Any) -> Rig:
    """Message 0 of `q` was rejected; 1 and 2 came meanwhile."""
    rig = stopping(**config)
    rig.put(1, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    assert rig.refuse(rig.out[0], 400) == []
    assert rig.engine.lanes.stopped == ("q",)
    return rig


# ------------------------------------------------------------------------------------------- strict


def test_one_message_at_a_time() -> None:
    """Each in a request of its turn, the next when it is answered; others are not held up."""
    rig = strict()
    rig.put(4, queue="q")
    rig.put(3)
    (batch,) = rig.poll()
    assert sorted(numbers(batch.entries)) == [0, 4, 5, 6]
    rig.put(2)
    (other,) = rig.poll()
    assert numbers(other.entries) == [7, 8]
    assert [numbers(each.entries) for each in rig.ok(batch)] == [[1]]
    rig.serve(lambda _: False)
    assert [entry.number for entry in rig.settled if entry.queue] == [0, 1, 2, 3]


def test_strict_queues_share_requests() -> None:
    """One message of each of many strict queues makes one batch."""
    rig = Rig(queues={f"q{number}": Queue(strict=True) for number in range(20)})
    for number in range(20):
        rig.put(3, queue=f"q{number}")
    (batch,) = rig.poll()
    assert sorted(numbers(batch.entries)) == list(range(0, 60, 3))


@pytest.mark.parametrize("how", ["error", "disconnect", "429", "400 among others", "500"])
def test_a_strict_queue_waits_for_what_failed(how: str) -> None:
    """Nothing of it overtakes, not even an error entry, and no violation is ever counted."""
    rig = strict(rng=Extremes(0.5))
    queued = rig.put(3, queue="q")
    rig.put(2)
    (batch,) = rig.poll()
    place = batch.entries.index(queued[0])
    if how == "error":
        rig.errors(batch, place)
    elif how == "disconnect":
        rig.fail(batch)
    else:
        rig.refuse(batch, int(how[:3]))
    while sum(not is_held(entry) for entry in queued) < 3:
        while rig.out:
            assert sum(entry.queue == "q" for each in rig.out for entry in each.entries) <= 1
            rig.ok(rig.out[0])
        rig.now = min(rig.wake_at, rig.now + 1.0)
        rig.poll()
    assert [entry.number for entry in rig.settled if entry.queue] == numbers(queued)
    assert rig.engine.tally.order_violations == 0


def test_error_entries_among_strict_messages_violate_nothing() -> None:
    """Every second answer is an error entry: order holds all the same."""
    rig = strict(retry_error_entry_attempts=50)
    rig.put(20, queue="q")
    turn = 0

    def service(batch: Batch) -> Reply:
        nonlocal turn
        turn += 1
        return Reply(200, b'[{"error":"later"}]') if turn % 2 else accepted(batch.entries)

    rig.play(service, 60.0)
    assert [entry.number for entry in rig.settled] == list(range(20))
    assert rig.engine.tally.order_violations == 0


# ----------------------------------------------------------------------------------------- stopping


def test_nothing_leaves_until_it_is_resumed() -> None:
    """What waits, what comes, with and without a flush; others go on."""
    rig = stopped()
    rig.put(1, queue="q")
    rig.put(1, queue="other")
    rig.put(1)
    rig.engine.flush()
    (batch,) = rig.poll()
    assert numbers(batch.entries) == [4, 5]
    rig.ok(batch)
    assert rig.advance(60.0) == []
    assert rig.engine.resume("q")
    assert [numbers(each.entries) for each in rig.poll()] == [[1, 2, 3]]


def test_a_queue_that_goes_on() -> None:
    """The default: a failed message is passed over."""
    rig = Rig()
    rig.put(1, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    assert [numbers(batch.entries) for batch in rig.refuse(rig.out[0], 400)] == [[1, 2]]
    assert not rig.engine.resume("q")


def test_resuming_what_has_not_stopped() -> None:
    """It says so, and changes nothing."""
    rig = stopping()
    assert not rig.engine.resume("q")
    rig.put(1, queue="q")
    assert not rig.engine.resume("q")
    rig.ok(rig.poll()[0])
    assert not rig.engine.resume("unknown")


def test_it_stops_again() -> None:
    """At each failed message anew."""
    rig = stopped()
    assert rig.engine.resume("q")
    rig.put(1, queue="q")
    (batch,) = rig.poll()
    assert numbers(batch.entries) == [1, 2, 3]
    rig.serve(lambda entry: entry.number == 1)
    assert rig.engine.lanes.stopped == ("q",)
    assert rig.engine.populations()["waiting"] == 2
    assert rig.engine.resume("q")
    rig.poll()
    rig.serve(lambda _: False)
    assert [entry.number for entry in rig.settled] == [0, 1, 2, 3]


def test_a_queue_emptied_by_the_failure_has_stopped_too() -> None:
    """Its only message expired: what comes later waits for the resumption."""
    rig = stopping(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    rig.put(1, queue="q", within=1.0)
    rig.advance(1.1)
    assert isinstance(rig.settled[0].outcome, DeadlineExceeded)
    assert rig.engine.lanes.stopped == ("q",)
    rig.put(1, queue="q")
    rig.ok(rig.out[0])
    assert rig.advance(5.0) == []
    assert rig.engine.resume("q")
    assert len(rig.poll()) == 1


def test_a_deadline_in_back_off_or_in_flight_stops_it() -> None:
    """In every state a failure is a failure."""
    for is_backing_off in (True, False):
        rig = stopping(rng=Extremes(), retry_base=50.0)
        rig.put(1, queue="q", within=2.0)
        (batch,) = rig.poll()
        if is_backing_off:
            rig.fail(batch, "connect")
        rig.put(1, queue="q")
        rig.advance(2.1)
        assert rig.engine.lanes.stopped == ("q",)
        if not is_backing_off:
            rig.ok(batch)
        assert rig.advance(1.0) == []
        assert rig.engine.resume("q")
        assert len(rig.poll()) == 1


def test_withdrawing_and_draining_stop_nothing() -> None:
    """They are our own doing."""
    rig = stopping(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    first = rig.put(2, queue="q")
    assert rig.engine.withdraw(first[0])
    assert rig.engine.lanes.stopped == ()
    rig.engine.drain(rig.now + 1.0, rig.now)
    rig.advance(1.1)
    assert rig.engine.lanes.stopped == ()


def test_what_backs_off_waits_too_and_keeps_its_order() -> None:
    """The front expires while its neighbours wait for another attempt: they go after the resumption."""
    rig = stopping(rng=Extremes(), retry_base=4.0)
    rig.put(1, queue="q", within=2.0)
    rig.put(2, queue="q")
    rig.fail(rig.poll()[0], "connect")
    rig.put(2, queue="q")
    rig.advance(30.0)
    assert len(rig.started) == 1
    assert rig.engine.resume("q")
    assert [numbers(batch.entries) for batch in rig.poll()] == [[1, 2, 3, 4]]


def test_resumed_while_something_is_still_unresolved() -> None:
    """It is muted until that has come back, and then goes in order."""
    rig = stopping(rng=Extremes(), retry_base=4.0)
    rig.put(1, queue="q", within=2.0)
    rig.put(2, queue="q")
    rig.fail(rig.poll()[0], "connect")
    rig.put(1, queue="q")
    rig.advance(2.1)
    assert rig.engine.resume("q")
    assert rig.poll() == []
    assert [numbers(batch.entries) for batch in rig.advance(2.0)] == [[1, 2, 3]]


def test_what_is_isolated_waits_too_and_keeps_its_order() -> None:
    """The culprit is found: what of its queue is still in the search goes back to the lane, in order."""
    rig = stopping()
    rig.put(8, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    rig.serve(lambda entry: entry.number == 2)
    delivered = [entry.number for entry in rig.settled if isinstance(entry.outcome, Receipt)]
    assert delivered == [0, 1]
    assert rig.engine.populations()["waiting"] == 7
    assert rig.engine.resume("q")
    assert [numbers(batch.entries) for batch in rig.poll()] == [[3, 4, 5, 6, 7, 8, 9]]


def test_resumed_while_the_search_goes_on_for_others() -> None:
    """What was put back is not overtaken by what the search still held of the same queue."""
    rig = stopping(limit_max_in_flight=2, batch_quantum_bytes=20)
    rig.put(4, queue="q")
    rig.put(4, queue="other")
    (batch,) = rig.poll()
    assert [entry.queue for entry in batch.entries] == ["q", "q", "other", "other"] * 2
    culprit = batch.entries[0]
    rig.refuse(batch, 400)
    while not rig.engine.lanes.stopped:
        probe = rig.out[0]
        rig.refuse(probe, 400) if culprit in probe.entries else rig.ok(probe)
    assert isinstance(culprit.outcome, MessageRejected)
    assert [entry.queue for entry in rig.out[0].entries] == ["other", "other"]
    assert rig.engine.resume("q")
    rig.serve(lambda _: False)
    assert [entry.number for entry in rig.settled if entry.queue == "q"] == [0, 1, 2, 3]
    assert len(rig.settled) == 8


def test_what_was_halved_waits_too_and_keeps_its_order() -> None:
    """The culprit of a 500 expires alone: what stood behind it waits for the resumption."""
    rig = stopping()
    queued = rig.put(8, queue="q")
    queued[2].deadline = rig.engine.next_expiry = rig.now + 10.0
    rig.poll()
    rig.put(1)

    def service(batch: Batch) -> Reply:
        return Reply(500, b"") if queued[2] in batch.entries else accepted(batch.entries)

    rig.play(service, 30.0)
    assert [entry.number for entry in rig.settled if entry.queue] == [0, 1, 2]
    assert rig.engine.lanes.stopped == ("q",)
    assert rig.engine.resume("q")
    rig.play(service, 1.0)
    assert [entry.number for entry in rig.settled if entry.queue] == list(range(8))


def test_a_sealed_half_of_a_queue_that_stops_goes_back() -> None:
    """It was due to leave by itself when another of its queue expired."""
    rig = stopping(rng=Extremes(), limit_max_in_flight=2)
    queued = rig.put(4, queue="q")
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    assert [numbers(group.entries) for group in rig.engine.backoffs if group.is_sealed] == [[0, 1]]
    queued[0].deadline = rig.engine.next_expiry = rig.now + 0.01
    assert rig.advance(10.0) == []
    assert rig.engine.populations() == {"waiting": 3, "in_flight": 0, "backing_off": 0, "isolated": 0}
    assert rig.engine.resume("q")
    assert [numbers(batch.entries) for batch in rig.poll()] == [[1, 2, 3]]


def test_strict_and_stopping() -> None:
    """Both at once: one message in flight, and none after a failed one."""
    rig = Rig(queues={"q": Queue(strict=True, on_failure="stop")})
    rig.put(5, queue="q")
    rig.poll()
    rig.ok(rig.out[0])
    rig.refuse(rig.out[0], 400)
    assert rig.numbers == [[0], [1]]
    assert rig.advance(60.0) == []
    assert rig.engine.resume("q")
    rig.poll()
    rig.serve(lambda _: False)
    assert rig.numbers == [[0], [1], [2], [3], [4]]


def test_a_stopped_queue_costs_its_room_until_its_deadlines() -> None:
    """Nobody resumes it: what it holds expires, and its room is given back."""
    rig = stopped(deliver_within=30.0)
    rig.advance(31.0)
    assert all(isinstance(entry.outcome, DeadlineExceeded) for entry in rig.settled[1:])
    assert rig.engine.room.held_messages == 0
    assert rig.engine.lanes.stopped == ("q",)
    assert rig.wake_at == float("inf")
