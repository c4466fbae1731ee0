"""NDJSON: streams of any length, answered line by line, in order, in bounded memory."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from dispatcher.core.batch import Reply
from dispatcher.sidecar import bulk
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import ScriptedTransport, local_upstream
from tests.sidecar.support_intake import SECONDS, TOKEN, Connection, Sidecar, sidecar, until

pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"
NDJSON = [("Content-Type", "application/x-ndjson")]


def line(body: str, **fields: Any) -> bytes:
    return orjson.dumps({"destination": URL, "body": body, **fields}) + b"\n"


async def opened(one: Sidecar) -> Connection:
    """A stream whose answer has begun."""
    connection = await one.connect()
    await connection.begin("/v2/batch", NDJSON)
    async with asyncio.timeout(SECONDS):
        status, headers = await connection.answer_head()
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    return connection


async def answers(connection: Connection, number: int) -> list[Any]:
    """The next lines of its answer."""
    entries: list[Any] = []
    async with asyncio.timeout(SECONDS):
        while len(entries) < number:
            entries += [orjson.loads(one) for one in (await connection.answer_chunk()).splitlines()]
    return entries


async def test_each_line_has_its_answer_in_its_place() -> None:
    """Accepted, refused by us and by the service, no JSON at all; blank lines have none."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        text = b"".join(
            (
                line("a"),
                b"\n  \r\n",
                b"{nonsense\n",
                line("b", destination="nobody"),
                line("c", destination="no/scheme"),
                b'{"destination":"https://example.com/hook","body":"d"}\r\n',
                line("e", headers={"Upstash-Label": ["x", "y"]}),
                b'{"destination":"https://example.com/hook","body":"last"}',
            )
        )
        answer = await one.bulk(text)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert [entry.get("status") for entry in answer.lines] == [None, 400, 404, 400, None, None, None]
        bodies = {row.message_ids[0]: row.body for row in upstream.accepted()}
        delivered = [bodies[entry["messageId"]] for entry in answer.lines if "messageId" in entry]
        assert delivered == [b"a", b"d", b"e", b"last"]
        assert one.counters.sent_alone["repeated_header"] == 1
        assert one.counters.failures["rejected"] == 1
        await until(lambda: one.counters.requests.get(("bulk", 200)) == 1)


async def test_lines_leave_as_full_batches_in_the_order_of_their_queue() -> None:
    """Five thousand of them, through little room, in chunks that cut lines anywhere."""
    async with (
        local_upstream(token=TOKEN) as upstream,
        sidecar(url=upstream.url, queue_max_messages=500) as one,
    ):
        text = b"".join(line(f"{n}", queue="q") for n in range(5_000))
        connection = await opened(one)
        for start in range(0, len(text), 9_973):
            await connection.chunk(text[start : start + 9_973])
        await connection.chunk(b"")
        entries = await answers(connection, 5_000)
        assert await connection.answer_chunk() == b""
        connection.close()
        assert [row.body for row in upstream.accepted()] == [b"%d" % n for n in range(5_000)]
        assert [row.message_ids[0] for row in upstream.accepted()] == [one["messageId"] for one in entries]
        assert len(upstream.requests) < 200


async def test_answers_come_while_lines_are_still_sent() -> None:
    """Each as soon as it and all before it are known; the stream stays open in between."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        connection = await opened(one)
        for number in range(3):
            await connection.chunk(line("a"))
            assert await answers(connection, 1) == [{"messageId": f"msg_{number + 1}"}]
        await connection.chunk(b"")
        async with asyncio.timeout(SECONDS):
            assert await connection.answer_chunk() == b""
        await connection.send("POST", f"/v2/publish/{URL}", b"x")
        assert (await connection.answer()).status == 200  # the connection is kept


async def test_a_later_answer_waits_for_an_earlier_one() -> None:
    """The order is that of the lines, not that of the upstream's answers."""
    late = asyncio.Event()

    class OneIsLate(ScriptedTransport):
        async def post_batch(self, body: bytes, *, timeout: float) -> Any:
            if b'"late"' in body:
                await late.wait()
            return await super().post_batch(body, timeout=timeout)

    transport = OneIsLate()
    async with sidecar(transport) as one:
        connection = await opened(one)
        await connection.chunk(line("late"))
        await until(lambda: one.dispatcher.statistics().batches_in_flight == 1)
        await connection.chunk(line("soon"))
        await until(lambda: len(transport.batches) == 1)
        await connection.chunk(b"")
        late.set()
        assert await answers(connection, 2) == [{"messageId": "msg_2"}, {"messageId": "msg_1"}]


