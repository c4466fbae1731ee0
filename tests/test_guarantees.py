"""The guarantees of the README's table, each proven over real sockets against the local upstream."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import (
    Config,
    ConfigError,
    DeadlineExceeded,
    DeliveryError,
    Dispatcher,
    DispatcherClosed,
    Halted,
    Message,
    MessageRejected,
    Queue,
    QueueFull,
    QuotaExhausted,
    Receipt,
)
from dispatcher.config import LimitSettings, QueueSettings
from dispatcher.core.batch import Reply
from dispatcher.testing import ScriptedTransport, local_upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.testing import LocalUpstream

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"


def configured(upstream: LocalUpstream, **overrides: Any) -> Config:
    return Config.load(env={}, token=upstream.token, url=upstream.url, **overrides)


def bodies(upstream: LocalUpstream) -> list[bytes]:
    return [row.body or b"" for row in upstream.accepted()]


async def until(condition: Callable[[], bool], within: float = 5.0) -> None:
    """Wait for something that is bound to happen; fail if it does not."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


# ----------------------------------------------------------------------------------------------- limits


async def test_limits_change_while_it_is_open() -> None:
    """A smaller room takes nothing more and loses nothing, a larger one serves who waited."""
    transport = ScriptedTransport()
    config = Config(token="t", queue=QueueSettings(max_messages=4), limit=LimitSettings("fixed", 8))
    async with Dispatcher(config, transport=transport) as dispatcher:
        transport.hold()
        held = [dispatcher.put_nowait(Message(URL, body=str(n), queue=f"q{n}")) for n in range(4)]
        await until(lambda: len(transport.batches) > 0)
        waiting = asyncio.create_task(dispatcher.send(Message(URL, body="waits")))
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="max_in_flight"):
            dispatcher.set_limits(max_messages=5, max_in_flight=0)
        dispatcher.set_limits(max_messages=2)
        assert dispatcher.config.queue.max_messages == dispatcher.engine.room.max_messages == 2
        with pytest.raises(QueueFull, match="4 of 2"):
            dispatcher.put_nowait(Message(URL))
        dispatcher.set_limits(max_messages=100, max_in_flight=1)
        await until(lambda: dispatcher.statistics().held == 5)
        assert dispatcher.statistics().limit == 1
        transport.release()
        assert [type(await each) for each in held] == [Receipt] * 4
        assert isinstance(await waiting, Receipt)
    with pytest.raises(DispatcherClosed):
        dispatcher.set_limits(max_messages=1)


# ------------------------------------------------------------------------------------------------ halts


async def test_a_replaced_token_delivers_what_was_held(caplog: pytest.LogCaptureFixture) -> None:
    """Refused after it had worked: everything is held, loudly; `set_token` sends it all."""
    async with local_upstream() as upstream, Dispatcher(configured(upstream)) as dispatcher:
        await dispatcher.send(Message(URL, body="first"))
        upstream.set_token("rotated")
        deliveries = [await dispatcher.put(Message(URL, body=f"held {n}")) for n in range(250)]
        await until(lambda: dispatcher.statistics().state == "halted")
        assert "halted" in repr(dispatcher)
        assert dispatcher.statistics().reason.startswith("401: unauthorized")
        assert 0 < dispatcher.statistics().paused_for <= 30
        assert dispatcher.statistics().held == 250
        loud = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(loud) == 1
        assert "halted" in loud[0].message
        assert "rotated" not in caplog.text
        dispatcher.set_token("rotated")
        receipts = await asyncio.gather(*deliveries)
        assert all(receipt.message_id for receipt in receipts)
        assert sorted(bodies(upstream)) == sorted([b"first", *(b"held %d" % n for n in range(250))])
        assert dispatcher.statistics().state == "open"


