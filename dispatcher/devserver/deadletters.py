"""Messages whose delivery failed for good, as the service's REST interface has them: `/v2/dlq`.

Pure: `now` is an argument. Nothing is delivered here, so nothing fails by itself: a test says which messages
have (`fail`, `POST /dispatcher-dev/fail`). Such a message is gone from `/v2/messages` and its queue; it can
be listed, looked at, deleted, and retried, which makes a new message of it. `service` and `inspection` call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from dispatcher.devserver.changes import LetterChanged
from dispatcher.devserver.intake import Entry, Item
from dispatcher.devserver.management import Answer, decode, message_view, milliseconds, only
from dispatcher.devserver.options import Refused
from dispatcher.devserver.queries import Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.devserver.upstream import Upstream

PAGE_MAX: Final = 100
IDS: Final = "dlqIds"


class _Ids(Struct, rename="camel", forbid_unknown_fields=True):
    dlq_ids: list[str]


def fail(upstream: Upstream, message_ids: Sequence[str], now: float, *, status: int, answer: str = "") -> int:
    """Let the delivery of messages have failed, with the last answer's status and body; returns how many."""
    places = [place for place in dict.fromkeys(map(upstream.find, message_ids)) if place is not None]
    upstream.drop(places)
    for seq, ordinal in places:
        name = f"{milliseconds(now)}-{seq}-{ordinal}"
        upstream.put_letter(LetterChanged(name, seq, ordinal, now, status, answer))
    return len(places)


def dead_letters(
    upstream: Upstream, method: str, path: list[str], query: str, body: bytes, now: float
) -> Answer:
    """`/v2/dlq`, `/v2/dlq/{id}`, `/v2/dlq/retry` and `/v2/dlq/retry/{id}`."""
    if path[:1] == ["retry"]:
        only(method, "POST")
        return _retry(upstream, path[1:], query, now)
    if not path:
        only(method, "GET", "DELETE")
        return _list(upstream, query) if method == "GET" else _delete(upstream, query, body)
    only(method, "GET", "DELETE")
    if len(path) > 1:
        raise Refused(404, "not found in the DLQ")
    letter = _letter(upstream, path[0])
    if method == "GET":
        return 200, letter_view(upstream, letter)
    _remove(upstream, [letter])
    return 200, None


def letter_view(upstream: Upstream, letter: LetterChanged) -> dict[str, Any]:
    """A message of the DLQ as the service shows it."""
    return {
        **message_view(upstream, letter.seq, letter.ordinal),
        "dlqId": letter.dlq_id,
        "responseStatus": letter.status,
        "responseHeader": {},
        "responseBody": letter.answer,
    }


def _letter(upstream: Upstream, name: str) -> LetterChanged:
    letter = upstream.letters.get(name)
    if letter is None:
        raise Refused(404, "not found in the DLQ")
    return letter


def _selected(upstream: Upstream, query: Query) -> list[LetterChanged]:
    """Ids rule out filters; without both it is all of them."""
    if query.values(IDS):
        return [
            upstream.letters[name] for name in dict.fromkeys(query.values(IDS)) if name in upstream.letters
        ]
    return [
        letter
        for letter in upstream.letters.values()
        if query.matches(letter_view(upstream, letter), milliseconds(letter.at))
    ]


def _list(upstream: Upstream, text: str) -> Answer:
    query = Query(text, IDS)
    found = _selected(upstream, query)
    if query.values("order") == ["latestFirst"]:
        found.reverse()
    letters, cursor = query.page(found, PAGE_MAX)
    return 200, _paged({"messages": [letter_view(upstream, letter) for letter in letters]}, cursor)


def _delete(upstream: Upstream, text: str, body: bytes) -> Answer:
    if body.strip():
        ids = dict.fromkeys(decode(body, _Ids).dlq_ids)
        letters = [upstream.letters[name] for name in ids if name in upstream.letters]
        return 200, {"deleted": _remove(upstream, letters)}
    letters, cursor = _first(upstream, text)
    return 200, _paged({"deleted": _remove(upstream, letters)}, cursor)


def _retry(upstream: Upstream, path: list[str], text: str, now: float) -> Answer:
    if path:
        return 200, _again(upstream, _letter(upstream, path[0]), now)
    letters, cursor = _first(upstream, text)
    return 200, _paged({"responses": [_again(upstream, letter, now) for letter in letters]}, cursor)


def _first(upstream: Upstream, text: str) -> tuple[list[LetterChanged], str | None]:
    """What a call on many is about: those at the front, since they go; and whether more are left."""
    query = Query(text, IDS)
    found = _selected(upstream, query)
    count = min(query.number("count", PAGE_MAX, 1), PAGE_MAX)
    return found[:count], "0" if len(found) > count else None


def _again(upstream: Upstream, letter: LetterChanged, now: float) -> Entry:
    """A new message with the same body and options, to the place that failed."""
    ledger = upstream.ledger
    if ledger.bodies is None:
        raise Refused(409, "this local upstream keeps no bodies: start it with --keep-bodies")
    seq, group = letter.seq, ledger.groups[letter.seq]
    destination = ledger.destinations[seq] if group is None else group[letter.ordinal].url
    headers: dict[str, Any] = {}
    for name, value in ledger.options[seq].pairs:
        headers.setdefault(name, []).append(value)
    entry = upstream.accept_one(Item(destination, ledger.bodies[seq], headers, ledger.queues[seq]), now)
    assert isinstance(entry, Entry), "a destination that is one URL has one entry"
    _remove(upstream, [letter])
    return entry


def _remove(upstream: Upstream, letters: Sequence[LetterChanged]) -> int:
    for letter in letters:
        upstream.put_letter(LetterChanged(letter.dlq_id))
    return len(letters)


def _paged(answer: dict[str, Any], cursor: str | None) -> dict[str, Any]:
    return answer if cursor is None else {**answer, "cursor": cursor}
