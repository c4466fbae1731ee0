"""Many engines against one service in virtual time, lean enough for half a million messages in seconds.

Where `world` plays every fault with real encoding and judges every outcome, this plays load: entries are made
directly, replies are cached, and nothing is checked after each step, only at the end. A run is decided by its
scenario (`overload/*.toml`), its seed and the limit. Each engine is polled after its inputs and at its
`wake_at`, once an instant, as the runtime's pump does it.
"""

from __future__ import annotations

import heapq
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final

from dispatcher.core.batch import Entry, Failure, Reply
from dispatcher.core.engine import Engine
from dispatcher.core.invariants import check
from dispatcher.core.limit import FixedLimit
from dispatcher.message import Message
from tests.simulation.fleet_result import SAMPLE_SECONDS, Result
from tests.simulation.fleet_scenario import Burst, Saturating, Steady
from tests.simulation.fleet_upstream import TIMED_OUT, Service, Ways, loss, starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.config import Config
    from dispatcher.core.batch import Batch
    from dispatcher.core.limit import Limit
    from tests.simulation.fleet_scenario import Outage, Scenario, Traffic

MESSAGE: Final = Message("https://example.com/hook", "body")
DATA: Final = b"x" * 300
"""One message's encoded item."""


class SimulationError(AssertionError):
    """The simulation itself, or the contract with the engine, is broken."""


class Member:
    """One dispatcher of the fleet: its engine, and the producers that wait for its room."""

    def __init__(self, number: int, starts_at: float, config: Config, seed: int, limit: Limit | None) -> None:
        self.number = number
        self.starts_at = starts_at
        self.config = config
        self.engine = Engine(config, Random(f"{seed}:{number}"), limit)
        self.rng = Random(f"{seed}:producers:{number}")
        self.crowd = config.queue.max_messages // 2 + config.batch.max_messages
        """Producers that wait while it is saturated: more than one round of grants takes."""
        self.is_saturated = False
        self.is_touched = False
        self.delivered = 0
        self.wake_at = float("inf")
        """What the engine asked for."""
        self.alarm_at = float("inf")
        """The earliest event that is due to look at it."""

    def hand_in(self, messages: int, now: float) -> None:
        """Messages of producers that wait if there is no room."""
        engine = self.engine
        for _ in range(messages):
            entry = self._entry(now)
            if engine.room.try_take(len(DATA)):
                engine.offer(entry)
            else:
                engine.room.wait(entry, len(DATA))

    def admit(self, now: float) -> bool:
        """Admit those whose room is granted; are there any?"""
        engine = self.engine
        granted = engine.room.grants()
        for entry in granted:
            entry.admitted_at = now
            entry.deadline = now + self.config.deliver_within
            engine.offer(entry)
        if self.is_saturated:
            self.hand_in(self.crowd - engine.room.waiting, now)
        return bool(granted)

    def _entry(self, now: float) -> Entry:
        return Entry(MESSAGE, DATA, None, "id", True, True, now, now + self.config.deliver_within)


