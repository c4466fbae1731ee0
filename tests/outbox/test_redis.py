"""The store in Redis, alone: its settings and secrets, what Redis refuses, what is packed, what it costs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from dispatcher import outbox
from dispatcher.errors import ConfigError, OutboxError, StoreFull
from dispatcher.outbox.redis import RedisStore
from dispatcher.outbox.redis_forms import ENTRY_BYTES, ENTRY_MESSAGES, packed, shard_of, unpacked
from dispatcher.outbox.redis_link import as_sent
from dispatcher.outbox.store import Record
from tests.outbox.conformance import NOW, dead, delivered, numbers, record, records, returned, take
from tests.outbox.redis_support import RedisPlace, Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis"), fsync="everysec") as one:
        yield one


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a{b}"}, "name"),
        ({"shards": 0}, "shards"),
        ({"shards": 2000}, "shards"),
        ({"max_messages": 0}, "max_messages"),
        ({"lease_seconds": True}, "lease_seconds"),
        ({"keep_receipts": -1}, "keep_receipts"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], field: str) -> None:
    """With its name, before anything is connected."""
    with pytest.raises(ConfigError) as caught:
        RedisStore("redis://localhost", **settings)
    assert caught.value.field == field


@pytest.mark.parametrize("url", [f"http://:{SECRET}@host", f"redis://:{SECRET}@host:port/0"])
def test_a_wrong_url_is_not_shown(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigError) as caught:
        RedisStore(url)
    assert caught.value.field == "url"
    assert SECRET not in str(caught.value)


def test_importing_the_outbox_does_not_import_redis() -> None:
    """Nor does naming the store; making one without the package says what to install."""
    program = """
import sys
sys.modules["redis"] = None
import dispatcher.outbox
assert "dispatcher.outbox.redis" not in sys.modules
from dispatcher.outbox import RedisStore
try:
    RedisStore("redis://localhost")
except dispatcher.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'qstash-dispatcher[redis]'" in done.stdout


def test_the_name_is_public() -> None:
    """Among the others, and nothing that is not there."""
    assert outbox.RedisStore is RedisStore
    assert "RedisStore" in outbox.__all__
    with pytest.raises(AttributeError):
        _ = outbox.NoStore


class TestPacking:
    def test_entries_are_bounded_and_ordered(self) -> None:
        """Of each shard, the numbers of an entry are above those of the one before; nothing is left out."""
        messages = [record(number, f"q{number % 7}" if number % 2 else None) for number in range(1000)]
        entries, _ = packed(messages, 4, 0)
        last: dict[int, int] = {}
        seen = []
        for shard, blob, offsets in entries:
            assert len(offsets) <= ENTRY_MESSAGES
            assert offsets == sorted(offsets)
            assert offsets[0] > last.get(shard, -1)
            last[shard] = offsets[-1]
            for number, one in unpacked(5000 + offsets[0], blob):
                seen.append((number - 5000, one))
                assert one.queue is None or shard_of(one.queue, 4) == shard
        assert sorted(seen) == list(enumerate(messages))
        assert len({entry.shard for entry in entries}) == 4

    def test_large_messages_have_entries_of_their_own(self) -> None:
        """About so many bytes an entry; one that is larger stands alone."""
        large = [record(number, "q", size=ENTRY_BYTES) for number in range(3)]
        entries, _ = packed(large, 4, 0)
        assert [entry.offsets for entry in entries] == [[0], [1], [2]]

    def test_the_turn_goes_on(self) -> None:
        """Appends of messages without a queue go to one shard after the other."""
        turn, shards = 0, []
        for number in range(5):
            (entry,), turn = packed(records(number), 3, turn)
            shards.append(entry.shard)
        assert shards == [0, 1, 2, 0, 1]

    def test_what_is_no_entry_is_told(self) -> None:
        """Somebody else wrote there."""
        with pytest.raises(OutboxError, match="entry 7"):
            unpacked(7, b"\xff")


