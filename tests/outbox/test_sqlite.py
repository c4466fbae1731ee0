"""What `SQLiteStore` promises beyond the protocol: groups, one owner, bounded memory, a free loop."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from dispatcher.errors import ConfigError, OutboxError, StoreFull
from dispatcher.outbox import sqlite_ledger, sqlite_load, sqlite_recovery, sqlite_schema, sqlite_thread
from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.outbox.sqlite_group import Job, Kind, run_group
from dispatcher.outbox.sqlite_lock import Holder, holder_of, lock_path
from dispatcher.outbox.sqlite_schema import log_path
from tests.imports import ROOT
from tests.outbox.conformance import NOW, dead, delivered, numbers, record, records, returned, take
from tests.outbox.sqlite_support import claim_all, opened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


async def test_calls_of_one_moment_share_a_commit(path: Path) -> None:
    """A hundred callers: what comes while the thread commits is committed together."""
    async with opened(path) as store:
        before = store.status().commits
        await asyncio.gather(*(store.append([record(number)]) for number in range(100)))
        claims = await take(store)
        await asyncio.gather(*(store.settle(delivered(claim)) for claim in claims))
        assert store.status().commits - before <= 12
        assert store.status().waiting == store.status().claimed == 0


async def test_appends_claims_and_settlements_share_a_commit(path: Path) -> None:
    """All three of one moment are one transaction, but for what could change the order."""
    async with opened(path) as store:
        await store.append(records(1, 2))
        first, second = await take(store)
        before = store.status().commits
        blocking = asyncio.ensure_future(store.find(""))
        calls = [store.settle(delivered(first)), store.append(records(3)), take(store)]
        outcomes = await asyncio.gather(*calls)
        await blocking
        assert numbers(outcomes[2] or []) == [3]
        assert store.status().commits - before in (1, 2, 3)
        assert store.status().claimed == 2
        await store.settle(delivered(second))


async def test_the_second_owner_is_refused_with_the_firsts_name(path: Path) -> None:
    """In this process, and in another; when the first has closed it, another may."""
    async with opened(path) as store:
        with pytest.raises(OutboxError, match="this process already has this outbox open"):
            async with opened(path):
                raise AssertionError
        store.announce("http://127.0.0.1:9000")
        command = [sys.executable, "-m", "tests.outbox.sqlite_child", str(path), "commands"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0
        assert f"process {os.getpid()} has this outbox open; ask it at http://127.0.0.1:9000" in done.stderr
        await store.append(records(1))
        holder = holder_of(path)
        assert holder is not None
        assert (holder.pid, holder.admin) == (os.getpid(), "http://127.0.0.1:9000")
    assert holder_of(path) is None
    assert holder_of(path.with_name("nothing")) is None
    assert msgspec.json.decode(lock_path(path).read_bytes(), type=Holder).pid == os.getpid()
    async with opened(path) as store:
        assert store.status().waiting == 1


async def test_exactly_one_connection_is_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From opening to closing, whatever is done; none is left behind."""
    connect = sqlite3.connect
    made: list[Counted] = []

    class Counted(sqlite3.Connection):
        is_open = True

        def close(self) -> None:
            self.is_open = False
            super().close()

    def counting(*words: Any, **settings: Any) -> sqlite3.Connection:
        assert not any(one.is_open for one in made)
        made.append(connect(*words, **settings, factory=Counted))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", counting)
    for _ in range(2):
        async with opened(path) as store:
            await store.append(records(len(made)))
            await store.settle(delivered(*(await take(store))))
            assert [one.is_open for one in made].count(True) == 1
    assert made
    assert not any(one.is_open for one in made)


async def test_files_are_for_their_owner_alone(path: Path) -> None:
    """The file, its log and its lock, whatever the mask says."""
    mask = os.umask(0)
    try:
        async with opened(path) as store:
            await store.append(records(1))
            modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(["outbox.db", "outbox.db-wal", "outbox.db.lock"], 0o600)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """It is not made."""
    with pytest.raises(OutboxError, match="is no directory; make it first"):
        async with opened(tmp_path / "missing" / "outbox.db"):
            raise AssertionError


