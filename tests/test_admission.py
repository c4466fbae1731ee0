"""What is admitted in one turn reaches the core at its end, in order; if the core breaks, nobody hangs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import Abandoned, Config, Dispatcher, Message, Receipt
from dispatcher.core.engine import Engine
from dispatcher.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"


def opened(**settings: Any) -> tuple[Dispatcher, ScriptedTransport]:
    """A dispatcher on a transport that answers at once."""
    transport = ScriptedTransport()
    config = Config.load(env={}, token="t", drain_within=0.5, **settings)
    return Dispatcher(config, transport=transport), transport


def messages(count: int, **fields: Any) -> list[Message]:
    """Numbered ones."""
    return [Message(URL, str(number), **fields) for number in range(count)]


async def test_single_messages_of_one_turn_travel_as_full_batches() -> None:
    """Each delivery has a receipt of its own, whether it was part of a run or of the rest."""
    dispatcher, transport = opened(batch_max_messages=10)
    async with dispatcher:
        deliveries = [dispatcher.put_nowait(message) for message in messages(37)]
        receipts = [await delivery for delivery in deliveries]
    sent = [item["body"] for batch in transport.batches for item in batch]
    assert sorted(map(int, sent)) == list(range(37))
    assert [len(batch) for batch in transport.batches].count(10) == 3
    ids = [item["headers"]["Upstash-Deduplication-Id"] for batch in transport.batches for item in batch]
    place = dict(zip(sent, ids, strict=True))
    assert [receipt.deduplication_id for receipt in receipts] == [place[str(n)] for n in range(37)]


async def test_a_queue_keeps_its_order_whichever_way_its_messages_come() -> None:
    """One by one and many at once, mixed in one turn."""
    dispatcher, transport = opened(batch_max_messages=10)
    async with dispatcher:
        first = [dispatcher.put_nowait(Message(URL, f"a{n}", queue="q")) for n in range(15)]
        many = [Message(URL, f"b{n}", queue="q") for n in range(15)]
        await dispatcher.send_many(many)
        await asyncio.gather(*first)
    sent = [item["body"] for batch in transport.batches for item in batch]
    assert sent == [f"a{n}" for n in range(15)] + [f"b{n}" for n in range(15)]


async def test_a_message_of_a_waiting_run_can_be_withdrawn() -> None:
    """Its neighbours go on."""
    dispatcher, transport = opened(batch_max_messages=5, limit_mode="fixed", limit_max_in_flight=1)
    transport.hold()
    async with dispatcher:
        deliveries = [dispatcher.put_nowait(message) for message in messages(20)]
        await asyncio.sleep(0)
        assert deliveries[12].withdraw()
        assert not deliveries[0].withdraw(), "it is out"
        transport.release()
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 12 + [Abandoned] + [Receipt] * 7
    assert "12" not in {item["body"] for batch in transport.batches for item in batch}


async def test_a_generator_may_use_the_dispatcher_itself() -> None:
    """What it puts while `send_many` reads from it is neither lost nor doubled."""
    dispatcher, transport = opened(batch_max_messages=10)
    inner = []

    def source() -> Iterator[Message]:
        for number, message in enumerate(messages(60)):
            if number % 7 == 0:
                inner.append(dispatcher.put_nowait(Message(URL, f"inner {number}")))
                assert dispatcher.statistics().held >= len(inner)
            yield message

    async with dispatcher:
        outcomes = await dispatcher.send_many(source())
        await asyncio.gather(*inner)
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 60
    sent = [item["body"] for batch in transport.batches for item in batch]
    assert len(sent) == len(set(sent)) == 60 + len(inner)


@pytest.mark.parametrize("method", ["offer_run", "offer_many"])
@pytest.mark.parametrize("healthy", [0, 1])
async def test_if_the_core_breaks_while_it_is_told_nobody_hangs(
    method: str, healthy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it has of that turn and whatever it has not fails; closing ends."""
    dispatcher, _ = opened(batch_max_messages=5)
    await dispatcher.start()
    honest, calls = getattr(Engine, method), []

    def breaks(engine: Engine, offered: Any) -> None:
        calls.append(offered)
        if len(calls) > healthy:
            raise ArithmeticError("a defect")
        honest(engine, offered)

    monkeypatch.setattr(Engine, method, breaks)
    plain, queued = messages(10), messages(7, queue="q")
    deliveries = [dispatcher.put_nowait(message) for message in (plain if method == "offer_run" else queued)]
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
        await dispatcher.aclose()
    assert {type(outcome) for outcome in outcomes} <= {Abandoned, Receipt}
    assert Abandoned in {type(outcome) for outcome in outcomes}
    assert dispatcher.statistics().held == 0


async def test_if_the_core_breaks_under_send_many_closing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call raises, and its room is given back."""
    dispatcher, _ = opened(batch_max_messages=5)
    await dispatcher.start()

    def breaks(engine: Engine, run: Any) -> None:
        raise ArithmeticError("a defect")

    monkeypatch.setattr(Engine, "offer_run", breaks)
    async with asyncio.timeout(5):
        with pytest.raises(ArithmeticError):
            await dispatcher.send_many(messages(50))
        await dispatcher.aclose()
    assert dispatcher.statistics().held == 0
