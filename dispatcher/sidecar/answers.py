"""What a caller is told: outcomes of messages as statuses and bodies, in the service's own forms.

Pure. A success has the service's ids; a refusal the service's status and words, without the place that the
message had in a batch of ours. A failure that is ours says with its `certainty` what is known, so that the
caller can tell what may safely be sent again. No token, body or query string is in any of them. Called by
`intake` and `bulk`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import orjson

from dispatcher.errors import (
    AdmissionError,
    DeliveryError,
    DispatcherError,
    Halted,
    MessageInvalid,
    MessageRejected,
    MessageTooLarge,
    OutboxError,
    QueueFull,
    QuotaExhausted,
    StoreFull,
)
from dispatcher.message import Receipt
from dispatcher.sidecar.dialect import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence


class Accepted(Receipt, gc=False):
    """The outbox has the message, the service not yet: `message_id` is the outbox's."""


Outcome = Receipt | DispatcherError | Refused
"""What became of a message."""
ASYNC: Final = (("Preference-Applied", "respond-async"),)
"""The header of an answer that does not wait for the service."""

ACCEPTED: Final = 200
DEDUPLICATED: Final = 202
ROOM_SECONDS: Final = 1
"""`Retry-After` where there is no room: it comes and goes by the second."""
CLOSED_SECONDS: Final = 5
"""The same while this process ends; another one takes over."""
HALT_SECONDS: Final = 30
"""The same while the upstream refuses the token or URL: so often it is tried again."""
FULL_WORDS: Final = "the outbox has no room for it now; nothing was kept"
UNKEPT_WORDS: Final = "the message could not be made durable; it was not acknowledged"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~+/=:-]+")
"""Ids that stand in JSON as they are."""
_PLACE: Final = re.compile(r"message \d+: ")
"""How the service may name a message's place in the batch that it came in."""


class Answer(NamedTuple):
    """A reply with a JSON body."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def of(outcome: Outcome, unix_now: float) -> Answer:
    """The reply to one message; `unix_now` is the time in unix seconds."""
    if isinstance(outcome, Receipt):
        return of_receipt(outcome)
    status, value, retry_after = _failure(outcome, unix_now)
    return Answer(status, orjson.dumps(value), _retry_after(retry_after))


def of_receipt(receipt: Receipt) -> Answer:
    """The reply to a message that was accepted."""
    status = ACCEPTED
    if receipt.deduplicated:
        ends = receipt.endpoints
        status = DEDUPLICATED if all(end.deduplicated for end in ends) else ACCEPTED
    return Answer(status, orjson.dumps(_entry(receipt)))


def of_kept(receipt: Receipt) -> Answer:
    """The reply to a message that an outbox has taken."""
    if type(receipt) is Accepted:
        return Answer(DEDUPLICATED, orjson.dumps({"messageId": receipt.message_id}), ASYNC)
    return of_receipt(receipt)


def of_kept_batch(outcomes: Sequence[Outcome], unix_now: float) -> Answer:
    """The reply to a batch that an outbox has taken, or as much of it as could be."""
    answer = of_batch(outcomes, unix_now)
    if any(type(one) is Accepted for one in outcomes):
        return Answer(DEDUPLICATED, answer.body, ASYNC)
    return answer


def of_batch(outcomes: Sequence[Outcome], unix_now: float) -> Answer:
    """The reply to a batch: an entry each, in their order.

    If every message was refused alike, the batch is, as the service does it: its clients read an error entry
    as a success without an id.
    """
    values: list[Any] = []
    failures: set[tuple[int, str]] = set()
    first: Outcome | None = None
    for outcome in outcomes:
        if isinstance(outcome, Receipt):
            values.append(_entry(outcome))
            continue
        status, value, _ = _failure(outcome, unix_now)
        values.append({**value, "status": status})
        failures.add((status, value["error"] if status < 500 else ""))
        first = outcome if first is None else first
    everything_failed = first is not None and not any(isinstance(one, Receipt) for one in outcomes)
    if everything_failed and len(failures) == 1 and first is not None:
        return of(first, unix_now)
    return Answer(ACCEPTED, orjson.dumps(values))


def lines(outcomes: Sequence[Outcome], unix_now: float) -> bytes:
    """Lines of an answer to NDJSON; where all were accepted, which is the rule, in the fewest steps."""
    ids = [one.message_id for one in outcomes if type(one) is Receipt and not one.deduplicated]
    if len(ids) == len(outcomes) and all(ids):
        found = cast("list[str]", ids)
        if _PLAIN.fullmatch("".join(found)):
            return ('{"messageId":"' + '"}\n{"messageId":"'.join(found) + '"}\n').encode()
    return b"".join([line(one, unix_now) for one in outcomes])


def line(outcome: Outcome, unix_now: float) -> bytes:
    """One line of an answer to NDJSON: the entry it would be in a batch."""
    if isinstance(outcome, Receipt):
        return orjson.dumps(_entry(outcome), option=orjson.OPT_APPEND_NEWLINE)
    status, value, _ = _failure(outcome, unix_now)
    return orjson.dumps({**value, "status": status}, option=orjson.OPT_APPEND_NEWLINE)


def _entry(receipt: Receipt) -> dict[str, Any] | list[dict[str, Any]]:
    """The service's own entry: an object, or an array for a URL group."""
    if receipt.message_id is not None:
        if receipt.deduplicated:
            return {"messageId": receipt.message_id, "deduplicated": True}
        return {"messageId": receipt.message_id}
    entries: list[dict[str, Any]] = []
    for end in receipt.endpoints:
        entry: dict[str, Any] = {"url": end.url, "error": end.error}
        if end.message_id is not None:
            entry = {"messageId": end.message_id, "url": end.url}
            if end.deduplicated and receipt.deduplicated:  # else it was our own earlier attempt
                entry["deduplicated"] = True
        entries.append(entry)
    return entries


