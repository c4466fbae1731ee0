"""The stream behind the status page: one sample and one event a second, to a bounded number of listeners.

An event is encoded once for all of them. A listener that does not read is dropped, and holds back neither
the others nor the samples; all of them end when the process does. Used by `admin`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from dispatcher.errors import DispatcherError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.sidecar.status import Monitor

logger = logging.getLogger("dispatcher")

LISTENERS_MAX: Final = 32
PERIOD_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.5
"""For what has to be read from a disk; the samples do not wait for one that hangs."""
STALL_SECONDS: Final = 5.0
"""A listener that has read nothing for so long, with its buffers full, is dropped."""
FAREWELL_SECONDS: Final = 1.0
"""For the last event, when the streams end."""
RECONNECT_MS: Final = 2_000
"""After which a browser tries again."""


class Feed:
    """Samples once a second, and tells whoever listens."""

    def __init__(
        self,
        monitor: Monitor,
        *,
        period: float = PERIOD_SECONDS,
        stall: float = STALL_SECONDS,
        listeners_max: int = LISTENERS_MAX,
    ) -> None:
        self._monitor = monitor
        self._period = period
        self._stall = stall
        self._listeners_max = listeners_max
        self._listeners: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._next = asyncio.Event()
        """Set with the next event; each has its own, so that nobody sees one twice."""
        self._event = b""
        self._is_closed = False
        self.dropped = 0
        """Listeners that did not read."""

    @property
    def listeners(self) -> int:
        """Streams that are open."""
        return len(self._listeners)

    def start(self) -> None:
        """Begin to sample, in the running loop."""
        if self._ticker is None and not self._is_closed:
            self._ticker = asyncio.get_running_loop().create_task(self._tick_on())

    async def aclose(self) -> None:
        """Sample no more, and end every stream with a last event."""
        self._is_closed = True
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
            self._ticker = None
        self._next.set()
        if self._listeners:
            await asyncio.wait(self._listeners, timeout=FAREWELL_SECONDS)

    # ------------------------------------------------------------------------------------------ sampling

    async def _tick_on(self) -> None:
        loop = asyncio.get_running_loop()
        due_at, has_failed = loop.time() + self._period, False
        while True:
            await asyncio.sleep(due_at - loop.time())
            # A loop that was held up has missed seconds: they are not made up for.
            due_at = max(due_at + self._period, loop.time())
            try:
                if self._listeners:
                    await self._look()
                self.tick()
            except Exception:
                if not has_failed:
                    logger.exception("the status could not be read; it is tried again every second")
                has_failed = True

    async def _look(self) -> None:
        with suppress(DispatcherError, TimeoutError):  # it is shown as it was
            async with asyncio.timeout(LOOK_SECONDS):
                await self._monitor.look()

    def tick(self) -> None:
        """Take a sample, and wake the listeners."""
        self._monitor.sample()
        if self._listeners:
            self._event = event("status", self._monitor.report())
        woken, self._next = self._next, asyncio.Event()
        woken.set()

    # ------------------------------------------------------------------------------------------ listening

    async def stream(self, request: web.BaseRequest, headers: Mapping[str, str]) -> web.StreamResponse:
        """Answer with events until the listener goes, stalls, or the process ends."""
        if self._is_closed or len(self._listeners) >= self._listeners_max:
            why = "it is shutting down" if self._is_closed else f"{self._listeners_max} listen already"
            busy = {**headers, "Retry-After": "5", "Content-Type": "text/plain; charset=utf-8"}
            return web.Response(status=503, body=f"{why}\n".encode(), headers=busy)
        types = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers={**headers, **types})
        response.force_close()  # no request follows on it
        task = asyncio.current_task()
        assert task is not None
        self._listeners.add(task)
        try:
            await response.prepare(request)
            if request.method != "HEAD":
                await self._tell(request, response)
        finally:
            self._listeners.discard(task)
        return response

    async def _tell(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Everything so far, then each event; raises nothing when the listener does not keep up."""
        try:
            await self._write(response, self._greeting())
            while not self._is_closed:
                await self._next.wait()
                if not self._is_closed:
                    await self._write(response, self._event)
            await self._write(response, event("end", {}))
        except TimeoutError:
            self.dropped += 1
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # it has gone

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        async with asyncio.timeout(self._stall):
            await response.write(data)

    def _greeting(self) -> bytes:
        retry = f"retry: {RECONNECT_MS}\n\n".encode()
        return retry + event("history", self._monitor.history()) + event("status", self._monitor.report())


def event(name: str, data: Any) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
