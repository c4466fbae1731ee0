"""Raw clients and servers: bytes as they are on the wire, in both directions."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.guard import make_server
from dispatcher.sidecar.settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dispatcher.sidecar.server import Request, Server

    Handler = Callable[[Request], Awaitable[web.StreamResponse]]

HOST = b"Host: sidecar\r\n"
GET = b"GET /x HTTP/1.1\r\n" + HOST
POST = b"POST /x HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SECRET = b"do-not-repeat-me"
"""What no answer and no log may repeat."""
PATIENCE = 20.0
"""Seconds after which a test takes an answer for missing; nothing here waits for it in vain."""


class Answer:
    """One answer, as it came."""

    def __init__(self, head: bytes, body: bytes, *, is_complete: bool = True) -> None:
        line, *lines = head.decode("latin-1").split("\r\n")
        self.line = line
        self.status = int(line.split(" ")[1])
        self.headers = [(name, value.strip()) for name, _, value in (one.partition(":") for one in lines)]
        self.body = body
        self.is_complete = is_complete

    def __repr__(self) -> str:
        return f"<{self.line} {self.headers} {self.body[:200]!r}>"

    def header(self, name: str) -> str | None:
        """The value of a header that there is at most once."""
        found = [value for one, value in self.headers if one.lower() == name.lower()]
        assert len(found) < 2, self
        return found[0] if found else None

    @property
    def error(self) -> str:
        """The text of an error in the service's form."""
        assert self.header("content-type") == "application/json", self
        value = json.loads(self.body)
        assert list(value) == ["error"], self
        return str(value["error"])


class RawClient:
    """A connection that sends whatever it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Put bytes on the wire."""
        self.writer.write(data)

    def end(self) -> None:
        """Close our side only."""
        self.writer.write_eof()

    async def answer(self, method: str = "POST") -> Answer:
        """The next answer, interim ones too."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n"))[:-4]
            answer = Answer(head, b"")
            if answer.status < 200 or answer.status in (204, 304) or method == "HEAD":
                return answer
            return await self._body(head, answer)

    async def _body(self, head: bytes, answer: Answer) -> Answer:
        length = answer.header("content-length")
        if length is not None:
            return Answer(head, await self.reader.readexactly(int(length)))
        if answer.header("transfer-encoding") != "chunked":
            return Answer(head, await self.reader.read())
        parts = []
        try:
            while part := await self.chunk():
                parts.append(part)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(head, b"".join(parts), is_complete=False)
        return Answer(head, b"".join(parts))

    async def chunk(self) -> bytes:
        """The next chunk of a body."""
        size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def ended(self) -> bytes:
        """What else comes until the server closes."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        """Go away."""
        self.writer.close()

    def reset(self) -> None:
        """Go away at once."""
        self.writer.transport.abort()


class Served:
    """A server under test, with its port and what it counts."""

    def __init__(self, server: Server, counters: IntakeCounters, port: int) -> None:
        self.server = server
        self.counters = counters
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.clients: list[RawClient] = []

    async def connect(self, *, receive_bytes: int | None = None) -> RawClient:
        """A client; with a small window where it is not going to read."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        client = RawClient(*await asyncio.open_connection(sock=sock, limit=2**20))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes, method: str = "POST") -> Answer:
        """One request on a connection of its own."""
        client = await self.connect()
        client.send(data)
        return await client.answer(method)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what is bound to become true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def served(handler: Handler, **bounds: Any) -> AsyncIterator[Served]:
    """A server of `handler` on a free port; in the end nothing of it is left."""
    counters = IntakeCounters()
    server = make_server(handler, ServeSettings(**bounds), counters)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server, "127.0.0.1", 0, backlog=1024)
    one = Served(server, counters, listener.sockets[0].getsockname()[1])
    try:
        yield one
    finally:
        listener.close()
        for client in one.clients:
            client.reset()
        await server.shutdown(0.05)
        await one.until(lambda: server.opened == 0)
        assert counters.connections_now == 0


async def echo(request: Request) -> web.Response:
    """Say what arrived."""
    body = await request.read()
    seen = {"method": request.method, "target": request.raw_path, "body": body.decode("latin-1")}
    return web.json_response(seen)


def post(target: str = "/x", body: bytes = b"", **headers: str) -> bytes:
    """A well-made request; `_` in a header's name stands for `-`."""
    lines = [f"POST {target} HTTP/1.1", "Host: sidecar", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class FakeUpstream:
    """An upstream of one behaviour, on bytes: `reply` is given the connection and each request's head."""

    def __init__(self, reply: Callable[[FakeUpstream, RawClient, bytes], Awaitable[None]]) -> None:
        self._reply = reply
        self.heads: list[bytes] = []
        self.connections = 0
        self.lost = 0
        """Connections that ended."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = RawClient(reader, writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                await self._reply(self, connection, head)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.lost += 1
            writer.close()

    @property
    def head(self) -> str:
        """The last request's head."""
        return self.heads[-1].decode("latin-1")


def canned(*pieces: bytes) -> Callable[[FakeUpstream, RawClient, bytes], Awaitable[None]]:
    """Always the same answer, after the body that the request announces."""

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        await body_of(connection, head)
        for piece in pieces:
            connection.send(piece)

    return reply


async def body_of(connection: RawClient, head: bytes) -> bytes:
    """The body of a request whose head was read."""
    lines = [line.decode("latin-1").lower() for line in head.split(b"\r\n")]
    length = next((int(one.split(":")[1]) for one in lines if one.startswith("content-length:")), 0)
    if length:
        return await connection.reader.readexactly(length)
    parts = []
    if "transfer-encoding: chunked" in lines:
        while part := await connection.chunk():
            parts.append(part)
    return b"".join(parts)
