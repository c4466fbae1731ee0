"""Several members on one Redis: shares, hand-over, take-over after a death, and what each may still do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.errors import OutboxError
from dispatcher.outbox.redis import RedisStore
from dispatcher.outbox.redis_forms import shard_of
from dispatcher.outbox.store import Cancelled
from tests.imports import ROOT
from tests.outbox.conformance import NOW, dead, delivered, numbers, record, records, returned, take
from tests.outbox.redis_support import RedisPlace, Server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from dispatcher.outbox.store import Claim

SHARDS = 6
PATIENCE = 15.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis"), fsync="everysec") as one:
        yield one


class Fleet:
    """Members of one outbox."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.place = RedisPlace(server, shards=SHARDS)
        self.members: list[RedisStore] = []

    async def join(self, lease: float = 0.9, **settings: Any) -> RedisStore:
        """One more, open."""
        given = {"shards": SHARDS, "lease_seconds": lease, **settings}
        store = RedisStore(self.server.url, name=self.place.name, **given)
        await store.open()
        self.members.append(store)
        return store

    async def aclose(self) -> None:
        for store in self.members:
            await store.aclose()


@pytest.fixture
async def fleet(server: Server) -> AsyncIterator[Fleet]:
    one = Fleet(server)
    yield one
    await one.aclose()


