"""The local upstream over real sockets: raw targets, faults carried out, management, inspection."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
from devserver_support import TOKEN, Connection

from dispatcher.errors import ConfigError
from dispatcher.testing import LocalUpstream, ManualClock, digest_of, local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[tuple[LocalUpstream, Connection]]:
    """A local upstream and one raw connection to it."""
    async with local_upstream(**settings) as upstream:
        connection = await Connection.to(upstream)
        try:
            yield upstream, connection
        finally:
            await connection.close()


async def test_raw_targets_arrive_byte_for_byte() -> None:
    """Double slashes, dot segments, escapes, fragments and queries reach the ledger as they were sent."""
    targets = [
        "https://example.com//a//../b/./c",
        "https://example.com/%2e%2e/%2F%41?x=%20&y=+&z",
        "https://example.com/?next=https://other.example/?q=1",
        "https://user@example.com:8080/a;b=c,d/(e)'!~*",
        "https://example.com/#fragment",
        "https://example.com/" + "x" * 20_000,
    ]
    async with connected() as (upstream, connection):
        for target in targets:
            assert (await connection.ask("POST", f"/v2/publish/{target}"))[0] == 200
            assert (await connection.ask("POST", f"/v2/enqueue/q/{target}"))[0] == 200
        accepted = upstream.accepted()
    assert [row.destination for row in accepted[::2]] == targets
    assert [row.destination for row in accepted[1::2]] == targets
    assert {row.queue for row in accepted[1::2]} == {"q"}


async def test_bodies_are_kept_as_raw_bytes() -> None:
    """Binary, compressed, chunked and empty bodies of single messages come out as they went in."""
    async with connected() as (upstream, connection):
        await connection.ask("POST", f"/v2/publish/{URL}", bytes(range(256)), Content_Encoding="gzip")
        chunked = f"POST /v2/publish/{URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        chunked += "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        connection.writer.write(chunked.encode())
        assert (await connection.read())[0] == 200
        await connection.ask("POST", f"/v2/publish/{URL}")
        assert [row.body for row in upstream.accepted()] == [bytes(range(256)), b"abcde", b""]


async def test_latin_headers_do_no_harm() -> None:
    """A header that is not UTF-8 can be stored and shown."""
    async with connected() as (upstream, connection):
        assert (await connection.ask("POST", f"/v2/publish/{URL}", Upstash_Forward_Name="M\xfcller"))[
            0
        ] == 200
        status, message = await connection.ask("GET", f"/v2/messages/{upstream.accepted()[0].message_ids[0]}")
        assert (status, message["header"]) == (200, {"Name": ["M\xfcller"]})
        assert (await connection.ask("GET", "/dispatcher-dev/accepted"))[0] == 200


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v2/batch", 405),
        ("PUT", f"/v2/publish/{URL}", 405),
        ("GET", f"/v2/enqueue/q/{URL}", 405),
        ("POST", "/v2/batch/v2/batch", 404),
        ("POST", "/v2/publish", 404),
        ("POST", "/v2//batch", 404),
        ("GET", "/v2/schedules", 404),
        ("GET", "/", 404),
        ("POST", "/v2/messages", 405),
        ("GET", "/v2/messages/msg_unknown", 404),
        ("GET", "/v2/messages/a/b", 404),
        ("GET", "/v2/topics/none", 404),
        ("DELETE", "/v2/topics/none", 404),
        ("DELETE", "/v2/topics/none/endpoints", 404),
        ("PATCH", "/v2/topics", 405),
        ("GET", "/v2/queues/none", 404),
        ("POST", "/v2/queues/none/pause", 404),
        ("DELETE", "/v2/queues", 405),
        ("GET", "/dispatcher-dev/none", 404),
        ("POST", "/dispatcher-dev/summary", 405),
        ("GET", "/dispatcher-dev/reset", 404),
    ],
)
async def test_wrong_paths_and_methods(method: str, target: str, status: int) -> None:
    """Each is answered with its status and an error, and the connection stays open."""
    async with connected() as (upstream, connection):
        got, answer = await connection.ask(method, target, b"{}")
        assert (got, set(answer)) == (status, {"error"})
        assert (await connection.ask("POST", "/v2/batch", [{"destination": URL}]))[0] == 200
        assert len(upstream.accepted()) == 1


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Bearer", f"Basic {TOKEN}", "Bearer t\xf6ken"])
async def test_a_wrong_token_is_401_for_everything(authorization: str) -> None:
    """Nothing is accepted, looked at or changed without the token."""
    async with connected() as (upstream, connection):
        for method, target in (("POST", "/v2/batch"), ("POST", f"/v2/publish/{URL}"), ("GET", "/v2/queues")):
            status, answer = await connection.ask(method, target, b"[]", Authorization=authorization)
            assert (status, list(answer)) == (401, ["error"])
        assert upstream.accepted() == []


async def test_the_token_may_stand_in_the_query() -> None:
    """`?qstash_token=` is the other way to say it, and is no part of the destination."""
    async with connected() as (upstream, connection):
        target = f"/v2/publish/{URL}?a=1&qstash_token={TOKEN}"
        assert (await connection.ask("POST", target, Authorization=""))[0] == 200
        assert (await connection.ask("POST", f"/v2/publish/{URL}?qstash_token=no", Authorization=""))[
            0
        ] == 401
        assert [row.destination for row in upstream.accepted()] == [f"{URL}?a=1"]


async def test_connections_are_never_closed_first() -> None:
    """Many requests of all kinds, refused ones too, travel over one connection; pipelined ones in order."""
    async with connected(max_items=2) as (upstream, connection):
        for n in range(50):
            connection.write("POST", "/v2/batch", orjson.dumps([{"destination": URL, "body": str(n)}]))
        statuses = [(await connection.read())[0] for _ in range(50)]
        assert statuses == [200] * 50
        assert [row.body for row in upstream.accepted()] == [str(n).encode() for n in range(50)]
        assert (await connection.ask("POST", "/v2/batch", [{"destination": URL}] * 3))[0] == 412
        assert upstream.connections == 1


async def test_large_batches_and_their_limit() -> None:
    """A batch far above aiohttp's default bound is read; one message above its own is 413."""
    async with connected(max_message_bytes=3_000_000) as (upstream, connection):
        big = [{"destination": URL, "body": "x" * 2_900_000}] * 3
        assert (await connection.ask("POST", "/v2/batch", big))[0] == 200
        status, answer = await connection.ask(
            "POST", "/v2/batch", [{"destination": URL, "body": "x" * 3_000_001}]
        )
        assert (status, "maxMessageSize" in answer["error"]) == (413, True)
        assert len(upstream.accepted()) == 3


