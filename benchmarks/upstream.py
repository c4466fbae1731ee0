"""A minimal upstream in a process of its own: it parses, checks, counts and answers, and does nothing else.

It must never be the bottleneck unseen: raw `asyncio.Protocol`, and it says how much CPU time it took. It must
never be more lenient than a service would be either: every request's head and length, the token, and each
item of the array are read. Takes `POST /v2/batch`, `POST /v2/publish/…` and Elasticsearch's `_bulk`; `GET
/report` gives its counts. Ends when its standard input does. Started by `upstream_process`.

    python -m benchmarks.upstream --latency 0.03
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, cast

import msgspec
from msgspec import Meta, Struct

from dispatcher.cli.loop import run_in_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN: Final = "benchmark"
BACKLOG: Final = 1_024
HEAD_MAX_BYTES: Final = 65_536
METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT"})
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    431: "Request Header Fields Too Large",
}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
PLACE: Final = b"@" * 12
"""Stands in a prepared reply where the number of the request belongs."""
PRODUCT: Final = b'{"name":"sink","version":{"number":"9.0.0"},"tagline":"You Know, for Search"}'


class Item(Struct, gc=False, forbid_unknown_fields=True):
    """One item of a batch."""

    destination: Annotated[str, Meta(min_length=1)]
    headers: dict[str, str] | None = None
    body: str | None = None
    queue: str | None = None


class Request(NamedTuple):
    """One request, complete."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]


class RefusedError(Exception):
    """A request that gets an error instead of what it asks for."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Counts(Struct):
    """What `GET /report` says; since the start, so that a difference of two is a round's."""

    messages: int = 0
    requests: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0
    at: float = 0.0
    """Seconds on the upstream's clock."""


# --------------------------------------------------------------------------------------------- reading


class Parser:
    """Bytes as they come to requests; several may come at once, and one in any number of pieces."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._head: Request | None = None
        self._length = 0

    def asks_to_continue(self) -> bool:
        """The client waits for leave to send the body of its request; true once for each."""
        return self._head is not None and self._head.headers.pop(b"expect", b"") == b"100-continue"

    def feed(self, data: bytes) -> Iterator[Request]:
        """The requests that these bytes complete.

        Raises:
            RefusedError: This is not HTTP as it is understood here; nothing after it can be read.
        """
        self._held += data
        while (request := self._next()) is not None:
            yield request

    def _next(self) -> Request | None:
        if self._head is None:
            end = self._held.find(b"\r\n\r\n")
            if end < 0 and len(self._held) <= HEAD_MAX_BYTES:
                return None
            if not 0 <= end <= HEAD_MAX_BYTES:
                raise RefusedError(431, f"the head is longer than {HEAD_MAX_BYTES} bytes")
            self._head, self._length = read_head(self._take(end))
            del self._held[:4]
        if len(self._held) < self._length:
            return None
        head, self._head = self._head, None
        return Request(head.method, head.target, head.headers, self._take(self._length))

    def _take(self, size: int) -> bytes:
        with memoryview(self._held) as view:
            taken = bytes(view[:size])
        del self._held[:size]
        return taken


def read_head(head: bytes) -> tuple[Request, int]:
    """A request without its body, and the body's length."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1" or parts[0] not in METHODS:
        raise RefusedError(400, "the request line must be METHOD target HTTP/1.1")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise RefusedError(400, "a header line must be `Name: value`")
        headers[name.lower()] = value.strip()
    return Request(parts[0], parts[1], headers, b""), _length(parts[0], headers)


def _length(method: bytes, headers: dict[bytes, bytes]) -> int:
    if b"transfer-encoding" in headers:
        raise RefusedError(411, "a body must come with its Content-Length")
    given = headers.get(b"content-length")
    if given is None:
        if method in (b"POST", b"PUT"):
            raise RefusedError(411, "a body must come with its Content-Length")
        return 0
    if not given.isdigit():
        raise RefusedError(400, "Content-Length must be a number")
    return int(given)


# -------------------------------------------------------------------------------------------- answering


