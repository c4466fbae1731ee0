"""The engine: wires lanes, room, limit, gate, budget, back-offs and isolations.

Call contract and invariants: see `dispatcher.core`; `core.invariants` asserts them. Pure; called by the
runtime's pump and by the simulation. What happens to a request's entries once it is answered stands in
`core.settlement`, what does not come from the lanes in `core.apart`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dispatcher.core import failures
from dispatcher.core.accumulator import Accumulator
from dispatcher.core.apart import as_batch, next_apart
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
    Run,
    Step,
)
from dispatcher.core.budget import Budget
from dispatcher.core.ceiling import Ceiling
from dispatcher.core.expiry import expire
from dispatcher.core.flushes import Flushes
from dispatcher.core.gate import Gate, Permit
from dispatcher.core.limit import made
from dispatcher.core.retry import Backoffs, Group
from dispatcher.core.room import Room
from dispatcher.core.setback import age
from dispatcher.core.settlement import apply_answer, fail_parked
from dispatcher.core.stalls import Stalls
from dispatcher.core.tally import Tally, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dispatcher.config import Config
    from dispatcher.core.isolation import Isolation
    from dispatcher.core.limit import Limit
    from dispatcher.errors import DeliveryError

TIMEOUT_MIN: Final = 0.001
SPREAD: Final = (0.8, 1.1)
"""Shares of a limit's part of the round trip, between which the distance of two starts is drawn."""
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
        self.limit: Limit = made(config.limit) if limit is None else limit
        self.gate = Gate()
        self.tally = Tally()
        self.room: Room[Entry] = Room(
            config.queue.max_messages, config.queue.max_bytes, config.queue.resume_below
        )
        batch = config.batch
        self.ceiling = Ceiling(batch.max_messages, batch.max_bytes)
        self.lanes = Accumulator(batch.max_messages, batch.max_bytes, batch.quantum_bytes, config.queues)
        self.budget = Budget(float("inf") if config.retry.budget is None else config.retry.budget)
        self.backoffs = Backoffs(self.budget)
        self.isolations: list[Isolation] = []
        self.out: dict[int, Batch] = {}
        self.counts = [0, 0, 0, 0]
        """Live entries by state; those that wait are counted by the lanes."""
        self.settled: list[Entry] = []
        self.delivered: list[Run] = []
        """Runs of which every message is."""
        self.settled_total = 0
        self.is_draining = False
        self.drain_at = float("inf")
        self.next_expiry = float("inf")
        """No held entry expires before it."""
        self.flushes = Flushes()
        self.stalls = Stalls()
        self.repeats: deque[Batch] = deque()
        """Probes, and halves of what failed together, whose back-off is over."""
        self.acceptances = 0
        """Requests of which the service took something."""
        self._batches = 0
        self._started_at = float("-inf")
        """When a batch started last."""
        self.spaced_until = 0.0
        """No batch starts before it: starts are spread while the upstream refuses some."""
        self._is_full = False
        """The limit was reached when the last poll was over: one flight's answers may come all at once."""
        self.apart = 0
        """Batches in flight that did not come from the lanes."""

    # ------------------------------------------------------------------------------------------ inputs

    def offer(self, entry: Entry) -> None:
        """An admitted entry; its room is already taken."""
        self.offer_many([entry])

    def offer_many(self, entries: Sequence[Entry]) -> None:
        """The same for several, in the order of their admission."""
        if not entries:
            return
        tally, flushes = self.tally, self.flushes
        self.lanes.extend(entries, tally.admitted, flushes.epoch)
        tally.admitted += len(entries)
        flushes.add(len(entries))
        earliest = min([entry.deadline for entry in entries])
        if earliest < self.next_expiry:
            self.next_expiry = earliest
        if self.gate.pause is not None and self.gate.pause.kind == "quota":
            self.fail_quota(entries)

    def offer_run(self, run: Run) -> None:
        """The same for the messages of a run."""
        tally = self.tally
        run.number, run.epoch = tally.admitted, self.flushes.epoch
        tally.admitted += len(run)
        self.flushes.add(len(run))
        self.next_expiry = min(self.next_expiry, run.deadline)
        self.lanes.add_run(run)
        if self.gate.pause is not None and self.gate.outlasts(run.deadline):
            self.lanes.open_runs()
            self.fail_quota(run.open())

    def complete(self, batch: Batch, answer: Reply | Failure, now: float) -> None:
        """The answer to a batch that `poll` started."""
        was_reached = self._is_full and self._ready(now, Permit.ALL) is not None
        if self.out.pop(batch.number, None) is None:
            return  # abandoned meanwhile: everything of it is settled
        if batch.is_apart:
            self.apart -= 1
        apply_answer(self, batch, answer, now, was_reached=was_reached)

    def withdraw(self, entry: Entry) -> bool:
        """Take back an entry of which nothing may have reached the service; false if it is too late."""
        if entry.lane is None:
            self.lanes.open_runs()  # it is in one of them, or out
        if entry.lane is None or entry.state not in {WAITING, BACKING_OFF}:
            return False
        if failures.certainty_of(entry) == "unknown":
            return False
        self.settle(entry, failures.abandoned(entry, "it was withdrawn"), "withdrawn")
        return True

    def flush(self) -> int:
        """Send what was offered so far without lingering; the epoch to ask `is_flushed` about."""
        return self.flushes.begin()

    def is_flushed(self, epoch: int) -> bool:
        """Everything offered before that flush has settled."""
        return self.flushes.is_done(epoch)

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
        self.lanes.clear()
        self.out.clear()
        self.apart = 0

    # ------------------------------------------------------------------------------------------ output

    def poll(self, now: float) -> Step:
        """What to start, what has settled, and when to ask again at the latest."""
        if now >= self.next_expiry:
            expire(self, now)
        while (group := self.backoffs.pop_due(now, is_free=self._is_idle())) is not None:
            self._return(group)
        if now >= self.drain_at:
            self.abandon("the drain's deadline passed")
        if self.gate.is_refusing(now):
            fail_parked(self, now)
        if self.gate.is_outage and self.gate.permit(now) is Permit.PROBE:
            self._bring_forward()
        start: list[Batch] = []
        while len(self.out) < self.limit.value or self._has_stalled(now):
            permit = self.gate.permit(now)
            is_spaced = permit is Permit.ALL and now < self.spaced_until
            batch = None if permit is Permit.NOTHING or is_spaced else self._next(now, permit)
            if batch is None:
                break
            self._start(batch, now)
            self._space(now)
            self.gate.on_start(batch.number, permit)
            start.append(batch)
        self._is_full = len(self.out) >= self.limit.value
        settled, self.settled = self.settled, []
        delivered, self.delivered = self.delivered, []
        return Step(start, settled, delivered, self.wake_at(now))

    def _space(self, now: float) -> None:
        """The next batch starts no earlier than this after the one that starts now."""
        spacing = self.limit.spacing(now)
        if spacing:
            self.spaced_until = now + spacing * self.stalls.round_trip * self.rng.uniform(*SPREAD)

    def _has_stalled(self, now: float) -> bool:
        """Every slot is taken, by what should have been answered long ago, and the limit gives one more."""
        if len(self.out) > self.limit.value or now < self._stalls_at:
            return False
        if self.gate.permit(now) is Permit.ALL and self._has_work(now):
            self.limit.on_stalled()
        return len(self.out) < self.limit.value

    def _has_work(self, now: float) -> bool:
        return bool(self.repeats) or self._ready(now, Permit.ALL) is not None

    @property
    def _stalls_at(self) -> float:
        return self._started_at + self.stalls.patience

    def _is_idle(self) -> bool:
        """Nothing is out and nothing could go: a back-off that is over need not be paid for."""
        return not (self.out or self.lanes.sendable_messages or self.repeats or self.isolations)

    def _bring_forward(self) -> None:
        """The outage's probe is due: what backs off goes early if there is nothing else to probe with."""
        while self.backoffs and self._is_idle():
            self._return(self.backoffs.pop())

    def _next(self, now: float, permit: Permit) -> Batch | None:
        """The next batch that may start, in the order probes, lanes."""
        if self.isolations or self.repeats:
            apart = next_apart(self)
            if apart is not None:
                return apart
        reason = self._ready(now, permit)
        if reason is not None:
            batch = self.lanes.take()
            if batch is not None:
                batch.reason = reason
                if batch.run is None:
                    head = batch.entries[0]
                    if head.single is not None:
                        batch.reason = "single"
                    elif head.trouble is not None:
                        batch.reason = "retry"
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
        if self.flushes.covers(oldest):
            return "flush"
        return "linger" if now >= oldest.admitted_at + batch.linger else None

    def heed_ceiling(self) -> None:
        """Batches are as large as the service is known to take."""
        self.lanes.max_messages = self.ceiling.max_messages
        self.lanes.max_bytes = self.ceiling.max_bytes

    def _start(self, batch: Batch, now: float) -> None:
        members = batch.members
        if isinstance(members, Run):
            members.state = IN_FLIGHT
            earliest = members.deadline
        else:
            for entry in members:
                entry.state = IN_FLIGHT
            earliest = members[0].deadline
        self.counts[IN_FLIGHT] += len(members)
        if batch.is_apart:
            self.counts[ISOLATED] -= len(members)
            self.apart += 1
        self._batches += 1
        batch.number = self._batches
        batch.started_at = self._started_at = now
        batch.timeout = timeout = self.config.transport.attempt_timeout
        if earliest - now < timeout:
            run = batch.run
            latest = run.deadline if run is not None else max(entry.deadline for entry in batch.entries)
            batch.timeout = max(TIMEOUT_MIN, min(timeout, latest - now))
        self.out[batch.number] = batch
        add(self.tally.batches, batch.reason)
        self.tally.batch_messages.observe(len(members))
        self.tally.batch_bytes.observe(batch.size_bytes)

    def _return(self, group: Group) -> None:
        """A back-off is over: entries go to the front of their lanes, a probe is repeated whole."""
        live = group.live
        self.counts[BACKING_OFF] -= len(live)
        if live and live[0].trouble is not None:
            live[0].trouble.paid = group.cost
        if not group.is_sealed and group.isolation is None:
            self.lanes.restore(live)
        elif live:
            for entry in live:
                entry.state = ISOLATED
            self.counts[ISOLATED] += len(live)
            self.repeats.append(as_batch(live, group.isolation))
        elif group.isolation is not None:
            group.isolation.on_void()

    def wake_at(self, now: float) -> float:
        """When to poll again at the latest if nothing happens; `inf` if only an input changes anything."""
        if self.tally.admitted == self.settled_total:
            return float("inf")
        backoffs = self.backoffs
        is_free = backoffs.due_at > now and self._is_idle()
        wake_at = min(self.next_expiry, self.drain_at, backoffs.due_at if is_free else backoffs.next_at)
        permit = self.gate.permit(now)
        if permit is Permit.NOTHING:
            return min(wake_at, self.gate.wake_at(now))
        if self._is_full and self._stalls_at > now and self._has_work(now):
            wake_at = min(wake_at, self._stalls_at)
        if len(self.out) < self.limit.value:
            if now < self.spaced_until and (self.isolations or self._has_work(now)):
                wake_at = min(wake_at, self.spaced_until)
            elif (oldest := self.lanes.oldest()) is not None:
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
        self.flushes.release((entry,))
        add(self.tally.finished, word)
        self.settled_total += 1
        self.settled.append(entry)
        lane = entry.lane
        stops = lane is not None and lane.ordered and (lane.stops or entry.stops_queue)
        if lane is not None and stops and not lane.is_stopped and word not in SPARE_LANES:
            self.lanes.stop(lane)

    def fail_quota(self, entries: Iterable[Entry]) -> None:
        """Those that cannot live until the quota is filled again fail at once."""
        pause = self.gate.pause
        assert pause is not None, "no pause, no quota"
        for entry in list(entries):
            if self.gate.outlasts(entry.deadline):
                self.settle(entry, failures.quota_exhausted(entry, pause), "quota_exhausted")

    # ----------------------------------------------------------------------------------------- looking

    def oldest_out(self) -> int:
        """Number of the batch that is out longest, or of the one that starts next."""
        return next(iter(self.out), self._batches + 1)

    def parked(self) -> Iterator[Entry]:
        """Every held entry that is not in flight."""
        yield from self.lanes
        yield from self._set_apart()

    def _set_apart(self) -> Iterator[Entry]:
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

    def holdings(self) -> Iterator[Entry | Run]:
        """The same, with runs as they are: nothing is changed by looking."""
        yield from self.lanes.holdings()
        yield from self._set_apart()
        for batch in self.out.values():
            if batch.run is not None:
                yield batch.run
            else:
                yield from (entry for entry in batch.entries if entry.state == IN_FLIGHT)

    def oldest_at(self) -> float | None:
        """Admission instant of the oldest held entry (a walk over all of them: for a scrape)."""
        return min((each.admitted_at for each in self.holdings()), default=None)

    def populations(self) -> dict[str, int]:
        """How many entries are held, by state."""
        counts = [self.lanes.waiting_messages, *self.counts[1:]]
        return dict(zip(STATES[:SETTLED], counts, strict=True))
