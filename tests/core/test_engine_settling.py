"""The core's contract, sentence by sentence: what answers mean, and what is tried again."""

from __future__ import annotations

import json

import pytest

from dispatcher.core.batch import Reply
from dispatcher.errors import (
    MessageRejected,
    OutcomeUnknown,
    RetriesExhausted,
)
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, is_held, numbers, receipts


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
        rig.fail(batch, "connect")
        rig.now = rig.wake_at
        (batch,) = rig.poll()
    rig.fail(batch, "connect")
    rig.now = rig.engine.backoffs.next_at
    rig.put(1)
    (batch,) = rig.poll()
    assert numbers(batch.entries) == [0, 1]
    rig.fail(batch)
    waits = sorted(group.due_at - rig.now for group in rig.engine.backoffs)
    assert waits == pytest.approx([1.0, 20.0])


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


def test_a_groups_repeat_is_told_like_any_other() -> None:
    """To an id of ours it is our earlier attempt, to the caller's it is passed on; attempts count."""
    rig = Rig()
    ours = rig.put(1, destination="subscribers")[0]
    theirs = rig.put(1, destination="subscribers", identity="theirs")[0]
    fresh = rig.put(1, destination="subscribers", identity="fresh")[0]
    theirs.owns_id = fresh.owns_id = False
    rig.fail(rig.poll()[0])
    known = [{"messageId": "a", "url": "u", "deduplicated": True}, {"messageId": "b", "url": "v"}]
    body = json.dumps([known, known, known[1:]]).encode()
    rig.answer(rig.next(), Reply(200, body))
    receipts_of = [entry.outcome for entry in (ours, theirs, fresh)]
    assert all(isinstance(receipt, Receipt) for receipt in receipts_of)
    assert [receipt.deduplicated for receipt in receipts_of] == [False, True, False]  # type: ignore[union-attr]
    assert [receipt.attempts for receipt in receipts_of] == [2, 2, 2]  # type: ignore[union-attr]
    assert [receipt.duplicate_possible for receipt in receipts_of] == [False] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("destination", "message_id", "ids"),
    [("api/llm", "a", ("a",)), ("https://example.com/", "a", ("a",)), ("subscribers", None, ("a",))],
)
def test_a_lone_reply_is_read_by_its_destination(
    destination: str, message_id: str | None, ids: tuple[str, ...]
) -> None:
    """`[{…}]` is a URL's or a provider's entry in its array, and a group's own array unwrapped."""
    rig = Rig()
    (entry,) = rig.put(1, destination=destination)
    rig.answer(rig.poll()[0], Reply(200, b'[{"messageId":"a","url":"u"}]'))
    assert isinstance(entry.outcome, Receipt)
    assert (entry.outcome.message_id, entry.outcome.message_ids) == (message_id, ids)


def test_a_singles_garbled_reply_is_unknown() -> None:
    """It is sent again under its id."""
    rig = Rig()
    (entry,) = rig.put(1, is_single=True)
    rig.answer(rig.poll()[0], Reply(200, b"<html>"))
    assert is_held(entry)
    rig.ok(rig.next())
    assert isinstance(entry.outcome, Receipt)
