"""Overload in virtual time: the adaptive limit, the budget and the gate against the numbers promised of them.

Each scenario's own bounds stand in its file; `python -m tests.simulation.overload --seeds 100` plays many
seeds and tries every fixed limit. Here are the first seeds, and what shows that the bounds can be missed.
"""

from __future__ import annotations

from collections import Counter
from math import isnan
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec import structs

from benchmarks.overload import chart
from dispatcher.bench.chart import number_text, round_values
from tests.simulation.fleet import Fleet, play
from tests.simulation.fleet_result import Result, jain, quantile
from tests.simulation.fleet_scenario import Burst, Outage, Saturating, Scenario, Steady, Upstream, load, names
from tests.simulation.overload_figures import figures

SEEDS = {"outage_refused": 2, "outage_black_hole": 2, "idle_burst": 3}


def shortened(name: str) -> Scenario:
    """A scenario as the suite plays it."""
    scenario = load(name)
    return structs.replace(scenario, seconds=scenario.seconds_in_suite or scenario.seconds)


@pytest.mark.parametrize("name", names())
def test_scenario(name: str) -> None:
    """Every bound in the scenario's file is kept, for its first seeds."""
    scenario = shortened(name)
    for seed in range(SEEDS.get(name, 1)):
        fixed = scenario.targets.against
        beside = None if fixed is None else play(scenario, seed, fixed=fixed)
        found = figures(play(scenario, seed), beside)
        assert found, "a scenario without a bound shows nothing"
        missed = [str(figure) for figure in found if not figure.is_met]
        assert not missed, f"{name}, seed {seed}: {'; '.join(missed)}"


# -------------------------------------------------------------------------- the bounds can be missed


def small(**changes: Any) -> Scenario:
    """A saturated service that refuses above two at once, in batches of ten."""
    config = {"batch": {"max_messages": 10}, "queue": {"max_messages": 100}}
    given: dict[str, Any] = {
        "traffic": [Saturating()],
        "upstream": [Upstream(capacity=2)],
        "seconds": 10.0,
        "config": config,
    }
    return Scenario(**{"about": "", **given, **changes})


@pytest.mark.parametrize(
    ("limit", "name"), [(10, "throughput, of the fixed limit's"), (60, "message p99, of the fixed limit's")]
)
def test_bounds_tell_a_bad_limit(limit: int, name: str) -> None:
    """A fixed limit of half the capacity misses one bound, one three times as large another."""
    scenario = structs.replace(load("capacity_20"), seconds=10.0)
    found = figures(play(scenario, 0, fixed=limit), play(scenario, 0, fixed=20))
    assert name in [figure.name for figure in found if not figure.is_met]


@pytest.mark.parametrize(("name", "limit"), [("capacity_20", 26), ("silent_16", 22)])
def test_the_best_fixed_limit_is_the_best(name: str, limit: int) -> None:
    """Neither a smaller nor a larger fixed limit carries more: the comparison is with the best one."""
    scenario = structs.replace(load(name), seconds=10.0)
    assert scenario.targets.against == limit
    rates = {each: play(scenario, 0, fixed=each).rate() for each in (limit - 3, limit, 64)}
    assert rates[limit] >= 0.99 * max(rates.values())
    assert rates[limit - 3] < 0.95 * rates[limit]


# ------------------------------------------------------------------------------ the simulation itself


def series(result: Result) -> tuple[object, ...]:
    """All that must not differ between two runs of one seed."""
    return (result.series(), result.answers, list(result.sent_at), result.latency(0.5), result.latency(0.99))


