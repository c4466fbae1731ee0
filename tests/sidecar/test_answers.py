"""What callers are told: the service's forms and words, and for failures of ours what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from dispatcher.core import failures
from dispatcher.core.batch import Entry, Trouble
from dispatcher.errors import (
    Abandoned,
    Attempt,
    Certainty,
    DeadlineExceeded,
    DeliveryError,
    DispatcherClosed,
    Halted,
    MessageInvalid,
    MessageRejected,
    MessageTooLarge,
    OutcomeUnknown,
    QueueFull,
    QuotaExhausted,
    RetriesExhausted,
)
from dispatcher.message import Endpoint, Message, Receipt
from dispatcher.sidecar import answers
from dispatcher.sidecar.dialect import Refused

if TYPE_CHECKING:
    from dispatcher.sidecar.answers import Answer, Outcome

NOW = 1_700_000_000.0
MESSAGE = Message("https://example.com/hook?secret=1", "body")


def told(outcome: Outcome) -> tuple[int, Any]:
    answer = answers.of(outcome, NOW)
    return answer.status, orjson.loads(answer.body)


def entry(destination: str = MESSAGE.destination) -> Entry:
    return Entry(Message(destination), b"{}", None, "id", True, True, 0.0, 60.0)


def rejected(status: int, words: str, certainty: Certainty = "not_accepted") -> MessageRejected:
    """As the core makes it."""
    one = entry()
    one.trouble = Trouble(0.0)
    one.trouble.learn(certainty)
    return failures.rejected(one, status, words)


def test_a_message_that_was_accepted() -> None:
    """200 with the service's id, and nothing else."""
    assert told(Receipt("msg_1", deduplication_id="ours", attempts=3)) == (200, {"messageId": "msg_1"})


def test_a_duplicate_of_the_callers_own_id() -> None:
    """202, and it says so."""
    assert told(Receipt("msg_1", True)) == (202, {"messageId": "msg_1", "deduplicated": True})


def test_a_url_group_is_answered_with_an_array() -> None:
    """One entry for each endpoint; an endpoint that failed carries its error; of none, an empty array."""
    ends = (Endpoint("https://a.x", "msg_1"), Endpoint("https://b.x", None, error="not served"))
    assert told(Receipt(None, endpoints=ends)) == (
        200,
        [{"messageId": "msg_1", "url": "https://a.x"}, {"url": "https://b.x", "error": "not served"}],
    )
    assert told(Receipt(None)) == (200, [])


def test_a_url_group_is_a_duplicate_if_all_of_it_is() -> None:
    """And if the id was the caller's: what the service had seen of ours is our own earlier attempt."""
    old, new = Endpoint("https://a.x", "msg_1", True), Endpoint("https://b.x", "msg_2")
    seen = {"messageId": "msg_1", "url": "https://a.x", "deduplicated": True}
    assert told(Receipt(None, True, endpoints=(old,))) == (202, [seen])
    assert told(Receipt(None, True, endpoints=(old, new)))[0] == 200
    assert told(Receipt(None, False, endpoints=(old,))) == (
        200,
        [{"messageId": "msg_1", "url": "https://a.x"}],
    )


@pytest.mark.parametrize("status", [400, 404, 409, 412, 413, 422, 500])
def test_a_refusal_has_the_services_status_and_words(status: int) -> None:
    """Without our own words around them, and without the place it had in a batch of ours."""
    for words in ("invalid Upstash-Delay", "message 17: invalid Upstash-Delay"):
        assert told(rejected(status, words)) == (status, {"error": "invalid Upstash-Delay"})


def test_a_refusal_after_an_unknown_outcome_says_so() -> None:
    """The earlier attempt may have been taken."""
    status, value = told(rejected(400, "no", "unknown"))
    assert (status, value) == (400, {"error": "no", "certainty": "unknown"})


def test_an_error_entry_is_the_upstreams_failure() -> None:
    """It came with a 2xx, which must not become a success."""
    assert told(rejected(200, "could not be sent")) == (502, {"error": "could not be sent"})


@pytest.mark.parametrize("kind", [DeadlineExceeded, OutcomeUnknown, Abandoned, RetriesExhausted])
@pytest.mark.parametrize("certainty", ["not_sent", "not_accepted", "unknown"])
def test_what_was_not_confirmed_is_a_504_with_what_is_known(
    kind: type[DeliveryError], certainty: Certainty
) -> None:
    """The last attempt is named too: the caller has no other log of it."""
    attempts = (Attempt(0.0, "503 busy", 0.1),)
    status, value = told(kind("why", message=MESSAGE, certainty=certainty, attempts=attempts))
    assert (status, value["certainty"]) == (504, certainty)
    assert value["error"].startswith("why (")
    assert "503 busy" in value["error"]


