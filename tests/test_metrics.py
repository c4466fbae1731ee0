"""What is exported, compared with what the upstream saw; two dispatchers, weak holding, names, threads."""

from __future__ import annotations

import asyncio
import gc
import math
from collections import Counter

import anyio
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as ClientCounter

from dispatcher import (
    Config,
    ConfigError,
    Dispatcher,
    DispatcherClosed,
    DispatcherError,
    Halted,
    Message,
    MessageInvalid,
    MessageTooLarge,
    QueueFull,
    Receipt,
)
from dispatcher.core import tally
from dispatcher.families import FAMILIES
from dispatcher.metrics import _collectors, register
from dispatcher.testing import ScriptedTransport, local_upstream
from tests.metrics_support import URL, Labels, Scrape, config, exposition, idle

POISON = "POISON"


async def turns(number: int = 4) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# --------------------------------------------------------------------------- compared with the upstream


@pytest.mark.anyio
async def test_the_counters_agree_with_what_the_upstream_saw() -> None:
    """Under faults and with a poison message, every count is the one the upstream arrives at."""
    registry = CollectorRegistry()
    plan = f"error_before=0.15 error_after=0.15 disconnect_after=0.1 poison_400={POISON}"
    async with (
        local_upstream(faults=plan, seed=5) as upstream,
        Dispatcher(config(upstream, batch_max_messages=20)) as dispatcher,
    ):
        register(dispatcher, registry)
        bodies = [POISON if index == 150 else f"body {index}" for index in range(300)]
        outcomes = await dispatcher.send_many(Message(URL, body=body) for body in bodies)
    scrape = Scrape(registry)
    records = list(upstream.requests)
    assert sum(isinstance(one, Receipt) for one in outcomes) == len(upstream.accepted()) == 299
    assert scrape("dispatcher_messages_admitted_total") == 300
    assert scrape.by("dispatcher_messages_finished_total", "outcome") == {"delivered": 299, "rejected": 1}
    seen = Counter("disconnect" if one.status is None else str(one.status) for one in records)
    assert {"200", "400", "500", "disconnect"} <= seen.keys(), "the plan should have struck"
    assert scrape.by("dispatcher_requests_total", "code") == seen
    assert sum(scrape.by("dispatcher_batches_total", "reason").values()) == len(records)
    assert scrape("dispatcher_batch_messages_count") == len(records)
    assert scrape("dispatcher_batch_messages_sum") == sum(one.items for one in records)
    brackets_and_commas = sum(one.items + 1 for one in records)
    assert (
        scrape("dispatcher_batch_bytes_sum") == sum(one.body_bytes for one in records) - brackets_and_commas
    )
    assert scrape("dispatcher_isolations_total") == 1
    causes = scrape.by("dispatcher_messages_retried_total", "cause")
    failed = [one for one in records if one.status in (500, None)]
    assert causes.keys() == {"server_error", "disconnected"}
    assert sum(causes.values()) == sum(one.items for one in failed)


@pytest.mark.anyio
async def test_latencies_count_each_delivered_message_once() -> None:
    """Every stage has one observation a delivery, and queue and delivery make up the total."""
    registry = CollectorRegistry()
    async with (
        local_upstream(faults="latency=constant(20ms)") as upstream,
        Dispatcher(config(upstream)) as dispatcher,
    ):
        register(dispatcher, registry)
        await dispatcher.send_many(Message(URL, body=str(index)) for index in range(250))
    scrape = Scrape(registry)
    sums = {}
    for stage in tally.STAGES:
        assert scrape("dispatcher_message_latency_seconds_count", stage=stage) == 250
        sums[stage] = scrape("dispatcher_message_latency_seconds_sum", stage=stage)
    assert sums["queue"] + sums["delivery"] == pytest.approx(sums["total"])
    assert sums["delivery"] >= 250 * 0.019
    assert scrape("dispatcher_request_duration_seconds_count") == len(upstream.requests)
    assert scrape("dispatcher_request_duration_seconds_sum") >= len(upstream.requests) * 0.019


