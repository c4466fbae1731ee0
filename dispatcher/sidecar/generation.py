"""What answers the intake's connections under one configuration; a reload makes another generation of it.

A connection belongs to the generation that accepted it and is bounded by its settings, but each of its
requests is answered by the newest. The dispatcher, the counters and the state outlive them all. Used by
`daemon`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from dispatcher.sidecar import callers_spans, logs
from dispatcher.sidecar.app import App
from dispatcher.sidecar.guard import Guard, make_server
from dispatcher.sidecar.intake import Intake
from dispatcher.sidecar.kept_messages import KeptMessages
from dispatcher.sidecar.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.outbox import Outbox
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.server import Request
    from dispatcher.sidecar.settings import SidecarConfig

CUT_SECONDS: Final = 0.1
"""For a handler that is cancelled to come to its end."""


class Generation:
    """Guard, intake and proxy under one configuration, and the server of the connections it accepted."""

    def __init__(
        self,
        config: SidecarConfig,
        dispatcher: Dispatcher,
        counters: IntakeCounters,
        outbox: Outbox | None = None,
    ) -> None:
        serve = config.serve
        for hide in (counters.hide, logs.hide):
            hide(config.dispatcher.token, *config.tokens, config.outbox.password or "")
        guard = Guard(config.tokens, config.dispatcher.token, serve.authentication)
        self._proxy = Proxy(config.dispatcher, serve)
        intake = Intake(dispatcher, serve, counters, outbox, config.outbox.respond_after)
        kept = None if outbox is None else KeptMessages(outbox, self._proxy, counters)
        self._app = App(dispatcher, intake, self._proxy, guard, counters, kept)
        handle = callers_spans.under_callers(self._handle, serve.tracing)
        self._server: web.Server = make_server(handle, serve, counters)

    async def start(self) -> None:
        """Open the proxy's connections."""
        await self._proxy.start()

    @property
    def connections(self) -> int:
        """How many connections that were accepted here are open."""
        return len(self._server.connections)

    def answer(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        return self._server()

    def succeed(self, successor: Generation) -> None:
        """From now on the successor answers the requests of connections that were accepted here."""
        self._app = successor._app

    async def aclose(self, grace: float) -> None:
        """Let answers under way be written within so many seconds, then close every connection."""
        await shut(self._server, grace)
        await self._proxy.aclose()

    def _handle(self, request: Request) -> Awaitable[web.StreamResponse]:
        return self._app.handle(request)


async def shut(server: web.Server, grace: float) -> None:
    """Close idle connections at once, the others when their answer is written or after so many seconds."""
    server.pre_shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):  # aiohttp would wait twice as long
            await server.shutdown(grace)
    await server.shutdown(CUT_SECONDS)