@pytest.mark.parametrize("is_asynchronous", [False, True])
async def test_a_token_provider_resumes_by_itself(*, is_asynchronous: bool) -> None:
    """Asked once the token is refused; what it gives is used."""
    asked = 0

    def provide() -> str:
        nonlocal asked
        asked += 1
        return "rotated"

    async def provide_later() -> str:
        await asyncio.sleep(0)
        return provide()

    provider = provide_later if is_asynchronous else provide
    async with (
        local_upstream() as upstream,
        Dispatcher(configured(upstream), token_provider=provider) as dispatcher,
    ):
        await dispatcher.send(Message(URL, body="1"))
        assert asked == 0
        upstream.set_token("rotated")
        await dispatcher.send(Message(URL, body="2"))
        assert asked == 1
        assert bodies(upstream) == [b"1", b"2"]


async def test_a_failing_provider_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """Its exception may hold the secret: only its kind is logged, and the messages stay held."""

    def provide() -> str:
        raise ValueError("vault said: token=very-secret")

    async with local_upstream() as upstream:
        settings = configured(upstream, drain_within=0)
        async with Dispatcher(settings, token_provider=provide) as dispatcher:
            await dispatcher.send(Message(URL, body="1"))
            upstream.set_token("rotated")
            delivery = await dispatcher.put(Message(URL, body="2"))
            await until(lambda: "provider failed" in caplog.text)
            assert not delivery.done()
    assert "ValueError" in caplog.text
    assert "very-secret" not in caplog.text


async def test_deadlines_run_on_while_halted() -> None:
    """What expires fails as `Halted`, and certainly was not accepted."""
    async with local_upstream() as upstream, Dispatcher(configured(upstream)) as dispatcher:
        await dispatcher.send(Message(URL, body="1"))
        upstream.set_token("rotated")
        with pytest.raises(Halted, match="401") as caught:
            await dispatcher.send(Message(URL, body="2", deliver_within=0.2))
        assert caught.value.certainty == "not_accepted"
        assert bodies(upstream) == [b"1"]


async def test_a_newcomer_with_a_wrong_token_can_mend_it() -> None:
    """First contact fails at once; with the right token everything works."""
    async with local_upstream() as upstream:
        settings = Config.load(env={}, token="wrong", url=upstream.url)
        async with Dispatcher(settings) as dispatcher:
            with pytest.raises(Halted):
                await dispatcher.send(Message(URL, body="1"))
            dispatcher.set_token(upstream.token)
            assert (await dispatcher.send(Message(URL, body="2"))).message_id
        assert bodies(upstream) == [b"2"]


# ------------------------------------------------------------------------------------ cancelled, withdrawn


async def test_cancelled_before_and_after_it_left() -> None:
    """Before: the upstream saw it never. After: once, and its neighbours did not notice."""
    async with local_upstream(faults="latency=50ms") as upstream:
        settings = configured(upstream, limit_max_in_flight=1)
        async with Dispatcher(settings) as dispatcher:
            after = asyncio.ensure_future(dispatcher.send(Message(URL, body="after")))
            await until(lambda: dispatcher.statistics().batches_in_flight == 1)
            before = asyncio.ensure_future(dispatcher.send(Message(URL, body="before")))
            other = asyncio.ensure_future(dispatcher.send(Message(URL, body="other")))
            await asyncio.sleep(0)
            before.cancel()
            after.cancel()
            assert (await other).message_id
            await asyncio.wait([before, after])
            assert before.cancelled()
            assert after.cancelled()
        assert sorted(bodies(upstream)) == [b"after", b"other"]


# ---------------------------------------------------------------------------------------- isolating, halving


async def test_a_body_that_always_draws_500_fails_alone() -> None:
    """Ninety-nine neighbours arrive long before their deadlines; only it fails, at its own."""
    async with local_upstream(faults="poison_500=TOXIC") as upstream:
        async with Dispatcher(configured(upstream, deliver_within=4, retry_max_delay=0.2)) as dispatcher:
            loop = asyncio.get_running_loop()
            began = loop.time()
            mixed = [Message(URL, body="TOXIC" if n == 41 else f"fine {n}") for n in range(100)]
            deliveries = [dispatcher.put_nowait(message) for message in mixed]
            others = [delivery for n, delivery in enumerate(deliveries) if n != 41]
            receipts = await asyncio.gather(*others)
            assert all(receipt.message_id for receipt in receipts)
            assert loop.time() - began < 3
            with pytest.raises(DeadlineExceeded, match="500"):
                await deliveries[41]
        assert len(bodies(upstream)) == 99


