"""The adaptive limit over real sockets, against the local upstream's hidden capacity, and a real outage."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from dispatcher import Config, Dispatcher, Message, Receipt
from dispatcher.testing import local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatcher.testing import LocalUpstream

pytestmark = [pytest.mark.anyio, pytest.mark.alone]
CAPACITY = 20
WORK = 0.06
BATCH = 10
SECONDS = 2.5
URL = "https://example.com/hook"


class Seen(NamedTuple):
    """What came of a few seconds' saturation."""

    delivered: int
    refused: int
    limit: int
    busy_max: int


def configured(upstream: LocalUpstream, **overrides: Any) -> Config:
    return Config.load(env={}, token=upstream.token, url=upstream.url, batch_max_messages=BATCH, **overrides)


async def saturated(**overrides: Any) -> Seen:
    """Keep the room full for a while, against a service that works on twenty requests at once."""
    faults = f"capacity={CAPACITY} work={WORK:g}s"
    async with local_upstream(faults=faults, keep_bodies=False) as upstream:
        async with Dispatcher(configured(upstream, queue_max_messages=1_000, **overrides)) as dispatcher:
            loop = asyncio.get_running_loop()
            ends_at = loop.time() + SECONDS

            async def messages() -> AsyncIterator[Message]:
                while loop.time() < ends_at:
                    yield Message(URL, body="x")

            outcomes = [outcome async for outcome in dispatcher.stream(messages())]
            statistics = dispatcher.statistics()
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        assert len({outcome.message_id for outcome in outcomes if isinstance(outcome, Receipt)}) == len(
            outcomes
        )
        busy_max = upstream.summary()["busy_max"]
        return Seen(len(outcomes), statistics.requests.get("429", 0), statistics.limit, busy_max)


async def test_the_hidden_capacity_is_found() -> None:
    """Nobody told it of the twenty: most of the best fixed limit's throughput, few refusals."""
    adaptive = await saturated()
    fixed = await saturated(limit_mode="fixed", limit_max_in_flight=CAPACITY)
    assert adaptive.busy_max == fixed.busy_max == CAPACITY
    assert fixed.refused == 0
    # 0.94 on a quiet machine (`python -m benchmarks.capacity`); two runs after each other share a noisy one.
    assert adaptive.delivered > 0.7 * fixed.delivered, f"{adaptive} against {fixed}"
    assert adaptive.refused * BATCH < 0.05 * adaptive.delivered, f"{adaptive}"
    assert CAPACITY / 2 < adaptive.limit < 2 * CAPACITY, f"{adaptive}"


async def test_a_limit_that_does_not_learn_is_refused_more() -> None:
    """The control: fixed at 64 most of what it sends is refused."""
    fixed = await saturated(limit_mode="fixed")
    assert fixed.refused * BATCH > 0.2 * fixed.delivered, f"{fixed}"
