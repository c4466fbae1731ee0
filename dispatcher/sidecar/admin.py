"""The admin listener: whether the process lives and is ready, its metrics, its status, and the status page.

It only reads: nothing here changes the dispatcher or the intake, whoever asks; dead letters of an outbox may
be retried and deleted, see `admin_outbox`. It asks for no credential (but for the export of dead letters), so
it shows no body, token or query string, and belongs on loopback; there it answers only to the names of
loopback, so that no page of the web can reach it by a name of its own. Made by `daemon`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from dispatcher.sidecar.admin_outbox import CHANGES, PREFIX, OutboxAdmin
from dispatcher.sidecar.assets import Asset, load_assets
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.exposition import Exposition
from dispatcher.sidecar.feed import Feed
from dispatcher.sidecar.server import Request, Server
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.sidecar.status import Monitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.outbox import Outbox
    from dispatcher.sidecar.state import State

BOUNDS: Final = ServeSettings(max_connections=256, max_head_bytes=16_384, max_body_bytes=1_048_576)
"""This listener's own: what hangs here holds up nothing of the intake."""
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Server": "dispatcher",
}
LIVE_HEADERS: Final = {**SECURITY_HEADERS, "Cache-Control": "no-store"}
TEXT: Final = "text/plain; charset=utf-8"
PROBES: Final = ("/livez", "/readyz")
NOWHERE: Final = "there are /, /livez, /readyz, /metrics, /status, /status/stream and /outbox"
_HOST: Final = re.compile(r"(\[[^\]]+\]|[^:]+)(?::\d*)?")


class Admin:
    """Answers on the admin listener; from `make_server` to `aclose` it takes a sample a second."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        counters: IntakeCounters,
        state: State,
        outbox: Outbox | None = None,
        key: str = "",
    ) -> None:
        counters.hide(dispatcher.config.token, key)
        self._dispatcher = dispatcher
        self._state = state
        self._exposition = Exposition(dispatcher, counters, outbox)
        self._outbox = OutboxAdmin(outbox, counters, key)
        self.monitor = Monitor(dispatcher, counters, state, self._outbox)
        self.feed = Feed(self.monitor)
        self._assets = load_assets()
        self._routes: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status": self._status,
        }
        self._server = AdminServer(self.handle, self.feed)

    def make_server(self) -> AdminServer:
        """The protocol factory for `loop.create_server`; in the running loop. The samples begin here."""
        self.feed.start()
        return self._server

    async def aclose(self) -> None:
        """Take no more samples, and end every stream; the server's `shutdown` does so too."""
        await self.feed.aclose()

    async def handle(self, request: Request) -> web.StreamResponse:
        """Answer one request."""
        path = request.head.path.partition("?")[0]
        refusal = self._refusal(request, path)
        if refusal is not None:
            return refusal
        if path == PREFIX or path.startswith(f"{PREFIX}/"):
            status, value = await self._outbox.handle(request, path)
            return _lines(value) if isinstance(value, bytes) else _json(status, value)
        if path == "/status/stream":
            request.is_stream = True
            return await self.feed.stream(request, LIVE_HEADERS)
        route = self._routes.get(path)
        if route is not None:
            return route(request)
        asset = self._assets.get(path)
        return _text(404, NOWHERE) if asset is None else _carry(request, asset)

    def _refusal(self, request: web.BaseRequest, path: str) -> web.Response | None:
        is_change = path in CHANGES
        if request.method == "POST" if is_change else request.method in ("GET", "HEAD"):
            pass
        elif is_change:
            return _text(405, "this changes something", {"Allow": "POST"})
        else:
            return _text(405, "nothing can be changed here", {"Allow": "GET, HEAD"})
        if path not in PROBES and not is_meant(request):
            return _text(421, "this listener is on loopback: ask for it as localhost, or by its address")
        return None

    # ------------------------------------------------------------------------------------------- answers

    def _livez(self, _request: web.BaseRequest) -> web.Response:
        why_not = self._state.why_not_alive(self._dispatcher.statistics().state)
        return _text(503, why_not) if why_not else _text(200, "alive")

    def _readyz(self, _request: web.BaseRequest) -> web.Response:
        why_not = self._state.why_not_ready(self._dispatcher.statistics().state)
        return _text(503, why_not) if why_not else _text(200, "ready")

    def _metrics(self, request: web.BaseRequest) -> web.Response:
        body, content_type = self._exposition.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={**LIVE_HEADERS, "Content-Type": content_type})

    def _status(self, _request: web.BaseRequest) -> web.Response:
        return _json(200, self.monitor.report())


class AdminServer(Server):
    """The intake's, with bounds of its own; its connections and refusals are not counted as the intake's."""

    def __init__(self, handler: Callable[[Request], Awaitable[web.StreamResponse]], feed: Feed) -> None:
        super().__init__(handler, BOUNDS, IntakeCounters())
        self._feed = feed

    async def shutdown(self, timeout: float | None = None) -> None:
        """End the streams and what is idle, then wait for what is being answered."""
        await self._feed.aclose()
        self.pre_shutdown()
        await super().shutdown(timeout)


def _json(status: int, value: object) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    headers = {**LIVE_HEADERS, "Content-Type": "application/json"}
    return web.Response(status=status, body=body, headers=headers)


def _lines(body: bytes) -> web.Response:
    return web.Response(body=body, headers={**LIVE_HEADERS, "Content-Type": "application/x-ndjson"})


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    found = {**LIVE_HEADERS, "Content-Type": TEXT, **(headers or {})}
    return web.Response(status=status, body=f"{text}\n".encode(), headers=found)


def _carry(request: web.BaseRequest, asset: Asset) -> web.Response:
    headers = {
        **SECURITY_HEADERS,
        "Content-Type": asset.content_type,
        "Cache-Control": "no-cache",
        "ETag": asset.tag,
    }
    if request.headers.get("If-None-Match") == asset.tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=asset.body, headers=headers)


def is_meant(request: web.BaseRequest) -> bool:
    """Whether `Host` may name this listener: on loopback only an address or localhost.

    A request without one is no browser's.
    """
    transport = request.transport
    local = None if transport is None else transport.get_extra_info("sockname")
    host = request.headers.get("Host", "").rstrip(".").lower()
    if not host or not isinstance(local, tuple) or not _address(local[0], is_loopback=True):
        return True
    named = _HOST.fullmatch(host)
    return named is not None and (named[1] == "localhost" or _address(named[1].strip("[]")))


def _address(text: str, *, is_loopback: bool = False) -> bool:
    """Whether it is an address, if wanted one of loopback."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return not is_loopback or mapped.is_loopback
