"""What the tests of chaos share: a peer that answers turns of fixed length, and a client that takes them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from dispatcher.devserver.chaos import ChaosProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = bytes(range(250)) * 4
REPLY = bytes(reversed(range(250))) * 4
PATIENCE = 5.0


class Peer:
    """Answers every `len(REQUEST)` bytes with `REPLY`, and records what it met."""

    def __init__(self) -> None:
        self.connections = 0
        self.received = b""
        self.arrivals: list[bytes] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        """`eof` or `reset`, for each connection that ended."""
        self.answers_cut_requests = False
        """Whether a request that ends half-way is answered all the same."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            await self._converse(reader, writer)
            self.ended.put_nowait("eof")
        except ConnectionError:
            self.ended.put_nowait("reset")
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = 0
        while data := await reader.read(65_536):
            self.arrivals.append(data)
            self.received += data
            pending += len(data)
            while pending >= len(REQUEST):
                pending -= len(REQUEST)
                writer.write(REPLY)
                await writer.drain()
        if self.answers_cut_requests and pending:
            writer.write(REPLY)
            await writer.drain()


class Client:
    """A plain client of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> str:
        """One exchange: `whole`, or how it ended: `reset`, `eof`, each with the bytes that came."""
        try:
            self.writer.write(REQUEST)
            async with asyncio.timeout(PATIENCE):
                reply = await self.reader.readexactly(len(REPLY))
        except asyncio.IncompleteReadError as error:
            reply = error.partial
        except ConnectionError:
            return "reset"
        assert REPLY.startswith(reply)
        return "whole" if reply == REPLY else f"eof after {len(reply)}"

    async def close(self) -> None:
        """Leave."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Stage:
    """A peer behind a proxy."""

    def __init__(self, peer: Peer, proxy: ChaosProxy) -> None:
        self.peer = peer
        self.proxy = proxy
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        """A new connection."""
        client = Client(*await asyncio.open_connection(self.proxy.host, self.proxy.port))
        self.clients.append(client)
        return client

    async def ended(self) -> str:
        """How the peer's next connection ended."""
        async with asyncio.timeout(PATIENCE):
            return await self.peer.ended.get()

    async def received(self, number: int) -> bytes:
        """What the peer received, once it is this many bytes."""
        async with asyncio.timeout(PATIENCE):
            while len(self.peer.received) < number:
                await asyncio.sleep(0)
        return self.peer.received

    async def is_empty(self) -> bool:
        """Wait until the proxy holds no connection any more."""
        async with asyncio.timeout(PATIENCE):
            while self.proxy.connections:
                await asyncio.sleep(0)
        return True


@asynccontextmanager
async def stage(plan: str, **settings: Any) -> AsyncIterator[Stage]:
    """A peer, a proxy in front of it; clients are closed at the end."""
    peer = Peer()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    try:
        async with ChaosProxy(address, plan, **settings) as proxy:
            here = Stage(peer, proxy)
            try:
                yield here
            finally:
                for client in here.clients:
                    await client.close()
    finally:
        server.close()
        await server.wait_closed()
