"""Publish, enqueue and batch over sockets: what the upstream gets, and what the caller is told."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from dispatcher.core.batch import Failure, Reply
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import ScriptedTransport, local_upstream
from tests.sidecar.support_intake import SECONDS, TOKEN, Sidecar, head, sidecar, until

pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"


def items(transport: ScriptedTransport) -> list[dict[str, Any]]:
    """Everything that was sent in batches."""
    return [item for batch in transport.batches for item in batch]


def held(one: Sidecar) -> int:
    return one.dispatcher.statistics().held


# --------------------------------------------------------------------------------------- what is delivered


async def test_single_publishes_leave_as_full_batches() -> None:
    """A thousand callers at once: each has its own message's id, the upstream a few requests."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        answers = await asyncio.gather(*(one.publish(f"{URL}/{n}", b"%d" % n) for n in range(1_000)))
        assert {answer.status for answer in answers} == {200}
        by_id = {row.message_ids[0]: row for row in upstream.accepted()}
        for number, answer in enumerate(answers):
            row = by_id[answer.json["messageId"]]
            assert (row.destination, row.body) == (f"{URL}/{number}", b"%d" % number)
        assert len(upstream.requests) <= 30


async def test_the_upstream_gets_what_it_would_have_got() -> None:
    """The same requests to the upstream and through the sidecar: the same messages, byte for byte."""
    requests: list[tuple[str, bytes, list[tuple[str, str]]]] = [
        ("/v2/publish/https://example.com//a/../b/%2e?x=%2F&y=a+b", b"text", [("Upstash-Delay", "10s")]),
        ("/v2/enqueue/billing/https://example.com/", "zwölf".encode(), [("content-type", "text/plain")]),
        ("/v2/publish/api/llm", b"", []),
        ("/v2/publish/https://example.com/?a=1&upstash-retries=1", b"query", []),
        ("/v2/publish/https://example.com/", b"\xff\x00", [("Content-Type", "image/png")]),
        ("/v2/publish/https://example.com/", b"twice", [("Upstash-Label", "a"), ("upstash-label", "b")]),
        ("/v2/publish/https://example.com/", b"all", [("Upstash-Header-Forward", "true"), ("X-A", "1")]),
        ("/v2/publish/https://example.com/", b"own", [("Upstash-Deduplication-Id", "mine")]),
        ("/v2/publish/https://example.com/", b"hash", [("Upstash-Content-Based-Deduplication", "true")]),
    ]
    seen = []
    for is_direct in (True, False):
        async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
            for target, body, headers in requests:
                if is_direct:
                    port = upstream.port
                    direct = Sidecar(port, one.dispatcher, one.counters)
                    answer = await direct.ask(target, body, [*headers, ("Authorization", f"Bearer {TOKEN}")])
                else:
                    answer = await one.ask(target, body, headers)
                assert answer.status == 200, (target, answer)
            seen.append([described(row) for row in upstream.accepted()])
    assert seen[0] == seen[1]
    assert one.counters.sent_alone == {
        "query": 1,
        "not_text": 1,
        "repeated_header": 1,
        "header_forward": 1,
        "too_large": 0,
    }


def described(row: Any) -> tuple[Any, ...]:
    """What was accepted, without what differs from connection to connection."""
    ours = {"upstash-deduplication-id", "upstash-forward-user-agent", "upstash-forward-accept-encoding"}
    ours |= {"upstash-forward-accept", "upstash-forward-content-length"}
    headers = sorted((n.lower(), v) for n, v in row.headers if n.lower() not in ours or v == "mine")
    return row.destination, row.queue, row.body, headers


async def test_a_duplicate_is_told_as_the_service_tells_it() -> None:
    """202 for the caller's own id, seen before."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        first, second = [await one.publish(URL, b"x", ("Upstash-Deduplication-Id", "mine")) for _ in range(2)]
    assert (first.status, second.status) == (200, 202)
    assert second.json == {"messageId": first.json["messageId"], "deduplicated": True}


async def test_a_url_group_and_a_refusal_are_the_services_own() -> None:
    """An array for the group; 404 and 400 with the service's texts, as if it had been asked directly."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        owner = [("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json")]
        endpoints = orjson.dumps({"endpoints": [{"url": "https://a.x"}, {"url": "https://b.x"}]})
        made = await one.ask("/v2/topics/group-1/endpoints", endpoints, owner)
        assert made.status == 200
        answer = await one.publish("group-1")
        assert [entry["url"] for entry in answer.json] == ["https://a.x", "https://b.x"]
        direct = Sidecar(upstream.port, one.dispatcher, one.counters)
        for destination, header in (("nobody", ("X", "1")), (URL, ("Upstash-Delay", "soon"))):
            mine = await one.publish(destination, b"x", header)
            target = f"/v2/publish/{destination}"
            theirs = await direct.ask(target, b"x", [header, ("Authorization", f"Bearer {TOKEN}")])
            assert (mine.status, mine.json) == (theirs.status, theirs.json)
            assert mine.status in (400, 404)
    assert one.counters.failures["rejected"] == 2


