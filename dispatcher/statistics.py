"""Frozen snapshots of a dispatcher: what it holds and what it has done, and how its drain went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatcher.errors import DeliveryError, MessageRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dispatcher.core.engine import Engine
    from dispatcher.delivery import Delivery


@dataclass(frozen=True, slots=True)
class Statistics:
    """A dispatcher at one instant; the counts run from its start."""

    state: str
    """new, open, draining, closed; or, while open, what keeps everything back: throttled or quota (the
    service asked us to wait), outage (nobody is there), halted (it refuses the token or URL), refused (the
    same at first contact)."""
    reason: str
    """The service's words for a halt or a refusal, else empty."""
    paused_for: float
    """Seconds until the next request may try, while something keeps everything back."""
    stopped_queues: tuple[str, ...]
    """Queues that stopped at a failed message and wait for `resume`."""
    held: int
    """Messages admitted and not settled."""
    held_bytes: int
    waiting_for_room: int
    """Callers of `put` that wait for room."""
    by_state: Mapping[str, int]
    """Held messages: waiting, in_flight, backing_off, isolated."""
    batches_in_flight: int
    limit: int
    """Batches that may be in flight."""
    retry_budget: float
    """Tokens left for retries; `inf` without a budget."""
    cuts: Mapping[str, int]
    """Times that the limit was lowered, by why."""
    admitted: int
    finished: Mapping[str, int]
    """Settled messages by outcome; `delivered` is the good one."""
    retried: Mapping[str, int]
    """Messages put back for another attempt, by cause."""
    requests: Mapping[str, int]
    """Requests by status code or kind of failure."""
    batches: Mapping[str, int]
    """Requests by why the batch left."""
    isolations: int
    order_violations: int
    unawaited_failures: int

    @property
    def delivered(self) -> int:
        """Messages the service confirmed."""
        return self.finished.get("delivered", 0)

    @property
    def failed(self) -> int:
        """Messages settled otherwise, withdrawn ones not counted."""
        return sum(self.finished.values()) - self.delivered - self.finished.get("withdrawn", 0)


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of what was held when the drain began."""

    delivered: int = 0
    rejected: int = 0
    not_sent: int = 0
    not_accepted: int = 0
    unknown: int = 0
    withdrawn: int = 0
    seconds: float = 0.0
    failures: tuple[DeliveryError, ...] = field(default=(), repr=False)
    """The errors of what was not delivered, each with its message and deduplication id."""

    @property
    def is_clean(self) -> bool:
        """Everything held was delivered."""
        return not self.failures


def report(settled: Iterable[Delivery], delivered: int, seconds: float) -> DrainReport:
    """Sum up what settled during a drain, and so many others that were delivered."""
    counts: Counter[str] = Counter(delivered=delivered)
    failures: list[DeliveryError] = []
    for delivery in settled:
        outcome = delivery.outcome
        if delivery.is_withdrawn:
            counts["withdrawn"] += 1
            continue
        if not isinstance(outcome, DeliveryError):
            counts["delivered"] += 1
            continue
        failures.append(outcome)
        rejected = isinstance(outcome, MessageRejected)
        counts["rejected" if rejected else outcome.certainty] += 1
    return DrainReport(
        delivered=counts["delivered"],
        rejected=counts["rejected"],
        not_sent=counts["not_sent"],
        not_accepted=counts["not_accepted"],
        unknown=counts["unknown"],
        withdrawn=counts["withdrawn"],
        seconds=seconds,
        failures=tuple(failures),
    )


def snapshot(engine: Engine, state: str, now: float) -> Statistics:
    """The statistics of an engine now."""
    tally, gate = engine.tally, engine.gate
    reopens_at = gate.wake_at(now)
    return Statistics(
        state=state,
        reason="" if gate.refusal is None else f"{gate.refusal.status}: {gate.refusal.reason}",
        paused_for=reopens_at - now if reopens_at < float("inf") else 0.0,
        stopped_queues=engine.lanes.stopped,
        held=engine.room.held_messages,
        held_bytes=engine.room.held_bytes,
        waiting_for_room=engine.room.waiting,
        by_state=engine.populations(),
        batches_in_flight=len(engine.out),
        limit=engine.limit.value,
        retry_budget=engine.budget.tokens(now),
        cuts=dict(tally.cuts),
        admitted=tally.admitted,
        finished=dict(tally.finished),
        retried=dict(tally.retried),
        requests=dict(tally.requests),
        batches=dict(tally.batches),
        isolations=tally.isolations,
        order_violations=tally.order_violations,
        unawaited_failures=tally.unawaited_failures,
    )
