"""The intake's server on raw sockets: how many, in what order, half-closed, gone, and how refusals arrive."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from dispatcher.sidecar.crowd import TURNED_AWAY_MAX
from dispatcher.sidecar.guard import make_server
from dispatcher.sidecar.settings import ServeSettings
from tests.sidecar.support_raw import CHUNKED, POST, SECRET, RawClient, echo, post, served

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.sidecar.server import Request

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: their transports differ."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_one_too_many_waits_and_then_is_told() -> None:
    """While all that are served are busy, for as long as callers have patience; its request is not lost."""
    busy = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        await busy.wait()
        return web.Response(body=await request.read())

    async with served(handler, max_connections=2, patience=0.3) as server:
        clients = [await server.connect() for _ in range(2)]
        for client in clients:
            client.send(post(body=b"first"))
        await server.until(lambda: server.server.opened == 2)
        late = await server.connect()
        late.send(post(body=b"late"))
        answer = await late.answer()
        assert (answer.status, answer.header("retry-after")) == (503, "1")
        assert "2 connections" in answer.error
        assert await late.ended() == b""
        assert server.counters.connections_now == 2
        patient = await server.connect()
        patient.send(post(body=b"patient"))
        await server.until(lambda: server.server._crowd.waits)
        busy.set()
        assert [(await client.answer()).body for client in clients] == [b"first"] * 2
        assert (await patient.answer()).body == b"patient"


async def test_who_is_idle_makes_place() -> None:
    """A connection that only waits for its next request is closed for one that has come."""
    async with served(echo, max_connections=3) as server:
        clients = [await server.connect() for _ in range(3)]
        for client in clients:
            client.send(post())
            assert (await client.answer()).status == 200
        late = await server.connect()
        late.send(post())
        assert (await late.answer()).status == 200
        assert server.server.opened == 3
        assert await clients[0].ended() == b""


async def test_a_crowd_is_served_one_after_the_other() -> None:
    """Callers of one server with half as many places, all at once: nobody is refused."""
    async with served(echo, max_connections=20) as server:
        clients = await asyncio.gather(*(server.connect() for _ in range(40)))
        for number, client in enumerate(clients):
            client.send(post(body=b"%d" % number))
        answers = [await client.answer() for client in clients]
        assert [answer.status for answer in answers] == [200] * 40


async def test_who_gives_up_while_it_waits_is_forgotten() -> None:
    """Its place in the line is another's."""
    async with served(echo, max_connections=1) as server:
        first = await server.connect()
        first.send(b"POST / HTTP/1.1\r\n")
        await server.until(lambda: server.server.opened == 1)
        gone = await server.connect()
        await server.until(lambda: server.server._crowd.waits)
        gone.reset()
        await server.until(lambda: not server.server._crowd.waits)
        late = await server.connect()
        late.send(post())
        await server.until(lambda: server.server._crowd.waits)
        first.reset()
        assert (await late.answer()).status == 200


async def test_a_flood_of_connections_costs_no_descriptors() -> None:
    """Few wait, those who are told that it is too much are few, and the others are reset at once."""
    async with served(echo, max_connections=1) as server:
        first = await server.connect()
        first.send(b"POST / HTTP/1.1\r\n")  # it has begun a request, so it is not idle
        await server.until(lambda: server.server.opened == 1)
        flood = await asyncio.gather(*(server.connect() for _ in range(TURNED_AWAY_MAX + 51)))
        await server.until(lambda: server.server._crowd.waits)
        said = await asyncio.gather(*(one.ended() for one in flood[1:]))
        assert sum(b" 503 " in one for one in said) <= TURNED_AWAY_MAX
        assert sum(one == b"" for one in said) >= 50
        first.send(b"Host: sidecar\r\nContent-Length: 0\r\n\r\n")
        assert (await first.answer()).status == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    """However many come at once, few are in memory."""
    most = 0
    connections: set[Any] = set()

    async def handler(request: Request) -> web.Response:
        nonlocal most
        connections.add(request.protocol)
        most = max(most, len(request.protocol._messages))
        await asyncio.sleep(0)
        return web.Response(body=await request.read())

    async with served(handler) as server:
        client = await server.connect()
        client.send(b"".join(post("/x", str(number).encode()) for number in range(2_000)))
        for number in range(2_000):
            assert (await client.answer()).body == str(number).encode()
        assert most < 100
        assert len(connections) == 1


