"""An upstream that is down, a sidecar that accepts all the same and is killed: what is delivered, and how.

    python -m tests.outbox.backlog --messages 100000

`dispatcher serve --outbox FILE` in front of a port where nobody listens; NDJSON with `respond-async`, a
stream for each queue and two without; once everything is acknowledged, `kill -9`. Then the upstream is there,
and the same command again. Each message has to be delivered once, each queue in its order, nothing else; and
neither process may need much more memory for many messages than for few. Exit code 0 if all of it held.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import orjson

from dispatcher.testing import local_upstream
from tests.cli.send_support import environment
from tests.outbox.kill_callers import item
from tests.outbox.kill_programs import DRAIN_SECONDS, Child
from tests.outbox.kill_serve import OPEN, addresses, settled, until
from tests.outbox.kill_stage import Judge, Killed, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatcher.testing import LocalUpstream

QUEUES = tuple(f"queue-{number}" for number in range(6))
WITHOUT_QUEUE = 2
BODY_BYTES = 200
CHUNK_LINES = 500
FEW = 10_000
"""Messages of which the dispatcher has its room full: as its default is."""
GROWTH_MIB_MAX = 56.0
"""By how much more memory either process may need for all the others, however many these are."""
MIB_KIB = 1024


class Memory(NamedTuple):
    """The greatest resident memory, in MiB."""

    few: float
    """Of the process that accepts, while only `FEW` waited, all of them in its dispatcher."""
    accepting: float
    """Of the same in the end."""
    delivering: float = 0.0
    """Of the one that begins with all of them."""

    @property
    def growth(self) -> float:
        """By how much more either needed than with few."""
        return max(self.accepting, self.delivering) - self.few

    def __str__(self) -> str:
        return (
            f"{self.few:.0f} MiB with {FEW:,} messages, {self.accepting:.0f} MiB with all accepted, "
            f"{self.delivering:.0f} MiB for their delivery"
        )


class Found(NamedTuple):
    """What a run found."""

    problems: list[str]
    messages: int
    accepted_seconds: float
    delivered_seconds: float
    """With the start of the process."""
    memory: Memory

    def __str__(self) -> str:
        return (
            f"{self.messages:,} messages acknowledged in {self.accepted_seconds:.1f} s, killed, "
            f"all settled {self.delivered_seconds:.1f} s after the next start; {self.memory}; "
            f"{len(self.problems) or 'no'} violations"
        )


class Streams:
    """Everything that is handed in, and what was answered."""

    def __init__(self, messages: int, few: int) -> None:
        lanes = [*QUEUES, *[None] * WITHOUT_QUEUE]
        every = [f"{number:08} ".ljust(BODY_BYTES, "x") for number in range(messages)]
        self.acknowledged: dict[str, str] = {}
        """Ids by bodies."""
        self.parts = [
            [(lane, part[at :: len(lanes)]) for at, lane in enumerate(lanes)]
            for part in (every[:few], every[few:])
        ]
        """The few, and then the rest: bodies by lanes."""

    @property
    def bodies(self) -> list[str]:
        """Of all parts."""
        return [body for part in self.parts for _, some in part for body in some]

    async def run(self, intake: str, token: str, part: int) -> None:
        """Hand in a part of it, and read every answer."""
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-ndjson",
            "Prefer": "respond-async",
        }
        timeout = aiohttp.ClientTimeout(total=DRAIN_SECONDS)
        async with (
            aiohttp.ClientSession(intake, headers=headers, timeout=timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for lane, bodies in self.parts[part]:
                tasks.create_task(self._stream(session, lane, bodies))

    async def _stream(self, session: aiohttp.ClientSession, lane: str | None, bodies: list[str]) -> None:
        async with session.post("/v2/batch", data=lines(lane, bodies)) as response:
            left = iter(bodies)
            async for line in response.content:
                self.acknowledged[next(left)] = orjson.loads(line)["messageId"]


async def lines(lane: str | None, bodies: list[str]) -> AsyncIterator[bytes]:
    """One stream's body, in pieces."""
    for start in range(0, len(bodies), CHUNK_LINES):
        yield b"".join(orjson.dumps(item(each, lane)) + b"\n" for each in bodies[start : start + CHUNK_LINES])


class Sidecar(NamedTuple):
    """The command, and the URLs of its two doors."""

    child: Child
    intake: str
    admin: str

    @property
    def peak(self) -> float:
        """Its greatest resident memory so far, in MiB."""
        status = Path(f"/proc/{self.child.process.pid}/status").read_text()
        return (
            next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / MIB_KIB
        )


@asynccontextmanager
async def serving(path: Path, upstream: LocalUpstream, few: int) -> AsyncIterator[Sidecar]:
    """`dispatcher serve`, which is killed in the end."""
    words = ("serve", "--port", "0", "--admin-port", "0", "--queue-max-messages", str(few))
    env = environment(upstream.url, upstream.token)
    child = await Child.start("-m", "dispatcher", *words, "--outbox", str(path), env=env)
    try:
        yield Sidecar(child, *addresses(await child.said(OPEN)))
    finally:
        await child.kill()


async def accept(path: Path, upstream: LocalUpstream, streams: Streams, few: int) -> Memory:
    """Have all of it acknowledged while the upstream is down; then the process is killed."""
    async with serving(path, upstream, few) as sidecar:
        await streams.run(sidecar.intake, upstream.token, 0)
        # All these are in the dispatcher then.
        await until(sidecar.admin, lambda status: not status["waiting"], DRAIN_SECONDS)
        few_peak = sidecar.peak
        await streams.run(sidecar.intake, upstream.token, 1)
        return Memory(few_peak, sidecar.peak)


async def deliver(path: Path, upstream: LocalUpstream, few: int) -> float:
    """Have all of it delivered by the next process, which is ended: its greatest memory."""
    async with serving(path, upstream, few) as sidecar:
        await settled(sidecar.admin, DRAIN_SECONDS)
        peak = sidecar.peak
        sidecar.child.tell(signal.SIGTERM)
        assert await sidecar.child.ended() == 0, sidecar.child.lines[-3:]
        return peak


async def run(folder: Path, messages: int, few: int) -> Found:
    """All of it, once.

    Args:
        few: Of how many messages the dispatcher has room.
    """
    path, clock = folder / "outbox.db", asyncio.get_running_loop().time
    streams = Streams(messages, few)
    async with local_upstream() as upstream:
        await upstream.stop()
        began = clock()
        memory = await accept(path, upstream, streams, few)
        accepted = clock()
        judge = Judge(upstream)
        judge.after_kill(Killed("running", streams.acknowledged, streams.bodies, look(path)))
        await upstream.start()
        started = clock()
        memory = memory._replace(delivering=await deliver(path, upstream, few))
        ended = clock()
        stored = look(path)
        judge.after_kill(Killed("ended", {}, (), stored))
        judge.at_end(stored)
    if len(judge.acknowledged) != messages or judge.delivered.total() != messages:
        judge.problems.append(f"{len(judge.acknowledged)} acknowledged, {judge.delivered.total()} delivered")
    return Found(judge.problems, messages, accepted - began, ended - started, memory)


def main() -> int:
    """Run it by its command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    messages = parser.parse_args().messages
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(Path(folder), messages, FEW))
    problems = list(found.problems)
    if found.memory.growth > GROWTH_MIB_MAX:
        problems.append(
            f"the memory grew by {found.memory.growth:.0f} MiB, allowed is {GROWTH_MIB_MAX:.0f} MiB"
        )
    print(found._replace(problems=problems), *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
