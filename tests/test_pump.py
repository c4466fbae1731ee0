"""What the pump owes to the loops it runs in, and what it logs of its connection."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, Dispatcher, DispatcherError, Message, OutcomeUnknown, Receipt
from dispatcher.core.batch import Failure
from dispatcher.testing import ScriptedTransport

uvloop = pytest.importorskip("uvloop")

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_instant_that_has_passed_can_be_armed(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """For such an instant uvloop gives a handle without `when()`; arming again must not need it."""

    async def arm_twice() -> None:
        async with Dispatcher(Config(token="t")) as dispatcher:
            now = asyncio.get_running_loop().time()
            for wake_at in (now - 1.0, now - 0.5, now + 1.0, now - 2.0, float("inf")):
                dispatcher._pump._arm(wake_at)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(arm_twice())


@pytest.mark.parametrize(("gained", "outcome"), [(600.0, OutcomeUnknown), (0.5, Receipt), (-600.0, Receipt)])
def test_a_machine_that_slept_repeats_nothing_unsafe(
    monkeypatch: pytest.MonkeyPatch, gained: float, outcome: type
) -> None:
    """The wall clock gains ten minutes at once while a reply is lost; other steps mean nothing."""
    wall = time.time

    async def send() -> Receipt | DispatcherError:
        transport = ScriptedTransport(Failure("disconnect", "lost", "unknown"))
        transport.hold()
        config = Config.load(env={}, token="t", deliver_within=86_400, retry_base=0.001)
        async with Dispatcher(config, transport=transport) as dispatcher:
            delivery = dispatcher.put_nowait(Message("https://example.com/hook"))
            while not transport.batches:
                await asyncio.sleep(0)
            monkeypatch.setattr(time, "time", lambda: wall() + gained)
            dispatcher.put_nowait(Message("https://example.com/other"))  # whatever wakes the pump
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            transport.release()
            (result,) = await asyncio.gather(delivery, return_exceptions=True)
            assert isinstance(result, Receipt | DispatcherError)
            return result

    assert type(asyncio.run(send())) is outcome