async def test_a_body_of_the_next_request_may_still_come() -> None:
    """An answer in time does not end the connection because the request behind it is incomplete."""
    release = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        await release.wait()
        return web.Response(body=await request.read())

    async with served(handler) as server:
        client = await server.connect()
        second = post("/x", b"second")
        client.send(post("/x", b"first") + second[:-3])
        await server.until(lambda: server.server.requests_count == 1)
        release.set()
        assert (await client.answer()).body == b"first"
        client.send(second[-3:])
        assert (await client.answer()).body == b"second"


async def test_garbage_behind_a_request() -> None:
    """What was asked before it is answered, the garbage is refused, what follows is not read."""
    async with served(echo) as server:
        client = await server.connect()
        client.send(post("/first"))
        assert (await client.answer()).status == 200
        client.send(post("/second", b"ab") + b"cd" + post("/smuggled"))
        answer = await client.answer()
        assert answer.status == 400
        assert await client.ended() == b""
        assert server.server.requests_count == 2


async def test_garbage_behind_a_busy_request() -> None:
    """The request under way gets its answer first."""
    release = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        await release.wait()
        return web.Response(text="done")

    async with served(handler) as server:
        client = await server.connect()
        client.send(post("/first"))
        await server.until(lambda: server.server.requests_count == 1)
        for _ in range(100):
            client.send(b"garbage\r\n\r\n")
            await asyncio.sleep(0)
        release.set()
        assert (await client.answer()).body == b"done"
        assert (await client.answer()).status == 400
        assert await client.ended() == b""


async def test_behind_an_offer_of_another_protocol_nothing_is_read() -> None:
    """aiohttp drops what is pipelined behind `h2c`; so the connection ends instead of waiting."""
    async with served(echo) as server:
        client = await server.connect()
        client.send(post("/first", connection="Upgrade", upgrade="h2c") + post("/second"))
        assert json.loads((await client.answer()).body)["target"] == "/first"
        assert await client.ended() == b""


# -------------------------------------------------------------------------------------------- half-closed


async def test_half_closed_connections_are_answered() -> None:
    """Whoever closes only its own side, as `nc -N` does, gets every answer, and then the end."""

    async def handler(request: Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.Response(body=await request.read())

    async with served(handler) as server:
        client = await server.connect()
        client.send(b"".join(post("/x", str(number).encode()) for number in range(3)))
        client.end()
        answers = [await client.answer() for _ in range(4)]
        bodies = [one.body for one in answers if one.status != 100]
        assert bodies == [b"0", b"1", b"2"]
        assert await client.ended() == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"POST /x HT", 400),
        (POST + b"Content-Length: 9\r\n\r\nabc", 400),
        (CHUNKED + b"5\r\nab", 400),
    ],
    ids=["nothing", "in the head", "in the body", "in a chunk"],
)
async def test_half_closed_in_the_middle(sent: bytes, status: int | None) -> None:
    """What cannot be completed any more is refused at once."""
    async with served(echo) as server:
        client = await server.connect()
        client.send(sent)
        if sent:
            await asyncio.sleep(0.05)
        client.end()
        if status is not None:
            assert (await client.answer()).status == status
        assert await client.ended() == b""


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_caller_who_goes_away(way: str) -> None:
    """The handler is cancelled, though closing looks like closing one side only."""
    cancelled = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with served(handler) as server:
        client = await server.connect()
        client.send(post())
        await server.until(lambda: server.server.requests_count == 1)
        getattr(client, way)()
        async with asyncio.timeout(5):
            await cancelled.wait()
        await server.until(lambda: server.server.opened == 0)


