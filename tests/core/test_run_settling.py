"""What an answer does to a run: settled as a whole, or opened, and each message judged by itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.core.batch import SETTLED, Reply
from dispatcher.errors import MessageRejected, OutcomeUnknown
from dispatcher.message import Receipt
from tests.core.rig import Rig, is_held, receipts, word_of

if TYPE_CHECKING:
    from tests.core.known_run import KnownRun

TAKEN: list[dict[str, Any]] = [{"messageId": f"m{place}"} for place in range(4)]


def sent(**config: Any) -> tuple[Rig, KnownRun]:
    """A rig with one run of four in flight."""
    rig = Rig(batch_max_messages=4, **config)
    run = rig.put_run(4)
    rig.poll()
    return rig, run


def reply(values: object, rig: Rig) -> None:
    """Answer what is out longest with this array."""
    rig.answer(rig.out[0], Reply(200, json.dumps(values).encode()))


def test_a_run_of_which_all_is_taken_settles_as_a_whole() -> None:
    """Each message has the id of its own position and its own deduplication id; nothing was opened."""
    rig, run = sent()
    reply(TAKEN, rig)
    assert rig.delivered == [run]
    assert (run.entries, run.state) == (None, SETTLED)
    assert run.receipts == [Receipt(f"m{place}", False, f"id-{place}") for place in range(4)]
    assert [receipts(rig)[number].message_id for number in range(4)] == ["m0", "m1", "m2", "m3"]
    engine = rig.engine
    assert (engine.settled_total, engine.room.held_messages, engine.room.held_bytes) == (4, 0, 0)
    assert engine.tally.finished == {"delivered": 4}
    assert engine.flushes.unsettled == 0


def test_a_run_leaves_in_one_step() -> None:
    """The next one does not name it again."""
    rig, run = sent()
    rig.engine.complete(rig.out[0], Reply(200, json.dumps(TAKEN).encode()), rig.now)
    step = rig.engine.poll(rig.now)
    assert (step.delivered, step.settled) == ([run], [])
    assert rig.engine.poll(rig.now).delivered == []


def test_its_latencies_are_observed() -> None:
    """Once for each message."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    rig.put_run(4)
    rig.poll()
    rig.put_run(4)
    rig.now += 0.5
    rig.ok(rig.out[0])
    rig.now += 0.25
    rig.ok(rig.out[0])
    stages = rig.engine.tally.stage_seconds
    assert {name: sum(stages[name].counts) for name in stages} == {"queue": 8, "delivery": 8, "total": 8}
    assert stages["queue"].total == pytest.approx(4 * 0.5)
    assert stages["delivery"].total == pytest.approx(4 * 0.5 + 4 * 0.25)
    assert stages["total"].total == pytest.approx(4 * 0.5 + 4 * 0.75)


def test_our_own_id_makes_no_duplicate() -> None:
    """`deduplicated` on an id that we drew is our own earlier attempt, as the service saw it."""
    rig, run = sent()
    reply([{**value, "deduplicated": True} for value in TAKEN], rig)
    assert run.receipts is not None
    assert [receipt.deduplicated for receipt in run.receipts] == [False] * 4


def test_one_error_entry_opens_it() -> None:
    """Its neighbours are delivered, it is tried again alone, and delivered then."""
    rig, run = sent()
    reply([*TAKEN[:2], {"error": "later"}, TAKEN[3]], rig)
    assert run.entries is not None
    assert rig.delivered == []
    assert [is_held(entry) for entry in run.known] == [False, False, True, False]
    again = rig.next()
    assert again.entries == [run.known[2]]
    rig.ok(again)
    receipt = run.known[2].outcome
    assert isinstance(receipt, Receipt)
    assert (receipt.deduplication_id, receipt.attempts) == ("id-2", 2)
    assert rig.engine.tally.finished == {"delivered": 4}


@pytest.mark.parametrize("value", [{"messageId": None}, {"messageId": ""}, {"state": "queued"}, 7, None])
def test_a_position_that_says_neither_is_not_guessed(value: object) -> None:
    """It may have been taken: sent again under its id, and at last an unknown outcome."""
    rig, run = sent(retry_error_entry_attempts=1)
    reply([TAKEN[0], value, *TAKEN[2:]], rig)
    outcome = run.known[1].outcome
    assert isinstance(outcome, OutcomeUnknown)
    assert [word_of(entry) for entry in run.known] == ["delivered", "unknown", "delivered", "delivered"]


def test_a_null_id_with_an_error_is_an_error_entry() -> None:
    """The message was not taken."""
    rig, run = sent(retry_error_entry_attempts=1)
    reply([{"messageId": None, "error": "no"}, *TAKEN[1:]], rig)
    assert isinstance(run.known[0].outcome, MessageRejected)
    assert run.known[0].outcome.certainty == "not_accepted"


