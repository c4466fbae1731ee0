"""The core's contract, sentence by sentence: what answers mean, deadlines, withdrawal, order, certainty."""

from __future__ import annotations

import json

import pytest

from dispatcher.core.batch import Reply
from dispatcher.errors import (
    Abandoned,
    DeadlineExceeded,
    MessageRejected,
    OutcomeUnknown,
    RetriesExhausted,
)
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, certainty, is_held, numbers


def receipts(rig: Rig) -> dict[int, Receipt]:
    """Receipts by number of admission."""
    return {entry.number: entry.outcome for entry in rig.settled if isinstance(entry.outcome, Receipt)}


def test_each_gets_its_own_receipt() -> None:
    """By position, with the id that made it safe and the number of its requests."""
    rig = Rig()
    rig.put(50)
    rig.ok(rig.poll()[0])
    assert {n: r.message_id for n, r in receipts(rig).items()} == {n: f"m{n}" for n in range(50)}
    assert receipts(rig)[7].deduplication_id == "id-7"
    assert receipts(rig)[7].attempts == 1


def test_our_own_repeat_is_no_duplicate() -> None:
    """`deduplicated` to an id of ours is our earlier attempt; to the caller's own it is passed on."""
    rig = Rig()
    ours = rig.put(1)
    theirs = rig.put(1, identity="theirs")
    theirs[0].owns_id = False
    (batch,) = rig.poll()
    body = json.dumps([{"messageId": "a", "deduplicated": True}, {"messageId": "b", "deduplicated": True}])
    rig.answer(batch, Reply(200, body.encode()))
    assert isinstance(ours[0].outcome, Receipt)
    assert isinstance(theirs[0].outcome, Receipt)
    assert (ours[0].outcome.deduplicated, theirs[0].outcome.deduplicated) == (False, True)


def test_an_array_for_a_url_is_no_receipt() -> None:
    """Only a URL group is answered with an array; a lone message with `[]` for an answer is unknown."""
    rig = Rig()
    rig.put(1)
    rig.put(1, is_single=True)
    for batch in rig.poll():
        body = b"[]" if batch.single else b'[[{"messageId":"x","url":"u"}]]'
        rig.answer(batch, Reply(200, body))
    assert rig.settled == []
    rig.advance(0.2)
    while rig.out:
        rig.answer(rig.out[0], Reply(200, b'{"messageId":"right"}'))
    assert {receipt.message_id for receipt in receipts(rig).values()} == {"right"}
    assert {receipt.attempts for receipt in receipts(rig).values()} == {2}


def test_a_group_gets_its_endpoints() -> None:
    """A URL group's receipt has no id of its own, and every endpoint's."""
    rig = Rig()
    group = rig.put(1, destination="subscribers")
    rig.put(1)
    (batch,) = rig.poll()
    value = [[{"messageId": "a", "url": "u"}, {"url": "v", "error": "no"}], {"messageId": "b"}]
    rig.answer(batch, Reply(200, json.dumps(value).encode()))
    assert isinstance(group[0].outcome, Receipt)
    assert (group[0].outcome.message_id, group[0].outcome.message_ids) == (None, ("a",))
    assert [endpoint.error for endpoint in group[0].outcome.endpoints] == [None, "no"]


@pytest.mark.parametrize("body", [b'[{"messageId":"m0"}]', b"[]", b"<html>", b'{"messageId":"m0"}'])
def test_a_reply_that_does_not_match_is_unknown_for_all(body: bytes) -> None:
    """Nobody gets a receipt from it; all are sent again under their ids."""
    rig = Rig()
    rig.put(2)
    rig.answer(rig.poll()[0], Reply(200, body))
    assert rig.settled == []
    rig.advance(0.1)
    rig.ok(rig.out[0])
    assert {number: receipt.attempts for number, receipt in receipts(rig).items()} == {0: 2, 1: 2}


# ------------------------------------------------------------------------------------------- retries