async def test_what_is_read_and_not_answered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In lines, and in bytes: then the caller's socket is not read any more."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=ServeSettings(max_items=7)) as one:
        transport.hold()
        connection = await opened(one)
        await connection.chunk(b"".join(line(f"{n}") for n in range(50)))
        await until(lambda: one.dispatcher.statistics().held == 7)
        await stands_still(one, 7)
        transport.release()
        await connection.chunk(b"")
        assert len(await answers(connection, 50)) == 50
        monkeypatch.setattr(bulk, "WINDOW_BYTES", 1_000)
        transport.hold()
        connection = await opened(one)
        await connection.chunk(line("x" * 500) * 2)
        await until(lambda: one.dispatcher.statistics().held == 2)
        await connection.chunk(line("x" * 500) * 3)
        await stands_still(one, 2)
        transport.release()
        await connection.chunk(b"")
        assert len(await answers(connection, 5)) == 5


async def stands_still(one: Sidecar, held: int) -> None:
    """Nothing more is taken in."""
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert one.dispatcher.statistics().held == held


async def test_a_caller_that_does_not_read_is_not_read() -> None:
    """Its answers fill its socket, then nothing is taken from it; once it reads, everything goes on."""
    refused = line("x", destination="no/scheme") * 1_000  # its answers are longer than it is
    async with sidecar(ScriptedTransport(), serve=ServeSettings(max_items=1_000)) as one:
        connection = await opened(one)
        sent: list[int] = []
        flood = asyncio.create_task(send_all(connection, 200, refused, sent))
        before = -1
        async with asyncio.timeout(SECONDS):
            while len(sent) != before or not sent:
                before = len(sent)
                await asyncio.sleep(0.2)
        assert len(sent) < 200
        assert len(await answers(connection, 200_000)) == 200_000
        await flood


async def send_all(connection: Connection, number: int, chunk: bytes, sent: list[int]) -> None:
    for each in range(number):
        await connection.chunk(chunk)
        sent.append(each)
    await connection.chunk(b"")


async def test_a_line_that_is_too_long_is_counted_and_not_kept() -> None:
    """413 in its place; what follows is read."""
    async with sidecar(ScriptedTransport(), serve=ServeSettings(max_batch_bytes=1_000)) as one:
        answer = await one.bulk(line("a") + line("x" * 2_000) + line("b"))
    assert [entry.get("status") for entry in answer.lines] == [None, 413, None]
    assert "the limit is 1000" in answer.lines[1]["error"]


