"""The status as plain data: rates and latencies of the last seconds, states, bounds, and no secret in it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import Config, Dispatcher, Halted, Message, Queue, __version__
from dispatcher.core.gate import GATE_STATES
from dispatcher.core.tally import SECONDS
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.state import State
from dispatcher.sidecar.status import EVENTS_MAX, HISTORY_SAMPLES, WINDOW_SAMPLES, Monitor, Sample, quantile
from dispatcher.testing import ManualClock, ScriptedTransport, local_upstream

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://example.com/hook"


def monitor_of(
    dispatcher: Dispatcher, counters: IntakeCounters | None = None, state: State | None = None
) -> tuple[Monitor, ManualClock]:
    """One with a clock to move by hand; Unix time begins at 1,000 s."""
    clock = ManualClock(1_000.0)
    state = state or State(clock=clock, wall=clock)
    return Monitor(dispatcher, counters or IntakeCounters(), state, clock=clock, wall=clock), clock


def scripted(transport: ScriptedTransport | None = None, **overrides: object) -> Dispatcher:
    """A dispatcher on a scripted transport."""
    config = Config.load(env={}, token="a-secret-token", **overrides)  # type: ignore[arg-type]
    return Dispatcher(config, name="sidecar", transport=transport or ScriptedTransport())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# --------------------------------------------------------------------------------------------- quantiles


@given(st.lists(st.integers(0, 1_000), min_size=len(SECONDS) + 1, max_size=len(SECONDS) + 1))
def test_quantiles_lie_in_their_buckets(counts: list[int]) -> None:
    """They rise with their share, and each lies between the bounds of the bucket that reaches it."""
    found = [quantile(SECONDS, counts, share) for share in (0.01, 0.5, 0.9, 0.99, 1.0)]
    if not any(counts):
        assert found == [None] * 5
        return
    numbers = [one for one in found if one is not None]
    assert numbers == sorted(numbers)
    assert len(numbers) == 5
    for share, value in zip((0.01, 0.5, 0.9, 0.99, 1.0), numbers, strict=True):
        goal, seen = share * sum(counts), 0
        for low, high, number in zip((0.0, *SECONDS), (*SECONDS, SECONDS[-1]), counts, strict=True):
            seen += number
            if number and seen >= goal:
                assert low - 1e-6 <= value <= high + 1e-6
                break


def test_quantiles_are_interpolated() -> None:
    """Half of a bucket's observations are below its middle; above the last bound there is no more to say."""
    assert quantile((1.0, 3.0), (0, 10, 0), 0.5) == 2.0
    assert quantile((1.0, 3.0), (10, 10, 0), 0.5) == 1.0
    assert quantile((1.0, 3.0), (0, 0, 7), 0.99) == 3.0


# ------------------------------------------------------------------------------------------------- rates


@pytest.mark.anyio
async def test_rates_are_those_of_the_last_seconds() -> None:
    """A burst shows in its own second at once, in the window as a share, and behind the window not at all."""
    counters = IntakeCounters()
    async with scripted() as dispatcher:
        monitor, clock = monitor_of(dispatcher, counters)
        await dispatcher.send_many(Message(URL, body=str(number)) for number in range(500))
        for _ in range(40):
            counters.request("publish", 200)
        clock.advance(2.0)
        sample = monitor.sample()
        assert (sample.taken, sample.delivered, sample.failed, sample.intake) == (250, 250, 0, 20)
        assert sample.requests == 2.5
        for _ in range(WINDOW_SAMPLES - 1):
            clock.advance(1.0)
            assert monitor.sample().delivered == 0
        rates = monitor.report()["rates"]
        assert rates["window"] == 11
        assert rates["delivered"] == pytest.approx(500 / 11, abs=0.01)
        assert rates["messages_per_request"] == 100
        clock.advance(1.0)
        monitor.sample()
        rates = monitor.report()["rates"]
        assert (rates["window"], rates["delivered"], rates["messages_per_request"]) == (10, 0, None)


@pytest.mark.anyio
async def test_latencies_are_those_of_the_last_seconds() -> None:
    """None before there was one, and none again when the last is out of the window."""
    async with local_upstream(faults="latency=constant(20ms)") as upstream:
        config = Config.load(env={}, token=upstream.token, url=upstream.url)
        async with Dispatcher(config) as dispatcher:
            monitor, clock = monitor_of(dispatcher)
            clock.advance(1.0)
            assert monitor.sample().message_p50 is None
            await dispatcher.send_many(Message(URL, body=str(number)) for number in range(300))
            clock.advance(1.0)
            sample = monitor.sample()
            for value in (sample.message_p50, sample.message_p99, sample.request_p50, sample.request_p99):
                assert value is not None
                assert 0.01 <= value <= 5.0
            latency = monitor.report()["latency"]
            assert latency["message"] == {"p50": sample.message_p50, "p99": sample.message_p99}
            for _ in range(WINDOW_SAMPLES):
                clock.advance(1.0)
                sample = monitor.sample()
            assert sample.message_p50 is None
            assert sample.request_p99 is None


