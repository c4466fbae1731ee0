"""How fast `BlockingDispatcher` is in many threads, against `Dispatcher` in one event loop.

Starts `dispatcher dev` as a process of its own. In each round `Dispatcher` puts `--messages` messages and
awaits all their deliveries; then `--threads` threads put as many together through a `BlockingDispatcher`, and
each waits for all of its own. The rounds alternate in one run and one process, after one round of each that
is not counted. Prints the medians of messages a second and of this process's CPU time a message, and their
ratio. Exit 1 if a receipt is missing or the ratio is below `--min-ratio`.

    python -m benchmarks.blocking
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.send_memory import TOKEN, local_upstream
from dispatcher import BlockingDispatcher, Config, Dispatcher, Message

if TYPE_CHECKING:
    from collections.abc import Callable

URL: Final = "https://example.com/hook"


class Round(NamedTuple):
    """One measurement."""

    rate: float
    """Messages a second."""
    cpu_us: float
    """Microseconds of this process's CPU time, a message."""


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000, help="a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="of each (default: %(default)s)")
    parser.add_argument("--body-bytes", type=int, default=100, help="of each message (default: %(default)s)")
    parser.add_argument("--min-ratio", type=float, default=0.5, help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, local_upstream(Path(directory) / "port") as url:
        return measure(arguments, url)


def measure(arguments: argparse.Namespace, url: str) -> int:
    """All rounds against one upstream."""
    config = Config(token=TOKEN, url=url)
    body = "x" * arguments.body_bytes
    ways: dict[str, Callable[[], int]] = {
        "Dispatcher.put, one task": lambda: asyncio.run(by_task(config, arguments.messages, body)),
        f"BlockingDispatcher.put, {arguments.threads} threads": lambda: by_threads(
            config, arguments.messages, arguments.threads, body
        ),
    }
    rounds: dict[str, list[Round]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, way in ways.items():
            one = timed(way, arguments.messages)
            ask(url, "reset")  # what was accepted would make it slower from round to round
            if number:  # the first is for warming up
                rounds[name].append(one)
    for name, ones in rounds.items():
        rates = [one.rate for one in ones]
        cpu = statistics.median(one.cpu_us for one in ones)
        print(
            f"{name:36} {statistics.median(rates):>9,.0f} msg/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"{cpu:.1f} µs CPU a message"
        )
    asynchronous, threaded = (statistics.median(one.rate for one in ones) for ones in rounds.values())
    print(f"ratio of the medians: {threaded / asynchronous:.2f}")
    return 0 if threaded / asynchronous >= arguments.min_ratio else 1


def timed(way: Callable[[], int], messages: int) -> Round:
    """Run one way, from the opening of its dispatcher to the end of its drain."""
    began, cpu = time.perf_counter(), time.process_time()
    receipts = way()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if receipts != messages:
        sys.exit(f"{receipts:,} different receipts for {messages:,} messages")
    return Round(messages / seconds, cpu / messages * 1e6)


async def by_task(config: Config, messages: int, body: str) -> int:
    """Put all, then await all; how many different receipts."""
    async with Dispatcher(config) as dispatcher:
        deliveries = [await dispatcher.put(Message(URL, body)) for _ in range(messages)]
        return len({(await delivery).message_id for delivery in deliveries})


def by_threads(config: Config, messages: int, threads: int, body: str) -> int:
    """The same, shared out to threads."""
    shares = [messages // threads + (number < messages % threads) for number in range(threads)]

    def work(share: int) -> set[str | None]:
        deliveries = [dispatcher.put(Message(URL, body)) for _ in range(share)]
        return {delivery.result().message_id for delivery in deliveries}

    with BlockingDispatcher(config) as dispatcher, ThreadPoolExecutor(threads) as pool:
        return len(set().union(*pool.map(work, shares)))


def ask(url: str, what: str) -> None:
    """One request to the local upstream's inspection."""
    request = urllib.request.Request(f"{url}/dispatcher-dev/{what}", method="POST")
    with urllib.request.urlopen(request):
        pass


if __name__ == "__main__":
    raise SystemExit(main())
