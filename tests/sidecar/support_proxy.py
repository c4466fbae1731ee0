"""The proxy behind its server, between a raw caller and a raw upstream."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dispatcher import Config
from dispatcher.sidecar.guard import Guard
from dispatcher.sidecar.proxy import Proxy
from dispatcher.sidecar.settings import ServeSettings
from tests.sidecar.support_raw import Served, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from dispatcher.sidecar.server import Request


OWN = "upstream-token"
THEIRS = "callers-token"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MEGABYTE = 1_000_000


class Sidecar(Served):
    """A server whose handler is the proxy."""

    proxy: Proxy

    async def call(self, target: str, *lines: str, token: str | None = OWN, **more: Any) -> Any:
        """One request on a connection of its own."""
        return await self.ask(request(target, *lines, token=token, **more), more.get("method", "GET"))


def request(
    target: str, *lines: str, method: str = "GET", token: str | None = OWN, body: bytes | None = None
) -> bytes:
    """A request with these header lines."""
    head = [f"{method} {target} HTTP/1.1", "Host: sidecar.example"]
    head += [f"Authorization: Bearer {token}"] if token else []
    head += [f"Content-Length: {len(body)}"] if body is not None else []
    return "\r\n".join([*head, *lines, "", ""]).encode("latin-1") + (body or b"")


@asynccontextmanager
async def proxied(url: str, token: str = OWN, **settings: Any) -> AsyncIterator[Sidecar]:
    """The proxy in front of an upstream."""
    config = Config.load(env={}, token=token, url=url, transport_connect_timeout=2.0)
    proxy = Proxy(config, ServeSettings(**settings))
    guard = Guard((THEIRS,), token)

    async def handle(request: Request) -> web.StreamResponse:
        return await proxy.handle(request, guard.check(request.raw_path, request.headers))

    await proxy.start()
    try:
        async with served(handle, **settings) as server:
            sidecar = Sidecar(server.server, server.counters, server.port)
            sidecar.clients, sidecar.proxy = server.clients, proxy
            yield sidecar
    finally:
        await proxy.aclose()


def lines_of(head: str) -> dict[str, str]:
    """Header lines by lower-case name; one that comes twice is an error."""
    found: dict[str, str] = {}
    for line in head.rstrip("\r\n").split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        assert name.lower() not in found, head
        found[name.lower()] = value
    return found
