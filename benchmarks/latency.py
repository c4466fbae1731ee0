"""How long does one message take, and how long is the loop kept from others? Figures with bounds, in ms.

`calm` is `send` at 100 messages a second, `half` at half of what it reaches, with all that the process had
before out of the garbage collector's sight, as this project's commands do; `untuned` the same without that,
told only. An open loop, Poisson, counted from the intended starts. The 99th percentile is judged, the median
of the rounds. `full` is the longest callback of all rounds
at full load, the load's own apart. Judged is its time on the CPU clock: neither what the kernel gives to
others nor a collection counts; both are told beside. Exit 1 if a bound is missed.

    python -m benchmarks.latency [--only calm,full] [--loop asyncio] [--bound calm=2]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from contextlib import contextmanager
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.callbacks import LOAD, OURS, THEIRS, Watch, watched_loop
from benchmarks.growth import Finding
from benchmarks.latency_loads import FULL_LOADS, SENDERS, at_full_load, at_rate
from benchmarks.rows_rounds import cores, pinned
from benchmarks.upstream_process import upstream_process
from dispatcher.cli.loop import loop_factory
from dispatcher.config import BatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.latency_loads import Latencies, Lateness

    Watched = Sequence[tuple[Lateness, Watch]]

HALF_BOUND: Final = BatchSettings().linger * 1e3 + 10.0
BOUNDS: Final[Mapping[str, float]] = {"calm": 4.0, "half": HALF_BOUND, "untuned": inf, "full": 5.0}
"""Milliseconds."""
LOOPS: Final = ("uvloop", "asyncio") if loop_factory() is not None else ("asyncio",)


def open_loops(name: str, url: str, given: argparse.Namespace) -> list[Finding]:
    """`send` at a rate, each loop in turn, several times over."""
    runs: dict[str, list[Latencies]] = {loop: [] for loop in given.loop}
    rate = given.rate if name == "calm" else None
    for number in range(given.rounds):
        for loop in given.loop:
            _tell(f"{name}, {loop}: round {number + 1} of {given.rounds}")
            factory = loop_factory() if loop == "uvloop" else None
            with _settled_heap(), asyncio.Runner(loop_factory=factory) as runner:
                once = at_rate(url, rate, given.seconds, given.messages, is_frozen=name == "half")
                runs[loop].append(runner.run(once))
    return [judged(name, loop, found, given.bound[name]) for loop, found in runs.items()]


def judged(name: str, loop: str, runs: Sequence[Latencies], bound: float) -> Finding:
    """The medians of one loop's rounds."""
    of = f" of {median(run.capacity for run in runs):,.0f}" if name != "calm" else ""
    text = (
        f"{loop}, {median(run.rate for run in runs):,.0f}{of} msg/s: "
        f"p50 {_ms([run.p50 for run in runs])}, p90 {_ms([run.p90 for run in runs])}, "
        f"p99 {_ms([run.p99 for run in runs])}, max {_ms([run.most for run in runs])} ms; "
        f"generator late, p99 {_ms([run.lag_p99 for run in runs])} ms; "
        f"{median(run.fill for run in runs):.1f} messages a request; "
        f"core {median(run.busy for run in runs):.0%} used, "
        f"taken away {sum(run.preempted for run in runs)} times in all; "
        f"{_collected(sum(run.collections for run in runs), [run.collection_most for run in runs])}; "
        f"upstream {median(run.upstream_idle for run in runs):.0%} idle"
    )
    return Finding(name, text, median(run.p99 for run in runs) * 1e3, bound)


def full_loads(name: str, url: str, given: argparse.Namespace) -> list[Finding]:
    """Every full load under each loop in turn, several times over."""
    runs: dict[tuple[str, str], list[tuple[Lateness, Watch]]] = {
        (load, loop): [] for load in FULL_LOADS for loop in given.loop
    }
    for number in range(given.rounds):
        for load, loop in runs:
            _tell(f"{name}, {load}, {loop}: round {number + 1} of {given.rounds}")
            watch = Watch(SENDERS)
            with (
                _settled_heap(),
                watched_loop(loop, watch) as factory,
                asyncio.Runner(loop_factory=factory) as runner,
            ):
                once = at_full_load(url, FULL_LOADS[load], given.messages, watch)
                runs[load, loop].append((runner.run(once), watch))
    return [
        longest(name, f"{loop}, {load}", found, given.bound[name]) for (load, loop), found in runs.items()
    ]


