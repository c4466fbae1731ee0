"""How a `BlockingDispatcher` begins and ends, and what becomes of those who wait if it breaks."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from dispatcher import (
    Abandoned,
    BlockingDispatcher,
    Config,
    ConfigError,
    DeliveryError,
    DispatcherClosed,
    DrainReport,
    MessageRejected,
    QueueFull,
    Receipt,
)
from dispatcher.blocking.worker import EXIT_GRACE
from dispatcher.testing import ScriptedTransport
from tests.blocking_support import Call, Scripted, message, wait_until

# ------------------------------------------------------------------------------------ beginning and end


def own_threads() -> list[str]:
    """Names of the threads that dispatchers run now."""
    return sorted(each.name for each in threading.enumerate() if each.name.startswith("dispatcher "))


def test_nothing_happens_before_the_first_use() -> None:
    """No thread; it can be looked at, and closed without ever having been used."""
    wait_until(lambda: not own_threads())  # those of other tests
    dispatcher = Scripted(queue_max_messages=5).dispatcher
    assert not own_threads()
    assert repr(dispatcher).startswith("<BlockingDispatcher 'default' new held=0 in_flight=0/")
    assert dispatcher.statistics().state == "new"
    assert dispatcher.engine.room.max_messages == 5
    assert dispatcher.oldest_age() == 0.0
    assert dispatcher.close() == DrainReport()
    assert dispatcher.statistics().state == "closed"
    for use in (dispatcher.start, dispatcher.flush, lambda: dispatcher.put(message())):
        with pytest.raises(DispatcherClosed):
            use()
    assert not own_threads()


def test_closing_drains_and_ends_the_thread() -> None:
    """It reports what became of everything; a second call gives the same; nothing is taken any more."""
    wait_until(lambda: not own_threads())  # those of other tests
    scripted = Scripted(batch_linger=60, batch_soft_slots=0)
    dispatcher = scripted.dispatcher
    deliveries = [dispatcher.put(message(n)) for n in range(3)]
    assert "open held=3" in repr(dispatcher)
    report = dispatcher.close()
    assert (report.delivered, report.is_clean) == (3, True)
    assert all(delivery.done() for delivery in deliveries)
    assert dispatcher.close() is report
    wait_until(lambda: not own_threads())
    assert not scripted.transport.is_open
    assert repr(dispatcher).startswith("<BlockingDispatcher 'default' closed held=0 in_flight=0/")
    for call in (dispatcher.send, dispatcher.put, dispatcher.put_nowait):
        with pytest.raises(DispatcherClosed, match="the dispatcher is closed"):
            call(message())
    assert [type(one) for one in dispatcher.send_many([message()])] == [DispatcherClosed]
    for use in (dispatcher.start, dispatcher.flush, lambda: dispatcher.resume("q")):
        with pytest.raises(DispatcherClosed):
            use()
    with pytest.raises(DispatcherClosed):
        dispatcher.set_token("t2")
    assert not deliveries[0].withdraw()
    assert dispatcher.engine.tally.refused == {"closed": 4}


def test_closing_while_threads_wait() -> None:
    """Those who wait for room are sent away, those who wait for a receipt get it; closing twice waits too."""
    scripted = Scripted(holds=True, queue_max_messages=2)
    with scripted as dispatcher:
        sending = [Call(dispatcher.send, message(n)) for n in range(2)]
        wait_until(lambda: dispatcher.statistics().held == 2)
        waiting = [Call(call, message()) for call in (dispatcher.send, dispatcher.put) for _ in range(2)]
        waiting += [Call(dispatcher.send_many, [message()]), Call(dispatcher.flush)]
        wait_until(lambda: dispatcher.statistics().waiting_for_room == 5)
        closing = [Call(dispatcher.close) for _ in range(2)]
        assert [type(call.outcome()) for call in waiting[:4]] == [DispatcherClosed] * 4
        (refused,) = waiting[4].outcome()
        assert isinstance(refused, DispatcherClosed)
        assert all(call.is_alive() for call in (*sending, *closing))
        scripted.release()
        assert all(isinstance(call.outcome(), Receipt) for call in sending)
        assert waiting[5].outcome() is None
        first, second = (call.outcome() for call in closing)
        assert first is second
        assert first.delivered == 2


def test_what_cannot_be_delivered_in_time_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The drain ends after `drain_within`; each gets an error of its own, and the log says so."""
    scripted = Scripted(holds=True, drain_within=0.05)
    dispatcher = scripted.dispatcher
    deliveries = [dispatcher.put(message(n)) for n in range(2)]
    waiting = Call(deliveries[0].result)
    report = dispatcher.close()
    assert isinstance(waiting.outcome(), Abandoned)
    assert len(report.failures) == 2
    assert len({id(delivery.exception()) for delivery in deliveries}) == 2
    assert "closed with undelivered messages" in caplog.text