def test_commands_travel_alike_with_and_without_hiredis() -> None:
    """Text, bytes and numbers; what the slower one makes is what the faster one makes."""
    words: Any = ("EVALSHA", "ü", b"\x00\r\n", 12, 1 << 60, "")
    assert as_sent(words) == hiredis.pack_command(words)


@pytest.mark.anyio
class TestRefusals:
    async def test_other_shards_are_refused(self, server: Server) -> None:
        """Members that divide it otherwise would lose messages; the one that is there goes on."""
        place = RedisPlace(server, shards=4)
        store = place.make()
        await store.open()
        place.settings["shards"] = 5
        other = place.make()
        with pytest.raises(OutboxError, match="made with 4 shards"):
            await other.open()
        await store.append(records(1))
        await store.aclose()

    async def test_a_later_form_is_refused(self, server: Server) -> None:
        """Untouched."""
        place = RedisPlace(server)
        server.client.hset(f"{{dispatcher:{place.name}}}:meta", mapping={"form": 99})
        with pytest.raises(OutboxError, match="the form 99"):
            await place.make().open()

    async def test_nobody_there_is_told_without_the_password(self) -> None:
        """Host and port are in the error, and nothing of the user."""
        store = RedisStore(f"redis://me:{SECRET}@127.0.0.1:1", timeout=2)
        with pytest.raises(OutboxError, match=r"127\.0\.0\.1:1") as caught:
            await store.open()
        assert SECRET not in f"{caught.value!r} {store!r}"

    async def test_a_wrong_password_is_told_without_it(self, tmp_path: Any) -> None:
        """And the right one opens."""
        with running(tmp_path, fsync="everysec") as one:
            one.client.config_set("requirepass", SECRET)
            for password, is_right in (("wrong-" + SECRET, False), (SECRET, True)):
                store = RedisStore(f"{one.url}?password={password}", shards=2)
                if is_right:
                    await store.open()
                    await store.aclose()
                    continue
                with pytest.raises(OutboxError, match="user or the password") as caught:
                    await store.open()
                assert SECRET not in repr(caught.value)

    async def test_no_memory_left_is_a_full_store(self, tmp_path: Any) -> None:
        """Appends are refused, what is there is claimed and settled, and then there is room again."""
        with running(tmp_path, fsync="everysec") as one:
            store = RedisStore(one.url, shards=2)
            await store.open()
            await store.append([record(number, size=1000) for number in range(100)])
            one.client.config_set("maxmemory", 1)
            with pytest.raises(StoreFull, match="memory"):
                await store.append([record(1000)])
            claims = await take(store)
            assert numbers(claims) == list(range(100))
            await store.settle([*delivered(*claims[2:]), *dead(claims[1]), *returned(claims[0], due=NOW)])
            assert await store.retry() == 1
            assert await store.cancel("out_00000000")
            await store._members._beat()
            await store.settle(delivered(*await take(store)))
            status = store.status()
            assert (status.waiting, status.claimed, status.errors) == (0, 0, {"append": 1})
            one.client.config_set("maxmemory", 0)
            await store.append([record(1000)])
            await store.aclose()

    async def test_a_server_that_forgets_is_refused(self, tmp_path: Any, caplog: Any) -> None:
        """One that may end leases, or keeps no log, is told of."""
        with running(tmp_path, fsync="everysec") as one:
            one.client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(OutboxError, match="noeviction"):
                await RedisStore(one.url).open()
            one.client.config_set("maxmemory-policy", "volatile-lru")
            one.client.config_set("appendonly", "no")
            store = RedisStore(one.url)
            await store.open()
            await store.aclose()
            words = " ".join(caplog.messages)
            assert "volatile-lru" in words
            assert "appendonly no" in words

    async def test_what_is_no_text_is_refused_alone(self, server: Server) -> None:
        """An id or a queue that cannot be written spoils no other call, and no connection."""
        store = RedisPlace(server).make(max_bytes=100)
        await store.open()
        breaks = [link.breaks for link in store._links]
        odd = Record("out_\udcff", b"x")
        calls = [store.append(records(1)), store.append([odd]), store.append(records(2))]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in done] == [type(None), OutboxError, type(None)]
        with pytest.raises(OutboxError, match="text"):
            await store.find("\udcff")
        with pytest.raises(OutboxError, match="never fits"):
            await store.append([record(3, size=101)])
        assert sorted(numbers(await take(store))) == [1, 2]
        assert [link.breaks for link in store._links] == breaks
        await store.aclose()

    async def test_missing_replicas_are_told(self, server: Server) -> None:
        """Who asks for one where there is none has nothing acknowledged."""
        store = RedisPlace(server, wait_replicas=1, timeout=0.2).make()
        await store.open()
        with pytest.raises(OutboxError, match="0 of 1 replicas"):
            await store.append(records(1))
        await store.aclose()


