"""The retry budget in the engine: what retries cost, when they wait for it, and what never does."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from dispatcher.core.batch import Batch, Entry, Failure, Reply
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, accepted, is_held, numbers

LOST = Failure("disconnect", "it was lost", "unknown")


def tokens(rig: Rig) -> float:
    """What is in it now."""
    return rig.engine.budget.tokens(rig.now)


def empty(rig: Rig) -> None:
    """Take everything out."""
    budget = rig.engine.budget
    assert budget.try_pay(int(budget.tokens(rig.now)), rig.now)
    assert tokens(rig) < 1.0


def busy(**config: Any) -> Rig:
    """A rig with a request that stays out: otherwise nothing would have to be paid for."""
    rig = Rig(rng=Extremes(), **config)
    rig.put(1, queue="slow", idempotent=False, within=1e6)
    rig.poll()
    return rig


def lose(rig: Rig, *, queue: str | None = None, status: int | None = None) -> tuple[list[Entry], Batch]:
    """Send one message, which fails; it backs off."""
    entries = rig.put(1, queue=queue)
    (batch,) = rig.poll()
    if status is None:
        rig.fail(batch)
    else:
        rig.refuse(batch, status)
    return entries, batch


@pytest.mark.parametrize(("status", "cost"), [(None, 14), (500, 14), (503, 14), (429, 5)])
def test_paid_and_returned(status: int | None, cost: int) -> None:
    """A retry takes its cost when it starts; if it succeeds, just that comes back."""
    rig = busy()
    lose(rig, status=status)
    assert tokens(rig) == 500
    again = rig.next()
    assert tokens(rig) == 500 - cost
    rig.engine.budget.earn(-100.0)
    rig.ok(again)
    assert tokens(rig) == 400


def test_one_that_fails_again_returns_nothing() -> None:
    """Its next attempt costs again, and only that comes back; what time adds apart."""
    rig = busy()
    lose(rig)
    rig.fail(rig.next())
    again = rig.next()
    assert tokens(rig) == pytest.approx(500 - 28, abs=1.0)
    before = tokens(rig)
    rig.ok(again)
    assert tokens(rig) == before + 14


def test_a_success_at_the_first_try_earns_one() -> None:
    """A request, not a message."""
    rig = busy()
    empty(rig)
    before = tokens(rig)
    rig.put(50)
    rig.ok(rig.poll()[0])
    assert tokens(rig) == before + 1


def test_a_request_is_paid_once() -> None:
    """However many lanes and back-offs its messages go apart to."""
    rig = busy()
    lose(rig)
    rig.put(5)
    rig.put(5, queue="q")
    rig.now = rig.wake_at
    (mixed,) = rig.poll()
    assert len(mixed.entries) == 11
    before = tokens(rig)
    rig.fail(mixed)
    assert len([*rig.engine.backoffs]) == 2
    rig.advance(1.0)
    assert tokens(rig) == pytest.approx(before + 5.0 - 14)


def test_together_they_cost_what_one_does() -> None:
    """Two that failed apart travel together, fail again, and are one request from then on."""
    rig = busy()
    rig.put(1)
    first = rig.poll()[0]
    rig.put(1, queue="q")
    second = rig.advance(0.02)[0]
    rig.fail(first)
    rig.fail(second)
    again = rig.next()
    assert len(again.entries) == 2
    assert tokens(rig) == 500 - 28
    rig.fail(again)
    again = rig.next()
    assert len(again.entries) == 2
    before = tokens(rig)
    rig.ok(again)
    assert tokens(rig) == before + 14, "what was lost with the second attempt is lost"


def test_both_costs_come_back() -> None:
    """Two that were paid for apart and travel together."""
    rig = busy(batch_linger=0.0)
    for queue in ("a", "b"):
        rig.put(1, queue=queue)
        rig.fail(rig.poll()[0])
    again = rig.next()
    assert len(again.entries) == 2
    rig.ok(again)
    assert tokens(rig) == 500


# ------------------------------------------------------------------------------------------ when it is empty


def test_retries_wait_until_they_can_be_paid() -> None:
    """To the instant at which time has filled it, which is told as `wake_at`."""
    rig = busy()
    empty(rig)
    entries, _ = lose(rig)
    ready_at = rig.engine.budget.ready_at(14)
    assert ready_at > 102.0
    assert rig.wake_at == ready_at
    rig.advance(1.0)
    assert rig.wake_at == pytest.approx(ready_at)
    again = rig.next()
    assert again.entries == entries
    assert again.started_at == pytest.approx(ready_at)


def test_fresh_messages_go() -> None:
    """At once, and each that succeeds brings the retry nearer."""
    rig = busy()
    empty(rig)
    entries, _ = lose(rig)
    ready_at = rig.wake_at
    for number in range(1, 11):
        rig.now += 0.02
        rig.put(100)
        (batch,) = rig.poll()
        assert entries[0] not in batch.entries
        rig.ok(batch)
        assert rig.wake_at == pytest.approx(ready_at - 0.2 * number)
    assert rig.next().entries == entries


def test_a_retry_that_waits_is_not_forgotten_for_those_behind_it() -> None:
    """They go in turn, each when it can be paid."""
    rig = busy()
    empty(rig)
    for queue in ("a", "b", "c"):
        lose(rig, queue=queue)
    started = [rig.next().started_at for _ in range(3)]
    assert [after - before for before, after in pairwise(started)] == pytest.approx([2.8, 2.8])


def test_with_nothing_else_out_it_goes_unpaid() -> None:
    """A budget slows down, it does not stop: then its own back-off is all it waits for."""
    rig = Rig(rng=Extremes())
    empty(rig)
    entries = rig.put(1)
    waits = []
    (batch,) = rig.poll()
    for _ in range(6):
        rig.fail(batch)
        failed_at = rig.now
        batch = rig.next()
        waits.append(batch.started_at - failed_at)
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    before = tokens(rig)
    rig.ok(batch)
    assert isinstance(entries[0].outcome, Receipt)
    assert tokens(rig) == before + 1, "what was not paid is not returned"


def test_it_goes_when_the_last_one_is_answered() -> None:
    """What waited for the budget alone starts in the same step."""
    rig = busy()
    empty(rig)
    entries, _ = lose(rig)
    rig.advance(0.5)
    (again,) = rig.ok(rig.out[0])
    assert again.entries == entries


def test_nothing_fails_for_it() -> None:
    """Half of all requests are lost, and a budget of one retry: everything arrives."""
    rig = Rig(retry_budget=14, batch_max_messages=10, deliver_within=3_000.0)
    rng = Random(5)
    rig.put(1_000)
    rig.play(lambda batch: LOST if rng.random() < 0.5 else accepted(batch.entries), 600.0)
    assert sum(isinstance(entry.outcome, Receipt) for entry in rig.settled) == 1_000


def test_a_deadline_passes_in_the_queue_for_it() -> None:
    """It settles on time, and what was behind it is not charged for it."""
    rig = busy()
    empty(rig)
    rig.put(1, queue="a", within=1.0)
    rig.fail(rig.poll()[0])
    lose(rig, queue="b")
    rig.advance(2.0)
    assert numbers(rig.settled) == [1]
    assert rig.next().started_at == pytest.approx(102.8, abs=0.2)


def test_a_drain_does_not_wait_for_it() -> None:
    """From a quarter before its end on everything goes, paid or not."""
    rig = busy()
    empty(rig)
    for queue in ("a", "b", "c"):
        lose(rig, queue=queue)
    rig.engine.drain(rig.now + 4.0, rig.now)
    rig.advance(0.1)
    started = rig.advance(3.85)
    assert len([entry for batch in started for entry in batch.entries]) == 3
    assert started[-1].started_at == pytest.approx(103.0)
    assert all(is_held(entry) for batch in started for entry in batch.entries)


def test_without_a_budget_nothing_waits() -> None:
    """`retry.budget = None`: each goes as soon as its back-off is over, and nothing is counted."""
    rig = busy(retry_budget=None, batch_max_messages=1)
    rig.put(60)
    for batch in rig.poll():
        rig.fail(batch)
    assert len(rig.advance(0.05)) == 60
    assert rig.engine.budget.is_full


# ----------------------------------------------------------------------------------------- what is free


def test_an_error_entry_is_free() -> None:
    """It rides in a request that goes anyway."""
    rig = busy()
    empty(rig)
    rig.put(3)
    rig.errors(rig.poll()[0], 1)
    before = rig.now
    again = rig.next()
    assert len(again.entries) == 1
    assert again.started_at == pytest.approx(before + 0.05)


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_put_off_is_free(status: int) -> None:
    """The service said when: whatever waits for that goes then."""
    rig = busy()
    empty(rig)
    for queue in ("a", "b"):
        rig.put(1, queue=queue)
        rig.advance(0.02)
    rig.throttle(rig.out[1], 1.0, status)
    rig.throttle(rig.out[1], 1.0, status)
    probe = rig.next()
    assert probe.started_at == pytest.approx(101.29, abs=0.05)
    assert len(probe.entries) == 2


def test_a_search_is_free_while_others_are_accepted() -> None:
    """The service works, so that halving what fails together is no matter of load."""
    rig = busy()
    rig.put(4)
    (batch,) = rig.poll()
    rig.put(1)
    (other,) = rig.advance(0.02)
    rig.refuse(batch, 500)
    rig.ok(other)
    batch = rig.next()
    rig.refuse(batch, 500)
    empty(rig)
    halves = rig.advance(0.1)
    assert [half.reason for half in halves] == ["halving", "halving"]


def test_a_search_without_such_evidence_is_paid() -> None:
    """Nothing was accepted since, so that it may be load all the same: each half costs what a retry does."""
    rig = Rig(rng=Extremes())
    rig.put(4)
    (batch,) = rig.poll()
    for _ in range(3):
        rig.refuse(batch, 500)
        batch = rig.next()
    rig.refuse(batch, 500)
    assert rig.engine.tally.halvings == 1
    empty(rig)
    first = rig.next()
    assert rig.advance(1.0) == [], "the second half waits until it can be paid, or the first is answered"
    assert len(rig.ok(first)) == 1


def test_replies_of_every_kind_leave_it_between_its_bounds() -> None:
    """Never below nothing, never above its capacity, whatever is answered."""
    rig = Rig(retry_budget=50, batch_max_messages=5, deliver_within=600.0)
    rng = Random(3)

    def service(batch: Batch) -> Reply | Failure:
        assert -1e-6 <= tokens(rig) <= 50
        status = rng.choice([200, 200, 200, 429, 500, 502, 503, 504])
        return accepted(batch.entries) if status == 200 else Reply(status, b"{}")

    rig.put(300)
    rig.play(service, 300.0)
    assert len(rig.settled) == 300
