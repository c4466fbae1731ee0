"""The engine: wires lanes, room, limit, gate, back-offs and isolations, and holds the invariants.

Call contract and invariants: see `dispatcher.core`. Pure; called by the runtime's pump and by the
simulation. What happens to a request's entries once it is answered stands in `core.settlement`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dispatcher.core import failures
from dispatcher.core.accumulator import Accumulator
from dispatcher.core.batch import (
    BACKING_OFF,
    IN_FLIGHT,
    ISOLATED,
    SETTLED,
    STATES,
    WAITING,
    Batch,
    Entry,
    Failure,
    Reply,
    Rng,
    Step,
)
from dispatcher.core.ceiling import Ceiling
from dispatcher.core.gate import Gate, Permit
from dispatcher.core.limit import FixedLimit, Limit
from dispatcher.core.retry import Backoffs, Group
from dispatcher.core.room import Room
from dispatcher.core.setback import age
from dispatcher.core.settlement import apply_answer, fail_parked
from dispatcher.core.tally import Tally, add
from dispatcher.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dispatcher.config import Config
    from dispatcher.core.isolation import Isolation
    from dispatcher.errors import DeliveryError

SWEEP_SECONDS_PER_ENTRY: Final = 2e-6
"""Looking for expired entries costs about 0.1 µs each; at most a twentieth of the time goes into it."""
TIMEOUT_MIN: Final = 0.001
SPARE_LANES: Final = frozenset({"withdrawn", "abandoned"})
"""Outcomes that stop no queue: they are our own doing."""


class Engine:
    """Decides what leaves, when, and what each answer means.

    Args:
        config: The settings.
        rng: Source of jitter; `random.Random` fits.
        limit: How many batches may be in flight; `config.limit` by default.
    """

    def __init__(self, config: Config, rng: Rng, limit: Limit | None = None) -> None:
        self.config = config
        self.rng = rng
        self.limit: Limit = FixedLimit(config.limit.max_in_flight) if limit is None else limit
        self.gate = Gate()
        self.tally = Tally()
        self.room: Room[Entry] = Room(
            config.queue.max_messages, config.queue.max_bytes, config.queue.resume_below
        )
        batch = config.batch
        self.ceiling = Ceiling(batch.max_messages, batch.max_bytes)
        self.lanes = Accumulator(batch.max_messages, batch.max_bytes, batch.quantum_bytes, config.queues)
        self.backoffs = Backoffs()
        self.isolations: list[Isolation] = []
        self.out: dict[int, Batch] = {}
        self.counts = [0, 0, 0, 0]
        """Live entries by state; those that wait are counted by the lanes."""
        self.settled: list[Entry] = []
        self.settled_total = 0
        self.is_draining = False
        self.drain_at = float("inf")
        self.next_expiry = float("inf")
        """No held entry expires before it."""
        self.unsettled: dict[int, int] = {}
        """Held entries by flush epoch."""
        self.repeats: deque[Batch] = deque()
        """Probes, and halves of what failed together, whose back-off is over."""
        self.acceptances = 0
        """Requests of which the service took something."""
        self._epoch = 0
        self._flushed = -1
        self._batches = 0
        self._apart = 0
        """Batches in flight that did not come from the lanes."""

    # ------------------------------------------------------------------------------------------ inputs

    def offer(self, entry: Entry) -> None:
        """An admitted entry; its room is already taken."""
        tally = self.tally
        entry.number = tally.admitted
        tally.admitted += 1
        epoch = entry.epoch = self._epoch
        self.unsettled[epoch] = self.unsettled.get(epoch, 0) + 1
        if entry.deadline < self.next_expiry:
            self.next_expiry = entry.deadline
        self.lanes.append(entry)
        if self.gate.outlasts(entry.deadline):
            self.fail_quota((entry,))

    def complete(self, batch: Batch, answer: Reply | Failure, now: float) -> None:
        """The answer to a batch that `poll` started."""
        was_reached = len(self.out) >= self.limit.value and self.lanes.sendable_messages > 0
        if self.out.pop(batch.number, None) is None:
            return  # abandoned meanwhile: everything of it is settled
        if batch.is_apart:
            self._apart -= 1
        apply_answer(self, batch, answer, now, was_reached=was_reached)

    def withdraw(self, entry: Entry) -> bool:
        """Take back an entry of which nothing may have reached the service; false if it is too late."""
        if entry.state != WAITING and entry.state != BACKING_OFF:
            return False
        if failures.certainty_of(entry) == "unknown":
            return False
        self.settle(entry, failures.abandoned(entry, "it was withdrawn"), "withdrawn")
        return True

    def flush(self) -> int:
        """Send what was offered so far without lingering; the epoch to ask `is_flushed` about."""
        self._flushed = self._epoch
        self._epoch += 1
        return self._flushed

    def is_flushed(self, epoch: int) -> bool:
        """Everything offered before that flush has settled."""
        return not self.unsettled or min(self.unsettled) > epoch

    def resume(self, queue: str) -> bool:
        """Let a queue go on that stopped at a failed message; false if it is not stopped."""
        return self.lanes.resume(queue)

    def unhalt(self) -> None:
        """The token was replaced: try at once."""
        self.gate.unhalt()

    def age(self, seconds: float) -> None:
        """The machine was suspended for so long, as its wall clock tells."""
        age(self, seconds)

    def drain(self, deadline: float, now: float) -> None:
        """Stop lingering, bring back-offs forward; what is held at `deadline` is abandoned."""
        self.is_draining = True
        self.drain_at = deadline
        left = max(0.0, deadline - now)
        self.backoffs.clip(deadline - min(1.0, left / 4))

    def abandon(self, why: str) -> None:
        """Give up everything held, in flight or not."""
        for entry in list(self.held()):
            self.settle(entry, failures.abandoned(entry, why), "abandoned")
        self.out.clear()
        self._apart = 0

    # ------------------------------------------------------------------------------------------ output

    def poll(self, now: float) -> Step:
        """What to start, what has settled, and when to ask again at the latest."""
        if now >= self.next_expiry:
            self._expire(now)
        while (group := self.backoffs.pop_due(now)) is not None:
            self._return(group)
        if now >= self.drain_at:
            self.abandon("the drain's deadline passed")
        if self.gate.is_refusing(now):
            fail_parked(self, now)
        start: list[Batch] = []
        while len(self.out) < self.limit.value:
            permit = self.gate.permit(now)
            batch = None if permit is Permit.NOTHING else self._next(now, permit)
            if batch is None:
                break
            self._start(batch, now)
            self.gate.on_start(batch.number, permit)
            start.append(batch)
        settled, self.settled = self.settled, []
        return Step(start, settled, self._wake_at(now))

    def _next(self, now: float, permit: Permit) -> Batch | None:
        """The next batch that may start, in the order probes, lanes."""
        if self.isolations or self.repeats:
            apart = self._next_apart()
            if apart is not None:
                return apart
        reason = self._ready(now, permit)
        if reason is not None:
            batch = self.lanes.take()
            if batch is not None:
                head = batch.entries[0]
                batch.reason = (
                    "single" if head.single is not None else "retry" if head.trouble is not None else reason
                )
            return batch
        return self.lanes.take_alone() if self.lanes.has_alone() else None

    def _ready(self, now: float, permit: Permit) -> str | None:
        """Why the lanes may send now; `None` if they should wait for company."""
        lanes, batch = self.lanes, self.config.batch
        sendable = lanes.sendable_messages
        if sendable == 0:
            return None
        if sendable >= lanes.max_messages:
            return "messages"
        if lanes.sendable_bytes + sendable + 1 >= lanes.max_bytes:
            return "bytes"
        if permit is Permit.PROBE:
            return "probe"
        if self.is_draining:
            return "drain"
        if self.room.waiting:
            return "room"
        if len(self.out) < batch.soft_slots:
            return "idle"
        oldest = lanes.oldest()
        assert oldest is not None, "something sendable has no head"
        if oldest.epoch <= self._flushed:
            return "flush"
        return "linger" if now >= oldest.admitted_at + batch.linger else None

    def _next_apart(self) -> Batch | None:
        """A probe or a half of what failed together; all of these never hold the last slot."""
        if self._apart >= max(1, self.limit.value - 1):
            return None
        while self.repeats:
            batch = self.repeats.popleft()
            ready = self._ready_apart(batch.entries, batch.isolation)
            if ready:
                return _apart(ready, batch.isolation)
        for isolation in self.isolations[: self.config.limit.isolations]:
            while not isolation.is_probing:
                entries = isolation.next_probe()
                if entries is None:
                    self._end_isolation(isolation)
                    return self._next_apart()
                ready = self._ready_apart(entries, isolation)
                if ready:
                    return _apart(ready, isolation)
        return None

    def _ready_apart(self, entries: list[Entry], isolation: Isolation | None) -> list[Entry]:
        """Those of a set-apart batch that may go: not settled, and not of a queue that has stopped since."""
        live = [entry for entry in entries if entry.state != SETTLED]
        stopped = [entry for entry in live if entry.lane is not None and entry.lane.is_stopped]
        if stopped:
            if isolation is not None:  # what follows them must not be probed before they have gone
                stopped += isolation.extract({id(entry.lane) for entry in stopped})
            self.counts[ISOLATED] -= len(stopped)
            self.lanes.restore(stopped)
            live = [entry for entry in live if entry.state == ISOLATED]
        if isolation is not None:
            if live:
                isolation.shrink(live)
            else:
                isolation.on_void()
        return live

    def _end_isolation(self, isolation: Isolation) -> None:
        self.isolations.remove(isolation)
        if isolation.is_of_size and not isolation.has_culprit:
            self.ceiling.on_too_large(*isolation.size, isolation.largest_passed)
            self.heed_ceiling()

    def heed_ceiling(self) -> None:
        """Batches are as large as the service is known to take."""
        self.lanes.max_messages = self.ceiling.max_messages
        self.lanes.max_bytes = self.ceiling.max_bytes

    def _start(self, batch: Batch, now: float) -> None:
        entries = batch.entries
        for entry in entries:
            entry.state = IN_FLIGHT
        self.counts[IN_FLIGHT] += len(entries)
        if batch.is_apart:
            self.counts[ISOLATED] -= len(entries)
            self._apart += 1
        self._batches += 1
        batch.number = self._batches
        batch.started_at = now
        batch.timeout = timeout = self.config.transport.attempt_timeout
        if entries[0].deadline - now < timeout:
            latest = max(entry.deadline for entry in entries)
            batch.timeout = max(TIMEOUT_MIN, min(timeout, latest - now))
        self.out[batch.number] = batch
        add(self.tally.batches, batch.reason)
        self.tally.batch_messages.observe(len(entries))
        self.tally.batch_bytes.observe(batch.size_bytes)

    def _return(self, group: Group) -> None:
        """A back-off is over: entries go to the front of their lanes, a probe is repeated whole."""
        live = [entry for entry in group.entries if entry.state != SETTLED]
        self.counts[BACKING_OFF] -= len(live)
        if not group.is_sealed and group.isolation is None:
            self.lanes.restore(live)
        elif live:
            for entry in live:
                entry.state = ISOLATED
            self.counts[ISOLATED] += len(live)
            self.repeats.append(_apart(live, group.isolation))
        elif group.isolation is not None:
            group.isolation.on_void()

    def _expire(self, now: float) -> None:
        """Settle what is past its deadline, and learn when the next one will be.

        One scalar stands for every deadline (an index over all entries would keep settled ones alive for
        their whole deadline): it is a lower bound, and looking costs nothing until it passes.
        """
        earliest = float("inf")
        held = 0
        for entry in list(self.held()):
            held += 1
            if entry.deadline <= now:
                self._settle_expired(entry, now)
            elif entry.deadline < earliest:
                earliest = entry.deadline
        for batch in self.out.values():
            batch.has_expired = batch.has_expired or any(e.state == SETTLED for e in batch.entries)
        self.next_expiry = max(earliest, now + held * SWEEP_SECONDS_PER_ENTRY)

    def _settle_expired(self, entry: Entry, now: float) -> None:
        refusal = self.gate.refusal
        if refusal is not None:
            self.settle(entry, failures.halted(entry, refusal, now), "halted")
            return
        outcome = failures.expired(entry, now)
        is_late = isinstance(outcome, DeadlineExceeded)
        self.settle(entry, outcome, "deadline_exceeded" if is_late else "unknown")

    def _wake_at(self, now: float) -> float:
        if self.tally.admitted == self.settled_total:
            return float("inf")
        wake_at = min(self.next_expiry, self.backoffs.next_at, self.drain_at)
        permit = self.gate.permit(now)
        if permit is Permit.NOTHING:
            return min(wake_at, self.gate.wake_at(now))
        if len(self.out) < self.limit.value and (oldest := self.lanes.oldest()) is not None:
            wake_at = min(wake_at, oldest.admitted_at + self.config.batch.linger)
        return wake_at

    # --------------------------------------------------------------------------------------- settling

    def settle(self, entry: Entry, outcome: DeliveryError, word: str) -> None:
        """Settle one entry that failed, wherever it is; what is delivered settles by the batch."""
        state = entry.state
        assert state != SETTLED, "an entry settles exactly once"
        if state == WAITING:
            self.lanes.discard(entry)
        else:
            self.counts[state] -= 1
            # In flight it keeps its lane muted until the request is answered: something newer must not pass.
            if state != IN_FLIGHT and entry.queue is not None and entry.lane is not None:
                self.lanes.resolve(entry.lane, 1)
        entry.outcome = outcome
        entry.state = SETTLED
        self.room.release(1, len(entry.data))
        self.release_epochs((entry,))
        add(self.tally.finished, word)
        self.settled_total += 1
        self.settled.append(entry)
        lane = entry.lane
        if lane is not None and lane.stops and not lane.is_stopped and word not in SPARE_LANES:
            self.lanes.stop(lane)

    def fail_quota(self, entries: Iterable[Entry]) -> None:
        """Those that cannot live until the quota is filled again fail at once."""
        pause = self.gate.pause
        assert pause is not None, "no pause, no quota"
        for entry in list(entries):
            if self.gate.outlasts(entry.deadline):
                self.settle(entry, failures.quota_exhausted(entry, pause), "quota_exhausted")

    def release_epochs(self, entries: Sequence[Entry]) -> None:
        """These have settled: the flushes that cover them wait for fewer."""
        unsettled = self.unsettled
        if len(unsettled) == 1:
            epoch = entries[0].epoch
            unsettled[epoch] -= len(entries)
            if not unsettled[epoch]:
                del unsettled[epoch]
            return
        for entry in entries:
            unsettled[entry.epoch] -= 1
            if not unsettled[entry.epoch]:
                del unsettled[entry.epoch]

    # ----------------------------------------------------------------------------------------- looking

    def parked(self) -> Iterator[Entry]:
        """Every held entry that is not in flight."""
        yield from self.lanes
        for group in self.backoffs:
            yield from (entry for entry in group.entries if entry.state == BACKING_OFF)
        for batch in self.repeats:
            yield from (entry for entry in batch.entries if entry.state == ISOLATED)
        for isolation in self.isolations:
            yield from isolation

    def held(self) -> Iterator[Entry]:
        """Every entry that has not settled."""
        yield from self.parked()
        for batch in self.out.values():
            yield from (entry for entry in batch.entries if entry.state == IN_FLIGHT)

    def oldest_at(self) -> float | None:
        """Admission instant of the oldest held entry (a walk over all of them: for a scrape)."""
        return min((entry.admitted_at for entry in self.held()), default=None)

    def populations(self) -> dict[str, int]:
        """How many entries are held, by state."""
        counts = [self.lanes.waiting_messages, *self.counts[1:]]
        return dict(zip(STATES[:SETTLED], counts, strict=True))

    def check(self) -> None:
        """Assert every invariant of `dispatcher.core` (walks over all that is held: for tests)."""
        held = self.tally.admitted - self.settled_total
        assert held == sum(self.populations().values()), "held is not the sum of its parts"
        assert held == self.room.held_messages, "room and engine differ"
        entries = list(self.held())
        assert len({entry.number for entry in entries}) == len(entries) == held, "an entry is lost or doubled"
        assert sum(len(entry.data) for entry in entries) == self.room.held_bytes, "bytes differ"
        assert self.lanes.waiting_messages == sum(1 for _ in self.lanes), "waiting is miscounted"
        sendable = [lane for lane in self.lanes.lanes if not lane.is_muted]
        assert self.lanes.sendable_messages == sum(lane.count for lane in sendable), "sendable is miscounted"
        assert self.lanes.sendable_bytes == sum(lane.size_bytes for lane in sendable), "bytes are miscounted"
        assert sum(self.unsettled.values()) == held, "epochs are miscounted"
        for lane in self.lanes.lanes:
            out = [batch for batch in self.out.values() if any(e.lane is lane for e in batch.entries)]
            assert not lane.ordered or len(out) <= 1, "an ordered lane has two batches in flight"
            sent = sum(entry.lane is lane for batch in out for entry in batch.entries)
            assert not lane.is_strict or sent <= 1, "a strict lane has two messages in flight"
        apart = sum(batch.is_apart for batch in self.out.values())
        assert apart == self._apart, "what does not come from the lanes is miscounted"
        probe = self.gate.probe
        assert probe is None or probe in self.out or not held, "the gate waits for a probe that is not out"
        if held and not self.out:
            assert self._wake_at(0.0) < float("inf"), "something is held and nothing will wake it"


def _apart(entries: list[Entry], isolation: Isolation | None) -> Batch:
    """A batch that does not come from the lanes: a probe, or a half of what failed together."""
    return Batch(
        entries,
        sum(len(entry.data) for entry in entries),
        "halving" if isolation is None else "isolation",
        single=entries[0].single,
        isolation=isolation,
        is_sealed=isolation is None,
        has_ordered=any(entry.queue is not None for entry in entries),
    )