def test_a_slot_is_never_held_while_backing_off() -> None:
    """With one slot, others go while the failed ones wait."""
    rig = Rig(limit_max_in_flight=1, rng=Extremes(), retry_base=10)
    rig.put(3)
    rig.fail(rig.poll()[0])
    assert rig.out == []
    rig.put(1)
    assert [numbers(batch.entries) for batch in rig.poll()] == [[3]]


def test_what_failed_merges_with_fresh_messages() -> None:
    """It goes to the front of its lane and takes along what has come meanwhile."""
    rig = Rig(rng=Extremes(), retry_base=1.0)
    rig.put(2)
    rig.fail(rig.poll()[0])
    rig.put(1)
    rig.poll()
    rig.put(1)
    rig.poll()
    rig.put(2)
    began_at = rig.now
    rig.advance(0.001)  # the soft slots are taken: the last two linger
    rig.now = began_at + 1.0
    rig.poll()
    assert rig.started[-1].reason == "retry"
    assert numbers(rig.started[-1].entries)[:2] == [0, 1]


def test_full_jitter_doubles() -> None:
    """50 ms, 100, 200 … at the most, until the message's own deadline."""
    rig = Rig(rng=Extremes())
    rig.put(1)
    waits = []
    batch = rig.poll()[0]
    for _ in range(5):
        failed_at = rig.now
        rig.fail(batch)
        rig.now = rig.wake_at
        (batch,) = rig.poll()
        waits.append(rig.now - failed_at)
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])


def test_entries_with_different_histories_back_off_apart() -> None:
    """What failed for the first time does not wait as long as what failed for the tenth."""
    rig = Rig(rng=Extremes(), retry_base=1.0)
    rig.put(1)
    batch = rig.poll()[0]
    for _ in range(4):
        rig.fail(batch)
        rig.now = rig.wake_at
        (batch,) = rig.poll()
    rig.fail(batch)
    rig.now = rig.engine.backoffs.next_at
    rig.put(1)
    (batch,) = rig.poll()
    assert numbers(batch.entries) == [0, 1]
    rig.fail(batch)
    assert sorted(group.due_at - rig.now for group in rig.engine.backoffs) == [1.0, 20.0]


def test_a_throttle_without_words_waits_longer() -> None:
    """One second is the base after a bare 429."""
    rig = Rig(rng=Extremes())
    rig.put(1)
    rig.refuse(rig.poll()[0], 429)
    assert rig.wake_at == pytest.approx(rig.now + 1.0)


def test_retry_after_is_kept() -> None:
    """Not before what the service asked for."""
    rig = Rig(rng=Extremes(0.0))
    rig.put(1)
    rig.answer(rig.poll()[0], Reply(503, b"", {"retry-after": "7"}))
    assert rig.advance(6.9) == []
    assert len(rig.advance(0.2)) == 1


def test_max_attempts() -> None:
    """Where it is set, that many requests and no more; the error lists each of them."""
    rig = Rig(retry_max_attempts=3)
    entries = rig.put(1)
    rig.poll()
    for _ in range(3):
        rig.fail(rig.out[0], "connect")
        rig.advance(1.0)
    outcome = entries[0].outcome
    assert isinstance(outcome, RetriesExhausted)
    assert (outcome.certainty, len(outcome.attempts)) == ("not_sent", 3)
    assert rig.out == []


def test_error_entries_alone_are_tried_five_times() -> None:
    """Only they, not their neighbours; then the service's words are the outcome."""
    rig = Rig()
    entries = rig.put(10)
    rig.errors(rig.poll()[0], 3)
    assert len(rig.settled) == 9
    for _ in range(4):
        batch = rig.next()
        assert numbers(batch.entries) == [3]
        rig.errors(batch, 0)
    outcome = entries[3].outcome
    assert isinstance(outcome, MessageRejected)
    assert (outcome.certainty, len(outcome.attempts)) == ("not_accepted", 5)
    assert "try again later" in str(outcome)
    assert rig.advance(60.0) == []


def test_an_error_entry_that_succeeds_later() -> None:
    """It has its receipt, with the number of its requests."""
    rig = Rig()
    rig.put(3)
    rig.errors(rig.poll()[0], 1)
    rig.ok(rig.advance(1.0)[0])
    assert receipts(rig)[1].attempts == 2


