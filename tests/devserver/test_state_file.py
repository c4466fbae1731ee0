"""The state file: what was answered is never forgotten, also by `kill -9`, and never read wrongly."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from dispatcher.devserver.changes import Accepted, Row
from dispatcher.devserver.intake import Item
from dispatcher.devserver.journal import Journal
from dispatcher.devserver.upstream import Upstream
from dispatcher.errors import ConfigError
from dispatcher.testing import LocalUpstream, ManualClock, local_upstream
from tests.devserver.support import TOKEN, Connection, dev_process

if TYPE_CHECKING:
    from pathlib import Path

Headers = dict[str, str | list[str]]
URL = "https://example.com/hook"


def written(path: Path, batches: int = 3) -> list[int]:
    """Write a state file of some batches; returns the file's size after each."""
    upstream = Upstream(keep_bodies=True, record_changes=True, instance="abc")
    journal = Journal(path)
    journal.load(upstream)
    sizes = [path.stat().st_size]
    for n in range(batches):
        headers: Headers = {"Upstash-Deduplication-Id": f"id-{n}", "Upstash-Retries": "1"}
        upstream.accept_batch(
            [Item(URL, f"ä{n}", headers, "q"), Item(URL, b"\xff", {"Upstash-Label": "x"})], float(n)
        )
        journal.append(upstream.take_changes())
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def loaded(path: Path, **settings: Any) -> Upstream:
    upstream = Upstream(keep_bodies=True, record_changes=True, **settings)
    journal = Journal(path)
    try:
        journal.load(upstream)
    finally:
        journal.close()
    return upstream


def test_everything_is_read_back(tmp_path: Path) -> None:
    """Messages, their order, ids, headers and bodies, queues, URL groups, cancellations, the window."""
    path = tmp_path / "state"
    first = Upstream(keep_bodies=True, record_changes=True, instance="abc")
    journal = Journal(path)
    journal.load(first)
    first.put_group("g", {"https://a.example": None, "https://b.example": "b"}, 1.0, 2.0)
    first.put_group("gone", {}, 1.0, 1.0)
    first.put_group("gone", None, 1.0, 1.0)
    first.put_queue("p", 3, 1.0, 2.0, paused=True)
    first.put_queue("gone", 1, 1.0, 2.0)
    first.put_queue("gone", None, 1.0, 2.0)
    headers: Headers = {"Upstash-Deduplication-Id": "id", "Upstash-Forward-A": ["1", "2"]}
    content: Headers = {"Upstash-Content-Based-Deduplication": "true"}
    items = [Item(URL, "ä", headers, "q"), Item("g", "x"), Item(URL, b"\xff"), Item("api/llm", "y", content)]
    first.accept_batch(items, 10.0, failing_endpoints=(1,))
    first.accept_batch([Item(URL, "later", None, "p")], 11.0)
    first.cancel([first.ledger.message_id(2)])
    journal.append(first.take_changes())
    journal.close()

    second = loaded(path)
    assert list(second.ledger.rows()) == list(first.ledger.rows())
    assert [second.ledger.groups[n] for n in range(5)] == [first.ledger.groups[n] for n in range(5)]
    assert repr(second.queues) == repr(first.queues)
    assert repr(second.groups) == repr(first.groups)
    assert second.find(second.ledger.message_id(2)) is None
    assert second.find(second.ledger.message_id(0)) == (0, 0)
    again = second.accept_batch([items[0], items[3]], 600.0)
    assert all(not isinstance(entry, list) and entry.deduplicated for entry in again)
    assert not any(
        not isinstance(entry, list) and entry.deduplicated for entry in second.accept_batch([items[0]], 611.0)
    )


def test_cancellations_of_many_are_read_back(tmp_path: Path) -> None:
    """A deleted queue and a cancelled whole stay gone, with their counts."""
    path = tmp_path / "state"
    first = Upstream(record_changes=True)
    journal = Journal(path)
    journal.load(first)
    first.accept_batch([Item(URL, "x", None, "q"), Item(URL, "y", None, "p")], 1.0)
    first.put_queue("p", 4, 1.0, 2.0, paused=True)
    first.delete_queue("q", 2.0)
    journal.append(first.take_changes())
    first.cancel_all()
    first.accept_batch([Item(URL, "z", None, "p")], 3.0)
    journal.append(first.take_changes())
    journal.close()
    second = loaded(path)
    assert [second.find(second.ledger.message_id(seq)) for seq in range(3)] == [None, None, (2, 0)]
    assert repr(second.queues) == repr(first.queues)
    assert second.queues["p"].lag == 1


