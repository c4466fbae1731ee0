"""The runtime over a scripted transport: admission, waiting, cancelling, closing. No sleeping."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import (
    Abandoned,
    Config,
    DeadlineExceeded,
    DeliveryError,
    Dispatcher,
    DispatcherClosed,
    DispatcherError,
    Halted,
    Message,
    MessageInvalid,
    MessageRejected,
    MessageTooLarge,
    Options,
    OutcomeUnknown,
    QueueFull,
    Receipt,
)
from dispatcher.core.batch import Failure, Reply
from dispatcher.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"
LOST = Failure("disconnect", "the connection was lost", "unknown")


def config(**overrides: Any) -> Config:
    return Config.load(env={}, token="t", url="http://127.0.0.1:9", **overrides)


def messages(number: int) -> Iterator[Message]:
    return (Message(URL, body=str(index)) for index in range(number))


async def turns(number: int = 3) -> None:
    """Let the loop run what is ready: the pump, then what it started, then what that woke."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_send_returns_the_receipt() -> None:
    """One message, one batch, its own id."""
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        receipt = await dispatcher.send(Message(URL, body="hello"))
    assert receipt.message_id == "msg_1"
    assert receipt.message_ids == ("msg_1",)
    assert receipt.attempts == 1
    (item,) = transport.batches[0]
    assert item["destination"] == URL
    assert item["body"] == "hello"
    assert item["headers"] == {"Upstash-Deduplication-Id": receipt.deduplication_id}


async def test_what_is_submitted_together_travels_together() -> None:
    """Fifty sends of one loop turn make one request."""
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        receipts = await asyncio.gather(*(dispatcher.send(message) for message in messages(50)))
    assert [len(batch) for batch in transport.batches] == [50]
    assert [receipt.message_id for receipt in receipts] == [f"msg_{n}" for n in range(1, 51)]


async def test_send_works_as_a_task() -> None:
    """`send` is a coroutine function: a task group takes it as it is."""
    async with (
        Dispatcher(config(), transport=ScriptedTransport()) as dispatcher,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(dispatcher.send(message)) for message in messages(3)]
    assert all(task.result().message_id for task in tasks)


async def test_retries_keep_their_deduplication_id() -> None:
    """A lost reply is asked for again under the same id."""
    transport = ScriptedTransport(LOST, 503)
    async with Dispatcher(config(retry_base=0.001), transport=transport) as dispatcher:
        receipt = await dispatcher.send(Message(URL, body="x"))
    assert receipt.attempts == 3
    ids = {batch[0]["headers"]["Upstash-Deduplication-Id"] for batch in transport.batches}
    assert ids == {receipt.deduplication_id}


async def test_without_deduplication_the_unknown_is_not_repeated() -> None:
    """`deduplication="off"`: a lost reply ends the message; nothing is sent twice."""
    transport = ScriptedTransport(LOST)
    async with Dispatcher(config(deduplication="off"), transport=transport) as dispatcher:
        with pytest.raises(OutcomeUnknown) as caught:
            await dispatcher.send(Message(URL, body="x"))
    assert caught.value.certainty == "unknown"
    assert len(caught.value.attempts) == 1
    assert len(transport.batches) == 1
    assert "headers" not in transport.batches[0][0]


async def test_the_same_off_repeats_what_was_refused() -> None:
    """A 429 took nothing, so it may be repeated even without an id."""
    transport = ScriptedTransport(Reply(429, b"{}", {"retry-after": "0.001"}))
    async with Dispatcher(config(deduplication="off"), transport=transport) as dispatcher:
        assert (await dispatcher.send(Message(URL))).attempts == 2


async def test_a_rejected_message_has_the_services_words() -> None:
    """A 400 on a message alone rejects it, with its deduplication id filled in."""
    transport = ScriptedTransport(Reply(400, b'{"error": "invalid label"}'))
    async with Dispatcher(config(), transport=transport) as dispatcher:
        with pytest.raises(MessageRejected, match=r"rejected with 400: invalid label") as caught:
            await dispatcher.send(Message(URL + "?token=secret", body="x"))
    error = caught.value
    assert (error.status, error.certainty) == (400, "not_accepted")
    assert error.message.deduplication_id == transport.batches[0][0]["headers"]["Upstash-Deduplication-Id"]
    assert "secret" not in str(error) + repr(error)


