"""The intake's server on raw sockets, against the clock: nobody is waited for without end, nor cut short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.sidecar.support_raw import CHUNKED, GET, POST, RawClient, echo, post, served

if TYPE_CHECKING:
    from dispatcher.sidecar.server import Request

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: their transports differ."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.parametrize(
    "begun", [b"GET /", b"GET /x\r\n", GET + b"X-Slow: "], ids=["line", "HTTP/0.9", "most"]
)
async def test_a_slow_head(begun: bytes) -> None:
    """Its time runs from the first byte, and dripping does not renew it."""
    loop = asyncio.get_running_loop()
    async with served(echo, head_timeout=0.4) as server:
        client = await server.connect()
        client.send(begun)
        since = loop.time()
        drip = asyncio.create_task(_drip(client, b"a"))
        answer = await client.answer()
        drip.cancel()
        assert 0.3 < loop.time() - since < 5
        assert answer.status == 408
        assert "0.4 s" in answer.error
        assert await client.ended() == b""


async def test_a_slow_head_after_a_request() -> None:
    """A kept connection gets no more time than a new one, and a blank line does not begin a head."""
    async with served(echo, head_timeout=0.2, idle_timeout=30) as server:
        client = await server.connect()
        client.send(post())
        assert (await client.answer()).status == 200
        client.send(b"\r\n")
        await asyncio.sleep(0.4)
        client.send(post())
        assert (await client.answer()).status == 200
        client.send(b"POST /x")
        assert (await client.answer()).status == 408


async def test_a_slow_head_behind_a_busy_request() -> None:
    """The one that is being answered is answered; then the connection ends, with nothing said out of turn."""
    release = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        await release.wait()
        return web.Response(text="done")

    async with served(handler, head_timeout=0.1) as server:
        client = await server.connect()
        client.send(post())
        await server.until(lambda: server.server.requests_count == 1)
        client.send(b"POST /x")
        await asyncio.sleep(0.3)
        release.set()
        assert (await client.answer()).body == b"done"
        assert await client.ended() == b""


@pytest.mark.parametrize("sent", [post(body=b"abc")[:-1], CHUNKED + b"9\r\nabc"], ids=["length", "chunked"])
async def test_a_body_that_stops(sent: bytes) -> None:
    """No byte for the time of one byte: 408."""
    async with served(echo, body_timeout=0.2) as server:
        answer = await server.ask(sent)
        assert answer.status == 408
        assert "0.2 s" in answer.error


async def test_a_body_that_trickles_is_waited_for() -> None:
    """As long as bytes come, and no longer than a request may take."""
    async with served(echo, body_timeout=0.5, request_timeout=1.5) as server:
        client = await server.connect()
        client.send(POST + b"Content-Length: 6\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.15)
            client.send(b"a")
        assert (await client.answer()).status == 200
        client.send(POST + b"Content-Length: 1000\r\n\r\n")
        drip = asyncio.create_task(_drip(client, b"a"))
        answer = await client.answer()
        drip.cancel()
        assert answer.status == 504
        assert "1.5 s" in answer.error


async def test_an_idle_connection_is_closed_silently() -> None:
    """A new one and a used one; one in use is not idle."""

    async def handler(request: Request) -> web.Response:
        await asyncio.sleep(0.6)
        return web.Response(text="slow")

    async with served(handler, idle_timeout=0.2) as server:
        fresh, used = await server.connect(), await server.connect()
        used.send(post())
        assert await fresh.ended() == b""
        assert (await used.answer()).body == b"slow"
        assert await used.ended() == b""


async def test_an_answer_that_takes_too_long() -> None:
    """The handler is cancelled, the caller told; the next connection is served."""
    cancelled: list[bool] = []

    async def handler(request: Request) -> web.Response:
        if request.raw_path == "/quick":
            return web.Response(text="quick")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError

    async with served(handler, request_timeout=0.3) as server:
        client = await server.connect()
        client.send(post("/quick"))
        assert (await client.answer()).body == b"quick"
        client.send(post())
        answer = await client.answer()
        assert (answer.status, cancelled) == (504, [True])
        assert await client.ended() == b""
        assert server.counters.requests == {("refused", 504): 1}


async def test_a_handler_that_cannot_be_cancelled_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the connection is reset: no caller waits for ever."""
    monkeypatch.setattr("dispatcher.sidecar.connection.OVERDUE_SECONDS", 0.2)
    stuck = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        while not stuck.is_set():
            try:
                await stuck.wait()
            except asyncio.CancelledError:
                continue
        return web.Response()

    async with served(handler, request_timeout=0.1) as server:
        client = await server.connect()
        client.send(post())
        assert await client.ended() == b""
        stuck.set()


async def _drip(client: RawClient, data: bytes) -> None:
    while True:
        await asyncio.sleep(0.05)
        client.send(data)


async def _pour(request: Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(bytes(100_000))
        await asyncio.sleep(0)


async def test_a_caller_who_does_not_read() -> None:
    """A stream that nobody takes is cut off when nothing has moved for a request's time."""

    async def handler(request: Request) -> web.StreamResponse:
        request.is_stream = True
        return await _pour(request)

    async with served(handler, request_timeout=0.3) as server:
        client = await server.connect(receive_bytes=4096)
        client.send(post())
        await server.until(lambda: server.server.opened == 1)
        await server.until(lambda: server.server.opened == 0)


@pytest.mark.parametrize("size", [1_000, 50_000_000])
async def test_a_caller_who_does_not_read_a_whole_answer(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer, long or the last of many short ones, is in the way of nothing: the connection ends."""
    monkeypatch.setattr("dispatcher.sidecar.connection.FLUSH_SECONDS", 0.1)

    async def handler(request: Request) -> web.StreamResponse:
        return web.Response(body=bytes(size))

    async with served(handler, request_timeout=0.3, idle_timeout=0.3) as server:
        client = await server.connect(receive_bytes=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(1 if size > 1_000_000 else 20_000):
            client.send(post())
        await server.until(lambda: server.server.requests_count > 0)
        await server.until(lambda: server.server.opened == 0)


async def test_a_stream_may_take_long_as_long_as_it_moves() -> None:
    """Its bound is on standing still; what is no stream is cut off in the middle."""

    async def handler(request: Request) -> web.StreamResponse:
        request.is_stream = request.raw_path == "/stream"
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(12):
            await answer.write(b"tick")
            await asyncio.sleep(0.1)
        await answer.write_eof()
        return answer

    async with served(handler, request_timeout=0.4) as server:
        answer = await server.ask(post("/stream"))
        assert (answer.body, answer.is_complete) == (b"tick" * 12, True)
        answer = await server.ask(post("/bounded"))
        assert not answer.is_complete
        assert b"tick" in answer.body