async def test_one_poisoned_message_fails_alone() -> None:
    """Its neighbours of the same batch are delivered."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        work = [one.publish(URL, b"good") for _ in range(50)]
        work.insert(25, one.publish(URL, b"bad", ("Upstash-Retries", "many")))
        answers = await asyncio.gather(*work)
        statuses = [answer.status for answer in answers]
        assert (statuses.count(200), statuses[25]) == (50, 400)
        assert answers[25].json == {"error": "invalid Upstash-Retries: write a whole number, 0 or more"}
        assert len(upstream.accepted()) == 50


async def test_the_order_of_a_queue_is_the_order_of_asking() -> None:
    """One connection after the other, over many batches."""
    async with (
        local_upstream(token=TOKEN) as upstream,
        sidecar(url=upstream.url, batch_max_messages=3) as one,
    ):
        connections = [await one.connect() for _ in range(20)]
        for number, connection in enumerate(connections):
            await connection.send("POST", f"/v2/enqueue/q/{URL}", b"%d" % number)
            await until(lambda n=number: one.dispatcher.statistics().admitted == n + 1)  # type: ignore[misc]
        for connection in connections:
            assert (await connection.answer()).status == 200
            connection.close()
        assert [row.body for row in upstream.accepted()] == [b"%d" % n for n in range(20)]


# ------------------------------------------------------------------------------------------------- bodies


async def test_bodies_may_come_late_and_in_pieces() -> None:
    """Chunked, or long after their head; a body that is longer than declared is the next request's."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        connection = await one.connect()
        await connection.begin(f"/v2/publish/{URL}")
        for part in (b"a" * 70_000, b"b", b""):
            await connection.chunk(part)
        assert (await connection.answer()).status == 200
        connection.writer.write(b"POST /v2/publish/https://e.x HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\n")
        connection.writer.write(b"Authorization: Bearer caller-token\r\n\r\nla")
        await connection.writer.drain()
        await asyncio.sleep(0.01)
        await connection.send("POST", f"/v2/publish/{URL}", b"x")
    assert items(transport)[0]["body"] == "a" * 70_000 + "b"


async def test_a_body_is_sent_once_it_is_asked_for() -> None:
    """`Expect: 100-continue`, which curl sends with large bodies."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        connection = await one.connect()
        connection.writer.write(
            b"POST /v2/publish/https://e.x HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer caller-token\r\n"
            b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        async with asyncio.timeout(SECONDS):
            assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.writer.write(b"ok")
        assert (await connection.answer()).status == 200
    assert items(transport)[0]["body"] == "ok"


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_above_the_bound_is_refused(is_declared: bool) -> None:
    """413, whether its length is known beforehand or not; nothing of it is sent."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=ServeSettings(max_body_bytes=1_000)) as one:
        connection = await one.connect()
        if is_declared:
            await connection.send("POST", f"/v2/publish/{URL}", b"x" * 1_001)
        else:
            await connection.begin(f"/v2/publish/{URL}")
            await connection.chunk(b"x" * 1_001)
        answer = await connection.answer()
        connection.close()
        assert (answer.status, answer.json) == (
            413,
            {"error": "request too large, the limit is 1000 bytes"},
        )
    assert transport.batches == []


async def test_a_message_that_no_batch_takes_is_sent_alone_as_it_is() -> None:
    """Above the size of a message: the service may have a larger plan, and says so if it has not."""
    transport = ScriptedTransport(200, Reply(413, b'{"error":"maxMessageSize is 2000"}'))
    async with sidecar(transport, batch_max_message_bytes=1_000) as one:
        first = await one.publish(URL, b"x" * 1_500)
        second = await one.publish(URL, b"x" * 2_500)
        assert one.counters.sent_alone["too_large"] == 2
    assert (first.status, second.status) == (200, 413)
    assert second.json == {"error": "maxMessageSize is 2000"}
    assert [len(single.body) for single in transport.singles] == [1_500, 2_500]
    assert all("Upstash-Deduplication-Id" in dict(single.headers) for single in transport.singles)


