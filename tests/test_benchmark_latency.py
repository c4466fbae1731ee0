"""The latency benchmark: what a callback took and whose it was, and latencies that leave out no wait."""

from __future__ import annotations

import asyncio
import gc
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from benchmarks import latency, latency_loads
from benchmarks.callbacks import LOAD, OURS, THEIRS, Taken, Watch, described, watched_loop
from benchmarks.latency_loads import FULL_LOADS, SENDERS, SendTarget, at_full_load, at_rate, quantiles
from benchmarks.upstream_process import report, spent, upstream_process
from dispatcher import Config, Dispatcher
from dispatcher.bench.generator import Stop, run_load
from dispatcher.bench.messages import Mix
from dispatcher.bench.schedule import constant
from dispatcher.pump import Pump
from dispatcher.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dispatcher.core.batch import Failure, Reply

BLOCKED_SECONDS = 0.05
COMPUTED_SECONDS = 0.002
PATIENCE_SECONDS = 30.0
QUICK = ["--rounds", "1", "--seconds", "0.1", "--rate", "500", "--messages", "400"]
GENEROUS = [word for name in latency.BOUNDS for word in ("--bound", f"{name}=1e9")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An upstream in a process of its own."""
    with upstream_process() as base:
        yield base


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_loads, "WARM_UP", 100)


def watched(kind: str, watch: Watch, work: Callable[[], Awaitable[object]]) -> None:
    """Run it in a watched loop, with the watch on from its second turn on."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            with watch.on():
                await work()

    with watched_loop(kind, watch) as factory, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def by_name(watch: Watch) -> dict[str, list[Taken]]:
    """What was named, its qualified name without what it is local to."""
    found: dict[str, list[Taken]] = {}
    for one in watch.named:
        found.setdefault(one.name.rpartition(".")[2], []).append(one)
    return found


def compute() -> None:
    """Use the CPU for a while, by its own clock."""
    until = time.thread_time() + COMPUTED_SECONDS
    while time.thread_time() < until:
        pass


def collect() -> None:
    """A callback in which a collection runs."""
    gc.collect()


def wait() -> None:
    """As a callback that the kernel interrupts: time goes by, and no CPU time."""
    time.sleep(COMPUTED_SECONDS)


# --------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("kind", latency.LOOPS)
def test_each_callback_is_timed_once(kind: str) -> None:
    """However it came to run: at once, later, at an instant, as a task's first or next step."""
    watch = Watch(floor=0.0)
    ran: list[str] = []

    def soon() -> None:
        ran.append("soon")

    def later() -> None:
        ran.append("later")

    def at() -> None:
        ran.append("at")

    async def step() -> None:
        ran.append("step")
        await asyncio.sleep(0)
        ran.append("step")

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(soon)
        loop.call_later(0.001, partial(later))
        loop.call_at(loop.time() + 0.001, at)
        await asyncio.create_task(step())
        while len(ran) < len(("soon", "later", "at", "step", "step")):
            await asyncio.sleep(0.001)

    watched(kind, watch, work)
    found = by_name(watch)
    assert {name: len(found[name]) for name in ("soon", "later", "at", "step")} == {
        "soon": 1,
        "later": 1,
        "at": 1,
        "step": 2,
    }
    assert watch.count >= len(ran)


@pytest.mark.parametrize("kind", latency.LOOPS)
def test_computing_is_told_from_being_interrupted(kind: str) -> None:
    """Both take their time by the wall; only one of them on the CPU clock."""
    watch = Watch()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(compute)
        loop.call_soon(wait)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    watched(kind, watch, work)
    (computed,), (waited,) = by_name(watch)["compute"], by_name(watch)["wait"]
    assert computed.cpu >= COMPUTED_SECONDS
    assert waited.wall >= COMPUTED_SECONDS
    assert waited.cpu < computed.cpu
    assert watch.longest(THEIRS) == computed  # the tests are neither the dispatcher nor a load
    assert watch.longest(OURS, LOAD) is None


@pytest.mark.parametrize("kind", latency.LOOPS)
def test_a_collection_is_told_and_taken_off(kind: str) -> None:
    """The callback that it hit says so; it is counted apart, and the collector is left alone afterwards."""
    watch = Watch(floor=0.0)
    before = list(gc.callbacks)

    async def work() -> None:
        asyncio.get_running_loop().call_soon(collect)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    watched(kind, watch, work)
    (hit,) = by_name(watch)["collect"]
    assert 0 < hit.collecting <= watch.collections.total
    assert hit.cpu < hit.wall
    assert "collections" in str(hit)
    assert max(watch.collections.cpu) <= watch.collections.total
    assert gc.callbacks == before


def test_without_a_watch_asyncio_is_as_before() -> None:
    """What is put in its place is taken out again."""
    run = asyncio.Handle._run
    with watched_loop("asyncio", Watch()):
        assert asyncio.Handle._run is not run
    assert asyncio.Handle._run is run


def test_whose_a_callback_is() -> None:
    """A method by its file, through `partial`; what is written in C has none."""
    name, file = described(partial(Pump._pump))
    assert name == "Pump._pump"
    assert file.endswith("pump.py")
    assert described(len) == ("len", "")


@pytest.mark.parametrize("kind", latency.LOOPS)
@pytest.mark.parametrize("load", FULL_LOADS)
def test_a_full_load_tells_ours_from_its_own(load: str, kind: str, url: str) -> None:
    """The pump, deliveries and calls of `send` are ours; the timer that looks how late the loop is is not."""
    watch = Watch(SENDERS, floor=0.0)
    before = report(url)
    with watched_loop(kind, watch) as factory, asyncio.Runner(loop_factory=factory) as runner:
        late = runner.run(at_full_load(url, FULL_LOADS[load], 3_000, watch))
    assert spent(before, report(url)).messages == 3_100
    assert late.rate > 0
    owners = {one.name.rpartition(".")[2]: one.owner for one in watch.named}
    ours = {name for name, owner in owners.items() if owner == OURS}
    assert ours & set(SENDERS)
    assert any(one.name.startswith("Pump.") and one.owner == OURS for one in watch.named)
    assert owners["at_full_load"] == LOAD
    assert THEIRS in owners.values()
    assert not any(one.owner == OURS for one in watch.named if one.name.startswith("_tick"))


# --------------------------------------------------------------------------------------------- open loop


class Blocking(ScriptedTransport):
    """Keeps the whole loop from running during its first request."""

    def __init__(self, *script: int | Reply | Failure) -> None:
        super().__init__(*script)
        self._seconds = BLOCKED_SECONDS

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        seconds, self._seconds = self._seconds, 0.0
        time.sleep(seconds)
        return await super().post_batch(body, timeout=timeout)


async def loaded(transport: ScriptedTransport, rate: float, seconds: float) -> tuple[SendTarget, int, int]:
    """The target after a load of even starts; how many messages were due, and how many failed."""
    async with Dispatcher(Config("token", "http://127.0.0.1:1"), transport=transport) as dispatcher:
        target = SendTarget(dispatcher)
        recorder = await run_load(constant(rate, seconds), Mix(), target, Stop(), drain_within=10.0)
    return target, recorder.due, recorder.failed


@pytest.mark.anyio
async def test_a_latency_counts_from_the_intended_start() -> None:
    """Whoever could not even start while the loop was blocked has waited all the same."""
    target, due, failed = await loaded(Blocking(), 100.0, BLOCKED_SECONDS)
    assert (due, failed) == (5, 0)
    ordered = sorted(target.latencies, reverse=True)
    for place, latency_seconds in enumerate(ordered):
        assert latency_seconds >= BLOCKED_SECONDS - place / 100.0


@pytest.mark.anyio
async def test_what_fails_has_no_latency() -> None:
    """It is counted as failed, and nothing stays open."""
    target, due, failed = await loaded(ScriptedTransport(*[400] * 50), 1_000.0, 0.01)
    assert failed == due == 10
    assert len(target.latencies) == 0
    assert not list(target.unfinished())


def test_a_run_that_lost_something_gives_no_figure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises instead; so does one in which nothing was due."""
    with pytest.raises(RuntimeError, match="no message was due"):
        asyncio.run(at_rate(url, 0.001, 0.01, 100))
    monkeypatch.setattr(SendTarget, "_send", _swallow)
    with pytest.raises(RuntimeError, match="0 messages were delivered"):
        asyncio.run(at_rate(url, 1_000.0, 0.02, 100))


async def _swallow(target: SendTarget, _message: object, _intended: float, number: int, _: object) -> None:
    del target._open[number]
    target._is_settled.set()


def test_half_of_the_capacity_is_asked_for(url: str) -> None:
    """Without a rate it is half of what was reached before, and everything that was due arrives."""
    before = report(url)
    found = asyncio.run(at_rate(url, None, 0.05, 200))
    assert found.rate == found.capacity / 2
    assert 0 < found.p50 <= found.p90 <= found.p99 <= found.most
    assert found.busy > 0
    assert found.fill >= 1
    assert 0 <= found.upstream_idle <= 1
    assert spent(before, report(url)).messages > 300


def test_quantiles_are_values_that_were_measured() -> None:
    """The nearest rank: of a hundred values the 99th is the second largest."""
    assert quantiles(range(100, 0, -1), 0.5, 0.9, 0.99, 1.0) == [50, 90, 99, 100]
    assert quantiles([3.0], 0.5, 1.0) == [3.0, 3.0]


# ----------------------------------------------------------------------------------------------- command


def test_the_command_prints_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """Each loop has its lines; all hold with bounds that are wide enough."""
    assert latency.main([*QUICK, *GENEROUS]) == 0
    lines = capsys.readouterr().out.splitlines()
    loads = len(FULL_LOADS)
    assert [line.split()[0] for line in lines] == [
        *["calm"] * len(latency.LOOPS),
        *["half"] * len(latency.LOOPS),
        *["untuned"] * len(latency.LOOPS),
        *["full"] * len(latency.LOOPS) * loads,
    ]
    assert all(line.endswith(": holds") for line in lines)
    for loop in latency.LOOPS:
        assert sum(f" {loop}, " in line for line in lines) == 3 + loads
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("name", latency.BOUNDS)
def test_a_missed_bound_fails_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing takes no time at all."""
    words = [*QUICK, "--only", name, "--loop", "asyncio", "--bound", f"{name}=0"]
    assert latency.main(words) == 1
    assert "bound 0: MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["--only", "calm,some"], "calm, half, untuned, full"),
        (["--loop", "trio"], ", ".join(latency.LOOPS)),
        (["--bound", "calm"], "calm, half, untuned, full"),
        (["--bound", "some=1"], "calm, half, untuned, full"),
        (["--bound", "calm=-1"], "calm, half, untuned, full"),
    ],
)
def test_what_the_command_does_not_know_it_refuses(
    words: list[str], known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says what there is."""
    with pytest.raises(SystemExit):
        latency.main(words)
    assert known in capsys.readouterr().err.splitlines()[-1]
