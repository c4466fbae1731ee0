"""The proxy's way back: answers as they are, streams that stream, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config
from dispatcher.sidecar.proxy import Proxy
from dispatcher.sidecar.settings import ServeSettings
from tests.sidecar.support_proxy import MEGABYTE, OK, OWN, THEIRS, proxied, request
from tests.sidecar.support_raw import FakeUpstream, body_of, canned

if TYPE_CHECKING:
    from tests.sidecar.support_raw import RawClient

pytestmark = pytest.mark.anyio


async def test_an_answer_comes_back_as_it_is() -> None:
    """Status, reason, headers in their order and spelling, repeated ones; no cookie, no hop's own."""
    reply = (
        b"HTTP/1.1 418 Teapot it is\r\nx-One: 1\r\nX-Two: a=b\r\nX-Two: c=d\r\nDate: then\r\n"
        b"Set-Cookie: a=b\r\n"
        b"Server: theirs\r\nContent-Length: 2\r\nConnection: keep-alive, X-Named\r\nX-Named: 1\r\n"
        b'Keep-Alive: timeout=5\r\nAlt-Svc: h3=":443"\r\nRetry-After: 7\r\n\r\nok'
    )
    async with FakeUpstream(canned(reply)) as upstream, proxied(upstream.url) as sidecar:
        for _ in range(2):
            answer = await sidecar.call("/v2/x")
            assert answer.line == "HTTP/1.1 418 Teapot it is"
            assert answer.headers == [
                *(("x-One", "1"), ("X-Two", "a=b"), ("X-Two", "c=d"), ("Date", "then")),
                *(("Server", "theirs"), ("Content-Length", "2"), ("Retry-After", "7")),
            ]
            assert answer.body == b"ok"
            assert "Cookie" not in upstream.head


@pytest.mark.parametrize(
    ("method", "reply", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", 200, "12345"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", 304, None),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "0"),
        ("GET", b"HTTP/1.1 307 Go\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n", 307, "0"),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "0"),
    ],
)
async def test_answers_without_a_body(method: str, reply: bytes, status: int, length: str | None) -> None:
    """They have none here either, a redirect is not followed, and the connection serves the next request."""
    async with FakeUpstream(canned(reply)) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect()
        for _ in range(2):
            client.send(request("/v2/x", method=method))
            answer = await client.answer(method)
            assert (answer.status, answer.header("content-length")) == (status, length)
            assert answer.header("content-type") is None
            if status == 307:
                assert answer.header("location") == "http://evil.example/"
        assert (len(upstream.heads), upstream.connections) == (2, 1)