async def test_what_is_sent_alone_is_retried_under_its_id() -> None:
    """By the same rules as a batch: an unknown outcome does not become two messages."""
    async with (
        local_upstream(token=TOKEN, faults="error_after=1") as upstream,
        sidecar(url=upstream.url) as one,
    ):
        work = asyncio.create_task(one.publish(f"{URL}?upstash-retries=1", b"\xff"))
        await until(lambda: len(upstream.requests) >= 2)
        upstream.set_faults(None)
        answer = await work
        rows = upstream.accepted()
        assert (answer.status, len(rows)) == (200, 1)
        assert answer.json == {"messageId": rows[0].message_ids[0]}


# ------------------------------------------------------------------------------------------------- batches


async def test_each_item_of_a_batch_is_settled_on_its_own() -> None:
    """Its entry in its place, whatever becomes of the others."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        answer = await one.batch(
            [
                {"destination": URL, "body": "a", "headers": {"Upstash-Label": ["x"]}},
                {"destination": "nobody"},
                {"destination": URL, "body": 5},
                {"destination": URL, "body": "b", "queue": "q"},
                {"destination": URL, "headers": {"Upstash-Label": ["x", "y"]}},
            ]
        )
        assert answer.status == 200
        assert [entry.get("status") for entry in answer.json] == [None, 404, 400, None, None]
        bodies = {row.message_ids[0]: row.body for row in upstream.accepted()}
        assert [bodies[answer.json[place]["messageId"]] for place in (0, 3, 4)] == [b"a", b"b", b""]
    assert one.counters.sent_alone["repeated_header"] == 1
    assert one.counters.requests["batch", 200] == 1


async def test_a_batch_refused_alike_has_the_services_status() -> None:
    """The Python SDK would take an error entry for a success."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        answer = await one.batch([{"destination": "nobody"}] * 2)
        assert (answer.status, answer.json) == (404, {"error": "URL group nobody not found"})
        assert (await one.batch({})).status == 400
        assert (await one.batch([{"destination": 1}])).status == 400
        assert (await one.batch([])).json == []


async def test_a_large_batch_is_split_by_what_the_upstream_takes() -> None:
    """More items than fit a batch, and more than there is room for: all of them, in order."""
    async with (
        local_upstream(token=TOKEN, max_items=100) as upstream,
        sidecar(url=upstream.url, queue_max_messages=300) as one,
    ):
        answer = await one.batch([{"destination": URL, "body": f"{n}", "queue": "q"} for n in range(1_200)])
        assert [len(entry) for entry in answer.json] == [1] * 1_200
        assert [row.body for row in upstream.accepted()] == [b"%d" % n for n in range(1_200)]


# --------------------------------------------------------------------------------------------------- full


async def test_a_full_sidecar_makes_its_callers_wait() -> None:
    """Nobody is refused while room comes within the patience; those who wait are counted."""
    transport = ScriptedTransport()
    async with sidecar(transport, queue_max_messages=5) as one:
        transport.hold()
        work = [asyncio.create_task(one.publish(URL, b"%d" % n)) for n in range(20)]
        await until(lambda: one.counters.waiting_now == 15)
        assert held(one) == 5
        transport.release()
        assert {answer.status for answer in await asyncio.gather(*work)} == {200}
        assert one.counters.waiting_now == 0
    assert len(items(transport)) == 20


async def test_patience_ends_with_a_429() -> None:
    """It was never taken; nor was a batch, of which nothing had room."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=ServeSettings(patience=0.05), queue_max_messages=1) as one:
        transport.hold()
        first = asyncio.create_task(one.publish(URL, b"first"))
        await until(lambda: held(one) == 1)
        refused = await one.publish(URL, b"second")
        many = await one.batch([{"destination": URL, "body": "third"}] * 2)
        transport.release()
        assert (await first).status == 200
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json == {"error": "no room: 1 of 1 messages are held"}
        assert (many.status, many.json) == (429, refused.json)
        assert one.counters.failures["full"] == 2
        assert one.counters.waiting_now == 0
    assert [item["body"] for item in items(transport)] == ["first"]


async def test_what_has_no_room_in_time_is_refused_out_of_a_batch() -> None:
    """Each in its place; what was taken is delivered."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=ServeSettings(patience=0.05), queue_max_messages=2) as one:
        transport.hold()
        many = asyncio.create_task(one.batch([{"destination": URL, "body": f"{n}"} for n in range(4)]))
        await until(lambda: one.counters.waiting_now == 1)
        await until(lambda: one.counters.waiting_now == 0)
        transport.release()
        answer = await many
        assert [entry.get("status") for entry in answer.json] == [None, None, 429, 429]
    assert [item["body"] for item in items(transport)] == ["0", "1"]


