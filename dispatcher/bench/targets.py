"""What a load is put on: a dispatcher in this process, or anything that speaks the service's dialect.

`LibraryTarget` puts messages as a program would, waits for room in their order, and hears of each outcome as
one that awaits it would. `http` has the other one. Neither decides when a message starts. Made by the
command.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from dispatcher.bench.histogram import BOUNDS
from dispatcher.bench.recorder import Gauges
from dispatcher.core.tally import Histogram
from dispatcher.errors import AdmissionError, MessageRejected, QueueFull
from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.bench.generator import Work
    from dispatcher.bench.recorder import Recorder
    from dispatcher.core.batch import Failure, Reply
    from dispatcher.delivery import Delivery
    from dispatcher.dispatcher import Dispatcher
    from dispatcher.message import Message
    from dispatcher.transport import Transport

TURN_MESSAGES: Final = 64
"""Admitted in one turn of the loop: more would keep answers from being read."""


class Stopwatch:
    """A transport that times the requests of another one."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.requests = Histogram(BOUNDS)

    async def start(self) -> None:
        """Open what is needed."""
        await self._transport.start()

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        """Pass it on."""
        began = perf_counter()
        answer = await self._transport.post_batch(body, timeout=timeout)
        self.requests.observe(perf_counter() - began)
        return answer

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Reply | Failure:
        """The same for one message."""
        began = perf_counter()
        answer = await self._transport.post_single(target, headers, body, timeout=timeout)
        self.requests.observe(perf_counter() - began)
        return answer

    def set_token(self, token: str) -> None:
        """Use another token from the next request on."""
        self._transport.set_token(token)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


class LibraryTarget:
    """A dispatcher that has been opened."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._open: dict[asyncio.Future[Any], tuple[float, float, Delivery]] = {}
        self._recorder: Recorder
        self._settled: asyncio.Future[None] | None = None
        tally = dispatcher.engine.tally
        # The core's own buckets are for a scrape; with these it counts as finely as the generator.
        tally.stage_seconds = {stage: Histogram(BOUNDS) for stage in tally.stage_seconds}

    async def serve(self, work: Work, recorder: Recorder) -> None:
        """Put all of it, and wait for every outcome."""
        self._recorder = recorder
        due = work.due
        while due or await work.more():
            for _ in range(min(TURN_MESSAGES, len(due))):
                await self._put(work)
            if due:
                await asyncio.sleep(0)
        while self._open:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled

    async def _put(self, work: Work) -> None:
        intended, handed_at, full_before = work.due[0]
        try:
            delivery = await self._admit(next(work.messages), work)
        except AdmissionError as error:
            work.due.popleft()
            self._recorder.refuse(type(error).__name__, perf_counter())
            return
        work.due.popleft()  # not before: what waits for room is still waiting
        taken_at = perf_counter()
        full = work.full_seconds(taken_at) - full_before
        self._recorder.take(intended, handed_at, full, taken_at)
        waiter = delivery.wait()
        self._open[waiter] = (intended, taken_at, delivery)
        waiter.add_done_callback(self._end)

    async def _admit(self, message: Message, work: Work) -> Delivery:
        try:
            return self._dispatcher.put_nowait(message)
        except QueueFull:
            work.fill(perf_counter())
        try:
            return await self._dispatcher.put(message)
        finally:
            work.unfill(perf_counter())

    def _end(self, waiter: asyncio.Future[None]) -> None:
        intended, taken_at, delivery = self._open.pop(waiter)
        outcome = delivery.outcome
        if isinstance(outcome, Receipt):
            self._recorder.deliver(intended, taken_at, perf_counter())
        else:
            self._recorder.fail(_kind(outcome), perf_counter())
        if not self._open and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def gauges(self) -> Gauges:
        """The dispatcher now."""
        now = self._dispatcher.statistics()
        return Gauges(now.held, now.batches_in_flight, now.limit, now.state, now.reason)

    def unfinished(self) -> Iterable[float]:
        """What it has not settled; of that nothing more is recorded."""
        left = [intended for intended, _, _ in self._open.values()]
        for waiter in self._open:
            waiter.remove_done_callback(self._end)
        self._open = {}
        return left


def _kind(outcome: object) -> str:
    """The error's name, with the status where the service gave one."""
    if isinstance(outcome, MessageRejected):
        return f"{type(outcome).__name__} ({outcome.status})"
    return type(outcome).__name__
