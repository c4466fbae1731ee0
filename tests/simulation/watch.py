"""What must hold after every step, computed apart from the engine's own counters."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dispatcher.core.accumulator import OVERTAKE_SECONDS
from dispatcher.core.batch import IN_FLIGHT, SETTLED, WAITING, Entry, Run
from dispatcher.core.engine import TIMEOUT_MIN
from dispatcher.core.invariants import check
from dispatcher.errors import Abandoned, DeadlineExceeded, DeliveryError, Halted, QuotaExhausted
from tests.core.known_run import carried, delivered
from tests.simulation.shadow import LATEST, ShadowGate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatcher.core.batch import Batch, Step
    from dispatcher.core.engine import Engine

LATE: Final = 0.015
"""Seconds past its deadline in which an entry must settle (the engine looks less often if it holds many)."""
SLACK: Final = 1e-9


class Watch:
    """Looks on; raises `AssertionError` where an invariant does not hold."""

    def __init__(self, engine: Engine, check_every: int, service_clock: Callable[[float], float]) -> None:
        self.engine = engine
        self.gate = ShadowGate(engine, service_clock)
        self.stopped: set[str] = set()
        """Queues that stop at a failed message and had one since they were resumed."""
        self.drain_at = float("inf")
        self.settled: set[int] = set()
        """Admission numbers of what left, by itself or in a run."""
        self._check_every = check_every
        self._steps = 0
        self._open: set[int] = set()
        self._flushes: dict[int, set[int]] = {}
        self._had_slots = self._was_open = True
        self._ceilings = [(engine.lanes.max_messages, engine.lanes.max_bytes)]
        """How large batches were allowed to be before this step."""
        self._paid_at = float("inf")
        """When the next back-off was to be over and paid for, as it stood after the last step."""

    def before_step(self, now: float) -> None:
        """Check that nothing was due before this step; called before every poll."""
        self._ceilings = [(self.engine.lanes.max_messages, self.engine.lanes.max_bytes)]
        if self._paid_at > now - SLACK:
            return
        overdue = [group for group in self.engine.backoffs if group.due_at <= now - SLACK]
        is_live = any(entry.state != SETTLED for group in overdue for entry in group.entries)
        assert not is_live, "the end of a back-off was slept through"

    def on_offer(self, entry: Entry) -> None:
        """An entry was admitted."""
        self._open.add(entry.number)

    def on_flush(self, epoch: int) -> None:
        """A flush covers everything that is open now."""
        self._flushes[epoch] = set(self._open)

    def on_resume(self, queue: str) -> None:
        """A stopped queue is told to go on."""
        self.stopped.discard(queue)

    def on_step(self, step: Step, now: float) -> None:
        """Check one step; called after every poll."""
        self._steps += 1
        self._settle(step, now)
        self._check_flushes()
        engine = self.engine
        apart = sum(batch.is_apart for batch in engine.out.values())
        has_apart = any(batch.is_apart for batch in step.start)
        is_over = apart > max(1, engine.limit.value - 1)
        assert not (has_apart and is_over), "probes and halves hold the last slot"
        assert step.wake_at > now, f"wake_at {step.wake_at} is not after now {now}: a busy loop"
        is_over = len(engine.out) > engine.limit.value
        assert not (step.start and is_over), "more batches are in flight than the limit allows"
        self.gate.on_starts(step.start, now)
        assert set(engine.lanes.stopped) == self.stopped, "which queues have stopped is not what it should be"
        if now >= self.drain_at:
            assert not self._open, "something is held after the drain"
        for batch in step.start:
            entries = carried(batch)
            self._check_batch(entries, len(batch.body()), now)
            self._check_ceiling(batch, len(entries))
            self._check_turn(batch, entries)
            left = max(entry.deadline for entry in entries) - now
            assert batch.timeout <= max(TIMEOUT_MIN, left), "an attempt may outlast its messages' deadlines"
            if batch.reason == "linger" and self._had_slots:
                self._check_linger(entries, now)
        self._had_slots = len(engine.out) < engine.limit.value and now >= engine.spaced_until
        self._was_open = self.gate.is_open
        self._paid_at = engine.backoffs.next_at
        if self._steps % self._check_every == 0:
            check(engine)
            self._check_readiness(now)
            self._check_unresolved()
            self._check_quota()

    def _settle(self, step: Step, now: float) -> None:
        assert len({id(run) for run in step.delivered}) == len(step.delivered), "a run settles twice"
        for entry in (*step.settled, *(entry for run in step.delivered for entry in delivered(run))):
            assert entry.state == SETTLED, "an entry leaves that is not settled"
            assert entry.outcome is not None, "an entry settles without an outcome"
            assert entry.number not in self.settled, f"entry {entry.number} settles twice"
            if isinstance(entry.outcome, DeliveryError):
                self._check_failure(entry, entry.outcome, now)
            self.settled.add(entry.number)
            self._open.remove(entry.number)
            for covered in self._flushes.values():
                covered.discard(entry.number)

    def _check_failure(self, entry: Entry, outcome: DeliveryError, now: float) -> None:
        is_expired, gate = now >= entry.deadline, self.gate
        if isinstance(outcome, DeadlineExceeded | Halted):
            assert now <= entry.deadline + LATE, f"entry {entry.number} expires too late"
        if isinstance(outcome, DeadlineExceeded):
            assert is_expired, f"entry {entry.number} expires too early"
            assert not gate.is_refused, "what expires at a halted gate fails as Halted"
        elif isinstance(outcome, Halted):
            assert gate.is_refused, "nothing was refused"
            assert gate.is_first_contact or is_expired, (
                "halted after something was accepted: held, not failed"
            )
        elif isinstance(outcome, QuotaExhausted):
            assert entry.deadline < gate.quiet_until + LATEST, "it could have lived until the quota's reset"
        policy = self.engine.config.queues.get(entry.queue or "")
        if entry.queue and policy is not None and policy.on_failure == "stop" and _stops(outcome):
            self.stopped.add(entry.queue)

    def _check_quota(self) -> None:
        """What cannot live until the quota's reset has failed."""
        gate = self.gate
        if gate.is_paused and gate.is_quota and gate.probe is None:
            late = [each for each in self._parked() if each.deadline < gate.quiet_until]
            assert not late, "something waits for a quota that it cannot live to see"

    def _check_flushes(self) -> None:
        for epoch, covered in list(self._flushes.items()):
            is_flushed = self.engine.is_flushed(epoch)
            assert is_flushed == (not covered), f"flush {epoch} says {is_flushed} with {len(covered)} open"
            if not covered:
                del self._flushes[epoch]

    def _check_batch(self, entries: list[Entry], body_bytes: int, now: float) -> None:
        batch = self.engine.config.batch
        assert len(entries) <= batch.max_messages, "a batch has too many messages"
        assert len(entries) == 1 or body_bytes <= batch.max_bytes, "a batch has too many bytes"
        assert len(entries) == 1 or all(entry.single is None for entry in entries), "a single has company"
        assert len({entry.number for entry in entries}) == len(entries), "a batch carries an entry twice"
        for entry in entries:
            assert entry.number not in self.settled, f"settled entry {entry.number} is sent"
            assert now <= entry.deadline + 0.01, "an entry is sent after its deadline"
            assert entry.queue not in self.stopped, "something of a stopped queue is sent"
        last: dict[str, int] = {}
        for entry in entries:
            if entry.queue is not None:
                assert last.get(entry.queue, -1) < entry.number, "a batch carries a queue out of order"
                last[entry.queue] = entry.number

    def _check_ceiling(self, batch: Batch, messages: int) -> None:
        """What comes from the lanes is no larger than the service is known to take."""
        lanes = self.engine.lanes
        allowed = [*self._ceilings, (lanes.max_messages, lanes.max_bytes)]
        assert batch.is_apart or messages <= max(one for one, _ in allowed), "more messages than are taken"
        is_within = messages == 1 or len(batch.body()) <= max(size for _, size in allowed)
        assert batch.is_apart or is_within, "more bytes than are taken"

    def _check_turn(self, batch: Batch, entries: list[Entry]) -> None:
        """Runs leave in their order; who is passed by one, or passes one, is hardly older or a retry."""
        lanes = self.engine.lanes
        default = lanes.lanes[0]
        youngest = max((e.number for e in entries if e.lane is default or batch.run), default=-1)
        if batch.is_apart or youngest < 0:
            return
        others = [lane for lane in lanes.lanes if lane is not default and lane.count and not lane.is_muted]
        assert not (batch.run and others), "a run leaves whole while another lane is ready"
        for each in lanes.holdings():
            if isinstance(each, Run):
                assert each.number > youngest, f"run {each.number} is passed by {youngest}"
            elif batch.run is not None and each.lane is default and each.number < batch.run.number:
                waited = batch.run.admitted_at - each.admitted_at
                assert waited <= OVERTAKE_SECONDS + SLACK, f"entry {each.number} is passed by a younger run"

    def _check_linger(self, entries: list[Entry], now: float) -> None:
        """With a free slot all the while, a batch leaves at the very instant at which its linger ends."""
        if not self._was_open or not self.gate.is_open:
            return
        fresh = [entry.admitted_at for entry in entries if entry.trouble is None and entry.queue is None]
        ends_at = min(fresh, default=now) + self.engine.config.batch.linger
        assert now <= ends_at + SLACK, "a batch lingers too long"

    def _check_readiness(self, now: float) -> None:
        """With a free slot, nothing sendable waits past its linger."""
        engine = self.engine
        if len(engine.out) >= engine.limit.value:
            return
        if self.gate.is_open and now < engine.spaced_until:
            return
        if not self.gate.is_open:
            if self.gate.must_probe(now):
                assert not self._is_sendable(), "a probe is due, something could go, and nothing does"
            return
        linger = engine.config.batch.linger
        for lane in engine.lanes.lanes:
            if lane.is_muted:
                continue
            for entry in lane.waiting:
                if entry.state == WAITING:
                    assert now < entry.admitted_at + linger + SLACK, "something waits past its linger"
                    assert entry.single is None or lane.ordered, "a single waits for company"
        for each in engine.lanes.holdings():
            if isinstance(each, Run):
                assert now < each.admitted_at + linger + SLACK, "a run waits past its linger"

    def _parked(self) -> Iterator[Entry | Run]:
        """Everything held that is not in flight."""
        return (each for each in self.engine.holdings() if each.state != IN_FLIGHT)

    def _is_sendable(self) -> bool:
        if any(isinstance(each, Run) for each in self.engine.lanes.holdings()):
            return True
        return any(lane.count and not lane.is_muted for lane in self.engine.lanes.lanes)

    def _check_unresolved(self) -> None:
        """Each queue's lane counts exactly what has left it and is not resolved, and is muted by it."""
        engine = self.engine
        out: Counter[str | None] = Counter(
            entry.queue for batch in engine.out.values() for entry in carried(batch) if entry.queue
        )
        out.update(
            each.queue
            for each in self._parked()
            if isinstance(each, Entry) and each.state != WAITING and each.queue
        )
        if engine.settled_total == engine.tally.admitted:
            return  # after a drain's end nothing is resolved any more
        lanes = {lane.key: lane.unresolved for lane in engine.lanes.lanes if lane.ordered}
        assert {key: number for key, number in lanes.items() if number} == dict(out), (
            "unresolved is miscounted"
        )


def _stops(outcome: DeliveryError) -> bool:
    """A failure that stops a queue: not one that is our own doing."""
    return not isinstance(outcome, Abandoned)
