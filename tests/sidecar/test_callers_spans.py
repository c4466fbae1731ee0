"""The sidecar traced: its requests link to the spans that callers name, by every way in."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import orjson
import pytest

from dispatcher import Dispatcher
from dispatcher.errors import ConfigError
from dispatcher.outbox import MemoryStore, Outbox
from dispatcher.sidecar.callers_spans import Mode, begin
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.generation import Generation
from dispatcher.sidecar.settings import SidecarConfig
from dispatcher.testing import LocalUpstream, local_upstream
from tests.tracing_support import URL, Spans, header, links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio
TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"


@asynccontextmanager
async def sidecar(
    upstream: LocalUpstream, spans: Spans, mode: Mode, *, has_outbox: bool = False
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of an intake that is traced, outbox or not."""
    config = SidecarConfig.load(
        env={}, token=upstream.token, url=upstream.url, serve={"tracing": mode, "port": 8090}
    )
    dispatcher = Dispatcher(config.dispatcher)
    begin(dispatcher, mode, spans.provider)
    async with dispatcher, Outbox(MemoryStore(), dispatcher) as outbox:
        generation = Generation(config, dispatcher, IntakeCounters(), outbox if has_outbox else None)
        await generation.start()
        listener = await asyncio.get_running_loop().create_server(generation.answer, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        headers = {"Authorization": f"Bearer {upstream.token}"}
        try:
            async with aiohttp.ClientSession(base, headers=headers) as session:
                yield session
        finally:
            listener.close()
            await generation.aclose(1.0)


async def hand_in(session: aiohttp.ClientSession, way: str) -> None:
    """One message under the caller's span."""
    item = {"destination": URL, "body": "hello"}
    path, data, kind = {
        "publish": (f"/v2/publish/{URL}", b"hello", "text/plain"),
        "bytes": (f"/v2/publish/{URL}", b"\xff", "application/octet-stream"),
        "enqueue": (f"/v2/enqueue/q/{URL}", b"hello", "text/plain"),
        "batch": ("/v2/batch", orjson.dumps([item]), "application/json"),
        "lines": ("/v2/batch", orjson.dumps(item) + b"\n", "application/x-ndjson"),
    }[way]
    headers = {"Content-Type": kind, "traceparent": TRACEPARENT}
    async with session.post(path, data=data, headers=headers) as response:
        assert response.status == 200, await response.text()
        await response.read()


@pytest.mark.parametrize("has_outbox", [False, True])
@pytest.mark.parametrize("way", ["publish", "bytes", "enqueue", "batch", "lines"])
async def test_a_request_links_to_its_callers_span(way: str, has_outbox: bool) -> None:
    """By every way in; the destination is told of it only where that is asked for."""
    for mode, told in (("on", None), ("forward", TRACEPARENT)):
        spans = Spans()
        async with (
            local_upstream() as upstream,
            sidecar(upstream, spans, mode, has_outbox=has_outbox) as session,  # type: ignore[arg-type]
        ):
            await hand_in(session, way)
            (row,) = upstream.accepted()
        assert [links(span) for span in spans.requests] == [{(TRACE, SPAN)}]
        assert header(row, "Upstash-Forward-traceparent") == told


async def test_callers_do_not_get_each_others_spans() -> None:
    """A connection without one, after a request with one, has none."""
    spans = Spans()
    async with local_upstream() as upstream, sidecar(upstream, spans, "on") as session:
        await hand_in(session, "publish")
        async with session.post(f"/v2/publish/{URL}", data=b"x") as response:
            assert response.status == 200
        for wrong in ("00-xyz", "", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
            headers = {"traceparent": wrong}
            async with session.post(f"/v2/publish/{URL}", data=b"x", headers=headers) as response:
                assert response.status == 200
    assert [links(span) for span in spans.requests] == [{(TRACE, SPAN)}, set(), set(), set(), set()]


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks for nothing of it while it is off."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "dispatcher.tracing", raising=False)
    config = SidecarConfig.load(env={}, token="t")
    dispatcher = Dispatcher(config.dispatcher)
    begin(dispatcher, "off")
    with pytest.raises(ConfigError, match=r"serve\.tracing.*qstash-dispatcher\[otel\]"):
        begin(dispatcher, "on")
