"""How long each callback of an event loop took: on its thread's CPU clock, by the wall, and whose it was.

A loop made by `watched_loop` times every callback that it runs, the steps of tasks among them: under asyncio
those for sockets, too; under uvloop all but those that it runs in itself (reading and writing sockets, with
the parser of replies). The kernel may take the core away in the middle of a callback: that counts in its wall
time only. A collection runs in whichever callback allocates next: it is timed apart, and taken off.

Judges nothing. Used by `latency` and its tests only: timing costs about 2 µs a callback.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from msgspec import Struct

import dispatcher
from dispatcher.cli.loop import loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import CodeType

FLOOR: Final = 100e-6
"""Seconds: callbacks that are shorter are counted and not named."""
LIBRARY: Final = str(Path(dispatcher.__file__).parent)
LOADS: Final = (str(Path(__file__).parent), str(Path(LIBRARY) / "bench"))
"""Where the code of the loads is: the benchmarks', and the generator's."""

OURS, LOAD, THEIRS = "ours", "load", "theirs"
"""The dispatcher's; the load's own; asyncio's and aiohttp's, on behalf of either."""


class Taken(Struct, frozen=True):
    """What one callback took, in seconds."""

    name: str
    owner: str
    cpu: float
    """On its thread's CPU clock, without collections."""
    wall: float
    collecting: float
    """CPU time of the collections that ran in it."""

    def __str__(self) -> str:
        collected = f", collections {self.collecting * 1e3:.2f} ms more" if self.collecting else ""
        return f"{self.name} {self.cpu * 1e3:.2f} ms (wall {self.wall * 1e3:.2f} ms{collected})"


class Collections:
    """The garbage collector's runs while it is watched."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        """Seconds that each took, on the CPU clock of the thread that it ran in."""
        self.total = 0.0
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._began = thread_time()
        else:
            self.cpu.append(thread_time() - self._began)
            self.total += self.cpu[-1]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the length of the block."""
        gc.callbacks.append(self)
        try:
            yield
        finally:
            gc.callbacks.remove(self)


class Watch:
    """All callbacks of one loop, while it is on.

    Args:
        senders: Names of coroutine functions that only call the dispatcher: their steps count as ours, since
            all but a trifle of the time in them is.
        floor: Seconds from which on a callback is named.
    """

    def __init__(self, senders: Collection[str] = (), floor: float = FLOOR) -> None:
        self.is_on = False
        self.count = 0
        self.collections = Collections()
        self.named: list[Taken] = []
        """Those that took longer than the floor, by either clock."""
        self._senders = frozenset(senders)
        self.floor = floor

    def run(self, callback: Callable[..., object], *args: object) -> object:
        """Run it, and time it."""
        return self.time(callback, callback, *args)

    def time(self, callback: Callable[..., object], runner: Callable[..., object], *args: object) -> object:
        """Time what runs this callback."""
        if not self.is_on:
            return runner(*args)
        collected = self.collections.total
        wall, cpu = perf_counter(), thread_time()
        try:
            return runner(*args)
        finally:
            cpu, wall = thread_time() - cpu, perf_counter() - wall
            self.count += 1
            if wall > self.floor:
                self._note(callback, cpu, wall, self.collections.total - collected)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch for the length of the block; the callback that it is in is not seen."""
        with self.collections.watched():
            self.is_on = True
            try:
                yield
            finally:
                self.is_on = False

    def longest(self, *owners: str) -> Taken | None:
        """The one of theirs that took most CPU time."""
        found = [one for one in self.named if one.owner in owners]
        return max(found, key=lambda one: one.cpu, default=None)

    def _note(self, callback: Callable[..., object], cpu: float, wall: float, collecting: float) -> None:
        name, file = described(callback)
        is_sender = name.rpartition(".")[2] in self._senders
        owner = OURS if is_sender else _owner(file)
        self.named.append(Taken(name, owner, max(0.0, cpu - collecting), wall, collecting))


def described(callback: Any) -> tuple[str, str]:
    """Qualified name and file; of a task's step those of its coroutine. Of what is written in C no file."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    task = getattr(callback, "__self__", None)
    target = task.get_coro() if isinstance(task, asyncio.Task) else callback
    code: CodeType | None = getattr(target, "cr_code", None) or getattr(target, "__code__", None)
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return name, code.co_filename if code is not None else ""


def _owner(file: str) -> str:
    if file.startswith(LOADS):
        return LOAD
    return OURS if file.startswith(LIBRARY) else THEIRS


@contextmanager
def watched_loop(kind: str, watch: Watch) -> Iterator[Callable[[], asyncio.AbstractEventLoop] | None]:
    """A factory of loops of this kind (uvloop or asyncio) whose callbacks are timed within the block."""
    if kind == "uvloop":
        yield _watched_uvloop(watch)
        return
    run = asyncio.Handle._run  # noqa: SLF001 - the one place through which asyncio runs everything

    def timed(handle: Any) -> None:
        watch.time(handle._callback, run, handle)  # noqa: SLF001 - says whose it is

    with patch.object(asyncio.Handle, "_run", timed):
        yield None


def _watched_uvloop(watch: Watch) -> Callable[[], asyncio.AbstractEventLoop]:
    """Its handles cannot be reached: what it is given to run is wrapped instead."""
    if loop_factory() is None:
        raise RuntimeError("uvloop is not installed")
    import uvloop

    class WatchedLoop(uvloop.Loop):
        def call_soon(  # type: ignore[override]  # uvloop's says what the callback takes
            self, callback: Any, *args: Any, context: Any = None
        ) -> Any:
            return super().call_soon(watch.run, callback, *args, context=context)

        def call_later(  # type: ignore[override]  # `call_at` comes here, too
            self, delay: float, callback: Any, *args: Any, context: Any = None
        ) -> Any:
            return super().call_later(delay, watch.run, callback, *args, context=context)

    return WatchedLoop
