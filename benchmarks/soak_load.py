"""The soak's callers: mixed requests on raw connections that come and go, at a rate or as fast as it goes.

Open-loop at a rate: a request is due when it is due, however long the ones before it take, and its latency
counts from there. Every answer is checked for its status. Nothing here judges. Used by `soak`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from benchmarks.upstream import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

BODY: Final = b"x" * 200
BATCH_ITEMS: Final = 10
LINES: Final = 20
QUEUES: Final = 20
LIFE: Final = (50, 1_000)
"""Requests of a connection, after which its caller closes it."""
TICK_SECONDS: Final = 0.002
CONNECTIONS_MAX: Final = 500
LEAVING_KIND: Final = "leaves"


class Ask(NamedTuple):
    """A request ready to be sent."""

    kind: str
    data: bytes
    messages: int
    """That are accepted if it is answered as it should be."""
    status: bytes


class Mix:
    """Draws requests; a share of them has destinations or ids never seen before."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = 0
        kinds = {"publish": 66, "enqueue": 14, "batch": 5, "lines": 2, "alone": 3, "refused": 3, "fresh": 5}
        self._kinds, self._weights = [*kinds, LEAVING_KIND], [*kinds.values(), 2]
        item = b'{"destination":"https://example.com/hook","body":"' + BODY + b'"}'
        json, ndjson = b"application/json", b"application/x-ndjson"
        self._batch = _post(b"/v2/batch", b"[" + b",".join([item] * BATCH_ITEMS) + b"]", kind=json)
        self._lines = _post(b"/v2/batch", (item + b"\n") * LINES, kind=ndjson)

    def next(self) -> Ask:
        """One more."""
        kind = self._random.choices(self._kinds, self._weights)[0]
        self._number += 1
        number = self._number
        if kind == "batch":
            return Ask(kind, self._batch, BATCH_ITEMS, b"200")
        if kind == "lines":
            return Ask(kind, self._lines, LINES, b"200")
        if kind == "enqueue":
            target = b"/v2/enqueue/q%d/https://example.com/hook" % (number % QUEUES)
            return Ask(kind, _post(target, BODY), 1, b"200")
        if kind == "alone":
            return Ask(kind, _post(b"/v2/publish/https://example.com/raw", b"\xff" + BODY), 1, b"200")
        if kind == "fresh":
            target = b"/v2/publish/https://example.com/%d?n=%d" % (number, number)
            return Ask(kind, _post(target, BODY, b"Upstash-Deduplication-Id: d%d\r\n" % number), 1, b"200")
        if kind == "refused":
            if number % 2:
                return Ask(kind, _post(b"/v2/publish/https://example.com", BODY, token=b"wrong"), 0, b"401")
            return Ask(kind, _post(b"/v2/publish/ftp://example.com", BODY), 0, b"400")
        return Ask(kind, _post(b"/v2/publish/https://example.com/hook", BODY), 1, b"200")


def _post(
    target: bytes,
    body: bytes,
    lines: bytes = b"",
    *,
    kind: bytes = b"text/plain",
    token: bytes = TOKEN.encode(),
) -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: sidecar\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\n%s"
    return head % (target, token, kind, lines) + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Caller(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, load: Load, life: int) -> None:
        self._load = load
        self.life = life
        self.ask: Ask | None = None
        self.due = 0.0
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, ask: Ask, due: float) -> None:
        """Send it; its caller may go at once."""
        self.life -= 1
        self.transport.write(ask.data)
        if ask.kind == LEAVING_KIND:
            self._load.left(ask)
            self.life = 0
            self.transport.close()
            return
        self.ask, self.due = ask, due

    def data_received(self, data: bytes) -> None:
        data = self._held + data
        head, mark, body = data.partition(b"\r\n\r\n")
        if not mark or not _is_whole(head, body):
            self._held = data
            return
        self._held = b""
        ask, self.ask = self.ask, None
        assert ask is not None, "an answer that nobody asked for"
        # (A line of NDJSON that failed is told by its status.)
        is_right = head[9:12] == ask.status and (ask.kind != "lines" or body.count(b"messageId") == LINES)
        self._load.answered(self, ask, is_right)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._load.ended(self)


