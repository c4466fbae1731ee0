"""The adaptive limit over real sockets: what it delivers beside every fixed limit.

    python -m benchmarks.capacity [--seconds 6] [--rounds 3]

`dispatcher dev` in a process of its own works on 20 requests at once, 30 ms and 0.5 ms a message each, and
answers one more with a bare 429; nothing tells the dispatcher of the twenty. Producers keep its room full.
Every limit runs in turn, `--rounds` times over; the Markdown table has the medians. Exit 1 if the adaptive
limit delivers less than 0.9 of what the best fixed one does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.send_memory import TOKEN, local_upstream
from dispatcher import Config, Dispatcher, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

FAULTS: Final = "capacity=20 work=30ms work_per_item=500us"
LIMITS: Final = (None, 10, 16, 18, 20, 21, 22, 24, 32, 64)
URL: Final = "https://example.com/hook"
WARM_UP: Final = 1.5
"""Seconds not counted: connections are opened and the limit is found (the simulation shows how fast)."""
BATCH: Final = 100
PRODUCERS: Final = 100
BEST_SHARE: Final = 0.9


class Figures(NamedTuple):
    """Of one run."""

    rate: float
    """Messages delivered a second."""
    refused: float
    """Share of the requests."""
    p99: float
    """Seconds from handing in a hundred messages to their last receipt."""


async def saturate(url: str, limit: int | None, seconds: float) -> Figures:
    """Keep the room full for so long."""
    fixed: dict[str, Any] = {}
    if limit is not None:
        fixed = {"limit_mode": "fixed", "limit_max_in_flight": limit}
    loop = asyncio.get_running_loop()
    taken: list[tuple[float, float]] = []
    async with Dispatcher(Config.load(env={"QSTASH_TOKEN": TOKEN, "QSTASH_URL": url}, **fixed)) as dispatcher:
        ends_at = loop.time() + seconds

        async def produce() -> None:
            while (at := loop.time()) < ends_at:
                deliveries = [await dispatcher.put(Message(URL, body="x" * 100)) for _ in range(BATCH)]
                for delivery in deliveries:
                    await delivery
                taken.append((loop.time(), loop.time() - at))

        await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
        requests = dispatcher.statistics().requests
    counted = sorted(took for at, took in taken if ends_at - seconds + WARM_UP <= at < ends_at)
    refused = requests.get("429", 0) / sum(requests.values())
    return Figures(BATCH * len(counted) / (seconds - WARM_UP), refused, counted[int(len(counted) * 0.99)])


def measure(url: str, seconds: float, rounds: int) -> dict[int | None, Figures]:
    """Every limit in turn, several times over; the medians."""
    runs: dict[int | None, list[Figures]] = {limit: [] for limit in LIMITS}
    for _ in range(rounds):
        for limit in LIMITS:
            runs[limit].append(asyncio.run(saturate(url, limit, seconds)))
    return {limit: _medians(found) for limit, found in runs.items()}


def _medians(found: Sequence[Figures]) -> Figures:
    return Figures(*(median(column) for column in zip(*found, strict=True)))


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each limit (default: %(default)s)")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        local_upstream(Path(directory) / "port", "--faults", FAULTS) as url,
    ):
        found = measure(url, given.seconds, given.rounds)
    best = max(figures.rate for limit, figures in found.items() if limit is not None)
    print("| limit | messages/s | of the best fixed | requests refused | p99 of a hundred |")
    print("|---|---:|---:|---:|---:|")
    for limit, each in found.items():
        name = "adaptive" if limit is None else f"fixed {limit}"
        share, refused = f"{each.rate / best:.2f}", f"{each.refused:.1%}"
        print(f"| {name} | {each.rate:,.0f} | {share} | {refused} | {each.p99:.2f} s |")
    return 0 if found[None].rate >= BEST_SHARE * best else 1


if __name__ == "__main__":
    sys.exit(main())
