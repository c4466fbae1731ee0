"""What metrics cost: counted against not counted, and a scrape under full load.

Two questions, each answered by rounds that take turns, so that the machine's moods meet both sides:

- *on / off*: the library sends with its histograms as they are, and with histograms that stand still. The
  plain integers beside them, an addition each, are part of what they count and cannot be taken out. Exit 1 if
  the median throughput with metrics is below 0.97 of that without.
- *scraped / left alone*: one core of sidecar takes NDJSON as fast as it can, scraped once a second (15 times
  as often as usual) over HTTP, or not at all. A scrape's own CPU time is measured apart, over many of them:
  its share of a core at one scrape in 15 s is what a throughput cannot show. Exit 1 if that is 1 % or more.

    python -m benchmarks.metrics_cost            # three minutes; the machine must have nothing else to do
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from benchmarks.rows import Configuration, Job
from benchmarks.rows_dispatcher import many, send
from benchmarks.sidecar_load import lines, served
from benchmarks.upstream import TOKEN
from benchmarks.upstream_process import upstream_process
from dispatcher.cli.loop import loop_factory, spare_collector
from dispatcher.core.tally import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.rows import Driver
    from benchmarks.sidecar_load import Served

WAYS: Final = {"send_many": many, "send": send}
MESSAGES: Final = 100_000
LINES: Final = 1_000_000
"""Some three seconds, so that a round has about three scrapes."""
ROUNDS: Final = 15
SCRAPE_EVERY_SECONDS: Final = 1.0
USUAL_SECONDS: Final = 15.0
"""Between two scrapes of a Prometheus with its usual settings."""
SCRAPES: Final = 200
RATIO_LEAST: Final = 0.97
SHARE_MOST: Final = 0.01


class Pair(Struct, frozen=True):
    """Messages a second of rounds that took turns."""

    name: str
    on: Sequence[float]
    off: Sequence[float]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return median(self.on) / median(self.off)

    def __str__(self) -> str:
        ratios = sorted(on / off for on, off in zip(self.on, self.off, strict=True))
        return (
            f"{self.name:28} {median(self.on):>10,.0f} {median(self.off):>10,.0f}   {self.ratio:.3f} "
            f"({ratios[0]:.3f}–{ratios[-1]:.3f})"
        )


class Scrape(Struct, frozen=True):
    """What one costs the sidecar's process."""

    cpu_seconds: float
    size_bytes: int

    @property
    def share(self) -> float:
        """Of one core, at the usual pace."""
        return self.cpu_seconds / USUAL_SECONDS


def cores() -> tuple[int | None, int | None]:
    """The client's and the upstream's, if there are two."""
    found = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (found[0], found[1]) if len(found) > 1 else (None, None)


@contextmanager
def still_histograms() -> Iterator[None]:
    """Histograms that observe nothing, meanwhile."""
    observe = Histogram.observe
    Histogram.observe = _ignore  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Histogram.observe = observe  # type: ignore[method-assign]


def _ignore(_histogram: Histogram, _value: float, _times: int = 1) -> None:
    """Observe nothing."""


# ------------------------------------------------------------------------------------------------ on, off


async def counted(way: str, url: str, rounds: int, messages: int) -> Pair:
    """Rounds of the library with and without its histograms, after one of each that warms up."""
    job = Job(way, "", url, TOKEN, Configuration(), messages, 0)
    on: list[float] = []
    off: list[float] = []
    async with WAYS[way](job) as driver:
        for number in range(rounds + 1):
            turns = (True, False) if number % 2 else (False, True)
            for is_on in turns:
                if is_on:
                    rate = await _rate(driver, messages)
                else:
                    with still_histograms():
                        rate = await _rate(driver, messages)
                if number:
                    (on if is_on else off).append(rate)
    return Pair(f"{way}: counted / not", on, off)


async def _rate(driver: Driver, messages: int) -> float:
    began = time.perf_counter()
    if await driver.send(messages) != messages:
        raise RuntimeError("not everything was confirmed: this is no measurement")
    return messages / (time.perf_counter() - began)