@pytest.mark.anyio
async def test_histograms_are_cumulative_and_end_at_their_count() -> None:
    """Buckets never fall, their bounds rise, and `+Inf` is `_count`."""
    registry = CollectorRegistry()
    async with local_upstream() as upstream, Dispatcher(config(upstream)) as dispatcher:
        register(dispatcher, registry)
        await dispatcher.send_many(Message(URL, body="x" * index) for index in range(500))
    scrape = Scrape(registry)
    for family in FAMILIES:
        if family.kind != "histogram":
            continue
        series: dict[Labels, list[tuple[float, float]]] = {}
        for labels, value in scrape.values[f"{family.name}_bucket"].items():
            rest = frozenset(one for one in labels if one[0] != "le")
            series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
        assert series
        for rest, buckets in series.items():
            assert buckets == sorted(buckets)
            assert [value for _, value in buckets] == sorted(value for _, value in buckets)
            assert buckets[-1][0] == float("inf")
            assert buckets[-1][1] == scrape.values[f"{family.name}_count"][rest] > 0


@pytest.mark.anyio
async def test_an_upstream_that_refuses_the_token_is_shown() -> None:
    """The gauge rises with the refusal, and the messages are counted as halted."""
    registry = CollectorRegistry()
    async with local_upstream(token="right") as upstream:
        wrong = Config.load(env={}, token="wrong", url=upstream.url)
        async with Dispatcher(wrong) as dispatcher:
            register(dispatcher, registry)
            assert Scrape(registry)("dispatcher_gate", state="refused") == 0
            with pytest.raises(Halted):
                await dispatcher.send(Message(URL))
            scrape = Scrape(registry)
    assert scrape("dispatcher_gate", state="refused") == 1
    assert scrape.by("dispatcher_messages_finished_total", "outcome") == {"halted": 1}
    assert scrape.by("dispatcher_requests_total", "code") == {"401": 1}


# --------------------------------------------------------------------------------- gauges and refusals


@pytest.mark.anyio
async def test_the_gauges_show_what_is_held() -> None:
    """While the upstream is silent: what is in flight, what waits, how old, the bounds."""
    registry, transport = CollectorRegistry(), ScriptedTransport()
    settings = Config.load(
        env={}, token="t", queue_max_messages=5, batch_max_messages=2, limit_max_in_flight=2
    )
    transport.hold()
    async with Dispatcher(settings, transport=transport) as dispatcher:
        register(dispatcher, registry)
        deliveries = [dispatcher.put_nowait(Message(URL)) for _ in range(5)]
        waiter = asyncio.ensure_future(dispatcher.put(Message(URL)))
        await turns()
        scrape = Scrape(registry)
        transport.release()
        deliveries.append(await waiter)
        await asyncio.gather(*deliveries)
        after = Scrape(registry)
    assert scrape.by("dispatcher_held_messages", "state") == {"in_flight": 4, "waiting": 1}
    assert scrape("dispatcher_held_messages_limit") == 5
    assert scrape("dispatcher_held_bytes") == sum(len(one.data) for one in deliveries[:5])
    assert scrape("dispatcher_held_bytes_limit") == settings.queue.max_bytes
    assert scrape("dispatcher_waiting_for_room") == 1
    assert scrape("dispatcher_requests_in_flight") == scrape("dispatcher_requests_in_flight_limit") == 2
    assert 0 < scrape("dispatcher_oldest_message_age_seconds") < 60
    assert not after.by("dispatcher_held_messages", "state")
    for name in ("held_bytes", "waiting_for_room", "requests_in_flight", "oldest_message_age_seconds"):
        assert after(f"dispatcher_{name}") == 0


@pytest.mark.anyio
async def test_refused_messages_are_counted_by_reason() -> None:
    """Full, invalid, too large and closed: one of each."""
    registry, transport = CollectorRegistry(), ScriptedTransport()
    settings = Config.load(env={}, token="t", queue_max_messages=1, batch_max_message_bytes=1000)
    async with Dispatcher(settings, transport=transport) as dispatcher:
        register(dispatcher, registry)
        transport.hold()
        delivery = dispatcher.put_nowait(Message(URL))
        for message, error in (
            (Message(URL), QueueFull),
            (Message(""), MessageInvalid),
            (Message(URL, body="x" * 2000), MessageTooLarge),
        ):
            with pytest.raises(error):
                dispatcher.put_nowait(message)
        transport.release()
        await delivery
    with pytest.raises(DispatcherClosed):
        dispatcher.put_nowait(Message(URL))
    expected = dict.fromkeys(("full", "invalid", "too_large", "closed"), 1)
    assert Scrape(registry).by("dispatcher_messages_refused_total", "reason") == expected


