"""A thread of its own for a dispatcher: the loop's side of `BlockingDispatcher`, one for each process.

A `Worker` is a daemon thread with an event loop and a `Served` dispatcher in it. What threads submit comes
through the `Handover`; what they ask is run in the loop. When the thread ends, for whatever reason, all that
was handed in has settled and everyone who waits has been woken. Used by `blocking` only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from dispatcher.blocking.endings import EXITING, Lookups, alive, prepare_for_exit
from dispatcher.blocking.handover import CLOSED, BlockingDelivery, Handover
from dispatcher.errors import DispatcherClosed
from dispatcher.identity import unwatch, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

    from dispatcher.blocking.served import Served
    from dispatcher.config import Config
    from dispatcher.core.batch import Entry
    from dispatcher.statistics import DrainReport

T = TypeVar("T")
P = ParamSpec("P")

EXIT_GRACE: Final = 5.0
"""Seconds beyond `drain_within` that the interpreter's exit waits for a thread that does not end."""
ROUNDS_MAX: Final = 3
"""Times that the end of a loop is tried; each may be broken off by a SystemExit of someone's callback."""

logger: Final = logging.getLogger("dispatcher")


class Worker:
    """The thread, the loop and the dispatcher of one process.

    Args:
        name: The dispatcher's.
        make: Makes the dispatcher; called in the new loop.
    """

    def __init__(self, name: str, config: Config, make: Callable[[Handover], Served]) -> None:
        settings = config.queue
        self.handover = Handover(settings.max_messages, settings.max_bytes, settings.resume_below)
        self.handover.home.take_back = self.withdraw
        self.served: Served
        self._name = name
        self._make = make
        self._drain_within = config.drain_within
        self._thread = threading.Thread(target=self._main, name=f"dispatcher {name}", daemon=True)
        self._has_opened = threading.Event()
        self._failure: BaseException | None = None
        self._is_asked_to_close = False
        self._loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Event

    # ------------------------------------------------------------------------------------ in any thread

    def open(self) -> None:
        """Start the thread, and wait until its dispatcher is open.

        Raises:
            Exception: Whatever kept it from opening.
            DispatcherClosed: The interpreter is exiting.
        """
        prepare_for_exit()
        watch(self)
        try:
            self._thread.start()
        except RuntimeError:  # another thread that goes on after the main one has ended
            raise DispatcherClosed(EXITING) from None
        try:
            self._has_opened.wait()
        except BaseException:
            self.ask_to_close()
            raise
        if self._failure is not None:
            raise self._failure

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """What `work` returns in the loop.

        Raises:
            TimeoutError: It was not done within `timeout` seconds, and was cancelled.
            DispatcherClosed: The loop has ended, or would wait for itself.
        """
        self.handover.check_may_wait()
        future: Future[T] = self.handover.reach_loop(
            lambda: asyncio.run_coroutine_threadsafe(work(), self._loop)
        )
        try:
            return future.result(timeout)
        except CancelledError:
            raise DispatcherClosed(self.handover.explain() or CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns in the loop; at once if this is its thread. Raises what `run` raises."""
        if self.handover.is_own_thread:
            return function(*args, **kwargs)

        async def work() -> T:
            return function(*args, **kwargs)

        return self.run(work)

    def withdraw(self, delivery: Entry) -> bool:
        """Take a message back, if it has not left."""
        return self._recover(self.served.take_back, delivery)

    def let_go(self, delivery: BlockingDelivery) -> bool:
        """The same, and a message that goes on does so without its caller."""
        return self._recover(self.served.let_go, delivery)

    def ask_to_close(self) -> None:
        """Admit nothing more, and drain; does not wait for that."""
        self.handover.close()
        self._is_asked_to_close = True
        with suppress(DispatcherClosed):
            self.handover.reach_loop(lambda: self._loop.call_soon_threadsafe(self._closing.set))

    def close(self) -> DrainReport:
        """Admit nothing more, drain, and wait for the end of the thread.

        Raises:
            DispatcherClosed: This is that thread.
        """
        self.handover.check_may_wait()
        self.ask_to_close()
        self._thread.join()
        return self.served.drained

    def close_at_exit(self) -> None:
        """The same for as long as the drain may take, and a little longer."""
        self._thread.join(self._drain_within + EXIT_GRACE)
        if self._thread.is_alive():
            logger.error("dispatcher %s: its thread does not end; what it holds is lost", self._name)

    def after_fork(self) -> None:
        """In a forked child: what was handed in is the parent's (called by `identity`).

        Nothing is closed: both processes share the sockets and the selector behind them. The lost thread's
        frames keep all of it from being freed here.
        """
        self.handover.is_forked = True
        alive.discard(self)

    def _recover(self, function: Callable[[Any], bool], delivery: Entry) -> bool:
        if delivery.outcome is not None:
            return False
        if not self.handover.is_own_thread:
            self.handover.check_may_wait()
        try:
            return self.call(function, delivery)
        except DispatcherClosed:
            return False  # it ended meanwhile: everything has settled

    # -------------------------------------------------------------------------------------- the thread's

    def _main(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        alive.add(self)
        try:
            asyncio.set_event_loop(loop)
            loop.set_default_executor(Lookups(f"{self._thread.name} lookups"))
            loop.run_until_complete(self._live())
        except BaseException as error:
            if self._has_opened.is_set():
                logger.error("dispatcher %s: its thread died", self._name, exc_info=error)
            self._failure = error
        finally:
            try:
                self._finish()
            finally:
                alive.discard(self)
                unwatch(self)
                self._has_opened.set()

    async def _live(self) -> None:
        handover = self.handover
        served = self.served = self._make(handover)
        self._closing = asyncio.Event()
        await served.start()
        handover.wake_loop = partial(self._loop.call_soon_threadsafe, served.take)
        handover.loop_thread = get_ident()
        self._has_opened.set()
        if not self._is_asked_to_close:
            await self._closing.wait()
        served.take()
        await served.aclose()

    def _finish(self) -> None:
        """End the loop so that nobody waits for anything of it."""
        loop = self._loop
        self.handover.close()
        with self.handover.lock:
            self.handover.loop_thread = None
        for _ in range(ROUNDS_MAX):
            for task in asyncio.all_tasks(loop):
                task.cancel()  # before it can do what ended the loop once more
            try:
                loop.run_until_complete(_wind_up())
                if self._has_opened.is_set():
                    self.served.bury()
                break
            except BaseException:
                logger.exception("dispatcher %s: its loop does not end well", self._name)
        asyncio.set_event_loop(None)
        loop.close()


async def _wind_up() -> None:
    """End everything that runs in this loop, and what was called into it and has not begun."""
    for _ in range(2):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
    await asyncio.get_running_loop().shutdown_asyncgens()
