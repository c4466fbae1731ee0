"""Replies to outcomes: what the service's answer says of each message of a request.

Replies are matched by position, as the official clients do. Whatever does not match the request (length,
shape, not JSON) is *unknown* for all it could have meant; an id is never guessed.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec
import orjson
from msgspec import Struct

from dispatcher.message import Endpoint, Receipt

REASON_CHARACTERS: Final = 300


class Accepted(Struct, gc=False):
    """The service took the message."""

    message_id: str
    deduplicated: bool = False


class AcceptedByGroup(Struct, gc=False):
    """The service took the message for a URL group."""

    endpoints: tuple[Endpoint, ...]


class NotAccepted(Struct, gc=False):
    """An error entry: this item failed while others of its batch were sent."""

    text: str


class Unclear(Struct, gc=False):
    """An entry that says neither: it may have been taken."""

    text: str


Outcome = Accepted | AcceptedByGroup | NotAccepted | Unclear
_message_id: Final = attrgetter("message_id")
_decode_receipts: Final = msgspec.json.Decoder(list[Receipt]).decode


def read_receipts(body: bytes, expected: int) -> list[Receipt] | None:
    """A receipt for each position of a batch's 2xx reply, if it says that every message was taken.

    `None` of any other reply: `read_reply` reads it with care. What the service does not know of its message
    (its deduplication id, how often it was sent) is still to be filled in.
    """
    try:
        receipts = _decode_receipts(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if len(receipts) != expected or not all(map(_message_id, receipts)):
        return None
    return receipts


def read_reply(body: bytes, expected: int, *, is_group: bool) -> tuple[Outcome, ...] | None:
    """One outcome for each position of a batch's 2xx reply; `None` if the reply does not match the request.

    `is_group` matters to a request of one item only, whose reply may come unwrapped: does that item go to a
    URL group?
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if expected == 1:
        value = _wrapped(value, is_group=is_group)
    if not isinstance(value, list) or len(value) != expected:
        return None
    return tuple(_read_entry(entry) for entry in value)


def _wrapped(value: Any, *, is_group: bool) -> Any:
    """A reply to one item as the array it may have been unwrapped from.

    An empty array answering one group may be either form: it stays a mismatch.
    """
    if isinstance(value, dict):
        return [value]
    if is_group and isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return [value]
    return value


def read_single_reply(body: bytes) -> Outcome | None:
    """The outcome of a publish or enqueue request's 2xx reply."""
    try:
        return _read_entry(orjson.loads(body))
    except orjson.JSONDecodeError:
        return None


def _read_entry(entry: Any) -> Outcome:
    if isinstance(entry, list):
        return _read_group(entry)
    if isinstance(entry, dict):
        message_id, error = entry.get("messageId"), entry.get("error")
        if isinstance(message_id, str) and message_id:
            return Accepted(message_id, entry.get("deduplicated") is True)
        if error is not None and not message_id:
            return NotAccepted(clip(error if isinstance(error, str) else repr(error)))
    return Unclear("the reply's entry has neither a messageId nor an error")


def _read_group(entry: list[Any]) -> Outcome:
    """A group's entry: delivered if any endpoint took it, an error entry if each of them has an error."""
    endpoints = []
    for each in entry:
        if not isinstance(each, dict):
            return Unclear("the reply's entry for a URL group holds something that is not an object")
        message_id, error = each.get("messageId"), each.get("error")
        has_id = isinstance(message_id, str) and bool(message_id)
        text = None if has_id else clip(error if isinstance(error, str) else "no messageId for this endpoint")
        endpoints.append(
            Endpoint(
                url=str(each.get("url", "")),
                message_id=message_id if has_id else None,
                deduplicated=each.get("deduplicated") is True,
                error=text,
            )
        )
    if endpoints and all(endpoint.message_id is None for endpoint in endpoints):
        if all(isinstance(each.get("error"), str) for each in entry):
            return NotAccepted(clip("; ".join(endpoint.error or "" for endpoint in endpoints)))
        return Unclear("the reply's entry for a URL group has no messageId at all")
    return AcceptedByGroup(tuple(endpoints))


def error_text(body: bytes) -> str:
    """The service's words in an error reply, on one line and of bounded length."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return clip(body[: 4 * REASON_CHARACTERS].decode("utf-8", "replace"))
    error = value.get("error") if isinstance(value, dict) else value
    return clip(error if isinstance(error, str) else orjson.dumps(value).decode())


def service_words(body: bytes) -> str | None:
    """The same of a reply in the service's own form, an object with an `error`; of any other `None`."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return clip(error) if isinstance(error, str) else None


def clip(text: str) -> str:
    """Text of another party, fit for one line of a log."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= REASON_CHARACTERS else line[:REASON_CHARACTERS] + "…"
