"""What the dispatcher does under overload, drawn: limit, requests in flight, backlog and latency over time.

    python -m benchmarks.overload SCENARIO [--seed N] [--fixed N] [--until SECONDS] --svg FILE

Plays one scenario of `tests/simulation/overload` in virtual time, under the limit that it configures (an
adaptive one, if it says nothing) and with `--fixed N` under a fixed limit as well. The same seed draws the
same chart, to the byte, on every machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final

from msgspec import structs

from benchmarks.plot import COLOURS, Line, Panel, Span, timeline
from tests.simulation.fleet import play
from tests.simulation.fleet_result import SAMPLE_SECONDS
from tests.simulation.fleet_scenario import load, names

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.fleet_result import Result, Sample
    from tests.simulation.fleet_scenario import Scenario

OWN, OUT, FIXED = COLOURS[0], COLOURS[1], COLOURS[2]
TIME_SAMPLES: Final = 5
RATE_SAMPLES: Final = 11
"""So many samples are averaged: round trips of 0.11 s and samples of 0.1 s beat against each other."""
OUTAGES: Final = {
    "refused": "connections refused",
    "black_hole": "nothing is answered",
    "unreachable": "unreachable",
}


def chart(name: str, own: Result, fixed: Result | None, limit: int | None) -> str:
    """The chart of one scenario, with a fixed limit beside the configured one if there is one."""
    runs = [(own, "adaptive", OWN)]
    if fixed is not None:
        runs.append((fixed, f"fixed {limit}", FIXED))
    scenario = own.scenario
    subtitle = f"{scenario.about} Seed {own.seed}."
    return timeline(name, subtitle, _panels(runs), scenario.seconds, _spans(scenario))


def _panels(runs: list[tuple[Result, str, str]]) -> list[Panel]:
    own = runs[0][0]
    requests = [
        Line(f"in flight, {label}", _points(result, lambda sample: sample.in_flight), colour, steps=True)
        for result, label, colour in runs[1:]
    ]
    requests += [
        Line("in flight", _points(own, lambda sample: sample.in_flight), OUT, steps=True),
        Line("limit", _points(own, lambda sample: sample.limit), OWN, dashed=True, steps=True),
    ]
    return [
        Panel("requests", requests),
        Panel("messages held", _lines(runs, lambda one: one.held, 1)),
        Panel(
            f"messages delivered a second, {_over(RATE_SAMPLES)}",
            _lines(runs, lambda one: one.rate, RATE_SAMPLES),
        ),
        Panel(
            f"message latency in s, {_over(TIME_SAMPLES)}",
            _lines(runs, lambda one: one.latency, TIME_SAMPLES),
        ),
        Panel(
            f"request round trip in s, {_over(TIME_SAMPLES)}",
            _lines(runs, lambda one: one.round_trip, TIME_SAMPLES),
        ),
    ]


def _over(samples: int) -> str:
    return f"mean of {samples * SAMPLE_SECONDS:.1f} s"


def _lines(
    runs: list[tuple[Result, str, str]], value: Callable[[Sample], float | None], samples: int
) -> list[Line]:
    return [
        Line(label, _smooth(_points(result, value), samples), colour, dashed=number > 0)
        for number, (result, label, colour) in enumerate(runs)
    ]


def _points(result: Result, value: Callable[[Sample], float | None]) -> list[tuple[float, float | None]]:
    return [(sample.at, value(sample)) for sample in result.samples]


def _smooth(points: list[tuple[float, float | None]], samples: int) -> list[tuple[float, float | None]]:
    """Means over the last samples; a gap only where none of them has a value."""
    smoothed: list[tuple[float, float | None]] = []
    for place, (at, _) in enumerate(points):
        recent = [value for _, value in points[max(0, place - samples + 1) : place + 1] if value is not None]
        smoothed.append((at, fmean(recent) if recent else None))
    return smoothed


def _spans(scenario: Scenario) -> list[Span]:
    """Outages, and stretches in which the service bears something else than at first."""
    spans = [Span(outage.start, outage.end, OUTAGES[outage.kind]) for outage in scenario.outages]
    phases = sorted(scenario.upstream, key=lambda phase: phase.start)
    ends = [phase.start for phase in phases[1:]] + [scenario.seconds]
    for phase, end in zip(phases, ends, strict=True):
        if phase.capacity != phases[0].capacity:
            spans.append(Span(phase.start, end, f"capacity {phase.capacity} instead of {phases[0].capacity}"))
    return spans


def main() -> int:
    """Play, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("scenario", choices=names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixed", type=int, help="a fixed limit to draw beside it")
    parser.add_argument("--until", type=float, help="virtual seconds, if not the whole scenario")
    parser.add_argument("--svg", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    scenario = load(given.scenario)
    if given.until is not None:
        scenario = structs.replace(scenario, seconds=given.until)
    own = play(scenario, given.seed)
    fixed = None if given.fixed is None else play(scenario, given.seed, fixed=given.fixed)
    given.svg.write_text(chart(given.scenario, own, fixed, given.fixed), encoding="utf-8")
    print(f"{given.svg}: {scenario.seconds:g} virtual seconds, {own.delivered:,} messages delivered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