@pytest.mark.parametrize("framing", ["length", "chunks", "end"])
async def test_a_compressed_answer_stays_compressed(framing: str) -> None:
    """However it is framed; nothing is unpacked on the way."""
    packed = gzip.compress(b"words " * 50_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: text/plain\r\n"
    pieces = {
        "length": [head, f"Content-Length: {len(packed)}\r\n\r\n".encode(), packed],
        "chunks": [
            head,
            b"Transfer-Encoding: chunked\r\n\r\n",
            f"{len(packed):x}\r\n".encode(),
            packed,
            b"\r\n0\r\n\r\n",
        ],
        "end": [head, b"Connection: close\r\n\r\n", packed],
    }[framing]

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        for piece in pieces:
            connection.send(piece)
        if framing == "end":
            connection.close()

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        answer = await sidecar.call("/v2/x")
        assert (answer.body, answer.is_complete) == (packed, True)
        assert answer.header("content-encoding") == "gzip"
        assert answer.header("content-type") == "text/plain"


async def test_events_come_one_by_one() -> None:
    """Head and each piece are passed on at once: the upstream waits for the caller to have seen the last."""
    seen = asyncio.Queue[bytes]()

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert await seen.get() == b"head"
        for number in range(5):
            event = f"data: {number}\n\n".encode()
            connection.send(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            assert await seen.get() == event
        connection.send(b"0\r\n\r\n")

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect()
        client.send(request("/v2/events/stream"))
        async with asyncio.timeout(10):
            await client.reader.readuntil(b"\r\n\r\n")
            seen.put_nowait(b"head")
            for number in range(5):
                event = await client.chunk()
                assert event == f"data: {number}\n\n".encode()
                seen.put_nowait(event)
            assert await client.chunk() == b""


async def test_an_answer_to_http_1_0() -> None:
    """No chunks for who does not know them: the end of the connection is the end of the body."""
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    async with FakeUpstream(canned(reply)) as upstream, proxied(upstream.url) as sidecar:
        answer = await sidecar.ask(f"GET /v2/x HTTP/1.0\r\nAuthorization: Bearer {OWN}\r\n\r\n".encode())
        assert (answer.line, answer.body) == ("HTTP/1.0 200 OK", b"ok")
        assert answer.header("transfer-encoding") is None


# ----------------------------------------------------------------------------------------------- big and long


async def test_fifty_megabytes_up() -> None:
    """An upstream that does not read holds the caller back: a fraction of the body is on its way."""
    release, digest, size = asyncio.Event(), hashlib.sha256(), 50 * MEGABYTE

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        await release.wait()
        left = size
        while left:
            piece = await connection.reader.read(min(left, MEGABYTE))
            left -= len(piece)
            digest.update(piece)
        connection.send(OK)

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect()
        client.send(request("/v2/x", f"Content-Length: {size}", method="POST"))
        piece, sent, expected = bytes(range(250)) * 400, 0, hashlib.sha256()
        pouring = asyncio.create_task(client.writer.drain())
        while sent < size:
            client.send(piece)
            sent += len(piece)
            expected.update(piece)
            pouring = asyncio.create_task(client.writer.drain())
            if not (await asyncio.wait([pouring], timeout=0.5))[0]:
                release.set()  # it stands: now the upstream reads
                assert sent < 30 * MEGABYTE
                await pouring
        assert release.is_set()
        assert (await client.answer()).body == b"ok"
        assert digest.digest() == expected.digest()


async def test_fifty_megabytes_down() -> None:
    """A caller who does not read holds the upstream back."""
    size, sent, stood = 50 * MEGABYTE, 0, asyncio.Event()
    piece = bytes(range(250)) * 400

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        nonlocal sent
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        while sent < size:
            connection.send(piece)
            sent += len(piece)
            draining = asyncio.create_task(connection.writer.drain())
            if not (await asyncio.wait([draining], timeout=0.5))[0]:
                stood.set()
                await draining

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect(receive_bytes=65_536)
        client.send(request("/v2/x"))
        async with asyncio.timeout(20):
            await client.reader.readuntil(b"\r\n\r\n")
            await stood.wait()
            assert sent < 30 * MEGABYTE
            digest = hashlib.sha256()
            got = 0
            while got < size:
                part = await client.reader.read(MEGABYTE)
                digest.update(part)
                got += len(part)
        assert digest.digest() == hashlib.sha256(piece * (size // len(piece))).digest()


async def test_connections_to_the_upstream_are_kept() -> None:
    """One caller after another uses the same one."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        for number in range(20):
            assert (await sidecar.call(f"/v2/x/{number}")).status == 200
            body = str(number).encode()
            assert (await sidecar.call("/v2/x", method="POST", body=body)).status == 200
        assert (len(upstream.heads), upstream.connections) == (40, 1)


# ------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("when", ["before the answer", "within the answer", "within the body"])
async def test_a_caller_who_goes_away_takes_the_request_along(when: str) -> None:
    """The upstream's connection is closed too, whatever it was doing."""

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        if when == "within the answer":
            await body_of(connection, head)
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not connection.reader.at_eof():
                connection.send(b"1\r\na\r\n")
                await asyncio.sleep(0.05)
        await connection.reader.read()

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect()
        whole = request("/v2/x", method="POST", body=b"abc")
        client.send(whole[:-1] if when == "within the body" else whole)
        await sidecar.until(lambda: bool(upstream.heads))
        if when == "within the answer":
            await client.reader.readuntil(b"\r\n\r\n")
        client.close()
        await sidecar.until(lambda: upstream.lost == 1)


async def test_no_upstream() -> None:
    """502 says that nothing was reached, and where it is not: no address of another's is told."""
    async with FakeUpstream(canned(OK)) as upstream:
        url = upstream.url
    async with proxied(url) as sidecar:
        answer = await sidecar.call("/v2/x?secret=1")
        assert answer.status == 502
        assert "cannot connect" in answer.error
        assert "secret" not in answer.error
        assert (await sidecar.call("/v2/x")).status == 502


@pytest.mark.parametrize(
    "reply",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"],
    ids=["nothing", "garbage", "too long a head"],
)
async def test_an_upstream_that_makes_no_sense(reply: bytes) -> None:
    """502 with a sentence, and no word of what it said."""

    async def answer_and_close(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        await body_of(connection, head)
        connection.send(reply)
        connection.close()

    async with FakeUpstream(answer_and_close) as upstream, proxied(upstream.url) as sidecar:
        answer = await sidecar.call("/v2/x", method="POST", body=b"abc")
        assert answer.status == 502
        assert "garbage" not in answer.error


async def test_an_upstream_that_says_nothing() -> None:
    """504 after a request's time."""

    async def silent(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        await connection.reader.read()

    async with FakeUpstream(silent) as upstream, proxied(upstream.url, request_timeout=0.3) as sidecar:
        assert (await sidecar.call("/v2/x")).status == 504
        await sidecar.until(lambda: upstream.lost == 1)


@pytest.mark.parametrize("framing", ["length", "chunks", "short"])
async def test_an_answer_that_breaks_off(framing: str) -> None:
    """What was begun is cut off here too, never completed; what was not begun is a 502."""
    head = b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n" if framing == "chunks" else b""
    head = head or b"Content-Length: " + (b"10" if framing == "short" else b"1000000") + b"\r\n\r\nabcde"

    async def reply(_: FakeUpstream, connection: RawClient, _head: bytes) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\n" + head)
        await connection.writer.drain()
        connection.close()

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect()
        client.send(request("/v2/x"))
        if framing == "short":
            assert (await client.answer()).status == 502
            return
        if got := await client.ended():  # a reset may destroy it altogether
            assert got.startswith(b"HTTP/1.1 200")
            assert not got.endswith(b"0\r\n\r\n")


async def test_an_upstream_that_answers_before_it_has_read_all() -> None:
    """Its answer comes through, and that connection is not used again."""

    async def early(upstream: FakeUpstream, connection: RawClient, head: bytes) -> None:
        if b"POST" in head:
            connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
            await connection.reader.read()
        else:
            connection.send(OK)

    async with FakeUpstream(early) as upstream, proxied(upstream.url) as sidecar:
        client = await sidecar.connect()
        client.send(request("/v2/x", "Content-Length: 50000000", method="POST") + bytes(3 * MEGABYTE))
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"large")
        assert (await sidecar.call("/v2/x")).body == b"ok"
        assert upstream.connections == 2


async def test_a_connection_that_went_stale() -> None:
    """A request without a body is repeated once; a body that was streamed is gone, and never sent in part."""

    async def once(upstream: FakeUpstream, connection: RawClient, head: bytes) -> None:
        body = await body_of(connection, head)
        bodies.append(body)
        if upstream.heads.count(head) > 1 or b"first" in head:
            connection.send(OK)
        else:
            connection.close()

    bodies: list[bytes] = []
    async with FakeUpstream(once) as upstream, proxied(upstream.url) as sidecar:
        assert (await sidecar.call("/v2/first")).status == 200
        assert (await sidecar.call("/v2/second")).status == 200
        assert upstream.connections == 2
        answer = await sidecar.call("/v2/third", method="PUT", body=b"abc")
        assert answer.status == 502
        assert "was lost" in answer.error
        assert set(bodies) <= {b"", b"abc"}
        assert [body for head, body in zip(upstream.heads, bodies, strict=False) if b"PUT" in head] == [
            b"abc"
        ]


def test_its_repr() -> None:
    """No token in it."""
    proxy = Proxy(Config(token=OWN, url="https://example.com/base"), ServeSettings())
    assert repr(proxy) == "<Proxy to https://example.com/base, all>"


@pytest.mark.parametrize("size", [0, 1, 70_000])
@pytest.mark.parametrize("framing", ["length", "chunks", "bytes"])
async def test_a_caller_never_learns_the_upstream_s_token(size: int, framing: str) -> None:
    """Should an answer quote it, whole or in pieces, in a header too; an owner knows it anyway."""
    quoted = (
        b"a" * size + OWN.encode() + b"-" + OWN[:-1].encode() + b"-" + 2 * OWN.encode() + OWN[:3].encode()
    )
    head = f"HTTP/1.1 200 OK\r\nX-Echo: Bearer {OWN}\r\n".encode()
    step = {"length": len(quoted), "chunks": 5, "bytes": 1}[framing] if size < 100 else 30_000
    parts = [quoted[at : at + step] for at in range(0, len(quoted), step)]
    if framing == "length":
        pieces = [head + b"Content-Length: %d\r\n\r\n" % len(quoted), *parts]
    else:
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
        pieces = [head + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        for piece in pieces:
            connection.send(piece)
            await asyncio.sleep(0)

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        stars = b"*" * len(OWN)
        answer = await sidecar.call("/v2/messages/m", token=THEIRS)
        assert answer.body == quoted.replace(OWN.encode(), stars)
        assert answer.header("x-echo") == f"Bearer {stars.decode()}"
        assert (await sidecar.call("/v2/messages/m")).body == quoted