def test_a_transport_that_does_not_open_may_be_tried_again() -> None:
    """Whoever needed it gets the error; nothing is left of the thread."""

    class Broken(ScriptedTransport):
        async def start(self) -> None:
            if len(made) == 1:
                raise OSError("no network")
            await super().start()

    made: list[Broken] = []

    def make() -> Broken:
        made.append(Broken())
        return made[-1]

    wait_until(lambda: not own_threads())  # those of other tests
    dispatcher = BlockingDispatcher(Config(token="t"), transport=make)
    with pytest.raises(OSError, match="no network"):
        dispatcher.put(message())
    wait_until(lambda: not own_threads())
    assert dispatcher.send(message())
    dispatcher.close()


def test_wrong_arguments_are_refused() -> None:
    """A transport instead of a function that makes one; a coroutine function for `on_failure`."""

    async def on_failure(errors: list[DeliveryError]) -> None:
        """Never awaited."""

    with pytest.raises(ConfigError, match="function that makes one"):
        BlockingDispatcher(Config(token="t"), transport=ScriptedTransport())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="plain function"):
        BlockingDispatcher(Config(token="t"), on_failure=on_failure)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- its own thread, death


def test_its_own_thread_never_waits_for_itself() -> None:
    """In `on_failure` every call that would wait says so; `put_nowait` and `withdraw` work there."""
    said: list[Any] = []
    scripted = Scripted(400, queue_max_messages=2)
    dispatcher = scripted.dispatcher

    def on_failure(errors: list[DeliveryError]) -> None:
        said.append([type(error) for error in errors])
        again = dispatcher.put_nowait(message("again"))
        said.append(again.withdraw())
        held = dispatcher.put_nowait(message("held"))
        for use in (
            lambda: dispatcher.send(message()),
            lambda: dispatcher.send_many([message()]),
            lambda: next(dispatcher.stream([message()])),
            dispatcher.flush,
            dispatcher.close,
            held.result,
            lambda: [dispatcher.put(message(n)) for n in range(3)],
        ):
            try:
                said.append(use())
            except DispatcherClosed as error:
                said.append("own thread" in str(error))
        dispatcher.set_token("t2")

    dispatcher._on_failure = on_failure
    dispatcher.put(message("first"))
    wait_until(lambda: scripted.transport.tokens == ["t2"])
    dispatcher.flush()
    assert said == [[MessageRejected], True] + [True] * 7
    assert scripted.bodies == ["first", "held", "0"]
    dispatcher.close()


