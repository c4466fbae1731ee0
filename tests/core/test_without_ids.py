"""The core's contract: deduplication off, and the window in which repeating is safe."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Reply
from dispatcher.errors import (
    MessageRejected,
    OutcomeUnknown,
)
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, is_held, receipts


@pytest.mark.parametrize(
    "how", ["disconnect", "timeout", "reply", "500", "502", "503", "504", "408", "short"]
)
def test_without_ids_the_unknown_is_not_repeated(how: str) -> None:
    """It settles as unknown at once; its idempotent neighbours are sent again."""
    rig = Rig(deduplication="off")
    plain = rig.put(2, idempotent=False)
    safe = rig.put(1, identity="own")
    (batch,) = rig.poll()
    if how.isdigit():
        rig.refuse(batch, int(how))
    elif how == "short":
        rig.answer(batch, Reply(200, b"[]"))
    else:
        rig.fail(batch, how)
    assert all(isinstance(entry.outcome, OutcomeUnknown) for entry in plain)
    assert is_held(safe[0])
    rig.advance(1.0)
    assert rig.numbers == [[0, 1, 2], [2]]


@pytest.mark.parametrize("how", ["connect", "429"])
def test_without_ids_what_was_not_taken_is_repeated(how: str) -> None:
    """A refused connection and a throttle prove that nothing was taken."""
    rig = Rig(deduplication="off")
    rig.put(2, idempotent=False)
    (batch,) = rig.poll()
    if how == "connect":
        rig.fail(batch, how)
    else:
        rig.refuse(batch, 429)
    assert rig.settled == []
    rig.ok(rig.advance(2.0)[0])
    assert len(receipts(rig)) == 2


def test_without_ids_a_refused_batch_is_not_taken_apart() -> None:
    """That nothing of it was taken is likely and unproven: unknown for those without an id."""
    rig = Rig(deduplication="off")
    plain = rig.put(3, idempotent=False)
    rig.put(2)
    rig.refuse(rig.poll()[0], 400)
    assert all(isinstance(entry.outcome, OutcomeUnknown) for entry in plain)
    rig.serve(lambda entry: entry.number == 4)
    assert sorted(receipts(rig)) == [3]


def test_without_ids_alone_it_is_rejected() -> None:
    """Alone in its request it is the culprit."""
    rig = Rig(deduplication="off")
    entries = rig.put(1, idempotent=False)
    rig.refuse(rig.poll()[0], 400)
    assert isinstance(entries[0].outcome, MessageRejected)


def unknown_for(rig: Rig, seconds: float) -> None:
    """Answer everything with a lost connection for so long."""
    until = rig.now + seconds
    while rig.now < until:
        for batch in list(rig.out):
            rig.fail(batch)
        rig.now = min(until, rig.wake_at)
        rig.poll()


def test_past_the_window_the_unknown_is_not_repeated() -> None:
    """At 570 s after its first attempt it settles as unknown, in spite of a later deadline."""
    rig = Rig(deliver_within=2000)
    entries = rig.put(1)
    rig.poll()
    unknown_for(rig, 569.5)
    assert is_held(entries[0])
    unknown_for(rig, 1.0)
    assert isinstance(entries[0].outcome, OutcomeUnknown)
    assert max(batch.started_at for batch in rig.started) < 100.0 + 570.0


def test_past_the_window_what_was_never_taken_goes_on() -> None:
    """Refused connections for ten minutes leave nothing to double."""
    rig = Rig(deliver_within=2000)
    entries = rig.put(1)
    rig.poll()
    until = rig.now + 700
    while rig.now < until:
        for batch in list(rig.out):
            rig.fail(batch, "connect")
        rig.now = rig.wake_at
        rig.poll()
    assert is_held(entries[0])
    rig.ok(rig.out[0])
    assert isinstance(entries[0].outcome, Receipt)
    assert not entries[0].outcome.duplicate_possible


def test_resend_marks_what_may_be_double() -> None:
    """With `after_window = "resend"` it goes on, and the receipt says so."""
    rig = Rig(deliver_within=2000, after_window="resend")
    entries = rig.put(1)
    rig.poll()
    unknown_for(rig, 600.0)
    assert is_held(entries[0])
    rig.advance(20.0)
    rig.ok(rig.out[0])
    assert isinstance(entries[0].outcome, Receipt)
    assert entries[0].outcome.duplicate_possible


# ----------------------------------------------------------------------------------------- suspended


def test_a_suspended_machine_ages_what_backs_off() -> None:
    """Its clock stood still for ten minutes, the service's window did not: not repeated, unknown."""
    rig = Rig(rng=Extremes(), retry_base=5.0, deliver_within=2000)
    entries = rig.put(1)
    rig.fail(rig.poll()[0])
    rig.engine.age(600.0)
    assert rig.poll() == []
    assert isinstance(entries[0].outcome, OutcomeUnknown)
    assert rig.advance(10.0) == []


def test_a_suspended_machine_ages_what_is_out() -> None:
    """The answer is lost after it woke: its first attempt is as old as the wall clock says."""
    rig = Rig(rng=Extremes(), deliver_within=2000)
    entries = rig.put(1)
    (batch,) = rig.poll()
    rig.engine.age(569.0)
    rig.fail(batch)
    assert is_held(entries[0])
    assert len(rig.advance(0.1)) == 1
    rig.advance(1.0)
    assert isinstance(entries[0].outcome, OutcomeUnknown)


def test_a_nap_changes_nothing() -> None:
    """What is still inside its window goes on, and what was never taken has none."""
    rig = Rig(rng=Extremes(), deliver_within=2000)
    unknown = rig.put(1)
    rig.fail(rig.poll()[0])
    rig.engine.age(300.0)
    rig.ok(rig.next())
    assert isinstance(unknown[0].outcome, Receipt)
    refused = rig.put(1)
    rig.fail(rig.poll()[0], "connect")
    rig.engine.age(900.0)
    rig.ok(rig.next())
    assert isinstance(refused[0].outcome, Receipt)
    assert not refused[0].outcome.duplicate_possible


def test_with_resend_a_suspended_machine_marks_what_may_be_double() -> None:
    """It goes on past the window, and the receipt says so."""
    rig = Rig(rng=Extremes(), deliver_within=2000, after_window="resend")
    entries = rig.put(1)
    rig.fail(rig.poll()[0])
    rig.engine.age(600.0)
    rig.ok(rig.next())
    assert isinstance(entries[0].outcome, Receipt)
    assert entries[0].outcome.duplicate_possible


def test_naps_add_up() -> None:
    """Two of five minutes each are ten."""
    rig = Rig(rng=Extremes(), deliver_within=2000)
    entries = rig.put(1)
    (batch,) = rig.poll()
    rig.engine.age(300.0)
    rig.engine.age(300.0)
    rig.fail(batch)
    assert isinstance(entries[0].outcome, OutcomeUnknown) or rig.advance(0.2) == []
    assert isinstance(entries[0].outcome, OutcomeUnknown)