class Upstream:
    """Checks requests and composes replies; counts what it accepted."""

    def __init__(self, token: str = TOKEN) -> None:
        self.counts = Counts()
        self._authorization = f"Bearer {token}".encode()
        self._items: Callable[[bytes], list[Item]] = msgspec.json.Decoder(list[Item]).decode
        self._lines = msgspec.json.Decoder(dict[str, Any])
        self._accepted: dict[int, bytes] = {}
        self._indexed: dict[int, bytes] = {}

    def answer(self, request: Request) -> bytes:
        """The whole response; only what is accepted is counted as messages."""
        try:
            return self._route(request)
        except RefusedError as refusal:
            self.counts.refused += 1
            return refused(refusal)

    def _route(self, request: Request) -> bytes:
        path = request.path
        if path == b"/v2/batch":
            self._check(request, b"POST")
            return response(200, self.accept(request.body))
        if path.startswith(b"/v2/publish/") and len(path) > len(b"/v2/publish/"):
            self._check(request, b"POST")
            return response(200, self._numbered(self._accepted, 1, _acceptance)[1:-1])
        if path.rpartition(b"/")[2] == b"_bulk":
            self._check(request, b"POST", b"PUT")
            return self._bulk(request.body)
        if path == b"/report":
            return self._report()
        if path == b"/":
            self._check(request, b"GET", b"HEAD")
            return response(200, PRODUCT, is_elastic=True, has_body=request.method != b"HEAD")
        raise RefusedError(404, "there is nothing under this path")

    def _check(self, request: Request, *methods: bytes) -> None:
        if request.method not in methods:
            raise RefusedError(405, "another method is due here")
        if request.headers.get(b"authorization") != self._authorization:
            raise RefusedError(401, "the token is not the one this upstream was started with")

    def accept(self, body: bytes) -> bytes:
        """The reply's body to a batch.

        Raises:
            RefusedError: It is not an array of items, or an empty one.
        """
        try:
            items = self._items(body)
        except (msgspec.DecodeError, ValueError) as error:
            raise RefusedError(400, f"the batch cannot be read: {error}") from None
        if not items:
            raise RefusedError(400, "the batch is empty")
        return self._numbered(self._accepted, len(items), _acceptance)

    def _bulk(self, body: bytes) -> bytes:
        try:
            lines = self._lines.decode_lines(body)
        except (msgspec.DecodeError, ValueError) as error:
            raise RefusedError(400, f"the bulk request cannot be read: {error}") from None
        if not lines or len(lines) % 2 or any("index" not in line for line in lines[::2]):
            raise RefusedError(400, "a bulk request is pairs of an `index` action and a document")
        items = self._numbered(self._indexed, len(lines) // 2, _indexing)
        return response(200, b'{"took":1,"errors":false,"items":' + items + b"}", is_elastic=True)

    def _numbered(self, cache: dict[int, bytes], size: int, entry: Callable[[int], bytes]) -> bytes:
        """An array of `size` entries, each with an id that no other entry of this upstream has."""
        counts = self.counts
        counts.requests += 1
        counts.messages += size
        prepared = cache.get(size)
        if prepared is None:
            prepared = cache[size] = b"[" + b",".join([entry(place) for place in range(size)]) + b"]"
        return prepared.replace(PLACE, b"%012x" % counts.requests)

    def _report(self) -> bytes:
        self.counts.cpu_seconds = time.process_time()
        self.counts.at = time.monotonic()
        return response(200, msgspec.json.encode(self.counts))


def _acceptance(place: int) -> bytes:
    return b'{"messageId":"msg_%s%08x"}' % (PLACE, place)


def _indexing(place: int) -> bytes:
    shards = b'"_shards":{"total":1,"successful":1,"failed":0}'
    made = b'"_index":"messages","_id":"%s%08x","_version":1,"result":"created"' % (PLACE, place)
    return b'{"index":{%s,%s,"_seq_no":0,"_primary_term":1,"status":201}}' % (made, shards)


def response(status: int, body: bytes, *, is_elastic: bool = False, has_body: bool = True) -> bytes:
    """A whole HTTP/1.1 response; the connection stays open."""
    product = "X-Elastic-Product: Elasticsearch\r\n" if is_elastic else ""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n{product}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    return head + body if has_body else head


def refused(refusal: RefusedError) -> bytes:
    """An error, in the service's form."""
    return response(refusal.status, msgspec.json.encode({"error": refusal.why}))


# ---------------------------------------------------------------------------------------------- serving


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; replies leave in the order of the requests."""

    def __init__(self, upstream: Upstream, latency: float) -> None:
        self._upstream = upstream
        self._latency = latency
        self._parser = Parser()
        self._late: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        try:
            for request in self._parser.feed(data):
                self._reply(request)
        except RefusedError as refusal:
            self._upstream.counts.refused += 1
            self._transport.write(refused(refusal))
            self._transport.close()  # where the next request begins is unknown
            return
        if self._parser.asks_to_continue():
            self._transport.write(CONTINUE)

    def _reply(self, request: Request) -> None:
        reply = self._upstream.answer(request)
        if self._latency and request.target != b"/report":
            self._late.append(reply)
            asyncio.get_running_loop().call_later(self._latency, self._write_late)
        else:
            self._transport.write(reply)

    def _write_late(self) -> None:
        self._transport.write(self._late.popleft())


async def serve(upstream: Upstream, latency: float, context: ssl.SSLContext | None) -> None:
    """Print the port, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # As many may connect at once as there are callers: one who is not accepted tries again a second later.
    server = await loop.create_server(
        lambda: Connection(upstream, latency), "127.0.0.1", 0, ssl=context, backlog=BACKLOG
    )
    print(server.sockets[0].getsockname()[1], flush=True)

    def watch() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
    server.close()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--cpu", type=int, help="the core to stay on")
    parser.add_argument("--certificate", help="PEM file with certificate and key: serve TLS")
    given = parser.parse_args()
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    context = None
    if given.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.certificate)
    run_in_loop(serve(Upstream(), given.latency, context))


if __name__ == "__main__":
    main()
