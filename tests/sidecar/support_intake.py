"""A whole intake on a socket, and a client that sends exactly the bytes that a test wants."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from dispatcher import Config, Dispatcher
from dispatcher.sidecar.app import App
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.guard import Guard, make_server
from dispatcher.sidecar.intake import Intake
from dispatcher.sidecar.proxy import Proxy
from dispatcher.sidecar.settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from dispatcher.transport import Transport

TOKEN = "test-token"
CALLER = "caller-token"
SECONDS = 20.0
"""After which a test that hangs fails."""


class Answer(NamedTuple):
    """A reply, read off a socket."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value."""
        return orjson.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The values of an NDJSON body."""
        return [orjson.loads(line) for line in self.body.splitlines()]


class Sidecar:
    """What a test holds of one: its parts, and ways to ask it."""

    def __init__(self, port: int, dispatcher: Dispatcher, counters: IntakeCounters) -> None:
        self.port = port
        self.dispatcher = dispatcher
        self.counters = counters
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        """A connection of its own, closed at the test's end."""
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self._connections.append(connection)
        return connection

    def hang_up(self) -> None:
        """Close all that are open."""
        for connection in self._connections:
            connection.close()

    async def ask(
        self, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = (), method: str = "POST"
    ) -> Answer:
        """One request on a connection of its own."""
        connection = await self.connect()
        try:
            await connection.send(method, target, body, headers)
            return await connection.answer()
        finally:
            connection.close()

    async def publish(self, destination: str, body: bytes = b"x", *headers: tuple[str, str]) -> Answer:
        """A single publish."""
        return await self.ask(f"/v2/publish/{destination}", body, headers)

    async def batch(self, value: Any, *headers: tuple[str, str]) -> Answer:
        """A JSON batch."""
        return await self.ask("/v2/batch", orjson.dumps(value), headers)

    async def bulk(self, text: bytes) -> Answer:
        """A stream of lines, sent whole."""
        return await self.ask("/v2/batch", text, [("Content-Type", "application/x-ndjson")])


class Connection:
    """One connection of a caller."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(
        self, method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """A request with a body of declared length, in one write."""
        self.writer.write(head(method, target, [*headers, ("Content-Length", str(len(body)))]) + body)
        await self.writer.drain()

    async def begin(self, target: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """The head of a chunked request."""
        self.writer.write(head("POST", target, [*headers, ("Transfer-Encoding", "chunked")]))
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """One chunk; empty: the last one."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def answer(self) -> Answer:
        """The next reply."""
        async with asyncio.timeout(SECONDS):
            status, headers = await self.answer_head()
            if headers.get("transfer-encoding") == "chunked":
                parts = []
                while part := await self.answer_chunk():
                    parts.append(part)
                return Answer(status, headers, b"".join(parts))
            return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))

    async def answer_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next reply that is final."""
        while True:
            raw = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
            status = int(first.split()[1])
            if status >= 200:
                pairs = (line.partition(":") for line in lines)
                return status, {name.lower(): value.strip() for name, _, value in pairs}

    async def answer_chunk(self) -> bytes:
        """The next chunk of a reply."""
        size = int(await self.reader.readline(), 16)
        part = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return part

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds; fails if that takes too long."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


def head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """A request's head; with a credential, unless the headers bring one."""
    lines = [("Host", "sidecar"), *headers]
    if not any(name.lower() == "authorization" for name, _ in lines):
        lines.append(("Authorization", f"Bearer {CALLER}"))
    text = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines)
    return (text + "\r\n").encode("utf-8", "surrogateescape")


@asynccontextmanager
async def sidecar(
    transport: Transport | None = None,
    *,
    url: str = "http://127.0.0.1:9",
    serve: ServeSettings | None = None,
    **settings: Any,
) -> AsyncIterator[Sidecar]:
    """An intake with the guard's server before it, in front of a transport or of an upstream at `url`."""
    config = Config.load(env={}, token=TOKEN, url=url, **{"retry_base": 0.001, **settings})
    serve = serve or ServeSettings(admin_port=8091)
    counters = IntakeCounters()
    dispatcher, proxy = Dispatcher(config, transport=transport), Proxy(config, serve)
    app = App(
        dispatcher,
        Intake(dispatcher, serve, counters),
        proxy,
        Guard([CALLER, TOKEN], TOKEN),
        counters,
    )
    async with dispatcher:
        await proxy.start()
        server = make_server(app.handle, serve, counters)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        one = Sidecar(listener.sockets[0].getsockname()[1], dispatcher, counters)
        try:
            yield one
        finally:
            one.hang_up()
            listener.close()
            await dispatcher.aclose()
            await server.shutdown(1.0)
            await listener.wait_closed()
            await proxy.aclose()