async def test_the_same_error_again_is_the_same_message() -> None:
    """A failed message sent again carries the id of its first attempt."""
    transport = ScriptedTransport(400)
    async with Dispatcher(config(), transport=transport) as dispatcher:
        with pytest.raises(MessageRejected) as caught:
            await dispatcher.send(Message(URL, body="x"))
        await dispatcher.send(caught.value.message)
    first, second = (batch[0]["headers"]["Upstash-Deduplication-Id"] for batch in transport.batches)
    assert first == second


async def test_first_contact_fails_everything_at_once() -> None:
    """A wrong token: what is held and what comes later fails within a moment, nothing is retried."""
    transport = ScriptedTransport(*[Reply(401, b'{"error": "invalid token"}')] * 10)
    async with Dispatcher(config(), transport=transport) as dispatcher:
        outcomes = await dispatcher.send_many(messages(250))
        with pytest.raises(Halted, match="401: invalid token"):
            await dispatcher.send(Message(URL))
        assert repr(dispatcher).startswith("<Dispatcher 'default' refused")
    assert all(isinstance(outcome, Halted) for outcome in outcomes)
    assert {outcome.certainty for outcome in outcomes if isinstance(outcome, Halted)} <= {
        "not_sent",
        "not_accepted",
    }


async def test_invalid_messages_never_enter() -> None:
    """Each admission error says what is wrong; nothing is sent for them."""
    transport = ScriptedTransport()
    async with Dispatcher(config(batch_max_message_bytes=100), transport=transport) as dispatcher:
        with pytest.raises(MessageInvalid, match="Hello"):
            await dispatcher.put(Message(URL, headers={"Hello": "1"}))
        with pytest.raises(MessageInvalid, match="deliver_within"):
            dispatcher.put_nowait(Message(URL, deliver_within=-1))
        with pytest.raises(MessageInvalid, match="queue"):
            dispatcher.put_nowait(Message(URL, queue="billing", options=Options(delay="5m")))
        with pytest.raises(MessageInvalid, match="expected a Message, not str"):
            dispatcher.put_nowait(URL)  # type: ignore[arg-type]
        with pytest.raises(MessageTooLarge) as caught:
            await dispatcher.put(Message(URL, body="x" * 101))
        assert (caught.value.size, caught.value.limit) == (101, 100)
        assert dispatcher.statistics().admitted == 0
    assert transport.batches == []


async def test_delivery_can_be_awaited_by_many() -> None:
    """Any number of tasks, any number of times; cancelling one cancels only its wait."""
    transport = ScriptedTransport()
    transport.hold()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        delivery = await dispatcher.put(Message(URL))
        tasks = [asyncio.ensure_future(_await(delivery)) for _ in range(3)]
        await turns()
        tasks[0].cancel()
        transport.release()
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert [receipt.message_id for receipt in others if isinstance(receipt, Receipt)] == ["msg_1"] * 2
        assert (await delivery).message_id == "msg_1"
        assert delivery.done()
        assert delivery.exception() is None


async def _await(delivery: Any) -> Receipt:
    receipt: Receipt = await delivery
    return receipt


async def test_put_nowait_raises_when_full_and_put_waits() -> None:
    """Room is bounded; waiters are served in their order, and nobody barges past them."""
    transport = ScriptedTransport()
    transport.hold()
    async with Dispatcher(config(queue_max_messages=2), transport=transport) as dispatcher:
        held = [dispatcher.put_nowait(message) for message in messages(2)]
        with pytest.raises(QueueFull, match=r"2 of 2 messages"):
            dispatcher.put_nowait(Message(URL))
        order: list[str] = []

        async def put(body: str) -> None:
            await dispatcher.put(Message(URL, body=body))
            order.append(body)

        tasks = [asyncio.ensure_future(put(body)) for body in "abc"]
        await turns()
        assert order == []
        assert dispatcher.statistics().waiting_for_room == 3
        transport.release()
        await asyncio.gather(*tasks, *held)
    assert order == ["a", "b", "c"]
    assert [item["body"] for batch in transport.batches for item in batch] == ["0", "1", "a", "b", "c"]


async def test_a_cancelled_waiter_leaves_the_line() -> None:
    """It gives its place back, and those behind it are served."""
    transport = ScriptedTransport()
    transport.hold()
    async with Dispatcher(config(queue_max_messages=1), transport=transport) as dispatcher:
        held = dispatcher.put_nowait(Message(URL, body="held"))
        first = asyncio.ensure_future(dispatcher.put(Message(URL, body="first")))
        second = asyncio.ensure_future(dispatcher.put(Message(URL, body="second")))
        await turns()
        first.cancel()
        transport.release()
        await held
        await (await second)
        assert first.cancelled()
    assert [item["body"] for batch in transport.batches for item in batch] == ["held", "second"]