# -- faults on sockets --------------------------------------------------------------------------------

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
    async with connected(faults="latency=250ms") as (upstream, connection):
        other = await Connection.to(upstream)
        start = asyncio.get_running_loop().time()
        connection.write("POST", "/v2/batch", orjson.dumps(BODY))
        while not upstream.accepted():
            assert (await other.ask("GET", "/v2/queues"))[0] == 200
        assert asyncio.get_running_loop().time() - start < 0.25
        assert (await connection.read())[0] == 200
        assert asyncio.get_running_loop().time() - start >= 0.25
        await other.close()


async def test_faults_spare_the_management_calls() -> None:
    """Only the intake is struck."""
    async with connected(faults="disconnect_before=1") as (_upstream, connection):
        assert (await connection.ask("GET", "/v2/topics"))[0] == 200


# -- inspection ---------------------------------------------------------------------------------------


async def test_inspection_proves_what_was_accepted() -> None:
    """Counts, order and digests of everything, page by page, and how often it came again."""
    async with connected(deduplication_window=60.0, clock=(clock := ManualClock(1000.0))) as (
        _upstream,
        connection,
    ):
        batch = [
            {"destination": URL, "body": "a", "queue": "q", "headers": {"Upstash-Deduplication-Id": "1"}},
            {"destination": URL, "body": "b", "queue": "q", "headers": {"Upstash-Retries": "1"}},
        ]
        for _ in range(2):
            await connection.ask("POST", "/v2/batch", batch)
        clock.advance(60.0)
        await connection.ask("POST", "/v2/batch", batch[:1])
        await connection.ask("POST", f"/v2/publish/{URL}", b"\xff")
        status, summary = await connection.ask("GET", "/dispatcher-dev/summary", Authorization="")
        assert status == 200
        assert {name: summary[name] for name in ("accepted", "distinct", "deduplicated")} == {
            "accepted": 5,
            "distinct": 3,
            "deduplicated": 1,
        }
        assert (summary["accepted_again_by_digest"], summary["accepted_again_by_id"]) == (2, 1)
        assert summary["requests"] == {"batch": {"200": 3}, "publish": {"200": 1}}
        assert summary["batch_sizes"] == {"1": 1, "2": 2}
        assert summary["queues"] == {"q": {"accepted": 4, "lag": 4, "paused": False}}
        status, lines = await connection.ask("GET", "/dispatcher-dev/accepted?after=0&limit=2")
        rows = [orjson.loads(line) for line in lines.splitlines()]
        assert [(row["seq"], row["body"], row["queue"]) for row in rows] == [(1, "b", "q"), (2, "b", "q")]
        assert rows[0]["digest"] == digest_of(URL, "q", "b").hex()
        assert rows[0]["headers"] == [["Upstash-Retries", "1"]]
        _, last = await connection.ask("GET", "/dispatcher-dev/accepted?after=3")
        assert (last["bodyBase64"], last["createdAt"]) == ("/w==", 1_060_000)
        for query in ("after=x", "limit=0", "limit=1000000", "after=-2"):
            assert (await connection.ask("GET", f"/dispatcher-dev/accepted?{query}"))[0] == 400


