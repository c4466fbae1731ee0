"""Who waits for something to claim: the loop's side of `Store.wait`, the same for every store of a process.

A store tells a `Bell` what may be claimed and when; those who wait look again whenever that has changed, or
when its time has come. It has no task and no thread of its own; only the stores use it, in their loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import inf
from typing import Final

WAIT_SECONDS_MAX: Final = 3600.0
"""A timer's length; whoever waits longer looks again meanwhile (clocks are set, machines sleep)."""


class Bell:
    """Rings when something may be claimed."""

    def __init__(self) -> None:
        self._due_at = inf
        self._waiters: set[asyncio.Future[None]] = set()

    def set(self, due_at: float) -> None:
        """Something may be claimed at this Unix instant; 0: now; infinity: nothing."""
        if due_at == self._due_at:
            return
        self._due_at = due_at
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, now: float) -> None:
        """Return when the instant has come; `now` is the caller's clock, in Unix seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (seconds := self._due_at - now - (loop.time() - began)) > 0:
            waiter = loop.create_future()
            self._waiters.add(waiter)
            try:
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes as the bell rings.
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(seconds, WAIT_SECONDS_MAX)):
                        await waiter
            finally:
                self._waiters.discard(waiter)