async def test_no_new_body_is_read_while_it_is_full() -> None:
    """It stays in the caller's socket, and goes on when there is room; or is refused when patience ends."""
    transport = ScriptedTransport()
    body = b"x" * 8_000_000
    async with sidecar(transport, queue_max_messages=1, batch_max_message_bytes=10_000_000) as one:
        transport.hold()
        first = asyncio.create_task(one.publish(URL, b"first"))
        await until(lambda: held(one) == 1)
        waiter = await one.connect()
        sent = asyncio.create_task(waiter.send("POST", f"/v2/publish/{URL}", body))
        await until(lambda: one.counters.waiting_now == 1)
        assert not sent.done()
        transport.release()
        assert (await first).status == 200
        await sent
        assert (await waiter.answer()).status == 200
        waiter.close()
    assert [len(single.body) for single in transport.singles] == [8_000_000]


async def test_a_body_that_found_no_room_is_refused_unread() -> None:
    """429, long before it would have been here."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=ServeSettings(patience=0.05), queue_max_messages=1) as one:
        transport.hold()
        first = asyncio.create_task(one.publish(URL, b"first"))
        await until(lambda: held(one) == 1)
        waiter = await one.connect()
        await waiter.begin(f"/v2/publish/{URL}")
        assert (await waiter.answer()).status == 429
        waiter.close()
        transport.release()
        assert (await first).status == 200


# ---------------------------------------------------------------------------------- what goes wrong behind it


async def test_a_deadline_is_a_504_with_the_certainty() -> None:
    """Nothing was sent where nobody is there; what is out may have been taken."""
    refused = Failure("connect", "cannot connect", "not_sent")
    transport = ScriptedTransport(*[refused] * 1_000)
    async with sidecar(transport, deliver_within=0.05) as one:
        answer = await one.publish(URL)
        assert (answer.status, answer.json["certainty"]) == (504, "not_sent")
    transport = ScriptedTransport()
    async with sidecar(transport, deliver_within=0.05) as one:
        transport.hold()
        answer = await one.publish(URL)
        assert (answer.status, answer.json["certainty"]) == (504, "unknown")
        assert one.counters.failures["deadline_exceeded"] == 1
        transport.release()


async def test_a_halted_sidecar_answers_503() -> None:
    """The first that found out keeps what it held; newcomers are told at once, by whom and why."""
    transport = ScriptedTransport(200, Reply(401, b'{"error":"revoked"}'))
    async with sidecar(transport) as one:
        assert (await one.publish(URL)).status == 200
        first = asyncio.create_task(one.publish(URL))
        await until(lambda: one.dispatcher.statistics().state == "halted")
        answer = await one.publish(URL)
        batch = await one.batch([{"destination": URL}])
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        assert answer.json == {"error": "the upstream refuses this token or URL with 401: revoked"}
        assert (batch.status, batch.json) == (503, answer.json)
        one.dispatcher.set_token("another")
        assert (await first).status == 200
        assert (await one.publish(URL)).status == 200


async def test_a_wrong_token_is_told_at_first_contact() -> None:
    """503 for everyone, at once."""
    transport = ScriptedTransport(*[Reply(401, b'{"error":"wrong"}')] * 5)
    async with sidecar(transport) as one:
        answers = await asyncio.gather(*(one.publish(URL) for _ in range(3)))
        assert [answer.status for answer in answers] == [503] * 3
        assert "wrong" in answers[0].json["error"]


async def test_a_draining_sidecar_answers_503_and_keeps_what_it_took() -> None:
    """What was taken before is delivered and answered."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        transport.hold()
        first = asyncio.create_task(one.publish(URL))
        await until(lambda: held(one) == 1)
        closing = asyncio.create_task(one.dispatcher.aclose())
        await until(lambda: one.dispatcher.statistics().state == "draining")
        answer = await one.publish(URL)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        transport.release()
        assert (await first).status == 200
        await closing


