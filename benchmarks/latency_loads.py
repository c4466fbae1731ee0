"""The loads of `latency`: `send` at a rate that nothing holds back, `send` and `send_many` at full load.

Default settings, metrics registered. Every load checks that all its messages were delivered. The open loop is
`dispatcher bench`'s own generator with another target: each message is a task that awaits `send`, as in a
program that serves requests, and its latency counts from its intended start. Nothing here judges.
"""

from __future__ import annotations

import asyncio
import gc
import math
import resource
import time
from array import array
from contextlib import asynccontextmanager
from itertools import count, islice
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from prometheus_client import CollectorRegistry

from benchmarks.callbacks import Collections
from benchmarks.rows import DESTINATION
from benchmarks.rows_dispatcher import PRODUCERS, shares
from benchmarks.upstream import TOKEN
from benchmarks.upstream_process import report, spent
from dispatcher import Config, Dispatcher, DispatcherError, Message, Receipt
from dispatcher.bench.generator import Stop, run_load
from dispatcher.bench.histogram import LogHistogram
from dispatcher.bench.messages import Mix
from dispatcher.bench.recorder import Gauges
from dispatcher.bench.schedule import constant
from dispatcher.bench.targets import TURN_MESSAGES
from dispatcher.metrics import register

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from benchmarks.callbacks import Watch
    from dispatcher.bench.generator import Work
    from dispatcher.bench.recorder import Recorder

    Full = Callable[[Dispatcher, int], Awaitable[None]]

BODY: Final = "x" * 200
WARM_UP: Final = 20_000
"""Messages: connections are opened, caches filled, the limit found."""
DRAIN_SECONDS: Final = 10.0
TICK_SECONDS: Final = 0.005
SENDERS: Final = ("_produce", "_send_many")
"""What only calls the dispatcher: see `Watch`."""


class Latencies(Struct, frozen=True):
    """One open-loop run, in seconds but for the rates."""

    rate: float
    """Asked for, messages a second."""
    capacity: float
    """Of `send` in a closed loop just before."""
    p50: float
    p90: float
    p99: float
    most: float
    """All from the intended start to the receipt."""
    lag_p99: float
    """Of that, from the intended start to the start: the generator's own."""
    busy: float
    """Share of its core that this process used."""
    preempted: int
    """How often the kernel took the core away."""
    collections: int
    collection_most: float
    """CPU time of the longest garbage collection."""
    fill: float
    """Messages a request."""
    upstream_idle: float


class Lateness(Struct, frozen=True):
    """What a full load did to the rest of the loop, in seconds."""

    p50: float
    most: float
    """How late a timer of 5 ms was: with all that ran in the loop before it, a turn's length."""
    rate: float
    """Messages a second, watched."""


