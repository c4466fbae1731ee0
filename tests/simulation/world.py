"""The world: a heap of events in virtual time, producers, one engine, the upstream's model.

It plays the runtime's part by the core's call contract: inputs, then one poll; starts what the step says,
settles what it says, comes back no later than `wake_at`. It judges nothing itself: `Watch` looks on after
every step, `verdict` at the end.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from itertools import count, groupby
from random import Random
from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import Entry, Failure, Reply
from dispatcher.core.engine import Engine
from dispatcher.core.wire import BATCH_PATH, Encoder
from dispatcher.devserver.faults import FaultPlan
from dispatcher.devserver.responder import FaultyUpstream
from tests.core.known_run import carried, delivered
from tests.simulation.producer import is_plain, next_run
from tests.simulation.scenario import GROUP, Draft, draft, drawn
from tests.simulation.service import Service
from tests.simulation.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.core.batch import Batch
    from dispatcher.core.room import Ticket
    from dispatcher.devserver.responder import SimulatedReply
    from tests.core.known_run import KnownRun
    from tests.simulation.scenario import Scenario

START: Final = 1_000.0
UNIX: Final = 1_790_000_000.25
"""The service's clock at the instant 0 of ours, give or take the skew."""
SPIN_STEPS: Final = 5_000
"""So many steps at one instant are a busy loop."""
TRACE_LENGTH: Final = 60


class SimulationError(AssertionError):
    """The world cannot go on, or an invariant does not hold."""


