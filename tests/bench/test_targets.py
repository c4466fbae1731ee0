"""The two targets over scripted transports: what they take, when they wait, how they name what went wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher import Config, Dispatcher
from dispatcher.bench.counts import between, read_dispatcher, read_http
from dispatcher.bench.http import HTTPTarget
from dispatcher.bench.messages import Mix
from dispatcher.bench.schedule import bursts, constant
from dispatcher.bench.targets import LibraryTarget, Stopwatch
from dispatcher.config import BatchSettings, LimitSettings, QueueSettings
from dispatcher.core.batch import Failure, Reply
from dispatcher.testing import ScriptedTransport
from tests.bench.support import load

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio


class Slow(ScriptedTransport):
    """Takes its time for each request, and remembers how many were out at once."""

    def __init__(self, *script: int | Reply | Failure, seconds: float = 0.02) -> None:
        super().__init__(*script)
        self._seconds = seconds
        self._out = 0
        self.out_most = 0

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        await self._take_time()
        return await super().post_batch(body, timeout=timeout)

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Reply | Failure:
        await self._take_time()
        return await super().post_single(target, headers, body, timeout=timeout)

    async def _take_time(self) -> None:
        self._out += 1
        self.out_most = max(self.out_most, self._out)
        await asyncio.sleep(self._seconds)
        self._out -= 1


def http(transport: ScriptedTransport, api: str = "publish", connections: int = 4) -> HTTPTarget:
    return HTTPTarget(transport, api=api, connections=connections, batch_messages=10, timeout=5.0)


async def test_room_is_waited_for_and_counted() -> None:
    """Behind a slow upstream and little room, messages wait outside: that is admission; nothing is lost."""
    config = Config(
        token="t",
        batch=BatchSettings(max_messages=10),
        queue=QueueSettings(max_messages=20),
        limit=LimitSettings(mode="fixed", max_in_flight=1),
    )
    watch = Stopwatch(Slow(seconds=0.05))
    async with Dispatcher(config, transport=watch) as dispatcher:
        target = LibraryTarget(dispatcher)
        before = read_dispatcher(dispatcher, watch.requests)
        recorder = await load(bursts(100, 1.0, 0.1), target)
        counts = between(before, read_dispatcher(dispatcher, watch.requests))
    assert recorder.delivered == 100
    assert recorder.room.greatest > 0.25
    assert recorder.admission.total == pytest.approx(recorder.room.total, rel=0.1)
    assert recorder.late < 50
    assert (counts.carried, sum(counts.requests.values())) == (100, sum(counts.batches.values()))
    assert counts.stages["request"].quantile(0.5) == pytest.approx(0.05, abs=0.02)
    assert counts.stages["queue"].count == counts.stages["delivery"].count == 100


async def test_errors_of_the_library_have_their_names() -> None:
    """What the service refuses, with its status, and what is never admitted."""
    small = Config(token="t", batch=BatchSettings(max_message_bytes=300))
    transport = ScriptedTransport(*[400] * 200)
    async with Dispatcher(small, transport=transport, on_failure=lambda _: None) as dispatcher:
        recorder = await load(bursts(40, 1, 0.1), LibraryTarget(dispatcher), mix=Mix(200, 400, seed=1))
    refused = recorder.errors["MessageTooLarge"]
    assert 5 < refused == recorder.refused < 35
    assert recorder.errors["MessageRejected (400)"] == 40 - refused
    assert (recorder.delivered, recorder.failed, recorder.due) == (0, 40, 40)


async def test_what_a_dispatcher_still_holds_is_unfinished() -> None:
    """A silent upstream: every message is counted once, by its age, and nothing of it is recorded later."""
    async with Dispatcher(
        Config(token="t", drain_within=0), transport=Slow(seconds=60), on_failure=lambda _: None
    ) as dispatcher:
        recorder = await load(constant(100, 0.2), LibraryTarget(dispatcher), drain_within=0.1)
    assert (recorder.unfinished, recorder.delivered, recorder.failed) == (20, 0, 0)
    assert recorder.total.count == 20


async def test_publishes_are_one_message_a_request() -> None:
    """To the destination or its queue, pasted raw, and no more of them out than there are connections."""
    transport = Slow()
    target = http(transport, connections=3)
    mix = Mix(queues=1, queue_share=0.5, destinations=("https://a.example/x?y=1",))
    recorder = await load(bursts(12, 1, 0.1), target, mix=mix)
    assert recorder.delivered == 12
    assert transport.out_most == 3
    assert recorder.room.greatest > 0.05
    assert {single.target for single in transport.singles} == {
        "/v2/publish/https://a.example/x?y=1",
        "/v2/enqueue/bench-0/https://a.example/x?y=1",
    }
    assert all(len(single.body) == 200 for single in transport.singles)
    assert read_http(target).words == {"requests": {"200": 12}}


async def test_batches_are_of_what_is_waiting() -> None:
    """Up to the bound, and never empty."""
    transport = Slow()
    recorder = await load(bursts(25, 1, 0.1), http(transport, "batch", connections=1), mix=Mix(queues=2))
    assert recorder.delivered == 25
    assert [len(batch) for batch in transport.batches] == [10, 10, 5]
    assert {item["queue"] for batch in transport.batches for item in batch} == {"bench-0", "bench-1"}


@pytest.mark.parametrize(
    ("answer", "api", "errors"),
    [
        (Reply(429, b"{}"), "publish", {"HTTP 429": 1}),
        (Reply(301, b""), "publish", {"HTTP 301": 1}),
        (Reply(200, b"{"), "publish", {"unreadable reply": 1}),
        (Reply(200, b'{"error": "x"}'), "publish", {"error entry": 1}),
        (Failure("timeout", "", "unknown"), "publish", {"timeout": 1}),
        (Failure("connect", "", "not_sent"), "batch", {"connect": 3}),
        (Reply(200, b'[{"messageId": "m"}]'), "batch", {"unreadable reply": 3}),
        (Reply(200, orjson.dumps([{"messageId": "m"}, {"error": "x"}, []])), "batch", {"error entry": 1}),
    ],
)
async def test_errors_of_an_upstream_have_their_names(
    answer: Reply | Failure, api: str, errors: dict[str, int]
) -> None:
    """Each message its own, and every one is counted."""
    recorder = await load(bursts(3, 1, 0.1), http(ScriptedTransport(answer), api))
    assert dict(recorder.errors) == errors
    assert recorder.delivered == 3 - sum(errors.values())


async def test_an_upstream_that_refuses_everything_is_known() -> None:
    """A wrong token or URL: not a single other answer."""
    target = http(ScriptedTransport(*[Reply(401, b"{}")] * 12))
    await load(bursts(12, 1, 0.1), target)
    assert (target.gauges().state, target.gauges().reason) == ("refused", "HTTP 401")
    await load(bursts(1, 1, 0.1), target)
    assert target.gauges().state == "open"


async def test_requests_that_hang_are_unfinished() -> None:
    """Those out and those behind them, once each."""
    recorder = await load(bursts(5, 1, 0.1), http(Slow(seconds=60), connections=2), drain_within=0.1)
    assert (recorder.unfinished, recorder.taken) == (5, 2)
