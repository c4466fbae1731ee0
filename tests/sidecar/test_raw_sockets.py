"""The intake's server on raw sockets: what no client library sends is refused, bounded or kept as it is."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from dispatcher.sidecar.refusals import Refused
from tests.sidecar.attacks.messages import REFUSED
from tests.sidecar.support_raw import CHUNKED, GET, HOST, POST, SECRET, echo, post, served

if TYPE_CHECKING:
    from dispatcher.sidecar.server import Request

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: their transports differ."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A clear answer with its status, then the end; no handler knows, and nothing sent is said or logged."""
    data, status = REFUSED[name]
    handled: list[str] = []

    async def handler(request: Request) -> web.Response:
        await request.read()
        handled.append(request.raw_path)
        return web.Response()

    caplog.set_level(logging.DEBUG)
    async with served(handler) as server:
        client = await server.connect()
        client.send(data)
        answer = await client.answer()
        assert answer.status == status, answer
        assert len(answer.error) > 10
        assert SECRET not in answer.body
        is_old = b" HTTP/1.0\r\n" in data
        assert answer.line.startswith("HTTP/1.0 " if is_old else "HTTP/1.1 ")
        assert is_old or answer.header("connection") == "close"
        assert await client.ended() == b""
        assert server.counters.requests == {("refused", status): 1}
    assert not handled
    assert SECRET.decode() not in caplog.text


@pytest.mark.parametrize(
    "target",
    [
        "/v2/publish/https://example.com//a/./b/../c?x=1&y=%26",
        "//double//slash/",
        "/%2e%2E/%2f%00%zz",
        "/a?",
        "/?a=b?c=d&&=",
        "/\"<>\\^`{|}'",
        "/a#b",
    ],
)
async def test_a_target_is_kept_byte_for_byte(target: str) -> None:
    """Nothing is decoded, collapsed or redirected."""
    async with served(echo) as server:
        answer = await server.ask(post(target, b"hello"))
        assert json.loads(answer.body) == {"method": "POST", "target": target, "body": "hello"}


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (CHUNKED + b"5\r\nabcde\r\n3;a=b;c\r\nfgh\r\n0\r\n\r\n", "abcdefgh"),
        (CHUNKED + b"00005\r\nabcde\r\n0\r\nX-Trailer: 1\r\n\r\n", "abcde"),
        (POST + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", "a"),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab", "ab"),
        (b"\r\n" + POST + b"Content-Length: 2\r\n\r\nab", "ab"),
        (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab", "ab"),
        (b"POST /x HTTP/1.0\r\nContent-Length: 2\r\n\r\nab", "ab"),
    ],
    ids=["extensions", "trailers", "upper case", "compressed", "blank line before", "h2c", "HTTP/1.0"],
)
@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "byte by byte"])
async def test_it_is_understood(sent: bytes, body: str, in_pieces: bool) -> None:
    """Unusual but allowed: the body is what it says, however the bytes arrive."""
    async with served(echo) as server:
        client = await server.connect()
        for piece in [sent[at : at + 1] for at in range(len(sent))] if in_pieces else [sent]:
            client.send(piece)
            await asyncio.sleep(0)
        answer = await client.answer()
        assert json.loads(answer.body)["body"] == body


async def test_a_body_that_breaks_off_under_way_is_answered() -> None:
    """The handler was reading already when the chunks went wrong: it learns why, and so does the caller."""
    learned: list[str] = []

    async def handler(request: Request) -> web.Response:
        try:
            await request.read()
        except Refused as refused:
            learned.append(refused.text)
            raise
        return web.Response()

    async with served(handler) as server:
        client = await server.connect()
        client.send(CHUNKED + b"5\r\nabcde\r\n")
        await server.until(lambda: server.server.requests_count == 1)
        client.send(b"zz\r\n" + SECRET)
        answer = await client.answer()
        assert (answer.status, learned) == (400, [answer.error])
        assert "chunk size" in answer.error
        assert await client.ended() == b""


