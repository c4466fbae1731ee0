"""`python -m tests.simulation.overload [SCENARIO] --seeds 100`: overload scenarios, many seeds, all cores.

Prints every figure that has a bound, and how the adaptive limit does beside a fixed one; of a scenario that
compares with the *best* fixed limit, all of them are tried. Exits with 1 if a bound is not kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs

from tests.simulation.fleet import play
from tests.simulation.fleet_scenario import load, names
from tests.simulation.overload_figures import Figure, figures, worst

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tests.simulation.fleet_result import Result

SWEEP_SECONDS: Final = 10.0
"""Virtual seconds for each fixed limit of a sweep."""
AS_GOOD: Final = 0.99
"""The best fixed limit is the smallest one with this share of the highest throughput."""


class Summary(Struct, frozen=True):
    """One run in four numbers."""

    rate: float
    latency_p50: float
    latency_p99: float
    round_trip_p50: float
    refused: float

    def __str__(self) -> str:
        return (
            f"{self.rate:>9,.0f} msg/s  message p50 {self.latency_p50:6.3f} s  p99 {self.latency_p99:6.3f} s"
            f"  round trip p50 {self.round_trip_p50 * 1e3:4.0f} ms  refused {self.refused:6.2%}"
        )


class Outcome(Struct, frozen=True):
    """One seed of one scenario."""

    seed: int
    own: Summary
    fixed: Summary | None
    figures: list[Figure]


def summary(result: Result) -> Summary:
    """What the table says of a run."""
    start = result.scenario.targets.latency_from
    quantiles = (result.latency(0.5, start), result.latency(0.99, start), result.round_trip(0.5))
    return Summary(result.rate(), *quantiles, result.refused)


def outcome(name: str, seed: int, against: int | None) -> Outcome:
    """Play one seed with the configured limit, and with the fixed one it is compared with."""
    scenario = load(name)
    own = play(scenario, seed)
    fixed = None if against is None else play(scenario, seed, fixed=against)
    return Outcome(seed, summary(own), None if fixed is None else summary(fixed), figures(own, fixed))


def throughput(name: str, fixed: int) -> float:
    """Messages a second that a fixed limit reaches in a shorter run of the first seed."""
    scenario = load(name)
    seconds = min(SWEEP_SECONDS, scenario.seconds)
    return play(structs.replace(scenario, seconds=seconds), 0, fixed=fixed).rate()


def best(rates: list[float]) -> int:
    """The smallest limit that is as good as any; `rates` begin with that of 1."""
    return next(limit for limit, rate in enumerate(rates, 1) if rate >= AS_GOOD * max(rates))


def judge(name: str, seeds: range, pool: Executor) -> bool:
    """Play one scenario's seeds and print what they show; true if every bound is kept."""
    scenario = load(name)
    against = scenario.targets.against
    print(f"\n{name}: {scenario.about}")
    if scenario.targets.is_best:
        limits = range(1, scenario.settings().limit.max_in_flight + 1)
        rates = list(pool.map(throughput, [name] * len(limits), limits))
        found = best(rates)
        print(f"  best fixed limit {found} (the scenario says {against}, the tests use that)")
        against = found
    runs = list(pool.map(outcome, [name] * len(seeds), seeds, [against] * len(seeds)))
    _print_summaries(runs, against)
    for figure in zip(*(run.figures for run in runs), strict=True):
        _print_figure(figure, seeds)
    return all(figure.is_met for run in runs for figure in run.figures)


def _print_summaries(runs: list[Outcome], against: int | None) -> None:
    print(f"  {'configured':<11}", _median([run.own for run in runs]))
    fixed = [run.fixed for run in runs if run.fixed is not None]
    if fixed:
        print(f"  {f'fixed {against}':<11}", _median(fixed))


def _median(summaries: list[Summary]) -> Summary:
    return Summary(*(median(column) for column in zip(*map(structs.astuple, summaries), strict=True)))


def _print_figure(column: tuple[Figure, ...], seeds: range) -> None:
    missed = [seed for seed, figure in zip(seeds, column, strict=True) if not figure.is_met]
    (extreme,) = worst([[figure] for figure in column])
    verdict = f"MISSED by {len(missed)} of {len(seeds)} seeds, the first: {missed[0]}" if missed else "ok"
    sign = "≥" if extreme.at_least else "≤"
    middle = median(figure.value for figure in column)
    print(
        f"  {extreme.name:<45} median {middle:8.3f}  worst {extreme.value:8.3f}"
        f"  bound {sign} {extreme.bound:g}  {verdict}"
    )


def main() -> int:
    """Play, print, and say by the exit code whether every bound is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.overload", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *names()], help="only these")
    parser.add_argument("--seeds", type=int, default=20, help="for each scenario")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    seeds = range(given.start, given.start + given.seeds)
    started = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        kept = [judge(name, seeds, pool) for name in given.scenario or names()]
    print(f"\n{len(kept)} scenarios, {len(seeds)} seeds each, {time.perf_counter() - started:.0f} s")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
