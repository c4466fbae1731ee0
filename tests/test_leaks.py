"""What has settled is freed: no collector looks at deliveries, so they may be in no cycle."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import Config, DeliveryError, Dispatcher, Message
from dispatcher.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


class Marker(dict[str, int]):
    """A body whose end can be watched."""


def marked(watched: list[weakref.ref[Marker]]) -> Message:
    marker = Marker(n=len(watched))
    watched.append(weakref.ref(marker))
    return Message("https://example.com", json=marker)


def refusing() -> ScriptedTransport:
    return ScriptedTransport(*[400] * 60)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No log record is kept, which would keep the errors that it tells of."""
    monkeypatch.setattr(logging.getLogger("dispatcher"), "disabled", True)


def alive(watched: list[weakref.ref[Marker]]) -> int:
    gc.collect()
    return sum(each() is not None for each in watched)


async def awaited(dispatcher: Dispatcher, message: Message) -> None:
    """The error passes the frame that holds the delivery."""
    delivery = await dispatcher.put(message)
    with pytest.raises(DeliveryError):
        await delivery


async def looked_at(dispatcher: Dispatcher, message: Message) -> None:
    """The same with `exception()`, raised by hand."""
    delivery = await dispatcher.put(message)
    await dispatcher.flush()
    error = delivery.exception()
    assert error is not None
    try:
        raise error
    except DeliveryError as caught:
        kept = caught
    del kept


async def sent(dispatcher: Dispatcher, message: Message) -> None:
    """The same with `send`."""
    with pytest.raises(DeliveryError):
        await dispatcher.send(message)


@pytest.mark.parametrize("use", [awaited, looked_at, sent])
async def test_failures_are_freed(use: Callable[[Dispatcher, Message], Any]) -> None:
    """Fifty errors that were raised through their deliveries' own frames."""
    watched: list[weakref.ref[Marker]] = []
    async with Dispatcher(Config(token="t"), transport=refusing()) as dispatcher:
        for _ in range(50):
            await use(dispatcher, marked(watched))
        assert alive(watched) == 0


async def test_what_was_abandoned_is_freed() -> None:
    """A closed dispatcher that had to give up what waited, of every kind of lane."""
    watched: list[weakref.ref[Marker]] = []
    config = Config.load(env={}, token="t", drain_within=0.01, limit_max_in_flight=1, batch_max_messages=2)
    transport = ScriptedTransport()
    transport.hold()
    dispatcher = Dispatcher(config, transport=transport, on_failure=lambda errors: None)
    await dispatcher.start()
    for number in range(30):
        message = marked(watched)
        message.queue = "q" if number % 2 else None
        dispatcher.put_nowait(message)
    await dispatcher.aclose()
    del dispatcher, transport, message
    assert alive(watched) == 0


async def test_who_keeps_a_delivery_can_be_freed() -> None:
    """A service that owns its dispatcher, is called back by it, and keeps its last delivery."""

    class Service:
        def __init__(self) -> None:
            self.dispatcher = Dispatcher(Config(token="t"), transport=refusing(), on_failure=self.on_failure)

        def on_failure(self, errors: list[DeliveryError]) -> None:
            self.errors = errors

    watched: list[weakref.ref[Marker]] = []
    service = Service()
    async with service.dispatcher:
        service.last = await service.dispatcher.put(marked(watched))  # type: ignore[attr-defined]
    freed = weakref.ref(service)
    del service
    assert alive(watched) == 0
    assert freed() is None