@pytest.mark.anyio
async def test_the_history_is_bounded() -> None:
    """Five minutes by column, the oldest first; an empty one has its columns too."""
    async with scripted() as dispatcher:
        monitor, clock = monitor_of(dispatcher)
        assert monitor.history() == {name: [] for name in Sample._fields}
        for _ in range(HISTORY_SAMPLES + 50):
            clock.advance(1.0)
            monitor.sample()
    history = monitor.history()
    assert {len(column) for column in history.values()} == {HISTORY_SAMPLES}
    assert history["at"] == [1_051.0 + number for number in range(HISTORY_SAMPLES)]


@pytest.mark.anyio
async def test_what_is_held_and_in_flight_is_shown() -> None:
    """While the upstream is silent: counts, bytes, limits, states, who waits, how old."""
    transport = ScriptedTransport()
    async with scripted(transport, queue_max_messages=5, batch_max_messages=2) as dispatcher:
        monitor, clock = monitor_of(dispatcher)
        transport.hold()
        for _ in range(5):
            dispatcher.put_nowait(Message(URL, body="x"))
        await until(lambda: dispatcher.statistics().batches_in_flight)
        clock.advance(1.0)
        sample, report = monitor.sample(), monitor.report()
        transport.release()
        await dispatcher.flush()
    held, flight = report["held"], report["in_flight"]
    assert (held["messages"], held["messages_limit"]) == (5, 5) == (sample.held, 5)
    assert held["bytes"] == sample.held_bytes > 0
    assert sum(held["by_state"].values()) == 5
    assert held["by_state"]["in_flight"] == 2 * flight["requests"] > 0
    assert flight["requests"] == sample.in_flight <= flight["limit"] == sample.limit == 4
    assert flight["limit_max"] == 64
    assert report["messages"]["taken"] == 5
    assert report["messages"]["delivered"] == 0


@pytest.mark.anyio
async def test_a_long_walk_for_the_oldest_is_made_less_often() -> None:
    """A walk of 0.1 s each second would hold up the loop for a tenth of the time: it is made every 20 s."""
    transport = ScriptedTransport()
    async with scripted(transport) as dispatcher:
        monitor, clock = monitor_of(dispatcher)
        transport.hold()
        dispatcher.put_nowait(Message(URL))
        walks = []

        def walk() -> float:
            walks.append(clock.advance(0.1))
            return float(len(walks))

        dispatcher.oldest_age = walk  # type: ignore[method-assign]
        ages = []
        for _ in range(40):
            clock.advance(1.0)
            ages.append(monitor.sample().oldest)
        transport.release()
        await dispatcher.flush()
        assert monitor.sample().oldest == 0
    assert len(walks) == 2
    assert ages == [1.0] * 20 + [2.0] * 20


# ------------------------------------------------------------------------------------------------ states


def test_the_phase_moves_forward_only() -> None:
    """A second signal or a late listener takes nothing back."""
    state = State()
    moves: list[tuple[Callable[[], None], str]] = [
        (state.set_ready, "ready"),
        (state.set_draining, "draining"),
        (state.set_ready, "draining"),
        (state.set_closed, "closed"),
        (state.set_draining, "closed"),
    ]
    for move, phase in moves:
        move()
        assert state.phase == phase
    assert state.is_draining
    assert repr(state) == "<State closed>"


@pytest.mark.parametrize("gate", [*GATE_STATES, "new", "draining", "closed"])
def test_readiness_needs_the_daemon_and_the_gate(gate: str) -> None:
    """Ready is: the listeners are there, and nothing but another token or process is needed."""
    state = State()
    assert state.why_not_ready(gate) == "starting"
    assert not state.why_not_alive(gate)
    state.set_ready()
    is_dead = gate in ("draining", "closed")
    assert bool(state.why_not_ready(gate)) == (gate in ("halted", "refused") or is_dead)
    assert bool(state.why_not_alive(gate)) == is_dead
    state.set_draining()
    assert state.why_not_ready(gate) == "draining"
    assert not state.why_not_alive(gate)


def test_the_uptime_is_monotonic() -> None:
    """It does not follow the wall clock."""
    clock, wall = ManualClock(50.0), ManualClock(1_000.0)
    state = State(clock=clock, wall=wall)
    clock.advance(7.0)
    wall.advance(3_600.0)
    assert (state.uptime, state.started_at) == (7.0, 1_000.0)


