"""The intake's HTTP server: requests are screened, numbered among the bounds, and handed to one handler.

Made by `guard.make_server` for `daemon`. The handler may answer, or raise `Refused`; it never sees a message
that is ambiguous. Connections are `connection`'s.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11

from dispatcher.repeats import Repeats
from dispatcher.sidecar.connection import CONTINUE, Connection
from dispatcher.sidecar.crowd import Crowd
from dispatcher.sidecar.incoming import FIELDS_MAX, measured
from dispatcher.sidecar.refusals import Refusal, Refused, screen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import StreamReader
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage

    from dispatcher.sidecar.settings import ServeSettings

READ_BUFFER_BYTES: Final = 65_536
"""Of a body that nobody reads, twice this is kept in memory for each connection."""
UNREAD_SECONDS: Final = 2.0
"""How long the rest of a body is thrown away after an answer that did not wait for it."""
UNREADABLE: Final = "UNKNOWN"
"""The method that aiohttp gives a request that it could not parse; no request that it can parse has it."""
LOGGER: Final = logging.getLogger("dispatcher.sidecar")


class Counters(Protocol):
    """Where what happens here is counted."""

    def request(self, route: str, status: int) -> object:
        """A request was answered."""
        ...

    def connection(self, change: int) -> object:
        """A connection was opened (+1) or closed (-1)."""
        ...


class Request(web.BaseRequest):
    """A request that the parser accepts."""

    head: RawRequestMessage
    _whole: bytes | None = None
    is_stream = False
    """Set by the handler: its time is bounded only while nothing moves, in neither direction."""
    awaits_continue = False
    """The caller sends the body once it is told to; it is told when the body is first asked for."""

    @property
    def version(self) -> HttpVersion:
        """What to answer in: not what it claims to speak, if that is neither 1.0 nor 1.1."""
        head = self.head
        is_old = head.version == HttpVersion10 and head.method != UNREADABLE
        return HttpVersion10 if is_old else HttpVersion11

    @property
    def content(self) -> StreamReader:
        """The body as a stream."""
        if self.awaits_continue:
            self._ask_for_body()
        return super().content

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            Refused: It is too long, or it did not come.
        """
        content, bound = super().content, self.client_max_size
        if self._whole is None and content.is_eof():  # it came with its head: the usual case
            self._whole = content.read_nowait()
            if len(self._whole) > bound:
                raise too_long_body(bound)
        if self._whole is not None:
            return self._whole
        size = self.content_length
        if size is not None and size > bound:
            raise too_long_body(bound)
        if self.awaits_continue:
            self._ask_for_body()
        return await super().read()

    @property
    def has_more_body(self) -> bool:
        """The body has not come to its end."""
        return not super().content.is_eof()

    @property
    def moved_bytes(self) -> int:
        """Bytes read and written for it so far."""
        return super().content.total_bytes + self.writer.output_size

    def _ask_for_body(self) -> None:
        self.awaits_continue = False
        if self.transport is not None and not self.writer.output_size:
            self.transport.write(CONTINUE)


def too_long_body(bound: int) -> Refused:
    """A body is longer than it may be."""
    return Refused(413, f"the body has more than {bound} bytes")


class Server(web.Server):
    """A protocol factory for `loop.create_server` and its like.

    Args:
        handler: Answers a request. A `Refused` that it raises, or that reading a body raises, is answered.
        serve: The bounds.
        counters: Told of connections, and of requests that no handler answered.
    """

    def __init__(
        self,
        handler: Callable[[Request], Awaitable[web.StreamResponse]],
        serve: ServeSettings,
        counters: Counters,
    ) -> None:
        super().__init__(
            self._answer,  # type: ignore[arg-type] # it is given what the request factory makes
            request_factory=self._new_request,  # type: ignore[arg-type] # likewise with connections
            handler_cancellation=True,
            logger=LOGGER,
            access_log=None,
            keepalive_timeout=serve.idle_timeout,
            lingering_time=UNREAD_SECONDS,
            max_line_size=serve.max_head_bytes,
            max_field_size=serve.max_head_bytes,
            max_headers=FIELDS_MAX,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
        )
        self.serve = serve
        self.counters = counters
        self.faults = Repeats(LOGGER, "")
        """Requests that failed here: told in few lines."""
        self._crowd = Crowd(serve, counters, self._loop)
        self.release, self.leave, self.hear = self._crowd.release, self._crowd.leave, self._crowd.hear
        self._handler = handler

    def __call__(self) -> Connection:
        """A connection that is about to be made."""
        return Connection(self, loop=self._loop, **self._kwargs)

    # ------------------------------------------------------------------------------------------- connections

    def admit(self, connection: Connection, transport: asyncio.Transport) -> bool:
        """Serve a new connection now; else it waits for a place, for which one that is idle is closed."""
        is_admitted = self._crowd.admit(connection, transport)
        if self._crowd.waits and not is_admitted:
            self._close_an_idle_one()
        return is_admitted

    @property
    def opened(self) -> int:
        """Connections that are served now."""
        return self._crowd.opened

    def pre_shutdown(self) -> None:
        """Serve nobody new, and close what is idle."""
        self._crowd.dismiss()
        self.faults.close(self._loop.time())
        super().pre_shutdown()

    def _close_an_idle_one(self) -> None:
        for one in self.connections:
            assert isinstance(one, Connection)
            if one.is_idle:
                one.force_close()
                return

    # ---------------------------------------------------------------------------------------------- requests

    def _new_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: Connection,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> Request:
        bound = self.serve.max_body_bytes
        request = Request(message, payload, protocol, writer, task, self._loop, client_max_size=bound)
        request.head = message
        protocol.begin(request)
        return request

    async def _answer(self, request: Request) -> web.StreamResponse:
        connection: Any = request.protocol
        message = request.head
        refused = screen(message) or measured(message, connection, self.serve.max_head_bytes)
        if refused is not None:
            return Refusal(*refused)
        if hdrs.EXPECT in message.headers:
            if message.headers[hdrs.EXPECT].lower() != "100-continue":
                return Refusal(417, "the only expectation that can be met is `100-continue`")
            request.awaits_continue = message.version == HttpVersion11
        # (Told its loop: to find it out costs a system call, a seventh of a publish.)
        connection.handler_task = asyncio.current_task(self._loop)
        try:
            response = await self._handler(request)
        except Refused as error:
            return self._refuse(request, error)
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(request, too_long_body(request.client_max_size))
        except asyncio.CancelledError:
            if not connection.is_overdue or connection.transport is None:
                raise
            connection.handler_task.uncancel()
            return self._refuse(request, Refused(504, f"no answer within {self.serve.request_timeout:g} s"))
        if request.awaits_continue or message.upgrade or self._crowd.waits:
            # What follows on this connection would be read as what it is not; or others wait for its place.
            response.force_close()
        return response

    def _refuse(self, request: Request, refused: Refused) -> Refusal:
        if request.writer.output_size:
            connection: Any = request.protocol
            connection.abort()
            raise ConnectionError("an answer that was begun is cut off")
        return Refusal(refused.status, refused.text)