def test_a_run_is_decided_by_its_seed() -> None:
    """The same seed plays the same run to the last float, another one another."""
    scenario = structs.replace(load("fleet_2"), seconds=10.0)
    first, again, other = (series(play(scenario, seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_message_is_accounted_for() -> None:
    """What was handed in is delivered, failed or held, whatever was refused meanwhile."""
    fleet = Fleet(small(dispatchers=3, late=[5.0]), 1)
    result = fleet.run()
    admitted = sum(member.engine.tally.admitted for member in fleet.members)
    assert result.answers["429"] > 10
    assert admitted == result.delivered + result.failed.total() + result.held
    assert sum(result.deliveries()) <= result.delivered
    assert len(result.deliveries()) == 4
    assert sum(result.deliveries(5.0)) > 0


def test_a_saturated_fleet_is_never_idle() -> None:
    """Producers wait at every sample, and a fixed limit carries exactly what it can."""
    scenario = small(upstream=[Upstream()])
    result = play(scenario, 0, fixed=2)
    assert all(sample.held > 70 and sample.in_flight == 2 for sample in result.samples)
    assert result.rate(1.0) == pytest.approx(scenario.rate(2), rel=0.05)
    assert result.round_trip(0.5) == pytest.approx(scenario.round_trip)


def test_silent_workers_lengthen_round_trips() -> None:
    """Twice as many requests as workers take twice the work, and are all accepted."""
    scenario = small(upstream=[Upstream(workers=4, work=0.1, work_per_item=0.0)])
    result = play(scenario, 0, fixed=8)
    assert set(result.answers) == {"200"}
    assert result.round_trip(0.5, start=2.0) == pytest.approx(0.2)


def outage(kind: Any) -> Result:
    """A steady stream past two seconds of an outage."""
    return play(
        small(
            traffic=[Steady(rate=100.0, end=8.0)],
            upstream=[Upstream()],
            outages=[Outage(2.0, 4.0, kind)],
            seconds=30.0,
            config={"transport": {"attempt_timeout": 1.5, "connect_timeout": 0.5}},
        ),
        0,
    )


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("refused", {"200", "connect", "disconnect"}),
        ("black_hole", {"200", "timeout"}),
        ("unreachable", {"200", "timeout", "connect"}),
    ],
)
def test_an_outage_loses_answers_as_it_says(kind: str, answers: set[str]) -> None:
    """Nothing is delivered in the span, what was out is lost, and everything arrives after it."""
    result = outage(kind)
    assert set(result.answers) == answers
    assert result.rate(2.001, 4.0) == 0.0
    assert result.delivered == 100 * 8
    (drained,) = result.drained
    assert drained is not None
    assert 4.0 < drained < 8.0


def test_a_refusal_may_say_how_long_to_wait() -> None:
    """A Reset closes the gate, which the series shows; a bare 503 comes without one."""
    told = play(small(upstream=[Upstream(capacity=2, refusal="429 reset")], dispatchers=2), 0)
    assert Counter(sample.gate for sample in told.samples)["throttled"] > 10
    bare = play(small(upstream=[Upstream(capacity=2, refusal="503")], dispatchers=2), 0)
    assert bare.answers["503"] > 0


def test_a_burst_is_timed_from_its_instant() -> None:
    """Latency counts from admission; a limit of one delivers a burst in as many round trips as batches."""
    scenario = small(
        traffic=[Burst(1.0, 50)],
        upstream=[Upstream()],
        config={"batch": {"max_messages": 10}},
    )
    result = play(scenario, 0, fixed=1)
    assert result.delivered == 50
    assert result.latency(1.0) == pytest.approx(5 * scenario.round_trip)
    assert result.latency(0.5) == pytest.approx(3 * scenario.round_trip)


def test_a_chart_shows_its_run() -> None:
    """Well-formed, the same twice, with every line, the shaded outage and its words."""
    scenario = small(outages=[Outage(2.0, 4.0, "refused")], about="More < enough & late.")
    drawn = [chart("small", play(scenario, 3), play(scenario, 3, fixed=2), 2) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != chart("small", play(scenario, 4), play(scenario, 4, fixed=2), 2)
    root = ElementTree.fromstring(drawn[0])
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"limit", "in flight", "in flight, fixed 2", "adaptive", "fixed 2", "connections refused"} <= texts
    assert "More < enough & late. Seed 3." in texts


def test_axes_have_round_marks() -> None:
    """From 0 to at least the greatest value, in steps of 1, 2, 2.5 or 5."""
    assert round_values(22) == [0, 5, 10, 15, 20, 25]
    assert round_values(20_000) == [0, 5_000, 10_000, 15_000, 20_000]
    assert round_values(0.11)[-1] == pytest.approx(0.125)
    assert round_values(0.0) == [0.0, 1.0]
    assert [number_text(value) for value in (0.0, 0.025, 1.5, 10_000.0)] == ["0", "0.025", "1.5", "10,000"]


def test_quantile_and_fairness() -> None:
    """Nearest rank; Jain's index is 1 for equal shares and 1/n for one who has all."""
    values = [4.0, 1.0, 3.0, 2.0]
    assert [quantile(values, share) for share in (0.0, 0.25, 0.5, 0.51, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert isnan(quantile([], 0.5))
    assert jain([5, 5, 5, 5]) == 1.0
    assert jain([8, 0, 0, 0]) == 0.25
    assert jain([3, 1]) == pytest.approx(0.8)


def test_round_trips_to_a_rate() -> None:
    """A limit that doubles reaches most of a rate within a few round trips, and more than there is never."""
    scenario = small(upstream=[Upstream()])
    result = play(scenario, 0, fixed=4)
    assert result.round_trips_to(0.9 * scenario.rate(4)) < 5.5
    assert result.round_trips_to(1.5 * scenario.rate(4)) == float("inf")