class World:
    """One run."""

    def __init__(self, scenario: Scenario, seed: int, *, check_every: int = 1) -> None:
        self.now = START
        self.rng = Random(f"{seed}:world")
        self.scenario = scenario = drawn(scenario, self.rng)
        self.config = scenario.settings()
        self.engine = Engine(self.config, Random(f"{seed}:engine"))
        self.offset = UNIX + self.rng.uniform(-scenario.skew, scenario.skew)
        ids = count()
        self.encoder = Encoder(
            lambda: f"id{next(ids):x}",
            draws_ids=self.config.deduplication == "auto",
            max_message_bytes=self.config.batch.max_message_bytes,
        )
        self.service = Service(**scenario.upstream)
        self.service.put_group(
            GROUP, {"https://a.example": None, "https://b.example": "b"}, *2 * [START + self.offset]
        )
        injector = FaultPlan.from_mapping(scenario.faults).injector(seed, START + self.offset)
        self.upstream = FaultyUpstream(self.service, injector)
        self.watch = Watch(self.engine, check_every, lambda at: at + self.offset)
        self.trace: deque[str] = deque(maxlen=TRACE_LENGTH)
        self.drafts = draft(scenario, self.rng)
        self._by_number = {one.number: one for one in self.drafts}
        self.entries: dict[int, Entry] = {}
        """What was admitted, by the draft's number."""
        self.runs: list[KnownRun] = []
        """What of it was admitted together."""
        self.runs_sent = 0
        """Of these, how many left as they were."""
        self.reached: set[int] = set()
        """Entries by admission of which a request arrived at the service."""
        self.withdrawn: set[int] = set()
        self.gone: set[int] = set()
        """Drafts never admitted: their producer gave up, or the dispatcher was closing."""
        self.settled_at: dict[int, float] = {}
        """When each was settled, by the draft's number."""
        self.last_settled_at = START
        self._drafts_of: dict[int, int] = {}
        self.refused_requests = 0
        """Answered with 429."""
        self.steps = 0
        self._resuming: set[str] = set()
        self._run_rng = Random(f"{seed}:runs")
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ticks = count()
        self._spins = 0

    # --------------------------------------------------------------------------------------- the run

    def run(self) -> World:
        """Play until nothing is left to happen."""
        self._plan()
        wake_at = float("inf")
        while self._events or wake_at < float("inf"):
            self._advance(min(wake_at, self._events[0][0] if self._events else wake_at))
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            wake_at = self._pump()
        return self

    def _advance(self, at: float) -> None:
        self._spins = self._spins + 1 if at <= self.now else 0
        if self._spins > SPIN_STEPS:
            raise SimulationError(f"a busy loop at {self.now}")
        self.now = max(self.now, at)

    def _pump(self) -> float:
        while True:
            self.watch.before_step(self.now)
            step = self.engine.poll(self.now)
            self.steps += 1
            for batch in step.start:
                self._post(batch)
            self.watch.on_step(step, self.now)
            left = [*step.settled, *(entry for run in step.delivered for entry in delivered(run))]
            for entry in left:
                self.settled_at[self._drafts_of[id(entry)]] = self.last_settled_at = self.now
            self._plan_resumptions()
            granted = self.engine.room.grants()
            for entry in granted:
                self._offer(entry)
            if not granted:
                return step.wake_at

    def _plan(self) -> None:
        scenario = self.scenario
        for at, together in groupby(self.drafts, lambda one: one.at):
            if self._run_rng.random() < scenario.runs:
                self._at(START + at, self._produce_together, deque(together))
            else:
                for one in together:
                    self._at(START + at, self._produce, one)
        for _ in range(scenario.flushes):
            self._at(START + self.rng.uniform(0.5, scenario.seconds + 1.0), self._flush)
        if scenario.drain_after is not None:
            self._at(START + self.rng.uniform(*scenario.drain_after), self._drain)
        for instant in scenario.tokens:
            self._at(START + instant, self._replace_token)

    def _plan_resumptions(self) -> None:
        for queue in self.engine.lanes.stopped:
            if queue not in self._resuming:
                self._resuming.add(queue)
                self._at(self.now + self.rng.uniform(*self.scenario.resumed_after), self._resume, queue)

    def _resume(self, queue: str) -> None:
        self._say(f"resume {queue}")
        self._resuming.discard(queue)
        self.watch.on_resume(queue)
        assert self.engine.resume(queue), "a stopped queue has forgotten that it stopped"

    def _replace_token(self) -> None:
        self._say("the token is replaced")
        self.watch.gate.on_unhalt()
        self.engine.unhalt()

    def _at(self, at: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._events, (at, next(self._ticks), lambda: act(*args)))

    def _say(self, text: str) -> None:
        self.trace.append(f"{self.now - START:12.6f}  {text}")

    # ------------------------------------------------------------------------------------- producers

    def _produce_together(self, drafts: deque[Draft]) -> None:
        """Hand in what is plain as runs, as `send_many` does, and the rest one by one."""
        if self._run_rng.random() < 0.5:  # else what is not plain ends one run after the other
            drafts = deque(sorted(drafts, key=lambda one: not is_plain(one)))
        while drafts:
            run: KnownRun | None = None
            numbers: list[int] = []
            if not self.engine.is_draining:
                most = self.config.batch.max_messages
                size = self._run_rng.choice([most, self._run_rng.randint(1, most)])
                run, numbers = next_run(self.engine, self.encoder, drafts, size, self.now)
            if run is None:
                self._produce(drafts.popleft())
                continue
            self._say(f"run of {len(run)}")
            self.runs.append(run)
            for number, entry in zip(numbers, run.known, strict=True):
                self._admitted(self._by_number[number], entry)

    def _produce(self, one: Draft) -> None:
        if self.engine.is_draining:
            self.gone.add(one.number)
            return
        encoded = self.encoder.encode(one.message)
        within = one.message.deliver_within or self.config.deliver_within
        entry = Entry(
            message=one.message,
            data=encoded.data,
            queue=one.message.queue,
            deduplication_id=encoded.deduplication_id,
            idempotent=encoded.idempotent,
            owns_id=encoded.owns_id,
            admitted_at=self.now,
            deadline=self.now + within,
            single=encoded.single,
            number=-1 - one.number,  # until the engine gives it its own
        )
        if self.engine.room.try_take(len(entry.data)):
            self._offer(entry)
            return
        ticket = self.engine.room.wait(entry, len(entry.data))
        if self.rng.random() < self.scenario.impatient:
            self._at(self.now + self.rng.expovariate(5.0), self._give_up, ticket, one)

    def _offer(self, entry: Entry) -> None:
        one = self._by_number[-1 - entry.number]
        within = entry.deadline - entry.admitted_at
        entry.admitted_at, entry.deadline = self.now, self.now + within
        self.engine.offer(entry)
        self._admitted(one, entry)

    def _admitted(self, one: Draft, entry: Entry) -> None:
        self.entries[one.number] = entry
        self._drafts_of[id(entry)] = one.number
        self.watch.on_offer(entry)
        if one.withdraw_at is not None:
            self._at(max(self.now, START + one.withdraw_at), self._withdraw, one.number, entry)

    def _give_up(self, ticket: Ticket[Entry], one: Draft) -> None:
        if not ticket.is_cancelled:
            self.engine.room.cancel(ticket)
            self.gone.add(one.number)
            self._say(f"{one.number} gives up waiting for room")

    def _withdraw(self, number: int, entry: Entry) -> None:
        taken = self.engine.withdraw(entry)
        self._say(f"withdraw {entry.number}: {taken}")
        if taken:
            self.withdrawn.add(number)

    def _flush(self) -> None:
        self.watch.on_flush(self.engine.flush())
        self._say("flush")

    def _drain(self) -> None:
        deadline = self.now + self.config.drain_within
        self._say(f"drain until {deadline - START:.3f}")
        self.watch.drain_at = deadline
        self.engine.drain(deadline, self.now)

    # --------------------------------------------------------------------------------------- requests

    def _post(self, batch: Batch) -> None:
        numbers = [entry.number for entry in carried(batch)]
        self.runs_sent += batch.run is not None
        self._say(f"#{batch.number} {batch.reason} {_short(numbers)} timeout {batch.timeout:.3f}")
        elapsed = self.now - START
        if any(start <= elapsed < end for start, end in self.scenario.outages):
            failure = Failure("connect", "connection refused", "not_sent")
            self._at(self.now + 0.001, self._complete, batch, failure)
            return
        uplink = min(self.rng.uniform(0.0, self.scenario.uplink), batch.timeout)
        if uplink:
            self._at(self.now + uplink, self._arrive, batch, self.now)
        else:
            self._arrive(batch, self.now)

    def _arrive(self, batch: Batch, sent_at: float) -> None:
        self.reached.update(entry.number for entry in carried(batch))
        single = batch.single
        target = BATCH_PATH if single is None else single.target
        headers = () if single is None else single.headers
        reply = self.upstream.respond(target, batch.body(), headers, self.now + self.offset)
        ends_at, answer = _seen(reply, self.now, sent_at + batch.timeout, self.offset)
        self._at(ends_at, self._complete, batch, answer)

    def _complete(self, batch: Batch, answer: Reply | Failure) -> None:
        what = answer.kind if isinstance(answer, Failure) else answer.status
        self._say(f"#{batch.number} answered: {what}")
        self.refused_requests += what == 429
        if batch.number in self.engine.out:
            self.watch.gate.on_answer(batch, answer, self.now)
        self.engine.complete(batch, answer, self.now)


def _seen(
    reply: SimulatedReply, arrived_at: float, timeout_at: float, offset: float
) -> tuple[float, Reply | Failure]:
    """What the transport makes of it, and when."""
    ends_at = arrived_at + reply.latency + reply.drip_over
    if ends_at >= timeout_at:
        return timeout_at, Failure("timeout", "no answer in time", "unknown")
    if reply.status is None:
        return ends_at, Failure("disconnect", "connection reset", "unknown")
    if reply.truncated:
        return ends_at, Failure("reply", "the reply was cut short", "unknown")
    headers = {name.lower(): value for name, value in reply.headers}
    return ends_at, Reply(reply.status, reply.body, headers, math.floor(ends_at + offset))


def _short(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 12 else f"{numbers[:6]}…{numbers[-3:]} ({len(numbers)})"