@pytest.mark.anyio
async def test_failures_that_nobody_awaits_are_counted() -> None:
    """A rejected message without a waiter is in the counter."""
    registry, transport = CollectorRegistry(), ScriptedTransport(400)
    async with Dispatcher(Config.load(env={}, token="t"), transport=transport) as dispatcher:
        register(dispatcher, registry)
        dispatcher.put_nowait(Message(URL))
        await dispatcher.flush()
    assert Scrape(registry)("dispatcher_unawaited_failures_total") == 1


# ----------------------------------------------------------------------- registries, names, weak holding


@pytest.mark.anyio
async def test_two_dispatchers_share_a_registry() -> None:
    """Each has its own samples under its own name, in families that are written once."""
    registry = CollectorRegistry()
    async with (
        local_upstream() as upstream,
        Dispatcher(config(upstream), name="left") as left,
        Dispatcher(config(upstream), name="right") as right,
    ):
        register(left, registry)
        register(right, registry)
        await left.send_many(Message(URL) for _ in range(3))
        await right.send_many(Message(URL) for _ in range(7))
    scrape = Scrape(registry)
    assert scrape("dispatcher_messages_finished_total", "left", outcome="delivered") == 3
    assert scrape("dispatcher_messages_finished_total", "right", outcome="delivered") == 7
    text = exposition(registry)
    for family in FAMILIES:
        assert text.count(f"# TYPE {family.name} ") == 1


def test_a_dropped_dispatcher_is_gone_from_the_next_scrape() -> None:
    """Registering keeps nothing alive."""
    registry = CollectorRegistry()
    kept, dropped = idle("kept"), idle("dropped")
    register(kept, registry)
    register(dropped, registry)
    assert 'dispatcher="dropped"' in exposition(registry)
    del dropped
    gc.collect()
    text = exposition(registry)
    assert 'dispatcher="dropped"' not in text
    assert f'dispatcher="{kept.name}"' in text


@pytest.mark.anyio
async def test_an_opened_and_closed_dispatcher_can_be_dropped_too() -> None:
    """Nothing that opening made (task, timer, collector) holds it past its closing."""
    registry = CollectorRegistry()
    async with local_upstream() as upstream:
        dispatcher = Dispatcher(config(upstream))
        async with dispatcher:
            register(dispatcher, registry)
            await dispatcher.send(Message(URL))
        del dispatcher
        await turns()
        gc.collect()
        assert 'dispatcher="default"' not in exposition(registry)


def test_a_registry_can_be_dropped() -> None:
    """The table of registries is weak as well: a collector does not hold its registry."""
    dispatcher, registry = idle(), CollectorRegistry()
    before = len(_collectors)
    register(dispatcher, registry)
    assert len(_collectors) == before + 1
    del registry
    gc.collect()
    assert len(_collectors) == before


def test_a_second_live_dispatcher_of_the_same_name_is_refused() -> None:
    """The error says what, which, and what would be right; the first one stays."""
    registry = CollectorRegistry()
    first, second = idle("orders"), idle("orders")
    register(first, registry)
    with pytest.raises(ConfigError, match=r"name: 'orders' .*registered.*name=") as caught:
        register(second, registry)
    assert (caught.value.field, caught.value.value) == ("name", "orders")
    assert Scrape(registry)("dispatcher_messages_admitted_total", "orders") == 0


def test_registering_the_same_dispatcher_twice_is_harmless() -> None:
    """Its series still appear once (`Scrape` refuses a doubled one)."""
    registry, dispatcher = CollectorRegistry(), idle()
    register(dispatcher, registry)
    register(dispatcher, registry)
    assert Scrape(registry)("dispatcher_messages_admitted_total") == 0


