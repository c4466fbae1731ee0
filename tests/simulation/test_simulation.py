"""The share of the simulation that the test suite runs."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec import structs

from dispatcher.devserver.kinds import REQUEST_RATES
from tests.simulation.runs import failure, run
from tests.simulation.scenario import load, names

SEEDS = 16


@pytest.mark.parametrize("name", names())
def test_scenario(name: str) -> None:
    """Every invariant holds after every step, and every outcome is true, for each scenario's first seeds."""
    for seed in range(SEEDS):
        report = failure(name, seed)
        assert report is None, report


def _total(name: str, counts: str) -> Counter[str]:
    """A tally's counts over ten seeds."""
    total: Counter[str] = Counter()
    for seed in range(10):
        total.update(getattr(run(load(name), seed).engine.tally, counts))
    return total


def test_scenarios_do_what_they_say() -> None:
    """The faults happen: each scenario's own trouble is seen in its counters."""
    seen = {name: run(load(name), 1).engine.tally for name in names()}
    assert set(seen["calm"].requests) == {"200"}
    assert seen["storm"].requests["429"] > 5
    assert {"throttle", "quota"} <= set(_total("storm", "pauses"))
    assert seen["outage"].requests["connect"] > 5
    assert {"disconnect", "reply", "timeout"} <= set(seen["lossy"].requests)
    assert seen["poison"].isolations > 0
    assert seen["poison"].finished["rejected"] > 0
    assert seen["small_upstream"].requests["412"] > 0
    assert seen["deadlines"].finished["deadline_exceeded"] > 10
    assert seen["withdrawals"].finished["withdrawn"] > 10
    assert seen["without_ids"].finished["unknown"] > 0
    assert seen["tiny_room"].batches["room"] > 0
    assert seen["passed_over"].order_violations > 0
    assert seen["capacity"].requests["429"] > 5
    assert set(seen["silent"].requests) == {"200"}
    assert _total("poison_500", "batches")["halving"] > 50
    assert _total("quota", "finished")["quota_exhausted"] > 50
    assert _total("token", "requests")["401"] > 20
    assert _total("token", "finished")["halted"] > 20
    assert _total("first_contact", "finished")["halted"] > 100
    assert _total("stopping", "batches")["halving"] > 5
    assert sum(run(load("drain"), seed).engine.tally.finished.get("abandoned", 0) for seed in range(20)) > 0


def test_runs_meet_everything() -> None:
    """In their scenarios many leave whole, and of these many are delivered whole and many fall apart."""
    for name in ("runs", "runs_faulty", "runs_quota", "runs_late"):
        worlds = [run(load(name), seed) for seed in range(10)]
        runs = [each for world in worlds for each in world.runs]
        sent = sum(world.runs_sent for world in worlds)
        delivered = sum(each.receipts is not None for each in runs)
        assert len(runs) > 200, name
        assert len(runs) > sent > delivered > 60, name
        assert sum(each.entries is not None for each in runs) == len(runs) - delivered > 60, name
    assert _total("runs_quota", "finished")["quota_exhausted"] > 50
    assert _total("runs_late", "finished")["deadline_exceeded"] > 50
    assert {"412", "timeout", "disconnect", "reply", "connect"} <= set(_total("runs_faulty", "requests"))


def test_runs_are_in_nearly_every_scenario() -> None:
    """Half of the instants hand in what is plain as runs; where nothing is plain there are none."""
    without = {name for name in names() if not any(run(load(name), seed).runs for seed in range(3))}
    assert without == {"slow", "without_ids"}


def test_load_alone_brings_refusals_and_waiting() -> None:
    """Load alone is the trouble of these two: one is refused above a capacity, the other waits in line."""
    refusing, silent = (run(load(name), 1).upstream for name in ("capacity", "silent"))
    assert set(refusing.faults) == {"over_capacity"}
    assert 2 < refusing.load.busy_max <= 6
    assert set(silent.faults) == set()
    assert silent.load.busy_max > 3


def test_every_fault_occurs_in_some_mix() -> None:
    """Within a few dozen seeds of the drawn scenario each kind has struck."""
    struck: set[str] = set()
    for seed in range(60):
        struck |= set(run(load("any"), seed, check_every=20).upstream.faults)
    assert struck >= {*REQUEST_RATES, "error_entry", "error_endpoint", "poison_400", "poison_500"}


def test_a_hundred_thousand_messages_under_faults() -> None:
    """100,000 messages under every fault at once settle truly, in seconds."""
    config = {"queue": {"max_messages": 5_000}, "limit": {"max_in_flight": 32}, "deliver_within": 600}
    scenario = structs.replace(
        load("mixed"),
        messages=(100_000, 100_000),
        seconds=60.0,
        burst=(50, 500),
        config=config,
        flushes=10,
        impatient=0.01,
        withdrawn=0.01,
        deadlines=[(5.0, 0.05)],
        mix=structs.replace(load("mixed").mix, poison=0.0005, missing=0.0005, large=0.0005),
    )
    world = run(scenario, 7, check_every=500)
    tally = world.engine.tally
    assert tally.admitted > 90_000
    assert tally.finished["delivered"] > 0.9 * tally.admitted


def test_a_run_is_decided_by_its_seed() -> None:
    """The same seed plays the same run, another one another."""
    first, again, other = (list(run(load("mixed"), seed).trace) for seed in (5, 5, 6))
    assert first == again
    assert first != other
