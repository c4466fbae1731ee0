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
from dispatcher.core.gate import Gate
from dispatcher.core.limit import FixedLimit, Limit
from dispatcher.core.retry import Backoffs, Group
from dispatcher.core.room import Room
from dispatcher.core.settlement import apply_answer, fail_parked
from dispatcher.core.tally import Tally, add
from dispatcher.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatcher.config import Config
    from dispatcher.core.isolation import Isolation
    from dispatcher.errors import DeliveryError

SWEEP_SECONDS_PER_ENTRY: Final = 2e-6
"""Looking for expired entries costs about 0.1 µs each; at most a twentieth of the time goes into it."""
TIMEOUT_MIN: Final = 0.001


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
        self.lanes = Accumulator(batch.max_messages, batch.max_bytes, batch.quantum_bytes)
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
        """Probes whose back-off is over."""
        self._epoch = 0
        self._flushed = -1
        self._batches = 0
        self._probes = 0
        """Probes in flight."""

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

    def complete(self, batch: Batch, answer: Reply | Failure, now: float) -> None:
        """The answer to a batch that `poll` started."""
        was_reached = len(self.out) >= self.limit.value and self.lanes.sendable_messages > 0
        if self.out.pop(batch.number, None) is None:
            return  # abandoned meanwhile: everything of it is settled
        if batch.isolation is not None:
            self._probes -= 1
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
        while len(self.out) < self.limit.value and (batch := self._next(now)) is not None:
            self._start(batch, now)
            start.append(batch)
        settled, self.settled = self.settled, []
        return Step(start, settled, self._wake_at(now))

    def _next(self, now: float) -> Batch | None:
        """The next batch that may start, in the order probes, lanes."""
        if self.isolations or self.repeats:
            probe = self._next_probe()
            if probe is not None:
                return probe
        reason = self._ready(now)
        if reason is not None:
            batch = self.lanes.take()
            if batch is not None:
                head = batch.entries[0]
                batch.reason = (
                    "single" if head.single is not None else "retry" if head.trouble is not None else reason
                )
            return batch
        return self.lanes.take_alone() if self.lanes.has_alone() else None

    def _ready(self, now: float) -> str | None:
        """Why the lanes may send now; `None` if they should wait for company."""
        lanes, batch = self.lanes, self.config.batch
        sendable = lanes.sendable_messages
        if sendable == 0:
            return None
        if sendable >= lanes.max_messages:
            return "messages"
        if lanes.sendable_bytes + sendable + 1 >= lanes.max_bytes:
            return "bytes"
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

    def _next_probe(self) -> Batch | None:
        """A probe of an isolation; together they never hold the last slot."""
        if self._probes >= max(1, self.limit.value - 1):
            return None
        while self.repeats:
            batch = self.repeats.popleft()
            isolation = batch.isolation
            assert isolation is not None, "only probes are repeated whole"
            live = [entry for entry in batch.entries if entry.state != SETTLED]
            if live:
                isolation.shrink(live)
                return _probe(isolation, live)
            isolation.on_void()
        for isolation in self.isolations[: self.config.limit.isolations]:
            if isolation.is_probing:
                continue
            entries = isolation.next_probe()
            if entries is not None:
                return _probe(isolation, entries)
            self.isolations.remove(isolation)
            if isolation.is_of_size and not isolation.has_culprit:
                self.ceiling.on_too_large(*isolation.size, isolation.largest_passed)
                self.heed_ceiling()
            return self._next_probe()
        return None

    def heed_ceiling(self) -> None:
        """Batches are as large as the service is known to take."""
        self.lanes.max_messages = self.ceiling.max_messages
        self.lanes.max_bytes = self.ceiling.max_bytes

    def _start(self, batch: Batch, now: float) -> None:
        entries = batch.entries
        for entry in entries:
            entry.state = IN_FLIGHT
        self.counts[IN_FLIGHT] += len(entries)
        if batch.isolation is not None:
            self.counts[ISOLATED] -= len(entries)
            self._probes += 1
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
        if group.isolation is None:
            self.lanes.restore(live)
        elif live:
            for entry in live:
                entry.state = ISOLATED
            self.counts[ISOLATED] += len(live)
            group.isolation.shrink(live)
            self.repeats.append(_probe(group.isolation, live))
        else:
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
                outcome = failures.expired(entry, now)
                is_late = isinstance(outcome, DeadlineExceeded)
                self.settle(entry, outcome, "deadline_exceeded" if is_late else "unknown")
            elif entry.deadline < earliest:
                earliest = entry.deadline
        for batch in self.out.values():
            batch.has_expired = batch.has_expired or any(e.state == SETTLED for e in batch.entries)
        self.next_expiry = max(earliest, now + held * SWEEP_SECONDS_PER_ENTRY)

    def _wake_at(self, now: float) -> float:
        if self.tally.admitted == self.settled_total:
            return float("inf")
        wake_at = min(self.next_expiry, self.backoffs.next_at, self.drain_at)
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
        if held and not self.out:
            assert self._wake_at(0.0) < float("inf"), "something is held and nothing will wake it"


def _probe(isolation: Isolation, entries: list[Entry]) -> Batch:
    size = sum(len(entry.data) for entry in entries)
    ordered = any(entry.queue is not None for entry in entries)
    return Batch(
        entries, size, "isolation", single=entries[0].single, isolation=isolation, has_ordered=ordered
    )
