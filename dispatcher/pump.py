"""The pump: in which task, and when, the core's decisions happen.

Two functions carry it. `_pump` polls the core once a loop turn, starts what the step says, wakes whom it
settles and arms the one timer. `_deliver` posts one batch, tells the core, and schedules the pump. `_run` is
the supervisor: it owns the deliveries' tasks, from opening to the end of the drain.

Nothing here decides what leaves or what an answer means: that is `core`. If this machinery dies, every
waiter fails with an exception of its own; nobody hangs. Used by `dispatcher` only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Final, cast

import anyio

from dispatcher.admission import Admission
from dispatcher.core.batch import Failure, Reply
from dispatcher.core.engine import Engine
from dispatcher.delivery import Delivery, Home
from dispatcher.errors import DispatcherClosed
from dispatcher.message import Receipt
from dispatcher.news import News
from dispatcher.renewal import Renewal, TokenProvider
from dispatcher.statistics import DrainReport, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.config import Config
    from dispatcher.core.batch import Batch, Entry, Run
    from dispatcher.delivery import DeliveryRun, HandedRun
    from dispatcher.errors import DeliveryError
    from dispatcher.observing import Observer, Post
    from dispatcher.transport import Transport

TOKEN_STATUSES: Final = (401, 403)
"""Refusals that another token may mend."""
SLEEP_MIN: Final = 1.0
"""Seconds that the wall clock must gain at once to count as a suspension, not as its adjustment."""
WRONG_THREAD: Final = (
    "the dispatcher was used from a thread without its loop; "
    "`loop.call_soon_threadsafe` or `asyncio.run_coroutine_threadsafe` hand work over"
)
WRONG_LOOP: Final = "the dispatcher was opened in another event loop; open one in each loop"

logger: Final = logging.getLogger("dispatcher")


class Pump:
    """Runs one engine over one transport.

    Args:
        name: The dispatcher's, for the log.
        on_failure: Called once a batch with the errors nobody awaited.
        token_provider: Asked for a token when the service refuses the one in use.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        name: str,
        on_failure: Callable[[list[DeliveryError]], None] | None,
        token_provider: TokenProvider | None = None,
    ) -> None:
        self.engine = Engine(config, random.Random())
        self.transport = transport
        self.is_scheduled = False
        self.turn_at = 0.0
        """The instant of this loop turn: what is submitted together is admitted together."""
        self.admission = Admission(self.engine)
        self.thread = 0
        """In which messages are taken; 0 while they are not."""
        self.home = Home(None, None)
        self.death: str | None = None
        """Why it ended before it was closed."""
        self.report: DrainReport | None = None
        """What became of what was held, once it has ended."""
        self._config = config
        self._name = name
        self._on_failure = on_failure
        self._renewal: Renewal | None = None
        if token_provider is not None:
            self._renewal = Renewal(
                token_provider, config, name, is_refused=self._is_refused, set_token=self.set_token
            )
        self._gate_state = "open"
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        """When it fires; uvloop's handle for an instant that has passed does not say."""
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._drained: list[Delivery] | None = None
        self._drained_messages = 0
        """Those of runs, delivered as a whole since the drain began."""
        self._supervisor: asyncio.Task[None] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()
        """One for each batch in flight; the supervisor ends what is left of them."""
        self._news = News(name)
        self._observed: Post = self._post

    # --------------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Open the transport, and start the supervisor in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._news.start(self._loop)
        self.thread = get_ident()
        self.home = Home(self._loop, self.withdraw)
        self._clock_offset = time.time() - self._loop.time()
        self._closing = anyio.Event()
        self._is_empty = anyio.Event()
        await self.transport.start()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._supervisor = self._loop.create_task(self._run(opened), name=f"dispatcher {self._name}")
        try:
            await opened
        except asyncio.CancelledError:
            self._supervisor.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._supervisor])
            raise

    async def drain(self) -> DrainReport:
        """Deliver what is held within the drain's deadline and end; not cut short by a cancelled caller."""
        assert self._supervisor is not None
        self.dismiss_waiters()
        self._closing.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._supervisor])
        assert self.report is not None
        return self.report

    @property
    def has_ended(self) -> bool:
        """The supervisor is done: nothing is held and nothing runs."""
        return self._supervisor is not None and self._supervisor.done()

    async def _run(self, opened: asyncio.Future[None]) -> None:
        """Own the deliveries from opening to the end of the drain."""
        why = "the dispatcher was cancelled before its drain ended"
        began = self._loop.time()
        try:
            if not opened.done():
                opened.set_result(None)
            await self._closing.wait()
            began = self._loop.time()
            self._drained = []
            self.engine.drain(began + self._config.drain_within, began)
            self.schedule()
            await self._is_empty.wait()
        except Exception as error:
            why = f"the dispatcher died of {type(error).__name__}"
            logger.exception("dispatcher %s died; everything it held fails", self._name)
        finally:
            self._end(self.death or why, began)
            with anyio.CancelScope(shield=True):
                if self._deliveries:
                    await asyncio.wait(self._deliveries)
                await self.transport.aclose()

    def _end(self, why: str, began: float) -> None:
        """Settle whatever is left, wake everyone, and leave nothing running."""
        self.death = why
        self.thread = 0
        self.home.take_back = None
        if self._drained is None:
            self._drained = []
        self.dismiss_waiters()
        self.abandon(why)
        self._finish_flushes()
        for each in (self._timer, self._renewal, *self._deliveries):
            if each is not None:
                each.cancel()
        self._news.close(self._loop.time())
        self.report = report(self._drained, self._drained_messages, self._loop.time() - began)
        if self.report.failures:
            logger.warning("dispatcher %s closed with undelivered messages: %r", self._name, self.report)

    def abandon(self, why: str) -> None:
        """Fail everything that is held."""
        with suppress(Exception):  # if the engine is broken, this is not the first time that it says so
            self.admission.tell()
        self.engine.abandon(why)
        delivered, self.engine.delivered = self.engine.delivered, []
        self._wake_runs(delivered)
        settled, self.engine.settled = self.engine.settled, []
        self._settle([*settled, *self.admission.give_up(why)])

    # -------------------------------------------------------------------------------------- what is asked

    def now(self) -> float:
        """The clock of every instant here: the loop's, monotonic."""
        return self._loop.time()

    def schedule(self) -> None:
        """Any number of triggers within one loop turn run the pump once."""
        if not self.is_scheduled:
            self.is_scheduled = True
            self.turn_at = self._loop.time()
            self._loop.call_soon(self._pump)

    async def flush(self) -> None:
        """Send what is held without lingering; returns when all of it has settled."""
        self.admission.tell()
        epoch = self.engine.flush()
        if not self.engine.is_flushed(epoch):
            flushed: asyncio.Future[None] = self._loop.create_future()
            self._flushes.append((epoch, flushed))
            self.schedule()
            await flushed

    def withdraw(self, entry: Entry) -> bool:
        """Take a message back if it has not left."""
        self.admission.tell()
        taken_back = self.engine.withdraw(entry)
        if taken_back:
            assert isinstance(entry, Delivery)
            entry.is_claimed = entry.is_withdrawn = True  # its producer knows
            self.schedule()
        return taken_back

    def set_token(self, token: str) -> None:
        """Use another token from the next request on; what the old one halted is tried at once."""
        self.transport.set_token(token)
        self.engine.unhalt()
        self.schedule()

    def observe(self, observer: Observer | None) -> None:
        """Have this stand around each request from now on."""
        self._observed = self._post if observer is None else observer.around_post(self._post)

    def _is_refused(self) -> bool:
        return self.engine.gate.refusal is not None and not self.has_ended

    def check_place(self) -> None:
        """Refuse to be used from another thread or loop: nothing here is locked.

        Raises:
            DispatcherClosed: With the cure.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            raise DispatcherClosed(WRONG_THREAD if loop is None else WRONG_LOOP)

    def dismiss_waiters(self) -> None:
        """Closing: whoever waits for room is sent away; nothing was promised to them."""
        for delivery in self.engine.room.dismiss():
            assert isinstance(delivery, Delivery)
            delivery.wake()

    # ----------------------------------------------------------------------------------------- the pump

    def _pump(self) -> None:
        self.is_scheduled = False
        try:
            self._pump_once()
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, Exception):
                raise

    def fail(self, error: BaseException) -> None:
        """The machinery is broken: everything held fails, and nothing more is taken."""
        logger.error("dispatcher %s: its pump failed", self._name, exc_info=error)
        self.death = f"the dispatcher died of {type(error).__name__}"
        self.thread = 0
        if self._supervisor is not None:
            self._supervisor.cancel()

    def _pump_once(self) -> None:
        engine = self.engine
        self._watch_for_sleep()
        self.admission.tell()
        step = engine.poll(self._loop.time())
        for batch in step.start:
            self._start(batch)
        if engine.gate.state != self._gate_state:
            self._on_gate_change()
        self._wake_runs(step.delivered)
        if step.settled:
            self._settle(step.settled)
        if (step.settled or step.delivered) and self._flushes:
            self._finish_flushes()
        if engine.room.waiting:
            self._admit_waiters()
        self._arm(step.wake_at)
        if engine.is_draining and not engine.room.held_messages:
            self._is_empty.set()

    def _watch_for_sleep(self) -> None:
        """A suspended machine's monotonic clock stands still; the wall clock tells how long it slept."""
        offset = time.time() - self._loop.time()
        if offset - self._clock_offset > SLEEP_MIN:
            self.engine.age(offset - self._clock_offset)
        self._clock_offset = offset

    def _admit_waiters(self) -> None:
        """Room was granted: admit those who waited, in the order in which they came."""
        granted = self.engine.room.grants()
        if not granted:
            return
        self.schedule()
        for delivery in granted:
            assert isinstance(delivery, Delivery)
            within = delivery.deadline - delivery.admitted_at
            delivery.admitted_at = self.turn_at
            delivery.deadline = self.turn_at + within
            self.engine.offer(delivery)
            delivery.wake()

    def _wake_runs(self, delivered: list[Run]) -> None:
        """Wake everyone who waits for these."""
        for run in delivered:
            cast("HandedRun | DeliveryRun", run).wake()
            self._drained_messages += len(run) * self.engine.is_draining

    def _settle(self, settled: list[Entry]) -> None:
        """Wake everyone who waits for these; report failures that nobody waits for."""
        unawaited: list[DeliveryError] = []
        deliveries = cast("list[Delivery]", settled)
        for delivery in deliveries:
            woken = delivery.waiters is not None and delivery.wake()
            if type(delivery.outcome) is not Receipt and not woken and not delivery.is_claimed:
                unawaited.append(cast("DeliveryError", delivery.outcome))
        if self._drained is not None:
            self._drained += deliveries
        if unawaited:
            self._report_unawaited(unawaited)

    def _report_unawaited(self, errors: list[DeliveryError]) -> None:
        self.engine.tally.unawaited_failures += len(errors)
        self._news.unawaited(errors, self._loop.time())
        if self._on_failure is None:
            return
        try:
            self._on_failure(errors)
        except Exception as error:
            self._news.callback_failed(error, self._loop.time())

    def _finish_flushes(self) -> None:
        waiting = []
        for epoch, flushed in self._flushes:
            if flushed.done():
                continue
            if self.engine.is_flushed(epoch):
                flushed.set_result(None)
            else:
                waiting.append((epoch, flushed))
        self._flushes = waiting

    def _arm(self, wake_at: float) -> None:
        """One timer for everything; an earlier one that is armed is left: it polls and arms anew.

        If there is nothing to wake for, there is no timer: an idle process sleeps.
        """
        timer = self._timer
        if timer is not None:
            if self._timer_at <= wake_at < float("inf") and not timer.cancelled():
                return
            timer.cancel()
            self._timer = None
        if wake_at < float("inf"):
            self._timer_at = wake_at
            self._timer = self._loop.call_at(wake_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.schedule()

    # -------------------------------------------------------------------------------- what holds all back

    def _on_gate_change(self) -> None:
        """Tell it; and look for a new token, if someone can give one."""
        gate = self.engine.gate
        self._gate_state = gate.state
        self._news.gate_changed(gate, self.engine.room.held_messages, self._loop.time())
        if gate.refusal is not None and self._renewal is not None and gate.refusal.status in TOKEN_STATUSES:
            self._renewal.begin()

    # --------------------------------------------------------------------------------------- deliveries

    def _start(self, batch: Batch) -> None:
        # No task group of anyio's: it costs four times as much, and refuses to be used from a callback of the
        # loop where sniffio is installed, which knows the loop by the current task only.
        delivery = self._loop.create_task(self._deliver(batch))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._on_delivered)

    def _on_delivered(self, delivery: asyncio.Task[None]) -> None:
        self._deliveries.discard(delivery)
        if not delivery.cancelled() and (error := delivery.exception()) is not None:
            self.fail(error)

    async def _deliver(self, batch: Batch) -> None:
        try:
            answer = await self._observed(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            answer = Failure("disconnect", "the transport cancelled the request", "unknown")
        except Exception as error:
            self._news.transport_failed(error, self._loop.time())
            answer = Failure("disconnect", f"the transport failed with {type(error).__name__}", "unknown")
        now = self._loop.time()
        self.engine.complete(batch, answer, now)
        self.schedule()
        self._news.answered(answer, now)

    async def _post(self, batch: Batch) -> Reply | Failure:
        single = batch.single
        if single is None:
            return await self.transport.post_batch(batch.body(), timeout=batch.timeout)
        return await self.transport.post_single(
            single.target, single.headers, batch.body(), timeout=batch.timeout
        )