async def until(is_so: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < PATIENCE, "it did not come to that"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def take_all(stores: list[RedisStore], wanted: int) -> list[Claim]:
    """Claim until there are so many."""
    found: list[Claim] = []
    ends_at = time.monotonic() + PATIENCE
    while len(found) < wanted:
        assert time.monotonic() < ends_at, f"{len(found)} of {wanted}"
        for store in stores:
            found += await take(store)
        await asyncio.sleep(0.01)
    return found


def queue_of(shard: int) -> str:
    """A queue that is in this shard."""
    return next(name for name in map(str, range(1000)) if shard_of(name, SHARDS) == shard)


@pytest.mark.anyio
class TestMembers:
    async def test_members_share_the_shards(self, fleet: Fleet) -> None:
        """Each has its part as they come, and what one leaves goes to the others at once."""
        first = await fleet.join()
        assert (first.owned, first.members) == (SHARDS, 1)
        second = await fleet.join()
        await until(lambda: (first.owned, second.owned) == (3, 3))
        third = await fleet.join()
        await until(lambda: (first.owned, second.owned, third.owned) == (2, 2, 2))
        await second.aclose()
        assert await until(lambda: first.owned + third.owned == SHARDS) < 0.9

    async def test_what_one_accepts_the_owner_sends(self, fleet: Fleet) -> None:
        """Every message is claimed once, by whoever owns its shard; whoever waits is woken."""
        stores = [await fleet.join(), await fleet.join()]
        await until(lambda: [store.owned for store in stores] == [3, 3])
        for store in stores:
            assert await take(store) == []
        waiting = [asyncio.ensure_future(store.wait(NOW)) for store in stores]
        for first in range(0, 120, 10):
            await stores[0].append(records(*range(first, first + 10)))
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        claims = await take_all(stores, 120)
        assert sorted(numbers(claims)) == list(range(120))
        assert len(stores[0]._owner.out) < 120
        assert len(stores[1]._owner.out) > 0
        for store in stores:
            await store.settle(delivered(*[out.claim for out in store._owner.out.values()]))
        await until(lambda: {store.status().held_bytes for store in stores} == {0})

    async def test_a_shard_is_given_away_when_nothing_of_it_is_out(self, fleet: Fleet) -> None:
        """Until then nothing more of it is claimed; what came back is the new owner's, in order."""
        first = await fleet.join()
        queues = [queue_of(shard) for shard in range(SHARDS)]
        for number, queue in enumerate(queues * 2):
            await first.append([record(number, queue)])
        claims = await take(first, SHARDS)
        second = await fleet.join()
        await until(lambda: sum(one.is_draining for one in first._owner.shards.values()) == 3)
        assert (first.owned, second.owned) == (SHARDS, 0)
        assert len(await take(first)) == 3
        assert await take(second) == []
        await first.settle(returned(*claims, due=NOW))
        await until(lambda: second.owned == 3)
        moved = await take_all([second], 6)
        assert all(claim.returns in (0, 1) for claim in moved)
        for name in {claim.record.queue for claim in moved}:
            assert [claim.returns for claim in moved if claim.record.queue == name] == [1, 0]

    async def test_a_dead_member_is_taken_over_from(self, fleet: Fleet) -> None:
        """After its lease: what it had claimed waits with the instant of that, the rest as it was."""
        first = await fleet.join()
        await first.append([*records(1, 2, 3), *records(4, 5, queue="q")])
        out = await take(first, 2)
        await first.settle(delivered(out[1]))
        await first.abort()
        second = await fleet.join()
        assert second.owned == 0
        await until(lambda: second.owned == SHARDS)
        claims = await take(second, now=NOW + 9)
        assert sorted(numbers(claims)) == [1, 3, 4, 5]
        by_number = dict(zip(numbers(claims), claims, strict=True))
        assert by_number[1].sent_since == NOW
        assert {by_number[number].sent_since for number in (3, 4, 5)} == {None}
        assert (await second.find("out_00000002")).state == "delivered"  # type: ignore[union-attr]

    async def test_what_kills_its_senders_is_a_dead_letter_in_the_end(self, fleet: Fleet) -> None:
        """After as many deaths as are allowed, with a reason; it can be retried."""
        store = await fleet.join(poison_cap=3)
        await store.append(records(1, 2))
        for _ in range(3):
            assert numbers(await take(store, 1)) == [1]
            await fleet.place.crash(store)
            store = await fleet.join(poison_cap=3)
        (letter,) = await store.dead_letters()
        assert (letter.record.id, letter.reason[:7]) == ("out_00000001", "3 times")
        assert letter.record == record(1)
        assert numbers(await take(store)) == [2]
        assert await store.retry() == 1
        assert numbers(await take(store)) == [1]

    async def test_any_member_decides_on_any_message(self, fleet: Fleet) -> None:
        """Found, cancelled, retried and deleted by one, while the other owns the shard."""
        first, second = await fleet.join(), await fleet.join()
        await until(lambda: (first.owned, second.owned) == (3, 3))
        theirs = queue_of(next(iter(second._owner.shards)))
        await first.append([record(number, theirs) for number in range(1, 6)])
        assert await first.cancel("out_00000002")
        claims = await take_all([second], 4)
        assert numbers(claims) == [1, 3, 4, 5]
        assert (await first.find("out_00000003")).state == "claimed"  # type: ignore[union-attr]
        assert not await first.cancel("out_00000003")
        await second.settle(dead(*claims[:2]))
        assert await first.delete(["out_00000001"]) == 1
        assert await first.retry() == 1
        assert numbers(await take_all([second], 1)) == [3]
        assert second.status().waiting == 0

    async def test_who_lost_his_lease_can_still_say_what_was_delivered(self, fleet: Fleet) -> None:
        """That, and what was taken back, is true whoever says it; what he gives back is not his any more."""
        first = await fleet.join()
        await first.append(records(1, 2, 3, 4))
        one, two, three, four = await take(first)
        fleet.server.end_leases(fleet.place.name)
        second = await fleet.join(lease=30)
        await until(lambda: second.owned > 0)
        first._members.abort()
        fleet.server.end_leases(fleet.place.name)
        second._members.poke()
        await until(lambda: second.owned == SHARDS)
        await until(lambda: not first._members.is_sure())
        with pytest.raises(OutboxError, match="renewed"):
            await take(first)
        await first.settle([*delivered(one), Cancelled(two.position)])
        await first.settle([*returned(three, due=NOW + 50), *dead(four)])
        assert first.status().claimed == 0
        claims = await take_all([second], 2)
        assert numbers(claims) == [3, 4]
        assert [claim.sent_since for claim in claims] == [NOW, NOW]
        assert await second.dead_letters() == []

    async def test_a_claim_without_the_lease_gives_nothing(self, fleet: Fleet) -> None:
        """However sure the member is of it: Redis says who owns a shard."""
        first = await fleet.join(lease=30)
        await first.append(records(1))
        fleet.server.end_leases(fleet.place.name)
        assert await take(first) == []
        await until(lambda: first.owned == SHARDS)
        assert numbers(await take_all([first], 1)) == [1]


@pytest.mark.anyio
class TestLostAnswers:
    async def test_an_answer_that_was_lost_loses_nothing(self, fleet: Fleet, server: Server) -> None:
        """Connections broken again and again: each message is claimed once, and settled."""
        store = await fleet.join(lease=30)
        await store.append([record(number, "q" if number % 3 else None) for number in range(200)])
        seen: list[int] = []
        ends_at = time.monotonic() + PATIENCE
        while len(seen) < 200:
            assert time.monotonic() < ends_at
            task = asyncio.ensure_future(take(store, 7))
            await asyncio.sleep(0)
            for client in server.client.client_list():
                if client["name"] == "" and int(client["id"]) != server.client.client_id():
                    server.client.client_kill_filter(_id=client["id"])
            try:
                claims = await task
            except OutboxError:
                continue
            seen += numbers(claims)
            for _ in range(20):
                try:
                    await store.settle(delivered(*claims))
                except OutboxError:
                    continue
                break
        assert sorted(seen) == list(range(200))
        assert (store.status().waiting, store.status().claimed) == (0, 0)
        left = server.keys(store.name)
        assert not {key for key in left if key[:2] in ("h:", "p:", "c:") or key == "ids"}

    async def test_a_claim_that_fails_halfway_gives_what_it_was_given(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a first script has claimed is not forgotten because the second one failed."""
        monkeypatch.setattr("dispatcher.outbox.redis_owner.READ_ENTRIES", 1)
        store = await fleet.join(lease=30, shards=SHARDS)
        for number in range(4):
            await store.append([record(number, "q")])
        run, scripts_run = store._owner.link.run, []

        async def fail_the_second_claim(script: Any, *words: Any) -> Any:
            scripts_run.append(script.name)
            if scripts_run.count("claim") == 2:
                await store._owner.link.drop()
                raise OutboxError("planted")
            return await run(script, *words)

        monkeypatch.setattr(store._owner.link, "run", fail_the_second_claim)
        assert numbers(await take(store)) == [0]
        monkeypatch.setattr(store._owner.link, "run", run)
        assert numbers(await take(store)) == [1, 2, 3]

    async def test_redis_restarted_keeps_what_was_acknowledged(self, tmp_path: Any) -> None:
        """Killed and started again with its log of every command: the store goes on by itself."""
        with running(tmp_path) as server:
            fleet = Fleet(server)
            store = await fleet.join(lease=30)
            await store.append(records(1, 2, 3))
            (one,) = await take(store, 1)
            server.kill()
            with pytest.raises(OutboxError):
                await store.append(records(9))
            with pytest.raises(OutboxError):
                await take(store)
            server.start()
            await store.settle(delivered(one))
            assert numbers(await take(store)) == [2, 3]
            await store.append(records(4))
            assert numbers(await take(store)) == [4]
            await fleet.aclose()


CHILD = """
    import asyncio, sys
    from dispatcher.outbox.redis import RedisStore
    from tests.outbox.conformance import NOW, PLENTY, record

    async def main():
        store = RedisStore(sys.argv[1], name=sys.argv[2], shards=6, lease_seconds=0.9)
        await store.open()
        number = int(sys.argv[3])
        while True:
            await store.append([record(number + at, f"q{at % 5}") for at in range(10)])
            print(number, flush=True)
            number += 10
            await store.claim(5, PLENTY, NOW)

    asyncio.run(main())
"""


@pytest.mark.anyio
async def test_a_killed_process_loses_nothing_that_it_was_told(fleet: Fleet) -> None:
    """Killed in the middle of appends and claims: all that was acknowledged is there, each queue in order."""
    words = [sys.executable, "-c", textwrap.dedent(CHILD), fleet.server.url, fleet.place.name, "1000"]
    child = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stdout is not None
    told = [int(await asyncio.wait_for(child.stdout.readline(), PATIENCE)) for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    rest = await child.stdout.read()
    told += [int(line) for line in rest.split()]
    await child.wait()
    store = await fleet.join()
    await until(lambda: store.owned == SHARDS)
    wanted = {number + at for number in told for at in range(10)}
    claims = await take_all([store], len(wanted))
    found = numbers(claims)
    assert set(found) >= wanted
    assert len(set(found)) == len(found)
    for queue in {claim.record.queue for claim in claims}:
        mine = [int(claim.record.id[4:]) for claim in claims if claim.record.queue == queue]
        assert mine == sorted(mine)
    assert any(claim.sent_since == NOW for claim in claims)


def test_the_shard_of_a_queue_never_changes() -> None:
    """Members of different versions have to agree."""
    assert [shard_of(name, 32) for name in ("a", "orders", "ü")] == [3, 14, 21]
