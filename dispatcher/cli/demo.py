"""`dispatcher demo`: the main job on a local upstream that misbehaves, checked to the last message.

The upstream runs in a process of its own, with faults; 1,000 producers send single messages through one
dispatcher; then every message is looked up in the upstream's own ledger. Exit code 1 if anything was lost,
doubled, mixed up or reordered. `--control` breaks the upstream's deduplication: then the check must fail.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import statistics
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from dispatcher.cli.audit import Audit, Sent, audit
from dispatcher.cli.dev import load_plan
from dispatcher.cli.loop import run_in_loop
from dispatcher.config import Config, TransportSettings
from dispatcher.devserver.client import UpstreamClient
from dispatcher.dispatcher import Dispatcher
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.message import Message
from dispatcher.options import Options

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

MESSAGES: Final = 20_000
MESSAGES_MIN: Final = 100
PRODUCERS: Final = 1_000
QUEUES: Final = 4
GROUP: Final = "demo-subscribers"
SUBSCRIBERS: Final = {name: f"https://example.com/subscriber/{name}" for name in ("a", "b")}
POISON: Final = "POISON-BODY"
POISON_EVERY: Final = 2_000
FAULTS: Final = (
    "latency=lognormal(20ms,0.4) throttle_burst=0.005 throttle_bare=0.005 unavailable=0.003 "
    "error_before=0.01 error_after=0.015 bad_gateway=0.005 gateway_timeout=0.01 disconnect_before=0.01 "
    "disconnect_after=0.015 hang_after=0.002 truncate=0.01 unparsable=0.005 wrong_length=0.005 drip=0.01 "
    "error_endpoint=0.01 "
    f"burst_reset=300ms drip_over=300ms poison_400={POISON}"
)
ATTEMPT_TIMEOUT: Final = 2.0
STOP_SECONDS: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher demo`."""
    add = parser.add_argument
    add("--messages", type=int, default=MESSAGES, metavar="N", help="how many to send (default: %(default)s)")
    add("--seed", type=int, default=1, metavar="N", help="the same faults for the same N (default: 1)")
    add("--faults", default=FAULTS, metavar="PLAN", help="what goes wrong, as for `dispatcher dev`")
    add(
        "--control",
        action="store_true",
        help="an upstream that forgets deduplication ids at once: duplicates must be found, exit code 1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; returns its exit code. Raises `ConfigError`."""
    if arguments.messages < MESSAGES_MIN:
        raise ConfigError("messages", arguments.messages, f"allowed are {MESSAGES_MIN} and more")
    load_plan(arguments.faults)  # a typo is told before anything starts
    return run_in_loop(_demo(arguments))


async def _demo(arguments: argparse.Namespace) -> int:
    token = secrets.token_hex(8)
    window = 0 if arguments.control else 600
    async with _upstream(token, arguments.faults, arguments.seed, window) as url:
        print(f"local upstream with faults at {url}, in its own process")
        async with UpstreamClient(url, token) as client:
            await client.create_group(GROUP, SUBSCRIBERS)
        sent = _messages(arguments.messages)
        config = Config(token=token, url=url, transport=TransportSettings(attempt_timeout=ATTEMPT_TIMEOUT))
        loop = asyncio.get_running_loop()
        async with Dispatcher(config, name="demo") as dispatcher:
            progress = asyncio.create_task(_progress(dispatcher, len(sent)))
            began = loop.time()
            await _produce(dispatcher, sent)
            seconds = loop.time() - began
            retried = sum(dispatcher.statistics().retried.values())
            progress.cancel()
        async with UpstreamClient(url, token) as client:
            summary, rows = await client.summary(), await client.accepted()
    found = audit(sent, rows)
    _print_table(found, sent, summary, seconds, retried)
    return _verdict(found, sent)


def _messages(number: int) -> list[Sent]:
    """URLs, a URL group, FIFO queues, unicode, bytes that are no text, and some poison."""
    options = Options(retries=3, forward={"X-Demo": "1"})
    places = [0] * QUEUES
    sent = []
    for index in range(number):
        place = 0
        kind = index % 20
        if index % POISON_EVERY == POISON_EVERY // 2:
            message = Message("https://example.com/poisoned", f"{index} {POISON}")
        elif index % 400 == 7:
            message = Message("https://example.com/binary", b"\xff\xfe" + index.to_bytes(4, "big"))
        elif kind < 6:
            queue = index % QUEUES
            place = places[queue]
            places[queue] += 1
            message = Message("https://example.com/ordered", f"{index}", queue=f"demo-{queue}")
        elif kind < 8:
            message = Message(GROUP, f'{{"event": {index}}}', options=options)
        elif kind < 10:
            message = Message("https://example.com/unicode", f"{index} — grüße, 世界, 🎉")
        else:
            message = Message(
                f"https://example.com/hooks/{index % 7}", f'{{"order": {index}}}', options=options
            )
        sent.append(Sent(message, place))
    return sent


async def _produce(dispatcher: Dispatcher, sent: list[Sent]) -> None:
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
        for _ in range(PRODUCERS):
            group.create_task(produce())


async def _progress(dispatcher: Dispatcher, total: int) -> None:
    if not sys.stderr.isatty():
        return
    try:
        while True:
            now = dispatcher.statistics()
            print(
                f"\r{now.delivered:>8,} of {total:,} delivered, {now.failed} failed, {now.held:>5,} held, "
                f"{now.batches_in_flight:>2} requests in flight ",
                end="",
                file=sys.stderr,
                flush=True,
            )
            await asyncio.sleep(0.1)
    finally:
        print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------ the upstream


@asynccontextmanager
async def _upstream(token: str, faults: str, seed: int, window: int) -> AsyncIterator[str]:
    """`dispatcher dev` in a process of its own; gives its URL."""
    command = [sys.executable, "-m", "dispatcher", "dev", "--port", "0", "--faults", faults]
    command += ["--seed", str(seed), "--deduplication-window", str(window)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "QSTASH_TOKEN": token}
    )
    try:
        yield await _url_of(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _url_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        if found := re.search(rb"QSTASH_URL=(\S+)", line):
            return found[1].decode()
    raise DispatcherError(f"the local upstream did not start (exit code {await process.wait()})")


# -------------------------------------------------------------------------------------------- the report


def _print_table(
    found: Audit, sent: list[Sent], summary: dict[str, Any], seconds: float, retried: int
) -> None:
    requests = sum(sum(codes.values()) for kind, codes in summary["requests"].items() if kind in _SENDING)
    latencies = sorted(each.seconds for each in sent)
    cuts = statistics.quantiles(latencies, n=100)
    rows: list[tuple[str, str]] = [
        ("sent", f"{len(sent):,}"),
        ("accepted upstream", f"{summary['accepted']:,}"),
        ("delivered", f"{found.delivered:,}"),
        *((f"rejected ({reason})", f"{number:,}") for reason, number in found.rejected.items()),
        *((f"failed ({name})", f"{number:,}") for name, number in found.failed.items()),
        ("lost", f"{found.lost:,}"),
        ("duplicated", f"{found.duplicated:,}"),
        ("out of order in a queue", f"{found.out_of_order:,}"),
        ("receipts of another message", f"{found.misattributed:,}"),
        ("accepted though reported as failed", f"{found.denied:,}"),
        ("callers never answered", f"{found.unheard:,}"),
        ("faults injected", f"{sum(summary['faults'].values()):,}"),
        ("requests", f"{requests:,}"),
        ("messages a request", f"{len(sent) / max(1, requests):.1f}"),
        ("messages sent again", f"{retried:,}"),
        ("messages a second", f"{len(sent) / seconds:,.0f}"),
        ("latency p50 / p99", f"{cuts[49] * 1000:,.0f} ms / {cuts[98] * 1000:,.0f} ms"),
        ("seconds", f"{seconds:.1f}"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value:>18}")


_SENDING: Final = frozenset({"batch", "publish", "enqueue"})


def _verdict(found: Audit, sent: list[Sent]) -> int:
    poisoned = sum(1 for each in sent if POISON in str(each.message.body))
    rejected = sum(found.rejected.values())
    if found.holds and rejected == poisoned:
        print(
            f"every message accounted for: nothing lost, nothing doubled; {poisoned} poisoned ones rejected"
        )
        return 0
    print("the check FAILED: see the counts above that ought to be 0", file=sys.stderr)
    return 1