async def test_lines_without_room_wait_and_are_refused_at_last() -> None:
    """Each for as long as any caller's patience; the lines behind them have their turn."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=ServeSettings(patience=0.05), queue_max_messages=1) as one:
        transport.hold()
        work = asyncio.create_task(one.bulk(line("a") + line("b") + line("c")))
        await until(lambda: one.counters.waiting_now == 1)
        await asyncio.sleep(0.06)
        await until(lambda: one.counters.waiting_now == 1)
        transport.release()
        answer = await work
        assert [entry.get("status") for entry in answer.lines] == [None, 429, None]


async def test_a_halt_is_told_line_by_line() -> None:
    """What was held before it is delivered once the token is right; later lines are refused at once."""
    transport = ScriptedTransport(200, Reply(401, b'{"error":"revoked"}'))
    async with sidecar(transport) as one:
        connection = await opened(one)
        await connection.chunk(line("a"))
        assert await answers(connection, 1) == [{"messageId": "msg_1"}]
        await connection.chunk(line("b"))
        await until(lambda: one.dispatcher.statistics().state == "halted")
        await connection.chunk(line("c") + b"\n")
        await asyncio.sleep(0.01)
        one.dispatcher.set_token("another")
        await connection.chunk(b"")
        assert [entry.get("status") for entry in await answers(connection, 2)] == [None, 503]


async def test_a_caller_that_hangs_up_takes_back_what_has_not_left() -> None:
    """What has left goes on; nothing is left running."""
    transport = ScriptedTransport()
    async with sidecar(transport, batch_max_messages=2) as one:
        transport.hold()
        connection = await opened(one)
        await connection.chunk(b"".join(line(f"{n}", queue="q") for n in range(10)))
        await until(lambda: one.dispatcher.statistics().held == 10)
        connection.close()
        await until(lambda: one.dispatcher.statistics().held == 2)
        transport.release()
    assert [item["body"] for batch in transport.batches for item in batch] == ["0", "1"]


async def test_what_travels_together_is_taken_back_one_by_one() -> None:
    """The batch that is out stays, what waits behind it is withdrawn."""
    transport = ScriptedTransport()
    async with sidecar(transport, batch_max_messages=2, limit_mode="fixed", limit_max_in_flight=1) as one:
        transport.hold()
        connection = await opened(one)
        await connection.chunk(b"".join(line(f"{n}") for n in range(11)))
        await until(lambda: one.dispatcher.statistics().held == 11 and len(transport.batches) == 1)
        connection.close()
        await until(lambda: one.dispatcher.statistics().held == 2)
        transport.release()
    assert [item["body"] for batch in transport.batches for item in batch] == ["0", "1"]


async def test_a_stream_that_breaks_off_is_answered_as_far_as_it_came() -> None:
    """Wrong framing: what has left has its answer, the rest is taken back, and then the connection ends."""
    transport = ScriptedTransport()
    async with sidecar(transport, batch_max_messages=1) as one:
        transport.hold()
        connection = await opened(one)
        await connection.chunk(line("a", queue="q") + line("b", queue="q"))
        await until(lambda: len(transport.batches) == 1)
        connection.writer.write(b"no chunk size\r\n")
        await until(lambda: one.dispatcher.statistics().held == 1)
        transport.release()
        entries = await answers(connection, 3)
        assert entries[0] == {"messageId": "msg_1"}
        assert (entries[1]["status"], entries[1]["certainty"]) == (504, "not_sent")
        assert entries[2]["status"] == 400
        async with asyncio.timeout(SECONDS):
            assert await connection.reader.read() == b"0\r\n\r\n"


async def test_an_empty_stream_has_an_empty_answer() -> None:
    """And one that ends without a line feed has its last line."""
    async with sidecar(ScriptedTransport()) as one:
        for text in (b"", b"\n\n"):
            answer = await one.bulk(text)
            assert (answer.status, answer.body) == (200, b"")
        assert (await one.bulk(line("a").rstrip())).lines == [{"messageId": "msg_1"}]


async def test_a_slow_stream_has_no_total_bound() -> None:
    """Something moves: it may take longer than a request."""
    serve = ServeSettings(request_timeout=0.3)
    async with sidecar(ScriptedTransport(), serve=serve) as one:
        connection = await opened(one)
        for _ in range(6):
            await asyncio.sleep(0.1)
            await connection.chunk(line("a"))
            assert len(await answers(connection, 1)) == 1
        await connection.chunk(b"")
        async with asyncio.timeout(SECONDS):
            assert await connection.answer_chunk() == b""


async def test_a_stream_that_stops_coming() -> None:
    """What came is settled; the last line says that the rest did not, with the status of that."""
    async with sidecar(ScriptedTransport(), serve=ServeSettings(body_timeout=0.1)) as one:
        connection = await one.connect()
        await connection.begin("/v2/batch", [("Content-Type", "application/x-ndjson")])
        await connection.chunk(line("a"))
        await connection.answer_head()
        entries = await answers(connection, 2)
        assert entries[0] == {"messageId": "msg_1"}
        assert entries[1]["status"] == 408
        assert "no byte of the body came for 0.1 s" in entries[1]["error"]