def test_every_torn_end_is_cut_off(tmp_path: Path) -> None:
    """Cut at any byte, the file gives back exactly the requests written whole, and can be written on."""
    path = tmp_path / "state"
    sizes = written(path)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        upstream = loaded(path)
        complete = sum(size <= cut for size in sizes[1:])
        assert len(upstream.ledger) == 2 * complete, cut
    path.write_bytes(whole[:-5])
    upstream = Upstream(record_changes=True)
    journal = Journal(path)
    journal.load(upstream)
    upstream.accept_batch([Item(URL, "after")], 9.0)
    journal.append(upstream.take_changes())
    journal.close()
    assert [row.seq for row in loaded(path).ledger.rows()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda lines: [b"{}\n", *lines[1:]], "line 1 is damaged"),
        (lambda lines: [b'{"format":"x","version":1,"instance":"a"}\n'], "not a dispatcher-dev-state file"),
        (lambda lines: [lines[0], b'{"change":"accepted"\n', *lines[1:]], "line 2 is damaged"),
        (lambda lines: [lines[0], b'{"change":"unheard"}\n'], "line 2 is damaged"),
        (lambda lines: [b"\xff\xfe\n"], "line 1 is damaged"),
    ],
)
def test_damage_elsewhere_is_an_error(tmp_path: Path, change: Any, needle: str) -> None:
    """Only the end may be torn: anything else is refused, with the line, and the file is left as it is."""
    path = tmp_path / "state"
    written(path)
    damaged = b"".join(change(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=needle):
        loaded(path)
    assert path.read_bytes() == damaged


def test_two_servers_cannot_share_a_file(tmp_path: Path) -> None:
    """The second one is refused while the first runs; a path that cannot be opened is an error too."""
    journal = Journal(tmp_path / "state")
    with pytest.raises(ConfigError, match="another server uses"):
        Journal(tmp_path / "state")
    journal.close()
    Journal(tmp_path / "state").close()
    with pytest.raises(ConfigError, match="cannot be opened"):
        Journal(tmp_path / "no" / "state")


def test_a_write_that_fails_by_half_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a record leaves the records before it readable, and later ones too."""
    path = tmp_path / "state"
    journal = Journal(path)
    journal.load(Upstream())
    change = Accepted(1.0, [[]], [Row(URL, None, None, bytes(32), 0)])
    journal.append([change])
    real, calls = os.write, []

    def full(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(fd, data[:7])

    monkeypatch.setattr("dispatcher.devserver.journal.os.write", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append([change])
    monkeypatch.undo()
    journal.append([change])
    journal.close()
    assert len(loaded(path).ledger) == 2


@pytest.mark.anyio
async def test_a_full_disk_is_a_500(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is not answered as accepted."""

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    async with local_upstream(state=tmp_path / "state") as upstream:
        connection = await Connection.to(upstream)
        monkeypatch.setattr("dispatcher.devserver.journal.os.write", full)
        status, answer = await connection.ask("POST", "/v2/batch", [{"destination": URL}])
        monkeypatch.undo()
        assert (status, answer) == (
            500,
            {"error": "the state file could not be written: No space left on device"},
        )
        await connection.close()


@pytest.mark.anyio
async def test_the_record_is_on_disk_before_the_reply(tmp_path: Path) -> None:
    """Whoever has the reply finds the messages in the file, and a cancelled or reset one as such."""
    path = tmp_path / "state"
    async with local_upstream(state=path, clock=ManualClock(5.0)) as upstream:
        connection = await Connection.to(upstream)
        for n in range(20):
            await connection.ask("POST", "/v2/batch", [{"destination": URL, "body": f"{n}"}] * 3)
            assert path.read_bytes().count(b"\n") == n + 2
        await connection.ask("DELETE", f"/v2/messages/{upstream.accepted()[0].message_ids[0]}")
        accepted = upstream.accepted()
        await upstream.stop()
        assert upstream.accepted() == accepted
        await upstream.start()
        assert upstream.accepted() == accepted
        await connection.close()
        connection = await Connection.to(upstream)
        assert (await connection.ask("GET", f"/v2/messages/{accepted[0].message_ids[0]}"))[0] == 404
        assert (await connection.ask("GET", f"/v2/messages/{accepted[1].message_ids[0]}"))[0] == 200
        await connection.ask("POST", "/dispatcher-dev/reset")
        await connection.close()
    async with LocalUpstream(state=path) as later:
        assert later.accepted() == []


async def _post_until_dead(url: str, worker: int, acknowledged: dict[str, str]) -> None:
    """Send batches with ids until the server dies, noting what it acknowledged."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for n in range(100_000):
            ids = [f"{worker}-{n}-{m}" for m in range(20)]
            batch = [_message(one) for one in ids]
            try:
                async with session.post(f"{url}/v2/batch", json=batch) as reply:
                    entries = orjson.loads(await reply.read())
            except aiohttp.ClientError:
                return
            acknowledged.update((one, entry["messageId"]) for one, entry in zip(ids, entries, strict=True))


def _message(one: str) -> dict[str, Any]:
    return {"destination": URL, "queue": "q", "body": one, "headers": {"Upstash-Deduplication-Id": one}}


@pytest.mark.anyio
async def test_kill_9_forgets_nothing_acknowledged(tmp_path: Path) -> None:
    """Killed three times amid batches: every acknowledged message is there once, and still deduplicated."""
    acknowledged: dict[str, str] = {}
    state = tmp_path / "state"
    for life in range(3):
        with dev_process(tmp_path, "--state", str(state)) as server:
            workers = [
                asyncio.create_task(_post_until_dead(server.url, 10 * life + worker, acknowledged))
                for worker in range(4)
            ]
            enough = len(acknowledged) + random.Random(life).randrange(400, 1200)
            while len(acknowledged) < enough:
                await asyncio.sleep(0.001)
            server.kill()
            await asyncio.gather(*workers)
    with dev_process(tmp_path, "--state", str(state)) as server:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
            async with session.post(
                f"{server.url}/v2/batch", json=[_message(one) for one in acknowledged]
            ) as reply:
                entries = orjson.loads(await reply.read())
            async with session.get(f"{server.url}/dispatcher-dev/summary") as reply:
                summary = await reply.json()
    assert [entry["messageId"] for entry in entries] == list(acknowledged.values())
    assert all(entry["deduplicated"] for entry in entries)
    assert summary["accepted"] == summary["distinct"] >= len(acknowledged)
    assert summary["queues"]["q"]["accepted"] == summary["accepted"]
