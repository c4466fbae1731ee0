"""Members whose ways to Redis are cut, reset and stalled: nothing is lost, and nothing doubled unsaid."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.devserver.chaos import ChaosProxy
from dispatcher.errors import OutboxError
from dispatcher.outbox.redis import RedisStore
from tests.outbox.conformance import NOW, PLENTY, delivered, record, returned
from tests.outbox.redis_support import running

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.outbox.store import Claim, Settlement, Store

QUEUES = [None, None, "a", "b", "c"]
SHARDS = 8
SECONDS = 2.5
LEASE = 1.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Watch:
    """What the test has seen of every message."""

    def __init__(self) -> None:
        self.acknowledged: set[int] = set()
        self.given: dict[int, list[Claim]] = defaultdict(list)
        self.delivered: set[int] = set()
        self.next = 0
        self.rng = random.Random(7)

    async def accept(self, store: Store, ends_at: float) -> None:
        """Append, and note what was acknowledged."""
        while asyncio.get_running_loop().time() < ends_at:
            new = [record(self.next + at, self.rng.choice(QUEUES)) for at in range(5)]
            self.next += 5
            with suppress(OutboxError):
                await store.append(new)
                self.acknowledged |= {int(one.id[4:]) for one in new}
            await asyncio.sleep(0.01)

    async def send(self, store: Store, ends_at: float) -> None:
        """Claim, and settle: most are delivered, some come back; said until the store has heard it."""
        while asyncio.get_running_loop().time() < ends_at:
            try:
                claims = await store.claim(20, PLENTY, NOW)
            except OutboxError:
                await asyncio.sleep(0.05)
                continue
            await self.settle(store, claims)
            await asyncio.sleep(0 if claims else 0.02)

    async def settle(self, store: Store, claims: list[Claim]) -> None:
        said: list[Settlement] = []
        for claim in claims:
            number = int(claim.record.id[4:])
            self.given[number].append(claim)
            if self.rng.random() < 0.2 and claim.record.queue is None:
                said += returned(claim, due=NOW, sent_since=claim.sent_since or NOW - 1)
            else:
                self.delivered.add(number)
                said += delivered(claim)
        for _ in range(200):
            try:
                await store.settle(said)
            except OutboxError:
                await asyncio.sleep(0.05)
            else:
                return
        raise AssertionError("it could not be settled")

    def check(self) -> None:
        """Nothing acknowledged is missing; what was given twice was told so; queues were begun in order."""
        assert self.acknowledged <= self.delivered
        positions: dict[str, list[int]] = defaultdict(list)
        for number, claims in self.given.items():
            assert all(claim.sent_since is not None for claim in claims[1:]), number
            if claims[0].record.queue is not None:
                positions[claims[0].record.queue].append(claims[0].position)
        assert len(positions) == len(set(QUEUES)) - 1
        for each in positions.values():
            assert each == sorted(each)


@pytest.mark.anyio
@pytest.mark.parametrize("plan", ["reset=0.05 truncate=0.02", "stall=0.02 hang=0.01 stall_for=1.3s"])
async def test_members_behind_a_bad_network(tmp_path: Path, plan: str) -> None:
    """Two members behind breaking proxies, a third that takes over in the end: all that was acknowledged."""
    port = free_port()
    watch = Watch()
    with running(tmp_path, "--port", str(port), fsync="everysec") as server:
        proxies = [ChaosProxy(("127.0.0.1", port), plan, seed=seed) for seed in range(2)]
        stores: list[RedisStore] = []
        for proxy in proxies:
            await proxy.start()
            stores.append(await opened(f"redis://127.0.0.1:{proxy.port}"))
        ends_at = asyncio.get_running_loop().time() + SECONDS
        work: list[Any] = [
            job for store in stores for job in (watch.accept(store, ends_at), watch.send(store, ends_at))
        ]
        await asyncio.gather(*work)
        for store in stores:
            await store.abort()
        for proxy in proxies:
            await proxy.stop()
            assert sum(count for kind, count in proxy.counts.items() if kind != "connections") > 2
        last = RedisStore(server.url, name="chaos", shards=SHARDS, lease_seconds=LEASE)
        await last.open()
        ends_at = asyncio.get_running_loop().time() + 20
        while last.owned < SHARDS or last.status().waiting:
            assert asyncio.get_running_loop().time() < ends_at
            await watch.send(last, asyncio.get_running_loop().time() + 0.1)
        await last.aclose()
    watch.check()


async def opened(url: str) -> RedisStore:
    """A member that has come in, at whichever try."""
    for _ in range(50):
        store = RedisStore(url, name="chaos", shards=SHARDS, lease_seconds=LEASE, timeout=0.5)
        try:
            await store.open()
        except OutboxError:
            continue
        return store
    raise AssertionError("it could not be opened")
