"""The HTTP shell: reads requests off sockets, carries replies and faults out on them. It decides nothing.

Built on aiohttp's low-level server, without a router: the destination of a publish is read from the raw
request target, so nothing may decode, collapse or redirect it. It never closes a connection first, unless a
fault says so. Made by `server`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from dispatcher.devserver.inspection import PREFIX
from dispatcher.devserver.responder import answer, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.devserver.journal import Journal
    from dispatcher.devserver.responder import SimulatedReply
    from dispatcher.devserver.service import Headers, Service

KEEPALIVE_SECONDS: Final = 3600.0
LINE_BYTES_MAX: Final = 64 * 1024
READ_BUFFER_BYTES: Final = 1024 * 1024
DRIP_PIECES: Final = 10
INSTANCE_BYTES: Final = 6
_REASONS: Final = {200: "OK"}


class App:
    """Carries out on sockets what `service` answers."""

    def __init__(self, service: Service, clock: Callable[[], float], journal: Journal | None) -> None:
        self.service = service
        self._clock = clock
        self._journal = journal

    def make_server(self) -> web.Server:
        """The protocol factory for `loop.create_server`."""
        return web.Server(
            self.handle,
            request_factory=self._make_request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
        )

    def _make_request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        size_max = self.service.upstream.max_batch_bytes + 1
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=size_max)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            limit = self.service.upstream.max_batch_bytes
            return _response(refusal(413, f"request too large, the limit is {limit} bytes"))
        headers = tuple(request.headers.items())
        target = request.raw_path
        if target.startswith(PREFIX):
            return _response(self._inspect(request, target, headers, body))
        return await self._carry_out(request, self._answer(request.method, target, headers, body))

    def _answer(self, method: str, target: str, headers: Headers, body: bytes) -> SimulatedReply:
        """The reply, after what it accepted is on disk. No `await`: requests do not interleave here."""
        return self._kept(self.service.handle(method, target, headers, body, self._clock()))

    def _kept(self, reply: SimulatedReply) -> SimulatedReply:
        if self._journal is not None:
            changes = self.service.upstream.take_changes()
            if changes:
                try:
                    self._journal.append(changes)
                except OSError as error:
                    return refusal(500, f"the state file could not be written: {error.strerror}")
        return reply

    def _inspect(
        self, request: web.BaseRequest, target: str, headers: Headers, body: bytes
    ) -> SimulatedReply:
        if not (_is_loopback(request) or self.service.is_authorized(target, headers)):
            return refusal(401, "unauthorized: from another machine, inspection needs the token")
        if target == f"{PREFIX}reset" and request.method == "POST":
            self.reset()
            return answer(200, {})
        return self._kept(self.service.inspect(request.method, target, headers, body, self._clock()))

    def reset(self) -> None:
        """Forget everything accepted and counted, on disk too."""
        instance = new_instance()
        if self._journal is not None:
            self._journal.reset(instance)
        self.service.reset(instance)

    async def _carry_out(self, request: web.BaseRequest, reply: SimulatedReply) -> web.StreamResponse:
        if math.isinf(reply.latency):
            await asyncio.get_running_loop().create_future()  # until the client goes, or the server stops
        if reply.latency > 0:
            await asyncio.sleep(reply.latency)
        if reply.status is None or reply.truncated:
            _break_off(request, reply)
        if reply.drip_over:
            return await _drip(request, reply)
        return _response(reply)


def new_instance() -> str:
    """The part of message ids that tells one run's from another's."""
    return secrets.token_hex(INSTANCE_BYTES)


def _response(reply: SimulatedReply) -> web.Response:
    assert reply.status is not None or not reply.body
    return web.Response(status=reply.status or 500, body=reply.body, headers=reply.headers)


def _break_off(request: web.BaseRequest, reply: SimulatedReply) -> None:
    """Reset the connection; or write the part of the reply there is, and close it."""
    transport = request.transport
    if transport is None:
        return
    if reply.status is None:
        transport.abort()
        return
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    lines += [f"Content-Length: {reply.declared_bytes}", "", ""]
    transport.write("\r\n".join(lines).encode() + reply.body)
    transport.close()


async def _drip(request: web.BaseRequest, reply: SimulatedReply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status or 200, headers=reply.headers)
    response.content_length = len(reply.body)
    await response.prepare(request)
    step = max(1, -(-len(reply.body) // DRIP_PIECES))
    pieces = [reply.body[start : start + step] for start in range(0, len(reply.body), step)]
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(reply.drip_over / len(pieces))
    return response


def _is_loopback(request: web.BaseRequest) -> bool:
    try:
        return ip_address((request.remote or "").partition("%")[0]).is_loopback
    except ValueError:
        return False
