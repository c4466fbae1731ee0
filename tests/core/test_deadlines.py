"""The core's contract: deadlines over waiting, sending, backing off and searching."""

from __future__ import annotations

import pytest

from dispatcher.errors import (
    DeadlineExceeded,
)
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, certainty, is_held


def test_expiring_while_waiting() -> None:
    """Never sent, and says so, at its deadline."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    waiting = rig.put(1, within=3.0)
    rig.advance(2.99)
    assert is_held(waiting[0])
    rig.advance(0.02)
    assert isinstance(waiting[0].outcome, DeadlineExceeded)
    assert certainty(waiting[0]) == "not_sent"
    assert waiting[0].outcome.attempts == ()


@pytest.mark.parametrize(
    ("how", "known"), [("connect", "not_sent"), ("429", "not_accepted"), ("disconnect", "unknown")]
)
def test_expiring_while_backing_off(how: str, known: str) -> None:
    """It says what its attempts have shown."""
    rig = Rig(rng=Extremes(), retry_base=50, retry_throttle_base=50)
    entries = rig.put(1, within=5.0)
    (batch,) = rig.poll()
    if how == "429":
        rig.refuse(batch, 429)
    else:
        rig.fail(batch, how)
    rig.advance(5.1)
    assert isinstance(entries[0].outcome, DeadlineExceeded)
    assert certainty(entries[0]) == known
    assert len(entries[0].outcome.attempts) == 1
    assert rig.started == [batch]


def test_expiring_while_isolated() -> None:
    """The refused batch was not accepted; those whose probe is out do not know."""
    rig = Rig()
    entries = rig.put(8, within=5.0)
    rig.refuse(rig.poll()[0], 400)
    rig.advance(5.1)
    assert all(isinstance(entry.outcome, DeadlineExceeded) for entry in entries)
    assert [certainty(entry) for entry in entries] == ["unknown"] * 4 + ["not_accepted"] * 4


def test_expiring_in_flight() -> None:
    """It settles at its deadline, unknown; its neighbours go on, and a late acceptance is counted."""
    rig = Rig()
    short = rig.put(1, within=1.0)
    long = rig.put(1)
    (batch,) = rig.poll()
    rig.advance(1.1)
    assert isinstance(short[0].outcome, DeadlineExceeded)
    assert certainty(short[0]) == "unknown"
    assert is_held(long[0])
    rig.ok(batch)
    assert isinstance(long[0].outcome, Receipt)
    assert long[0].outcome.message_id == "m1"
    assert isinstance(short[0].outcome, DeadlineExceeded)
    assert rig.engine.tally.late == 1


def test_what_expired_in_flight_is_not_sent_again() -> None:
    """The batch fails later: only the living are repeated."""
    rig = Rig()
    rig.put(1, within=1.0)
    rig.put(2)
    (batch,) = rig.poll()
    rig.advance(1.1)
    rig.fail(batch)
    rig.advance(1.0)
    assert rig.numbers[1] == [1, 2]


def test_an_attempt_is_cut_to_its_deadlines() -> None:
    """Ten seconds at the most, the time that the longest-lived of it has left at the least."""
    rig = Rig()
    rig.put(1, within=4.0)
    rig.put(1, within=2.0)
    assert rig.poll()[0].timeout == pytest.approx(4.0)
    rig.put(1, within=2.0)
    rig.put(1, within=300.0)
    assert rig.poll()[0].timeout == 10.0


def test_a_shorter_deadline_behind_a_longer_one() -> None:
    """Deadlines are kept whatever the order of admission."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(1)
    rig.poll()
    entries = [rig.put(1, within=seconds)[0] for seconds in (50.0, 3.0, 20.0, 1.0)]
    for seconds in (1.0, 3.0, 20.0, 50.0):
        rig.advance(100.0 + seconds + 0.01 - rig.now)
        assert all((entry.outcome is not None) == (entry.deadline <= rig.now) for entry in entries)


def test_a_probe_that_waits_for_a_slot_can_expire() -> None:
    """A repeated probe whose entries expire before it starts is not sent, and nobody settles twice."""
    rig = Rig(limit_max_in_flight=2, rng=Extremes(), retry_throttle_base=1.0)
    rig.put(2, within=1.5)
    rig.refuse(rig.poll()[0], 400)
    probe = rig.out[0]
    rig.refuse(probe, 429)
    rig.put(100)
    rig.put(100)
    rig.poll()
    assert len(rig.out) == 2
    rig.advance(2.0)
    assert len(rig.settled) == 2
    rig.ok(rig.out[0])
    rig.ok(rig.out[0])
    assert rig.out == []
    assert rig.engine.isolations == [] or rig.poll() == []


def test_late_acceptances_add_up() -> None:
    """Each message that was taken after it had settled."""
    rig = Rig()
    rig.put(2, within=1.0)
    rig.put(1)
    (batch,) = rig.poll()
    rig.advance(1.1)
    rig.ok(batch)
    assert rig.engine.tally.late == 2
