"""What the demonstration prints: its progress, its table, its verdict. Called by `demo`."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED

if TYPE_CHECKING:
    from dispatcher.cli.audit import Audit, Sent
    from dispatcher.dispatcher import Dispatcher

NO_FAULTS: Final = frozenset({"connections", "exchanges"})
"""What the proxy counts besides faults."""


class Facts(Struct, kw_only=True):
    """What is known of one run besides its audit."""

    seconds: float
    retried: int
    lost_answers: int
    proxy: Counter[str] | None
    """What the proxy injected, if there was one."""
    accepted: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    """How often the upstream was killed; with any, requests and faults are what was counted in between."""


async def show_progress(dispatcher: Dispatcher, total: int) -> None:
    """One line on a terminal, until cancelled."""
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


def print_table(found: Audit, sent: list[Sent], facts: Facts) -> None:
    """Every count of the run."""
    rows = [*_outcomes(found, sent, facts), *_damage(found), *_chaos(facts), *_effort(sent, facts)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value:>18}")


def _outcomes(found: Audit, sent: list[Sent], facts: Facts) -> list[tuple[str, str]]:
    rows = [
        ("sent", f"{len(sent):,}"),
        ("accepted upstream", f"{facts.accepted:,}"),
        ("delivered", f"{found.delivered:,}"),
        *((f"rejected ({reason})", f"{number:,}") for reason, number in found.rejected.items()),
        *((f"failed ({name})", f"{number:,}") for name, number in found.failed.items()),
    ]
    if found.answers_lost or found.unknown:
        rows += [
            ("failed as unknown", f"{found.unknown:,}"),
            ("  of them accepted, each once", f"{found.unknown_accepted:,}"),
            ("  of them not accepted", f"{found.unknown - found.unknown_accepted:,}"),
            ("messages that must be unknown", f"{found.answers_lost:,}"),
        ]
    return rows


def _damage(found: Audit) -> list[tuple[str, str]]:
    return [
        ("lost", f"{found.lost:,}"),
        ("duplicated", f"{found.duplicated:,}"),
        ("out of order in a queue", f"{found.out_of_order:,}"),
        ("receipts of another message", f"{found.misattributed:,}"),
        ("accepted though reported as failed", f"{found.denied:,}"),
        ("callers never answered", f"{found.unheard:,}"),
    ]


def _chaos(facts: Facts) -> list[tuple[str, str]]:
    rows = [("faults injected", f"{sum(facts.faults.values()):,}")]
    if facts.proxy is not None:
        injected = sum(number for name, number in facts.proxy.items() if name not in NO_FAULTS)
        rows += [
            ("connections broken by the proxy", f"{injected:,} of {facts.proxy['connections']:,}"),
            ("upstream killed and restarted", f"{facts.kills:,}"),
        ]
    return [*rows, ("answers lost, counted by message", f"{facts.lost_answers:,}")]


def _effort(sent: list[Sent], facts: Facts) -> list[tuple[str, str]]:
    cuts = statistics.quantiles((each.seconds for each in sent), n=100)
    return [
        ("requests", f"{facts.requests:,}"),
        ("messages a request", f"{len(sent) / max(1, facts.requests):.1f}"),
        ("messages sent again", f"{facts.retried:,}"),
        ("messages a second", f"{len(sent) / facts.seconds:,.0f}"),
        ("latency p50 / p99", f"{cuts[49] * 1000:,.0f} ms / {cuts[98] * 1000:,.0f} ms"),
        ("seconds", f"{facts.seconds:.1f}"),
    ]


def print_verdict(found: Audit, sent: list[Sent]) -> int:
    """The last line; returns the exit code."""
    poisoned = sum(each.is_poisoned for each in sent)
    if not found.holds or sum(found.rejected.values()) != poisoned:
        print("the check FAILED: see the counts above that ought to be 0", file=sys.stderr)
        return EXIT_UNDELIVERED
    unknown = f"{found.unknown:,} reported as unknown, one for each lost answer; " if found.unknown else ""
    print(
        f"every message accounted for: nothing lost, nothing doubled; {unknown}{poisoned} poisoned ones rejected"
    )
    return EXIT_DONE
