"""Deadlines: what is past its own settles, wherever it is. Called by `engine` only, which owns the entries.

One scalar stands for every deadline (an index over all entries would keep settled ones alive for their whole
deadline): `Engine.next_expiry` is a lower bound, and looking costs nothing until it passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.core import failures
from dispatcher.core.batch import SETTLED, Entry, Run
from dispatcher.errors import DeadlineExceeded

if TYPE_CHECKING:
    from dispatcher.core.engine import Engine

SWEEP_SECONDS_PER_ENTRY: Final = 2e-6
"""Looking for expired entries costs about 0.1 µs each; at most a twentieth of the time goes into it."""


def expire(engine: Engine, now: float) -> None:
    """Settle what is past its deadline, and learn when the next one will be."""
    earliest = float("inf")
    held = 0
    _open_expired(engine, now)
    for each in list(engine.holdings()):
        held += 1
        if isinstance(each, Entry) and each.deadline <= now:
            _settle_expired(engine, each, now)
        elif each.deadline < earliest:
            earliest = each.deadline
    for batch in engine.out.values():
        if batch.run is None and not batch.has_expired:
            batch.has_expired = any(entry.state == SETTLED for entry in batch.entries)
    engine.next_expiry = max(earliest, now + held * SWEEP_SECONDS_PER_ENTRY)


def _open_expired(engine: Engine, now: float) -> None:
    """Runs past their deadline settle by the message."""
    if any(isinstance(each, Run) and each.deadline <= now for each in engine.lanes.holdings()):
        engine.lanes.open_runs()
    for batch in engine.out.values():
        if batch.run is not None and batch.run.deadline <= now:
            batch.open()


def _settle_expired(engine: Engine, entry: Entry, now: float) -> None:
    refusal = engine.gate.refusal
    if refusal is not None:
        engine.settle(entry, failures.halted(entry, refusal, now), "halted")
        return
    outcome = failures.expired(entry, now)
    is_late = isinstance(outcome, DeadlineExceeded)
    engine.settle(entry, outcome, "deadline_exceeded" if is_late else "unknown")
