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
    from collections.abc import Iterator

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
    damage = [(name, f"{number:,}") for name, number in _damage(found)]
    rows = [*_outcomes(found, sent, facts), *damage, *_chaos(facts), *_effort(sent, facts)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value:>18}")


def _outcomes(found: Audit, sent: list[Sent], facts: Facts) -> list[tuple[str, str]]:
    rows = [
        ("sent", f"{len(sent):,}"),
        ("accepted upstream", f"{facts.accepted:,}"),
        ("delivered", f"{found.delivered:,}"),
        *((_refused(words), f"{number:,}") for words, number in found.rejected.items()),
        *((f"failed ({name})", f"{number:,}") for name, number in found.failed.items()),
    ]
    if found.answers_lost or found.unknown:
        rows += [
            ("failed as unknown", f"{found.unknown:,}"),
            ("  of them accepted, each once", f"{found.unknown_accepted:,}"),
            ("  of them not accepted", f"{found.unknown - found.unknown_accepted:,}"),
        ]
    return rows


def _refused(words: str) -> str:
    """A status and the service's words; or, of a body that only ever drew a 500, the error's name."""
    return f"rejected ({words})" if words[0].isdigit() else f"given up ({words})"


def _damage(found: Audit) -> list[tuple[str, int]]:
    """The counts that ought to be 0."""
    return [
        ("lost", found.lost),
        ("duplicated", found.duplicated),
        ("out of order in a queue", found.out_of_order),
        ("receipts of another message", found.misattributed),
        ("accepted though reported as failed", found.denied),
        ("callers never answered", found.unheard),
    ]


def _chaos(facts: Facts) -> list[tuple[str, str]]:
    rows = [("faults injected", f"{sum(facts.faults.values()):,}")]
    if facts.proxy is not None:
        injected = sum(number for name, number in facts.proxy.items() if name not in NO_FAULTS)
        rows += [
            ("faults injected by the proxy", f"{injected:,}"),
            ("upstream killed and restarted", f"{facts.kills:,}"),
        ]
    return [*rows, ("messages whose answer was lost", f"{facts.lost_answers:,}")]


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
    wrong = list(_complaints(found, poisoned))
    if wrong or not found.holds:
        print(f"the check FAILED: {', '.join(wrong)}", file=sys.stderr)
        return EXIT_UNDELIVERED
    unknown = f"{found.unknown:,} reported as unknown, one for each lost answer; " if found.unknown else ""
    words = "every message accounted for: nothing lost, nothing doubled"
    print(f"{words}; {unknown}{poisoned} poisoned ones rejected")
    return EXIT_DONE


def _complaints(found: Audit, poisoned: int) -> Iterator[str]:
    """Every count that is not what it ought to be."""
    yield from (f"{number:,} failed ({name})" for name, number in found.failed.items())
    named = [
        *_damage(found),
        ("poisoned ones delivered", found.cured),
        ("accepted that nobody sent", found.foreign),
    ]
    yield from (f"{number:,} {name}" for name, number in named if number)
    rejected = sum(found.rejected.values())
    if rejected != poisoned:
        yield f"{rejected:,} of {poisoned:,} poisoned ones rejected"
    if found.unknown != found.answers_lost:
        yield f"{found.unknown:,} reported as unknown where {found.answers_lost:,} answers were lost"