def _is_whole(head: bytes, body: bytes) -> bool:
    at = head.find(b"Content-Length: ")
    if at < 0:
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])


class Load:
    """All callers of one sidecar."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._address = host, port
        self._mix = Mix(seed)
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._idle: list[Caller] = []
        self._callers: set[Caller] = set()
        self._waiting: deque[tuple[Ask, float]] = deque()
        self._after: Callable[[], None] = self._serve
        self.connections = 0
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.latencies: list[float] = []
        self.wanted = self.answers = self.hung_up = self.unexpected = 0
        self.confirmed_messages = self.hung_up_messages = 0
        self.complaints: list[str] = []

    async def at_rate(self, rate: float, seconds: float) -> None:
        """So many requests a second, whatever becomes of them."""
        began = self._loop.time()
        given = 0
        while (now := self._loop.time() - began) < seconds:
            while given < now * rate:
                self._waiting.append((self._mix.next(), began + given / rate))
                self.wanted += 1
                given += 1
            self._serve()
            await asyncio.sleep(TICK_SECONDS)

    async def as_fast_as_it_goes(self, callers: int, seconds: float) -> float:
        """So many callers, each asking again once it is answered; answers a second."""

        def refill() -> None:
            while len(self._waiting) < callers:
                self._waiting.append((self._mix.next(), self._loop.time()))
                self.wanted += 1
            self._serve()

        self._after = refill
        refill()
        await asyncio.sleep(seconds / 4)  # connections and caches
        before, began = self.answers + self.hung_up, self._loop.time()
        await asyncio.sleep(seconds)
        rate = (self.answers + self.hung_up - before) / (self._loop.time() - began)
        self._after = self._serve
        self.wanted -= len(self._waiting)
        self._waiting.clear()
        return rate

    async def settle(self, seconds: float) -> None:
        """Wait for every answer, then close every connection; what takes longer is cut off, and told."""
        try:
            await self._settled(seconds)
        except TimeoutError:
            self.complain(
                f"{len(self._waiting)} requests were not even sent {seconds:g} s after the last was due"
            )
            self._waiting.clear()
            for caller in list(self._callers):
                caller.transport.abort()

    async def _settled(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while self._waiting or self._opening or len(self._idle) < self.connections:
                self._serve()
                await asyncio.sleep(0.01)
            for caller in list(self._idle):
                caller.transport.close()
            while self.connections:  # noqa: ASYNC110 - sockets close in their own time
                await asyncio.sleep(0.01)

    def _serve(self) -> None:
        """Give what is due to those who are free, and have more of them where there are too few."""
        while self._waiting and self._idle:
            caller = self._idle.pop()
            if not caller.transport.is_closing():
                caller.send(*self._waiting.popleft())
        missing = min(len(self._waiting), CONNECTIONS_MAX - self.connections) - self._opening
        for _ in range(missing):
            self._opening += 1
            task = self._loop.create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            life = self._random.randint(*LIFE)
            _, caller = await self._loop.create_connection(lambda: Caller(self, life), *self._address)
        except OSError as error:
            self.complain(f"cannot connect: {error}")
            return
        finally:
            self._opening -= 1
        self.connections += 1
        self._callers.add(caller)
        self._idle.append(caller)
        self._serve()

    def complain(self, words: str) -> None:
        """Something was not as it should be."""
        self.unexpected += 1
        if len(self.complaints) < 10:
            self.complaints.append(words)

    def answered(self, caller: Caller, ask: Ask, is_right: bool) -> None:
        """An answer is there."""
        self.answers += 1
        self.latencies.append(self._loop.time() - caller.due)
        if is_right:
            self.confirmed_messages += ask.messages
        else:
            self.complain(f"another answer to {ask.kind} than {ask.status.decode()}")
        if caller.life <= 0:
            caller.transport.close()
        else:
            self._idle.append(caller)
        self._after()

    def left(self, ask: Ask) -> None:
        """A caller went without waiting."""
        self.hung_up += 1
        self.hung_up_messages += ask.messages

    def ended(self, caller: Caller) -> None:
        """A connection is over."""
        self.connections -= 1
        self._callers.discard(caller)
        if caller in self._idle:
            self._idle.remove(caller)
        if caller.ask is not None:
            self.complain(f"no answer to {caller.ask.kind}")