async def test_a_body_that_always_draws_400_is_rejected_alone() -> None:
    """At most sixteen requests for a hundred messages."""
    async with local_upstream(faults="poison_400=POISON") as upstream:
        async with Dispatcher(configured(upstream)) as dispatcher:
            mixed = (Message(URL, body="POISON" if n == 99 else f"fine {n}") for n in range(100))
            outcomes = await dispatcher.send_many(mixed)
            assert sum(dispatcher.statistics().requests.values()) <= 16
        assert [type(outcome) for outcome in outcomes] == [Receipt] * 99 + [MessageRejected]


# ------------------------------------------------------------------------------------------------- pauses


async def test_a_spent_quota_fails_what_cannot_wait_and_keeps_the_rest() -> None:
    """Within a second the one, after the reset the other."""
    async with local_upstream(faults="throttle_daily=1 daily_reset=2s") as upstream:
        async with Dispatcher(configured(upstream)) as dispatcher:
            loop = asyncio.get_running_loop()
            began = loop.time()
            patient = dispatcher.put_nowait(Message(URL, body="patient"))
            hasty = [dispatcher.put_nowait(Message(URL, body="hasty", deliver_within=1)) for _ in range(5)]
            for delivery in hasty:
                with pytest.raises(QuotaExhausted) as caught:
                    await delivery
                assert caught.value.certainty in {"not_sent", "not_accepted"}
            assert loop.time() - began < 1
            assert dispatcher.statistics().state == "quota"
            with pytest.raises(QuotaExhausted):  # a new one learns it at once, too
                await dispatcher.send(Message(URL, body="hasty", deliver_within=0.3))
            upstream.set_faults("")
            assert (await patient).message_id
            assert loop.time() - began < 5
        assert bodies(upstream) == [b"patient"]


async def test_a_burst_limit_pauses_everything_and_loses_nothing() -> None:
    """While the service asks to wait nothing is sent; then one probe, then all."""
    async with local_upstream(faults="throttle_burst=1 burst_reset=500ms") as upstream:
        async with Dispatcher(configured(upstream)) as dispatcher:
            deliveries = [dispatcher.put_nowait(Message(URL, body=str(n))) for n in range(1_000)]
            await until(lambda: dispatcher.statistics().state == "throttled")
            refused = sum(dispatcher.statistics().requests.values())
            upstream.set_faults("")
            await asyncio.gather(*deliveries)
            statistics = dispatcher.statistics()
            assert refused <= 10
            assert statistics.requests["200"] <= 12
        assert len(set(bodies(upstream))) == len(bodies(upstream)) == 1_000


# ------------------------------------------------------------------------------------------- ordered lanes


async def test_a_queue_keeps_its_order_under_faults() -> None:
    """Concurrency, retries, isolation, lost replies: the upstream accepts in the order of submission."""
    faults = (
        "latency=uniform(1ms,5ms) error_after=0.1 disconnect_after=0.05 disconnect_before=0.05 "
        "error_before=0.05 truncate=0.05 wrong_length=0.05 poison_400=POISON"
    )
    async with local_upstream(faults=faults, seed=5) as upstream:
        async with Dispatcher(configured(upstream, retry_max_delay=0.05)) as dispatcher:
            mixed = [
                Message(URL, body=f"{n}{' POISON' if n % 97 == 50 else ''}", queue=f"queue-{n % 3}")
                for n in range(1_500)
            ]
            outcomes = await dispatcher.send_many(mixed)
        rejected = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, MessageRejected)]
        assert rejected == [n for n in range(1_500) if n % 97 == 50]
        for queue in range(3):
            places = [int(row.body or b"") for row in upstream.accepted() if row.queue == f"queue-{queue}"]
            assert places == sorted(places)
            assert len(places) == len(set(places))