async def test_cancelled_send_is_taken_back_before_it_left() -> None:
    """Its neighbours go on, its room is free, the upstream never sees it."""
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        cancelled = asyncio.ensure_future(dispatcher.send(Message(URL, body="cancelled")))
        other = asyncio.ensure_future(dispatcher.send(Message(URL, body="other")))
        await asyncio.sleep(0)
        cancelled.cancel()
        await other
        assert cancelled.cancelled()
        assert dispatcher.statistics().held == 0
    bodies = [item["body"] for batch in transport.batches for item in batch]
    assert bodies in (["other"], ["cancelled", "other"])


async def test_withdraw_before_and_after() -> None:
    """Before it left: never sent, its waiters are told. After: too late, and it is delivered."""
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        early = dispatcher.put_nowait(Message(URL, body="early"))
        assert early.withdraw()
        assert not early.withdraw()
        with pytest.raises(Abandoned, match="withdrawn") as caught:
            await early
        assert caught.value.certainty == "not_sent"
        transport.hold()
        late = dispatcher.put_nowait(Message(URL, body="late"))
        await turns()
        assert not late.withdraw()
        transport.release()
        await late
    assert [item["body"] for batch in transport.batches for item in batch] == ["late"]


async def test_deadline_names_the_last_attempt() -> None:
    """What cannot be reached fails at its deadline, says why, and is certainly not sent."""
    refused = Failure("connect", "cannot connect to http://127.0.0.1:9", "not_sent")
    transport = ScriptedTransport(*[refused] * 1000)
    async with Dispatcher(config(retry_max_delay=0.001, retry_base=0.001), transport=transport) as dispatcher:
        with pytest.raises(DeadlineExceeded, match="cannot connect to http") as caught:
            await dispatcher.send(Message(URL, deliver_within=0.05))
    assert caught.value.certainty == "not_sent"
    assert isinstance(caught.value, TimeoutError)


async def test_send_many_keeps_the_order_with_errors_in_their_place() -> None:
    """Receipts and errors stand where their messages stood."""
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        mixed = [Message(URL, body="0"), Message("no scheme/x", body="1"), Message(URL, body="2")]
        outcomes = await dispatcher.send_many(mixed)
    assert [type(outcome) for outcome in outcomes] == [Receipt, MessageInvalid, Receipt]