@pytest.mark.parametrize("body", [TAKEN[:3], [*TAKEN, {"messageId": "m4"}], [], {}, "text", None])
def test_a_reply_that_does_not_match(body: object) -> None:
    """Nothing is settled by it: everything is sent again under its id."""
    rig, run = sent()
    reply(body, rig)
    assert all(map(is_held, run.known))
    assert run.entries is not None
    again = rig.next()
    assert again.entries == list(run.known)
    rig.ok(again)
    assert [receipt.attempts for receipt in receipts(rig).values()] == [2] * 4
    assert {receipt.deduplication_id for receipt in receipts(rig).values()} == {f"id-{n}" for n in range(4)}


def test_a_url_group_among_them() -> None:
    """Its position has an array: each message gets what is its own."""
    rig, run = sent()
    run.known[2].message.destination = "subscribers"
    endpoints = [{"messageId": "a", "url": "https://a.example"}, {"messageId": "b", "url": "https://b"}]
    reply([*TAKEN[:2], endpoints, TAKEN[3]], rig)
    assert [receipts(rig)[number].message_ids for number in range(4)] == [
        ("m0",),
        ("m1",),
        ("a", "b"),
        ("m3",),
    ]


def test_what_the_service_says_of_itself_changes_no_receipt() -> None:
    """Fields of the names that receipts have are the service's own business."""
    rig, run = sent()
    strange = {"attempts": 9, "deduplication_id": "x", "duplicate_possible": True, "endpoints": [1]}
    reply([{**value, **strange, "message_id": "y"} for value in TAKEN], rig)
    assert run.receipts == [Receipt(f"m{place}", False, f"id-{place}") for place in range(4)]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_failed_is_sent_again(status: int) -> None:
    """By the message, under the same ids and bytes."""
    rig, run = sent()
    before = rig.out[0].body()
    rig.answer(rig.out[0], Reply(status, b"{}"))
    again = rig.next()
    assert (again.reason, again.body()) == ("retry", before)
    rig.ok(again)
    assert rig.engine.tally.finished == {"delivered": 4}
    assert len(rig.settled) == len({id(entry) for entry in rig.settled}) == 4
    assert run.receipts is None


def test_a_poisonous_message_is_found_in_a_run() -> None:
    """It is rejected, its neighbours are delivered."""
    rig, run = sent()
    rig.serve(lambda entry: entry is run.known[1])
    rig.advance(1.0)
    assert [word_of(entry) for entry in run.known] == ["delivered", "rejected", "delivered", "delivered"]


def test_a_run_above_what_the_service_takes() -> None:
    """Halved until it fits; the runs that wait are cut to what is known then."""
    rig = Rig(batch_max_messages=8, limit_max_in_flight=1)
    runs = [rig.put_run(8) for _ in range(3)]
    rig.poll()
    for _ in range(60):
        while rig.out:
            batch = rig.out[0]
            if len(batch.members) > 4:
                rig.refuse(batch, 413, "batch too large")
            else:
                rig.ok(batch)
        rig.advance(0.1)
    assert rig.engine.tally.finished == {"delivered": 24}
    assert rig.engine.lanes.max_messages == 4
    assert all(run.entries is not None for run in runs)
    assert rig.engine.tally.requests["413"] == 1


def test_a_throttled_run_waits_with_all_others() -> None:
    """It was put off: that is no failure of its messages, and they are the first to go."""
    rig = Rig(batch_max_messages=4, limit_max_in_flight=1)
    first, second = rig.put_run(4), rig.put_run(4)
    rig.poll()
    rig.throttle(rig.out[0], 3.0)
    assert rig.advance(2.9) == []
    batch = rig.next()
    assert batch.entries == list(first.known)
    rig.ok(batch)
    assert rig.out[0].run is second


def test_a_run_of_one() -> None:
    """Its reply may come without an array, as for one item of any kind."""
    for values in ([TAKEN[0]], TAKEN[0]):
        rig = Rig(batch_max_messages=1)
        run = rig.put_run(1)
        rig.poll()
        reply(values, rig)
        assert receipts(rig)[run.number].message_id == "m0"


def test_success_earns_budget_for_retries() -> None:
    """A run pays into it as any request does."""
    rig, _ = sent(retry_budget=28)
    rig.put_run(4)
    rig.poll()
    rig.fail(rig.out[0])
    rig.next()
    budget = rig.engine.budget
    before = budget.tokens(rig.now)
    rig.ok(next(batch for batch in rig.out if batch.run is not None))
    assert budget.tokens(rig.now) > before