async def test_a_strict_queue_has_no_exception() -> None:
    """Even where the service refuses one message of a batch and takes later ones: one in flight at a time."""
    async with local_upstream(faults="error_entry=0.2", seed=3) as upstream:
        queues = {"strict": Queue(strict=True)}
        settings = configured(upstream, queues=queues, retry_base=0.001, retry_error_entry_attempts=50)
        async with Dispatcher(settings) as dispatcher:
            outcomes = await dispatcher.send_many(
                Message(URL, body=str(n), queue="strict") for n in range(100)
            )
            assert dispatcher.statistics().order_violations == 0
        assert [type(outcome) for outcome in outcomes] == [Receipt] * 100
        assert bodies(upstream) == [str(n).encode() for n in range(100)]


async def test_a_queue_that_stops_waits_for_resume() -> None:
    """After a failed message nothing of it goes out until it is resumed; other queues do not care."""
    async with local_upstream(faults="poison_400=POISON") as upstream:
        settings = configured(upstream, queues={"billing": {"strict": True, "on_failure": "stop"}})
        async with Dispatcher(settings) as dispatcher:
            billing = [
                dispatcher.put_nowait(Message(URL, body=body, queue="billing"))
                for body in ("1", "POISON", "3")
            ]
            other = dispatcher.put_nowait(Message(URL, body="other", queue="other"))
            with pytest.raises(MessageRejected):
                await billing[1]
            await other
            assert dispatcher.statistics().stopped_queues == ("billing",)
            assert not billing[2].done()
            assert not dispatcher.resume("other")
            assert dispatcher.resume("billing")
            await billing[2]
        assert bodies(upstream).index(b"1") < bodies(upstream).index(b"3")


# ------------------------------------------------------------------------------------------- wrong places


async def test_use_from_another_thread_is_refused() -> None:
    """Nothing is locked: a clear error instead of a corrupted queue."""
    errors: list[BaseException] = []
    async with Dispatcher(Config(token="t"), transport=ScriptedTransport()) as dispatcher:

        def misuse() -> None:
            for use in (
                lambda: dispatcher.put_nowait(Message(URL)),
                lambda: asyncio.run(dispatcher.aclose()),
            ):
                try:
                    use()
                except DispatcherClosed as error:
                    errors.append(error)

        thread = threading.Thread(target=misuse)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert (await dispatcher.send(Message(URL))).message_id
    assert ["thread" in str(errors[0]), "loop" in str(errors[1])] == [True, True]


def test_use_in_another_loop_is_refused() -> None:
    """A dispatcher belongs to the loop that opened it."""
    dispatcher = Dispatcher(Config(token="t"), transport=ScriptedTransport())
    first = asyncio.new_event_loop()
    first.run_until_complete(dispatcher.start())

    async def misuse() -> None:
        with pytest.raises(DispatcherClosed, match="another event loop"):
            await dispatcher.send(Message(URL))

    asyncio.run(misuse())
    first.run_until_complete(dispatcher.aclose())
    first.close()


def test_without_an_asyncio_loop_it_does_not_open() -> None:
    """Under trio, or no loop at all: a clear error. (Driven here as another library would.)"""
    opening = Dispatcher(Config(token="t"), transport=ScriptedTransport()).start()
    with pytest.raises(DispatcherClosed, match="asyncio"):
        opening.send(None)


async def test_unawaited_failures_of_a_batch_come_together() -> None:
    """A hundred messages nobody awaits: one call, one list."""
    reported: list[list[DeliveryError]] = []
    transport = ScriptedTransport(Reply(401, b"{}"))
    async with Dispatcher(Config(token="t"), transport=transport, on_failure=reported.append) as dispatcher:
        for number in range(100):
            dispatcher.put_nowait(Message(URL, body=str(number)))
        await dispatcher.flush()
    assert [len(errors) for errors in reported] == [100]
