"""The rows of this project: each way to hand messages in, with everything on.

Everything on is: a deduplication id for each message, room bounded by count and bytes, a deadline for each
message, retries possible, metrics registered. Settings are the defaults, but for the batch's size (and the
bounds in bytes, so that they do not cut batches of large bodies short). Imported by the process that times.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from benchmarks.rows import DESTINATION, Driver
from dispatcher import BlockingDispatcher, Config, Dispatcher, Message, QueueFull, Receipt
from dispatcher.metrics import register

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from benchmarks.rows import Job
    from dispatcher import Delivery

    Work = Callable[[Dispatcher, str, int], Awaitable[int]]

PRODUCERS: Final = 4_000
THREADS: Final = 50
PUT_IN_A_ROW: Final = 1_000
PUT_AHEAD: Final = 4
"""Rows of puts whose deliveries are not awaited yet."""


def config_of(job: Job) -> Config:
    """Default settings, with batches as large as the job says."""
    size = job.configuration.batch
    return Config.load(
        env={},
        token=job.token,
        url=job.url,
        batch={"max_messages": size, "max_bytes": 100_000_000},
        queue={"max_messages": max(10_000, 100 * size), "max_bytes": 1_000_000_000},
        transport={"ca_file": job.ca_file},
    )


def shares(count: int, workers: int) -> list[int]:
    """A number of messages shared out as evenly as it goes; nobody gets none."""
    each, rest = divmod(count, workers)
    return [one for one in (each + (number < rest) for number in range(workers)) if one]


@asynccontextmanager
async def _opened(job: Job, work: Work) -> AsyncIterator[Driver]:
    async with Dispatcher(config_of(job)) as dispatcher:
        register(dispatcher, CollectorRegistry())
        yield Driver(partial(work, dispatcher, job.body))


def _messages(body: str, count: int) -> Iterator[Message]:
    return (Message(DESTINATION, body) for _ in range(count))


def send(job: Job) -> AbstractAsyncContextManager[Driver]:
    """4,000 tasks, each of which awaits one receipt before it sends its next message."""
    return _opened(job, _send)


async def _send(dispatcher: Dispatcher, body: str, count: int) -> int:
    async def produce(share: int) -> int:
        confirmed = 0
        for _ in range(share):
            receipt = await dispatcher.send(Message(DESTINATION, body))
            confirmed += receipt.message_id is not None
        return confirmed

    return sum(await asyncio.gather(*map(produce, shares(count, PRODUCERS))))


def put(job: Job) -> AbstractAsyncContextManager[Driver]:
    """One task that puts without waiting, and awaits every delivery a few thousand messages later."""
    return _opened(job, _put)


async def _put(dispatcher: Dispatcher, body: str, count: int) -> int:
    confirmed = 0
    ahead: deque[list[Delivery]] = deque()
    for share in shares(count, max(1, count // PUT_IN_A_ROW)):
        ahead.append([])
        for _ in range(share):
            try:
                delivery = dispatcher.put_nowait(Message(DESTINATION, body))
            except QueueFull:  # never with the room there is; a program would do this
                delivery = await dispatcher.put(Message(DESTINATION, body))
            ahead[-1].append(delivery)
        if len(ahead) >= PUT_AHEAD:
            confirmed += await _awaited(ahead.popleft())
    for deliveries in ahead:
        confirmed += await _awaited(deliveries)
    return confirmed


async def _awaited(deliveries: list[Delivery]) -> int:
    return sum([(await delivery).message_id is not None for delivery in deliveries])


def many(job: Job) -> AbstractAsyncContextManager[Driver]:
    """One call of `send_many` with all of them, from a generator."""
    return _opened(job, _many)


async def _many(dispatcher: Dispatcher, body: str, count: int) -> int:
    outcomes = await dispatcher.send_many(_messages(body, count))
    return sum([isinstance(outcome, Receipt) for outcome in outcomes])


def streamed(job: Job) -> AbstractAsyncContextManager[Driver]:
    """One `stream` over all of them."""
    return _opened(job, _streamed)


async def _streamed(dispatcher: Dispatcher, body: str, count: int) -> int:
    confirmed = 0
    async for outcome in dispatcher.stream(_messages(body, count)):
        confirmed += isinstance(outcome, Receipt)
    return confirmed


@asynccontextmanager
async def blocking(job: Job) -> AsyncIterator[Driver]:
    """50 threads; each puts its share and then waits for each result. The loop only waits for them."""
    if job.loop == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # its thread makes a loop by the policy
    loop = asyncio.get_running_loop()
    with BlockingDispatcher(config_of(job)) as dispatcher, ThreadPoolExecutor(THREADS) as pool:
        register(dispatcher, CollectorRegistry())

        def work(share: int) -> int:
            deliveries = [dispatcher.put(message) for message in _messages(job.body, share)]
            return sum([delivery.result().message_id is not None for delivery in deliveries])

        async def run(count: int) -> int:
            parts = [loop.run_in_executor(pool, work, share) for share in shares(count, THREADS)]
            return sum(await asyncio.gather(*parts))

        yield Driver(run)