@pytest.mark.anyio
class TestCosts:
    async def test_commands_are_shared_by_many_messages(self, server: Server) -> None:
        """Appended, claimed and settled by the hundred: less than three commands for fifty messages."""
        store = RedisPlace(server).make(max_messages=10_000)
        await store.open()
        began = store.commands
        for first in range(0, 2000, 100):
            await store.append(records(*range(first, first + 100)))
        while claims := await take(store, 500):
            await store.settle(delivered(*claims))
        assert (store.commands - began) / 2000 < 0.06
        await store.aclose()

    async def test_what_is_settled_leaves_nothing_behind(self, server: Server) -> None:
        """No entry, no claim, no id: only counters, receipts and marks of the store remain."""
        place = RedisPlace(server, keep_receipts=0)
        store = place.make()
        await store.open()
        await store.append([record(number, "q" if number % 3 else None) for number in range(250)])
        claims = await take(store)
        await store.settle([*delivered(*claims[10:]), *dead(*claims[:10])])
        assert await store.delete() == 10
        await store.aclose()
        left = server.keys(place.name)
        streams = {key for key in left if key.startswith("q:")}
        assert left - streams == {"meta", "seq", "claims", "count"}
        assert all(server.client.xlen(f"{{dispatcher:{place.name}}}:{key}") == 0 for key in streams)

    async def test_receipts_are_bounded(self, server: Server) -> None:
        """About so many are kept, the latest ones."""
        store = RedisPlace(server, max_receipts=50).make()
        await store.open()
        for first in range(0, 200, 10):
            await store.append(records(*range(first, first + 10)))
            await store.settle(delivered(*await take(store)))
        found = [number for number in range(200) if await store.find(f"out_{number:08}") is not None]
        assert found == list(range(found[0], 200))
        assert 40 <= len(found) <= 60
        await store.aclose()

    async def test_a_queue_that_waits_costs_no_memory(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was passed over is read again in parts, in order, with others given meanwhile."""
        monkeypatch.setattr("dispatcher.outbox.redis_claims.RECALL_BYTES", 2000)
        monkeypatch.setattr("dispatcher.outbox.redis_claims.RECALL_ENTRIES", 2)
        store = RedisPlace(server, shards=1).make(max_messages=10_000)
        await store.open()
        await store.append(records(0, queue="q"))
        (first,) = await take(store)
        await store.settle(returned(first, due=NOW + 10))
        for at in range(1, 1001, 100):
            await store.append(
                [record(number, "q" if number % 2 else None) for number in range(at, at + 100)]
            )
        others: list[int] = []
        while claims := await take(store, 70):
            others += numbers(claims)
        assert others == list(range(2, 1001, 2))
        assert sum(len(shard.fresh) for shard in store._owner.shards.values()) == 0
        mine: list[int] = []
        while claims := await take(store, 33, NOW + 20):
            mine += numbers(claims)
        assert mine == [0, *range(1, 1001, 2)]
        await store.aclose()