def test_a_spent_quota_says_when_to_come_again() -> None:
    """In whole seconds, at least one."""
    for reset_at, seconds in ((NOW + 59.2, "60"), (NOW - 5, "1")):
        error = QuotaExhausted("spent", reset_at=reset_at, message=MESSAGE)
        assert answers.of(error, NOW)[::2] == (429, (("Retry-After", seconds),))


def test_what_is_no_fault_of_the_message_may_be_tried_again() -> None:
    """No room, a refused token, the end of the process: each with its status and a time."""
    halted = Halted("the upstream refuses this token", status=401, since=5.0, message=MESSAGE)
    for error, status in ((QueueFull(5, 5), 429), (halted, 503), (DispatcherClosed("closed"), 503)):
        answer = answers.of(error, NOW)
        assert answer.status == status
        assert int(dict(answer.headers)["Retry-After"]) >= 1
        assert "put" not in orjson.loads(answer.body)["error"]  # callers know no such call


def test_what_the_service_would_refuse_is_a_4xx_without_retry() -> None:
    """Found out here, told as it would be."""
    assert told(MessageInvalid("bad")) == (400, {"error": "bad"})
    assert told(MessageTooLarge(5, 4))[0] == 413
    assert told(Refused(404, "none")) == (404, {"error": "none"})
    assert answers.of(MessageInvalid("bad"), NOW).headers == ()


def test_no_query_of_a_destination_is_told() -> None:
    """Errors go into callers' logs."""
    error = failures.abandoned(entry("https://example.com/hook?secret=1"), "it was given up")
    assert b"secret" not in answers.of(error, NOW).body


# --------------------------------------------------------------------------------------------------- many


def batch(*outcomes: Outcome) -> tuple[int, Any]:
    answer: Answer = answers.of_batch(outcomes, NOW)
    return answer.status, orjson.loads(answer.body)


def test_a_batch_has_an_entry_for_each_in_its_place() -> None:
    """Accepted, refused, a duplicate and a group's, each as it would be alone; failures with their status."""
    outcomes = (
        Receipt("msg_1"),
        rejected(400, "message 1: no"),
        Receipt("msg_2", True),
        Receipt(None, endpoints=(Endpoint("https://a.x", "msg_3"),)),
        OutcomeUnknown("lost", message=MESSAGE, certainty="unknown"),
    )
    status, entries = batch(*outcomes)
    assert status == 200
    assert entries[:4] == [
        {"messageId": "msg_1"},
        {"error": "no", "status": 400},
        {"messageId": "msg_2", "deduplicated": True},
        [{"messageId": "msg_3", "url": "https://a.x"}],
    ]
    assert (entries[4]["status"], entries[4]["certainty"]) == (504, "unknown")
    assert [orjson.loads(line) for line in answers.lines(outcomes, NOW).splitlines()] == entries


@pytest.mark.parametrize(
    "ids", [["msg_1"], ["msg_1", "msg_2~.-=="], ['a"b', "c\\"], ["ü", "\n"], ["", "x"], []]
)
def test_lines_of_what_was_accepted(ids: list[str]) -> None:
    """Whatever the ids are, each line is one entry."""
    text = answers.lines([Receipt(one) for one in ids], NOW)
    assert text.count(b"\n") == len(ids)
    assert [orjson.loads(line) for line in text.splitlines()] == [{"messageId": one} for one in ids]
    mixed = answers.lines([*[Receipt(one) for one in ids], Receipt("msg_9", True), Receipt(None)], NOW)
    assert mixed == text + b'{"messageId":"msg_9","deduplicated":true}\n[]\n'


def test_a_batch_refused_alike_is_refused() -> None:
    """With that status and text, and its Retry-After; the same of a batch of one."""
    assert batch(rejected(400, "message 0: no"), rejected(400, "message 1: no")) == (400, {"error": "no"})
    assert batch(Refused(413, "large")) == (413, {"error": "large"})
    answer = answers.of_batch([DispatcherClosed("closed")] * 2, NOW)
    assert (answer.status, dict(answer.headers)["Retry-After"]) == (503, str(answers.CLOSED_SECONDS))


def test_a_batch_that_failed_alike_is_a_failure() -> None:
    """Where the failure is ours the texts differ by destination, and mean the same."""
    errors = [DeadlineExceeded(text, message=MESSAGE, certainty="unknown") for text in ("a", "b")]
    assert batch(*errors)[0] == 504


def test_a_batch_refused_in_different_ways_is_told_entry_by_entry() -> None:
    """Nobody's reason stands for another's."""
    for other in (rejected(400, "other"), rejected(404, "no"), Receipt("msg_1")):
        status, entries = batch(rejected(400, "no"), other)
        assert (status, len(entries)) == (200, 2)
    assert batch() == (200, [])
