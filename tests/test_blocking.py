"""`BlockingDispatcher`: the calls and errors of `Dispatcher`, for threads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any, assert_type

import pytest

from dispatcher import (
    Abandoned,
    BlockingDelivery,
    Config,
    ConfigError,
    DeliveryError,
    Dispatcher,
    DispatcherError,
    DrainReport,
    Message,
    MessageInvalid,
    MessageRejected,
    MessageTooLarge,
    Queue,
    Receipt,
    Statistics,
)
from dispatcher.testing import ScriptedTransport
from tests.blocking_support import URL, Call, Scripted, message, wait_until

# ------------------------------------------------------------------------------------------- the calls


def test_send_waits_for_the_receipt() -> None:
    """Its own one, by the service's id."""
    scripted = Scripted()
    with scripted as dispatcher:
        receipts = [dispatcher.send(message(n)) for n in range(3)]
    assert [receipt.message_id for receipt in receipts] == ["msg_1", "msg_2", "msg_3"]
    assert scripted.bodies == ["0", "1", "2"]


def test_the_types_are_the_public_ones() -> None:
    """What a type checker takes each call for; and so it is."""
    with Scripted() as dispatcher:
        delivery = assert_type(dispatcher.put(message(), timeout=5), BlockingDelivery)
        assert type(delivery) is BlockingDelivery
        assert type(assert_type(delivery.result(timeout=5), Receipt)) is Receipt
        assert assert_type(delivery.exception(), DeliveryError | None) is None
        outcomes = assert_type(dispatcher.send_many([message()]), list[Receipt | DispatcherError])
        assert [type(one) for one in outcomes] == [Receipt]
        stream = assert_type(dispatcher.stream([message()]), Iterator[Receipt | DispatcherError])
        assert [type(one) for one in stream] == [Receipt]
        assert isinstance(assert_type(dispatcher.statistics(), Statistics), Statistics)
    assert isinstance(assert_type(dispatcher.close(), DrainReport), DrainReport)


def test_a_refused_message_raises_from_send() -> None:
    """The service's words, and only for this message."""
    with Scripted(400) as dispatcher:
        with pytest.raises(MessageRejected, match="scripted 400"):
            dispatcher.send(message())
        assert dispatcher.send(message()).attempts == 1


def test_put_gives_a_delivery_to_wait_for() -> None:
    """By any number of threads; it is told apart in its text, and says whether it is done."""
    scripted = Scripted(holds=True)
    with scripted as dispatcher:
        delivery = dispatcher.put(message())
        waiting = [Call(delivery.result) for _ in range(4)]
        wait_until(lambda: len(delivery.waiters or ()) == 4)
        assert not delivery.done()
        assert repr(delivery) == f"<Delivery pending of <Message to '{URL}'>>"
        scripted.release()
        receipts = [call.outcome() for call in waiting]
        assert all(isinstance(receipt, Receipt) for receipt in receipts)
        assert {id(receipt) for receipt in receipts} == {id(delivery.result())}
        assert delivery.done()
        assert delivery.exception() is None


def test_a_delivery_that_failed_raises_in_every_thread() -> None:
    """Or gives its error, if it is asked for that."""
    scripted = Scripted(400, holds=True)
    with scripted as dispatcher:
        delivery = dispatcher.put(message())
        waiting = [Call(delivery.result), Call(delivery.exception), Call(delivery.result, 60)]
        wait_until(lambda: len(delivery.waiters or ()) == 3)
        assert delivery.is_claimed
        scripted.release()
        assert [type(call.outcome()) for call in waiting] == [MessageRejected] * 3
        assert isinstance(delivery.exception(), MessageRejected)
    assert dispatcher.statistics().unawaited_failures == 0


def test_a_wait_can_end_before_the_message() -> None:
    """TimeoutError; the message goes on, and what nobody waits for any more is reported."""
    failed: list[DeliveryError] = []
    scripted = Scripted(400, holds=True, on_failure=failed.extend)
    with scripted as dispatcher:
        delivery = dispatcher.put(message())
        for wait in (delivery.result, delivery.exception):
            for timeout in (0, -1, 0.01):
                with pytest.raises(TimeoutError, match="goes on"):
                    wait(timeout)
        assert (delivery.waiters, delivery.is_claimed) == (None, False)
        scripted.release()
        dispatcher.flush()
        assert failed == [delivery.exception()]


def test_a_delivery_cannot_be_awaited() -> None:
    """The error says what to do instead."""
    with Scripted() as dispatcher:
        delivery = dispatcher.put(message())
        with pytest.raises(TypeError, match=r"`result\(\)`"):
            delivery.__await__()
        with pytest.raises(TypeError, match="`Dispatcher`"):
            delivery.wait()
        assert delivery.result()


