"""A program with an outbox in a file, as an application has one: to be killed at any moment, and begun again.

    python -m tests.outbox.kill_child FILE URL TOKEN MODE ROUND

`accept`: three producers hand in, with and without queues, until there is enough or SIGTERM comes, a line for
what was acknowledged; what the file holds is sent all the while. `early`: the same over a store that answers
before the commit, as none may. `drain`: hands nothing in, and ends when everything has settled.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from typing import TYPE_CHECKING, Any

from dispatcher import Config, Dispatcher, Message
from dispatcher.outbox import Outbox, SQLiteStore, judging
from tests.outbox.sqlite_child import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.outbox.store import Mark, Record

URL = "https://example.com/hook"
POISON = "poison"
POISON_EVERY = 151
LANES = ("one", "two", None)
MESSAGES_A_LANE = 600
BATCH = 9
PAUSE_SECONDS = 0.008
"""Between batches, at most: handing in lasts about as long as a life does."""
SLOW_SECONDS = 0.05
"""Of a commit of the store that does not wait for it."""
RETRIES = {"base": 0.02, "throttle_base": 0.02, "max_delay": 0.2}


class EarlyStore(SQLiteStore):
    """Says that something is kept when it has only been asked for; its disk is a slow one."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self._late: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def append(self, records: Sequence[Record], mark: Mark | None = None) -> None:
        task = asyncio.create_task(self._append_late(records, mark))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _append_late(self, records: Sequence[Record], mark: Mark | None) -> None:
        async with self._turn:
            await asyncio.sleep(SLOW_SECONDS)
            await super().append(records, mark)

    async def aclose(self) -> None:
        if self._late:
            await asyncio.wait(self._late)
        await super().aclose()


def bodies(round_: int, lane: str | None) -> list[str]:
    """What one producer hands in, in its order; each says where it belongs, and some are poisoned."""
    return [
        f"{lane} {round_:05} {number:05}" + (f" {POISON}" if number % POISON_EVERY == 17 else "")
        for number in range(MESSAGES_A_LANE)
    ]


async def produce(outbox: Outbox, round_: int, lane: str | None, stop: asyncio.Event) -> None:
    """Hand in, each batch after the one before was acknowledged."""
    left = bodies(round_, lane)
    while left and not stop.is_set():
        some, left = left[:BATCH], left[BATCH:]
        stored = await outbox.put_many([Message(URL, body=body, queue=lane) for body in some])
        for body, one in zip(some, stored, strict=True):
            if isinstance(one, Exception):
                raise one
            tell("kept", one.id, body)
        await asyncio.sleep(random.uniform(0.0, PAUSE_SECONDS))


async def drained(outbox: Outbox) -> None:
    """Return once nothing waits and nothing is under way; says so as it becomes less."""
    told = left = sys.maxsize
    while left:
        await asyncio.sleep(0.02)
        status = outbox.status()
        left = status.waiting + status.claimed
        if left < told - 1000:
            told = left
            tell("left", left)


async def work(outbox: Outbox, mode: str, round_: int) -> None:
    """Until SIGTERM, or until all is settled."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tell("open", outbox.status().recovered)
    if mode == "drain":
        await drained(outbox)
        return
    async with asyncio.TaskGroup() as tasks:
        for lane in LANES:
            tasks.create_task(produce(outbox, round_, lane, stop))
    await stop.wait()
    tell("closing")


async def main(path: str, url: str, token: str, mode: str, round_: str) -> None:
    # What comes back from a short outage is not to wait for minutes here.
    vars(judging).update(RETURN_SECONDS=0.2, RETURN_SECONDS_MAX=1.0)
    kind = EarlyStore if mode == "early" else SQLiteStore
    store = kind(path, min_free_bytes=0, max_receipts=200)
    config = Config.load(env={}, token=token, url=url, retry=RETRIES, drain_within=10.0)
    async with Dispatcher(config) as dispatcher, Outbox(store, dispatcher) as outbox:
        await work(outbox, mode, int(round_))
    tell("closed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