@pytest.mark.anyio
async def test_a_closed_dispatcher_gives_its_name_to_the_next() -> None:
    """Its last values stay until then, and are replaced as a whole."""
    registry, transport = CollectorRegistry(), ScriptedTransport()
    settings = Config.load(env={}, token="t")
    async with Dispatcher(settings, transport=transport) as first:
        register(first, registry)
        await first.send(Message(URL))
    assert Scrape(registry)("dispatcher_messages_admitted_total") == 1
    second = idle()
    register(second, registry)
    assert Scrape(registry)("dispatcher_messages_admitted_total") == 0


@pytest.mark.anyio
async def test_a_forked_childs_dispatcher_may_take_the_name_of_its_parents() -> None:
    """What a child inherits is useless there, and must not bar the child's own."""
    registry = CollectorRegistry()
    inherited = idle()
    await inherited.start()
    register(inherited, registry)
    with pytest.raises(ConfigError):
        register(idle(), registry)
    refusal = inherited._refusal
    inherited.after_fork()
    own = idle()
    register(own, registry)
    inherited._refusal = refusal  # back in the parent: close it properly
    await inherited.aclose()


def test_two_registries_are_apart() -> None:
    """The same name may stand in each, and each exports only its own."""
    one, two = CollectorRegistry(), CollectorRegistry()
    first, second = idle(), idle()
    register(first, one)
    register(second, two)
    with pytest.raises(DispatcherClosed):
        first.put_nowait(Message(URL))
    assert Scrape(one)("dispatcher_messages_refused_total", reason="closed") == 1
    assert Scrape(two)("dispatcher_messages_refused_total", reason="closed") == 0


def test_registering_needs_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry learns the names from `describe`, without reading a dispatcher, and guards them."""
    registry, dispatcher = CollectorRegistry(auto_describe=True), idle()
    unread = property(lambda _: pytest.fail("registering must not read the dispatcher"))
    with monkeypatch.context() as patched:
        patched.setattr(Dispatcher, "engine", unread)
        register(dispatcher, registry)
    for family in FAMILIES:
        if family.kind == "counter":
            with pytest.raises(ValueError, match="Duplicated timeseries"):
                ClientCounter(family.name, "taken", registry=registry)


# ---------------------------------------------------------------------------------------- while it is busy


@pytest.mark.anyio
async def test_scrapes_from_another_thread_while_it_is_busy() -> None:
    """Scrapes in a thread while messages flow: none breaks, nothing counts backwards, sums hold."""
    registry, done = CollectorRegistry(), asyncio.Event()
    delivered: list[float] = []

    async def scrape_all_the_time() -> None:
        while not done.is_set():
            scrape = await anyio.to_thread.run_sync(Scrape, registry)
            delivered.append(scrape("dispatcher_messages_finished_total", outcome="delivered"))
            assert scrape("dispatcher_messages_admitted_total") >= delivered[-1]

    async with (
        local_upstream(faults="latency=constant(2ms)") as upstream,
        Dispatcher(config(upstream)) as dispatcher,
    ):
        register(dispatcher, registry)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scrape_all_the_time)
            outcomes: list[Receipt | DispatcherError] = []
            while len(delivered) < 5:
                outcomes += await dispatcher.send_many(Message(URL, body="x") for _ in range(1000))
            done.set()
    assert delivered == sorted(delivered)
    assert Scrape(registry)("dispatcher_messages_finished_total", outcome="delivered") == len(outcomes)
    assert len(upstream.accepted()) == len(outcomes)


def test_the_oldest_age_survives_a_container_that_changes_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that another thread disturbs is begun again; one that always is gives NaN, not an error."""
    registry, dispatcher = CollectorRegistry(), idle()
    register(dispatcher, registry)
    walks = iter((False, True))

    def disturbed(_: Dispatcher) -> float:
        if next(walks):
            return 7.5
        raise RuntimeError("deque mutated during iteration")

    def always(_: Dispatcher) -> float:
        raise RuntimeError("deque mutated during iteration")

    name = "dispatcher_oldest_message_age_seconds"
    monkeypatch.setattr(Dispatcher, "oldest_age", disturbed)
    assert Scrape(registry)(name) == 7.5
    monkeypatch.setattr(Dispatcher, "oldest_age", always)
    assert math.isnan(Scrape(registry)(name))
