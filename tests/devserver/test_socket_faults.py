"""Every fault, carried out on real sockets."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
import pytest

from dispatcher.testing import local_upstream
from tests.devserver.support import TOKEN, URL, Connection, connected

pytestmark = pytest.mark.anyio

BODY = [{"destination": URL, "body": "a"}, {"destination": URL, "body": "b"}]


@pytest.mark.parametrize("side", ["before", "after"])
async def test_disconnects(side: str) -> None:
    """The connection ends without a byte of reply; `after` has accepted."""
    async with connected(faults=f"disconnect_{side}=1") as (upstream, connection):
        connection.write("POST", "/v2/batch", orjson.dumps(BODY))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)) as caught:
            await connection.read()
        assert getattr(caught.value, "partial", b"") == b""
        assert len(upstream.accepted()) == (2 if side == "after" else 0)


async def test_a_truncated_reply() -> None:
    """Content-Length promises more than arrives before the connection closes."""
    async with connected(faults="truncate=1") as (upstream, connection):
        connection.write("POST", "/v2/batch", orjson.dumps(BODY))
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await connection.read()
        assert caught.value.expected is not None
        assert 0 < len(caught.value.partial) < caught.value.expected
        assert len(upstream.accepted()) == 2


async def test_a_dripping_reply() -> None:
    """The reply arrives whole, in pieces, over the time asked for."""
    async with connected(faults="drip=1 drip_over=200ms") as (_upstream, connection):
        loop = asyncio.get_running_loop()
        connection.write("POST", "/v2/batch", orjson.dumps(BODY))
        await connection.reader.readuntil(b"\r\n\r\n")
        pieces, start, body = 0, loop.time(), b""
        while b"]" not in body:
            body += await connection.reader.read(65536)
            pieces += 1
        assert len(orjson.loads(body)) == 2
        assert pieces >= 5
        assert loop.time() - start > 0.1
        assert (await connection.ask("GET", "/v2/queues"))[0] == 200


@pytest.mark.parametrize("side", ["before", "after"])
async def test_hanging(side: str) -> None:
    """No reply comes; when the client goes, the server lets the request go."""
    async with local_upstream(faults=f"hang_{side}=1") as upstream:
        timeout = aiohttp.ClientTimeout(sock_read=0.1)
        async with aiohttp.ClientSession(
            timeout=timeout, headers={"Authorization": f"Bearer {TOKEN}"}
        ) as session:
            with pytest.raises(aiohttp.SocketTimeoutError):
                await session.post(f"{upstream.url}/v2/batch", json=BODY)
        assert len(upstream.accepted()) == (2 if side == "after" else 0)
        async with asyncio.timeout(5):
            while upstream.connections:
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("fault", "status", "headers", "accepted"),
    [
        (
            "throttle_burst",
            429,
            {"burst-ratelimit-limit", "burst-ratelimit-remaining", "burst-ratelimit-reset"},
            0,
        ),
        ("throttle_daily", 429, {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"}, 0),
        ("throttle_bare", 429, set(), 0),
        ("unavailable", 503, {"retry-after"}, 0),
        ("error_before", 500, set(), 0),
        ("error_after", 500, set(), 2),
        ("bad_gateway", 502, set(), 0),
        ("gateway_timeout", 504, set(), 2),
        ("unparsable", 200, set(), 2),
        ("wrong_length", 200, set(), 2),
        ("error_entry", 200, set(), 0),
    ],
)
async def test_faults_with_a_reply(fault: str, status: int, headers: set[str], accepted: int) -> None:
    """Status, the headers that say how long to wait, and what was accepted all the same."""
    async with connected(faults=f"{fault}=1") as (upstream, connection):
        connection.write("POST", "/v2/batch", orjson.dumps(BODY))
        got, lines, body = await connection.read()
        assert got == status
        assert {name for name in lines if "ratelimit" in name or name == "retry-after"} == headers
        assert len(upstream.accepted()) == accepted
        assert upstream.summary()["faults"] == {fault: 2 if fault == "error_entry" else 1}
        if fault == "wrong_length":
            assert len(orjson.loads(body)) == 1
        if fault == "error_entry":
            assert [set(entry) for entry in orjson.loads(body)] == [{"error"}] * 2


async def test_latency_lies_between_acceptance_and_reply() -> None:
    """The message is accepted at once, the reply comes later, other requests pass meanwhile."""
    async with connected(faults="latency=1h") as (upstream, connection):
        connection.write("POST", "/v2/batch", orjson.dumps(BODY))
        reading = asyncio.create_task(connection.read())
        other = await Connection.to(upstream)
        while not upstream.accepted():
            assert (await other.ask("GET", "/v2/queues"))[0] == 200
        upstream.set_faults("latency=50ms")
        start = asyncio.get_running_loop().time()
        assert (await other.ask("POST", "/v2/batch", BODY))[0] == 200
        assert asyncio.get_running_loop().time() - start >= 0.05
        assert not reading.done()
        reading.cancel()
        await other.close()


async def test_faults_spare_the_management_calls() -> None:
    """Only the intake is struck."""
    async with connected(faults="disconnect_before=1") as (_upstream, connection):
        assert (await connection.ask("GET", "/v2/topics"))[0] == 200
