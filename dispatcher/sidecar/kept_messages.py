"""Messages of the outbox by their id: looked up, taken back, passed on once the service knows them.

`GET` and `DELETE /v2/messages/out_…` are answered as far as the store knows; of a delivered message the
request goes on to the upstream under the service's own id, and so it is for those among many that are
cancelled together. Who may do so is the proxy's to say. `GET /dispatcher/outbox/{id}` tells the state. Called
by `app`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from dispatcher.errors import OutboxError
from dispatcher.message import public_destination
from dispatcher.outbox.codec import unpack
from dispatcher.sidecar import cancels
from dispatcher.sidecar.cancels import Cancel
from dispatcher.sidecar.counters import clean
from dispatcher.sidecar.guard import Caller
from dispatcher.sidecar.proxy import without_token
from dispatcher.sidecar.refusals import Refused
from dispatcher.sidecar.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.outbox import Found, Outbox
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.proxy import Proxy
    from dispatcher.sidecar.server import Request

MESSAGES: Final = "/v2/messages/"
PREFIX: Final = "out_"
KEPT: Final = f"{MESSAGES}{PREFIX}"
MANY: Final = cancels.MESSAGES
STATES: Final = "/dispatcher/outbox/"
NOT_FOUND: Final = "message not found"
UNREADABLE: Final = "the outbox cannot be read now"
LEFT: Final = "the message may have left already; ask again when it is delivered"
RETRY: Final = (("Retry-After", "5"),)


class KeptMessages:
    """Answers for one outbox."""

    def __init__(self, outbox: Outbox, proxy: Proxy, counters: IntakeCounters) -> None:
        self._outbox = outbox
        self._proxy = proxy
        self._counters = counters

    async def handle(self, request: Request, caller: Caller) -> web.StreamResponse:
        """A request to `/v2/messages/out_…`."""
        target = request.raw_path
        refused = self._proxy.refusal(request.method, target, caller)
        if refused is not None:
            return _error(*refused)
        if request.method not in ("GET", "DELETE"):
            return _error(405, "method not allowed, use GET or DELETE")
        message_id, mark, query = target[len(MESSAGES) :].partition("?")
        try:
            found = await self._outbox.find(message_id)
            if request.method == "DELETE" and found is not None and found.receipt is None:
                if await self._outbox.cancel(message_id):
                    return Reply(202, orjson.dumps({"cancelled": 1}))
                found = await self._outbox.find(message_id)
        except OutboxError:
            return _error(503, UNREADABLE, RETRY)
        if found is None or (found.receipt is None and request.method == "DELETE"):
            is_under_way = found is not None and found.state in ("waiting", "claimed")
            return _error(409, LEFT) if is_under_way else _error(404, NOT_FOUND)
        if found.receipt is not None and found.receipt.message_id is not None:
            under = f"{MESSAGES}{found.receipt.message_id}{mark}{query}"
            return await self._proxy.handle(request, caller, under)
        if request.method == "DELETE":
            return _error(409, "the message went to several endpoints: cancel each by its own id")
        return Reply(200, orjson.dumps(view(found)))

    async def cancel_many(self, request: Request, caller: Caller) -> web.StreamResponse:
        """`DELETE /v2/messages`: what of it the outbox has is taken back here, the rest is the service's.

        Only ids that are named are looked for here: filters and everything mean what the service has.
        """
        target = without_token(request.raw_path)
        refused = self._proxy.refusal(request.method, target, caller)
        if refused is not None:
            return _error(*refused)
        try:
            whole = Cancel(target, await cancels.body_of(request) or None)
            if caller is not Caller.OWNER:
                whole = cancels.understood(whole)
        except Refused as why:
            if request.has_more_body:
                raise
            return _error(why.status, why.text)
        ids = cancels.named(whole) or []
        ours = {one for one in ids if one.startswith(PREFIX)}
        if not ours:
            return await self._proxy.handle(request, caller, target, whole)
        try:
            gone = await asyncio.gather(*map(self._cancel, ours))
        except OutboxError:
            return _error(503, UNREADABLE, RETRY)
        theirs = [one for one in ids if one not in ours]
        theirs += [one for found in gone if found is not None for one in found]
        cancelled = sum(found is None for found in gone)
        if not theirs:
            return Reply(200, orjson.dumps({"cancelled": cancelled}))
        return _added(await self._proxy.handle(request, caller, MANY, cancels.naming(theirs)), cancelled)

    async def _cancel(self, message_id: str) -> Sequence[str] | None:
        """`None` once it is taken back, else the service's ids of it, as far as they are known."""
        if await self._outbox.cancel(message_id):
            return None
        found = await self._outbox.find(message_id)
        return () if found is None or found.receipt is None else found.receipt.message_ids

    async def tell(self, target: str) -> tuple[int, dict[str, Any]]:
        """Status and value for a `GET` of `/dispatcher/outbox/{id}`."""
        try:
            found = await self._outbox.find(target[len(STATES) :].partition("?")[0])
        except OutboxError:
            return 503, {"error": UNREADABLE}
        if found is None:
            return 404, {"error": NOT_FOUND}
        return 200, state_of(found, self._counters.hidden)


def _added(answer: web.StreamResponse, cancelled: int) -> web.StreamResponse:
    """The service's answer, which counts what was taken back here, too."""
    if not isinstance(answer, web.Response):
        return answer
    try:
        value = orjson.loads(answer.body)  # type: ignore[arg-type]  # bytes, or no JSON
        value["cancelled"] += cancelled
    except (TypeError, KeyError, orjson.JSONDecodeError):
        return answer  # it refused
    return Reply(answer.status, orjson.dumps(value))


def view(found: Found) -> dict[str, Any]:
    """A message in the service's form, as far as it is known."""
    value: dict[str, Any] = {
        "messageId": found.record.id,
        "state": found.state,
        "createdAt": round(found.record.accepted_at * 1000),
    }
    try:
        destination = unpack(found.record.data).message.destination
    except OutboxError:  # only its receipt is kept
        destination = ""
    if "://" in destination:
        value["url"] = destination
    elif destination:
        value["api" if destination.startswith("api/") else "topicName"] = destination
    if found.record.queue is not None:
        value["queueName"] = found.record.queue
    if found.receipt is not None:
        value["messageIds"] = list(found.receipt.message_ids)
    return value


def state_of(found: Found, hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    """What became of a message so far; texts without what is secret.

    Args:
        hidden: Secrets that no text may show.
    """
    receipt = found.receipt
    return {
        "messageId": found.record.id,
        "state": found.state,
        "queue": found.record.queue,
        "acceptedAt": round(found.record.accepted_at, 3),
        "due": round(found.due, 3) if found.due else None,
        "settledAt": found.settled_at,
        "reason": clean(found.reason, hidden),
        "messageIds": list(receipt.message_ids) if receipt is not None else [],
        "deduplicated": receipt is not None and receipt.deduplicated,
        "duplicatePossible": receipt is not None and receipt.duplicate_possible,
        "attempts": [
            {
                "after": round(one.after, 3),
                "outcome": clean(one.outcome, hidden),
                "duration": round(one.duration, 3),
            }
            for one in found.attempts
        ],
    }


def letter_of(found: Found, hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    """The same of a dead letter, with where it was to go, as far as that may be shown."""
    try:
        destination = public_destination(unpack(found.record.data).message.destination)
    except OutboxError:
        destination = ""
    return {**state_of(found, hidden), "destination": destination}


def _error(status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(status, orjson.dumps({"error": text}), headers)