@pytest.mark.anyio
async def test_a_halt_is_told_with_its_reason() -> None:
    """What the service said, since when, that it is not ready; and that it is over."""
    async with local_upstream(token="a-first-token") as upstream:
        config = Config.load(env={}, token="a-first-token", url=upstream.url)
        async with Dispatcher(config) as dispatcher:
            state = State()
            state.set_ready()
            monitor, clock = monitor_of(dispatcher, state=state)
            await dispatcher.send(Message(URL))
            monitor.sample()
            assert monitor.report()["ready"]
            upstream.set_token("another-token")
            delivery = await dispatcher.put(Message(URL))
            await until(lambda: dispatcher.statistics().state == "halted")
            clock.advance(1.0)
            monitor.sample()
            clock.advance(1.0)
            monitor.sample()
            report = monitor.report()
            assert not report["ready"]
            assert report["why_not_ready"].startswith("halted")
            assert report["gate"]["state"] == "halted"
            assert report["gate"]["reason"].startswith("401: unauthorized")
            assert report["gate"]["since"] == 1_001.0
            assert report["gate"]["paused_for"] > 0
            dispatcher.set_token("another-token")
            await delivery
            monitor.sample()
    events = [(one["state"], one["reason"][:3]) for one in monitor.report()["events"]]
    assert events == [("open", ""), ("halted", "401"), ("open", "")]


@pytest.mark.anyio
async def test_a_refusal_at_first_contact_is_told() -> None:
    """It is not ready, and says why."""
    async with local_upstream(token="right-token") as upstream:
        config = Config.load(env={}, token="wrong-token", url=upstream.url)
        async with Dispatcher(config) as dispatcher:
            state = State()
            state.set_ready()
            monitor, _ = monitor_of(dispatcher, state=state)
            with pytest.raises(Halted):
                await dispatcher.send(Message(URL))
            report = monitor.report()
    assert report["gate"]["state"] == "refused"
    assert report["why_not_ready"].startswith("refused")
    assert report["messages"]["finished"] == {"halted": 1}
    assert report["requests"]["by_code"] == {"401": 1}


@pytest.mark.anyio
async def test_stopped_queues_are_named() -> None:
    """Those that stopped at a failed message, and that it happened."""
    async with local_upstream(faults="poison_400=POISON") as upstream:
        queues = {"billing": Queue(on_failure="stop")}
        config = Config(token=upstream.token, url=upstream.url, queues=queues)
        async with Dispatcher(config) as dispatcher:
            monitor, _ = monitor_of(dispatcher)
            (outcome,) = await dispatcher.send_many([Message(URL, body="POISON", queue="billing")])
            assert isinstance(outcome, Exception)
            monitor.sample()
            gate = monitor.report()["gate"]
            assert (gate["stopped_queues"], gate["stopped_queues_total"]) == (["billing"], 1)
            assert monitor.report()["events"][0]["stopped_queues"] == 1


@pytest.mark.anyio
async def test_events_are_bounded_and_only_changes() -> None:
    """A gate that flaps for a day leaves the last changes."""
    async with scripted() as dispatcher:
        monitor, clock = monitor_of(dispatcher)
        names = [f"{number}" for number in range(EVENTS_MAX * 2)]
        for name in names:
            now = replace(dispatcher.statistics(), state=name)
            dispatcher.statistics = lambda now=now: now  # type: ignore[method-assign, misc]
            for _ in range(3):
                clock.advance(1.0)
                monitor.sample()
        events = monitor.report()["events"]
        del dispatcher.statistics
    assert [one["state"] for one in events] == names[: EVENTS_MAX - 1 : -1]


# ----------------------------------------------------------------------------------------------- secrets


@pytest.mark.anyio
async def test_nothing_secret_is_in_the_status() -> None:
    """Neither tokens nor bodies nor query strings, after deliveries, failures and a halt."""
    counters = IntakeCounters()
    async with local_upstream(token="first-secret", faults="poison_400=POISON") as upstream:
        config = Config.load(env={}, token="first-secret", url=upstream.url)
        counters.hide(config.token)
        async with Dispatcher(config) as dispatcher:
            monitor, _ = monitor_of(dispatcher, counters)
            url = "https://user:hunter2@example.com/hook?signature=hidden"
            bodies = ["POISON personal", "personal"]
            for outcome in await dispatcher.send_many(Message(url, body=body) for body in bodies):
                if isinstance(outcome, Exception):
                    counters.failed(outcome)
            monitor.sample()
            text = orjson.dumps([monitor.report(), monitor.history()]).decode()
    assert '"rejected":1' in text
    assert "example.com/hook" in text
    for secret in ("first-secret", "personal", "POISON", "hidden", "signature", "hunter2"):
        assert secret not in text


@pytest.mark.anyio
async def test_the_report_is_json_from_the_start() -> None:
    """Also of a dispatcher that was not opened yet, without a sample, without a retry budget."""
    dispatcher = scripted(retry_budget=None)
    monitor, _ = monitor_of(dispatcher)
    report = orjson.loads(orjson.dumps(monitor.report()))
    assert report["version"] == __version__
    assert report["name"] == "sidecar"
    assert report["sample"] is None
    assert report["in_flight"]["retry_budget"] is None
    assert (report["phase"], report["ready"], report["gate"]["state"]) == ("starting", False, "new")
    async with dispatcher:
        monitor.sample()
        assert orjson.loads(orjson.dumps(monitor.report()))["sample"]["held"] == 0