def test_entries_that_say_nothing_end_as_unknown() -> None:
    """Five replies with neither an id nor an error: it may have been taken."""
    rig = Rig()
    entries = rig.put(2)
    batch = rig.poll()[0]
    rig.answer(batch, Reply(200, b'[{"messageId":"a"},{}]'))
    for _ in range(4):
        rig.answer(rig.next(), Reply(200, b"[{}]"))
    assert isinstance(entries[1].outcome, OutcomeUnknown)


# -------------------------------------------------------------------------------- deduplication off


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


# ------------------------------------------------------------------------------------------- window


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


# ----------------------------------------------------------------------------------------- deadlines


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


# ---------------------------------------------------------------------------------------- withdrawal


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


# --------------------------------------------------------------------------------------------- order


def test_a_queue_has_one_unresolved_batch() -> None:
    """Many of its messages in it; what is newer waits, what is of other lanes does not."""
    rig = Rig()
    rig.put(3, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    rig.put(1, queue="r")
    rig.poll()
    assert rig.numbers == [[0, 1, 2], [5]]
    rig.ok(rig.out[0])
    assert rig.numbers[2] == [3, 4]


@pytest.mark.parametrize("how", ["disconnect", "timeout", "connect", "429", "500"])
def test_order_under_retries(how: str) -> None:
    """What failed goes before anything newer of its queue, in its order."""
    rig = Rig(batch_max_messages=3)
    rig.put(5, queue="q")
    (batch,) = rig.poll()
    if how.isdigit():
        rig.refuse(batch, int(how))
    else:
        rig.fail(batch, how)
    rig.put(2, queue="q")
    rig.put(1)
    rig.advance(3.0)
    queued = [[e.number for e in batch.entries if e.queue] for batch in rig.started]
    assert [numbers for numbers in queued if numbers] == [[0, 1, 2], [0, 1, 2]]


def test_order_under_isolation() -> None:
    """The search goes through a queue from left to right, and nothing newer passes it."""
    rig = Rig()
    rig.put(16, queue="q")
    rig.poll()
    rig.put(3, queue="q")
    rig.serve(lambda entry: entry.number in (5, 11))
    accepted = [entry.number for entry in rig.settled if isinstance(entry.outcome, Receipt)]
    assert accepted == [number for number in range(19) if number not in (5, 11)]


def test_order_under_error_entries() -> None:
    """An error entry is retried before anything newer; that later ones passed it is counted."""
    rig = Rig()
    rig.put(4, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    rig.errors(rig.out[0], 1)
    assert rig.engine.tally.order_violations == 1
    assert rig.out == []
    rig.advance(1.0)
    assert rig.numbers[1] == [1, 4, 5]


def test_error_entries_at_the_end_violate_nothing() -> None:
    """Nothing later was accepted."""
    rig = Rig()
    rig.put(4, queue="q")
    rig.errors(rig.poll()[0], 2, 3)
    assert rig.engine.tally.order_violations == 0
    rig.advance(1.0)
    assert rig.numbers[1] == [2, 3]


def test_an_exception_shown_by_a_later_answer_is_counted() -> None:
    """The reply was lost; the repeat shows the later message known and the earlier one new."""
    rig = Rig()
    rig.put(2, queue="q")
    rig.fail(rig.poll()[0])
    (batch,) = rig.advance(1.0)
    rig.answer(batch, Reply(200, b'[{"messageId":"a"},{"messageId":"b","deduplicated":true}]'))
    assert rig.engine.tally.order_violations == 1


def test_an_error_entry_in_a_probe_keeps_the_order() -> None:
    """What its queue still has in the search follows it, instead of passing it."""
    rig = Rig()
    rig.put(8, queue="q")
    rig.refuse(rig.poll()[0], 400)
    probe = rig.out[0]
    assert numbers(probe.entries) == [0, 1, 2, 3]
    rig.errors(probe, 3)
    rig.advance(1.0)
    assert numbers(rig.started[-1].entries) == [3, 4, 5, 6, 7]
    rig.serve(lambda entry: entry.number == 6)
    assert [e.number for e in rig.settled if isinstance(e.outcome, Receipt)] == [0, 1, 2, 3, 4, 5, 7]


def test_an_expired_message_in_flight_keeps_its_queue_muted() -> None:
    """It may still arrive: nothing newer passes until its request is answered."""
    rig = Rig()
    rig.put(1, queue="q", within=1.0)
    (batch,) = rig.poll()
    rig.put(1, queue="q")
    rig.advance(1.1)
    assert len(rig.settled) == 1
    assert rig.started == [batch]
    rig.fail(batch, "timeout")
    assert rig.numbers == [[0], [1]]


def test_a_queue_that_fails_blocks_nothing_else() -> None:
    """Other queues and messages without one go on."""
    rig = Rig(rng=Extremes(), retry_base=50)
    rig.put(2, queue="stuck")
    rig.fail(rig.poll()[0])
    rig.put(2, queue="stuck")
    rig.put(1, queue="free")
    rig.put(1)
    (batch,) = rig.poll()
    assert sorted(entry.queue or "" for entry in batch.entries) == ["", "free"]


# ----------------------------------------------------------------------------------------- isolation


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


# ----------------------------------------------------------------------------------------- certainty


def test_one_unknown_outcome_stays_possible() -> None:
    """First a lost reply, then a refusal: it may have been taken by the first, and the error says so."""
    rig = Rig()
    entries = rig.put(1)
    rig.fail(rig.poll()[0])
    (batch,) = rig.advance(1.0)
    rig.refuse(batch, 400)
    assert isinstance(entries[0].outcome, MessageRejected)
    assert certainty(entries[0]) == "unknown"


def test_certainty_of_error_entries_after_an_unknown() -> None:
    """The same for error entries that run out of attempts."""
    rig = Rig()
    entries = rig.put(2)
    rig.fail(rig.poll()[0])
    for _ in range(5):
        batch = rig.next()
        rig.errors(batch, next(n for n, e in enumerate(batch.entries) if e.number == 1))
    assert certainty(entries[1]) == "unknown"


def test_errors_list_every_attempt() -> None:
    """When, what came back, how long: each request that carried it."""
    rig = Rig(retry_max_attempts=3, rng=Extremes())
    entries = rig.put(1)
    batch = rig.poll()[0]
    rig.now += 0.25
    rig.fail(batch, "connect")
    batch = rig.next()
    rig.now += 0.5
    rig.refuse(batch, 503, "busy")
    batch = rig.next()
    rig.now += 0.1
    rig.refuse(batch, 429, "slow down")
    outcome = entries[0].outcome
    assert isinstance(outcome, RetriesExhausted)
    assert [(attempt.outcome, round(attempt.duration, 3)) for attempt in outcome.attempts] == [
        ("connect failed", 0.25),
        ("503 busy", 0.5),
        ("429 slow down", 0.1),
    ]
    assert [round(attempt.after, 3) for attempt in outcome.attempts] == [0.0, 0.3, 0.9]
    assert outcome.certainty == "unknown"


def test_very_many_attempts_are_remembered_in_part() -> None:
    """The first ones and the last ones: a limit on everything."""
    rig = Rig(retry_max_attempts=200, retry_max_delay=0.1)
    entries = rig.put(1)
    rig.poll()
    for _ in range(200):
        rig.fail(rig.out[0], "connect")
        rig.advance(0.2)
    outcome = entries[0].outcome
    assert isinstance(outcome, RetriesExhausted)
    assert len(outcome.attempts) == 40
    assert outcome.attempts[0].after == 0.0
    assert outcome.attempts[-1].after > 15.0


def test_errors_show_no_secrets() -> None:
    """No body, no query of the destination, no user information, in text or repr."""
    rig = Rig(retry_max_attempts=1)
    url = "https://user:password@example.com/hook?token=secret"
    entries = rig.put(1, destination=url)
    rig.fail(rig.poll()[0])
    text = f"{entries[0].outcome} {entries[0].outcome!r}"
    assert "example.com/hook" in text
    assert not any(word in text for word in ("password", "secret", "body"))


# ---------------------------------------------------------------- isolations that lose what they probe


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
