"""Spans of requests: what they link to, what stands in them and what does not, and what destinations get."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dispatcher import BlockingDispatcher, Config, Dispatcher, Halted, Message, Options, Receipt
from dispatcher.core.batch import Failure, Reply
from dispatcher.outbox import Outbox
from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.testing import ScriptedTransport, local_upstream
from dispatcher.tracing import LINKS_MAX, instrument, uninstrument
from tests.metrics_support import config
from tests.tracing_support import URL, Spans, attributes, header, identity, links, traceparent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dispatcher.testing import LocalUpstream

FORWARDED = "Upstash-Forward-traceparent"
SECRET = "tok-4c1f0a9b7d"


@asynccontextmanager
async def traced(
    spans: Spans, transport: ScriptedTransport | None = None, *, forward: bool = False, **settings: Any
) -> AsyncIterator[Dispatcher]:
    """A dispatcher over a service that says what a test tells it to."""
    loaded = Config.load(env={}, token=SECRET, retry_base=0.001, **settings)
    async with Dispatcher(loaded, transport=transport or ScriptedTransport()) as dispatcher:
        instrument(dispatcher, spans.provider, forward=forward)
        yield dispatcher


# ---------------------------------------------------------------------------------------------- links


@pytest.mark.anyio
async def test_a_batch_is_linked_to_the_spans_of_its_producers() -> None:
    """Concurrent producers, each with a span and several messages: each request has exactly theirs, once."""
    spans = Spans()

    async def produce(number: int) -> tuple[int, int]:
        with spans.tracer.start_as_current_span(f"producer {number}") as span:
            deliveries = [await dispatcher.put(Message(URL, body=f"{number}")) for _ in range(3)]
            await asyncio.gather(*deliveries)
            return identity(span.get_span_context())

    async with local_upstream() as upstream, Dispatcher(config(upstream)) as dispatcher:
        instrument(dispatcher, spans.provider)
        producers = await asyncio.gather(*(produce(number) for number in range(40)))
    carried = [[int(body) for body in bodies] for bodies in bodies_by_request(upstream)]
    assert len(carried) == len(spans.requests) >= 2
    by_producers = sorted(sorted({producers[number] for number in numbers}) for numbers in carried)
    assert sorted(sorted(links(span)) for span in spans.requests) == by_producers
    for span in spans.requests:
        assert span.parent is None, "a request is of many producers: it is no child of one of them"
        assert span.kind is SpanKind.PRODUCER
        assert attributes(span)["dispatcher.batch.producers"] == len(span.links)
    counts = [attributes(span)["messaging.batch.message_count"] for span in spans.requests]
    assert sorted(counts) == sorted(len(numbers) for numbers in carried)  # type: ignore[type-var]


def bodies_by_request(upstream: LocalUpstream) -> list[list[bytes]]:
    """What each accepted request carried."""
    rows = iter(upstream.accepted())
    return [[next(rows).body or b"" for _ in range(record.items)] for record in upstream.requests]


@pytest.mark.anyio
async def test_many_at_once_are_one_producer() -> None:
    """`send_many` and `stream` link each of their requests to the one span they were called in."""
    spans = Spans()
    async with traced(spans) as dispatcher:
        with spans.tracer.start_as_current_span("many") as many:
            await dispatcher.send_many(Message(URL, body=str(n)) for n in range(250))
        requests = len(spans.requests)
        with spans.tracer.start_as_current_span("streamed") as streamed:
            async for outcome in dispatcher.stream(Message(URL, body=str(n)) for n in range(250)):
                assert isinstance(outcome, Receipt)
        await dispatcher.send_many(Message(URL, body=str(n)) for n in range(250))
    found = [links(span) for span in spans.requests]
    assert len(found) == 3 * requests
    assert found[:requests] == [{identity(many.get_span_context())}] * requests
    assert found[requests : 2 * requests] == [{identity(streamed.get_span_context())}] * requests
    assert found[2 * requests :] == [set()] * requests, "outside of any span there is nothing to link to"


@pytest.mark.anyio
async def test_links_are_bounded() -> None:
    """A batch of more producers than that has as many links, and says how many there were."""
    spans, transport = Spans(), ScriptedTransport()
    async with traced(
        spans, transport, batch_max_messages=LINKS_MAX + 20, limit_max_in_flight=1
    ) as dispatcher:
        for number in range(LINKS_MAX + 20):
            with spans.tracer.start_as_current_span(str(number)):
                dispatcher.put_nowait(Message(URL, body="x"))
        await dispatcher.flush()
    (request,) = spans.requests
    assert len(request.links) == LINKS_MAX
    assert attributes(request)["dispatcher.batch.producers"] == LINKS_MAX + 20
    assert request.dropped_links == 0


def test_messages_of_threads_are_linked_to_their_threads_spans() -> None:
    """`BlockingDispatcher`: the span of the thread that calls, not of the dispatcher's own."""
    spans = Spans()
    found: set[tuple[int, int]] = set()

    def produce(number: int) -> None:
        with spans.tracer.start_as_current_span(f"thread {number}") as span:
            dispatcher.send(Message(URL, body="x"), timeout=10)
            found.add(identity(span.get_span_context()))

    with BlockingDispatcher(Config.load(env={}, token="t"), transport=ScriptedTransport) as dispatcher:
        instrument(dispatcher, spans.provider)
        threads = [threading.Thread(target=produce, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 5
    assert set().union(*(links(span) for span in spans.requests)) == found


def test_a_blocking_dispatcher_is_traced_from_before_its_first_use() -> None:
    """What a module sets up holds for the thread that is started later."""
    spans = Spans()
    dispatcher = BlockingDispatcher(Config.load(env={}, token="t"), transport=ScriptedTransport)
    instrument(dispatcher, spans.provider)
    with dispatcher:
        dispatcher.send(Message(URL, body="x"))
    assert [span.name.split()[0] for span in spans.requests] == ["batch"]


# ---------------------------------------------------------------------------------- requests and failures


@pytest.mark.anyio
async def test_each_attempt_has_a_span_of_its_own() -> None:
    """A message that is tried four times: four spans, all linked to its producer, each with how it ended."""
    spans = Spans()
    words = "a word of the transport"
    transport = ScriptedTransport(
        503,
        Failure("timeout", words, "unknown"),
        Failure("connect", words, "not_sent"),
        Reply(429, b'{"error":"secret words"}', {"retry-after": "0.01"}),
    )
    async with traced(spans, transport) as dispatcher:
        with spans.tracer.start_as_current_span("producer") as producer:
            await dispatcher.send(Message(URL, body="x"))
    assert [links(span) for span in spans.requests] == [{identity(producer.get_span_context())}] * 5
    told = [(attributes(span).get("error.type"), span.status.status_code) for span in spans.requests]
    error, fine = StatusCode.ERROR, StatusCode.UNSET
    assert told == [("503", error), ("timeout", error), ("connect", error), ("429", error), (None, fine)]
    statuses = [attributes(span).get("http.response.status_code") for span in spans.requests]
    assert statuses == [503, None, None, 429, 200]
    certainties = [attributes(span).get("dispatcher.certainty") for span in spans.requests]
    assert certainties == [None, "unknown", "not_sent", None, None]
    assert not any(span.status.description or span.events for span in spans.requests)


@pytest.mark.anyio
async def test_the_attributes_are_those_of_the_conventions() -> None:
    """By name and type, of a batch and of a message that leaves alone."""
    spans = Spans()
    async with local_upstream() as upstream, Dispatcher(config(upstream), name="orders") as dispatcher:
        instrument(dispatcher, spans.provider)
        await dispatcher.send_many([Message(URL, body="x")] * 3)
        await dispatcher.send(Message(URL, body=b"\xff\xfe"))
        await dispatcher.send(Message(URL, body=b"\xff\xfe", queue="billing"))
    batch, publish, enqueue = spans.requests
    port = int(upstream.url.rpartition(":")[2])
    common = {
        "messaging.system": "qstash",
        "messaging.operation.type": "send",
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.response.status_code": 200,
        "dispatcher.name": "orders",
        "dispatcher.batch.producers": 0,
    }
    told = attributes(batch)
    assert told.pop("dispatcher.batch.bytes") == upstream.requests[0].body_bytes - 4
    assert told.pop("dispatcher.batch.reason") in {"idle", "linger"}
    assert told == {**common, "messaging.operation.name": "batch", "messaging.batch.message_count": 3}
    for span, operation in ((publish, "publish"), (enqueue, "enqueue")):
        alone = {
            "messaging.operation.name": operation,
            "dispatcher.batch.reason": "single",
            "dispatcher.batch.bytes": 2,
        }
        assert attributes(span) == {**common, **alone}
    assert [span.name for span in spans.requests] == [
        f"{operation} 127.0.0.1:{port}" for operation in ("batch", "publish", "enqueue")
    ]


@pytest.mark.anyio
async def test_the_request_is_the_current_span_while_it_is_made() -> None:
    """What traces HTTP itself has its spans below, and what runs in other tasks does not."""
    spans, seen = Spans(), []

    def answer(_: list[dict[str, Any]]) -> Reply:
        seen.append(identity(trace.get_current_span().get_span_context()))
        return Reply(200, b'[{"messageId":"msg_1"}]')

    async with traced(spans, ScriptedTransport(answer)) as dispatcher:
        with spans.tracer.start_as_current_span("producer") as producer:
            await dispatcher.send(Message(URL, body="x"))
            assert trace.get_current_span() is producer
    (request,) = spans.requests
    assert seen == [identity(request.context)]


@pytest.mark.anyio
async def test_a_request_that_is_cut_off_ends_its_span() -> None:
    """The drain's end cancels it; the span says so."""
    spans, transport = Spans(), ScriptedTransport()
    transport.hold()
    async with traced(spans, transport, drain_within=0.05) as dispatcher:
        delivery = await dispatcher.put(Message(URL, body="x"))
    assert delivery.exception() is not None
    (request,) = spans.requests
    assert attributes(request)["error.type"] == "CancelledError"
    assert request.status.status_code is StatusCode.ERROR


@pytest.mark.anyio
async def test_nothing_secret_is_in_a_span() -> None:
    """No token, body, header, destination, query or word of the service, whatever happens to the request."""
    spans = Spans()
    body, query, word = "body-77d1", "key=query-99c2", "word-55e3"
    refusal = Reply(401, b'{"error":"' + word.encode() + b" " + SECRET.encode() + b'"}')
    transport = ScriptedTransport(
        Failure("connect", f"{word} {SECRET}", "not_sent"), RuntimeError(f"{word} {body}"), 200
    )
    options = Options(forward={"X-Key": "header-11a4"})
    async with traced(spans, transport, forward=True, url="https://qstash.test") as dispatcher:
        with spans.tracer.start_as_current_span("producer"):
            await dispatcher.send(Message(f"{URL}?{query}", body=body, options=options))
    async with traced(spans, ScriptedTransport(refusal), forward=True) as dispatcher:
        with pytest.raises(Halted):
            await dispatcher.send(Message(f"{URL}?{query}", body=body, options=options))
    assert len(spans.requests) == 4
    text = "".join(span.to_json() for span in spans.requests)
    for secret in (SECRET, body, query, word, "header-11a4", "example.com"):
        assert secret not in text
    assert '"server.address": "qstash.test"' in text


@pytest.mark.anyio
async def test_tracing_can_be_ended_and_begun_anew() -> None:
    """`uninstrument` leaves nothing behind; a second `instrument` takes the place of the first."""
    spans, others = Spans(), Spans()
    async with traced(spans, forward=True) as dispatcher:
        with spans.tracer.start_as_current_span("producer"):
            await dispatcher.send(Message(URL, body="x"))
            instrument(dispatcher, others.provider)
            await dispatcher.send(Message(URL, body="x"))
            uninstrument(dispatcher)
            delivery = await dispatcher.put(Message(URL, body="x"))
            await delivery
    assert (len(spans.requests), len(others.requests)) == (1, 1)
    assert type(delivery.home).__name__ == "Home"


# ----------------------------------------------------------------------------------------- forwarding


def shapes(mark: str) -> list[Message]:
    """A message of every shape that may be forwarded: each is encoded in a way of its own."""
    return [
        Message(URL, body="text"),
        Message(URL, json={"a": [1, "}"]}),
        Message(URL),
        Message(URL, body="x", deduplication_id=f'"}}é{mark}'),
        Message(URL, body="x", options=Options(delay="1s", forward={"X-A": "1"})),
        Message(URL, body="x", headers={"Upstash-Retries": "2"}),
        Message(URL, body="x", headers={"Upstash-Deduplication-Id": f"mine-{mark}"}),
        Message(URL, body="x", queue="billing"),
        Message(URL, body=b"\xff\x00"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("deduplication", ["auto", "off"])
async def test_the_producers_context_reaches_the_destination(deduplication: str) -> None:
    """Of every shape of message, by `put`, `send_many` and in a run: `traceparent` and `tracestate`, once."""
    spans = Spans()
    parent = {"traceparent": f"00-{7:032x}-{9:016x}-01", "tracestate": 'vendor=a"b,other=1'}
    settings = {"deduplication": deduplication}
    async with local_upstream() as upstream, Dispatcher(config(upstream, **settings)) as dispatcher:
        instrument(dispatcher, spans.provider, forward=True)
        context = TraceContextTextMapPropagator().extract(parent)
        with spans.tracer.start_as_current_span("producer", context) as producer:
            for message in shapes("a"):
                await dispatcher.send(message)
            await dispatcher.send_many(shapes("b"))
            await dispatcher.send_many(Message(URL, body=f"run {n}") for n in range(150))
    expected = traceparent(producer.get_span_context())
    rows = upstream.accepted()
    assert len(rows) == 2 * len(shapes("")) + 150
    for row in rows:
        assert header(row, FORWARDED) == expected, row
        assert header(row, "Upstash-Forward-tracestate") == parent["tracestate"]
    sent = [row.body or b"" for row in rows[-150:]]
    assert sorted(sent) == sorted(f"run {n}".encode() for n in range(150))
    assert {row.deduplication_id for row in rows} >= {"mine-a", "mine-b", '"}éa', '"}éb'}
    assert {header(row, "Upstash-Forward-X-A") for row in rows} == {None, "1"}


@pytest.mark.anyio
async def test_it_is_never_put_on_what_is_known_by_its_content_nor_over_what_is_there() -> None:
    """Content-deduplicated messages stay as they are, in batches and alone; a message's own one is kept."""
    spans = Spans()
    content = Options(content_based_deduplication=True)
    own = f"00-{1:032x}-{2:016x}-00"
    left_alone = [
        Message(URL, body="content", options=content),
        Message(URL, body=b"\xffcontent", options=content),
        Message(URL, body="content and id", options=content, deduplication_id="both"),
        Message(URL, body="own", options=Options(forward={"TraceParent": own})),
        Message(URL, body="own state", headers={"Upstash-Forward-tracestate": "a=b"}),
    ]
    async with local_upstream() as upstream, Dispatcher(config(upstream)) as dispatcher:
        for message in left_alone:
            await dispatcher.send(message)
        before = upstream.accepted()
        instrument(dispatcher, spans.provider, forward=True)
        with spans.tracer.start_as_current_span("producer"):
            again = [await dispatcher.send(message) for message in left_alone]
            many = await dispatcher.send_many(left_alone * 30)
            await dispatcher.send_many([Message(URL, body="plain", options=left_alone[3].options)] * 200)
    told = [receipt.deduplicated for receipt in again]
    assert told == [True, True, True, False, False], "the service knew these by their content, or id"
    assert all(isinstance(one, Receipt) for one in many)
    for row in upstream.accepted()[len(before) :]:
        body = row.body or b""
        value = own if body in (b"own", b"plain") else None
        assert header(row, FORWARDED) == value, row
    assert len(spans.requests) > len(left_alone)


@pytest.mark.anyio
async def test_nothing_is_forwarded_unless_asked_nor_without_a_span() -> None:
    """By default destinations get no header more; outside of a span there is nothing to give."""
    spans = Spans()
    async with local_upstream() as upstream, Dispatcher(config(upstream)) as dispatcher:
        instrument(dispatcher, spans.provider)
        with spans.tracer.start_as_current_span("producer"):
            await dispatcher.send(Message(URL, body="not asked"))
        instrument(dispatcher, spans.provider, forward=True)
        await dispatcher.send(Message(URL, body="no span"))
        await dispatcher.send_many(Message(URL, body=str(n)) for n in range(120))
    assert not any(
        name.lower().startswith("upstash-forward") for row in upstream.accepted() for name, _ in row.headers
    )
    assert {len(span.links) for span in spans.requests} == {0, 1}


@pytest.mark.anyio
async def test_a_forwarded_header_stays_within_the_bounds_of_a_batch() -> None:
    """Messages that just fill a batch do not overfill it, and one that just has room is sent without."""
    spans = Spans()
    settings = {"batch_max_bytes": 20_000, "queue_max_bytes": 20_000, "batch_max_message_bytes": 20_000}
    async with local_upstream() as upstream, Dispatcher(config(upstream, **settings)) as dispatcher:
        instrument(dispatcher, spans.provider, forward=True)
        with spans.tracer.start_as_current_span("producer"):
            outcomes = await dispatcher.send_many(Message(URL, body="x" * 100) for _ in range(400))
            outcomes.append(await dispatcher.send(Message(URL, body="y" * 19_840)))
    assert all(isinstance(one, Receipt) for one in outcomes)
    assert max(record.body_bytes for record in upstream.requests if record.items > 1) <= 20_000
    assert [header(row, FORWARDED) is None for row in upstream.accepted()] == [False] * 400 + [True]


# --------------------------------------------------------------------------------------------- outbox


@pytest.mark.anyio
@pytest.mark.parametrize("forward", [True, False])
async def test_an_outbox_keeps_the_producers_context_across_a_restart(tmp_path: Path, forward: bool) -> None:
    """Accepted under a span while the service was away; sent, linked and forwarded by another process."""
    spans, later, file = Spans(), Spans(), tmp_path / "outbox.db"
    transport = ScriptedTransport()
    transport.hold()
    content = Options(content_based_deduplication=True)
    settings = Config.load(env={}, token="t", drain_within=0.05)
    async with (
        Dispatcher(settings, transport=transport) as dispatcher,
        Outbox(SQLiteStore(file), dispatcher) as outbox,
    ):
        instrument(dispatcher, spans.provider, forward=forward)
        with spans.tracer.start_as_current_span("producer") as producer:
            await outbox.put(Message(URL, body="plain"))
            await outbox.put(Message(URL, body="content", options=content))
        await outbox.put(Message(URL, body="no span"))
    async with (
        local_upstream() as upstream,
        Dispatcher(config(upstream, batch_max_messages=1)) as dispatcher,
        Outbox(SQLiteStore(file), dispatcher) as outbox,
    ):
        instrument(dispatcher, later.provider)
        async with asyncio.timeout(20):
            while len(upstream.accepted()) < 3:
                await asyncio.sleep(0.005)
    found = {row.body: header(row, FORWARDED) for row in upstream.accepted()}
    expected = traceparent(producer.get_span_context()) if forward else None
    assert found == {b"plain": expected, b"content": None, b"no span": None}
    linked = sorted(len(links(span)) for span in later.requests)
    assert linked == [0, 1, 1]
    assert set().union(*(links(span) for span in later.requests)) == {identity(producer.get_span_context())}


@pytest.mark.anyio
async def test_an_outbox_that_is_not_traced_sends_what_a_traced_one_kept(tmp_path: Path) -> None:
    """What was noted of a message is nobody's business then, and does not matter."""
    spans, file, transport = Spans(), tmp_path / "outbox.db", ScriptedTransport()
    settings = Config.load(env={}, token="t")
    async with (
        Dispatcher(settings, transport=transport) as dispatcher,
        Outbox(SQLiteStore(file), dispatcher) as outbox,
    ):
        instrument(dispatcher, spans.provider)
        with spans.tracer.start_as_current_span("producer"):
            stored = await outbox.put(Message(URL, body="x"))
            uninstrument(dispatcher)
        receipt = await stored
    assert receipt.message_id == "msg_1"
    assert not spans.requests


# ------------------------------------------------------------------------------------- while it is off

WITHOUT = """
import asyncio, sys
{blocked}
from dispatcher import BlockingDispatcher, Config, Dispatcher, Message
from dispatcher.outbox import MemoryStore, Outbox
from dispatcher.testing import ScriptedTransport
import dispatcher.metrics, dispatcher.sidecar.daemon, dispatcher.cli

async def main():
    settings = Config(token="t", url="https://qstash.test")
    async with Dispatcher(settings, transport=ScriptedTransport()) as dispatcher:
        async with Outbox(MemoryStore(), dispatcher) as outbox:
            await dispatcher.send(Message("https://example.com", body="x"))
            await outbox.send(Message("https://example.com", body="x"))

asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_while_it_is_off_opentelemetry_is_not_imported() -> None:
    """Neither by the library nor by the commands, though it is installed."""
    program = WITHOUT.format(blocked="")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_opentelemetry_the_extra_is_named() -> None:
    """The rest works; who asks for tracing is told what to install."""
    blocked = "sys.modules['opentelemetry'] = None"
    program = WITHOUT.format(blocked=blocked) + "\nimport dispatcher.tracing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "['opentelemetry']"
    assert done.returncode == 1
    assert "pip install 'qstash-dispatcher[otel]'" in done.stderr
