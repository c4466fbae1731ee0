"""Does a message cost more when there are more of them? CPU time, memory and wake-ups, each with its bound.

CPU a message, the whole path against the benchmark's upstream, from few to many: messages, producers, queues,
messages held; with the collector spared, as the commands do. Memory of a held message beyond the caller's own
`Message` and its encoded item. Wake-ups of an idle dispatcher. Exit 1 if a bound is missed.

    python -m benchmarks.growth [--messages 5000000] [--only queues,held]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from benchmarks.growth_loads import (
    HELD_BODY,
    bytes_a_held_message,
    holding,
    idle_wakeups,
    producing,
    queueing,
    streaming,
)
from benchmarks.rows_rounds import cores, pinned
from benchmarks.upstream_process import upstream_process
from dispatcher.cli.loop import loop_factory, spare_collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Load = Callable[[str, int], Awaitable[float]]
    """Runs in a loop of its own against an upstream; CPU seconds a message."""

ROUNDS: Final = 3
FEW_ROUNDS: Final = 5
"""Rounds of the small size for each one of the large: it is over sooner, and noisier."""


class Dimension(Struct, frozen=True):
    """What grows, and what that may cost."""

    what: str
    few: int
    many: int
    load: Load
    bound: float
    rounds: int = ROUNDS


class Finding(Struct, frozen=True):
    """One figure and its bound."""

    name: str
    text: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "MISSED"
        judged = "no bound" if self.bound == inf else f"bound {self.bound:g}: {verdict}"
        return f"{self.name:10} {self.text}; {judged}"


def dimensions(messages: int) -> dict[str, Dimension]:
    """What is measured in CPU time, by name."""
    return {
        "messages": Dimension("messages in one stream", 10_000, messages, streaming, 1.25, rounds=1),
        "producers": Dimension("producers", 1, 10_000, producing, 1.5),
        "queues": Dimension("queues", 100, 10_000, queueing, 1.5),
        "held": Dimension("messages held, collector frozen", 100, 1_000_000, holding, 1.3),
    }


def grown(name: str, one: Dimension, url: str) -> Finding:
    """Interleaved rounds of few and many; the ratio of the medians."""
    few: list[float] = []
    many: list[float] = []
    _cost(one.load, url, one.few)  # for warming up
    for _ in range(one.rounds):
        few += [_cost(one.load, url, one.few) for _ in range(FEW_ROUNDS)]
        many.append(_cost(one.load, url, one.many))
    ratio = median(many) / median(few)
    text = (
        f"{one.few:,} → {one.many:,} {one.what}: "
        f"{median(few):.2f} → {median(many):.2f} CPU µs a message, {ratio:.2f} ×"
    )
    return Finding(name, text, ratio, one.bound)


def _cost(load: Load, url: str, size: int) -> float:
    gc.collect()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        cost = runner.run(_awaited(load, url, size))
    gc.unfreeze()
    return cost * 1e6


async def _awaited(load: Load, url: str, size: int) -> float:
    return await load(url, size)


def memory(url: str) -> Finding:
    """What we hold for a message that waits."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        beyond, encoded = runner.run(bytes_a_held_message(url))
    text = (
        f"a held message of {HELD_BODY} bytes, {encoded:.0f} encoded: "
        f"{beyond:.0f} bytes beyond that and the caller's Message"
    )
    return Finding("memory", text, beyond, 500.0)


def wakeups(url: str, seconds: float) -> Finding:
    """How often an idle dispatcher wakes the loop."""
    ours = idle_wakeups(url, seconds)
    return Finding("idle", f"{ours} turns of the loop for us in {seconds:g} idle seconds", float(ours), 0.0)


def measure(given: argparse.Namespace) -> list[Finding]:
    """All that was asked for."""
    found: list[Finding] = []
    cpu, other = cores()
    with pinned(cpu), upstream_process(cpu=other) as url:
        checks: dict[str, Callable[[], Finding]] = {
            name: lambda name=name, one=one: grown(name, one, url)  # type: ignore[misc]
            for name, one in dimensions(given.messages).items()
        }
        checks["memory"] = lambda: memory(url)
        checks["idle"] = lambda: wakeups(url, given.idle)
        for name in given.only or checks:
            began = time.monotonic()
            found.append(checks[name]())
            print(f"{found[-1]} ({time.monotonic() - began:.0f} s)", flush=True)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*dimensions(0), "memory", "idle"]
    parser.add_argument("--messages", type=int, default=5_000_000, help="in the long stream")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds (default: %(default)s)")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of {', '.join(names)}")
    given = parser.parse_args(words)
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    spare_collector()  # as the commands do: the collector walks over all lanes and tasks again and again
    return 0 if all(finding.holds for finding in measure(given)) else 1


if __name__ == "__main__":
    sys.exit(main())
