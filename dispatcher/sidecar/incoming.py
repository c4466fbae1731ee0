"""What comes in on a caller's connection, with a bound on heads and bodies in bytes and in time.

aiohttp parses strictly and holds flow control, and bounds each line of a head; not the head as a whole, not
the time that a head or a body takes, nor what stands between the chunks of a body. And when a body breaks
while it is read, the reader is never told. Of what is private in aiohttp, `_messages`, `_request_count` and
`_reading_paused` are read: nothing else tells whether a piece of input completed a request, left one
incomplete, or broke. A request that arrives in one piece costs no reading of the clock and no timer here.

Must never let what a caller sent into an answer or a log. The base of `connection`, its only user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http import RawRequestMessage

from dispatcher.sidecar.refusals import Refused, Size, head_bytes, reading, too_long

if TYPE_CHECKING:
    import asyncio

    from aiohttp import StreamReader

    from dispatcher.sidecar.settings import ServeSettings

FIELDS_MAX: Final = 256
"""Headers of a request, trailers included."""


class Incoming(web.RequestHandler):
    """A connection that bounds its input by `ServeSettings`."""

    __slots__ = (
        *("_bounds", "_counted", "_head_since", "_head_size", "_heard_at", "_heard_bytes", "_incoming"),
        *("_input_timer", "_size", "is_deaf", "is_measured"),
    )

    def __init__(self, server: web.Server, bounds: ServeSettings, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._bounds = bounds
        self._size = Size(bounds.max_head_bytes, FIELDS_MAX)
        self.is_deaf = False
        """Whatever comes is thrown away: the last request is in."""
        self.is_measured = False
        """Heads of this connection may be too long, though no line is."""
        self._counted = 0
        self._head_size = 0
        """Bytes of a head that is incomplete, or of what is no body within one."""
        self._head_since = 0.0
        self._incoming: StreamReader | None = None
        """The body that is incomplete."""
        self._heard_at = 0.0
        self._heard_bytes = 0
        self._input_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing more comes."""
        if self._input_timer is not None:
            self._input_timer.cancel()
            self._input_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, and note what it left incomplete."""
        if self.is_deaf:
            self._overhear(data)
            return
        super().data_received(data)
        if self._request_count != self._counted:
            self._see_head(len(data))
        elif self._incoming is not None:
            if self._incoming.is_eof():
                self._incoming = None
                self._head_size = 0
            elif data:
                self._grow_body(self._incoming, len(data))
        elif data:
            self._grow_head(data)

    @property
    def has_more_body(self) -> bool:
        """The body of the last request has not come to its end."""
        return self._incoming is not None and not self._incoming.is_eof()

    def resume_reading(self, *arguments: Any, **options: Any) -> None:
        """Go on after the handler took a while; the caller's time starts anew.

        (aiohttp calls this with every piece that is read, and each time does what only a pause needs.)
        """
        if self._reading_paused:
            self._heard_at = self._loop.time()
            super().resume_reading(*arguments, **options)

    def _see_head(self, size: int) -> None:
        """The last piece of input completed the head of a request, or of several; or broke the parser."""
        self._counted = self._request_count
        message, body = self._messages[-1]
        if self._head_size + size > self._size.head_bytes:
            self.is_measured = True
        self._head_size = 0
        if type(message) is not RawRequestMessage:
            self._stop_body(*reading(getattr(message, "exc", None), self._size))
        elif body.is_eof():
            self._incoming = None
        else:
            self._incoming = body
            self._heard_at = self._loop.time()
            self._heard_bytes = body.total_bytes
            self._watch(self._heard_at + self._bounds.body_timeout)

    def _grow_head(self, data: bytes) -> None:
        """No head is complete: bound its time from the first byte on, and its size."""
        if not self._head_size:
            if not data.strip(b"\r\n"):
                return  # blank lines between requests, as the parser allows them
            self._head_since = self._loop.time()
            self._watch(self._head_since + self._bounds.head_timeout)
        self._head_size += len(data)
        if self._head_size > self._size.head_bytes:
            self._refuse_head(*too_long(self._size))

    def _grow_body(self, body: StreamReader, size: int) -> None:
        """What is no body is bounded like a head: trailers, which the parser keeps, and chunk extensions."""
        self._heard_at = self._loop.time()
        if body.total_bytes != self._heard_bytes:
            self._heard_bytes = body.total_bytes
            self._head_size = 0
            return
        self._head_size += size
        is_reading = self.transport is not None and self.transport.is_reading()
        # (While it is held back, the parser has not yet seen what came.)
        if self._head_size > self._size.head_bytes and is_reading:
            self._stop_body(400, "too much that belongs to no body: trailers or chunk extensions")

    def _watch(self, due: float) -> None:
        if self._input_timer is not None:
            if self._input_timer.when() <= due:
                return
            self._input_timer.cancel()
        self._input_timer = self._loop.call_at(due, self._check_input)

    def _check_input(self) -> None:
        """Whoever has begun a head or a body must get on with it."""
        self._input_timer = None
        now, serve = self._loop.time(), self._bounds
        if self.has_more_body and self.transport is not None:
            if not self.transport.is_reading():
                self._heard_at = now  # it is us who hold it back
            due = self._heard_at + serve.body_timeout
            if now >= due:
                self._stop_body(408, f"no byte of the body came for {serve.body_timeout:g} s")
                return
        elif self._head_size:
            due = self._head_since + serve.head_timeout
            if now >= due:
                self._refuse_head(408, f"the head of a request may take {serve.head_timeout:g} s")
                return
        else:
            return
        self._watch(due)

    def _overhear(self, data: bytes) -> None:
        """Something came that is thrown away."""

    def _stop_body(self, status: int, text: str) -> None:
        """Nothing more of this connection can be read; who reads the body learns why."""
        self.is_deaf = True
        body, self._incoming = self._incoming, None
        if body is not None:
            body.set_exception(Refused(status, text))

    def _refuse_head(self, status: int, text: str) -> None:
        """A head will not be completed."""
        raise NotImplementedError


def measured(message: RawRequestMessage, connection: Incoming, bound: int) -> tuple[int, str] | None:
    """Status and text for a head that is too long as a whole, though each line is not."""
    if not connection.is_measured or head_bytes(message) <= bound:
        return None
    return too_long(Size(bound, FIELDS_MAX))
