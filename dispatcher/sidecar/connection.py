"""One caller's connection, with a bound on the time of an answer and a decent end for every case.

aiohttp closes when a caller closes only its own side; here whoever does so still gets the answers that are
due, and one who has gone altogether is told apart, so that its handler is cancelled. Refusals are written so
that they arrive. All on public hooks of aiohttp's, but for `_messages` (see `incoming`).

What it must never do: log or answer with bytes that a caller sent, wait for a caller without end, or close
first on one who keeps the bounds. A request costs one reading of the clock and no timer: the connection's
timer for answers is re-armed only when it fires. Made by `server`, its only caller.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp.http import HttpVersion11

from dispatcher.sidecar.incoming import Incoming
from dispatcher.sidecar.refusals import Refusal, Refused, raw_refusal, reading

if TYPE_CHECKING:
    from aiohttp import web

    from dispatcher.sidecar.server import Request, Server

LINGER_SECONDS: Final = 1.0
"""How long what a refused caller still sends is thrown away: closing at once could destroy the answer on its
way, because the system resets a connection that is closed with unread input."""
FLUSH_SECONDS: Final = 30.0
"""How long a closed connection may take to hand its last bytes to the caller."""
OVERDUE_SECONDS: Final = 5.0
"""How long a cancelled handler and its 504 may take."""
PROBE_SECONDS: Final = 0.02
PROBE_SECONDS_MAX: Final = 1.0
KEEPALIVE_SECONDS: Final = 10
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Incoming):
    """A connection under the bounds of `ServeSettings`."""

    __slots__ = (
        *("_answer_timer", "_answered", "_closes_after", "_due", "_is_ended", "_is_lingering", "_is_open"),
        *("_progress", "_server", "handler_task", "is_overdue", "request"),
    )

    def __init__(self, server: Server, **settings: Any) -> None:
        super().__init__(server, server.serve, **settings)
        self._server = server
        self.request: Request | None = None
        """The one that is answered, from its head to the last byte of its answer."""
        self.handler_task: asyncio.Task[Any] | None = None
        self.is_overdue = False
        """The handler was cancelled because it took too long."""
        self._answer_timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._progress = 0
        self._is_open = False
        self._is_ended = False
        """The caller has closed its side."""
        self._is_lingering = False
        self._closes_after = False
        """Close it once the answer that is due is written."""
        self._answered: asyncio.Event | None = None
        """Set then, if somebody waits for it."""

    # ------------------------------------------------------------------------------------------ coming, going

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it now or later, or turn it away when there are too many."""
        self.is_deaf = True
        way = cast("asyncio.Transport", transport)  # (uvloop's are none of asyncio's classes)
        if self._server.admit(self, way):
            self.enter(way)

    def enter(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        """There is a place for it; it has sent this already."""
        self.is_deaf = False
        self._is_open = True
        super().connection_made(transport)
        if early:
            self.data_received(early)

    def _overhear(self, data: bytes) -> None:
        if not self._is_open:
            self._server.hear(self, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it; aiohttp cancels the handler."""
        if self._is_open:
            self._is_open = False
            self._server.release()
        else:
            self._server.leave(self)
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
        if self._answered is not None:
            self._answered.set()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """It was answered, nothing is due, and nothing of another request is there."""
        is_free = self.request is None and not self._messages and not self._head_size
        return is_free and self._counted > 0 and not self._is_ended

    def close(self) -> None:
        """Close it, after the answer that is due and the rest of the body that it answers.

        (aiohttp's throws away whatever comes from now on: a stream under way would never see its end.)
        """
        if self.request is not None and self.has_more_body:
            self._closes_after = True
        else:
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """End it; the rest of a body under way is still read, for as long, so that its answer has an end."""
        if self._closes_after and self.request is not None:
            self._answered = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._answered.wait()
        await super().shutdown(timeout)

    def force_close(self) -> None:
        """Close it, also where the caller does not read what is still to be written."""
        transport = self.transport
        super().force_close()
        if transport is not None:
            self._bury(transport)

    def abort(self) -> None:
        """Reset it: the answer that was begun will not be completed."""
        if self.transport is not None:
            self.transport.abort()

    def _bury(self, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size():
            self._loop.call_later(FLUSH_SECONDS, transport.abort)

    # ------------------------------------------------------------------------------------------- half-closed

    def eof_received(self) -> bool:  # type: ignore[override] # aiohttp's closes always, ours not
        """The caller closed its side; an answer that is due is still given.

        Returns:
            Whether our side stays open.
        """
        if self._is_lingering or not self._is_open:
            return False
        self._is_ended = True
        if self.request is None and not self._messages:
            if self._head_size:
                self._refuse_head(400, "the connection ended within the head of a request")
            return bool(self._head_size)
        if self.has_more_body:
            self._stop_body(400, "the connection ended within the body of the request")
        else:
            self._probe(0.0)
        return True

    def _probe(self, pause: float) -> None:
        """Find out whether the caller has only closed its side or has gone altogether.

        Both look alike until something is written to it: one who has gone answers with a reset. So an interim
        answer is written, which every client has to bear. Within an answer its own bytes do that; where there
        are none, the system asks, and learns it a minute later.
        """
        request, transport = self.request, self.transport
        if transport is None or (request is None and not self._messages):
            return
        if pause:
            if _is_reset(transport):
                self.abort()
                return
        elif request is None or (request.version == HttpVersion11 and not request.writer.output_size):
            transport.write(CONTINUE)
        else:
            _ask_often(transport)
        pause = min(PROBE_SECONDS_MAX, 2 * pause or PROBE_SECONDS)
        self._loop.call_later(pause, self._probe, pause)

    def _refuse_head(self, status: int, text: str) -> None:
        """There is no request to answer: write at once, or, after an answer that is due, just close."""
        self.is_deaf = True
        is_idle = self.request is None and not self._messages
        transport = self.transport
        self.close()
        if not is_idle or transport is None:
            return
        self._server.counters.request("refused", status)
        transport.write(raw_refusal(status, text))
        self._is_lingering = True
        if self._is_ended or not _shut(transport):
            self.force_close()
        else:
            self._loop.call_later(LINGER_SECONDS, self.force_close)

    # ------------------------------------------------------------------------------------------------ answers

    def begin(self, request: Request) -> None:
        """The answer to a request is due from now on."""
        self.request = request
        self._due = self._loop.time() + self._bounds.request_timeout
        if self._answer_timer is None:
            self._answer_timer = self._loop.call_at(self._due, self._check_answer)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the answer; after a refusal, close in a way that lets the caller read it."""
        self.handler_task = None
        is_over = self._closes_after or (self.is_deaf and not self._messages)
        is_last = is_over or cast("Request", request).has_more_body
        if is_last and not resp.prepared:
            resp.force_close()
        outcome = await super().finish_response(request, resp, start_time)
        if isinstance(outcome[0], Refusal):
            self._server.counters.request("refused", outcome[0].status)
            await self._linger()
        self.request = None
        if self._answered is not None:
            self._answered.set()
        if self._closes_after or (self._is_ended and not self._messages):
            self.close()
        if not outcome[0].keep_alive and self.transport is not None:
            self._bury(self.transport)
        return outcome

    async def _linger(self) -> None:
        self.is_deaf = self._is_lingering = True
        transport = self.transport
        if transport is not None and not self._is_ended and _shut(transport):
            transport.resume_reading()
            await asyncio.sleep(LINGER_SECONDS)  # ends earlier when the caller closes: then this is cancelled
        self.force_close()

    def _check_answer(self) -> None:
        """Cancel the handler that takes too long, and reset the connection where even that does not help."""
        self._answer_timer = None
        request, now = self.request, self._loop.time()
        if request is None or self.transport is None:
            return
        if now >= self._due:
            timeout = self._bounds.request_timeout
            if request.is_stream and self._has_moved(request):
                self._due = now + timeout
            elif self.is_overdue or self.handler_task is None:
                self.abort()
                return
            else:
                self.is_overdue = True
                self._due = now + OVERDUE_SECONDS
                self.handler_task.cancel()
        self._answer_timer = self._loop.call_at(self._due, self._check_answer)

    def _has_moved(self, request: Request) -> bool:
        before, self._progress = self._progress, request.moved_bytes
        return before != self._progress

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp answers where no handler did: input it cannot parse, a handler that raised."""
        if request.writer.output_size > 0:
            self.abort()
            raise ConnectionError("an answer that was begun is cut off")
        if status == 400:
            return Refusal(*reading(exc, self._size))
        if exc is not None:
            frames = "".join(traceback.format_tb(exc.__traceback__))
            # Not the exception's own text: it may quote the request.
            self._tell("a request failed here", exc, f":\n{frames}")
        return Refusal(status, "the sidecar failed to handle this request; its log says where")

    def log_exception(self, *args: Any, **options: Any) -> None:
        """What aiohttp finds wrong besides; that the rest of a body is broken which nobody wanted is not."""
        error = options.get("exc_info")
        if not isinstance(error, Refused):
            self._tell(str(args[0]), error)

    def _tell(self, words: str, error: BaseException | None, then: str = "") -> None:
        """In few lines, however often it happens."""
        name, faults = type(error).__name__, self._server.faults
        words = f"{words}, with {name}"
        faults.failed(f"faults with {name}", words, self._loop.time(), then=then, level=logging.ERROR)


def _shut(transport: asyncio.Transport) -> bool:
    """Close our side, if it can be."""
    with suppress(OSError, NotImplementedError, RuntimeError):
        transport.write_eof()
        return True
    return False


def _ask_often(transport: asyncio.Transport) -> None:
    """Let the system find out sooner than after two hours that nobody is there."""
    sock = transport.get_extra_info("socket")
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        with suppress(OSError, AttributeError):  # a Unix socket; a system without it
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), KEEPALIVE_SECONDS)


def _is_reset(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    try:
        return sock is None or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except OSError:
        return True