WRONG: list[tuple[Any, type[Exception]]] = [
    (None, MessageInvalid),
    (Message("no scheme, blanks"), MessageInvalid),
    (Message(URL, json=object()), MessageInvalid),
    (Message(URL, deliver_within=-1), MessageInvalid),
    (Message(URL, "x" * 2_000), MessageTooLarge),
    (Message(URL, "x" * 990), MessageTooLarge),
]


@pytest.mark.parametrize(("wrong", "kind"), WRONG)
def test_a_wrong_message_is_refused_in_the_callers_thread(wrong: Any, kind: type[Exception]) -> None:
    """With the errors of `Dispatcher`, word for word, counted like them; its neighbours are delivered."""
    settings: dict[str, Any] = {"batch_max_message_bytes": 1_000, "queue_max_bytes": 1_000}
    with Scripted(**settings) as dispatcher:
        texts = set()
        for call in (dispatcher.send, dispatcher.put, dispatcher.put_nowait):
            with pytest.raises(kind) as caught:
                call(wrong)
            texts.add(str(caught.value))
        outcomes = dispatcher.send_many([message(), wrong, message()])
        assert [type(outcome) for outcome in outcomes] == [Receipt, kind, Receipt]
        assert [type(outcome) for outcome in dispatcher.stream([wrong, message()])] == [kind, Receipt]
        assert texts == {str(outcomes[1])} == {refusal_of(wrong, settings)}
        word = "invalid" if kind is MessageInvalid else "too_large"
        assert dispatcher.engine.tally.refused == {word: 5}


def refusal_of(wrong: Any, settings: dict[str, Any]) -> str:
    """What a `Dispatcher` says to this message."""
    import asyncio

    async def ask() -> str:
        config = Config.load(env={}, token="t", **settings)
        async with Dispatcher(config, transport=ScriptedTransport()) as dispatcher:
            with pytest.raises(DispatcherError) as caught:
                dispatcher.put_nowait(wrong)
            return str(caught.value)

    return asyncio.run(ask())


def test_send_many_keeps_the_order() -> None:
    """Outcomes of any iterable, in its order."""
    with Scripted() as dispatcher:
        outcomes = dispatcher.send_many(message(n) for n in range(1_000))
        assert [one.message_id for one in outcomes if isinstance(one, Receipt)] == [
            f"msg_{n}" for n in range(1, 1_001)
        ]
        assert dispatcher.send_many([]) == []


def breaking_off(after: int) -> Iterator[Message]:
    """An iterable that breaks."""
    for n in range(after):
        yield message(n)
    raise LookupError("the source broke")


def test_an_iterable_that_breaks() -> None:
    """`send_many` raises at once, `stream` after what came before; nothing of that is lost."""
    with Scripted() as dispatcher:
        with pytest.raises(LookupError):
            dispatcher.send_many(breaking_off(5))
        stream = dispatcher.stream(breaking_off(5))
        assert all(isinstance(next(stream), Receipt) for _ in range(5))
        with pytest.raises(LookupError):
            next(stream)
        dispatcher.flush()
        assert dispatcher.statistics().delivered == 10


def test_what_a_broken_send_many_left_is_reported() -> None:
    """Nobody will read those outcomes: their failures go to `on_failure`."""
    failed: list[DeliveryError] = []
    scripted = Scripted(*[400] * 4, holds=True, on_failure=failed.extend, batch_max_messages=1)
    with scripted as dispatcher:
        with pytest.raises(LookupError):
            dispatcher.send_many(breaking_off(2))
        stream = dispatcher.stream([message("a"), message("b")])
        reading = Call(next, stream)
        wait_until(lambda: dispatcher.statistics().held == 4)
        scripted.release()
        assert isinstance(reading.outcome(), MessageRejected)
        stream.close()  # type: ignore[attr-defined]
        dispatcher.flush()
    assert dispatcher.statistics().failed == 4
    assert 2 <= len(failed) <= 3, "those of send_many, and the second of the stream if it settled after that"


@pytest.mark.parametrize("window", [1, 2, 100])
def test_a_stream_reads_no_further_than_its_window(window: int) -> None:
    """Unread outcomes never are more than `window`, and all come in order, through a smaller room too."""
    pulled = 0

    def source() -> Iterator[Message]:
        nonlocal pulled
        for pulled in range(1, 501):
            yield message(pulled)

    scripted = Scripted(queue_max_messages=7)
    with scripted as dispatcher:
        for read, outcome in enumerate(dispatcher.stream(source(), window=window)):
            assert isinstance(outcome, Receipt)
            assert outcome.message_id == f"msg_{read + 1}"
            assert pulled - read <= window
        assert read == 499
        with pytest.raises(ValueError, match="window is 0"):
            dispatcher.stream([], window=0)
    assert scripted.bodies == [str(n) for n in range(1, 501)]