@pytest.mark.parametrize(
    "wrong",
    [{"max_messages": 0}, {"max_bytes": -1}, {"keep_receipts": float("nan")}, {"synchronous": "maybe"}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SQLiteStore("x", **wrong)


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1), ("off", 0)])
async def test_the_file_is_used_as_the_setting_says(
    path: Path, synchronous: Any, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log, how it is synced, the lock, and what gives space back."""
    seen = []

    def look(ledger: sqlite_ledger.Ledger) -> float | None:
        pragmas = ("journal_mode", "synchronous", "locking_mode", "auto_vacuum")
        seen.append([ledger.connection.execute(f"PRAGMA {one}").fetchone()[0] for one in pragmas])
        return None

    monkeypatch.setattr(sqlite_ledger.Ledger, "oldest_at", look)
    async with opened(path, synchronous=synchronous):
        pass
    assert seen[0] == ["wal", level, "exclusive", 2]


async def test_a_forked_child_is_refused(path: Path) -> None:
    """It has no thread, and must not touch the connection."""
    async with opened(path) as store:
        store._pid -= 1
        with pytest.raises(OutboxError, match="before a fork"):
            await store.append(records(1))
        store._pid += 1


async def test_close_does_what_was_asked_for(path: Path) -> None:
    """Two hundred calls that nobody awaited before it: all are answered, and there."""
    store = SQLiteStore(path, min_free_bytes=0)
    await store.open()
    calls = [asyncio.ensure_future(store.append([record(number)])) for number in range(200)]
    await asyncio.sleep(0)
    await store.aclose()
    assert [call.result() for call in calls] == [None] * 200
    assert not log_path(path).exists()
    async with opened(path) as again:
        assert again.status().waiting == 200


async def test_a_cancelled_append_frees_its_room(path: Path) -> None:
    """Whether it was kept or not, the bounds count what is there."""
    async with opened(path, max_messages=10) as store:
        for turns in range(4):
            call = asyncio.ensure_future(store.append(records(*range(turns * 10, turns * 10 + 5))))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await store.find("")
            await store.settle(delivered(*(await take(store))))
        await store.append(records(*range(100, 110)))


async def test_a_cancelled_close_and_a_second_one(path: Path) -> None:
    """Closing goes on when its caller has gone."""
    store = SQLiteStore(path, min_free_bytes=0)
    await store.open()
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await store.aclose()
    assert holder_of(path) is None


async def test_a_cancelled_open_lets_go(path: Path) -> None:
    """The file can be opened by the next."""
    store = SQLiteStore(path, min_free_bytes=0)
    opening = asyncio.ensure_future(store.open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await store.aclose()
    async with opened(path):
        pass


async def test_space_is_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was delivered and forgotten takes no room on the disk, once there is a quiet moment."""
    monkeypatch.setattr(sqlite_thread, "IDLE_SECONDS", 0.01)
    async with opened(path, max_receipts=10) as store:
        for first in range(0, 20_000, 1000):
            await store.append([record(number, size=500) for number in range(first, first + 1000)])
        grown = path.stat().st_size + log_path(path).stat().st_size
        while claims := await take(store, 2000):
            await store.settle(delivered(*claims))
        deadline = time.monotonic() + 20
        while (size := path.stat().st_size + log_path(path).stat().st_size) > grown // 3:
            assert time.monotonic() < deadline, (size, grown)
            await asyncio.sleep(0.02)
        assert await store.find("out_00000001") is None
        assert grown > 10_000_000


async def test_receipts_are_bounded(path: Path) -> None:
    """The oldest go first; those that are kept are found, also when the file was opened anew."""
    async with opened(path, max_receipts=100) as store:
        for first in range(0, 500, 50):
            await store.append([record(number) for number in range(first, first + 50)])
            await store.settle(delivered(*(await take(store))))
        await store.append(records(900))
        assert await store.find("out_00000001") is None
        assert await store.find("out_00000499") is not None
    async with opened(path, max_receipts=100, keep_receipts=0) as store:
        await store.append(records(901))
        assert await store.find("out_00000499") is not None
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM messages WHERE state = 1").fetchone()[0] <= 100
    connection.close()


async def test_what_waits_costs_no_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty thousand messages wait, a third behind a delayed one: less than twenty bytes for each."""
    count = int(os.environ.get("OUTBOX_WAITING", "50000"))
    monkeypatch.setattr(sqlite_ledger, "RECENT_BYTES_MAX", 100_000)
    async with opened(path, synchronous="off") as store:
        await store.append(records(1, queue="q"))
        await store.settle(returned(*(await take(store)), due=NOW + 100))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for first in range(10, count, 1000):
                some = range(first, min(first + 1000, count))
                await store.append([record(number, "q" if number % 3 == 0 else None, 100) for number in some])
            taken = 0
            while claims := await take(store, 1000):
                taken += len(claims)
                await store.settle(delivered(*claims))
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert store.status().waiting + taken == count - 9
        assert store.status().waiting > count // 4
        assert used < 20 * count + 200_000
    async with opened(path, synchronous="off") as store:
        assert store.status().waiting + taken == count - 9


async def test_a_run_of_claims_leaves_out_what_was_passed_over(path: Path, tmp_path: Path) -> None:
    """A message of a held queue between two that were claimed together was not claimed."""
    async with opened(path) as store:
        await store.append([record(1, "q"), record(2, "q"), record(3), record(4, "q"), record(5)])
        await store.settle(returned(*(await take(store, 1)), due=NOW + 50))
    left = tmp_path / "left"
    left.mkdir()
    async with opened(path) as store:  # nothing is remembered: rows are read from the file
        assert numbers(await take(store)) == [3, 5]
        await store.find("")
        for one in (path, log_path(path)):
            shutil.copyfile(one, left / one.name)
    async with opened(left / path.name) as store:
        claims = await claim_all(store)
        assert {number: claim.sent_since for number, claim in claims.items()} == {3: NOW, 5: NOW}
        later = await take(store, now=NOW + 50)
        assert numbers(later) == [1, 2, 4]
        assert [claim.sent_since for claim in later] == [None, None, None]


class Ticker:
    """How long the loop was kept from a task that only wants to run again."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.perf_counter() - before)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_slow_disk_does_not_hold_the_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes half a second: the loop turns meanwhile, thousands of times."""
    commit = sqlite_ledger.Ledger.commit

    def slow(ledger: sqlite_ledger.Ledger) -> None:
        time.sleep(0.25)
        commit(ledger)

    async with opened(path) as store:
        monkeypatch.setattr(sqlite_ledger.Ledger, "commit", slow)
        ticker = Ticker()
        await store.append(records(1, 2, 3))
        await store.settle(delivered(*(await take(store))))
        await ticker.stop()
        assert ticker.longest < 0.2
        assert store.status().free_bytes


async def test_a_failed_commit_changes_nothing_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three kinds of call fail; said again they do what they would have done, and nothing twice."""
    monkeypatch.setattr(sqlite_thread, "LOOK_SECONDS", 0.01)
    commit = sqlite_ledger.Ledger.commit

    def failing(ledger: sqlite_ledger.Ledger) -> None:
        monkeypatch.setattr(sqlite_ledger.Ledger, "commit", commit)
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(path) as store:
        await store.append([*records(1, 2, queue="q"), *records(3, 4)])
        claims = await take(store, 2)
        monkeypatch.setattr(sqlite_ledger.Ledger, "commit", failing)
        calls = [store.settle(delivered(claims[0])), store.append(records(5)), take(store)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [OutboxError] * 3
        await store.wait(NOW)
        assert store.status().failure == ""
        assert (store.status().waiting, store.status().claimed) == (2, 2)
        await store.settle(delivered(claims[0]))
        await store.settle(returned(claims[1], due=NOW))
        await store.append(records(5))
        assert numbers(await take(store)) == [2, 3, 4, 5]
        found = await store.find("out_00000001")
        assert found is not None
        assert found.state == "delivered"


async def test_nobody_waits_for_a_thread_that_died(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours: those who wait are told, and the file is let go."""

    def broken(_: object) -> float | None:
        raise LookupError("planted")

    store = SQLiteStore(path, min_free_bytes=0)
    await store.open()
    monkeypatch.setattr(sqlite_ledger.Ledger, "oldest_at", broken)
    calls = [store.append(records(1)), store.find("")]
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert {type(one) for one in outcomes} == {OutboxError}
    assert "planted" in caplog.text
    await store.aclose()
    assert holder_of(path) is None


async def test_records_that_cannot_be_kept_are_refused_alone(path: Path) -> None:
    """A queue's name that is no text, among others of the same moment; all of their bytes are free again."""
    async with opened(path, max_messages=3) as store:
        bad: Sequence[Any] = [record(1, "\ud800")]
        outcomes = await asyncio.gather(store.append(bad), store.append(records(2)), return_exceptions=True)
        assert [type(one) for one in outcomes] == [OutboxError, type(None)]
        await store.append(records(3, 4))
        assert store.status().errors == {"append": 1}


async def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that is needed."""
    monkeypatch.setattr(sqlite_thread, "SQLITE_MINIMUM", (99, 0, 0))
    with pytest.raises(OutboxError, match=r"needs SQLite 99\.0\.0"):
        async with opened(path):
            raise AssertionError
    assert not path.exists()


def test_the_schema_is_the_same_every_time(tmp_path: Path) -> None:
    """A new file's first page can stand in for a damaged one."""
    pages = []
    for name in ("a.db", "b.db"):
        sqlite_schema.create(tmp_path / name, "full").close()
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


async def test_an_id_that_no_message_can_have_harms_nobody(path: Path) -> None:
    """It is asked for by whoever likes to: nothing is found, and what is kept in that moment is kept."""
    async with opened(path) as store:
        asked: list[Any] = [store.find("out_\udcff"), store.cancel("out_\udcff"), store.retry(["\udcff"])]
        asked += [store.delete(["\udcff"]), store.dead_letters("\udcff"), store.append(records(1))]
        assert await asyncio.gather(*asked) == [None, False, 0, 0, [], None]
        with pytest.raises(OutboxError, match="OverflowError"):
            await store.dead_letters(None, 1 << 70)
        assert store.status().waiting == 1
        assert not store.status().failure


async def test_a_forked_child_keeps_no_lock(path: Path) -> None:
    """Whatever becomes of the child, the file can be opened anew once its owner has gone."""
    read, write = os.pipe()
    async with opened(path):
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        async with opened(path) as store:
            assert not store.status().failure
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


async def test_a_damaged_dead_letter_hides_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file too large to be read when it is opened: all are told, and it can be deleted."""
    monkeypatch.setattr(sqlite_recovery, "CHECKED_BYTES_MAX", 0)
    async with opened(path) as store:
        await store.append(records(1, 2, 3))
        await store.settle(dead(*await take(store)))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE messages SET history = x'00' WHERE position = 2")
    async with opened(path) as store:
        letters = await store.dead_letters()
        assert [one.record.id for one in letters] == [record(number).id for number in (1, 2, 3)]
        assert [one.reason == "400: no" for one in letters] == [True, False, True]
        assert await store.delete([letters[1].record.id]) == 1


async def test_a_rollback_that_fails_leaves_nothing_in_memory(path: Path) -> None:
    """Else what nobody was given would count as claimed when the file is opened anew."""
    async with opened(path) as store:
        await store.append(records(1))
    connection = sqlite3.connect(path, isolation_level=None)
    ledger = sqlite_ledger.Ledger(connection, 10, 10.0)
    sqlite_load.load(ledger, {}, NOW)

    class Failing:
        """Commits nothing, and cannot take anything back."""

        in_transaction = True

        def execute(self, sql: str, *values: Any) -> Any:
            if sql in ("COMMIT", "ROLLBACK"):
                raise sqlite3.OperationalError("disk I/O error")
            return connection.execute(sql, *values)

        def executemany(self, *arguments: Any) -> Any:
            return connection.executemany(*arguments)

    job = Job("claim", Kind.CLAIM, None)
    job.claim = (10, 1000, NOW)
    ledger.connection = Failing()  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError, match="disk"):
        run_group(ledger, [job], NOW)
    assert not ledger.claimed
    connection.close()


async def test_what_never_fits_is_told_so(path: Path) -> None:
    """Whoever waits for room would wait for ever; many that fit one by one may wait for it."""
    async with opened(path, max_bytes=100) as store:
        with pytest.raises(OutboxError, match="never fits into 100: raise max_bytes") as told:
            await store.append([record(1, size=101)])
        assert type(told.value) is OutboxError
        with pytest.raises(StoreFull):
            await store.append([record(1, size=60), record(2, size=60)])
