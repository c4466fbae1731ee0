"""The upstream behind a fault plan: what a client that posts messages would see, without a socket.

Pure: `now` is an argument, nothing sleeps. `app` carries the replies out on sockets and the simulation in
virtual time, so that a fault means one thing. Faults strike the intake only (batch, publish, enqueue).

The order for one request: the service's capacity, then faults that strike before acceptance, then a poison
marker, then validation, then acceptance, then faults that spoil the reply. Messages are accepted when the
request arrives; the latency, the wait for a worker and the work lie between acceptance and reply. Above its
capacity the service looks at nothing: 429, after the latency alone. Every other request takes its turn and
its work, also one that is then refused, reset or never answered.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec
from msgspec import Struct, structs

from dispatcher.devserver.capacity import Load
from dispatcher.devserver.faults import Fault, FaultKind, FaultPlan, Injector
from dispatcher.devserver.intake import Entry, Item, parse_items
from dispatcher.devserver.options import HeaderValue, Refused, is_name, only_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.devserver.upstream import Upstream

JSON_HEADERS: Final = (("Content-Type", "application/json"),)
BATCH: Final = "/v2/batch"
PUBLISH: Final = "/v2/publish/"
ENQUEUE: Final = "/v2/enqueue/"
_encode: Final = msgspec.json.Encoder().encode
_TEXTS: Final = {
    FaultKind.THROTTLE_BURST: "burst rate limit exceeded",
    FaultKind.THROTTLE_DAILY: "daily message limit exceeded",
    FaultKind.THROTTLE_BARE: "too many requests",
    FaultKind.REFUSE_TOKEN: "invalid token",
    FaultKind.UNAVAILABLE: "service unavailable",
    FaultKind.ERROR_BEFORE: "internal server error",
    FaultKind.ERROR_AFTER: "internal server error",
    FaultKind.POISON_500: "internal server error",
    FaultKind.POISON_400: "invalid request",
    FaultKind.OVER_CAPACITY: "too many requests",
}
_PROXY_PAGES: Final = {
    FaultKind.BAD_GATEWAY: b"<html><h1>502 Bad Gateway</h1></html>",
    FaultKind.GATEWAY_TIMEOUT: b"<html><h1>504 Gateway Time-out</h1></html>",
}


class SimulatedReply(Struct, frozen=True):
    """What the client of one request sees."""

    status: int | None
    """`None`: no reply, the connection is reset after `latency` (never, if that is infinite)."""
    body: bytes = b""
    """As far as it gets: already cut if `truncated`."""
    headers: tuple[tuple[str, str], ...] = JSON_HEADERS
    latency: float = 0.0
    """Seconds from the request's arrival to the reply's first byte or to the reset."""
    fault: FaultKind = FaultKind.NONE
    accepted: int = 0
    """How many messages this request had accepted (repeats inside the window not counted)."""
    items: int = 0
    """How many messages it carried."""
    declared_bytes: int = 0
    """The announced length of the body; more than `body` has if it is truncated."""
    drip_over: float = 0.0
    """Seconds over which the body is written in pieces."""

    @property
    def accepted_before_reply(self) -> bool:
        """Whether something was accepted, whatever the client sees."""
        return self.accepted > 0

    @property
    def truncated(self) -> bool:
        """Whether the connection closes before the announced length is written."""
        return len(self.body) < self.declared_bytes


def answer(status: int, value: object) -> SimulatedReply:
    """A reply with a JSON body."""
    body = _encode(value)
    return SimulatedReply(status, body, declared_bytes=len(body))


def refusal(status: int, text: str) -> SimulatedReply:
    """An error in the service's form."""
    return answer(status, {"error": text})


class Call(Struct, frozen=True):
    """One request to the intake."""

    target: str
    """The raw request target, not decoded."""
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def is_batch(self) -> bool:
        """Whether it is `/v2/batch`."""
        return self.target.partition("?")[0] == BATCH