class Fleet:
    """One run. `limit` makes each dispatcher's limit; without it the configuration decides."""

    def __init__(self, scenario: Scenario, seed: int, limit: Callable[[], Limit] | None = None) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.result = Result(scenario, seed)
        self.service = Service(scenario.upstream, Random(f"{seed}:service"))
        self.ways = Ways(scenario.network, scenario.outages, Random(f"{seed}:network"))
        config = scenario.settings()
        instants = starts(scenario, Random(f"{seed}:starts"))
        self.members = [
            Member(number, at, config, seed, None if limit is None else limit())
            for number, at in enumerate(instants)
        ]
        self._touched: list[Member] = []
        self._events: list[tuple[float, int, Callable[..., None], Any, Any]] = []
        self._ticks = count()

    def run(self) -> Result:
        """Play until the scenario's end."""
        self._plan()
        events, end = self._events, self.scenario.seconds
        while events and events[0][0] <= end:
            now = self.now = events[0][0]
            while events and events[0][0] <= now:
                _, _, act, one, other = heapq.heappop(events)
                act(one, other)
            touched, self._touched = self._touched, []
            for member in touched:
                self._pump(member)
        self._finish()
        return self.result

    def _finish(self) -> None:
        engines = [member.engine for member in self.members]
        for engine in engines:
            check(engine)
        self.result.end(engines)

    def _at(self, at: float, act: Callable[..., None], one: object = None, other: object = None) -> None:
        heapq.heappush(self._events, (at, next(self._ticks), act, one, other))

    # --------------------------------------------------------------------------------------- producers

    def _plan(self) -> None:
        self._at(SAMPLE_SECONDS, self._sample, 1)
        for member in self.members:
            for traffic in self.scenario.traffic:
                self._plan_traffic(member, traffic)

    def _plan_traffic(self, member: Member, traffic: Traffic) -> None:
        if isinstance(traffic, Burst):
            if traffic.at >= member.starts_at:
                self._at(traffic.at, self._burst, member, traffic.messages)
        elif member.starts_at < traffic.end:
            starts_at = max(traffic.start, member.starts_at)
            if isinstance(traffic, Saturating):
                self._at(starts_at, self._saturate, member, True)
                self._at(traffic.end, self._saturate, member, False)
            else:
                self._at(starts_at + self._pause(member, traffic), self._produce, member, traffic)

    def _burst(self, member: Member, messages: int) -> None:
        member.hand_in(messages, self.now)
        self._touch(member)

    def _saturate(self, member: Member, is_saturated: bool) -> None:
        member.is_saturated = is_saturated
        if is_saturated:
            member.hand_in(member.config.queue.max_messages + member.crowd, self.now)
        else:
            member.engine.room.dismiss()
        self._touch(member)

    def _produce(self, member: Member, traffic: Steady) -> None:
        if self.now < traffic.end:
            self._burst(member, traffic.together)
            self._at(self.now + self._pause(member, traffic), self._produce, member, traffic)

    def _pause(self, member: Member, traffic: Steady) -> float:
        rate = traffic.rate / traffic.together
        return member.rng.expovariate(rate) if traffic.poisson else 1.0 / rate

    # ------------------------------------------------------------------------------------- the engines

    def _touch(self, member: Member) -> None:
        if not member.is_touched:
            member.is_touched = True
            self._touched.append(member)

    def _pump(self, member: Member) -> None:
        member.is_touched = False
        now = self.now
        while True:
            step = member.engine.poll(now)
            for batch in step.start:
                self._post(member, batch)
            if step.settled:
                member.delivered += self.result.on_settled(step.settled, now)
            if not (member.engine.room.waiting and member.admit(now)):
                break
        if step.wake_at <= now:
            raise SimulationError(f"asked at {now} the engine wants to be asked at {step.wake_at}")
        member.wake_at = step.wake_at
        self._arm(member)

    def _arm(self, member: Member) -> None:
        """One alarm for each: an earlier one is left, and arms anew."""
        if member.wake_at < member.alarm_at:
            member.alarm_at = member.wake_at
            self._at(member.wake_at, self._alarm, member, member.wake_at)

    def _alarm(self, member: Member, at: float) -> None:
        if at != member.alarm_at:
            return  # an earlier one has taken its place
        member.alarm_at = float("inf")
        if member.wake_at <= self.now:
            self._touch(member)
        else:
            self._arm(member)

    # ---------------------------------------------------------------------------------------- requests

    def _post(self, member: Member, batch: Batch) -> None:
        self.result.sent_at.append(self.now)
        arrives_at = self.now + self.ways.seconds()
        outage = self.ways.outage_between(self.now, arrives_at)
        if outage is None:
            self._at(arrives_at, self._arrive, member, batch)
        else:
            failure, at = self._loss(member, batch, outage)
            self._at(at, self._complete, member, (batch, failure))

    def _arrive(self, member: Member, batch: Batch) -> None:
        answer: Reply | Failure
        answer, seconds = self.service.respond(len(batch.entries), self.now)
        ends_at = self.now + seconds + self.ways.seconds()
        timeout_at = batch.started_at + batch.timeout
        outage = self.ways.outage_between(self.now, ends_at)
        if outage is not None:
            answer, ends_at = self._loss(member, batch, outage)
        if ends_at > timeout_at:
            answer, ends_at = TIMED_OUT, max(self.now, timeout_at)
        self._at(ends_at, self._complete, member, (batch, answer))

    def _loss(self, member: Member, batch: Batch, outage: Outage) -> tuple[Failure, float]:
        return loss(outage, batch, self.now, member.config.transport.connect_timeout)

    def _complete(self, member: Member, what: tuple[Batch, Reply | Failure]) -> None:
        batch, answer = what
        word = answer.kind if isinstance(answer, Failure) else str(answer.status)
        self.result.on_answer(batch, word, self.now)
        member.engine.complete(batch, answer, self.now)
        self._touch(member)

    def _sample(self, number: int, _: None) -> None:
        running = [member for member in self.members if member.starts_at <= self.now]
        delivered = tuple(member.delivered for member in running)
        self.result.sample([member.engine for member in running], delivered, self.now)
        self._at((number + 1) * SAMPLE_SECONDS, self._sample, number + 1)


def play(scenario: Scenario, seed: int, *, fixed: int | None = None) -> Result:
    """One run, with the configuration's limit or with a fixed one."""
    return Fleet(scenario, seed, None if fixed is None else lambda: FixedLimit(fixed)).run()
