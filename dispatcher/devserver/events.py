"""What happened to messages, as the service's REST interface has it: `/v2/events`, the latest first. Pure.

Nothing is delivered here, so there are two kinds: `CREATED` for each message when it was accepted, and
`FAILED` for each that lies in the DLQ. Bodies are not shown. `service` routes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatcher.devserver.management import Answer, message_view, milliseconds, only
from dispatcher.devserver.options import Refused
from dispatcher.devserver.queries import Query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.devserver.upstream import Upstream

PAGE_MAX: Final = 1000
IDS: Final = "messageIds"
_LEFT_OUT: Final = frozenset(("body", "bodyBase64", "notBefore", "createdAt"))


def events(upstream: Upstream, method: str, path: list[str], text: str) -> Answer:
    """`GET /v2/events`, filtered and in pages of 1,000 at most."""
    if path:
        raise Refused(404, "not found: there is /v2/events")
    only(method, "GET")
    query = Query(text, IDS)
    ids = set(query.values(IDS))
    found = [
        view
        for view in _all(upstream)
        if (not ids or view["messageId"] in ids) and query.matches(view, view["time"])
    ]
    found.sort(key=lambda view: int(view["time"]), reverse=query.values("order") != ["earliestFirst"])
    page, cursor = query.page(found, PAGE_MAX)
    return 200, {"events": page, **({} if cursor is None else {"cursor": cursor})}


def _all(upstream: Upstream) -> Iterator[dict[str, Any]]:
    for letter in upstream.letters.values():
        failed = f"the destination answered {letter.status}"
        yield _event(upstream, letter.seq, letter.ordinal, letter.at, state="FAILED", error=failed)
    for seq in reversed(range(len(upstream.ledger))):
        for message_id in upstream.ledger.message_ids(seq):
            place = upstream.ledger.find(message_id)
            assert place is not None
            yield _event(upstream, *place, upstream.ledger.at[seq], state="CREATED")


def _event(upstream: Upstream, seq: int, ordinal: int, at: float, **said: str) -> dict[str, Any]:
    view = message_view(upstream, seq, ordinal)
    kept = {name: value for name, value in view.items() if name not in _LEFT_OUT}
    return {"time": milliseconds(at), **said, **kept}