class FaultyUpstream:
    """An `Upstream` behind an `Injector`: `respond` says what a request's client sees."""

    def __init__(self, upstream: Upstream, injector: Injector | None = None) -> None:
        self.upstream = upstream
        self.injector = injector or FaultPlan().injector()
        self.faults: Counter[str] = Counter()
        """How often each kind was injected, error entries and endpoints included."""
        self.load = Load()

    def clear(self) -> None:
        """Forget the counts and the requests that are in work; the plan stays."""
        self.faults.clear()
        self.load = Load()

    def respond(
        self, target: str, body: bytes, headers: Iterable[tuple[str, str]] = (), now: float = 0.0
    ) -> SimulatedReply:
        """Answer `POST target`: `/v2/batch`, `/v2/publish/…` or `/v2/enqueue/…`, raw as on the wire.

        `headers` are the request's lines; a batch does not look at them (the token is `app`'s business).
        """
        call = Call(target, tuple(headers), body)
        items, refused = self._items(call)
        fault = self.injector.next(now, len(items) if call.is_batch else 0)
        busy = self.load.begin(self.injector.capacity(now), len(items), now)
        if busy is None:
            return self._spoilt(Fault(FaultKind.OVER_CAPACITY, _finite(fault)), b"", 0, len(items))
        reply = self._answer(call, items, refused, fault, now)
        return structs.replace(reply, latency=reply.latency + busy) if busy else reply

    def _answer(
        self, call: Call, items: list[Item], refused: Refused | None, fault: Fault, now: float
    ) -> SimulatedReply:
        """The reply, after the plan's latency."""
        if fault.accepts:
            fault = self._with_poison(fault, call.body, now)
        if not fault.accepts:
            return self._spoilt(fault, b"", 0, len(items))
        try:
            if refused is not None:
                raise refused
            entries, accepted = self._accept(call, items, fault, now)
        except Refused as error:
            latency = _finite(fault)
            return structs.replace(refusal(error.status, error.text), latency=latency, items=len(items))
        return self._reply(call, fault, entries, accepted)

    def _items(self, call: Call) -> tuple[list[Item], Refused | None]:
        """The request's messages, and why it will be refused if it cannot be read."""
        try:
            if len(call.body) > self.upstream.max_batch_bytes:
                raise Refused(413, f"request too large, the limit is {self.upstream.max_batch_bytes} bytes")
            return (parse_items(call.body) if call.is_batch else [single_item(call)]), None
        except Refused as refused:
            return [], refused

    def _with_poison(self, fault: Fault, body: bytes, now: float) -> Fault:
        for name, marker in self.injector.markers(now).items():
            if marker.encode() in body:
                return Fault(FaultKind(name), _finite(fault))
        return fault

    def _accept(
        self, call: Call, items: list[Item], fault: Fault, now: float
    ) -> tuple[list[Entry | list[Entry]], int]:
        before = len(self.upstream.ledger)
        if call.is_batch:
            spared = tuple(place for place in fault.errors_unqueued if not items[place].queue)
            failing = fault.error_entries + spared
            entries = self.upstream.accept_batch(
                items, now, failing=failing, failing_endpoints=fault.error_endpoints
            )
            self._count_entries(entries, failing, fault.error_endpoints)
        else:
            entries = [self.upstream.accept_one(items[0], now)]
        return entries, len(self.upstream.ledger) - before

    def _count_entries(
        self, entries: list[Entry | list[Entry]], failing: tuple[int, ...], endpoints: tuple[int, ...]
    ) -> None:
        for place in set(failing):
            entry = entries[place]
            self.faults["error_entry"] += isinstance(entry, Entry) and entry.error is not None
        for place in endpoints:
            entry = entries[place]
            self.faults["error_endpoint"] += isinstance(entry, list) and any(one.error for one in entry)

    def _reply(
        self, call: Call, fault: Fault, entries: list[Entry | list[Entry]], accepted: int
    ) -> SimulatedReply:
        count = len(entries)
        status = 200 if call.is_batch else single_status(entries[0])
        if fault.kind is FaultKind.WRONG_LENGTH:
            return self._spoilt(fault, _encode(entries[:-1]), accepted, count, status)
        body = _encode(entries if call.is_batch else entries[0])
        if fault.kind is FaultKind.NONE:
            return SimulatedReply(
                status, body, JSON_HEADERS, fault.latency, fault.kind, accepted, count, len(body)
            )
        return self._spoilt(fault, body, accepted, count, status)

    def _spoilt(
        self, fault: Fault, body: bytes, accepted: int, items: int, status: int = 200
    ) -> SimulatedReply:
        self.faults[fault.kind] += 1
        sent, declared, headers = _spoil(fault.kind, body)
        return SimulatedReply(
            status if fault.status == 200 else fault.status,
            sent,
            (*headers, *fault.headers),
            fault.latency,
            fault.kind,
            accepted,
            items,
            declared,
            fault.drip_over,
        )