async def test_send_many_beyond_the_room() -> None:
    """More messages than may be held: it waits for room, batch after batch."""
    transport = ScriptedTransport()
    async with Dispatcher(config(queue_max_messages=150), transport=transport) as dispatcher:
        outcomes = await dispatcher.send_many(messages(2_000))
    assert [outcome.message_id for outcome in outcomes if isinstance(outcome, Receipt)] == [
        f"msg_{number}" for number in range(1, 2_001)
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_stream_is_ordered_and_bounded(*, asynchronous: bool) -> None:
    """Outcomes in order, never more than the window unread."""
    transport = ScriptedTransport()
    taken = 0

    def produce() -> Iterator[Message]:
        nonlocal taken
        for message in messages(3_000):
            taken += 1
            yield message

    async def produce_slowly() -> AsyncIterator[Message]:
        for message in produce():
            if taken % 100 == 0:
                await asyncio.sleep(0)
            yield message

    source = produce_slowly() if asynchronous else produce()
    read = 0
    async with Dispatcher(config(), transport=transport) as dispatcher:
        async for outcome in dispatcher.stream(source, window=200):
            assert taken - read <= 201
            read += 1
            assert isinstance(outcome, Receipt)
    assert read == 3_000
    sent = [int(item["body"]) for batch in transport.batches for item in batch]
    assert sent == list(range(3_000))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_stream_raises_what_the_iterable_raises_last(*, asynchronous: bool) -> None:
    """Everything before the error is delivered and read, then the error comes."""

    def produce() -> Iterator[Message]:
        yield from messages(3)
        raise KeyError("source")

    async def produce_async() -> AsyncIterator[Message]:
        for message in produce():
            yield message

    outcomes: list[Receipt | DispatcherError] = []

    async def read(dispatcher: Dispatcher) -> None:
        outcomes.extend([o async for o in dispatcher.stream(produce_async() if asynchronous else produce())])

    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        with pytest.raises(KeyError, match="source"):
            await read(dispatcher)
    assert outcomes == []
    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        stream = dispatcher.stream(produce_async() if asynchronous else produce())
        outcomes = [await anext(stream) for _ in range(3)]
        with pytest.raises(KeyError, match="source"):
            await anext(stream)
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 3


async def test_flush_covers_what_came_before() -> None:
    """It overrides linger and returns when all of that has settled."""
    transport = ScriptedTransport()
    async with Dispatcher(config(batch_linger=60, batch_soft_slots=0), transport=transport) as dispatcher:
        delivery = dispatcher.put_nowait(Message(URL))
        await turns()
        assert transport.batches == []
        await dispatcher.flush()
        assert delivery.done()
        await dispatcher.flush()  # nothing is held: it returns at once


async def test_linger_is_one_timer() -> None:
    """With no soft slots a message leaves by the window, not before."""
    transport = ScriptedTransport()
    settings = config(batch_linger=0.02, batch_soft_slots=0)
    async with Dispatcher(settings, transport=transport) as dispatcher:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await dispatcher.send(Message(URL))
        assert loop.time() - began >= 0.02
        assert dispatcher.statistics().batches == {"linger": 1}


async def test_close_delivers_what_is_held() -> None:
    """The drain does not linger, reports, and further use is refused."""
    transport = ScriptedTransport()
    dispatcher = Dispatcher(config(batch_linger=60, batch_soft_slots=0), transport=transport)
    await dispatcher.start()
    deliveries = [dispatcher.put_nowait(message) for message in messages(5)]
    drained = await dispatcher.aclose()
    assert (drained.delivered, drained.failures, drained.is_clean) == (5, (), True)
    assert all(delivery.done() for delivery in deliveries)
    assert not transport.is_open
    assert await dispatcher.aclose() is drained
    with pytest.raises(DispatcherClosed, match="closed"):
        await dispatcher.send(Message(URL))
    with pytest.raises(DispatcherClosed, match="opened once"):
        await dispatcher.start()


async def test_drain_deadline_abandons_with_certainty() -> None:
    """What is out when the drain ends is unknown, what waits was not sent; nobody hangs."""
    transport = ScriptedTransport()
    transport.hold()
    settings = config(drain_within=0.05, limit_max_in_flight=1)
    dispatcher = Dispatcher(settings, transport=transport)
    await dispatcher.start()
    out = dispatcher.put_nowait(Message(URL, body="out"))
    await turns()
    waiting = dispatcher.put_nowait(Message(URL, body="waiting"))
    waiters = [asyncio.ensure_future(_await(delivery)) for delivery in (out, waiting)]
    drained = await dispatcher.aclose()
    assert (drained.unknown, drained.not_sent, drained.delivered) == (1, 1, 0)
    errors = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(error) for error in errors] == [Abandoned, Abandoned]
    assert [error.certainty for error in errors if isinstance(error, DeliveryError)] == [
        "unknown",
        "not_sent",
    ]


async def test_close_dismisses_who_waits_for_room() -> None:
    """They were promised nothing and are told so; what is held is still delivered."""
    transport = ScriptedTransport()
    transport.hold()
    dispatcher = Dispatcher(config(queue_max_messages=1), transport=transport)
    await dispatcher.start()
    held = dispatcher.put_nowait(Message(URL))
    waiting = asyncio.ensure_future(dispatcher.put(Message(URL)))
    await turns()
    closing = asyncio.ensure_future(dispatcher.aclose())
    with pytest.raises(DispatcherClosed):
        await waiting
    transport.release()
    assert (await closing).delivered == 1
    assert held.done()


async def test_leaving_the_block_in_another_task() -> None:
    """As fixtures and dependency containers do."""
    dispatcher = Dispatcher(config(), transport=ScriptedTransport())
    await asyncio.ensure_future(dispatcher.__aenter__())
    assert (await dispatcher.send(Message(URL))).message_id
    await asyncio.ensure_future(dispatcher.__aexit__(None, None, None))


async def test_a_dead_pump_fails_every_waiter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the machinery dies, everyone gets an exception of their own."""
    dispatcher = Dispatcher(config(), transport=ScriptedTransport())
    await dispatcher.start()

    def explode(now: float) -> None:
        raise ArithmeticError("a bug")

    monkeypatch.setattr(dispatcher._engine, "poll", explode)
    results = await asyncio.gather(
        *(dispatcher.send(message) for message in messages(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Abandoned] * 3
    assert len({id(result) for result in results}) == 3
    with pytest.raises(DispatcherClosed, match="ArithmeticError"):
        await dispatcher.put(Message(URL))
    await dispatcher.aclose()
    assert "its pump failed" in caplog.text


async def test_a_transport_that_raises_is_an_unknown_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody's transport breaking its promise loses nothing."""
    transport = ScriptedTransport(RuntimeError("broken"))
    async with Dispatcher(config(retry_base=0.001), transport=transport) as dispatcher:
        assert (await dispatcher.send(Message(URL))).attempts == 2
    assert "the transport failed" in caplog.text


