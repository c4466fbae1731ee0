"""The scenarios of outages, hanging requests and an empty budget do what they say."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.runs import run
from tests.simulation.scenario import load

SEEDS = range(8)


@pytest.mark.parametrize(
    ("name", "counter", "key", "least"),
    [
        ("black_hole", "retried", "overtaken", 100),
        ("black_hole", "requests", "timeout", 5),
        ("black_hole_drain", "finished", "abandoned", 100),
        ("black_hole_drain", "finished", "delivered", 100),
        ("black_hole_drain", "requests", "timeout", 1),
        ("flapping", "pauses", "outage", 8),
        ("flapping", "pauses", "throttle", 2),
        ("flapping", "requests", "connect", 80),
        ("flapping", "requests", "503", 8),
        ("budget", "requests", "500", 200),
        ("slow", "retried", "overtaken", 30),
    ],
)
def test_it_does_what_it_says(name: str, counter: str, key: str, least: int) -> None:
    """Over a few seeds each of its troubles has struck often enough."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        seen.update(getattr(run(load(name), seed).engine.tally, counter))
    assert seen[key] >= least, seen


def test_the_budget_runs_out() -> None:
    """Retries have waited for it: with a large one the same run is over sooner."""
    took = {}
    for budget in (14, 1_000_000):
        scenario = load("budget")
        scenario.config["retry"]["budget"] = budget
        worlds = [run(scenario, seed) for seed in SEEDS]
        took[budget] = sum(world.last_settled_at for world in worlds) / len(worlds) - 1_000.0
    assert took[14] > 1.15 * took[1_000_000]


def test_nobody_waits_for_a_slow_one_twice() -> None:
    """What hangs for seconds and has an id is sent again long before its answer."""
    without = Counter[str]()
    for seed in SEEDS:
        world = run(load("slow"), seed)
        assert set(world.engine.tally.finished) == {"delivered"}
        without.update(
            "overtaken" for entry in world.entries.values() if entry.trouble and not entry.idempotent
        )
    assert not without, "only what has an id is given up"
