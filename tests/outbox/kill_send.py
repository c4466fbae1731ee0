"""`dispatcher send --outbox FILE`, killed, and started again with the same words. A program of `kills`.

Its sources change every few rounds. One half are files, to which lines are added before each start; the
others come by a pipe, a piece at a time, and from the beginning at each start, as a pipe's lines would. What
was acknowledged is what the mark in the file says was read; in the end it is all of the sources.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import msgspec
import orjson

from dispatcher.cli._durable import Progress
from tests.cli.send_support import environment
from tests.outbox.kill_callers import item
from tests.outbox.kill_child import LANES, PAUSE_SECONDS, bodies
from tests.outbox.kill_programs import DRAIN_SECONDS, SETTINGS, Child, Killing
from tests.outbox.kill_stage import Killed, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dispatcher.testing import LocalUpstream
    from tests.outbox.kill_stage import Stored

ROUNDS_A_SOURCE = 5
LINES_MAX = 300
"""That are added for each lane at a time: about as many as are delivered meanwhile."""
PIECE_BYTES = 5_000
"""Of a pipe at a time, at most."""
LOOK_SECONDS = 0.002


class Source:
    """Lines under one name, more with each round; in queues of its own, as its end may come after others."""

    def __init__(self, folder: Path, number: int) -> None:
        self.is_pipe = number % 2 == 1
        self.path = folder / f"source-{number}"
        self.run = self.path.name if self.is_pipe else str(self.path.resolve())
        self.bodies: list[str] = []
        self.marked = 0
        """Lines that were accepted, by the mark."""

    @property
    def words(self) -> tuple[str, ...]:
        """What names it on the command line."""
        return ("-", "--run", self.run) if self.is_pipe else (str(self.path),)

    def grow(self, round_: int, lines: int) -> list[str]:
        """More lines, so many of each lane, by turns; their bodies."""
        added = []
        with self.path.open("ab") as file:
            for row in zip(*(bodies(round_, lane)[:lines] for lane in LANES), strict=True):
                for body, lane in zip(row, LANES, strict=True):
                    added.append(body)
                    file.write(orjson.dumps(item(body, lane and f"{lane}-{self.path.name}")) + b"\n")
        self.bodies += added
        return added

    def read_on(self, stored: Stored) -> list[str]:
        """What was accepted since the last look, by the mark."""
        value = stored.marks.get(f"send {self.run}")
        before = self.marked
        if value is not None:
            self.marked = msgspec.msgpack.decode(value, type=Progress).lines
        return self.bodies[before : self.marked]

    def pieces(self, rng: Random) -> Iterator[bytes]:
        """What goes through a pipe: what was accepted before at once, the rest bit by bit."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        yield b"".join(lines[: self.marked])
        left = b"".join(lines[self.marked :])
        while left:
            size = rng.randint(1, PIECE_BYTES)
            yield left[:size]
            left = left[size:]


class Send:
    """The command `dispatcher send`."""

    def __init__(self, folder: Path, upstream: LocalUpstream) -> None:
        self.path = folder / "outbox.db"
        self._upstream = upstream
        self._killing = Killing()
        self._sources: list[Source] = []

    async def round(self, number: int, rng: Random) -> Killed:
        """Have it send, until it is killed."""
        if number % ROUNDS_A_SOURCE == 0:
            self._sources.append(Source(self.path.parent, len(self._sources)))
        source = self._sources[-1]
        added = source.grow(number, rng.randint(1, LINES_MAX))
        last = self._last_request
        async with self._running(source, rng) as child:
            phase = await self._killing.kill(child, rng, partial(self._sends, child, last))
        # (SIGTERM may come when it is done, and nobody listens for it any more)
        assert child.process.returncode in (0, 1, -signal.SIGKILL, -signal.SIGTERM), child.lines[-3:]
        stored = look(self.path)
        return Killed(phase, dict.fromkeys(source.read_on(stored), ""), added, stored)

    async def drain(self) -> Killed:
        """Every source to its end."""
        for source in self._sources:
            async with self._running(source, Random(0)) as child:
                assert await child.ended(DRAIN_SECONDS) in (0, 1), child.lines[-3:]
        # That it ended by itself says that all of it was read, whatever its mark says.
        every = [body for source in self._sources for body in source.bodies]
        return Killed("ended", dict.fromkeys(every, ""), (), look(self.path))

    @asynccontextmanager
    async def _running(self, source: Source, rng: Random) -> AsyncIterator[Child]:
        upstream = self._upstream
        child = await Child.start(
            *("-m", "dispatcher", "send", *source.words, "--outbox", str(self.path)),
            env=environment(upstream.url, upstream.token, **SETTINGS),
            stdin=asyncio.subprocess.PIPE if source.is_pipe else asyncio.subprocess.DEVNULL,
        )
        feeding = asyncio.create_task(feed(child.process.stdin, source.pieces(rng), rng))
        try:
            yield child
        finally:
            await child.kill()
            await feeding

    @property
    def _last_request(self) -> object:
        requests = self._upstream.requests
        return requests[-1] if requests else None

    async def _sends(self, child: Child, last: object) -> bool:
        """Wait for a request of it; false if it ends without."""
        while self._last_request is last:
            if await child.ends_within(LOOK_SECONDS):
                return False
        return True


async def feed(pipe: asyncio.StreamWriter | None, pieces: Iterator[bytes], rng: Random) -> None:
    """Write into a pipe until nobody reads it any more."""
    if pipe is None:
        return
    with suppress(ConnectionError):
        for piece in pieces:
            pipe.write(piece)
            await pipe.drain()
            await asyncio.sleep(rng.uniform(0.0, PAUSE_SECONDS))
    pipe.close()
    with suppress(ConnectionError):
        await pipe.wait_closed()
