"""A TCP proxy that breaks connections on purpose, by a seeded plan, between a client and an upstream.

It passes bytes on and understands none of them: no HTTP, no messages. It must never alter a byte, or lose
one without ending the connection that it belonged to. An upstream that is down resets the client's
connection; the proxy lives on. What a gone client had sent before a stall is passed on after it: an
abandoned request that arrives late is a fault of real networks, too.

A program of its own, for `dispatcher demo --chaos` and for tests::

    python -m dispatcher.devserver.chaos --upstream 127.0.0.1:8089 --plan "reset=0.02 stall=0.01" --seed 1

It prints `CHAOS_URL=…` once it listens, and what it injected, as JSON, when SIGTERM or SIGINT ends it.
"""

from __future__ import annotations

import asyncio
import getopt
import signal
import socket
import struct
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import orjson

from dispatcher.devserver.chaosplan import CHAOS, ChaosKind, ChaosPlan, Dice, Exchange, Side
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK_BYTES: Final = 65_536
BACKLOG: Final = 1024
PIECES: Final = 8
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing sends RST, and throws away what is not yet acknowledged."""
EXIT_USAGE: Final = 2


class ChaosProxy:
    """Listens on `host`, passes connections on to `upstream`, and breaks some of them.

    Args:
        plan: A `ChaosPlan`, or its text; `ConfigError` if that is wrong.
        seed: The n-th connection meets the same faults for the same seed.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        plan: ChaosPlan | str = "",
        *,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.upstream = upstream
        self.plan = ChaosPlan.parse(plan) if isinstance(plan, str) else plan
        self.seed = seed
        self.host = host
        self.port = port
        self.counts: Counter[str] = Counter()
        """`connections`, `exchanges`, `upstream_down`, and by kind every fault that struck."""
        self._listener: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<ChaosProxy {self.url} to {self.upstream[0]}:{self.upstream[1]}, {len(self._links)} open>"

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    async def start(self) -> Self:
        """Listen."""
        self._listener = await asyncio.start_server(self._accept, self.host, self.port, backlog=BACKLOG)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening and reset every connection."""
        if self._listener is not None:
            self._listener.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        if self._listener is not None:
            await self._listener.wait_closed()
            self._listener = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.counts["connections"] += 1
        dice = self.plan.dice(self.seed, self.counts["connections"])
        try:
            await self._link(dice, reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy stops; the stream's own callback would report a cancelled handler as an error
        finally:
            self._links.discard(task)
            _reset(writer)

    async def _link(self, dice: Dice, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if dice.is_refused:
            self.counts[ChaosKind.REFUSE] += 1
            return
        try:
            upstream = await asyncio.open_connection(*self.upstream)
        except OSError:
            self.counts["upstream_down"] += 1
            return
        try:
            if _is_to_itself(upstream[1]):
                self.counts["upstream_down"] += 1
                return
            await _Link(self, dice, (reader, writer), upstream).run()
        finally:
            _reset(upstream[1])


class _Over(Exception):  # noqa: N818 - no error: how a relay ends the connection
    """Both connections are to end now: reset, unless they were closed."""


class _Link:
    """One client's connection and the one to the upstream that answers it."""

    def __init__(
        self,
        proxy: ChaosProxy,
        dice: Dice,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._dice = dice
        self._client = client
        self._upstream = upstream
        self._turn: Side = "reply"  # the client's first bytes open the first exchange
        self._exchange: Exchange | None = None
        self._is_muted: dict[Side, bool] = {"request": False, "reply": False}
        self._client_left = asyncio.Event()

    async def run(self) -> None:
        """Pass on both directions until both have ended, or one breaks."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._relay("request", self._client[0], self._upstream[1]))
                group.create_task(self._relay("reply", self._upstream[0], self._client[1]))
            for _, writer in (self._client, self._upstream):
                writer.close()
        except* (_Over, OSError):
            pass  # whoever opened the connections resets what is not closed

    async def _relay(self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                is_first = self._turn != side
                self._turn = side
                if self._is_muted[side]:
                    continue  # read all the same: who writes must not be held up
                await (self._first(side, data, writer) if is_first else _write(writer, data))
        finally:
            if side == "request":
                self._client_left.set()
        if not self._is_muted[side]:
            writer.write_eof()

    async def _first(self, side: Side, data: bytes, writer: asyncio.StreamWriter) -> None:
        """The first bytes of a turn: where faults strike."""
        if side == "request":
            self._exchange = self._dice.throw()
            self._proxy.counts["exchanges"] += 1
        exchange = self._exchange
        if exchange is None:  # an upstream that speaks first
            await _write(writer, data)
            return
        if delay := exchange.delays[side]:
            await asyncio.sleep(delay)
        if exchange.kind is ChaosKind.NONE or CHAOS[exchange.kind].side != side:
            await _write(writer, data)
            return
        self._proxy.counts[exchange.kind] += 1
        await self._strike(exchange, side, data, writer)

    async def _strike(
        self, exchange: Exchange, side: Side, data: bytes, writer: asyncio.StreamWriter
    ) -> None:
        kind, cut = exchange.kind, int(len(data) * exchange.share)
        if kind in (ChaosKind.REUSE_RESET, ChaosKind.REUSE_RESET_AFTER):
            raise _Over
        if kind in (ChaosKind.DRIP_REQUEST, ChaosKind.DRIP_REPLY):
            await self._drip(data, writer)
            return
        if kind is ChaosKind.TRUNCATE:
            cut = min(max(cut, 1), len(data) - 1)
        await _write(writer, data[:cut])
        if kind in (ChaosKind.STALL_REQUEST, ChaosKind.STALL_REPLY):
            await asyncio.sleep(self._proxy.plan.durations["stall_for"])
            await _write(writer, data[cut:])
        elif kind in (ChaosKind.HALF_CLOSE_REQUEST, ChaosKind.HALF_CLOSE_REPLY):
            self._is_muted[side] = True
            writer.write_eof()
        elif kind in (ChaosKind.HANG_REQUEST, ChaosKind.HANG_REPLY):
            await self._hang(side)
        else:
            if kind is ChaosKind.TRUNCATE:
                writer.close()
            raise _Over

    async def _drip(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        step = max(1, -(-len(data) // PIECES))
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        for piece in pieces:
            await _write(writer, piece)
            await asyncio.sleep(self._proxy.plan.durations["drip_over"] / len(pieces))

    async def _hang(self, side: Side) -> None:
        """Pass nothing on any more; what the client still sends is read, or its leaving would go unseen."""
        if side == "request":
            while await self._client[0].read(CHUNK_BYTES):
                pass
        else:
            await self._client_left.wait()
        raise _Over


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, unless it is closing already."""
    if writer.is_closing():
        return
    raw = writer.get_extra_info("socket")
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


def _is_to_itself(writer: asyncio.StreamWriter) -> bool:
    """A connection to a port without a listener can meet itself, if the system draws that very port."""
    return bool(writer.get_extra_info("sockname") == writer.get_extra_info("peername"))


def main(words: Sequence[str]) -> int:
    """Run the proxy until a signal; returns the exit code."""
    try:
        options, rest = getopt.getopt(list(words), "", ["upstream=", "port=", "plan=", "seed="])
        given = dict(options)
        host, _, port = given["--upstream"].rpartition(":")
        proxy = ChaosProxy(
            (host, int(port)),
            given.get("--plan", ""),
            seed=int(given.get("--seed", "0")),
            port=int(given.get("--port", "0")),
        )
        if rest or not host:
            raise ValueError(f"unexpected: {' '.join(rest) or given['--upstream']}")
    except (getopt.GetoptError, KeyError, ValueError, ConfigError) as error:
        sys.stderr.write(f"usage: --upstream HOST:PORT [--port N] [--plan PLAN] [--seed N]: {error}\n")
        return EXIT_USAGE
    asyncio.run(_serve(proxy))
    return 0


async def _serve(proxy: ChaosProxy) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with proxy:
        sys.stdout.write(f"CHAOS_URL={proxy.url}\n")
        sys.stdout.flush()
        await stop.wait()
    counts = {str(name): count for name, count in proxy.counts.items()}
    sys.stdout.buffer.write(orjson.dumps(counts, option=orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
