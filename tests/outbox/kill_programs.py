"""What the programs that are killed have in common, and the first of them: how each is started and ended.

`kill_serve` and `kill_send` have the others. A program says what it acknowledged; nothing here judges.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from tests.cli.send_support import environment
from tests.imports import ROOT
from tests.outbox.kill_child import LANES, RETRIES, bodies
from tests.outbox.kill_stage import Killed, look

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from random import Random

    from dispatcher.testing import LocalUpstream

PATIENCE_SECONDS = 60.0
DRAIN_SECONDS = 600.0
"""For everything that was left after many rounds."""
PHASES = ("opening", "running", "running", "running", "closing")
SETTINGS = {f"DISPATCHER_RETRY_{name.upper()}": str(value) for name, value in RETRIES.items()}
"""What a command is told by its environment: it repeats what failed as soon as the library's program."""


class Program(Protocol):
    """One program and its file, killed round after round."""

    path: Path

    async def round(self, number: int, rng: Random) -> Killed:
        """Start it, and kill it at some moment."""
        ...

    async def drain(self) -> Killed:
        """Start it once more, and have it settle everything."""
        ...


class Child:
    """A process whose lines are read as they come; what a command logs are its lines as well."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.began_at = asyncio.get_running_loop().time()
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._news.set())

    @classmethod
    async def start(cls, *words: str, env: dict[str, str], stdin: int = asyncio.subprocess.DEVNULL) -> Child:
        """Of this Python, with these words."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            cwd=ROOT,
            env=env,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 24,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):  # what was cut off was not said
                self.lines.append(line.decode().rstrip("\n"))
                self._news.set()

    async def said(self, words: str) -> str:
        """Wait for the first line with these words; empty if it ended without."""
        while not (found := next((line for line in self.lines if words in line), "")):
            if self._reading.done():
                break
            self._news.clear()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._news.wait()
        return found

    @property
    def has_ended(self) -> bool:
        """It says nothing more."""
        return self._reading.done()

    async def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself so soon."""
        await asyncio.wait([self._reading], timeout=seconds)
        return self._reading.done()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.returncode is None:
            # Not by `send_signal`: that would reap what has just ended, and asyncio never learn its code.
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def ended(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until it ends by itself: its exit code."""
        async with asyncio.timeout(seconds):
            await asyncio.wait([self._reading])
            return await self.process.wait()

    async def kill(self) -> None:
        """`kill -9`, and everything that it had said is read."""
        self.tell(signal.SIGKILL)
        await self._reading
        await self.process.wait()


class Killing:
    """Kills one program again and again; learns at the first time how long it takes to open."""

    def __init__(self) -> None:
        self._opening_seconds: float | None = None

    async def kill(self, child: Child, rng: Random, is_open: Callable[[], Awaitable[object]]) -> str:
        """Kill it while it opens, works or closes; which it was, or that it had ended by itself."""
        phase, opening = rng.choice(PHASES), self._opening_seconds
        if opening is None:
            phase = "running"
            await is_open()
            self._opening_seconds = asyncio.get_running_loop().time() - child.began_at
        if phase == "opening" and opening is not None:
            await child.ends_within(rng.uniform(0.6, 1.1) * opening)
        elif await is_open():
            await child.ends_within(rng.uniform(0.005, 0.5))
            if phase == "closing":
                child.tell(signal.SIGTERM)
                await child.ends_within(rng.uniform(0.0, 0.1))
        await child.kill()
        return phase if child.process.returncode == -signal.SIGKILL else "ended"


class Library:
    """`Outbox` in a program of somebody's own.

    Args:
        mode: `accept`, or `early` for the store that answers too early.
    """

    def __init__(self, folder: Path, upstream: LocalUpstream, mode: str = "accept") -> None:
        self.path = folder / "outbox.db"
        self._upstream = upstream
        self._mode = mode
        self._killing = Killing()

    async def round(self, number: int, rng: Random) -> Killed:
        """Accept, send and settle, until it is killed."""
        child = await self._start(self._mode, number)
        try:
            phase = await self._killing.kill(child, rng, lambda: child.said("open"))
        finally:
            await child.kill()
        assert child.process.returncode in (0, -signal.SIGKILL), child.lines[-3:]
        kept = [line.split(" ", 2) for line in child.lines if line.startswith("kept ")]
        handed_in = [body for lane in LANES for body in bodies(number, lane)]
        return Killed(phase, {body: one for _, one, body in kept}, handed_in, look(self.path))

    async def drain(self) -> Killed:
        """Until all is settled."""
        child = await self._start("drain", 0)
        try:
            assert await child.said("closed"), child.lines[-3:]
        finally:
            await child.kill()
        return Killed("ended", {}, (), look(self.path))

    async def _start(self, mode: str, number: int) -> Child:
        upstream = self._upstream
        words = ("-m", "tests.outbox.kill_child", str(self.path), upstream.url, upstream.token, mode)
        return await Child.start(*words, str(number), env=environment(None, None))
