"""What fails together is halved: one poisonous body does not take its neighbours to their deadlines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher.core import setback
from dispatcher.core.batch import Batch, Failure, Reply
from dispatcher.errors import DeadlineExceeded, OutcomeUnknown
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, accepted, certainty, is_held, numbers

if TYPE_CHECKING:
    from collections.abc import Callable

HOWS = ["500", "502", "504", "408", "timeout", "disconnect"]
WITHIN = 120.0


def trouble(how: str) -> Reply | Failure:
    """One of the answers that a body may have caused."""
    return Reply(int(how), b"") if how.isdigit() else Failure(how, f"{how} failed", "unknown")


def poisoned(*culprits: int, how: str = "500") -> Callable[[Batch], Reply | Failure]:
    """A service that answers so whatever carries one of these."""
    answer = trouble(how)
    return lambda batch: answer if {*numbers(batch.entries)} & {*culprits} else accepted(batch.entries)


def latencies(rig: Rig, service: Callable[[Batch], Reply | Failure], seconds: float) -> dict[int, float]:
    """Seconds to its receipt, by number, of everything that has one."""
    found: dict[int, float] = {}
    until = rig.now + seconds
    while rig.now < until:
        rig.play(service, 0.1)
        for entry in rig.settled:
            if isinstance(entry.outcome, Receipt):
                found.setdefault(entry.number, rig.now - entry.admitted_at)
    return found


# -------------------------------------------------------------------------- one among a hundred


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("culprit", [0, 42, 99])
def test_one_fails_and_ninety_nine_arrive(how: str, culprit: int) -> None:
    """With a little other traffic: the neighbours within seconds, the culprit at its own deadline."""
    rig = Rig(deliver_within=WITHIN)
    entries = rig.put(100)
    rig.poll()
    rig.put(1)
    found = latencies(rig, poisoned(culprit, how=how), 60.0)
    assert sorted(found) == [number for number in range(101) if number != culprit]
    assert max(found.values()) < 5.0
    assert is_held(entries[culprit])
    rig.play(poisoned(culprit, how=how), 70.0)
    assert isinstance(entries[culprit].outcome, DeadlineExceeded)
    assert certainty(entries[culprit]) == "unknown"
    assert rig.engine.tally.halvings >= 6


def test_three_culprits() -> None:
    """Each is found; the others arrive."""
    rig = Rig(deliver_within=WITHIN)
    rig.put(100)
    rig.poll()
    rig.put(1)
    found = latencies(rig, poisoned(10, 11, 90), 60.0)
    assert len(found) == 98
    assert max(found.values()) < 10.0


def test_what_it_costs() -> None:
    """A few requests a step of the search, and seven steps."""
    rig = Rig(deliver_within=WITHIN)
    rig.put(100)
    rig.poll()
    rig.put(1)
    while sum(isinstance(entry.outcome, Receipt) for entry in rig.settled) < 100:
        rig.play(poisoned(42), 0.1)
    assert len(rig.started) < 30


def test_with_nothing_else_to_send() -> None:
    """No evidence that the service takes anything else: halved after four failures, not before."""
    rig = Rig(deliver_within=WITHIN, rng=Extremes(0.5))
    rig.put(100)
    for attempt in range(4):
        assert rig.engine.tally.halvings == 0, attempt
        rig.refuse(rig.next(), 500)
    assert rig.engine.tally.halvings == 1
    found = latencies(rig, poisoned(42), 100.0)
    assert len(found) == 99
    assert max(found.values()) < 10.0


def test_twice_after_something_was_accepted() -> None:
    """One failure is bad luck; the second, with a success of others between, makes suspects."""
    rig = Rig(rng=Extremes())
    rig.put(4)
    (batch,) = rig.poll()
    rig.refuse(batch, 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    assert rig.engine.tally.halvings == 1
    assert [numbers(group.entries) for group in rig.engine.backoffs] == [[0, 1], [2, 3]]
    assert all(group.is_sealed for group in rig.engine.backoffs)


def test_a_success_before_the_first_failure_is_no_evidence() -> None:
    """The service may have broken down since."""
    rig = Rig(rng=Extremes())
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    rig.refuse(rig.next(), 500)
    assert rig.engine.tally.halvings == 0


@pytest.mark.parametrize("how", ["429", "503", "reply", "connect", "short"])
def test_what_no_message_causes_is_never_halved(how: str) -> None:
    """Throttles, 503, refused connections and garbled replies, however often."""
    rig = Rig(rng=Extremes(0.1))
    rig.put(10)
    for _ in range(6):
        batch = next(iter(rig.out), None) or rig.next()
        if how == "short":
            rig.answer(batch, Reply(200, b"[]"))
        elif how.isdigit():
            rig.refuse(batch, int(how))
        else:
            rig.fail(batch, how)
        rig.engine.acceptances += 1  # something else was accepted
    assert rig.engine.tally.halvings == 0


def test_halves_travel_by_themselves() -> None:
    """Not merged with fresh messages, nor with each other, each after its own back-off."""
    rig = Rig(rng=Extremes(), batch_max_messages=10)
    rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    rig.put(3)
    started = rig.poll() + rig.advance(1.0)
    assert sorted(numbers(batch.entries) for batch in started) == [[0, 1], [2, 3], [5, 6, 7]]
    assert sorted(batch.reason for batch in started) == ["halving", "halving", "idle"]


def test_a_half_that_passes_is_evidence_against_the_other() -> None:
    """It is done with; the other is halved at its next failure, and its back-off begins anew."""
    rig = Rig(rng=Extremes())
    rig.put(8)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    rig.advance(1.0)
    left, right = rig.out
    rig.ok(left)
    rig.refuse(right, 500)
    assert sorted(numbers(group.entries) for group in rig.engine.backoffs) == [[4, 5], [6, 7]]
    assert [group.due_at - rig.now for group in rig.engine.backoffs] == pytest.approx([0.05, 0.05])


def test_halves_that_both_fail_prove_nothing_more() -> None:
    """Nothing was accepted since: they go on whole, and back off as for an outage."""
    rig = Rig(rng=Extremes())
    rig.put(8)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    rig.advance(1.0)
    for half in list(rig.out):
        rig.refuse(half, 500)
    assert sorted(numbers(group.entries) for group in rig.engine.backoffs) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [group.due_at - rig.now for group in rig.engine.backoffs] == pytest.approx([0.1, 0.1])


def test_alone_it_is_not_halved_and_holds_nothing_up() -> None:
    """A single suspect goes on by itself; what comes is not taken along."""
    rig = Rig(rng=Extremes())
    rig.put(1)
    rig.refuse(rig.poll()[0], 500)
    for _ in range(6):
        rig.put(1)
        rig.ok(next(b for b in rig.poll() if 0 not in numbers(b.entries)))
        while not rig.out:
            rig.now = rig.wake_at
            rig.poll()
        (batch,) = rig.out
        assert numbers(batch.entries) == [0]
        rig.refuse(batch, 500)
    assert rig.engine.tally.halvings == 0


def test_isolations_never_take_the_last_slot_together_with_halves() -> None:
    """Halves count as what does not come from the lanes."""
    rig = Rig(rng=Extremes(), limit_max_in_flight=2)
    rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    rig.advance(1.0)
    assert len(rig.out) == 1
    rig.put(1)
    (batch,) = rig.poll()
    assert not batch.is_apart


# ------------------------------------------------------------------------------ without ids, limits


@pytest.mark.parametrize("how", HOWS)
def test_without_ids_nothing_is_repeated_or_halved(how: str) -> None:
    """Its outcome is unknown, at once; those with an id are."""
    rig = Rig(deduplication="off")
    plain = rig.put(50, idempotent=False)
    rig.answer(rig.poll()[0], trouble(how))
    assert all(isinstance(entry.outcome, OutcomeUnknown) for entry in plain)
    assert rig.engine.tally.halvings == 0
    assert rig.advance(60.0) == []


def test_only_those_with_an_id_are_halved() -> None:
    """What was settled as unknown is not in any half."""
    rig = Rig(deduplication="off", rng=Extremes())
    rig.put(2, idempotent=False)
    safe = rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    assert [numbers(group.entries) for group in rig.engine.backoffs] == [numbers(safe[:2]), numbers(safe[2:])]


def test_a_limit_of_attempts_holds_for_halves() -> None:
    """The culprit ends when its attempts do."""
    rig = Rig(retry_max_attempts=5)
    entries = rig.put(2)
    rig.play(poisoned(1), 60.0)
    assert isinstance(entries[0].outcome, Receipt)
    assert entries[1].outcome is not None
    assert len(entries[1].attempts) == 5


# --------------------------------------------------------------------------------- general outages


@pytest.mark.parametrize("how", ["500", "504", "timeout", "disconnect"])
def test_a_general_outage_is_not_halved_to_pieces(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything fails for a minute amid traffic: at most a quarter more requests than without halving."""
    requests = outage(how)
    monkeypatch.setattr(setback, "SUSPECT_AFTER_ALONE", 10**9)
    assert requests < 1.25 * outage(how)