def test_flush_sends_without_lingering() -> None:
    """With a linger of a minute everything waits for company; `flush` sends it, and waits for it."""
    scripted = Scripted(batch_linger=60, batch_soft_slots=0)
    with scripted as dispatcher:
        deliveries = [dispatcher.put(message(n)) for n in range(3)]
        assert scripted.transport.batches == []
        dispatcher.flush()
        assert all(delivery.done() for delivery in deliveries)
        assert len(scripted.transport.batches) == 1


def test_flush_has_a_timeout() -> None:
    """What it waited for goes on."""
    scripted = Scripted(holds=True)
    with scripted as dispatcher:
        delivery = dispatcher.put(message())
        with pytest.raises(TimeoutError, match="held=1"):
            dispatcher.flush(timeout=0.01)
        scripted.release()
        dispatcher.flush(timeout=60)
        assert delivery.result(0)


def test_withdraw() -> None:
    """What has not left is taken back, what has left is not; both from any thread."""
    scripted = Scripted(holds=True, limit_max_in_flight=1)
    with scripted as dispatcher:
        gone = dispatcher.put(message("gone"))
        wait_until(lambda: scripted.transport.batches)
        kept = dispatcher.put(message("kept"))
        assert kept.withdraw()
        assert not kept.withdraw()
        assert not gone.withdraw()
        with pytest.raises(Abandoned, match="withdrawn"):
            kept.result()
        scripted.release()
        assert gone.result().message_id == "msg_1"
        assert not gone.withdraw()
    assert scripted.bodies == ["gone"]
    assert dispatcher.statistics().finished == {"delivered": 1, "withdrawn": 1}
    assert dispatcher.statistics().unawaited_failures == 0


def test_send_takes_back_what_has_not_left_in_time() -> None:
    """And says so; what has left goes on, and its failure is reported as one that nobody awaited."""
    failed: list[DeliveryError] = []
    scripted = Scripted(400, holds=True, limit_max_in_flight=1, on_failure=failed.extend)
    with scripted as dispatcher:
        with pytest.raises(TimeoutError, match="goes on without this call"):
            dispatcher.send(message("gone"), timeout=0.05)
        with pytest.raises(TimeoutError, match="was taken back"):
            dispatcher.send(message("kept"), timeout=0.05)
        assert dispatcher.statistics().held == 1
        scripted.release()
        dispatcher.flush()
        assert [type(error) for error in failed] == [MessageRejected]
    assert scripted.bodies == ["gone"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the shell that began this run in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("room", [100, 1])
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_send_is_taken_back(room: int) -> None:
    """Ctrl-C while it waits, for its receipt or for room: KeyboardInterrupt, and nothing leaves."""
    scripted = Scripted(holds=True, limit_max_in_flight=1, queue_max_messages=room)
    with scripted as dispatcher:
        dispatcher.put(message("first"))
        wait_until(lambda: scripted.transport.batches)
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            wait_until(lambda: dispatcher.statistics().held == 2 or dispatcher.statistics().waiting_for_room)
            signal.pthread_kill(main, signal.SIGINT)

        interrupting = Call(interrupt)
        with pytest.raises(KeyboardInterrupt):
            dispatcher.send(message("kept"))
        interrupting.outcome()
        statistics = dispatcher.statistics()
        assert (statistics.held, statistics.waiting_for_room) == (1, 0)
        scripted.release()
    assert scripted.bodies == ["first"]


def test_set_token_and_resume_reach_the_loop() -> None:
    """Also before the first use, for the token; a wrong one is refused."""
    scripted = Scripted(400, queues={"q": Queue(on_failure="stop")})
    scripted.dispatcher.set_token("first")
    with scripted as dispatcher:
        dispatcher.set_token("second")
        assert scripted.transport.tokens == ["first", "second"]
        assert dispatcher.config.token == "second"
        with pytest.raises(ConfigError):
            dispatcher.set_token("")
        assert not dispatcher.resume("q")
        with pytest.raises(MessageRejected):
            dispatcher.send(message(queue="q"))
        stopped = dispatcher.put(message(queue="q"))
        assert dispatcher.statistics().stopped_queues == ("q",)
        assert not stopped.done()
        assert dispatcher.resume("q")
        assert stopped.result()
