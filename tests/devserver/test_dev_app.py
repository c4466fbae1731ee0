"""The local upstream over real sockets: raw targets, faults carried out, management, inspection."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from dispatcher.errors import ConfigError
from dispatcher.testing import LocalUpstream, ManualClock, digest_of, local_upstream
from tests.devserver.support import TOKEN, URL, Connection, connected

pytestmark = pytest.mark.anyio
BODY = [{"destination": URL, "body": "a"}, {"destination": URL, "body": "b"}]


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


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    """`Expect: 100-continue` is answered before the body, as large uploads from the command line need."""
    async with connected() as (_upstream, connection):
        head = f"POST /v2/publish/{URL} HTTP/1.1\r\nHost: x\r\nAuthorization: bearer {TOKEN}\r\n"
        connection.writer.write(f"{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode())
        assert (await connection.read())[0] == 100
        connection.writer.write(b"ab")
        assert (await connection.read())[0] == 200


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
        ("GET", "/v2/flowControl/key", 404),
        ("PUT", "/v2/schedules", 405),
        ("GET", "/v2/schedules/none", 404),
        ("PATCH", "/v2/schedules/none/pause", 404),
        ("POST", f"/v2/schedules/{URL}", 400),
        ("GET", "/v2/dlq/none", 404),
        ("GET", "/v2/dlq/a/b", 404),
        ("GET", "/v2/dlq/retry", 405),
        ("POST", "/v2/dlq/retry/none", 404),
        ("GET", "/v2/dlq?nonsense=1", 400),
        ("GET", "/v2/dlq?count=0", 400),
        ("POST", "/v2/events", 405),
        ("GET", "/v2/events/none", 404),
        ("GET", "/v2/events?cursor=x", 400),
        ("POST", "/v2/keys", 405),
        ("GET", "/v2/keys/none", 404),
        ("DELETE", "/v2/messages?nonsense=1", 400),
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


@pytest.mark.parametrize(
    "authorization", ["", "Bearer wrong", "Bearer", TOKEN, f"Basic {TOKEN}", "Bearer t\xf6ken"]
)
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
        assert upstream.summary()["refused"] == 1
        assert upstream.connections == 1


async def test_a_request_above_the_limit_is_413() -> None:
    """It is refused without being read whole."""
    async with connected(max_batch_bytes=1000) as (upstream, connection):
        assert (await connection.ask("POST", "/v2/batch", b"[]".ljust(1000)))[0] == 200
        status, answer = await connection.ask("POST", "/v2/batch", b"[]".ljust(200_000))
        assert (status, answer) == (413, {"error": "request too large, the limit is 1000 bytes"})
        assert upstream.accepted() == []


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
        assert summary["refused"] == 0
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


async def test_other_machines_need_the_token_to_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine may look, or reset, without it."""
    monkeypatch.setattr("dispatcher.devserver.app._is_loopback", lambda _request: False)
    async with connected() as (upstream, connection):
        await connection.ask("POST", "/v2/batch", BODY)
        assert (await connection.ask("GET", "/dispatcher-dev/summary", Authorization=""))[0] == 401
        assert (await connection.ask("POST", "/dispatcher-dev/reset", Authorization=""))[0] == 401
        assert len(upstream.accepted()) == 2
        assert (await connection.ask("GET", "/dispatcher-dev/summary"))[0] == 200


async def test_faults_can_be_swapped_and_everything_reset() -> None:
    """A running server takes a new plan, as text, JSON or a table; a reset forgets messages and counts."""
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