async def test_faults_can_be_swapped_and_everything_reset() -> None:
    """A running server takes a new plan, inline, as JSON or as a table; a reset forgets messages and counts."""
    async with connected() as (upstream, connection):
        for plan in (
            b"throttle_bare=1",
            {"plan": "throttle_bare=1", "seed": 3},
            {"plan": {"throttle_bare": 1}},
        ):
            assert (await connection.ask("POST", "/dispatcher-dev/faults", plan))[0] == 200
            assert (await connection.ask("POST", "/v2/batch", BODY))[0] == 429
            assert (await connection.ask("POST", "/dispatcher-dev/faults", b""))[0] == 200
            assert (await connection.ask("POST", "/v2/batch", BODY))[0] == 200
        status, answer = await connection.ask("POST", "/dispatcher-dev/faults", b"nonsense=1")
        assert (status, "throttle_burst" in answer["error"]) == (400, True)
        earlier = upstream.accepted()[0].message_ids[0]
        assert (await connection.ask("POST", "/dispatcher-dev/reset"))[0] == 200
        assert upstream.accepted() == []
        assert upstream.summary()["faults"] == upstream.summary()["requests"] == {}
        await connection.ask("POST", "/v2/batch", BODY)
        assert upstream.accepted()[0].message_ids[0] != earlier


# -- the object ---------------------------------------------------------------------------------------


async def test_requests_are_recorded() -> None:
    """Each request's kind, status, size and fault can be asserted."""
    async with connected(faults="error_after=1") as (upstream, connection):
        await connection.ask("POST", "/v2/batch", BODY)
        upstream.set_faults("disconnect_after=1")
        connection.write("POST", "/v2/batch", b"[]")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await connection.read()
        assert [(r.kind, r.status, r.items, r.accepted, r.fault.value) for r in upstream.requests] == [
            ("batch", 500, 2, 2, "error_after"),
            ("batch", None, 0, 0, "disconnect_after"),
        ]


async def test_stop_and_start_again_on_the_same_port() -> None:
    """A stopped upstream refuses connections, keeps what it knew, and comes back where it was."""
    async with local_upstream() as upstream:
        connection = await Connection.to(upstream)
        await connection.ask("POST", "/v2/batch", BODY)
        url = upstream.url
        await upstream.stop()
        assert await connection.reader.read() == b""
        await connection.close()
        with pytest.raises(ConnectionRefusedError):
            await Connection.to(upstream)
        await upstream.start()
        assert upstream.url == url
        connection = await Connection.to(upstream)
        assert (await connection.ask("POST", "/v2/batch", BODY))[0] == 200
        assert len(upstream.accepted()) == 4
        await connection.close()


async def test_stopping_does_not_wait_for_hanging_requests() -> None:
    """Requests that would hang for ever end with the server."""
    upstream = await LocalUpstream(faults="hang_after=1").start()
    connection = await Connection.to(upstream)
    connection.write("POST", "/v2/batch", orjson.dumps(BODY))
    while not upstream.accepted():
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await upstream.stop()
    assert await connection.reader.read() == b""
    await connection.close()


async def test_a_taken_port_is_a_clear_error() -> None:
    """The second server on a port is refused, and the error says what to do."""
    async with local_upstream() as upstream:
        with pytest.raises(ConfigError, match=r"is taken; use another, or 0") as caught:
            await LocalUpstream(port=upstream.port).start()
        assert caught.value.value == upstream.port


def test_the_clock_is_moved_by_hand() -> None:
    """It stands still until advanced, and does not run backwards."""
    clock = ManualClock(5.0)
    assert (clock(), clock.now, clock.advance(2.5), clock()) == (5.0, 5.0, 7.5, 7.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
