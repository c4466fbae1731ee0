"""`dispatcher demo`: the main job on a local upstream that misbehaves, checked to the last message.

The upstream runs in a process of its own, with faults; thousands of producers send single messages through
one dispatcher; then every message is looked up in the upstream's own ledger. Exit code 1 if anything was
lost, doubled, mixed up or reordered. `--chaos` adds a proxy that breaks connections, and kills the upstream
again and again. `--control` breaks the upstream's deduplication: then the check must fail.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dispatcher.cli._demo_messages import GROUP, POISON, POISON_500, SENDS_POISON_500, SUBSCRIBERS, build
from dispatcher.cli._demo_report import Facts, print_table, print_verdict, show_progress
from dispatcher.cli._demo_upstream import Proxy, Upstream
from dispatcher.cli._demo_witness import Witness
from dispatcher.cli.audit import Sent, audit
from dispatcher.cli.dev import load_plan
from dispatcher.cli.loop import run_in_loop
from dispatcher.config import Config, RetrySettings, TransportSettings
from dispatcher.devserver.client import UpstreamClient
from dispatcher.dispatcher import Dispatcher
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.transport import HTTPTransport

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Coroutine

MESSAGES: Final = 20_000
MESSAGES_CHAOS: Final = 100_000
MESSAGES_MIN: Final = 100
PRODUCERS: Final = 1_000
PRODUCERS_CHAOS: Final = 5_000
WINDOW: Final = 600.0
FAULTS: Final = (
    "latency=lognormal(20ms,0.4) throttle_burst=0.005 throttle_bare=0.005 unavailable=0.003 "
    "error_before=0.01 error_after=0.015 bad_gateway=0.005 gateway_timeout=0.01 disconnect_before=0.01 "
    "disconnect_after=0.015 hang_after=0.002 truncate=0.01 unparsable=0.005 wrong_length=0.005 drip=0.01 "
    "error_endpoint=0.01 "
    f"burst_reset=300ms drip_over=300ms poison_400={POISON}"
)
FAULTS_CHAOS: Final = (
    "latency=lognormal(10ms,0.5) throttle_burst=0.003 throttle_daily=0.001 throttle_bare=0.004 "
    "unavailable=0.002 error_before=0.01 error_after=0.01 bad_gateway=0.005 gateway_timeout=0.005 "
    "disconnect_before=0.01 disconnect_after=0.01 hang_before=0.002 hang_after=0.002 truncate=0.01 "
    "unparsable=0.005 wrong_length=0.005 drip=0.01 error_unqueued=0.0005 error_endpoint=0.01 "
    "burst_reset=300ms daily_reset=1s drip_over=200ms "
    f"poison_400={POISON}" + (f" poison_500={POISON_500}" if SENDS_POISON_500 else "")
)
"""Every kind of fault but a refused token, which would hold everything for half a minute at a time.

Error entries spare the queues: there it is the service itself that breaks the order.
"""
PROXY_CHAOS: Final = (
    "latency=exponential(1ms) refuse=0.01 stall=0.004 hang=0.004 reset=0.02 half_close=0.01 truncate=0.01 "
    "drip=0.01 reuse_reset=0.01 reuse_reset_after=0.01 stall_for=1200ms drip_over=200ms"
)
"""A stall outlasts an attempt: its request arrives after it was given up, and perhaps sent again."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DRAIN_WITHIN: Final = 1.0
"""Only what was interrupted has anything to drain."""
ATTEMPT_TIMEOUT: Final = 2.0
ATTEMPT_TIMEOUT_CHAOS: Final = 1.0
RETRY: Final = RetrySettings()
RETRY_CHAOS: Final = RetrySettings(max_delay=1.0)
"""The upstream is away for less than a second at a time: nothing is gained by waiting for longer."""


