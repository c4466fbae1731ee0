"""The processes of the demonstration: the local upstream, which can be killed and comes back, and the proxy.

Every process is ended by its own id, and is in a session of its own: no signal of a terminal reaches it.
Used by `demo` and by the tests of chaos.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson

from dispatcher.devserver.client import UpstreamClient
from dispatcher.errors import DispatcherError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

STOP_SECONDS: Final = 5.0
STARTS_MAX: Final = 20
START_PAUSE: Final = 0.1
UP_SECONDS: Final = (0.2, 2.0)
"""How long the upstream lives between two kills."""


class Program:
    """One Python module in a process of its own, which prints `NAME=URL` once it listens."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    @classmethod
    async def start(
        cls, words: Sequence[str], announces: str, env: dict[str, str] | None = None
    ) -> Program | None:
        """Start it and wait until it listens; `None` if it ends instead."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # a Ctrl-C is for us: we end it, once nothing is sent any more
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                if found := re.search(rf"{announces}=(\S+)".encode(), line):
                    return cls(process, found[1].decode())
            await process.wait()
        except BaseException:
            if process.returncode is None:
                process.kill()
            raise
        return None

    async def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> bytes:
        """SIGTERM, and if that is not enough SIGKILL; returns what it printed at its end."""
        assert self.process.stdout is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                said = await self.process.stdout.read()
                await self.process.wait()
        except TimeoutError:
            await self.kill()
            return b""
        finally:
            if self.process.returncode is None:  # cancelled: it must not stay behind
                self.process.kill()
        return said


class Upstream:
    """`dispatcher dev` on one port, through any number of lives.

    Args:
        faults: Its fault plan; each life draws with a seed of its own.
        window: Seconds for which it remembers deduplication ids.
        state: The file through which it remembers what it accepted when it is killed.
    """

    def __init__(
        self, token: str, faults: str, *, seed: int, window: float, state: Path | None = None
    ) -> None:
        self.token = token
        self.url = ""
        self.kills = 0
        self.faults: Counter[str] = Counter()
        """Injected faults by kind; what happens between the last count of a life and its end is missing."""
        self.requests = 0
        """Requests that carried messages, counted likewise."""
        self._seed = seed
        self._words = ["dispatcher", "dev", "--faults", faults, "--deduplication-window", str(window)]
        self._words += [] if state is None else ["--state", str(state)]
        self._program: Program | None = None

    @property
    def pid(self) -> int:
        """Of its present life."""
        assert self._program is not None
        return self._program.process.pid

    async def start(self) -> None:
        """Live (again), on the same port as before."""
        port = self.url.rpartition(":")[2] or "0"
        words = [*self._words, "--port", port, "--seed", str(self._seed + self.kills)]
        # In between, a connection of anyone on this machine may have been given this very port.
        for _ in range(STARTS_MAX):
            self._program = await Program.start(words, "QSTASH_URL", {"QSTASH_TOKEN": self.token})
            if self._program is not None:
                self.url = self._program.url
                return
            await asyncio.sleep(START_PAUSE)
        raise DispatcherError(f"the local upstream does not start on port {port}; see above")

    async def count(self) -> None:
        """Add what this life has seen to the counts."""
        async with UpstreamClient(self.url, self.token) as client:
            summary: dict[str, Any] = await client.summary()
        self.faults.update(summary["faults"])
        for kind, codes in summary["requests"].items():
            if kind in {"batch", "publish", "enqueue"}:
                self.requests += sum(codes.values())

    async def kill(self) -> None:
        """`kill -9`, whatever it is doing."""
        assert self._program is not None
        await self._program.kill()
        self.kills += 1

    async def stop(self) -> None:
        """End it in good order."""
        if self._program is not None:
            await self._program.stop()

    async def die_again_and_again(self, rng: Random, enough: asyncio.Event) -> None:
        """Kill it and start it, over and over; once it is `enough` it stays alive."""
        while not enough.is_set():
            try:
                async with asyncio.timeout(rng.uniform(*UP_SECONDS)):
                    await enough.wait()
            except TimeoutError:
                await self.count()
                await self.kill()
                await self.start()


class Proxy:
    """The chaos proxy in front of an upstream."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.url = program.url
        self.counts: Counter[str] = Counter()
        """What it injected, once it has ended."""

    @classmethod
    async def start(cls, upstream_url: str, plan: str, seed: int) -> Proxy:
        """Start one in front of this upstream."""
        address = upstream_url.removeprefix("http://")
        words = ["dispatcher.devserver.chaos", "--upstream", address, "--plan", plan, "--seed", str(seed)]
        program = await Program.start(words, "CHAOS_URL")
        if program is None:
            raise DispatcherError("the chaos proxy does not start; see above")
        return cls(program)

    async def stop(self) -> None:
        """End it: nothing that is still in it arrives any more."""
        if said := await self._program.stop():
            self.counts = Counter(orjson.loads(said))
