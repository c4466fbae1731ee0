"""The programs that are killed: how each is started, what it acknowledges, how it is ended at any moment."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Protocol

from tests.cli.send_support import environment
from tests.imports import ROOT
from tests.outbox.kill_stage import Killed

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from dispatcher.testing import LocalUpstream

PATIENCE_SECONDS = 60.0
PHASES = ("opening", "running", "running", "running", "closing")


class Program(Protocol):
    """One program and its file, killed round after round."""

    path: Path

    async def round(self, number: int, rng: Random) -> Killed:
        """Start it, and kill it at some moment."""
        ...

    async def drain(self) -> set[str]:
        """Start it once more, and have it settle everything; the ids of the dead letters."""
        ...


class Child:
    """A process whose lines are read as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._news.set())

    @classmethod
    async def start(cls, *words: str, **env: str) -> Child:
        """Of this Python, with these words."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            cwd=ROOT,
            env=environment(None, None, **env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):  # what was cut off was not said
                self.lines.append(line.decode().rstrip("\n"))
                self._news.set()

    async def said(self, word: str) -> bool:
        """Wait for a line that begins so, as long as there are others; false if it ended without."""
        while not any(line.startswith(word) for line in self.lines):
            if self._reading.done():
                return False
            self._news.clear()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._news.wait()
        return True

    async def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself so soon."""
        await asyncio.wait([self._reading], timeout=seconds)
        return self._reading.done()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """`kill -9`, and everything that it had said is read."""
        self.tell(signal.SIGKILL)
        await self._reading
        await self.process.wait()


async def kill_at_random(child: Child, rng: Random, opening_seconds: float, is_open: str) -> str:
    """Kill it while it opens, works or closes; which it was."""
    phase = rng.choice(PHASES)
    if phase == "opening":
        await child.ends_within(rng.uniform(0.6, 1.1) * opening_seconds)
    elif not await child.said(is_open):
        phase = "ended"
    else:
        await child.ends_within(rng.uniform(0.005, 0.5))
        if phase == "closing":
            child.tell(signal.SIGTERM)
            await child.ends_within(rng.uniform(0.0, 0.05))
    await child.kill()
    return "ended" if child.process.returncode == 0 else phase


class Library:
    """`Outbox` in a program of somebody's own.

    Args:
        mode: `accept`, or `early` for the store that answers too early.
    """

    def __init__(self, folder: Path, upstream: LocalUpstream, mode: str = "accept") -> None:
        self.path = folder / "outbox.db"
        self._upstream = upstream
        self._mode = mode
        self._opening_seconds = 0.5

    async def round(self, number: int, rng: Random) -> Killed:
        """Accept, send and settle, until it is killed."""
        began = asyncio.get_running_loop().time()
        child = await self._start(self._mode, number)
        try:
            if number == 0 and await child.said("open"):  # how long that takes here
                self._opening_seconds = asyncio.get_running_loop().time() - began
            phase = await kill_at_random(child, rng, self._opening_seconds, "open")
        finally:
            await child.kill()
        assert child.process.returncode in (0, -signal.SIGKILL), child.lines[-3:]
        kept = [line.split(" ", 2) for line in child.lines if line.startswith("kept ")]
        return Killed(phase, {words[1]: words[2] for words in kept})

    async def drain(self) -> set[str]:
        """Until all is settled."""
        child = await self._start("drain", 0)
        try:
            assert await child.said("closed"), child.lines[-3:]
        finally:
            await child.kill()
        return {one for line in child.lines if line.startswith("dead") for one in line.split()[1:]}

    async def _start(self, mode: str, number: int) -> Child:
        upstream = self._upstream
        words = ("-m", "tests.outbox.kill_child", str(self.path), upstream.url, upstream.token, mode)
        return await Child.start(*words, str(number))