def test_if_its_thread_dies_nobody_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """A SystemExit in the loop: everyone who waits gets an error of their own, and it is logged."""
    scripted = Scripted(*[SystemExit(3)] * 3, holds=True, queue_max_messages=3)
    dispatcher = scripted.dispatcher
    deliveries = [dispatcher.put(message(n)) for n in range(2)]
    calls = [Call(deliveries[0].result), Call(dispatcher.send, message())]
    wait_until(lambda: dispatcher.statistics().held == 3)
    calls += [Call(dispatcher.put, message()), Call(dispatcher.flush)]
    wait_until(lambda: dispatcher.statistics().waiting_for_room == 1)
    scripted.release()
    kinds = [type(call.outcome()) for call in calls]
    assert kinds[:3] == [Abandoned, Abandoned, DispatcherClosed]
    assert kinds[3] in (DispatcherClosed, type(None)), "everything had settled, if the flush saw it"
    errors = [calls[0].outcome(), calls[1].outcome(), deliveries[1].exception()]
    assert len({id(error) for error in errors}) == 3
    with pytest.raises(DispatcherClosed):
        dispatcher.put(message())
    assert dispatcher.close().delivered == 0
    assert dispatcher.statistics().held == 0
    assert "its thread died" in caplog.text


@pytest.mark.parametrize("method", ["poll", "offer_many"])
def test_if_its_machinery_dies_nobody_hangs(
    method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the core: what is held fails, what comes later is refused with the reason."""
    scripted = Scripted(holds=True)
    dispatcher = scripted.dispatcher
    held = dispatcher.put(message())
    wait_until(lambda: scripted.transport.batches)

    def break_down(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(dispatcher.engine, method, break_down)
    calls = [Call(held.result), Call(dispatcher.send, message())]
    assert [type(call.outcome()) for call in calls] == [Abandoned, Abandoned]
    wait_until(lambda: dispatcher.statistics().state == "closed")
    monkeypatch.undo()
    with pytest.raises(DispatcherClosed, match="died of RuntimeError"):
        dispatcher.send(message())
    assert "its pump failed" in caplog.text
    assert dispatcher.close().delivered == 0
    assert dispatcher.statistics().held == 0


def test_the_exit_does_not_wait_for_a_thread_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """Someone's `on_failure` blocks it: the exit goes on after the drain's time, and the log says so."""
    is_stuck, may_end = threading.Event(), threading.Event()

    def on_failure(errors: list[DeliveryError]) -> None:
        is_stuck.set()
        may_end.wait()

    scripted = Scripted(400, on_failure=on_failure)
    scripted.dispatcher.put(message())
    is_stuck.wait()
    worker = scripted.dispatcher._worker
    assert worker is not None
    worker._drain_within = 0.01 - EXIT_GRACE
    worker.ask_to_close()
    worker.close_at_exit()
    assert "its thread does not end" in caplog.text
    may_end.set()
    assert scripted.dispatcher.close().is_clean


def test_a_failure_nobody_waits_for_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """To `on_failure`, in the log and in the count; one that somebody waits for is not."""
    caplog.set_level(logging.WARNING, "dispatcher")
    failed: list[DeliveryError] = []
    scripted = Scripted(400, 400, holds=True, on_failure=failed.extend, limit_max_in_flight=1)
    with scripted as dispatcher:
        dispatcher.put(message("nobody"))
        wait_until(lambda: scripted.transport.batches)
        awaited = dispatcher.put(message("somebody"))
        waiting = Call(awaited.result)
        wait_until(lambda: awaited.waiters)
        scripted.release()
        assert isinstance(waiting.outcome(), MessageRejected)
        dispatcher.flush()
    assert len(failed) == 1
    assert "1 messages failed and nobody awaited them" in caplog.text


def test_full_is_an_error_of_put_nowait() -> None:
    """With its numbers; and it does not barge past those who wait."""
    scripted = Scripted(holds=True, queue_max_messages=2)
    with scripted as dispatcher:
        for n in range(2):
            dispatcher.put_nowait(message(n))
        with pytest.raises(QueueFull) as caught:
            dispatcher.put_nowait(message())
        assert (caught.value.held, caught.value.capacity) == (2, 2)
        assert dispatcher.engine.tally.refused == {"full": 1}