@dataclass(frozen=True, slots=True)
class Show:
    """What one run does."""

    messages: list[Sent] = field(repr=False)
    faults: str
    proxy: str | None
    """The plan of the chaos proxy; with one, the upstream is killed again and again, too."""
    seed: int
    window: float
    deduplication: str
    producers: int
    attempt_timeout: float
    retry: RetrySettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher demo`."""
    add = parser.add_argument
    add(
        "--messages",
        type=int,
        metavar="N",
        help=f"how many to send (default: {MESSAGES}, with --chaos {MESSAGES_CHAOS})",
    )
    add("--seed", type=int, default=1, metavar="N", help="the same faults for the same N (default: 1)")
    add("--faults", metavar="PLAN", help="what goes wrong, as for `dispatcher dev`")
    add(
        "--chaos",
        action="store_true",
        help="every fault, a proxy that breaks connections, an upstream killed and restarted all the time",
    )
    add(
        "--deduplication",
        choices=("auto", "off"),
        default="auto",
        help="off: nothing is repeated whose outcome is unknown; as many must fail so as answers were lost",
    )
    add(
        "--control",
        action="store_true",
        help="an upstream that forgets deduplication ids at once: duplicates must be found, exit code 1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; returns its exit code. Raises `ConfigError`."""
    return run_in_loop(_until_signalled(_demo(_show(arguments))))


async def _until_signalled(demo: Coroutine[None, None, int]) -> int:
    """Run it to its end, or until the first signal; then its processes are ended, and nothing is checked."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(demo)
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if not received:  # a second one would interrupt what ends the processes
            received.append(number)
            logging.getLogger("dispatcher").setLevel(logging.CRITICAL)  # what is given up is no news
            running.cancel()

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
            loop.add_signal_handler(number, on_signal, number)
    try:
        return await running
    except asyncio.CancelledError:
        if not received:
            raise
    print(f"dispatcher demo: {received[0].name}: stopped, and nothing was checked", file=sys.stderr)
    return 128 + received[0]


def _show(arguments: argparse.Namespace) -> Show:
    """What was asked for; a typo is told before anything starts."""
    chaos, off = arguments.chaos, arguments.deduplication == "off"
    number = arguments.messages
    if number is None:
        number = MESSAGES_CHAOS if chaos else MESSAGES
    if number < MESSAGES_MIN:
        raise ConfigError("messages", number, f"allowed are {MESSAGES_MIN} and more")
    if off and arguments.control:
        raise ConfigError("control", "on", "without deduplication nothing is doubled: leave one of the two")
    faults = arguments.faults
    if faults is None:
        faults = FAULTS_CHAOS if chaos else FAULTS
    markers = load_plan(faults).base.markers
    # Without ids a refused batch is not searched, and its neighbours would fail with the poisoned one.
    with_400 = not off and markers.get("poison_400") == POISON
    with_500 = chaos and not off and not arguments.control and markers.get("poison_500") == POISON_500
    messages = build(number, poison=with_400, poison_500=with_500)
    return Show(
        messages=messages,
        faults=faults,
        proxy=PROXY_CHAOS if chaos else None,
        seed=arguments.seed,
        window=0.0 if arguments.control else WINDOW,
        deduplication=arguments.deduplication,
        producers=PRODUCERS_CHAOS if chaos else PRODUCERS,
        attempt_timeout=ATTEMPT_TIMEOUT_CHAOS if chaos else ATTEMPT_TIMEOUT,
        retry=RETRY_CHAOS if chaos else RETRY,
    )


async def _demo(show: Show) -> int:
    # That the service asks to wait, is away and there again, is what was asked for; what ends all is news.
    logging.getLogger("dispatcher").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as directory:
        state = Path(directory) / "state" if show.proxy is not None else None
        upstream = Upstream(
            secrets.token_hex(8), show.faults, seed=show.seed, window=show.window, state=state
        )
        await upstream.start()
        try:
            async with UpstreamClient(upstream.url, upstream.token) as client:
                await client.create_group(GROUP, SUBSCRIBERS)
            facts = await _send(show, upstream)
            await upstream.count()
            async with UpstreamClient(upstream.url, upstream.token) as client:
                rows = await client.accepted()
        finally:
            await upstream.stop()
    facts.accepted, facts.requests = len(rows), upstream.requests
    facts.faults, facts.kills = upstream.faults, upstream.kills
    lost = facts.lost_answers if show.deduplication == "off" else 0
    found = audit(show.messages, rows, answers_lost=lost)
    print_table(found, show.messages, facts)
    return print_verdict(found, show.messages)


async def _send(show: Show, upstream: Upstream) -> Facts:
    """Deliver everything under the faults asked for; when it returns, nothing can arrive any more."""
    async with _proxied(show, upstream) as proxy:
        config = Config(
            token=upstream.token,
            url=upstream.url if proxy is None else proxy.url,
            deduplication="off" if show.deduplication == "off" else "auto",
            drain_within=DRAIN_WITHIN,
            retry=show.retry,
            transport=TransportSettings(attempt_timeout=show.attempt_timeout),
        )
        witness = Witness(HTTPTransport(config))
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with Dispatcher(config, name="demo", transport=witness) as dispatcher:
            progress = asyncio.create_task(show_progress(dispatcher, len(show.messages)))
            try:
                await _produce(dispatcher, show.messages, show.producers)
            finally:
                progress.cancel()
            seconds = loop.time() - began
            retried = sum(dispatcher.statistics().retried.values())
    return Facts(
        seconds=seconds,
        retried=retried,
        lost_answers=witness.lost,
        proxy=None if proxy is None else proxy.counts,
    )


@asynccontextmanager
async def _proxied(show: Show, upstream: Upstream) -> AsyncIterator[Proxy | None]:
    """The proxy before an upstream that dies all the time; at the end it lives, and the proxy is gone."""
    print(f"local upstream with faults at {upstream.url}, in its own process", flush=True)
    if show.proxy is None:
        yield None
        return
    proxy = await Proxy.start(upstream.url, show.proxy, show.seed)
    print(f"a proxy that breaks connections at {proxy.url}; the upstream is killed all the time", flush=True)
    enough = asyncio.Event()
    rng = random.Random(f"{show.seed}:kills")
    killing = asyncio.create_task(upstream.die_again_and_again(rng, enough))
    try:
        yield proxy
    finally:
        enough.set()
        await asyncio.gather(killing, proxy.stop())


async def _produce(dispatcher: Dispatcher, sent: list[Sent], producers: int) -> None:
    """Every producer takes the next message, sends it, waits for its receipt, and goes on."""
    loop = asyncio.get_running_loop()
    source = iter(sent)

    async def produce() -> None:
        for each in source:
            began = loop.time()
            try:
                each.outcome = await dispatcher.send(each.message)
            except DispatcherError as error:
                each.outcome = error
            each.seconds = loop.time() - began

    async with asyncio.TaskGroup() as group:
        for _ in range(producers):
            group.create_task(produce())
