"""How long a loop is kept from what is ready, and by what; told by the process that is measured.

A task sleeps for two milliseconds again and again: how late it comes is what anybody in the loop would have
waited, whatever the cause, the loop's own turn among them. Each callback is timed: how long its thread did
not run in the midst of it, and how long meanwhile other threads of the process did. That is the store's
thread (there is no other that works), with Python's lock or on the same core; the rest is the kernel's, who
gave the core to another process. What was found since it was last asked stands in a `Kept`. Used by
`sidecar_servers`; read by `durable`.
"""

from __future__ import annotations

import asyncio
from time import perf_counter, process_time, thread_time
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from benchmarks.callbacks import Watch, described

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE: Final = 0.002
"""Seconds: less, and uvloop, which counts milliseconds, would never rest."""
OUTBOX: Final = ("Outbox.", "Relay.", "Sink.", "SQLiteStore.", "Bell.", "DurableSubmission.")
"""How the names of callbacks begin that are there for the outbox only."""


class Kept(Struct):
    """What a loop was kept for since it was last asked, in milliseconds."""

    late: float = 0.0
    """By which a task that was ready ran too late, at most."""
    late_p99: float = 0.0
    paused: float = 0.0
    """The longest that the loop's thread did not run in the midst of a callback."""
    by_store: float = 0.0
    """The longest of it that another thread of the process ran."""
    outbox: float = 0.0
    """CPU time of the longest callback that is there for the outbox."""
    outbox_name: str = ""


class LoopWatch(Watch):
    """The watch on one loop; made before it, for `watched_loop`."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = Kept()
        self._late: list[float] = []

    def time(self, callback: Callable[..., object], runner: Callable[..., object], *args: object) -> object:
        """Time what runs this callback."""
        if not self.is_on:
            return runner(*args)
        collected = self.collections.total
        wall, own, every = perf_counter(), thread_time(), process_time()
        try:
            return runner(*args)
        finally:
            own = thread_time() - own
            others, wall = process_time() - every - own, perf_counter() - wall
            kept = self._kept
            kept.paused = max(kept.paused, (wall - own) * 1e3)
            kept.by_store = max(kept.by_store, min(wall - own, others) * 1e3)
            own = (own - self.collections.total + collected) * 1e3
            if own > kept.outbox and (name := described(callback)[0]).startswith(OUTBOX):
                kept.outbox, kept.outbox_name = own, name

    async def watch(self) -> None:
        """Until it is cancelled."""
        with self.on():
            while True:
                due = perf_counter() + PAUSE
                await asyncio.sleep(PAUSE)
                self._late.append(max(0.0, perf_counter() - due) * 1e3)

    def take(self) -> str:
        """A `Kept` as JSON; begins anew."""
        late, self._late = sorted(self._late) or [0.0], []
        kept, self._kept = self._kept, Kept()
        kept.late, kept.late_p99 = late[-1], late[int(len(late) * 0.99)]
        return msgspec.json.encode(kept).decode()