def _finite(fault: Fault) -> float:
    """A refused request is answered even where an accepted one would hang."""
    return 0.0 if fault.kind in (FaultKind.HANG_AFTER, FaultKind.HANG_BEFORE) else fault.latency


def _spoil(kind: FaultKind, body: bytes) -> tuple[bytes, int, tuple[tuple[str, str], ...]]:
    """The body as it is sent, the length announced for it, its headers."""
    if kind in _TEXTS:
        body = _encode({"error": _TEXTS[kind]})
    elif kind in _PROXY_PAGES:
        page = _PROXY_PAGES[kind]
        return page, len(page), (("Content-Type", "text/html"),)
    elif kind is FaultKind.TRUNCATE:
        return body[: len(body) // 2], len(body), JSON_HEADERS
    elif kind is FaultKind.UNPARSABLE:
        body = b"{" + body[: len(body) // 2]
    elif kind not in (FaultKind.WRONG_LENGTH, FaultKind.DRIP):
        return b"", 0, ()
    return body, len(body), JSON_HEADERS


def single_status(entry: Entry | list[Entry]) -> int:
    """200, or 202 if nothing new was enqueued."""
    entries = entry if isinstance(entry, list) else [entry]
    return 202 if entries and all(one.deduplicated for one in entries) else 200


def single_item(call: Call) -> Item:
    """The message of a publish or an enqueue: destination from the raw target, options from the headers.

    Query keys `qstash_token` and `upstash-*` speak to the service and are taken out; every other byte of
    the target behind the prefix is the destination.
    """
    queue = None
    rest = call.target.removeprefix(PUBLISH)
    if call.target.startswith(ENQUEUE):
        queue, _, rest = call.target[len(ENQUEUE) :].partition("/")
        queue = unquote(queue)
        if not is_name(queue):
            raise Refused(400, "invalid queue name: only letters, digits, '_', '-' and '.' are allowed")
    destination, parameters = split_query(readable(rest))
    headers: dict[str, HeaderValue] = {}
    lines = [(readable(name), readable(value)) for name, value in (*call.headers, *parameters)]
    for name, value in only_options(tuple(lines)):
        earlier = headers.get(name)
        headers[name] = (
            value if earlier is None else [*([earlier] if isinstance(earlier, str) else earlier), value]
        )
    return Item(destination, call.body, headers, queue)


def readable(text: str) -> str:
    """Bytes of a head that are not UTF-8 (they come as lone surrogates) are taken for Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    return str(text)  # a header's name may be a subclass of str, which no encoder takes


def split_query(rest: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The destination with its own query, and the parameters addressed to the service, decoded."""
    path, mark, query = rest.partition("?")
    own, ours = [], []
    for part in query.split("&") if mark else ():
        name, _, value = part.partition("=")
        if name.lower() == "qstash_token" or name.lower().startswith("upstash-"):
            ours.append((unquote(name), unquote(value)))
        else:
            own.append(part)
    return (f"{path}?{'&'.join(own)}" if own or (mark and not ours) else path), tuple(ours)
