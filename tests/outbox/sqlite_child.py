"""A program that appends, claims and settles, and prints what was acknowledged: to be killed, or spoiled.

    python -m tests.outbox.sqlite_child FILE MODE [FIRST_LANE [SYNCHRONOUS]]

`append`: batches of messages until it is ended, a line of ids for each that was acknowledged. `relay`: the
same, and claims and settles beside it. `early`: answers before the commit, as no store may. `commands`: does
what its standard input says, a line for a line.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, cast

from dispatcher.errors import OutboxError
from dispatcher.outbox import sqlite_thread
from dispatcher.outbox.sqlite import SQLiteStore
from tests.outbox.conformance import delivered, numbers, record, take

if TYPE_CHECKING:
    from dispatcher.outbox.sqlite_schema import Synchronous

BATCH = 7


def tell(*words: object) -> None:
    """One line, at once, in one write."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def append(store: SQLiteStore, lane: int, *, is_early: bool = False) -> None:
    for batch in count():
        ids = [lane * 1_000_000 + batch * BATCH + at for at in range(BATCH)]
        kept = asyncio.ensure_future(store.append([record(number, size=300) for number in ids]))
        if is_early:
            await asyncio.sleep(0)
            tell("kept", *ids)
        await kept
        if not is_early:
            tell("kept", *ids)


async def relay(store: SQLiteStore) -> None:
    while True:
        claims = await take(store, 20)
        tell("given", *numbers(claims))
        await store.settle(delivered(*claims[::2]))
        tell("settled", *numbers(claims[::2]))


async def obey(store: SQLiteStore) -> None:
    """`append N`, `claim`, `status`, `close`; what it did, or the error's name and words."""
    loop = asyncio.get_running_loop()
    claimed = []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        word, *rest = line.split()
        try:
            if word == "append":
                await store.append([record(int(number), size=3000) for number in rest])
                tell("kept", *rest)
            elif word == "claim":
                claimed += await take(store)
                tell("given", *numbers(claimed))
            elif word == "settle":
                await store.settle(delivered(*claimed))
                tell("settled", *numbers(claimed))
            else:
                status = store.status()
                tell("status", status.commits, status.failure or "-")
        except OutboxError as error:
            tell(type(error).__name__, error)


async def main(path: str, mode: str, lanes: str = "0", synchronous: str = "full") -> None:
    vars(sqlite_thread)["LOOK_SECONDS"] = 0.05
    store = SQLiteStore(path, min_free_bytes=0, synchronous=cast("Synchronous", synchronous))
    tell("open", (await store.open()).recovered)
    if mode == "commands":
        await obey(store)
        await store.aclose()
        tell("closed")
        return
    tasks = [append(store, lane, is_early=mode == "early") for lane in range(int(lanes), int(lanes) + 3)]
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, *([relay(store)] if mode == "relay" else []))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
