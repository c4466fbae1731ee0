"""One request in, one reply out: token, routing, counting. Pure; `app` is its only caller with a socket.

The path is never decoded or normalised: a destination may hold `//`, dot segments and escapes.
"""

from __future__ import annotations

import hmac
from collections import Counter, deque
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from dispatcher.devserver import deadletters, events, inspection, management, schedules
from dispatcher.devserver.keys import SigningKeys
from dispatcher.devserver.options import Refused
from dispatcher.devserver.responder import (
    BATCH,
    ENQUEUE,
    PUBLISH,
    FaultyUpstream,
    SimulatedReply,
    answer,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.devserver.faults import FaultKind, FaultPlan
    from dispatcher.devserver.upstream import Upstream

Headers = tuple[tuple[str, str], ...]
RECENT_MAX: Final = 10_000
MANAGED: Final = ("messages", "topics", "queues", "schedules", "dlq", "events", "keys")
_NO_CONTENT: Final = SimulatedReply(200, b"", ())


class RequestRecord(Struct, frozen=True):
    """One request to the API and its answer."""

    at: float
    kind: str
    """`batch`, `publish`, `enqueue`, a word of `MANAGED`, or `other`."""
    status: int | None
    """`None`: the client got none."""
    items: int
    """How many messages it carried."""
    accepted: int
    """How many of them it had accepted."""
    body_bytes: int
    fault: FaultKind


class Traffic:
    """Counts of requests, and the last 10,000 of them."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int | None]] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.refused = 0
        """Requests refused with a 4xx that no fault caused."""
        self.recent: deque[RequestRecord] = deque(maxlen=RECENT_MAX)

    def add(self, record: RequestRecord) -> None:
        """Count one request."""
        self.requests[record.kind, record.status] += 1
        if record.status is not None and 400 <= record.status < 500 and record.fault == "none":
            self.refused += 1
        if record.kind == "batch":
            self.batch_sizes[record.items] += 1
        self.recent.append(record)


class Service:
    """The whole interface of the local upstream, without sockets and clocks."""

    def __init__(self, upstream: Upstream, token: str, plan: FaultPlan, seed: int, now: float) -> None:
        self.upstream = upstream
        self.token = token
        self.faulty = FaultyUpstream(upstream)
        self.traffic = Traffic()
        self.keys = SigningKeys(upstream.instance)
        self.set_faults(plan, seed, now)

    def set_faults(self, plan: FaultPlan, seed: int, now: float) -> None:
        """Swap the fault plan; its phases count from `now`."""
        self.faulty.injector = plan.injector(seed, now)

    def reset(self, instance: str) -> None:
        """Forget everything accepted and counted; the fault plan stays. `instance` goes into message ids."""
        self.upstream.instance = instance
        self.upstream.clear()
        self.faulty.clear()
        self.traffic = Traffic()

    def handle(self, method: str, target: str, headers: Headers, body: bytes, now: float) -> SimulatedReply:
        """Answer one request to the API."""
        kind = _kind(target)
        if not self.is_authorized(target, headers):
            reply = refusal(401, "unauthorized: the token is missing or wrong")
        elif kind in ("batch", "publish", "enqueue"):
            if method == "POST":
                reply = self.faulty.respond(target, body, headers, now)
            else:
                reply = _not_allowed("POST")
        else:
            reply = self._manage(kind, method, target, headers, body, now)
        self.traffic.add(
            RequestRecord(now, kind, reply.status, reply.items, reply.accepted, len(body), reply.fault)
        )
        return reply

    def inspect(self, method: str, target: str, headers: Headers, body: bytes, now: float) -> SimulatedReply:
        """Answer one request below `/dispatcher-dev/` (whether the peer may ask is `app`'s to decide)."""
        try:
            return inspection.answer_inspection(self, method, target, headers, body, now)
        except Refused as refused:
            return refusal(refused.status, refused.text)

    def is_authorized(self, target: str, headers: Sequence[tuple[str, str]]) -> bool:
        """Whether the request carries the token: `Authorization: Bearer …` or `?qstash_token=…`."""
        for name, value in headers:
            if name.lower() == "authorization":
                scheme, _, given = value.partition(" ")
                if scheme.lower() == "bearer" and self._is_token(given.strip()):
                    return True
        for part in target.partition("?")[2].split("&"):
            name, _, value = part.partition("=")
            if name.lower() == "qstash_token" and self._is_token(unquote(value)):
                return True
        return False

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode("utf-8", "replace"), self.token.encode())

    def _manage(
        self, kind: str, method: str, target: str, headers: Headers, body: bytes, now: float
    ) -> SimulatedReply:
        try:
            status, value = self._managed(kind, method, target, headers, body, now)
        except Refused as refused:
            return refusal(refused.status, refused.text)
        return msgspec.structs.replace(_NO_CONTENT, status=status) if value is None else answer(status, value)

    def _managed(
        self, kind: str, method: str, target: str, headers: Headers, body: bytes, now: float
    ) -> management.Answer:
        before, _, query = target.partition("?")
        path = [unquote(part) for part in before.split("/")[3:]]
        match kind:
            case "messages":
                return management.messages(self.upstream, method, path, query, body)
            case "topics":
                return management.groups(self.upstream, method, path, body, now)
            case "queues":
                return management.queues(self.upstream, method, path, body, now)
            case "schedules":
                return schedules.schedules(self.upstream, method, target, path, headers, body, now)
            case "dlq":
                return deadletters.dead_letters(self.upstream, method, path, query, body, now)
            case "events":
                return events.events(self.upstream, method, path, query)
            case "keys":
                return self.keys.answer(method, path)
        raise Refused(404, "not found: this local upstream has no such path")


def _kind(target: str) -> str:
    if target.startswith(PUBLISH):
        return "publish"
    if target.startswith(ENQUEUE):
        return "enqueue"
    path = target.partition("?")[0]
    if path == BATCH:
        return "batch"
    for kind in MANAGED:
        if path == f"/v2/{kind}" or path.startswith(f"/v2/{kind}/"):
            return kind
    return "other"


def _not_allowed(method: str) -> SimulatedReply:
    reply = refusal(405, f"method not allowed, use {method}")
    return msgspec.structs.replace(reply, headers=(*reply.headers, ("Allow", method)))
