"""The loads of `growth`: each opens a dispatcher and gives the CPU seconds that a message took.

Default settings, but for the room where more is to be held. Every load checks that all its messages were
delivered. Nothing here judges.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import time
import tracemalloc
from collections import deque
from itertools import cycle, islice
from typing import TYPE_CHECKING, Final

from benchmarks.rows_dispatcher import shares
from benchmarks.upstream import TOKEN
from dispatcher import Config, Dispatcher, Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dispatcher import Delivery

DESTINATION: Final = "https://example.com/hook"
HELD_BODY: Final = 200
BODY: Final = "x" * HELD_BODY
MESSAGES: Final = 100_000
WARM_UP: Final = 20_000
STEP: Final = 1_000
ROOM_BYTES: Final = 4_000_000_000
CHECKED_HELD: Final = 100_000


def opened(url: str, room: int = 10_000) -> Dispatcher:
    """A dispatcher with so much room."""
    queue = {"max_messages": room, "max_bytes": ROOM_BYTES}
    return Dispatcher(Config.load(env={}, token=TOKEN, url=url, queue=queue))


def messages(count: int, queues: Iterable[str | None] = (None,)) -> Iterator[Message]:
    """So many, in turn for these queues."""
    return (Message(DESTINATION, BODY, queue=queue) for queue in islice(cycle(queues), count))


async def streaming(url: str, count: int) -> float:
    """One stream of so many messages."""
    async with opened(url) as dispatcher:
        await _stream(dispatcher, WARM_UP)
        began = time.process_time()
        await _stream(dispatcher, count)
        return (time.process_time() - began) / count


async def _stream(dispatcher: Dispatcher, count: int) -> None:
    delivered = 0
    async for outcome in dispatcher.stream(messages(count)):
        delivered += isinstance(outcome, Receipt)
    _check(delivered, count)


async def producing(url: str, producers: int) -> float:
    """So many tasks that put their share of the messages and await all of it; the tasks wait at a gate.

    There is room for all, and all of it is put before any of it is awaited, whoever does it: neither what
    waiting for room costs nor how many are held shall depend on the number of producers.
    """
    async with opened(url, room=2 * MESSAGES) as dispatcher:
        await _stream(dispatcher, WARM_UP)
        gate = asyncio.Event()
        tasks = [
            asyncio.create_task(_produce(dispatcher, gate, share)) for share in shares(MESSAGES, producers)
        ]
        await asyncio.sleep(0)  # they have come to the gate
        began = time.process_time()
        gate.set()
        _check(sum(await asyncio.gather(*tasks)), MESSAGES)
        return (time.process_time() - began) / MESSAGES


async def _produce(dispatcher: Dispatcher, gate: asyncio.Event, share: int) -> int:
    await gate.wait()
    return await _flow(dispatcher, messages(share), deque(), share)


async def queueing(url: str, queues: int) -> float:
    """The messages in turn for so many FIFO queues; each of them is used before."""
    names = [f"queue-{number}" for number in range(queues)]
    async with opened(url, room=20_000) as dispatcher:
        await _flow(dispatcher, messages(max(queues, WARM_UP), names), deque(), 10_000)
        began = time.process_time()
        _check(await _flow(dispatcher, messages(MESSAGES, names), deque(), 10_000), MESSAGES)
        return (time.process_time() - began) / MESSAGES


async def holding(url: str, held: int) -> float:
    """With so many messages held all the time: one is put for each that is delivered.

    They are put in one turn of the loop, so that none leaves meanwhile, and then taken out of the collector's
    sight, as a program with so many objects would do.
    """
    async with opened(url, room=held + STEP) as dispatcher:
        await _stream(dispatcher, WARM_UP)
        waiting = deque([dispatcher.put_nowait(message) for message in messages(held)])
        assert dispatcher.statistics().held == held  # asking tells the core of them: that is not timed
        gc.collect()
        gc.freeze()
        began = time.process_time()
        await _flow(dispatcher, messages(MESSAGES), waiting, held, is_drained=False)
        spent = time.process_time() - began
        _check(await _awaited(waiting, len(waiting)), held)
        return spent / MESSAGES


async def _flow(
    dispatcher: Dispatcher,
    source: Iterator[Message],
    waiting: deque[Delivery],
    most: int,
    *,
    is_drained: bool = True,
) -> int:
    """Put messages, awaiting the oldest whenever `most` wait; how many were delivered."""
    delivered = 0
    step = min(STEP, most)
    while some := list(islice(source, step)):
        if len(waiting) + len(some) > most:
            delivered += await _awaited(waiting, len(some))
        waiting.extend([await dispatcher.put(message) for message in some])
    return delivered + (await _awaited(waiting, len(waiting)) if is_drained else 0)


async def _awaited(waiting: deque[Delivery], count: int) -> int:
    return sum([(await waiting.popleft()).message_id is not None for _ in range(count)])


async def bytes_a_held_message(url: str) -> tuple[float, float]:
    """Bytes that stay allocated for each held message beyond its encoded item, and that item's size.

    The messages are the caller's and made before; so is the list of deliveries, which keeps no more than the
    dispatcher does.
    """
    async with opened(url, room=2 * CHECKED_HELD) as dispatcher:
        await _stream(dispatcher, WARM_UP)
        mine = list(messages(CHECKED_HELD))
        kept: list[Delivery | None] = [None] * CHECKED_HELD
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number, message in enumerate(mine):
            kept[number] = dispatcher.put_nowait(message)
        taken = (tracemalloc.get_traced_memory()[0] - before) / CHECKED_HELD
        tracemalloc.stop()
        encoded = sum([len(delivery.data) for delivery in kept if delivery is not None]) / CHECKED_HELD
        await dispatcher.flush()
    return taken - encoded, encoded


class CountingSelector(selectors.DefaultSelector):
    """Counts how often its loop goes to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Once for each turn of the loop."""
        self.sleeps += 1
        return super().select(timeout)


def idle_wakeups(url: str, seconds: float) -> int:
    """Turns of an asyncio loop with an idle dispatcher in it, beyond those of the same loop without."""
    return _turns(lambda: opened(url), seconds) - _turns(None, min(seconds, 1.0))


def _turns(make: Callable[[], Dispatcher] | None, seconds: float) -> int:
    selector = CountingSelector()

    async def sleep() -> int:
        before = selector.sleeps
        await asyncio.sleep(seconds)
        return selector.sleeps - before

    async def live() -> int:
        if make is None:
            return await sleep()
        async with make() as dispatcher:
            await _stream(dispatcher, STEP)
            await asyncio.sleep(0.5)  # what the last replies left to do is done
            return await sleep()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(live())


def _check(delivered: int, due: int) -> None:
    if delivered != due:
        raise RuntimeError(f"{delivered:,} messages were delivered, {due:,} were due")
