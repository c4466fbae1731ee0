"""The core's contract: a refused batch is searched, and what the search may lose."""

from __future__ import annotations

import pytest

from dispatcher.errors import (
    MessageRejected,
)
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, numbers, receipts


@pytest.mark.parametrize("culprit", [0, 1, 49, 50, 98, 99])
def test_one_poison_message_in_a_hundred(culprit: int) -> None:
    """At most sixteen requests in all, ninety-nine receipts, one rejection with the service's words."""
    rig = Rig()
    entries = rig.put(100)
    rig.poll()
    assert rig.serve(lambda entry: entry.number == culprit) <= 16
    assert len(receipts(rig)) == 99
    outcome = entries[culprit].outcome
    assert isinstance(outcome, MessageRejected)
    assert (outcome.status, outcome.certainty) == (400, "not_accepted")
    assert "invalid request" in str(outcome)
    assert outcome.message.deduplication_id == f"id-{culprit}"


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 412, 413, 422])
def test_every_refusal_is_isolated(status: int) -> None:
    """Once something was accepted, only the culprit fails, whatever the status."""
    rig = Rig()
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.put(40)
    rig.poll()
    rig.serve(lambda entry: entry.number == 17, status)
    assert len(receipts(rig)) == 40


def test_a_500_for_size_is_isolated() -> None:
    """With `maxMessageSize` in its words it is a refusal."""
    rig = Rig()
    rig.put(10)
    rig.poll()
    rig.serve(lambda entry: entry.number == 3, 500, "over maxMessageSize")
    assert sorted(receipts(rig)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_too_many_for_the_service() -> None:
    """Refused for their number only: both halves pass, and nobody is rejected."""
    rig = Rig()
    rig.put(100)
    rig.poll()
    while rig.out:
        batch = rig.out[0]
        if len(batch.entries) > 30:
            rig.refuse(batch, 412, "too many")
        else:
            rig.ok(batch)
    assert len(receipts(rig)) == 100


def test_a_probe_that_meets_trouble_is_repeated_whole() -> None:
    """An outage, a throttle and a lost reply tell the search nothing."""
    rig = Rig()
    rig.put(16)
    rig.refuse(rig.poll()[0], 400)
    for trouble in ("429", "disconnect", "500", "connect", "timeout"):
        probe = rig.out[0]
        assert numbers(probe.entries) == list(range(8))
        if trouble.isdigit():
            rig.refuse(probe, int(trouble))
        else:
            rig.fail(probe, trouble)
        assert rig.out == []
        rig.advance(30.0) if trouble == "429" else rig.advance(2.0)
    requests = rig.serve(lambda entry: entry.number == 12)
    assert requests <= 9
    assert len(receipts(rig)) == 15


def test_isolation_never_holds_the_last_slot() -> None:
    """With two slots and two searches, one slot stays for everybody else."""
    rig = Rig(limit_max_in_flight=2)
    rig.put(100)
    rig.poll()
    rig.put(100)
    rig.poll()
    rig.refuse(rig.out[0], 400)
    rig.refuse(rig.out[0] if rig.out[0].isolation is None else rig.out[1], 400)
    assert len(rig.engine.isolations) == 2
    assert len(rig.out) == 1
    rig.put(1)
    (batch,) = rig.poll()
    assert batch.isolation is None


def test_at_most_two_isolations_at_once() -> None:
    """A third refused batch waits its turn, and comes to it."""
    rig = Rig(limit_max_in_flight=10)
    rig.put(300)
    rig.poll()
    for batch in list(rig.out):
        rig.refuse(batch, 400)
    assert sum(batch.isolation is not None for batch in rig.out) == 2
    rig.serve(lambda entry: entry.number % 100 == 50)
    assert len(receipts(rig)) == 297


def test_with_one_slot_an_isolation_still_ends() -> None:
    """The last slot is lent when there is no other."""
    rig = Rig(limit_max_in_flight=1)
    rig.put(20)
    rig.poll()
    rig.serve(lambda entry: entry.number == 4)
    assert len(receipts(rig)) == 19


def test_a_singles_refusal_is_its_own() -> None:
    """Alone in its request: rejected at once."""
    rig = Rig()
    entries = rig.put(1, is_single=True)
    rig.refuse(rig.poll()[0], 400)
    assert isinstance(entries[0].outcome, MessageRejected)


def test_a_probe_that_is_repeated_whole_keeps_its_inference() -> None:
    """Six requests find the thirteenth of sixteen: the right half is not sent whole after the left passed."""
    rig = Rig()
    rig.put(16)
    rig.refuse(rig.poll()[0], 400)
    rig.fail(rig.out[0])
    rig.next()
    assert rig.serve(lambda entry: entry.number == 12) == 6


def test_a_repeated_probe_that_lost_an_entry_proves_nothing() -> None:
    """The one that expired may have been the culprit: the other half is sent whole, not split unseen."""
    rig = Rig(limit_max_in_flight=2, rng=Extremes(), retry_throttle_base=1.0)
    rig.put(1, within=1.5)
    rig.put(3)
    rig.refuse(rig.poll()[0], 400)
    probe = rig.out[0]
    assert numbers(probe.entries) == [0, 1]
    rig.refuse(probe, 429)
    rig.put(100)
    rig.put(100)
    rig.poll()
    rig.advance(2.0)  # due again after one second, and no slot is free
    rig.ok(rig.out[0])
    assert numbers(rig.out[-1].entries) == [1]
    rig.ok(rig.out[-1])
    assert numbers(rig.out[-1].entries) == [2, 3]


@pytest.mark.parametrize("how", ["disconnect", "500", "429"])
def test_a_probe_whose_entries_all_expired_does_not_stop_the_search(how: str) -> None:
    """Its failure says nothing; the rest of the batch is probed, and searches after it have their places."""
    rig = Rig()
    rig.put(2, within=1.0)
    rig.put(2)
    rig.refuse(rig.poll()[0], 400)
    probe = rig.out[0]
    rig.advance(1.1)
    assert len(rig.settled) == 2
    if how.isdigit():
        rig.refuse(probe, int(how))
    else:
        rig.fail(probe, how)
    rig.serve(lambda entry: entry.number == 3)
    assert sorted(receipts(rig)) == [2]
    assert len(rig.settled) == 4


def test_a_halt_ends_the_searches_it_meets() -> None:
    """A probe is answered with 401 on first contact: later refusals are isolated like any others."""
    rig = Rig()
    for _ in range(2):
        rig.put(4)
        rig.poll()
    for batch in list(rig.out):
        rig.refuse(batch, 400)
    for probe in list(rig.out):
        rig.refuse(probe, 401)
    assert len(rig.settled) == 8
    rig.advance(31.0)
    later = rig.put(4)
    rig.poll()
    rig.serve(lambda entry: entry is later[2])
    assert [entry.number for entry in later if isinstance(entry.outcome, Receipt)] == [8, 9, 11]


def test_searches_are_counted() -> None:
    """Each refused batch once, its probes not."""
    rig = Rig(limit_max_in_flight=8)
    for searches in (1, 2, 3):
        rig.put(8)
        rig.poll()
        rig.serve(lambda entry: entry.number % 8 == 3)
        assert rig.engine.tally.isolations == searches


def test_a_named_culprit_is_tried_first() -> None:
    """The text names its destination: it goes alone, and when it is refused the rest goes whole."""
    rig = Rig()
    rig.put(50)
    (named,) = rig.put(1, destination="no-such-group")
    rig.put(49)
    (batch,) = rig.poll()
    rig.refuse(batch, 404, "URL group no-such-group not found")
    assert rig.serve(lambda entry: entry is named, 404) == 2
    assert numbers(rig.started[1].entries) == [50]
    assert numbers(rig.started[2].entries) == [n for n in range(100) if n != 50]


def test_a_named_suspect_that_passes_puts_the_blame_on_the_rest() -> None:
    """It is not sent whole again: its left half is next."""
    rig = Rig()
    rig.put(10)
    rig.put(1, destination="some-group")
    (batch,) = rig.poll()
    rig.refuse(batch, 400, "some-group and others")
    rig.ok(rig.out[0])
    assert numbers(rig.out[0].entries) == [0, 1, 2, 3, 4]


def test_a_named_suspect_that_passes_after_others_had_left() -> None:
    """One of the refused batch is gone and may have been to blame: the rest is sent whole."""
    rig = Rig(deduplication="off")
    rig.put(1, idempotent=False)
    rig.put(9)
    rig.put(1, destination="some-group")
    (batch,) = rig.poll()
    rig.refuse(batch, 400, "some-group and others")
    rig.ok(rig.out[0])
    assert numbers(rig.out[0].entries) == list(range(1, 10))


def test_a_named_culprit_of_a_queue_waits_for_what_is_before_it() -> None:
    """Its queue's earlier messages go first, its later ones last."""
    rig = Rig()
    rig.put(3, queue="q")
    (named,) = rig.put(1, queue="q", destination="no-such-group")
    rig.put(3, queue="q")
    (batch,) = rig.poll()
    rig.refuse(batch, 404, "URL group no-such-group not found")
    rig.serve(lambda entry: entry is named, 404)
    assert rig.numbers[1:] == [[0, 1, 2], [3], [4, 5, 6]]


def test_a_named_culprit_of_another_queue_does_not_wait() -> None:
    """What stands before it in the batch is of other lanes: it goes first."""
    rig = Rig()
    rig.put(3, queue="p")
    (named,) = rig.put(1, queue="q", destination="no-such-group")
    rig.put(3, queue="q")
    (batch,) = rig.poll()
    rig.refuse(batch, 404, "URL group no-such-group not found")
    rig.serve(lambda entry: entry is named, 404)
    assert rig.numbers[1] == [3]


def test_a_probe_with_different_histories_is_repeated_whole() -> None:
    """Some of it had failed before: one group, one back-off, the same probe."""
    rig = Rig(rng=Extremes(), retry_base=0.5)
    rig.put(2)
    rig.fail(rig.poll()[0], "connect")
    rig.advance(0.4)
    rig.put(6)
    rig.advance(0.0001)
    rig.refuse(next(batch for batch in rig.out if len(batch.entries) == 6), 400)
    probe = rig.out[0]
    probe.entries[0].trouble.streak = 4  # type: ignore[union-attr]
    before = numbers(probe.entries)
    rig.fail(probe, "connect")
    groups = [group for group in rig.engine.backoffs if group.isolation is not None]
    assert [numbers(group.entries) for group in groups] == [before]
    assert groups[0].due_at - rig.now == pytest.approx(0.5 * 2**4)
