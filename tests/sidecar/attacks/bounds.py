"""More than is allowed: of bytes, of items, of connections, of time."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.sidecar.attacks.stage import CALLER, ENDLESS_BYTES, HOOK, PUBLISH, came, http

if TYPE_CHECKING:
    from tests.sidecar.attacks.stage import Stage
    from tests.sidecar.support_raw import RawClient

GROUP = "bounds"
HEAD_BYTES, BODY_BYTES, BATCH_BYTES, ITEMS = 4_096, 100_000, 200_000, 50
HEAD_SECONDS, BODY_SECONDS, IDLE_SECONDS, REQUEST_SECONDS = 0.6, 0.6, 1.2, 2.5
SMALL = {
    "DISPATCHER_SERVE_MAX_HEAD_BYTES": str(HEAD_BYTES),
    "DISPATCHER_SERVE_MAX_BODY_BYTES": str(BODY_BYTES),
    "DISPATCHER_SERVE_MAX_BATCH_BYTES": str(BATCH_BYTES),
    "DISPATCHER_SERVE_MAX_ITEMS": str(ITEMS),
    "DISPATCHER_SERVE_HEAD_TIMEOUT": str(HEAD_SECONDS),
    "DISPATCHER_SERVE_BODY_TIMEOUT": str(BODY_SECONDS),
    "DISPATCHER_SERVE_IDLE_TIMEOUT": str(IDLE_SECONDS),
    "DISPATCHER_SERVE_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
}
IDLE, FLOOD, MEBIBYTE = 1_000, 5_000, 1_048_576
GROWTH_BYTES_MAX = 96 * MEBIBYTE
"""What a thousand idle connections, or a flood of requests whose answers nobody reads, may cost."""

ITEM = {"destination": HOOK, "body": "x"}
NDJSON = "Content-Type: application/x-ndjson"
CHUNKED = "Transfer-Encoding: chunked"
TOO_MUCH = {
    "a long target": (http("/v2/x?" + "a" * HEAD_BYTES, method="GET"), 431, f"{HEAD_BYTES} bytes"),
    "a long header": (http(PUBLISH, "X: " + "a" * HEAD_BYTES, body=b"x"), 431, f"{HEAD_BYTES} bytes"),
    "a long name": (http(PUBLISH, "a" * HEAD_BYTES + ": x", body=b"x"), 431, f"{HEAD_BYTES} bytes"),
    "a long head": (http(PUBLISH, *["X-Some: thing"] * 250, "X: " + "a" * 1_000), 431, "bytes"),
    "many headers": (http(PUBLISH, *["X: y"] * 300, body=b"x"), 431, "headers"),
    "a long body, announced": (
        http(PUBLISH, f"Content-Length: {BODY_BYTES + 1}"),
        413,
        f"{BODY_BYTES} bytes",
    ),
    "a longer one, announced": (http(PUBLISH, "Content-Length: 9999999999999"), 413, f"{BODY_BYTES} bytes"),
    "a long body in chunks": (
        http(PUBLISH, CHUNKED)
        + f"{BODY_BYTES + 1:x}\r\n".encode()
        + bytes(BODY_BYTES + 1)
        + b"\r\n0\r\n\r\n",
        413,
        f"{BODY_BYTES} bytes",
    ),
    "a long batch": (http("/v2/batch", body=b" " * (BATCH_BYTES + 1)), 413, f"{BATCH_BYTES} bytes"),
    "many items": (
        http("/v2/batch", body=json.dumps([ITEM] * (ITEMS + 1)).encode()),
        412,
        f"more than {ITEMS}",
    ),
    "items of three bytes": (http("/v2/batch", body=b"[" + b"{}," * 60_000 + b"{}]"), 412, "too many"),
    "deep nesting": (http("/v2/batch", body=b"[" * BODY_BYTES), 400, "invalid batch"),
    "deep nesting in an item": (
        http("/v2/batch", body=b'[{"destination":"a","body":' + b"[" * 50_000 + b"]" * 50_000 + b"}]"),
        400,
        "",
    ),
    "a long line": (
        http("/v2/batch", NDJSON, body=b'{"body":"' + b"a" * BATCH_BYTES + b'"}\n'),
        200,
        '"status":413',
    ),
    "an endless number": (http("/v2/batch", body=b"[" + b"9" * 90_000 + b"]"), 400, "invalid batch"),
    "a long chunk extension": (http(PUBLISH, CHUNKED) + b"1;" + b"a" * 900_000, 400, ""),
    "long trailers": (
        http(PUBLISH, CHUNKED) + b"1\r\na\r\n0\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaaa\r\n" * 9_000,
        431,
        "",
    ),
}


async def attack(stage: Stage) -> None:
    """Everything at once, on a sidecar with the settings `SMALL`."""
    await asyncio.gather(
        *(stage.expect(GROUP, tried, *one) for tried, one in TOO_MUCH.items()),
        _slow(stage, "a slow head", b"POST /v2", b"/", 408),
        _slow(stage, "a slow header", http(PUBLISH)[:-2] + b"X: ", b"a", 408),
        _slow(stage, "HTTP/0.9", b"GET /\r\n", b"", 408),
        _slow(stage, "a body that stops", http(PUBLISH, "Content-Length: 9") + b"abc", b"", 408),
        _slow(stage, "a chunk that stops", http(PUBLISH, CHUNKED) + b"9\r\nabc", b"", 408),
        _slow(
            stage, "a huge chunk that stops", http(PUBLISH, CHUNKED) + b"7fffffffffffffff\r\nabc", b"", 408
        ),
        _slow(stage, "a batch that stops", http("/v2/batch", "Content-Length: 9") + b"[", b"", 408),
        _slow(
            stage, "a cancel that stops", http("/v2/messages", "Content-Length: 9", method="DELETE"), b"", 408
        ),
        _slow(stage, "a body that drips", http(PUBLISH, "Content-Length: 9999"), b"a", 504),
        _slow(stage, "an idle connection", b"", b"", None),
        _slow(stage, "blank lines only", b"\r\n", b"\r\n", None),
        _bulk_stops(stage),
        _reads_nothing(stage),
    )
    await stage.expect(GROUP, "after all that", http(PUBLISH, body=b"x"), 200)


async def _slow(stage: Stage, tried: str, begun: bytes, drip: bytes, status: int | None) -> None:
    """Begin, and drip on; the bound counts from the beginning. No status: it is closed without a word."""
    client, loop = await stage.connect(), asyncio.get_running_loop()
    since = loop.time()
    client.send(begun)
    dripping = asyncio.create_task(_drip(client, drip))
    answer = await stage.hear(client)
    dripping.cancel()
    client.close()
    took = loop.time() - since
    is_right = took < 3 * REQUEST_SECONDS and (None if answer is None else answer.status) == status
    stage.report.add(GROUP, tried, f"after {took:.1f} s: {came(answer)}", is_right)


async def _drip(client: RawClient, data: bytes) -> None:
    while data:
        await asyncio.sleep(0.1)
        client.send(data)


async def _bulk_stops(stage: Stage) -> None:
    client = await stage.connect()
    line = json.dumps(ITEM).encode() + b"\n"
    client.send(http("/v2/batch", NDJSON, CHUNKED) + b"%x\r\n%b\r\n" % (len(line), line))
    answer = await stage.hear(client)
    client.close()
    entries = [json.loads(one) for one in answer.body.splitlines()] if answer else []
    is_right = [one.get("status") for one in entries] == [None, 408]
    stage.report.add(GROUP, "a stream of lines that stops", came(answer), is_right)


async def _reads_nothing(stage: Stage) -> None:
    """An answer of 50 MB to a caller who does not take it is cut off, not kept."""
    client = await stage.connect(receive_bytes=4_096)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.send(http("/v2/messages/endless", method="GET"))
    await asyncio.sleep(2.5 * REQUEST_SECONDS)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    size = 0
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(5):
            while part := await client.reader.read(65_536):
                size += len(part)
    client.close()
    tried = "a caller who does not read its answer"
    stage.report.add(GROUP, tried, f"cut off after {size} bytes", size < ENDLESS_BYTES // 2)


# ---------------------------------------------------------------------------------------------------- crowds


async def attack_crowds(stage: Stage, connections_max: int) -> None:
    """On a sidecar with the usual settings."""
    before = stage.memory_bytes()
    idle = [await stage.connect() for _ in range(IDLE)]
    _grown(stage, f"{IDLE} idle connections", before)
    await stage.expect(GROUP, "a publish beside them", http(PUBLISH, body=b"x"), 200)
    begun = b"POST /v2/publish/"
    for client in idle:
        client.send(begun)
    _grown(stage, f"{IDLE} half heads", before)
    await stage.expect(GROUP, "a publish beside those", http(PUBLISH, body=b"x"), 200)
    more = [await stage.connect() for _ in range(connections_max - IDLE)]
    await stage.expect(
        GROUP, f"connection {connections_max + 1}", http(PUBLISH, body=b"x"), 503, "connections"
    )
    for client in (*idle, *more):
        client.reset()
    while (answer := await stage.ask(http(PUBLISH, body=b"x"))) is None or answer.status == 503:
        await asyncio.sleep(0.05)
    await _flood(stage)


async def _flood(stage: Stage) -> None:
    before = stage.memory_bytes()
    client = await stage.connect(receive_bytes=4_096)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.send(http(PUBLISH, body=b"x") * FLOOD)
    await stage.expect(GROUP, "a publish beside a flood on one connection", http(PUBLISH, body=b"x"), 200)
    _grown(stage, f"{FLOOD} pipelined publishes, no answer read", before)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    answers = [await stage.hear(client) for _ in range(FLOOD)]
    count = sum(one is not None and one.status == 200 for one in answers)
    stage.report.add(GROUP, "the flood, once it is read", f"{count} answers in order", count == FLOOD)
    client.send(http(PUBLISH, body=b"x") + b"XX" + http("/v2/keys", token=CALLER, body=b""))
    pair = [await stage.hear(client), await stage.hear(client)]
    statuses = [None if one is None else one.status for one in pair]
    stage.report.add(GROUP, "garbage between two requests", statuses, statuses in ([200, 400], [400, None]))
    client.close()


def _grown(stage: Stage, tried: str, before: int | None) -> None:
    now = stage.memory_bytes()
    if before is None or now is None:
        return
    size = now - before
    stage.report.add(GROUP, tried, f"{size / MEBIBYTE:.1f} MiB more in memory", size < GROWTH_BYTES_MAX)