def outage(how: str) -> int:
    """Requests in a minute in which nothing is taken of thirty messages a second; they arrive after it."""
    rig = Rig(deliver_within=300.0, limit_max_in_flight=8)
    rig.put(1)
    rig.ok(rig.poll()[0])
    until = rig.now + 60.0
    answer = trouble(how)

    def service(batch: Batch) -> Reply | Failure:
        return answer if rig.now < until else accepted(batch.entries)

    for _ in range(60):
        rig.put(30)
        rig.play(service, 1.0, latency=0.2)
    assert rig.engine.tally.halvings <= 30  # of 1,800 messages, in moments when nothing else could go
    requests = len(rig.started)
    rig.play(service, 60.0)
    assert sum(isinstance(entry.outcome, Receipt) for entry in rig.settled) == 1801
    return requests


def test_a_general_outage_with_one_batch_only() -> None:
    """Nothing else to send: it is halved now and then, and never into single messages."""
    rig = Rig(deliver_within=300.0)
    rig.put(100)
    rig.play(lambda _: trouble("500"), 60.0)
    assert len(rig.started) < 100
    assert min(len(batch.entries) for batch in rig.started) >= 3
    rig.play(lambda batch: accepted(batch.entries), 60.0)
    assert len(rig.settled) == 100


def test_one_other_message_is_company() -> None:
    """As long as something else is to be sent, four failures prove nothing."""
    rig = Rig(limit_max_in_flight=1, rng=Extremes())
    rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    for _ in range(2):
        rig.refuse(rig.next(), 500)
    batch = rig.next()
    rig.put(1)
    rig.refuse(batch, 500)
    assert rig.engine.tally.halvings == 0


def test_a_pair_is_parted() -> None:
    """Counted, and each with a back-off that begins anew."""
    rig = Rig(rng=Extremes())
    rig.put(2)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    assert rig.engine.tally.halvings == 1
    assert [numbers(group.entries) for group in rig.engine.backoffs] == [[0], [1]]
    assert [group.due_at - rig.now for group in rig.engine.backoffs] == pytest.approx([0.05, 0.05])