async def test_a_spent_quota_is_a_429_with_its_reset() -> None:
    """As long as the service says, in the caller's terms."""
    spent = Reply(429, b"{}", {"ratelimit-limit": "1000", "ratelimit-reset": "7200"}, 0.0)
    async with sidecar(ScriptedTransport(spent)) as one:
        answer = await one.publish(URL)
    assert answer.status == 429
    assert "quota" in answer.json["error"]
    assert int(answer.headers["retry-after"]) >= 1


# -------------------------------------------------------------------------------------------- who hangs up


async def test_a_caller_that_hangs_up_takes_back_what_has_not_left() -> None:
    """And what waits for room; what has left goes on."""
    transport = ScriptedTransport()
    async with sidecar(transport, queue_max_messages=4, batch_max_messages=1, limit_mode="fixed") as one:
        transport.hold()
        count = 6
        connections = [await one.connect() for _ in range(count)]
        for number, connection in enumerate(connections):
            await connection.send("POST", f"/v2/enqueue/q/{URL}", b"%d" % number)
            await until(lambda n=number: held(one) + one.counters.waiting_now == n + 1)  # type: ignore[misc]
        for connection in connections[:-1]:
            connection.close()
        await until(
            lambda: held(one) == 2 and one.counters.waiting_now == 0
        )  # one that left, one that stayed
        transport.release()
        assert (await connections[-1].answer()).status == 200
        connections[-1].close()
    assert [item["body"] for item in items(transport)] == ["0", "5"]


async def test_a_batch_whose_caller_hangs_up_is_taken_back() -> None:
    """Each item that has not left."""
    transport = ScriptedTransport()
    async with sidecar(transport, batch_max_messages=2) as one:
        transport.hold()
        connection = await one.connect()
        body = orjson.dumps([{"destination": URL, "body": f"{n}", "queue": "q"} for n in range(10)])
        await connection.send("POST", "/v2/batch", body)
        await until(lambda: held(one) == 10)
        connection.close()
        await until(lambda: held(one) == 2)
        transport.release()
    assert [item["body"] for item in items(transport)] == ["0", "1"]


# ---------------------------------------------------------------------------------------------------- form


async def test_only_post_publishes() -> None:
    """Anything else is told what is allowed, and keeps its connection."""
    async with sidecar(ScriptedTransport()) as one:
        connection = await one.connect()
        for method, target in (
            ("GET", f"/v2/publish/{URL}"),
            ("PUT", "/v2/batch"),
            ("DELETE", f"/v2/enqueue/q/{URL}"),
        ):
            await connection.send(method, target)
            answer = await connection.answer()
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert one.counters.requests["enqueue", 405] == 1


async def test_a_connection_is_kept_and_head_and_body_are_one_piece() -> None:
    """Pipelined requests are answered in order; nothing asks to close."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        connection = await one.connect()
        for number in range(3):
            await connection.send("POST", f"/v2/publish/{URL}", b"%d" % number)
        answers = [await connection.answer() for _ in range(3)]
        await connection.send("POST", f"/v2/publish/{URL}", b"3")
        raw = await connection.reader.read(65_536)
    assert [answer.json["messageId"] for answer in answers] == ["msg_1", "msg_2", "msg_3"]
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b'\r\n\r\n{"messageId":"msg_4"}')
    assert all("connection" not in answer.headers for answer in answers)
    assert "date" in answers[0].headers


@pytest.mark.parametrize("target", ["/v2/publish/https://e.x/h", "/v2/enqueue/q/https://e.x/h", "/v2/batch"])
@pytest.mark.parametrize("framing", [[("Content-Length", "9")], [("Transfer-Encoding", "chunked")]])
async def test_a_body_that_stops_coming(target: str, framing: list[tuple[str, str]]) -> None:
    """408 and the end of the connection; one whose chunks break is 400."""
    serve = ServeSettings(body_timeout=0.1)
    async with sidecar(ScriptedTransport(), serve=serve) as one:
        connection = await one.connect()
        connection.writer.write(head("POST", target, framing) + b"3\r\nab")
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert "no byte of the body came for 0.1 s" in answer.json["error"]
        assert await connection.reader.read() == b""
        if framing[0][1] == "chunked":
            connection = await one.connect()
            await connection.begin(target)
            await connection.chunk(b"[")
            connection.writer.write(b"zz\r\n")
            answer = await connection.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