class SendTarget:
    """Awaits `send` for each message that is due, in a task of its own.

    At half the capacity the generator has half the core for itself: so latencies are only put down here, and
    not sorted into the recorder's histograms.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.latencies = array("d")
        """Seconds from the intended start to the receipt."""
        self._dispatcher = dispatcher
        self._open: dict[int, tuple[float, asyncio.Task[None]]] = {}
        self._is_settled = asyncio.Event()

    async def serve(self, work: Work, recorder: Recorder) -> None:
        """Start all of them, and wait for every outcome."""
        loop, due, messages, running = asyncio.get_running_loop(), work.due, work.messages, self._open
        numbers = count()
        while due or await work.more():
            for number in islice(numbers, min(TURN_MESSAGES, len(due))):
                intended = due.popleft().intended
                sending = self._send(next(messages), intended, number, recorder)
                running[number] = intended, loop.create_task(sending)
            if due:
                await asyncio.sleep(0)
        while running:
            self._is_settled.clear()
            await self._is_settled.wait()

    async def _send(self, message: Message, intended: float, number: int, recorder: Recorder) -> None:
        try:
            await self._dispatcher.send(message)
            self.latencies.append(time.perf_counter() - intended)
        except DispatcherError as error:
            recorder.fail(type(error).__name__, time.perf_counter())
        del self._open[number]
        if not self._open:
            self._is_settled.set()

    def gauges(self) -> Gauges:
        """None: nobody looks."""
        return Gauges()

    def unfinished(self) -> Iterable[float]:
        """Intended starts of what has no outcome."""
        return [intended for intended, _ in self._open.values()]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Dispatcher]:
    """A dispatcher with default settings and metrics."""
    async with Dispatcher(Config.load(env={}, token=TOKEN, url=url)) as dispatcher:
        register(dispatcher, CollectorRegistry())
        yield dispatcher


async def sending(dispatcher: Dispatcher, messages: int) -> None:
    """Full load of `send`: 4,000 tasks, each of which awaits a receipt before it sends its next message."""
    tasks = [asyncio.create_task(_produce(dispatcher, share)) for share in shares(messages, PRODUCERS)]
    await asyncio.wait(tasks)
    _check(sum([task.result() for task in tasks]), messages)


async def _produce(dispatcher: Dispatcher, share: int) -> int:
    for _ in range(share):
        await dispatcher.send(Message(DESTINATION, BODY))
    return share


async def in_tasks(dispatcher: Dispatcher, messages: int) -> None:
    """The same with a task for each message, as the open loop has it: 4,000 at once, then the next ones."""
    for share in shares(messages, -(-messages // PRODUCERS)):
        _check(sum(await asyncio.gather(*(_produce(dispatcher, 1) for _ in range(share)))), share)


async def sending_many(dispatcher: Dispatcher, messages: int) -> None:
    """Full load of `send_many`: one call, whose list of messages is made before."""
    made = [Message(DESTINATION, BODY) for _ in range(messages)]
    outcomes = await asyncio.create_task(_send_many(dispatcher, made))
    _check(sum([isinstance(outcome, Receipt) for outcome in outcomes]), messages)


async def _send_many(dispatcher: Dispatcher, messages: list[Message]) -> list[Receipt | DispatcherError]:
    return await dispatcher.send_many(messages)


FULL_LOADS: Final[dict[str, Full]] = {"send": sending, "send_many": sending_many}


async def at_rate(
    url: str, rate: float | None, seconds: float, measured: int, *, is_frozen: bool = False
) -> Latencies:
    """`send` in an open loop, Poisson.

    Args:
        rate: Messages a second; without one half of what `send` reaches before in tasks of the same kind.
        measured: Messages of that.
        is_frozen: What is there before is out of the collector's sight, as programs may have it.
    """
    async with opened(url) as dispatcher:
        await in_tasks(dispatcher, WARM_UP)
        settle_heap(is_frozen=is_frozen)
        began = time.perf_counter()
        await in_tasks(dispatcher, measured)
        capacity = measured / (time.perf_counter() - began)
        settle_heap(is_frozen=is_frozen)
        return await _open_loop(url, dispatcher, rate or capacity / 2, capacity, seconds)


def settle_heap(*, is_frozen: bool) -> None:
    """Leave no garbage of before to what is measured; the caller unfreezes."""
    gc.collect()
    if is_frozen:
        gc.freeze()


async def _open_loop(
    url: str, dispatcher: Dispatcher, rate: float, capacity: float, seconds: float
) -> Latencies:
    schedule = constant(rate, seconds, is_poisson=True, seed=int(rate))
    before, switches = report(url), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    cpu, began = time.process_time(), time.perf_counter()
    target = SendTarget(dispatcher)
    collections = Collections()
    with collections.watched():
        recorder = await run_load(schedule, Mix(), target, Stop(), drain_within=DRAIN_SECONDS)
    busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    upstream = spent(before, report(url))
    if not recorder.due:
        raise RuntimeError(f"no message was due: {seconds:g} s at {rate:g} a second are too few")
    _check(len(target.latencies), recorder.due)
    p50, p90, p99, most = quantiles(target.latencies, 0.5, 0.9, 0.99, 1.0)
    return Latencies(
        *(rate, capacity, p50, p90, p99, most),
        lag_p99=recorder.lag.quantile(0.99),
        busy=busy,
        preempted=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches,
        collections=len(collections.cpu),
        collection_most=max(collections.cpu, default=0.0),
        fill=upstream.messages / upstream.requests,
        upstream_idle=upstream.idle,
    )


async def at_full_load(url: str, load: Full, messages: int, watch: Watch) -> Lateness:
    """One full load, its callbacks watched; not those that open and close the dispatcher."""
    async with opened(url) as dispatcher:
        await load(dispatcher, WARM_UP)
        gc.collect()
        late = LogHistogram()
        ticker = asyncio.create_task(_tick(late))
        began = time.perf_counter()
        with watch.on():
            await load(dispatcher, messages)
        rate = messages / (time.perf_counter() - began)
        ticker.cancel()
        return Lateness(late.quantile(0.5), late.greatest, rate)


def quantiles(values: Iterable[float], *shares: float) -> list[float]:
    """For each share the value that it of all does not exceed."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)] for share in shares]


async def _tick(late: LogHistogram) -> None:
    while True:
        due_at = time.perf_counter() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        late.record(time.perf_counter() - due_at)


def _check(delivered: int, due: int) -> None:
    if delivered != due:
        raise RuntimeError(f"{delivered:,} messages were delivered, {due:,} were due")
