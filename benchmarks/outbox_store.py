"""What the outbox's SQLite store costs: messages a second through append, claim and settle, and who pays.

Several callers append groups while one claims and settles, on a real disk. CPU microseconds a message, of the
loop's thread and of the store's; the longest time that the loop was kept from a task that is ready; commits a
second. The records are there before; the loop's share holds making the receipts.

    python -m benchmarks.outbox_store [--messages 100000] [--directory .] [--waiting 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.cli.loop import loop_factory, spare_collector
from dispatcher.message import Receipt
from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.outbox.store import Delivered, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.outbox.sqlite_schema import Synchronous

DATA: Final = b"x" * 300
CALLERS: Final = 8
GROUPS: Final = (1, 10, 100, 1000)
PLENTY: Final = 1 << 30
PAUSE: Final = 0.002
"""Seconds of the watch: less, and uvloop, which counts milliseconds, would never rest."""
CLAIM_MESSAGES: Final = 500


class Figures(Struct, frozen=True):
    """One run."""

    per_second: float
    commits_per_second: float
    loop_us: float
    thread_us: float
    blocked_ms: float


class Watch:
    """The longest that the loop was kept from a task that is ready."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            due = time.perf_counter() + PAUSE
            await asyncio.sleep(PAUSE)
            self.longest = max(self.longest, time.perf_counter() - due)

    def stop(self) -> float:
        self._task.cancel()
        return self.longest


async def measure(directory: Path, messages: int, group: int, synchronous: Synchronous) -> Figures:
    """Through append, claim and settle."""
    store = SQLiteStore(directory / f"{group}-{synchronous}.db", synchronous=synchronous)
    await store.open()
    now = time.time()
    batches = [made(range(first, first + group), now) for first in range(0, messages // group * group, group)]
    shares = [batches[caller::CALLERS] for caller in range(CALLERS)]
    watch = Watch()
    wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    await asyncio.gather(*(produce(store, share) for share in shares), consume(store, len(batches) * group))
    wall, cpu, own = time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - own
    blocked, commits = watch.stop(), store.status().commits
    await store.aclose()
    micro = 1e6 / messages
    return Figures(messages / wall, commits / wall, own * micro, (cpu - own) * micro, blocked * 1000)


def made(numbers: range, now: float) -> list[Record]:
    """Messages as an outbox makes them."""
    return [Record(f"out_{number:032x}", DATA, None, now) for number in numbers]


async def produce(store: SQLiteStore, batches: Sequence[list[Record]]) -> None:
    """One caller."""
    for batch in batches:
        await store.append(batch)


async def consume(store: SQLiteStore, messages: int) -> None:
    """Whoever relays: claims what is there, and says that it was delivered."""
    done = 0
    while done < messages:
        await store.wait(time.time())
        now = time.time()
        claims = await store.claim(CLAIM_MESSAGES, PLENTY, now)
        if claims:
            await store.settle(
                [Delivered(one.position, Receipt(f"msg_{one.position:026}"), now) for one in claims]
            )
            done += len(claims)


async def wait_in_line(directory: Path, messages: int) -> str:
    """What messages cost that only wait: memory, and the time to open their file again."""
    path = directory / "waiting.db"
    store = SQLiteStore(path)
    await store.open()
    tracemalloc.start()
    for first in range(0, messages, 1000):
        await store.append(made(range(first, first + 1000), 0.0))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await store.aclose()
    store = SQLiteStore(path)
    began = time.perf_counter()
    waiting = (await store.open()).waiting
    opening = time.perf_counter() - began
    began = time.perf_counter()
    taken = 0
    while taken < min(waiting, 100_000):
        claims = await store.claim(1000, PLENTY, time.time())
        await store.settle([Delivered(one.position, Receipt("msg"), 0.0) for one in claims])
        taken += len(claims)
    rate = taken / (time.perf_counter() - began)
    await store.aclose()
    size = path.stat().st_size / 1e6
    return (
        f"{waiting:,} waiting: {used / 1e6:.1f} MB of memory, {size:.0f} MB of disk, opened in {opening:.2f}"
        f" s, claimed from the file and settled at {rate:,.0f} messages/s"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outbox_store", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--waiting", type=int, default=0, help="also measure so many messages that wait")
    options = parser.parse_args(words)
    spare_collector()  # as the commands do: its pauses are no store's
    print("| synchronous | group | messages/s | commits/s | loop µs | thread µs | loop blocked ms, at most |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for synchronous in ("full", "off"):
            for group in GROUPS:
                messages = min(options.messages, group * 20_000)
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    found = runner.run(measure(Path(directory), messages, group, synchronous))
                print(
                    f"| {synchronous} | {group} | {found.per_second:,.0f} | {found.commits_per_second:,.0f} "
                    f"| {found.loop_us:.1f} | {found.thread_us:.1f} | {found.blocked_ms:.1f} |"
                )
        if options.waiting:
            print(asyncio.run(wait_in_line(Path(directory), options.waiting)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