# -------------------------------------------------------------------------------------------------- others


async def test_a_body_is_asked_for_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Expect: 100-continue`: the go-ahead comes with the first read, and only then."""
    monkeypatch.setattr("dispatcher.sidecar.server.UNREAD_SECONDS", 0.1)

    async def handler(request: Request) -> web.Response:
        if request.raw_path == "/no":
            return web.Response(status=401, text="no")
        return await echo(request)

    async with served(handler) as server:
        client = await server.connect()
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await client.answer()).status == 100
        client.send(b"ab")
        assert json.loads((await client.answer()).body)["body"] == "ab"
        client.send(POST.replace(b"/x", b"/no") + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (401, "close")
        assert await client.ended() == b""
        too_long = POST + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
        assert (await server.ask(too_long)).status == 413


async def test_a_handler_that_fails_says_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """500 and a sentence; the log says where, not what the error quotes."""

    async def handler(request: Request) -> web.Response:
        raise ValueError(f"{SECRET.decode()} in {request.raw_path}")

    async with served(handler) as server:
        client = await server.connect()
        client.send(post())
        answer = await client.answer()
        assert answer.status == 500
        assert SECRET not in answer.body
        assert await client.ended() == b""
    assert SECRET.decode() not in caplog.text
    assert "ValueError" in caplog.text
    assert "test_raw_connections.py" in caplog.text


@pytest.mark.parametrize("rest", [b"zz\r\n", None], ids=["broken", "missing"])
async def test_the_rest_of_a_body_that_nobody_wanted(
    rest: bytes | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer came before it; whatever becomes of it is nobody's error, and the connection ends."""
    monkeypatch.setattr("dispatcher.sidecar.server.UNREAD_SECONDS", 1.0)

    async def handler(request: Request) -> web.Response:
        return web.Response(status=401, text="no")

    async with served(handler, body_timeout=0.1) as server:
        client = await server.connect()
        client.send(CHUNKED + b"5\r\nabc")
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (401, "close")
        if rest:
            client.send(b"de\r\n" + rest)
        assert await client.ended() == b""
    assert not caplog.records


async def test_a_caller_who_still_sends_hears_the_refusal() -> None:
    """Closing with unread input would reset the connection and destroy the answer on its way."""
    async with served(echo, max_body_bytes=1_000) as server:
        for _ in range(5):
            client = await server.connect()
            client.send(POST + b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000))
            assert (await client.answer()).status == 413
            await asyncio.wait_for(client.writer.drain(), 5)
            assert await client.ended() == b""


async def test_head_and_body_leave_in_one_piece_and_the_connection_stays() -> None:
    """As callers' keep-alive wants it."""
    async with served(echo) as server:
        client = await server.connect()
        for _ in range(3):
            client.send(post())
            answer = await client.answer()
            assert answer.header("connection") is None
        assert server.server.opened == 1


async def test_a_unix_socket(tmp_path: Path) -> None:
    """The same server, without addresses; half-closing and going away are told apart there too."""
    cancelled = asyncio.Event()

    async def handler(request: Request) -> web.Response:
        if request.raw_path == "/wait":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise
        return await echo(request)

    class Counted:
        def request(self, route: str, status: int) -> None: ...

        def connection(self, change: int) -> None: ...

    server = make_server(handler, ServeSettings(), Counted())
    path = str(tmp_path / "s")
    listener = await asyncio.get_running_loop().create_unix_server(server, path)
    try:
        client = RawClient(*await asyncio.open_unix_connection(path))
        client.send(post("/x", b"hi"))
        assert json.loads((await client.answer()).body)["body"] == "hi"
        client.send(post("/wait"))
        await asyncio.sleep(0.05)
        client.close()
        async with asyncio.timeout(5):
            await cancelled.wait()
    finally:
        listener.close()
        await server.shutdown(0.05)
