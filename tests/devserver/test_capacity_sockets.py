"""The hidden capacity over real sockets: clients that come at once, and what the summary says of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import pytest

from dispatcher.testing import ManualClock, local_upstream
from tests.devserver.support import TOKEN, URL, connected

if TYPE_CHECKING:
    from dispatcher.testing import LocalUpstream

pytestmark = pytest.mark.anyio


class Answer(NamedTuple):
    """What one client got."""

    status: int
    headers: set[str]
    seconds: float
    """From before the first client's request to this one's reply."""


async def at_once(upstream: LocalUpstream, count: int) -> list[Answer]:
    """So many clients, each with a connection and a batch of its own."""
    loop = asyncio.get_running_loop()
    head = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(upstream.url, headers=head) as session:
        start = loop.time()

        async def ask(number: int) -> Answer:
            body = [{"destination": URL, "body": f"{number}"}]
            async with session.post("/v2/batch", json=body) as reply:
                await reply.read()
                return Answer(reply.status, {name.lower() for name in reply.headers}, loop.time() - start)

        return await asyncio.gather(*map(ask, range(count)))


async def test_forty_at_once_on_twenty() -> None:
    """Twenty are accepted after their work, twenty refused with a bare 429, and the summary shows it."""
    clock = ManualClock(1_000_000.0)  # it stands still: however slow the machine, they are all there at once
    async with local_upstream(faults="capacity=20 work=200ms", clock=clock) as upstream:
        answers = await at_once(upstream, 40)
        taken = [answer for answer in answers if answer.status == 200]
        refused = [answer for answer in answers if answer.status == 429]
        assert (len(taken), len(refused)) == (20, 20)
        assert all(answer.seconds >= 0.199 for answer in taken)
        for answer in refused:
            assert answer.headers <= {"content-type", "content-length", "date", "server"}
        assert len(upstream.accepted()) == 20
        summary = upstream.summary()
        assert summary["faults"] == {"over_capacity": 20}
        assert summary["requests"] == {"batch": {"200": 20, "429": 20}}
        assert (summary["busy"], summary["busy_max"], summary["refused"]) == (20, 20, 0)
        clock.advance(0.2)
        assert (upstream.summary()["busy"], upstream.summary()["busy_max"]) == (0, 20)
        assert [answer.status for answer in await at_once(upstream, 20)] == [200] * 20


async def test_eight_at_once_on_two_workers() -> None:
    """All are accepted, two by two every 50 ms: nothing but time tells that there are two workers."""
    loop = asyncio.get_running_loop()
    async with local_upstream(faults="workers=2 work=50ms", clock=loop.time) as upstream:
        answers = await at_once(upstream, 8)
        assert [answer.status for answer in answers] == [200] * 8
        for place, seconds in enumerate(sorted(answer.seconds for answer in answers)):
            assert seconds >= 0.05 * (place // 2 + 1) - 0.001
        assert upstream.summary()["faults"] == {}
        assert len(upstream.accepted()) == 8


async def test_the_load_outlives_the_plan_and_not_the_reset() -> None:
    """A new plan meets the requests that are there; a reset starts from an idle service."""
    clock = ManualClock(1_000_000.0)
    body = [{"destination": URL}]
    async with connected(faults="work=10ms", clock=clock) as (upstream, connection):
        assert (await connection.ask("POST", "/v2/batch", body))[0] == 200
        assert (await connection.ask("POST", "/dispatcher-dev/faults", b"capacity=1 work=10ms"))[0] == 200
        assert (await connection.ask("POST", "/v2/batch", body))[0] == 429
        assert (await connection.ask("POST", "/v2/publish/https://a.example", b""))[0] == 429
        _, summary = await connection.ask("GET", "/dispatcher-dev/summary")
        assert (summary["busy"], summary["busy_max"], summary["faults"]) == (1, 1, {"over_capacity": 2})
        assert [record.fault for record in upstream.requests] == ["none", "over_capacity", "over_capacity"]
        assert (await connection.ask("POST", "/dispatcher-dev/reset"))[0] == 200
        _, summary = await connection.ask("GET", "/dispatcher-dev/summary")
        assert (summary["busy"], summary["busy_max"], summary["faults"]) == (0, 0, {})
        assert (await connection.ask("POST", "/v2/batch", body))[0] == 200


async def test_management_is_not_work() -> None:
    """Only the intake is loaded: look-ups pass while no message would be taken."""
    clock = ManualClock(1_000_000.0)
    async with connected(faults="capacity=1 work=10ms", clock=clock) as (upstream, connection):
        assert (await connection.ask("POST", "/v2/batch", [{"destination": URL}]))[0] == 200
        assert (await connection.ask("GET", "/v2/queues"))[0] == 200
        assert upstream.summary()["busy"] == 1


async def test_a_plan_with_a_wrong_limit_is_refused() -> None:
    """The plan in force stays, and the answer says what would be right."""
    async with connected(faults="capacity=1") as (upstream, connection):
        for plan in (b"capacity=0", {"plan": {"workers": 1.5}}):
            status, answer = await connection.ask("POST", "/dispatcher-dev/faults", plan)
            assert (status, "at least 1, or none" in answer["error"]) == (400, True)
        assert upstream.service.faulty.injector.capacity(0.0).capacity == 1
