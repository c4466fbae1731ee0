"""Which part answers a request: what is ours, the intake, the proxy, or nobody.

The path is read raw: nothing is decoded, collapsed or redirected, since a destination may stand in it. A
caller is let in by its token before a byte of its body is read. Called by the server that `guard` makes; made
by `daemon`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from dispatcher.sidecar.bulk import CONTENT_TYPE as NDJSON
from dispatcher.sidecar.cancels import is_bulk
from dispatcher.sidecar.dialect import BATCH, ENQUEUE, PUBLISH
from dispatcher.sidecar.guard import Caller
from dispatcher.sidecar.kept_messages import KEPT, STATES
from dispatcher.sidecar.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.guard import Guard
    from dispatcher.sidecar.intake import Intake
    from dispatcher.sidecar.kept_messages import KeptMessages
    from dispatcher.sidecar.proxy import Proxy
    from dispatcher.sidecar.server import Request

OURS: Final = "/dispatcher/"

UNAUTHORIZED: Final = "unauthorized: the token is missing or wrong"


class App:
    """Answers every request of the intake's listeners.

    Args:
        dispatcher: Asked for its state only.
        intake: Takes messages.
        proxy: Passes everything else to the upstream, as far as the caller may.
        guard: Tells callers apart.
        counters: Told of each request that is answered here, or passed on.
        kept: Answers for the messages of an outbox, if there is one.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        intake: Intake,
        proxy: Proxy,
        guard: Guard,
        counters: IntakeCounters,
        kept: KeptMessages | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._intake = intake
        self._proxy = proxy
        self._kept = kept
        self._check = guard.check
        self._count = counters.request

    def handle(self, request: Request) -> Awaitable[web.StreamResponse]:
        """Answer one request."""
        target = request.raw_path
        route = "publish" if target.startswith(PUBLISH) else route_of(target, request.content_type)
        caller = self._check(target, request.headers)
        if route == "proxy":
            return self._pass_on(request, caller)
        if caller is Caller.NONE:
            return self._say(route, 401, {"error": UNAUTHORIZED})
        if route == "own":
            return self._own(request.method, target)
        return self._intake.handle(request, route)

    async def _pass_on(self, request: Request, caller: Caller) -> web.StreamResponse:
        kept = self._kept
        if kept is not None and request.raw_path.startswith(KEPT):
            response = await kept.handle(request, caller)
        elif kept is not None and request.method == "DELETE" and is_bulk(request.raw_path):
            response = await kept.cancel_many(request, caller)
        else:
            response = await self._proxy.handle(request, caller)
        self._count("proxy", response.status)
        return response

    async def _say(self, route: str, status: int, value: object) -> web.StreamResponse:
        self._count(route, status)
        return Reply(status, orjson.dumps(value))

    async def _tell(self, kept: KeptMessages, target: str) -> web.StreamResponse:
        return await self._say("own", *await kept.tell(target))

    def _own(self, method: str, target: str) -> Awaitable[web.StreamResponse]:
        """What is ours on this listener: that this is a sidecar, how it does, and what its outbox has."""
        if self._kept is not None and target.startswith(STATES) and method == "GET":
            return self._tell(self._kept, target)
        if target.partition("?")[0] != OURS or method != "GET":
            text = "not found: status, metrics and health are at the admin listener (serve.admin_port)"
            return self._say("own", 404, {"error": text})
        return self._say("own", 200, {"state": self._dispatcher.statistics().state})


def route_of(target: str, content_type: str) -> str:
    """The route of a request, a word of `counters.ROUTES`."""
    if target.startswith(ENQUEUE):
        return "enqueue"
    path = target.partition("?")[0]
    if path == BATCH:
        return "bulk" if content_type == NDJSON else "batch"
    return "own" if path.startswith(OURS) else "proxy"