def _failure(error: DispatcherError | Refused, unix_now: float) -> tuple[int, dict[str, Any], int | None]:
    """Status, body, and the seconds after which to try again."""
    if isinstance(error, Refused):
        return error.status, {"error": error.text}, error.retry_after
    if isinstance(error, DeliveryError):
        return _undelivered(error, unix_now)
    if isinstance(error, MessageInvalid):
        return 400, {"error": str(error)}, None
    if isinstance(error, MessageTooLarge):
        return 413, {"error": str(error)}, None
    if isinstance(error, QueueFull):
        return 429, {"error": f"no room: {error.held} of {error.capacity} messages are held"}, ROOM_SECONDS
    if isinstance(error, OutboxError):  # its words name a file
        text = FULL_WORDS if isinstance(error, StoreFull) else UNKEPT_WORDS
        return 503, {"error": text}, CLOSED_SECONDS
    assert isinstance(error, AdmissionError), f"not an outcome: {type(error).__name__}"
    return 503, {"error": str(error)}, CLOSED_SECONDS


def _undelivered(error: DeliveryError, unix_now: float) -> tuple[int, dict[str, Any], int | None]:
    value: dict[str, Any] = {"error": str(error), "certainty": error.certainty}
    if isinstance(error, MessageRejected):
        place = _PLACE.match(error.words)
        value["error"] = error.words[place.end() :] if place else error.words or error.reason
        if error.certainty == "not_accepted":
            del value["certainty"]  # as the service says it
        return error.status if error.status >= 400 else 502, value, None  # 2xx: its entry was an error
    if isinstance(error, QuotaExhausted):
        return 429, value, max(1, math.ceil(error.reset_at - unix_now))
    if isinstance(error, Halted):
        value["error"] = error.reason
        return 503, value, HALT_SECONDS
    return 504, value, None


def _retry_after(seconds: int | None) -> tuple[tuple[str, str], ...]:
    return () if seconds is None else (("Retry-After", str(seconds)),)
