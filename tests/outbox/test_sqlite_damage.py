"""Files that were cut off or have flipped bits: reported, the rest rescued, the bad part kept aside."""

from __future__ import annotations

import logging
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from dispatcher.errors import OutboxError
from dispatcher.outbox import sqlite_recovery, sqlite_schema, sqlite_thread
from dispatcher.outbox.sqlite_schema import PAGE_BYTES, log_path
from tests.outbox.conformance import NOW, RECEIPT, numbers, record, records, take
from tests.outbox.sqlite_support import FRESH, aside, claim_all, fill, flip, opened, pages_of_kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

INNER_TABLE, LEAF_TABLE, INNER_INDEX, LEAF_INDEX = 5, 13, 2, 10
UNSETTLED = {*range(200, 1000), *FRESH}


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "outbox.db"
    await fill(path)
    assert not log_path(path).exists()
    return path


def flip_data(path: Path) -> set[int]:
    """A bit of one message's data."""
    flip(path, path.read_bytes().index(b"1500......"))
    return {1500}


def flip_id(path: Path) -> set[int]:
    """A bit of one message's id, in its row."""
    data = path.read_bytes()
    flip(path, data.rindex(b"out_00001500", 0, data.index(b"1500......")) + 11)
    return {1500}


def break_leaf(path: Path) -> set[int]:
    """The count of cells on a leaf, so that what stands there cannot be found."""
    data = path.read_bytes()
    page = data.index(b"1500......") // PAGE_BYTES * PAGE_BYTES
    flip(path, page + 3, 0xFF)
    leaf = data[page : page + PAGE_BYTES]
    return {number for number in range(2000) if b"%d......" % number in leaf and number >= 1000}


def break_tree(path: Path) -> set[int]:
    """Every inner page of a table: the leaves are whole, but nothing leads to them."""
    pages = pages_of_kind(path.read_bytes(), INNER_TABLE)
    assert pages
    for page in pages:
        flip(path, page, 0x50)
    return set()


def break_index(path: Path) -> set[int]:
    """A leaf of an index."""
    flip(path, pages_of_kind(path.read_bytes(), LEAF_INDEX)[-1] + 3, 0xFF)
    return set()


def flip_magic(path: Path) -> set[int]:
    """A bit of the first bytes, by which anyone knows a file of SQLite."""
    flip(path, 3)
    return set()


def flip_application(path: Path) -> set[int]:
    """A bit of the number by which we know our own."""
    flip(path, 70)
    return set()


def flip_schema(path: Path) -> set[int]:
    """A bit in the text that says which tables there are."""
    flip(path, path.read_bytes().index(b"CREATE TABLE messages"))
    return set()


def clear_first_page(path: Path) -> set[int]:
    """All of the first page is gone."""
    path.write_bytes(bytes(PAGE_BYTES) + path.read_bytes()[PAGE_BYTES:])
    return set()


