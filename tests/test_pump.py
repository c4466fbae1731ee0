"""What the pump owes to the loops it runs in, and what it logs of its connection."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, Dispatcher
from dispatcher.core.batch import Failure, Reply

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


def test_the_connection_is_told_twice_at_most(caplog: pytest.LogCaptureFixture) -> None:
    """Once when it is lost, once when there is a reply again; a timeout in between is news of neither."""
    caplog.set_level(logging.INFO, "dispatcher")
    pump = Dispatcher(Config(token="t"))._pump
    lost, late = Failure("connect", "cannot connect", "not_sent"), Failure("timeout", "late", "unknown")
    for answer in (late, lost, late, lost, Failure("disconnect", "gone", "unknown"), Reply(503, b""), late):
        pump._log_connection(answer)
    assert [record.getMessage() for record in caplog.records] == [
        "dispatcher default: cannot connect; trying again",
        "dispatcher default: the upstream is reached again",
    ]
