"""What the tests of the file share: a store with some of everything in it, and looks at its file."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.outbox.sqlite_schema import PAGE_BYTES
from tests.outbox.conformance import NOW, dead, delivered, numbers, record, returned, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dispatcher.outbox.store import Claim

FRESH = range(1000, 2000)
"""Messages of the filled store that were never claimed."""


@asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncIterator[SQLiteStore]:
    """A store that is open inside, and closed behind."""
    store = SQLiteStore(path, **{"min_free_bytes": 0, **settings})
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def fill(path: Path) -> None:
    """Numbers 0…99 delivered, 100…199 dead, 200…299 given back, 300…999 claimed, the rest fresh."""
    async with opened(path) as store:
        for first in range(0, 2000, 500):
            await store.append([record(number, size=300) for number in range(first, first + 500)])
        claims = await take(store, 1000)
        await store.settle([*delivered(*claims[:100]), *dead(*claims[100:200])])
        await store.settle(returned(*claims[200:300], due=NOW))


async def claim_all(store: SQLiteStore) -> dict[int, Claim]:
    """Everything that can be claimed now, by number; its data is right."""
    found: dict[int, Claim] = {}
    while claims := await take(store, 300):
        found.update(zip(numbers(claims), claims, strict=True))
    return found


def pages_of_kind(data: bytes, kind: int) -> list[int]:
    """Offsets of the pages that are of this kind: 2, 10 of an index; 5, 13 of a table; inner, leaf."""
    return [at for at in range(PAGE_BYTES, len(data), PAGE_BYTES) if data[at] == kind]


def flip(path: Path, offset: int, bits: int = 1) -> None:
    """Turn bits of one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= bits
    path.write_bytes(data)


def aside(path: Path) -> list[Path]:
    """The damaged files that are kept, without their logs."""
    return sorted(one for one in path.parent.glob(f"{path.name}.damaged-*") if one.name.endswith("Z"))
