"""What the outbox's store in Redis costs: messages a second through append, claim and settle, and who pays.

It starts a redis-server of its own, with its log of commands written every second. Of each member, several
callers append groups while one claims and settles. CPU microseconds a message, of a member and of Redis; and
commands a message: as they are sent (a script is one), and as Redis counts those within scripts.

    python -m benchmarks.outbox_redis [--messages 200000] [--directory .] [--members 3]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import redis
from msgspec import Struct

from benchmarks.outbox_store import made
from dispatcher.cli.loop import loop_factory, spare_collector
from dispatcher.message import Receipt
from dispatcher.outbox.redis import RedisStore
from dispatcher.outbox.store import Delivered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatcher.outbox.store import Record

CALLERS: Final = 8
GROUPS: Final = (1, 10, 100, 1000)
CLAIM_MESSAGES: Final = 1000
PLENTY: Final = 1 << 30
START_SECONDS: Final = 20.0


class Share(Struct, frozen=True):
    """What one member did."""

    messages: int
    seconds: float
    cpu_seconds: float
    commands: int


class Figures(Struct, frozen=True):
    """One run."""

    per_second: float
    member_us: float
    redis_us: float
    commands: float
    inner_commands: float


# ------------------------------------------------------------------------------------------- one member


async def member(url: str, number: int, messages: int, group: int, *, members: int) -> Share:
    """Append a share, and claim and settle whatever is in the shards that are ours, until all is settled."""
    store = RedisStore(url, name="bench", max_messages=10_000_000)
    await store.open()
    fair = -(-store.shards // members)
    while store.members < members or store.owned > fair:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    now = time.time()
    base = number * messages
    batches = [made(range(base + at, base + at + group), now) for at in range(0, messages, group)]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began, cpu, commands = time.perf_counter(), time.process_time(), store.commands
    produced = asyncio.gather(*(produce(store, batches[caller::CALLERS]) for caller in range(CALLERS)))
    done, ended = await consume(store, produced)
    await produced
    share = Share(done, ended - began, time.process_time() - cpu, store.commands - commands)
    await store.aclose()
    return share


async def produce(store: RedisStore, batches: Sequence[list[Record]]) -> None:
    """One caller."""
    for batch in batches:
        await store.append(batch)


async def consume(store: RedisStore, produced: asyncio.Future[Any]) -> tuple[int, float]:
    """Whoever relays: claims what is there, and says that it was delivered; how many, and until when."""
    done, ended = 0, 0.0
    while not (produced.done() and not store.status().waiting):
        now = time.time()
        claims = await store.claim(CLAIM_MESSAGES, PLENTY, now)
        if claims:
            await store.settle(
                [Delivered(one.position, Receipt(f"msg_{one.position:026}"), now) for one in claims]
            )
            done, ended = done + len(claims), time.perf_counter()
        else:
            await asyncio.sleep(0.001)
    return done, ended


def run_member(words: Sequence[str]) -> None:
    """The program of one."""
    url, number, messages, group, members = words
    spare_collector()  # as the commands do: its pauses are no store's
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        share = runner.run(member(url, int(number), int(messages), int(group), members=int(members)))
    print(msgspec.json.encode(share).decode(), flush=True)


# ---------------------------------------------------------------------------------------------- all of it


@contextmanager
def server(directory: Path) -> Iterator[redis.Redis]:
    """A redis-server for a while."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("no redis-server here; Debian has it in the package redis-server")
    socket = directory / "redis.sock"
    words = [program, "--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", ""]
    process = subprocess.Popen(
        [*words, "--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(unix_socket_path=str(socket))
    try:
        ends_at = time.monotonic() + START_SECONDS
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > ends_at:
                    raise
                time.sleep(0.02)
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def measure(messages: int, group: int, members: int, directory: Path) -> Figures:
    """Through append, claim and settle, by so many processes."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch, server(Path(scratch)) as client:
        url = f"unix://{Path(scratch) / 'redis.sock'}"
        each = messages // members // group * group
        children = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.outbox_redis", "--member"),
                    *(url, str(number), str(each), str(group), str(members)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(members)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        before = spent(client)
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        shares = [msgspec.json.decode(child.communicate()[0], type=Share) for child in children]
        after = spent(client)
    done = sum(share.messages for share in shares)
    assert done == each * members, f"{done} of {each * members}"
    return Figures(
        done / max(share.seconds for share in shares),
        sum(share.cpu_seconds for share in shares) / done * 1e6,
        (after[0] - before[0]) / done * 1e6,
        sum(share.commands for share in shares) / done,
        (after[1] - before[1]) / done,
    )


def spent(client: redis.Redis) -> tuple[float, int]:
    """CPU seconds of Redis, and commands with those in scripts."""
    cpu: Any = client.info("cpu")
    calls: Any = client.info("commandstats")
    return cpu["used_cpu_user"] + cpu["used_cpu_sys"], sum(one["calls"] for one in calls.values())


def main(words: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outbox_redis", description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--member", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.member:
        run_member(options.member)
        return 0
    print("| members | group | messages/s | member µs | Redis µs | commands a message | within scripts |")
    print("|---|---|---|---|---|---|---|")
    runs = [(1, group) for group in GROUPS] + [(members, 100) for members in range(2, options.members + 1)]
    for members, group in runs:
        found = measure(min(options.messages, group * 20_000), group, members, options.directory)
        print(
            f"| {members} | {group} | {found.per_second:,.0f} | {found.member_us:.1f} "
            f"| {found.redis_us:.1f} | {found.commands:.4f} | {found.inner_commands:.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