async def test_unawaited_failures_are_reported_once_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    """One call with a list, one log line, and no warning from asyncio."""
    reported: list[list[DeliveryError]] = []
    transport = ScriptedTransport(Reply(401, b"{}"))
    async with Dispatcher(config(), transport=transport, on_failure=reported.append) as dispatcher:
        for message in messages(10):
            dispatcher.put_nowait(message)
        await dispatcher.flush()
        assert dispatcher.statistics().unawaited_failures == 10
    assert [len(errors) for errors in reported] == [10]
    lines = [record for record in caplog.records if "nobody awaited" in record.message]
    assert len(lines) == 1


async def test_who_stops_looking_still_has_failures_reported() -> None:
    """A send cancelled after its message left, a stream left early: what fails then is not silent."""
    reported: list[DeliveryError] = []
    transport = ScriptedTransport(*[400] * 100)
    transport.hold()
    async with Dispatcher(config(), transport=transport, on_failure=reported.extend) as dispatcher:
        sending = asyncio.ensure_future(dispatcher.send(Message(URL, body="sent")))
        await turns()
        sending.cancel()
        stream = dispatcher.stream(messages(1))
        reading = asyncio.ensure_future(anext(stream))
        await turns()
        reading.cancel()
        await asyncio.wait([sending, reading])
        transport.release()
        await dispatcher.flush()
        assert dispatcher.statistics().unawaited_failures == 2
    assert len(reported) == 2


async def test_what_was_taken_back_is_no_failure() -> None:
    """Withdrawn by its producer, or cancelled while it waited for room: nobody is told of a failure."""
    reported: list[DeliveryError] = []
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport, on_failure=reported.extend) as dispatcher:
        assert dispatcher.put_nowait(Message(URL)).withdraw()
        await dispatcher.flush()
        assert dispatcher.statistics().finished == {"withdrawn": 1}
    assert reported == []


async def test_binary_bodies_travel_alone() -> None:
    """Bytes that are not UTF-8 leave raw, to the single endpoint, target and headers intact."""
    transport = ScriptedTransport()
    destination = "https://example.com//a/../b?x=%2F&y=ü"
    async with Dispatcher(config(), transport=transport) as dispatcher:
        receipts = await asyncio.gather(
            dispatcher.send(Message(destination, body=b"\xff\x00", headers={"Upstash-Label": "a"})),
            dispatcher.send(Message(URL, body=b"text", queue="billing")),
            dispatcher.send(Message(URL, body=b"\xfe", queue="billing")),
        )
    assert all(receipt.message_id for receipt in receipts)
    targets = [single.target for single in transport.singles]
    assert targets[0] == "/v2/publish/https://example.com//a/../b?x=%2F&y=%C3%BC"
    assert targets[1] == f"/v2/enqueue/billing/{URL}"
    assert ("Upstash-Label", "a") in transport.singles[0].headers
    assert transport.singles[0].body == b"\xff\x00"
    assert [item["body"] for batch in transport.batches for item in batch] == ["text"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_a_forked_child_is_refused() -> None:
    """Opened before the fork it would draw the parent's ids in the child: it says so."""
    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                dispatcher.put_nowait(Message(URL))
                os.write(writer, b"admitted")
            except DispatcherClosed as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        said = os.read(reader, 1000).decode()
        os.close(reader)
        os.waitpid(child, 0)
        assert "forked" in said
        assert (await dispatcher.send(Message(URL))).message_id  # the parent goes on


async def test_use_before_start_is_a_clear_error() -> None:
    """Not started: the text says how."""
    with pytest.raises(DispatcherClosed, match="async with"):
        Dispatcher(config(), transport=ScriptedTransport()).put_nowait(Message(URL))


async def test_the_token_is_in_no_repr() -> None:
    """Neither the dispatcher nor its configuration, transport or statistics show it."""
    settings = Config(token="very-secret", url="http://127.0.0.1:9")
    dispatcher = Dispatcher(settings)
    text = repr([dispatcher, settings, dispatcher._pump.transport, dispatcher.statistics(), vars(dispatcher)])
    assert "very-secret" not in text