def longest(name: str, what: str, runs: Watched, bound: float) -> Finding:
    """The longest callback of all rounds but for the load's own, and what there was beside it."""
    watches = [watch for _, watch in runs]
    found = {owner: _longest(watches, owner) for owner in (OURS, THEIRS, LOAD)}
    spent = [cpu for watch in watches for cpu in watch.collections.cpu]
    text = (
        f"{what}, {median(late.rate for late, _ in runs):,.0f} msg/s while watched, "
        f"{sum(watch.count for watch in watches):,} callbacks, the longest {found[OURS][1]}; "
        f"of asyncio and aiohttp {found[THEIRS][1]}; the load's own {found[LOAD][1]}; "
        f"{_collected(len(spent), spent)}; "
        f"a timer was late by {_ms([late.p50 for late, _ in runs])}, "
        f"at most {_ms([late.most for late, _ in runs])} ms"
    )
    return Finding(name, text, max(found[OURS][0], found[THEIRS][0]) * 1e3, bound)


def _collected(number: int, seconds: Sequence[float]) -> str:
    return f"{number:,} collections, up to {max(seconds, default=0.0) * 1e3:.1f} ms"


@contextmanager
def _settled_heap() -> Iterator[None]:
    """No round pays for what another one left."""
    gc.collect()
    try:
        yield
    finally:
        gc.unfreeze()


def _longest(watches: Sequence[Watch], owner: str) -> tuple[float, str]:
    found = [one for watch in watches if (one := watch.longest(owner)) is not None]
    if not found:
        return watches[0].floor, f"below {watches[0].floor * 1e3:g} ms"
    most = max(found, key=lambda one: one.cpu)
    return most.cpu, str(most)


def _ms(values: Sequence[float]) -> str:
    """Median, least and most."""
    low, middle, high = (f"{value * 1e3:.1f}" for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} [{low}–{high}]"


def _tell(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


FIGURES: Final[Mapping[str, Callable[[str, str, argparse.Namespace], list[Finding]]]] = {
    "calm": open_loops,
    "half": open_loops,
    "untuned": open_loops,
    "full": full_loads,
}


def measure(given: argparse.Namespace) -> list[Finding]:
    """All that was asked for."""
    found: list[Finding] = []
    cpu, other = cores()
    with pinned(cpu), upstream_process(cpu=other) as url:
        for name in given.only:
            for finding in FIGURES[name](name, url, given):
                _tell("")
                print(finding, flush=True)
                found.append(finding)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each figure (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="at a rate (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=100.0, help="of `calm`, msg/s (default: %(default)s)")
    parser.add_argument(
        "--messages", type=int, default=200_000, help="in a full load, and to find half of it (%(default)s)"
    )
    parser.add_argument("--only", type=_some(FIGURES), default=list(FIGURES), help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--loop", type=_some(LOOPS), default=list(LOOPS), help=f"of {', '.join(LOOPS)}")
    parser.add_argument(
        "--bound", type=_bound, action="append", default=[], metavar="NAME=MS", help="another one"
    )
    given = parser.parse_args(words)
    given.bound = {**BOUNDS, **dict(given.bound)}
    return 0 if all(finding.holds for finding in measure(given)) else 1


def _some(allowed: Sequence[str] | Mapping[str, object]) -> Callable[[str], list[str]]:
    def chosen(words: str) -> list[str]:
        for word in words.split(","):
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"no `{word}` here; there are {', '.join(allowed)}")
        return words.split(",")

    return chosen


def _bound(words: str) -> tuple[str, float]:
    name, _, number = words.partition("=")
    try:
        bound = float(number)
    except ValueError:
        bound = -1.0
    if name not in BOUNDS or bound < 0:
        raise argparse.ArgumentTypeError(f"`{words}` is not {', '.join(BOUNDS)}, then = and milliseconds")
    return name, bound


if __name__ == "__main__":
    sys.exit(main())
