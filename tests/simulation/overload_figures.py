"""What a run has to show, from its scenario's targets: each as a figure beside its bound.

Ratios are to a run of the same scenario and seed under a fixed limit. Used by `test_overload` and the
command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from tests.simulation.fleet_result import jain

if TYPE_CHECKING:
    from tests.simulation.fleet_result import Result

REACHED: Final = 0.9
"""Share of the fixed limit's rate that counts as reached."""
RECOVERED: Final = 0.8
"""Share of what the service can take that counts as recovered."""


class Figure(Struct, frozen=True):
    """One value with its bound."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """The value keeps the bound; NaN keeps none."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.3f}, wanted {'≥' if self.at_least else '≤'} {self.bound:g}"


def figures(result: Result, fixed: Result | None) -> list[Figure]:
    """Every figure that the scenario has a target for."""
    found = _own(result) + _of_outages(result) + _of_fairness(result)
    return found if fixed is None else found + _beside(result, fixed)


def worst(runs: list[list[Figure]]) -> list[Figure]:
    """Of each figure the worst over several runs of one scenario."""
    columns = zip(*runs, strict=True)
    return [(min if column[0].at_least else max)(column, key=_value) for column in columns]


def _value(figure: Figure) -> float:
    return figure.value


def _own(result: Result) -> list[Figure]:
    scenario, targets = result.scenario, result.scenario.targets
    found = []
    if targets.refused_max is not None:
        found.append(Figure("refused share of requests", result.refused, targets.refused_max))
    if targets.all_delivered:
        found.append(Figure("messages not delivered", result.held + result.failed.total(), 0.0))
    if targets.recovered_within is not None:
        for phase in scenario.upstream:
            assert phase.capacity is not None, "what is to be recovered is unlimited"
            rate = RECOVERED * scenario.rate(phase.capacity)
            name = f"round trips to {RECOVERED:.0%} of {phase.capacity} at once"
            trips = result.round_trips_to(rate, phase.start)
            found.append(Figure(f"{name}, from {phase.start:g} s", trips, targets.recovered_within))
    return found


def _of_outages(result: Result) -> list[Figure]:
    targets = result.scenario.targets
    found = []
    for outage, drained_at in zip(result.scenario.outages, result.drained, strict=True):
        if targets.attempts_max is not None:
            attempts = result.attempts(outage.start, outage.end)
            found.append(Figure("requests begun in the outage", attempts, targets.attempts_max))
        if targets.drained_within is not None:
            late = float("inf") if drained_at is None else drained_at - outage.end
            found.append(Figure("drained, s after the outage", late, targets.drained_within))
    return found


def _of_fairness(result: Result) -> list[Figure]:
    targets = result.scenario.targets
    shares = result.deliveries(targets.fair_from)
    found = []
    if targets.jain_min is not None:
        found.append(Figure("Jain's index", jain(shares), targets.jain_min, at_least=True))
    if targets.share_min is not None:
        least = min(shares) * len(shares) / max(1, sum(shares))
        found.append(Figure("least share, of the mean", least, targets.share_min, at_least=True))
    return found


def _beside(result: Result, fixed: Result) -> list[Figure]:
    targets = result.scenario.targets
    start = targets.latency_from
    found = []
    if targets.throughput_min is not None:
        ratio = result.rate() / fixed.rate()
        found.append(Figure("throughput, of the fixed limit's", ratio, targets.throughput_min, at_least=True))
    if targets.latency_p99_max is not None:
        ratio = result.latency(0.99, start) / fixed.latency(0.99, start)
        found.append(Figure("message p99, of the fixed limit's", ratio, targets.latency_p99_max))
    if targets.round_trip_p50_max is not None:
        ratio = result.round_trip(0.5) / fixed.round_trip(0.5)
        found.append(Figure("round trip p50, of the fixed limit's", ratio, targets.round_trip_p50_max))
    if targets.rate_within is not None:
        trips = result.round_trips_to(REACHED * fixed.rate())
        found.append(Figure(f"round trips to {REACHED:.0%} of its rate", trips, targets.rate_within))
    return found
