"""The outbox over a store in memory: what is promised to who hands in, and what becomes of every message."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from dispatcher import (
    Config,
    Dispatcher,
    Message,
    MessageInvalid,
    MessageRejected,
    Options,
    OutboxError,
    OutcomeUnknown,
    Queue,
    Receipt,
    StoreFull,
)
from dispatcher.core.batch import Failure, Reply
from dispatcher.outbox import MemoryStore, Outbox, judging, relay
from dispatcher.outbox.store import Returned
from dispatcher.testing import ScriptedTransport, local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"


@asynccontextmanager
async def outbox(
    transport: ScriptedTransport, store: MemoryStore | None = None, *, after: Any = "resend", **config: Any
) -> AsyncIterator[Outbox]:
    """An outbox over a dispatcher whose service says what a test tells it to."""
    settings = Config.load(env={}, token="t", **config)
    async with (
        Dispatcher(settings, transport=transport) as dispatcher,
        Outbox(store or MemoryStore(), dispatcher, after_window=after) as opened,
    ):
        yield opened


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Wait for something that is bound to happen."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


def bodies(transport: ScriptedTransport) -> list[str]:
    """Everything that was sent, in order."""
    return [item.get("body", "") for batch in transport.batches for item in batch]


# ----------------------------------------------------------------------------------------- the good path


async def test_what_is_accepted_is_delivered() -> None:
    """Each has its receipt, one id from acceptance to delivery, and the store forgets nothing too early."""
    transport = ScriptedTransport()
    async with outbox(transport) as opened:
        stored = await opened.put_many([Message(URL, body=str(n)) for n in range(250)])
        receipts = [await each for each in stored if not isinstance(each, Exception)]
        sent = [item for batch in transport.batches for item in batch]
        assert [item["body"] for item in sent] == [str(n) for n in range(250)]
        ids = [one.id for one in stored if not isinstance(one, Exception)]
        assert [item["headers"]["Upstash-Deduplication-Id"] for item in sent] == ids
        assert len({receipt.message_id for receipt in receipts}) == 250
        found = await opened.find(ids[7])
        assert found is not None
        assert (found.state, found.receipt) == ("delivered", receipts[7])
        await until(lambda: opened.status().waiting == opened.status().claimed == 0)


async def test_ids_say_what_they_are() -> None:
    """Ours is the deduplication id, too; one that the message brings is kept; content needs none."""
    async with outbox(ScriptedTransport()) as opened:
        own = await opened.put(Message(URL, deduplication_id="mine"))
        ours = await opened.put(Message(URL))
        by_content = await opened.put(Message(URL, options=Options(content_based_deduplication=True)))
    assert own.id.startswith("out_")
    assert own.deduplication_id == "mine"
    assert ours.deduplication_id == ours.id
    assert by_content.deduplication_id is None
    assert len({own.id, ours.id, by_content.id}) == 3


async def test_it_returns_before_the_service_answers() -> None:
    """Acceptance waits for the store and for nothing else."""
    transport = ScriptedTransport()
    async with outbox(transport) as opened:
        transport.hold()
        stored = await opened.put(Message(URL, body="1"))
        assert stored.outcome is None
        await until(lambda: len(transport.batches) == 1)
        waiting = [asyncio.create_task(_receipt(stored)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        transport.release()
        assert [type(one) for one in await asyncio.gather(*waiting[1:])] == [Receipt] * 2
        assert type(await stored) is Receipt


async def _receipt(stored: Any) -> Receipt:
    receipt: Receipt = await stored
    return receipt


async def test_bad_messages_are_refused_before_they_are_kept() -> None:
    """One by one, in their places."""
    async with outbox(ScriptedTransport()) as opened:
        with pytest.raises(MessageInvalid):
            await opened.put(Message("nowhere at all"))
        places = await opened.put_many([Message(URL), Message(""), Message(URL, headers={"X": "1"})])
        assert [type(one).__name__ for one in places] == ["Stored", "MessageInvalid", "MessageInvalid"]


async def test_a_full_store_takes_what_fits() -> None:
    """Of many that are handed in together, not none."""
    transport = ScriptedTransport()
    async with outbox(transport, MemoryStore(max_messages=10)) as opened:
        transport.hold()
        places = await opened.put_many([Message(URL, body=str(n)) for n in range(25)])
        assert [type(one).__name__ for one in places].count("Stored") == 10
        assert {type(one) for one in places if isinstance(one, Exception)} == {StoreFull}
        transport.release()


async def test_delays_count_from_acceptance() -> None:
    """As an instant, whatever way it was said; never where the content makes the id."""
    transport = ScriptedTransport()
    before = time.time()
    async with outbox(transport) as opened:
        for message in (
            Message(URL, options=Options(delay="1h")),
            Message(URL, headers={"upstash-delay": "1m30s"}),
            Message(URL, options=Options(delay=5, not_before=2_000_000_000)),
            Message(URL, options=Options(delay=5, content_based_deduplication=True)),
            Message(URL, body=b"\xff", options=Options(delay="1h")),
        ):
            assert await opened.send(message)
    headers = [item["headers"] for batch in transport.batches for item in batch]
    headers.append(dict(transport.singles[0].headers))
    seconds = [int(one["Upstash-Not-Before"]) - before for one in (headers[0], headers[1], headers[4])]
    assert all(abs(got - wanted) < 5 for got, wanted in zip(seconds, (3600, 90, 3600), strict=True))
    assert headers[2]["Upstash-Not-Before"] == "2000000000"
    assert headers[3]["Upstash-Delay"] == "5s"
    assert not [one for one in headers[:3] if any(name.lower() == "upstash-delay" for name in one)]


async def test_a_delay_without_an_end_is_the_services_to_judge() -> None:
    """It is accepted as it stands, whatever number it is."""
    transport = ScriptedTransport()
    delays = ["9" * 400 + "s", "9" * 5_000 + "s"]
    async with outbox(transport) as opened:
        for delay in delays:
            assert await opened.send(Message(URL, headers={"Upstash-Delay": delay}))
    assert [item["headers"]["Upstash-Delay"] for batch in transport.batches for item in batch] == delays


# --------------------------------------------------------------------------------------- what comes back


async def test_only_what_the_service_rejects_is_dead() -> None:
    """With its words and every attempt; its caller is told, and so is who asks later."""
    transport = ScriptedTransport(503, 400)
    async with outbox(transport, retry_base=0.001) as opened:
        with pytest.raises(MessageRejected, match="scripted 400"):
            await opened.send(Message(URL, body="bad"))
        (dead,) = await opened.store.dead_letters()
        assert dead.reason == "400: scripted 400"
        assert [attempt.outcome[:3] for attempt in dead.attempts] == ["503", "400"]
        assert opened.status().dead == 1
        again = await opened.put(Message(URL, body="good"))
        assert await again
        with pytest.raises(MessageRejected, match="400"):
            await _later(opened, dead.record.id)


async def _later(opened: Outbox, message_id: str) -> Receipt:
    found = await opened.find(message_id)
    assert found is not None
    outcome = judging.outcome_of(found)
    assert outcome is not None
    if isinstance(outcome, Receipt):
        return outcome
    raise outcome


async def test_a_deadline_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not confirmed in time is given back, and tried again under its id until it is."""
    monkeypatch.setattr(judging, "RETURN_SECONDS", 0.01)
    lost = Failure("disconnect", "reset", "unknown")
    transport = ScriptedTransport(*[lost] * 6)
    async with outbox(transport, deliver_within=0.05, retry_base=0.02) as opened:
        receipt = await opened.send(Message(URL, body="persistent"))
        assert receipt.attempts >= 2
        ids = {item["headers"]["Upstash-Deduplication-Id"] for batch in transport.batches for item in batch}
        assert len(ids) == 1
        assert not receipt.duplicate_possible


