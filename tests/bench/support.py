"""What the tests of the load generator share: targets that do as they are told, the command as a process."""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import orjson

from dispatcher.bench.generator import Stop, run_load
from dispatcher.bench.messages import Mix
from dispatcher.bench.recorder import Gauges
from tests.cli.send_support import environment

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Any

    from dispatcher.bench.generator import Target, Work
    from dispatcher.bench.recorder import Recorder
    from dispatcher.bench.schedule import Schedule

PATIENCE_SECONDS = 60.0
TOKEN = "test-token"


class Instant:
    """A target that confirms everything at once, but stands still for a while in between.

    Args:
        stall_at: How many messages it takes before it stands still.
        stall_for: Seconds.
        blocks: It stands still with the loop, instead of alone.
    """

    def __init__(
        self, stall_at: int | None = None, stall_for: float = 0.0, *, blocks: bool = False, dies: bool = False
    ) -> None:
        self._stall_at = stall_at
        self._stall_for = stall_for
        self._blocks = blocks
        self._dies = dies
        self.taken: list[float] = []

    async def serve(self, work: Work, recorder: Recorder) -> None:
        while work.due or await work.more():
            while work.due:
                if len(self.taken) == self._stall_at:
                    self._stall_at = None
                    await self._stand_still(work)
                intended, handed_at, full_before = work.due.popleft()
                now = perf_counter()
                recorder.take(intended, handed_at, work.full_seconds(now) - full_before, now)
                recorder.deliver(intended, now, perf_counter())
                self.taken.append(intended)

    async def _stand_still(self, work: Work) -> None:
        if self._dies:
            raise ConnectionError("the target died")
        if self._blocks:
            until = perf_counter() + self._stall_for
            while perf_counter() < until:
                pass
        else:
            work.fill(perf_counter())
            await asyncio.sleep(self._stall_for)
            work.unfill(perf_counter())

    def gauges(self) -> Gauges:
        return Gauges(held=0, in_flight=1, limit=4)

    def unfinished(self) -> Iterable[float]:
        return []


async def load(
    schedule: Schedule,
    target: Target,
    *,
    stop: Stop | None = None,
    drain_within: float = 5.0,
    mix: Mix | None = None,
) -> Recorder:
    """Put a load on it."""
    return await run_load(schedule, mix or Mix(), target, stop or Stop(), drain_within=drain_within)


class Done(NamedTuple):
    """How a run of the command ended."""

    code: int
    stdout: str
    stderr: str


async def bench(*words: str, url: str | None = None, token: str | None = TOKEN) -> Done:
    """Run `dispatcher bench` to its end."""
    process = await start(*words, url=url, token=token)
    return await ended(process)


async def start(*words: str, url: str | None = None, token: str | None = TOKEN) -> asyncio.subprocess.Process:
    """Start `dispatcher bench`."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "bench", *words),
        env=environment(url, token),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Done:
    """Wait for its end."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


def read(path: Path) -> Any:
    """A JSON file."""
    return orjson.loads(path.read_bytes())
