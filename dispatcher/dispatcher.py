"""The runtime: in which task, and when, the core's decisions happen.

Two functions carry it. `_pump` polls the core once a loop turn, starts what the step says, wakes whom it
settles and arms the one timer. `_deliver` posts one batch, tells the core, and schedules the pump. One
supervisor task owns the task group in which deliveries run; opening and closing only talk to it, so the
block may be left in another task than it was entered in (fixtures, dependency containers).

Nothing here decides what leaves or what an answer means: that is `core`. If this machinery dies, every
waiter fails with an exception of its own; nobody hangs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from dispatcher.config import Config
from dispatcher.core.batch import Failure, Reply
from dispatcher.core.engine import Engine
from dispatcher.core.wire import Encoder
from dispatcher.delivery import Delivery
from dispatcher.errors import (
    AdmissionError,
    DeliveryError,
    DispatcherClosed,
    DispatcherError,
    MessageInvalid,
    MessageTooLarge,
    QueueFull,
)
from dispatcher.identity import id_source, unwatch, watch
from dispatcher.message import Message, Receipt
from dispatcher.statistics import DrainReport, Statistics, report, snapshot
from dispatcher.streams import send_many, stream
from dispatcher.transport import HTTPTransport, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
    from types import TracebackType

    from dispatcher.core.batch import Batch, Entry
    from dispatcher.core.room import Ticket

logger: Final = logging.getLogger("dispatcher")

REFUSAL_WORDS: Final[dict[type[AdmissionError], str]] = {
    QueueFull: "full",
    MessageInvalid: "invalid",
    MessageTooLarge: "too_large",
    DispatcherClosed: "closed",
}
_NOT_STARTED: Final = "the dispatcher is not started: use `async with Dispatcher(…)` or `await start()`"
_CLOSED: Final = "the dispatcher is closed"
_FORKED: Final = (
    "this process was forked after the dispatcher was opened; open one in the child "
    "(both would draw the same deduplication ids)"
)


class Dispatcher:
    """Takes single messages, sends them in batches, gives each its own receipt or its own error.

    Args:
        config: The settings; by default `Config.load()`, from the environment and a TOML file.
        name: Tells dispatchers of one process apart in logs and metrics.
        transport: Something else than HTTP, such as a `dispatcher.testing.ScriptedTransport`.
        on_failure: Called once a batch, in the loop, with the errors nobody awaited. Must not block.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        name: str = "default",
        transport: Transport | None = None,
        on_failure: Callable[[list[DeliveryError]], None] | None = None,
    ) -> None:
        self.config = Config.load() if config is None else config
        self.name = name
        self._transport: Transport = HTTPTransport(self.config) if transport is None else transport
        self._on_failure = on_failure
        self._engine = Engine(self.config, random.Random())
        self._refusal: str | None = _NOT_STARTED
        """Why messages are not admitted now."""
        self._supervisor: asyncio.Task[None] | None = None
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._turn_at = 0.0
        """The instant of this loop turn: what is submitted together is admitted together."""
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._drained: list[Entry] | None = None
        self._report: DrainReport | None = None
        self._is_connected = True

    def __repr__(self) -> str:
        room, engine = self._engine.room, self._engine
        return (
            f"<Dispatcher {self.name!r} {self._state} held={room.held_messages} "
            f"in_flight={len(engine.out)}/{engine.limit.value}>"
        )

    # --------------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Open it in the running loop.

        Raises:
            DispatcherClosed: It was opened before: a dispatcher is opened once.
        """
        if self._supervisor is not None or self._refusal != _NOT_STARTED:
            raise DispatcherClosed("a dispatcher is opened once; make another one")
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise DispatcherClosed("the dispatcher needs a running asyncio loop (trio has none)") from None
        self._encoder = Encoder(
            id_source(),
            draws_ids=self.config.deduplication == "auto",
            max_message_bytes=self.config.batch.max_message_bytes,
        )
        await self._transport.start()
        self._closing = anyio.Event()
        self._is_empty = anyio.Event()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._supervisor = self._loop.create_task(self._supervise(opened), name=f"dispatcher {self.name}")
        await opened
        self._refusal = None
        watch(self)

    async def aclose(self) -> DrainReport:
        """Admit nothing more, deliver what is held within `drain_within` seconds, and close.

        Waits for the end even if the caller is cancelled meanwhile. A second call gives the same report.
        """
        supervisor = self._supervisor
        if supervisor is None:
            self._refusal = _CLOSED
            return DrainReport()
        if self._refusal == _FORKED:
            raise DispatcherClosed(_FORKED)
        if self._refusal is None:
            self._refusal = _CLOSED
            self._refuse_waiters()
        self._closing.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([supervisor])
        assert self._report is not None
        return self._report

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork(self) -> None:
        """In a forked child: whoever uses it is told so (called by `identity`)."""
        self._refusal = _FORKED

    async def _supervise(self, opened: asyncio.Future[None]) -> None:
        """Own the deliveries from opening to the end of the drain."""
        why = "the dispatcher was cancelled before its drain ended"
        self._drained = None
        began = self._loop.time()
        try:
            async with anyio.create_task_group() as self._tasks:
                opened.set_result(None)
                await self._closing.wait()
                began = self._loop.time()
                self._drained = []
                self._engine.drain(began + self.config.drain_within, began)
                self._schedule()
                await self._is_empty.wait()
                self._tasks.cancel_scope.cancel()
        except Exception as error:
            why = f"the dispatcher died of {type(error).__name__}"
            logger.exception("dispatcher %s died; everything it held fails", self.name)
        finally:
            self._end(why, began)
            with anyio.CancelScope(shield=True):
                await self._transport.aclose()

    def _end(self, why: str, began: float) -> None:
        """Settle whatever is left, wake everyone, and leave nothing running."""
        self._refusal = self._refusal or _CLOSED
        self._refuse_waiters()
        if self._drained is None:
            self._drained = []
        self._engine.abandon(why)
        settled, self._engine.settled = self._engine.settled, []
        self._settle(settled)
        self._finish_flushes()
        if self._timer is not None:
            self._timer.cancel()
        self._report = report(self._drained, self._loop.time() - began)
        unwatch(self)
        if self._report.failures:
            logger.warning("dispatcher %s closed with undelivered messages: %r", self.name, self._report)

    # ----------------------------------------------------------------------------------------- admission

    async def send(self, message: Message) -> Receipt:
        """Hand in one message and wait until the service has accepted it.

        Cancelled before the message left, it is taken back; after, the sending goes on without you.

        Raises:
            AdmissionError: It was never taken.
            DeliveryError: It was taken and not confirmed; `certainty` says what is known.
        """
        delivery = self._make(message)
        delivery.is_claimed = True
        if not self._admit(delivery):
            await self._wait_for_room(delivery)
        if delivery.outcome is None:
            try:
                await delivery.wait()
            except asyncio.CancelledError:
                if not delivery.withdraw():
                    delivery.is_claimed = False  # it goes on without its caller: a failure is reported
                raise
        return delivery.result()

    async def put(self, message: Message) -> Delivery:
        """Hand in one message, waiting for room; await what it returns for the receipt.

        Raises:
            MessageInvalid: The service would refuse it.
            MessageTooLarge: It is above `batch.max_message_bytes`.
            DispatcherClosed: The dispatcher is not open, or closes while this waits.
        """
        delivery = self._make(message)
        if not self._admit(delivery):
            await self._wait_for_room(delivery)
        return delivery

    def put_nowait(self, message: Message) -> Delivery:
        """The same at once.

        Raises:
            QueueFull: There is no room, or others wait for it already.
        """
        delivery = self._make(message)
        if not self._admit(delivery):
            room = self._engine.room
            raise self._refused(
                QueueFull(room.held_messages, room.max_messages, room.held_bytes, room.max_bytes)
            )
        return delivery

    async def send_many(
        self, messages: Iterable[Message] | AsyncIterable[Message]
    ) -> list[Receipt | DispatcherError]:
        """Send all of them; what became of each, in their order. Raises only what the iterable raises."""
        return await send_many(self, messages)

    def stream(
        self, messages: Iterable[Message] | AsyncIterable[Message], *, window: int = 10_000
    ) -> AsyncIterator[Receipt | DispatcherError]:
        """The same for any number in bounded memory: outcomes in order, at most `window` unread ones."""
        return stream(self, messages, window)

    async def flush(self) -> None:
        """Send what was handed in so far without waiting for company; returns when all of it has settled."""
        self._check_open()
        epoch = self._engine.flush()
        if not self._engine.is_flushed(epoch):
            flushed: asyncio.Future[None] = self._loop.create_future()
            self._flushes.append((epoch, flushed))
            self._schedule()
            await flushed

    def statistics(self) -> Statistics:
        """A frozen snapshot."""
        return snapshot(self._engine, self._state)

    @property
    def engine(self) -> Engine:
        """What decides and counts, for metrics to read; what changes it goes through the other methods."""
        return self._engine

    def oldest_age(self) -> float:
        """Seconds since the oldest held message was admitted, else 0 (a walk over all: for a scrape)."""
        oldest_at = self._engine.oldest_at()
        return 0.0 if oldest_at is None else max(0.0, self._loop.time() - oldest_at)

    @property
    def _state(self) -> str:
        if self._refusal is None:
            return "open" if self._engine.gate.refusal is None else "refused"
        if self._supervisor is None or self._refusal == _FORKED:
            return "new" if self._refusal == _NOT_STARTED else "closed"
        return "closed" if self._supervisor.done() else "draining"

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise DispatcherClosed(self._refusal)

    def _admit(self, delivery: Delivery) -> bool:
        """Take it in; false if there is no room."""
        if not self._engine.room.try_take(len(delivery.data)):
            return False
        self._engine.offer(delivery)
        return True

    def _make(self, message: Message) -> Delivery:
        """Check and encode one message: a delivery that is not admitted yet."""
        try:
            if self._refusal is not None:
                raise DispatcherClosed(self._refusal)
            if not isinstance(message, Message):
                raise MessageInvalid(f"expected a Message, not {type(message).__name__}")
            encoded = self._encoder.encode(message)
            within = message.deliver_within
            within = self.config.deliver_within if within is None else _checked_duration(within)
            if len(encoded.data) > self._engine.room.max_bytes:
                raise MessageTooLarge(len(encoded.data), self._engine.room.max_bytes)
        except AdmissionError as error:
            raise self._refused(error) from None
        if not self._is_scheduled:
            self._schedule()
        now = self._turn_at
        return Delivery(
            message,
            encoded.data,
            message.queue or None,
            encoded.deduplication_id,
            encoded.idempotent,
            encoded.owns_id,
            now,
            now + within,
            encoded.single,
            take_back=self._withdraw,
        )

    def _refused(self, error: AdmissionError) -> AdmissionError:
        refused = self._engine.tally.refused
        word = REFUSAL_WORDS[type(error)]
        refused[word] = refused.get(word, 0) + 1
        return error

    async def _wait_for_room(self, delivery: Delivery) -> None:
        granted: asyncio.Future[None] = self._loop.create_future()
        delivery.waiters = granted
        ticket = self._engine.room.wait(delivery, len(delivery.data))
        self._schedule()
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled() and granted.done():
                delivery.withdraw()  # admitted in the same turn in which its caller was cancelled
            else:
                self._leave_line(ticket, delivery)
            raise
        if delivery.lane is None:
            raise self._refused(DispatcherClosed(self._refusal or _CLOSED))

    def _leave_line(self, ticket: Ticket[Entry], delivery: Delivery) -> None:
        delivery.waiters = None
        self._engine.room.cancel(ticket)
        self._schedule()

    def _refuse_waiters(self) -> None:
        """Closing: whoever waits for room is told so; nothing was promised to them."""
        for delivery in self._engine.room.dismiss():
            assert isinstance(delivery, Delivery)
            delivery.wake()

    def _withdraw(self, entry: Entry) -> bool:
        taken_back = self._engine.withdraw(entry)
        if taken_back:
            assert isinstance(entry, Delivery)
            entry.is_claimed = True
            self._schedule()
        return taken_back

    # ---------------------------------------------------------------------------------------- the pump

    def _schedule(self) -> None:
        """Any number of triggers within one loop turn run the pump once."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._turn_at = self._loop.time()
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_scheduled = False
        try:
            self._pump_once()
        except BaseException as error:
            logger.exception("dispatcher %s: its pump failed", self.name)
            self._refusal = self._refusal or f"the dispatcher died of {type(error).__name__}"
            if self._supervisor is not None:
                self._supervisor.cancel()
            if not isinstance(error, Exception):
                raise

    def _pump_once(self) -> None:
        engine = self._engine
        step = engine.poll(self._loop.time())
        for batch in step.start:
            self._tasks.start_soon(self._deliver, batch)
        if step.settled:
            self._settle(step.settled)
            self._finish_flushes()
        if engine.room.waiting:
            self._admit_waiters()
        self._arm(step.wake_at)
        if engine.is_draining and not engine.room.held_messages:
            self._is_empty.set()

    def _admit_waiters(self) -> None:
        """Room was granted: admit those who waited, in the order in which they came."""
        granted = self._engine.room.grants()
        if not granted:
            return
        self._schedule()
        for delivery in granted:
            assert isinstance(delivery, Delivery)
            within = delivery.deadline - delivery.admitted_at
            delivery.admitted_at = self._turn_at
            delivery.deadline = self._turn_at + within
            self._engine.offer(delivery)
            delivery.wake()

    def _settle(self, settled: list[Entry]) -> None:
        """Wake everyone who waits for these; report failures that nobody waits for."""
        unawaited: list[DeliveryError] = []
        for delivery in settled:
            assert isinstance(delivery, Delivery)
            woken = delivery.waiters is not None and delivery.wake()
            if not woken and not delivery.is_claimed and isinstance(delivery.outcome, DeliveryError):
                unawaited.append(delivery.outcome)
        if self._drained is not None:
            self._drained += settled
        if unawaited:
            self._report_unawaited(unawaited)

    def _report_unawaited(self, errors: list[DeliveryError]) -> None:
        self._engine.tally.unawaited_failures += len(errors)
        logger.warning(
            "dispatcher %s: %d messages failed and nobody awaited them, the first: %s",
            self.name,
            len(errors),
            errors[0],
        )
        if self._on_failure is None:
            return
        try:
            self._on_failure(errors)
        except Exception:
            logger.exception("dispatcher %s: on_failure itself failed", self.name)

    def _finish_flushes(self) -> None:
        waiting = []
        for epoch, flushed in self._flushes:
            if flushed.done():
                continue
            if self._engine.is_flushed(epoch):
                flushed.set_result(None)
            else:
                waiting.append((epoch, flushed))
        self._flushes = waiting

    def _arm(self, wake_at: float) -> None:
        """One timer for everything; an earlier one that is armed is left: it polls and arms anew."""
        timer = self._timer
        if timer is not None:
            if timer.when() <= wake_at and not timer.cancelled():
                return
            timer.cancel()
            self._timer = None
        if wake_at < float("inf"):
            self._timer = self._loop.call_at(wake_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._schedule()

    async def _deliver(self, batch: Batch) -> None:
        try:
            answer = await self._post(batch)
        except Exception as error:
            logger.exception("dispatcher %s: the transport failed", self.name)
            answer = Failure("disconnect", f"the transport failed with {type(error).__name__}", "unknown")
        self._engine.complete(batch, answer, self._loop.time())
        self._schedule()
        self._log_connection(answer)

    async def _post(self, batch: Batch) -> Reply | Failure:
        single = batch.single
        if single is None:
            return await self._transport.post_batch(batch.body(), timeout=batch.timeout)
        return await self._transport.post_single(
            single.target, single.headers, batch.body(), timeout=batch.timeout
        )

    def _log_connection(self, answer: Reply | Failure) -> None:
        """One line when the upstream cannot be reached, one when it can again."""
        is_connected = not (isinstance(answer, Failure) and answer.kind == "connect")
        if is_connected == self._is_connected:
            return
        self._is_connected = is_connected
        if isinstance(answer, Failure):
            logger.warning("dispatcher %s: %s; trying again", self.name, answer.text)
        else:
            logger.info("dispatcher %s: the upstream is reached again", self.name)


def _checked_duration(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise MessageInvalid(f"`deliver_within` is {seconds!r}; allowed are seconds above 0")
    return float(seconds)