@pytest.mark.parametrize("seed", range(5))
async def test_a_queue_keeps_its_order_through_returns(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines pass at random, what stands behind comes back as well, and nothing is overtaken."""
    monkeypatch.setattr(judging, "RETURN_SECONDS", 0.02)
    monkeypatch.setattr(judging, "RETURN_SECONDS_MAX", 0.05)
    monkeypatch.setattr(relay, "CLAIMED_AT_ONCE", 7)
    rng = Random(seed)
    taken: list[str] = []

    def service(items: list[dict[str, Any]]) -> Reply | Failure:
        if rng.random() < 0.5:
            return Failure("disconnect", "reset", "unknown")  # (refused connections would be an outage)
        taken.extend(item["body"] for item in items)
        return Reply(200, orjson.dumps([{"messageId": f"msg_{item['body']}"} for item in items]))

    transport = ScriptedTransport(*[service] * 5_000)
    config: dict[str, Any] = {"deliver_within": 0.03, "retry_base": 0.01, "batch_max_messages": 4}
    async with outbox(transport, **config) as opened:
        await opened.put_many([Message(URL, body=f"{n}-{q}", queue=q) for n in range(30) for q in "ab"])
        await until(lambda: len(taken) >= 60, 60)
    for queue in "ab":
        assert [body for body in taken if body.endswith(queue)] == [f"{n}-{queue}" for n in range(30)]


@pytest.mark.parametrize("within", [60.0, 0.05])
async def test_a_dead_letter_stops_no_queue_but_by_its_own_rules(
    within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind goes on at once; a queue that is to stop waits for `resume`, whatever comes back."""
    monkeypatch.setattr(judging, "RETURN_SECONDS", 0.02)
    monkeypatch.setattr(judging, "RETURN_SECONDS_MAX", 0.05)
    monkeypatch.setattr(relay, "STOPPED_SECONDS", 0.05)

    def service(items: list[dict[str, Any]]) -> Reply:
        if any(item["body"] == "bad" for item in items):
            return Reply(400, b'{"error":"bad"}')
        return Reply(200, orjson.dumps([{"messageId": "m"} for _ in items]))

    for rules, goes_on in (({}, True), ({"q": Queue(on_failure="stop")}, False)):
        transport = ScriptedTransport(*[service] * 100)
        settings = Config(token="t", queues=rules, deliver_within=within if rules else 60.0)
        async with (
            Dispatcher(settings, transport=transport) as dispatcher,
            Outbox(MemoryStore(), dispatcher) as opened,
        ):
            await opened.put(Message(URL, body="bad", queue="q"))
            behind = await opened.put(Message(URL, body="behind", queue="q"))
            await until(lambda: opened.status().dead == 1)
            if not goes_on:
                looked = opened.status().commits
                await until(lambda: opened.status().commits >= looked + 4)  # noqa: B023 - ends before
                assert behind.outcome is None
                assert opened.resume("q")
            assert not opened.resume("q")
            assert type(await behind) is Receipt


async def test_a_message_is_taken_back_while_it_waits() -> None:
    """In the store or in the dispatcher; not once it has left, and not twice."""
    transport = ScriptedTransport()
    config: dict[str, Any] = {"queue_max_messages": 1, "batch_max_messages": 1}
    async with outbox(transport, **config) as opened:
        transport.hold()
        left = await opened.put(Message(URL, body="left"))
        await until(lambda: bool(transport.batches))
        stays = await opened.put(Message(URL, body="stays"))
        assert not await opened.cancel(left.id)
        assert await opened.cancel(stays.id)
        assert not await opened.cancel(stays.id)
        assert not await opened.cancel("out_unknown")
        transport.release()
        assert await left
    assert bodies(transport) == ["left"]


# ----------------------------------------------------------------------------------------- life, and after


async def test_closing_leaves_the_rest_in_the_store() -> None:
    """At once; the next one sends it under the same ids, what may have been sent included."""
    store, transport = MemoryStore(), ScriptedTransport()
    transport.hold()
    async with outbox(transport, store, drain_within=0.2) as opened:
        places = await opened.put_many([Message(URL, body=str(n)) for n in range(350)])
        stored = [one for one in places if not isinstance(one, Exception)]
        waiting = asyncio.create_task(_receipt(stored[0]))
        await until(lambda: len(transport.batches) >= 2)
    with pytest.raises(OutboxError, match="stays in its store"):
        await waiting
    with pytest.raises(OutboxError, match="closed"):
        await opened.put(Message(URL))
    again = ScriptedTransport()
    async with outbox(again, store) as reopened:
        await until(lambda: reopened.status().waiting == reopened.status().claimed == 0)
        for each in stored:
            assert type(await _later(reopened, each.id)) is Receipt
    sent = [item["headers"]["Upstash-Deduplication-Id"] for batch in again.batches for item in batch]
    assert sorted(sent) == sorted(each.id for each in stored)


@pytest.mark.parametrize(("policy", "outcome"), [("resend", Receipt), ("fail", OutcomeUnknown)])
async def test_past_the_window_the_policy_decides(policy: str, outcome: type) -> None:
    """What may have been sent eleven minutes ago is sent again and marked, or is dead."""
    store = MemoryStore()
    async with outbox(ScriptedTransport(), store) as opened:
        record = (await opened.put(Message(URL, body="x"))).id
        found = await opened.find(record)
    assert found is not None
    old = MemoryStore()
    await old.open()
    await old.append([found.record])
    (claim,) = await old.claim(1, 1_000, time.time())
    await old.settle([Returned(claim.position, 0.0, (), time.time() - 660)])
    await old.aclose()
    transport = ScriptedTransport()
    async with outbox(transport, old, after=policy) as reopened:
        await until(lambda: not reopened.status().waiting and not reopened.status().claimed)
        found = await reopened.find(record)
        assert found is not None
        told = judging.outcome_of(found)
    assert type(told) is outcome
    assert len(transport.batches) == (policy == "resend")
    assert not isinstance(told, Receipt) or told.duplicate_possible


async def test_it_is_opened_once_and_before_it_is_used() -> None:
    """Clear words for each misuse."""
    async with Dispatcher(Config(token="t"), transport=ScriptedTransport()) as dispatcher:
        box = Outbox(MemoryStore(), dispatcher)
        with pytest.raises(OutboxError, match="async with"):
            await box.put(Message(URL))
        async with box:
            with pytest.raises(OutboxError, match="once"):
                await box.start()
        with pytest.raises(ValueError, match="resend"):
            Outbox(MemoryStore(), dispatcher, after_window="never")  # type: ignore[arg-type]


async def test_with_the_local_upstream() -> None:
    """Over sockets, with faults: everything once."""
    async with (
        local_upstream(
            faults="unavailable=0.05 error_after=0.05 disconnect_after=0.05 throttle_bare=0.05", seed=3
        ) as upstream,
        Dispatcher(Config.load(env={}, token=upstream.token, url=upstream.url)) as dispatcher,
        Outbox(MemoryStore(), dispatcher) as opened,
    ):
        places = await opened.put_many([Message(URL, body=str(n)) for n in range(2_000)])
        assert all([type(await one) is Receipt for one in places if not isinstance(one, Exception)])
        assert sorted(int(row.body or b"") for row in upstream.accepted()) == list(range(2_000))


async def test_a_broken_store_is_told_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A claim that fails is tried again; one that breaks in a way nobody foresaw ends the sending, loudly."""
    store = MemoryStore()
    claim, faults = store.claim, [OutboxError("for a while"), ValueError("a fault of ours")]

    async def faulty(messages: int, size_bytes: int, now: float) -> Any:
        if faults and len(faults) != 1:
            raise faults.pop(0)
        if store.status().waiting and faults and told:
            raise faults.pop(0)
        return await claim(messages, size_bytes, now)

    told: list[bool] = []
    store.claim = faulty  # type: ignore[method-assign]
    async with outbox(ScriptedTransport(), store) as opened:
        assert await opened.send(Message(URL, body="delivered all the same"))
        assert "cannot claim: for a while" in caplog.text
        before = opened.death
        told.append(True)
        await opened.put(Message(URL, body="kept"))
        await until(lambda: opened.death is not None)
        assert (before, opened.death) == (None, "the outbox's relay died of ValueError")
        assert opened.status().waiting == 1
