"""The core's contract: what can be taken back, in every state."""

from __future__ import annotations

import pytest

from dispatcher.config import Queue
from dispatcher.errors import (
    Abandoned,
)
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, certainty, numbers


def test_withdrawing_what_waits() -> None:
    """Taken out, room given back, never sent."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    entries = rig.put(3)
    assert rig.engine.withdraw(entries[1])
    rig.poll()
    assert isinstance(entries[1].outcome, Abandoned)
    assert certainty(entries[1]) == "not_sent"
    assert rig.engine.room.held_messages == 3
    assert [numbers(batch.entries) for batch in rig.ok(rig.out[0])] == [[1, 3]]


def test_withdrawing_in_flight_is_too_late() -> None:
    """The sending goes on, and its neighbours never notice."""
    rig = Rig()
    entries = rig.put(2)
    (batch,) = rig.poll()
    assert not rig.engine.withdraw(entries[0])
    rig.ok(batch)
    assert isinstance(entries[0].outcome, Receipt)


@pytest.mark.parametrize(("how", "allowed"), [("connect", True), ("429", True), ("disconnect", False)])
def test_withdrawing_while_backing_off(how: str, allowed: bool) -> None:
    """Possible as long as nothing of it can have reached the service."""
    rig = Rig()
    entries = rig.put(2)
    (batch,) = rig.poll()
    if how == "429":
        rig.refuse(batch, 429)
    else:
        rig.fail(batch, how)
    assert rig.engine.withdraw(entries[0]) is allowed
    rig.advance(3.0)
    assert numbers(rig.out[0].entries) == ([1] if allowed else [0, 1])


def test_withdrawing_what_is_isolated_or_settled_is_too_late() -> None:
    """A probe may be about to carry it; and what is settled is settled."""
    rig = Rig()
    entries = rig.put(4)
    rig.refuse(rig.poll()[0], 400)
    assert not rig.engine.withdraw(entries[3])
    rig.serve(lambda _: False)
    assert not rig.engine.withdraw(entries[3])
    assert len(rig.settled) == 4


def test_withdrawing_all_of_a_queue_lets_it_go_on() -> None:
    """A queue whose failed messages are all taken back is not muted for ever."""
    rig = Rig()
    entries = rig.put(2, queue="q")
    rig.refuse(rig.poll()[0], 429)
    later = rig.put(1, queue="q")
    assert rig.poll() == []
    for entry in entries:
        assert rig.engine.withdraw(entry)
    (batch,) = rig.poll()
    assert batch.entries == later


def test_withdrawing_half_of_many() -> None:
    """Withdrawn entries leave every count at once and cost nothing later."""
    rig = Rig(limit_max_in_flight=1, queue_max_messages=10_000)
    rig.put(1)
    rig.poll()
    entries = rig.put(3_000)
    for entry in entries[::2] + entries[1:1500:2]:
        assert rig.engine.withdraw(entry)
    rig.poll()
    assert rig.engine.populations()["waiting"] == 750
    assert rig.engine.room.held_messages == 751
    assert sum(len(lane.waiting) for lane in rig.engine.lanes.lanes) <= 2 * 751 + 64


@pytest.mark.parametrize("how", ["throttled", "quota", "halted"])
def test_withdrawing_what_the_gate_holds(how: str) -> None:
    """It was refused as a whole: taken back, whether it ever left or not, and not in the probe."""
    rig = Rig(rng=Extremes(0.0), deliver_within=500.0)
    rig.put(1)
    rig.ok(rig.poll()[0])
    sent = rig.put(3)
    (batch,) = rig.poll()
    fresh = rig.put(2)
    if how == "throttled":
        rig.throttle(batch, 10)
    elif how == "quota":
        rig.spend_quota(batch, 10)
    else:
        rig.refuse(batch, 401)
    assert rig.engine.withdraw(sent[1])
    assert rig.engine.withdraw(fresh[0])
    assert (certainty(sent[1]), certainty(fresh[0])) == ("not_accepted", "not_sent")
    (probe,) = rig.advance(30.0)
    assert probe.entries == [sent[0], sent[2], fresh[1]]
    assert not rig.engine.withdraw(sent[0])
    rig.ok(probe)
    assert rig.engine.room.held_messages == 0


def test_withdrawing_everything_that_the_gate_holds() -> None:
    """There is no probe then, until something comes."""
    rig = Rig(rng=Extremes(0.0))
    entries = rig.put(3)
    rig.throttle(rig.poll()[0], 10)
    for entry in entries:
        assert rig.engine.withdraw(entry)
    assert rig.advance(100.0) == []
    assert rig.wake_at == float("inf")
    rig.put(1)
    (probe,) = rig.poll()
    rig.put(1)
    assert rig.poll() == []
    assert len(rig.ok(probe)) == 1


def test_withdrawing_a_half() -> None:
    """Its outcome is unknown: too late, wherever it waits."""
    rig = Rig(rng=Extremes(), limit_max_in_flight=2)
    entries = rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    assert not rig.engine.withdraw(entries[0])
    rig.advance(1.0)
    assert len(rig.out) == 1  # the other half waits for a slot
    assert not any(rig.engine.withdraw(entry) for entry in entries)
    rig.serve(lambda _: False)
    assert len(rig.settled) == 5


def test_withdrawing_from_a_stopped_queue() -> None:
    """Taken out, and the rest keeps its order for the resumption."""
    rig = Rig(queues={"q": Queue(on_failure="stop")})
    rig.put(1, queue="q")
    rig.poll()
    entries = rig.put(3, queue="q")
    rig.refuse(rig.out[0], 400)
    assert rig.engine.withdraw(entries[1])
    assert rig.poll() == []
    assert rig.engine.resume("q")
    assert [batch.entries for batch in rig.poll()] == [[entries[0], entries[2]]]


def test_withdrawing_all_of_a_stopped_queue() -> None:
    """It stays stopped for what comes later."""
    rig = Rig(queues={"q": Queue(on_failure="stop")})
    rig.put(1, queue="q")
    rig.poll()
    (entry,) = rig.put(1, queue="q")
    rig.refuse(rig.out[0], 400)
    assert rig.engine.withdraw(entry)
    rig.put(1, queue="q")
    assert rig.poll() == []
    assert rig.engine.resume("q")
    assert len(rig.poll()) == 1


def test_withdrawing_the_rest_of_a_failed_batch_in_a_queue() -> None:
    """Some back off apart from others: the queue goes on when all of them have gone or come back."""
    rig = Rig(rng=Extremes(), retry_base=5.0)
    entries = rig.put(3, queue="q")
    rig.fail(rig.poll()[0], "connect")
    later = rig.put(1, queue="q")
    assert rig.engine.withdraw(entries[1])
    assert rig.poll() == []
    (batch,) = rig.advance(5.0)
    assert batch.entries == [entries[0], entries[2], *later]


def test_withdrawn_entries_settle_once() -> None:
    """A second withdrawal, and a deadline, find it settled."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    (entry,) = rig.put(1, within=1.0)
    assert rig.engine.withdraw(entry)
    assert not rig.engine.withdraw(entry)
    rig.advance(2.0)
    assert [each for each in rig.settled if each is entry] == [entry]
    assert rig.engine.tally.finished == {"withdrawn": 1}
