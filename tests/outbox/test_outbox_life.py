"""Nobody is left waiting: closing is cancelled, the relay dies, the store fails, a queue is stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from dispatcher import Config, Dispatcher, Message, OutboxError, Queue, Receipt
from dispatcher.core.batch import Reply
from dispatcher.outbox import MemoryStore, Outbox, relay
from dispatcher.testing import ScriptedTransport
from tests.outbox.test_outbox import URL, bodies, outbox, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.outbox.store import Found, Record, Settlement

pytestmark = pytest.mark.anyio
PATIENCE = 5.0
"""Seconds after which somebody is waiting for ever."""


class GatedStore(MemoryStore):
    """Each call waits at its gate, if a test has shut it, and raises what a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = {name: asyncio.Event() for name in ("append", "settle", "find")}
        for gate in self.gates.values():
            gate.set()
        self.errors: dict[str, Exception] = {}

    async def _pass(self, name: str) -> None:
        await self.gates[name].wait()
        if name in self.errors:
            raise self.errors[name]

    async def append(self, records: Sequence[Record], *more: Any) -> None:
        """See `Store.append`."""
        await self._pass("append")
        await super().append(records, *more)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Store.settle`."""
        await self._pass("settle")
        await super().settle(settlements)

    async def find(self, message_id: str) -> Found | None:
        """See `Store.find`."""
        await self._pass("find")
        return await super().find(message_id)


async def wait_for(stored: Any) -> Receipt:
    """Its receipt, in a task."""
    receipt: Receipt = await stored
    return receipt


def relaying() -> list[str]:
    """Tasks of relays."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("Relay.")]


# ------------------------------------------------------------------------------------------------- looking


async def test_a_look_that_failed_is_made_again() -> None:
    """Who awaits a settled message as the store fails is told so, and gets the receipt the next time."""
    store = GatedStore()
    async with outbox(ScriptedTransport(), store) as opened:
        stored = await opened.put(Message(URL))
        await until(lambda: not opened.status().waiting + opened.status().claimed)
        store.errors["find"] = OutboxError("for a while")
        with pytest.raises(OutboxError, match="for a while"):
            await stored
        store.errors.clear()
        async with asyncio.timeout(PATIENCE):
            assert await stored


async def test_a_look_that_was_cancelled_is_made_by_who_else_waits() -> None:
    """The one who looks for a settled message goes; the other has its receipt all the same."""
    store = GatedStore()
    async with outbox(ScriptedTransport(), store) as opened:
        stored = await opened.put(Message(URL))
        await until(lambda: not opened.status().waiting + opened.status().claimed)
        store.gates["find"].clear()
        first, second = (asyncio.create_task(wait_for(stored)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        store.gates["find"].set()
        async with asyncio.timeout(PATIENCE):
            assert await second


# ------------------------------------------------------------------------------------------------- closing


async def test_a_cancelled_close_ends_it_all_the_same() -> None:
    """While answers are waited for: the store is closed, who waits is told, and no task stays behind."""
    store, transport = GatedStore(), ScriptedTransport()
    transport.hold()
    async with Dispatcher(Config(token="t", drain_within=5), transport=transport) as dispatcher:
        box = Outbox(store, dispatcher)
        await box.start()
        waiting = asyncio.create_task(box.send(Message(URL)))
        await until(lambda: bool(transport.batches))
        closing = asyncio.create_task(box.aclose())
        await asyncio.sleep(0.02)
        closing.cancel()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(OutboxError, match="stays in its store"):
                await waiting
        assert store.status().failure
        transport.release()
        await until(lambda: not relaying(), PATIENCE)


async def test_a_close_that_is_cancelled_while_messages_are_kept_ends_it() -> None:
    """The store is closed and nothing is claimed any more, although the relay's turn had not come."""
    store, transport = GatedStore(), ScriptedTransport()
    async with Dispatcher(Config(token="t"), transport=transport) as dispatcher:
        box = Outbox(store, dispatcher)
        await box.start()
        store.gates["append"].clear()
        putting = asyncio.create_task(box.put(Message(URL)))
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(box.aclose())
        await asyncio.sleep(0.02)
        closing.cancel()
        await asyncio.wait([closing])
        store.gates["append"].set()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(OutboxError, match="not open"):
                await putting
        await until(lambda: not relaying(), PATIENCE)


# --------------------------------------------------------------------------------------------------- dying


async def test_who_waits_is_told_that_the_relay_died() -> None:
    """At once, and so is who comes later; the messages stay in the store."""
    store = GatedStore()
    async with outbox(ScriptedTransport(), store) as opened:

        async def claim(*_: Any) -> Any:
            raise ValueError("a fault of ours")

        store.claim = claim  # type: ignore[assignment,method-assign]
        for _ in range(2):
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(OutboxError, match="relay died of ValueError; the message stays"):
                    await opened.send(Message(URL))
        later = await opened.put(Message(URL))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(OutboxError, match="relay died"):
                await later
        assert opened.status().waiting == 3


async def test_what_cannot_be_settled_any_more_is_not_sent() -> None:
    """A settling that died: nothing more is claimed, for it would all be sent again after a restart."""
    store, transport = GatedStore(), ScriptedTransport()
    store.errors["settle"] = ValueError("a fault of ours")
    async with outbox(transport, store, drain_within=0.05) as opened:
        await opened.put(Message(URL, body="first"))
        await until(lambda: opened.death is not None)
        await opened.put(Message(URL, body="second"))
        await asyncio.sleep(0.1)
        assert bodies(transport) == ["first"]
        assert opened.status().waiting == 1


# ---------------------------------------------------------------------------------------- taking back, halts


async def test_a_cancellation_is_kept_before_it_is_told() -> None:
    """A crash right after it would otherwise send the message; where the store fails, that is told."""
    store, transport = GatedStore(), ScriptedTransport()
    config: dict[str, Any] = {"batch_max_messages": 1, "drain_within": 0.05}
    async with outbox(transport, store, **config) as opened:
        transport.hold()
        places = await opened.put_many([Message(URL, body=str(n)) for n in range(100)])
        *_, first, second = [one.id for one in places if not isinstance(one, Exception)]
        await until(lambda: opened.status().claimed == 100)
        store.gates["settle"].clear()
        cancelling = asyncio.create_task(opened.cancel(first))
        done, _ = await asyncio.wait([cancelling], timeout=0.05)
        assert not done
        store.gates["settle"].set()
        assert await cancelling
        assert await opened.find(first) is None
        store.errors["settle"] = OutboxError("no space")
        with pytest.raises(OutboxError, match="no space"):
            await opened.cancel(second)
        store.errors.clear()
        transport.release()


async def test_a_stopped_queue_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind its dead letter stays in the store, and all others go on; then it goes on, in order."""
    monkeypatch.setattr(relay, "STOPPED_SECONDS", 0.05)

    def good(items: list[dict[str, Any]]) -> bool:
        return all(item["body"] != "bad" for item in items)

    def service(items: list[dict[str, Any]]) -> Reply:
        if not good(items):
            return Reply(400, b'{"error":"bad"}')
        return Reply(200, orjson.dumps([{"messageId": "m"} for _ in items]))

    transport = ScriptedTransport(*[service] * 200)
    config: dict[str, Any] = {"queues": {"q": Queue(on_failure="stop")}, "queue_max_messages": 10}
    async with outbox(transport, **config) as opened:
        await opened.put_many([Message(URL, body=body, queue="q") for body in ("bad", *map(str, range(40)))])
        await until(lambda: opened.status().dead == 1)
        async with asyncio.timeout(PATIENCE):
            assert await opened.send(Message(URL, body="of no queue"))
        assert opened.resume("q")
        await until(lambda: not opened.status().waiting + opened.status().claimed)
    sent = [item["body"] for batch in transport.batches for item in batch if good(batch)]
    sent.remove("of no queue")
    assert sent == [str(n) for n in range(40)]