# -------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        GET + b"X: " + b"a" * 2000 + b"\r\n\r\n",
        GET + b"a" * 2000 + b": x\r\n\r\n",
        GET + b"X: aaaaaaaaaa\r\n" * 100 + b"\r\n",
    ],
    ids=["line", "value", "name", "all together"],
)
@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
async def test_a_head_that_is_too_long(data: bytes, in_pieces: bool) -> None:
    """However its bytes are distributed, over lines or over time."""
    async with served(echo, max_head_bytes=1_024) as server:
        client = await server.connect()
        step = 100 if in_pieces else len(data)
        for at in range(0, len(data), step):
            client.send(data[at : at + step])
            await asyncio.sleep(0)
        answer = await client.answer()
        assert answer.status == 431
        assert "1024 bytes" in answer.error
        assert await client.ended() == b""


async def test_a_head_that_just_fits() -> None:
    """The bound is the head's own: a long body behind it in the same piece does not count."""
    head = post("/x", b"b" * 5_000)[:-5_000]
    filler = b"X: " + b"a" * (1_024 - len(head) - 5) + b"\r\n"
    fits = head[:-2] + filler + b"\r\n"
    assert len(fits) == 1_024
    async with served(echo, max_head_bytes=1_024) as server:
        assert (await server.ask(fits + b"b" * 5_000)).status == 200
        over = head[:-2] + b"Y" + filler + b"\r\n"
        assert (await server.ask(over + b"b" * 5_000)).status in (200, 431)
        far_over = head[:-2] + b"Y: 1234567890\r\n" * 2 + filler + b"\r\n"
        assert (await server.ask(far_over + b"b" * 5_000)).status == 431


async def test_a_body_that_is_too_long() -> None:
    """One that says so is refused before a byte of it; one that does not, at the bound."""
    async with served(echo, max_body_bytes=1_000) as server:
        answer = await server.ask(POST + b"Content-Length: 1001\r\n\r\n")
        assert (answer.status, answer.error) == (413, "the body has more than 1000 bytes")
        assert (await server.ask(post("/x", b"a" * 1_000))).status == 200
        assert (await server.ask(CHUNKED + b"3e8\r\n" + b"a" * 1_000 + b"\r\n0\r\n\r\n")).status == 200
        for size in (1_001, 300_000):
            answer = await server.ask(CHUNKED + f"{size:x}\r\n".encode() + b"a" * size)
            assert answer.status == 413, size


@pytest.mark.parametrize("flood", [b"X: " + b"a" * 500 + b"\r\n", None], ids=["trailers", "extensions"])
async def test_what_is_no_body_is_bounded_too(flood: bytes | None) -> None:
    """Trailers are kept by the parser, and an extension can go on for ever: neither is a body's byte."""
    async with served(echo, max_head_bytes=1_024) as server:
        client = await server.connect()
        client.send(CHUNKED + b"1\r\na\r\n" + (b"0\r\n" if flood else b"1;"))
        for _ in range(20):
            client.send(flood or b"a" * 500)
            await asyncio.sleep(0.001)
        answer = await client.answer()
        assert answer.status in (400, 431)
        assert await client.ended() == b""


async def test_a_body_that_nobody_reads_stays_outside() -> None:
    """A handler that waits for something else holds the caller back; 50 MB do not come into memory."""
    release = asyncio.Event()
    seen: list[Request] = []

    async def handler(request: Request) -> web.Response:
        seen.append(request)
        await release.wait()
        size = 0
        async for part in request.content.iter_any():
            size += len(part)
        return web.Response(text=str(size))

    async with served(handler, body_timeout=0.3) as server:
        client = await server.connect()
        total = 50_000_000
        client.send(POST + f"Content-Length: {total}\r\n\r\n".encode() + bytes(total))
        await server.until(lambda: bool(seen) and not seen[0].transport.is_reading())  # type: ignore[union-attr]
        held = seen[0].content.total_bytes
        assert held < 1_000_000
        await asyncio.sleep(0.8)  # more than a caller's time for a byte: but it is not the caller who is slow
        assert seen[0].content.total_bytes == held
        release.set()
        assert (await client.answer()).body == str(total).encode()