def cut_off(path: Path) -> set[int]:
    """The file's second half is gone."""
    data = path.read_bytes()
    half = data[: len(data) // 2 + 100]
    path.write_bytes(half)
    there = {int(found) for found in re.findall(rb"(?<!\d)(\d+)\.{60}", half)}
    old = {957, 1561, 1817}  # their data stands there as well, on a page that has been split since
    return UNSETTLED - there | old


DAMAGES = [
    *(flip_data, flip_id, break_leaf, break_tree, break_index),
    *(flip_magic, flip_application, flip_schema, clear_first_page, cut_off),
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_the_rest_is_rescued(
    path: Path, damage: Callable[[Path], set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """All but what stood on the broken place is there, the file is kept as it was, and everybody is told."""
    lost = damage(path)
    bad = path.read_bytes()
    with caplog.at_level(logging.ERROR, "dispatcher"):
        async with opened(path) as store:
            status = store.status()
            found = await claim_all(store)
            assert len(UNSETTLED) // 3 < len(found)
            missing = UNSETTLED - found.keys()
            assert missing <= lost
            assert found.keys() <= UNSETTLED
            assert bool(missing) == bool(status.damaged)
            await store.append(records(9999))
            assert [one.record for one in await take(store)] == records(9999)
    (kept,) = aside(path)
    assert kept.read_bytes() == bad
    assert "rescued" in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600
    async with opened(path) as again:
        assert again.status().recovered == len(found) + 1
    assert len(aside(path)) == 1
    assert not list(path.parent.glob("*.rescu*")) + list(path.parent.glob("*.image*"))


async def test_states_are_rescued(path: Path) -> None:
    """Receipts, dead letters, what was given back, and since when something may have been sent."""
    flip_data(path)
    async with opened(path) as store:
        assert (store.status().waiting, store.status().dead, store.status().damaged) == (1799, 100, 1)
        found = await store.find("out_00000050")
        assert found is not None
        assert (found.state, found.receipt) == ("delivered", RECEIPT)
        assert len(await store.dead_letters(limit=1000)) == 100
        claims = await claim_all(store)
        assert [claims[number].returns for number in (250, 700, 1200)] == [1, 0, 0]
        assert [claims[number].sent_since for number in (250, 700, 1200)] == [None, NOW, None]


async def test_where_claims_are_unknown_anything_may_have_been_sent(path: Path, tmp_path: Path) -> None:
    """The runs of claimed rows cannot be read: fresh ones are taken for sent since their acceptance."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with opened(path) as store:
        await claim_all(store)
        await store.find("")
        for one in (path, log_path(path)):
            shutil.copyfile(one, crashed / one.name)
    copy = crashed / path.name
    data = log_path(copy).read_bytes()
    assert data
    async with opened(copy, synchronous="off"):
        pass  # what the log holds is in the file now, and the runs have become states
    flip_data(copy)
    async with opened(copy) as store:
        claims = await claim_all(store)
        assert {claim.sent_since for number, claim in claims.items() if number >= 1000} == {NOW}


async def test_a_flipped_bit_in_the_log_is_found(path: Path, tmp_path: Path) -> None:
    """SQLite would take it for the log's end, and forget what was acknowledged behind it."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with opened(path) as store:
        for number in range(3000, 3200):
            await store.append([record(number, size=300)])
        for one in (path, log_path(path)):
            shutil.copyfile(one, crashed / one.name)
    copy = crashed / path.name
    log = log_path(copy).read_bytes()
    flip(log_path(copy), log.index(b"3100......"))
    bad = log_path(copy).read_bytes()
    async with opened(copy) as store:
        found = await claim_all(store)
        assert {*UNSETTLED, *range(3000, 3200)} - found.keys() <= {3100}
    (kept,) = aside(copy)
    assert log_path(kept).read_bytes() == bad


async def test_a_log_that_was_cut_off_is_no_damage(path: Path, tmp_path: Path) -> None:
    """The process was killed amid a write: what was acknowledged is there, and nothing is reported."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with opened(path) as store:
        await store.append(records(3000))
        await store.append(records(3001))
        for one in (path, log_path(path)):
            shutil.copyfile(one, crashed / one.name)
    copy = crashed / path.name
    log = log_path(copy).read_bytes()
    log_path(copy).write_bytes(log[:-1000])
    async with opened(copy) as store:
        assert 3000 in await claim_all(store)
        assert store.status().damaged == 0
    assert not aside(copy)


async def test_a_large_file_finds_damage_where_it_meets_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read at the start: a bad row is put aside at its claim, and the others are given."""
    monkeypatch.setattr(sqlite_recovery, "CHECKED_BYTES_MAX", 0)
    flip_data(path)
    async with opened(path) as store:
        assert store.status().damaged == 0
        found = await claim_all(store)
        assert UNSETTLED - found.keys() == {1500}
        await store.find("")
        assert (store.status().damaged, store.status().waiting) == (1, 0)
    assert not aside(path)


async def test_a_broken_page_that_is_met_later_is_rescued_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that meets it fails; the file is opened anew, rescued, and goes on with what is claimed."""
    monkeypatch.setattr(sqlite_recovery, "CHECKED_BYTES_MAX", 0)
    monkeypatch.setattr(sqlite_schema, "CACHE_KIB", 8)
    monkeypatch.setattr(sqlite_thread, "LOOK_SECONDS", 0.01)
    async with opened(path) as store:
        lost = break_leaf(path)
        given: list[int] = []
        with pytest.raises(OutboxError, match="malformed"):  # noqa: PT012 - one of them meets the page
            while True:
                given += numbers(await take(store, 100))
        await store.wait(NOW)
        given += await claim_all(store)
        assert len(given) == len(set(given))
        assert UNSETTLED - set(given) <= lost
        assert store.status().claimed == len(given)
    assert len(aside(path)) == 1


async def test_a_rescue_that_was_killed_is_taken_up_again(path: Path) -> None:
    """The rescued file was finished, and is not yet in its place: the next opening puts it there."""
    other = path.with_name("other.db")
    async with opened(other) as store:
        await store.append(records(1))
    other.rename(path.with_name("outbox.db.rescued"))
    log_path(path).write_bytes(b"the log of the damaged file")
    bad = path.read_bytes()
    async with opened(path) as store:
        assert list(await claim_all(store)) == [1]
    (kept,) = aside(path)
    assert (kept.read_bytes(), log_path(kept).read_bytes()) == (bad, b"the log of the damaged file")


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + bytes(200), b"#!/bin/sh\n", b"x" * 10_000])
async def test_another_programs_file_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    """Neither written nor renamed, however often it is tried."""
    path = tmp_path / "theirs"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(OutboxError, match="another program's file"):
            async with opened(path):
                raise AssertionError
    assert path.read_bytes() == content
    assert sorted(one.name for one in tmp_path.iterdir()) == ["theirs", "theirs.lock"]


async def test_a_later_version_is_refused_untouched(path: Path) -> None:
    """The number of its schema is above ours."""
    data = bytearray(path.read_bytes())
    data[60:64] = (2).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(OutboxError, match="version 2"):
        async with opened(path):
            raise AssertionError
    assert path.read_bytes() == data
