"""What a thread of ours owes to the end of its process: a drain at exit.

Everything held is drained when the interpreter exits. That happens in `atexit`, when all threads that are no
daemons have ended and nobody can hand in more. By then `concurrent.futures` refuses work and, from Python
3.12 on, no thread can be started; so the loop has its own thread for looking up names, started beforehand.
(A callback of `threading._register_atexit` would run early enough for the standard executor, but before the
script's other threads have ended, while they still hand in messages.) Used by `worker` only.
"""

from __future__ import annotations

import atexit
import sys
import threading
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from dispatcher.errors import DispatcherClosed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

EXITING: Final = "the interpreter is exiting"


class Ending(Protocol):
    """Something that drains at exit."""

    def ask_to_close(self) -> None:
        """Begin to drain; do not wait."""
        ...

    def close_at_exit(self) -> None:
        """Wait for the end of the drain."""
        ...


alive: Final[set[Ending]] = set()
"""Workers that have a thread: to be drained at exit, also if nobody else knows them any more."""
_process: Final = {"is_exiting": False, "is_prepared": False}


def prepare_for_exit() -> None:
    """Have every worker drained when this process exits.

    Children of `multiprocessing` run its own finalizers and never `atexit`.
    """
    if _process["is_exiting"]:
        raise DispatcherClosed(EXITING)
    util, process = (sys.modules.get(f"multiprocessing.{name}") for name in ("util", "process"))
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, close_all, exitpriority=-100)
    if not _process["is_prepared"]:
        _process["is_prepared"] = True
        atexit.register(close_all)


def close_all() -> None:
    _process["is_exiting"] = True
    workers = list(alive)
    for worker in workers:
        worker.ask_to_close()  # all at once: their drains run side by side
    for worker in workers:
        worker.close_at_exit()


class Lookups(ThreadPoolExecutor):
    """The loop's default executor, in which names are looked up: one thread, started beforehand.

    The standard one refuses work, and cannot start a thread, while the interpreter exits, just when the
    messages of a script that ends right after `put` are to be delivered.
    """

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have it called, after what was submitted before."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End after what was submitted; never waits: the thread is a daemon."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del item, future, call