# ---------------------------------------------------------------------------------------------- scrapes


def scrape(server: Served) -> int:
    """One, as Prometheus asks for it: how many bytes came."""
    request = urllib.request.Request(f"{server.admin}/metrics", headers={"Accept": "text/plain"})
    with urllib.request.urlopen(request) as answer:
        return len(answer.read())


@contextmanager
def scraped(server: Served) -> Iterator[None]:
    """At once and then once a second, in another thread."""
    over = threading.Event()
    sizes: list[int] = []

    def work() -> None:
        while not over.is_set():
            sizes.append(scrape(server))
            over.wait(SCRAPE_EVERY_SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if not sizes:
        raise RuntimeError("nothing was scraped in this round: this is no measurement")


def under_load(rounds: int, messages: int) -> tuple[Pair, Scrape]:
    """Rounds of NDJSON to a sidecar that is scraped, or left alone; and what one scrape takes."""
    own, other = cores()
    on: list[float] = []
    off: list[float] = []
    with upstream_process(cpu=other) as upstream, served("sidecar", "uvloop", upstream, own) as server:
        for number in range(rounds + 1):
            for is_on in (True, False) if number % 2 else (False, True):
                rate = _lines_rate(server, upstream, messages, is_scraped=is_on)
                if number:
                    (on if is_on else off).append(rate)
        before, size = server.cpu_seconds(), 0
        for _ in range(SCRAPES):
            size = scrape(server)
        each = (server.cpu_seconds() - before) / SCRAPES
    return Pair("NDJSON: scraped / left alone", on, off), Scrape(each, size)


def _lines_rate(server: Served, upstream: str, messages: int, *, is_scraped: bool) -> float:
    """By the sidecar's own CPU time: whoever writes the lines shares the other core with the upstream."""
    if not is_scraped:
        shot = lines(server, upstream, messages, body_bytes=200)
    else:
        with scraped(server):
            shot = lines(server, upstream, messages, body_bytes=200)
    return messages / shot.cpu_seconds


def measure(rounds: int, messages: int, line_count: int) -> tuple[list[Pair], Scrape]:
    """Everything."""
    own, other = cores()
    affinity = os.sched_getaffinity(0) if own is not None else None
    pairs = []
    with upstream_process(cpu=other) as url:
        if own is not None:
            os.sched_setaffinity(0, {own})
        try:
            spare_collector()
            for way in WAYS:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    pairs.append(runner.run(counted(way, url, rounds, messages)))
        finally:
            if affinity is not None:
                os.sched_setaffinity(0, affinity)
    pair, one = under_load(rounds, line_count)
    return [*pairs, pair], one


def report(pairs: Sequence[Pair], one: Scrape) -> str:
    """The figures."""
    head = f"{'messages a second, medians':28} {'with':>10} {'without':>10}   ratio (least–most)"
    words = (
        f"a scrape: {one.cpu_seconds * 1e3:.2f} ms of the sidecar's core, {one.size_bytes:,} bytes; "
        f"one in {USUAL_SECONDS:g} s: {one.share:.3%} of it, one a second: {one.cpu_seconds:.2%}"
    )
    return "\n".join([head, *map(str, pairs), words])


def judge(pairs: Sequence[Pair], one: Scrape) -> list[str]:
    """What is too dear."""
    found = [
        f"{pair.name}: {pair.ratio:.3f}, allowed is {RATIO_LEAST:g}"
        for pair in pairs
        if pair.ratio < RATIO_LEAST
    ]
    if one.share >= SHARE_MOST:
        found.append(f"a scrape in {USUAL_SECONDS:g} s takes {one.share:.2%}, allowed is {SHARE_MOST:.0%}")
    return found


def main(words: list[str] | None = None) -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="of a round; default: %(default)s")
    parser.add_argument("--lines", type=int, default=LINES, help="of NDJSON; default: %(default)s")
    given = parser.parse_args(words)
    pairs, one = measure(given.rounds, given.messages, given.lines)
    print(report(pairs, one))
    complaints = judge(pairs, one)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
