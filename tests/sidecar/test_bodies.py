"""Bodies that come late: let in within a bound on memory, in the order of asking."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from dispatcher.sidecar.bodies import UNKNOWN_BYTES
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import ScriptedTransport
from tests.sidecar.support_intake import SECONDS, Sidecar, sidecar, until

pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"
BUDGET = 3 * UNKNOWN_BYTES + 10
SMALL: dict[str, Any] = {"queue_max_bytes": 150_000, "batch_max_message_bytes": 150_000}
SERVE = ServeSettings(max_batch_bytes=BUDGET)


async def waiting(one: Sidecar, number: int) -> None:
    await until(lambda: one.counters.waiting_now == number)


async def test_bodies_that_are_read_together_stay_below_a_bound() -> None:
    """What would be above it waits in the caller's socket until another is done; in the order of asking."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=SERVE, **SMALL) as one:
        first = await one.connect()
        await first.begin(f"/v2/publish/{URL}")
        await first.chunk(b"a" * 140_000)
        await waiting(one, 0)
        others = []
        for number in range(3):
            connection = await one.connect()
            await connection.begin(f"/v2/publish/{URL}")
            await connection.chunk(b"%d" % number)
            others.append(connection)
            await waiting(one, number + 1)
        await first.chunk(b"")
        assert (await first.answer()).status == 200
        for connection in others:
            await connection.chunk(b"")
            assert (await connection.answer()).status == 200
        assert one.counters.waiting_now == 0
    bodies = [item["body"] for batch in transport.batches for item in batch]
    assert bodies == ["a" * 140_000, "0", "1", "2"]


async def test_a_body_that_outgrows_the_bound_is_refused() -> None:
    """It did not say how long it would be, and others are being read; alone it may be as long as any."""
    async with sidecar(ScriptedTransport(), serve=SERVE, **SMALL) as one:
        pair = [await one.connect() for _ in range(2)]
        for connection in pair:
            await connection.begin(f"/v2/publish/{URL}")
            await connection.chunk(b"x")
        await asyncio.sleep(0.01)
        await pair[0].chunk(b"a" * UNKNOWN_BYTES)
        await asyncio.sleep(0.01)
        await pair[1].chunk(b"b" * UNKNOWN_BYTES)
        answer = await pair[1].answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        await pair[0].chunk(b"")
        assert (await pair[0].answer()).status == 200


async def test_one_body_may_be_above_the_bound_alone() -> None:
    """Else it could never be read."""
    transport = ScriptedTransport()
    async with sidecar(transport, serve=SERVE, queue_max_bytes=10_000_000) as one:
        connection = await one.connect()
        await connection.begin(f"/v2/publish/{URL}")
        for _ in range(20):
            await connection.chunk(b"x" * 50_000)
        await connection.chunk(b"")
        assert (await connection.answer()).status == 200


async def test_room_may_come_without_a_requests_end() -> None:
    """The caller of what is in flight has gone: who waits finds out all the same when it settles."""
    transport = ScriptedTransport()
    async with sidecar(transport, queue_max_messages=1) as one:
        transport.hold()
        gone = await one.connect()
        await gone.send("POST", f"/v2/publish/{URL}", b"first")
        await until(lambda: len(transport.batches) == 1)
        waiter = await one.connect()
        await waiter.begin(f"/v2/publish/{URL}")
        await waiting(one, 1)
        gone.close()
        await until(lambda: one.counters.connections_now == 1)
        transport.release()
        await waiter.chunk(b"second")
        await waiter.chunk(b"")
        assert (await waiter.answer()).status == 200


async def test_who_hangs_up_leaves_the_line_and_its_memory() -> None:
    """Those behind have their turn; nothing stays accounted for."""
    async with sidecar(ScriptedTransport(), serve=SERVE, **SMALL) as one:
        reading, waiter, last = [await one.connect() for _ in range(3)]
        await reading.begin(f"/v2/publish/{URL}")
        await reading.chunk(b"a" * 140_000)
        await asyncio.sleep(0.01)
        await waiter.begin(f"/v2/publish/{URL}")
        await waiting(one, 1)
        await last.begin(f"/v2/publish/{URL}")
        await waiting(one, 2)
        waiter.close()
        reading.close()
        await waiting(one, 0)
        await last.chunk(b"x" * 140_000)
        await last.chunk(b"")
        assert (await last.answer()).status == 200


async def test_a_line_without_an_end_is_a_body_like_others() -> None:
    """What streams hold of such lines stays below the bound together; who would be above it gets a 429."""
    async with sidecar(ScriptedTransport(), serve=SERVE, **SMALL) as one:
        first, second = [await one.connect() for _ in range(2)]
        for connection in (first, second):
            await connection.begin("/v2/batch", [("Content-Type", "application/x-ndjson")])
            await connection.answer_head()
            await connection.chunk(b'{"destination":"%b","body":"' % URL.encode() + b"a" * 100_000)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(SECONDS):
            refused = orjson.loads(await second.answer_chunk())
            assert (refused["status"], "no room" in refused["error"]) == (429, True)
            await first.chunk(b'"}\n')
            assert orjson.loads(await first.answer_chunk()) == {"messageId": "msg_1"}
            await first.chunk(b"")
            assert await first.answer_chunk() == b""
        answer = await one.bulk(b'{"destination":"%b"}\n' % URL.encode())
        assert answer.lines == [{"messageId": "msg_2"}]
        for _ in range(2):  # and nothing stays accounted for
            body = b'{"destination":"%b","body":"%b"}\n' % (URL.encode(), b"a" * 140_000)
            assert list((await one.bulk(body)).lines[0]) == ["messageId"]
