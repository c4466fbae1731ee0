"""A disk that is full or fails: refusal, never a lost acknowledged message, and recovery by itself."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dispatcher.errors import OutboxError, StoreFull
from dispatcher.outbox import sqlite_recovery, sqlite_schema, sqlite_thread
from tests.imports import ROOT
from tests.outbox.conformance import delivered, record, take
from tests.outbox.sqlite_support import claim_all, opened

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from dispatcher.outbox.sqlite import SQLiteStore
    from dispatcher.outbox.sqlite_schema import Synchronous

pytestmark = pytest.mark.anyio

PRELOADED = [Path("/usr/lib/fiu") / name for name in ("fiu_run_preload.so", "fiu_posix_preload.so")]
EIO = 5
HAS_FIU = all(path.exists() for path in PRELOADED) and shutil.which("fiu-ctrl") is not None
needs_fiu = pytest.mark.skipif(not HAS_FIU, reason="libfiu is not installed (fiu-utils)")


class Child:
    """The program of `sqlite_child`, told what to do line by line."""

    def __init__(self, path: Path, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "tests.outbox.sqlite_child", str(path), "commands"]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear().startswith("open")

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def ask_until(self, line: str, wanted: str) -> None:
        """Again and again, until the answer begins so."""
        deadline = time.monotonic() + 20
        while not (answer := self.ask(line)).startswith(wanted):
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)

    def close(self) -> str:
        """End it in good order; its last word."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.hear()


@contextmanager
def child_of(path: Path, environment: dict[str, str] | None = None) -> Iterator[Child]:
    child = Child(path, environment)
    try:
        yield child
    finally:
        child.process.kill()
        child.process.wait()
        for pipe in (child.process.stdin, child.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


async def stored(path: Path) -> set[int]:
    async with opened(path) as store:
        return set(await claim_all(store))


@needs_fiu
@pytest.mark.parametrize(
    "points",
    [
        ["posix/io/sync/fsync", "posix/io/sync/fdatasync"],
        ["posix/io/rw/pwrite"],
        ["posix/io/rw/pwrite", "posix/io/sync/fsync", "posix/io/sync/fdatasync"],
    ],
    ids=["fsync", "pwrite", "both"],
)
async def test_a_failing_disk_refuses_and_recovers(tmp_path: Path, points: list[str]) -> None:
    """Every write or sync fails: nothing is acknowledged, nothing that was is lost, and it comes back."""
    path, control = tmp_path / "outbox.db", tmp_path / "control"
    preload = {"LD_PRELOAD": " ".join(map(str, PRELOADED)), "FIU_CTRL_FIFO": str(control)}
    with child_of(path, preload) as child:

        def tell_fiu(*commands: str) -> None:
            words = [word for command in commands for word in ("-c", command)]
            pid = str(child.process.pid)
            subprocess.run(["fiu-ctrl", "-f", str(control), *words, pid], check=True, timeout=20)

        assert child.ask("append 1 2") == "kept 1 2"
        assert child.ask("claim") == "given 1 2"
        tell_fiu(*(f"enable name={point},failinfo={EIO}" for point in points))
        assert child.ask("settle").startswith("OutboxError")
        for _ in range(3):
            assert child.ask("append 3 4").startswith("OutboxError")
        assert not child.ask("status").endswith("-")
        tell_fiu(*(f"disable name={point}" for point in points))
        child.ask_until("append 5 6", "kept")
        child.ask_until("settle", "settled 1 2")
        assert child.close() == "closed"
    there = await stored(path)
    assert {5, 6} <= there <= {3, 4, 5, 6}


async def test_a_file_that_may_not_grow_refuses_and_recovers(tmp_path: Path) -> None:
    """The system's limit of a file's size, which anybody may set: the same promise."""
    path = tmp_path / "outbox.db"
    with child_of(path) as child:
        assert child.ask("append 1 2") == "kept 1 2"
        size = max(one.stat().st_size for one in tmp_path.iterdir())
        _, hard = resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (size + 10_000, hard))
        kept = {1, 2}
        for number in range(3, 60):
            answer = child.ask(f"append {number}")
            if answer.startswith("kept"):
                kept.add(number)
        assert answer.startswith(("OutboxError", "StoreFull"))
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        child.ask_until("append 100", "kept")
        assert child.close() == "closed"
    there = await stored(path)
    assert kept | {100} <= there


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes in memory."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def append_until_full(store: SQLiteStore, first: int) -> list[int]:
    """Numbers that were kept before the store refused."""
    kept: list[int] = []
    for number in range(first, first + 5000):
        try:
            await store.append([record(number, size=3000)])
        except StoreFull:
            return kept
        kept.append(number)
    raise AssertionError("it never was full")


async def test_a_full_disk_refuses_and_recovers(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing acknowledged is lost; with space again it goes on by itself, also to settle."""
    monkeypatch.setattr(sqlite_thread, "LOOK_SECONDS", 0.02)
    path = small_disk / "outbox.db"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1 << 20))
    async with opened(path) as store:
        kept = await append_until_full(store, 0)
        assert len(kept) > 20
        assert "full" in store.status().failure
        filler.unlink()
        kept += await append_after_a_while(store, 10_000)
        assert store.status().failure == ""
        claims = await take(store, 10)
        await store.settle(delivered(*claims))
    there = await stored(path)
    assert there == set(kept[10:])


async def append_after_a_while(store: SQLiteStore, number: int) -> list[int]:
    deadline = time.monotonic() + 20
    while True:
        try:
            await store.append([record(number)])
        except OutboxError:
            assert time.monotonic() < deadline
            await store.find("")
            time.sleep(0.02)
        else:
            return [number]


async def test_a_disk_without_reserve_is_not_filled(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends end while `min_free_bytes` are free, so that claims and settlements have space left."""
    monkeypatch.setattr(sqlite_thread, "LOOK_SECONDS", 0.0)
    async with opened(small_disk / "outbox.db", min_free_bytes=1_000_000) as store:
        kept = await append_until_full(store, 0)
        free_bytes = store.status().free_bytes
        assert free_bytes is not None
        assert 800_000 < free_bytes < 1_000_000
        with pytest.raises(StoreFull, match="have to stay free"):
            await store.append([record(9999)])
        claims = await take(store)
        assert len(claims) == len(kept)
        await store.settle(delivered(*claims))


async def test_where_appends_have_no_space_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself says that it is full: appends are refused, claims and settlements are done."""

    def prepare_small(connection: sqlite3.Connection, synchronous: Synchronous) -> None:
        prepare(connection, synchronous)
        connection.execute("PRAGMA max_page_count = 60").fetchall()

    prepare = sqlite_schema.prepare
    monkeypatch.setattr(sqlite_recovery, "prepare", prepare_small)
    monkeypatch.setattr(sqlite_thread, "LOOK_SECONDS", 0.02)
    async with opened(tmp_path / "outbox.db"):
        pass
    async with opened(tmp_path / "outbox.db", max_receipts=0) as store:
        kept = await append_until_full(store, 0)
        assert len(kept) > 20
        assert store.status().errors == {"append": 1}
        claims = await take(store)
        assert len(claims) == len(kept)
        await store.settle(delivered(*claims))
        await append_after_a_while(store, 10_000)
    assert await stored(tmp_path / "outbox.db") == {10_000}
