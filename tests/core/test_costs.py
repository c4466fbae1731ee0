"""What the core must not cost: memory for what is settled, time for lanes that are idle."""

from __future__ import annotations

import time
from random import Random
from statistics import median
from typing import Any, ClassVar

import pytest

from dispatcher.config import Config, LimitSettings
from dispatcher.core.batch import Entry, Reply
from dispatcher.core.engine import Engine
from dispatcher.core.invariants import check
from dispatcher.message import Message
from tests.core.rig import accepted, make_entry

MESSAGES = 1_000_000
ALIVE_AT_MOST = 20_000
MESSAGE = Message("https://example.com/hook", "body")
CYCLES = 1_500


class CountedEntry(Entry):
    """An entry that counts how many of its kind are alive."""

    alive: ClassVar[int] = 0

    def __post_init__(self) -> None:
        CountedEntry.alive += 1

    def __del__(self) -> None:
        CountedEntry.alive -= 1


def counted(now: float, within: float = 120.0) -> CountedEntry:
    return CountedEntry(MESSAGE, b"{}", None, "id", True, True, now, now + within)


def test_the_counter_counts() -> None:
    """Entries that are kept are alive, entries that are dropped are not: the next test can fail."""
    assert CountedEntry.alive == 0
    kept = [counted(0.0) for _ in range(100)]
    assert CountedEntry.alive == 100
    del kept[50:]
    assert CountedEntry.alive == 50
    kept.clear()
    assert CountedEntry.alive == 0


def test_a_million_delivered_messages_leave_nothing_behind() -> None:
    """With deadlines two minutes away, nothing keeps the settled ones alive until then."""
    engine = Engine(Config(token="t", limit=LimitSettings(mode="fixed")), Random(1))
    body = b"[" + b",".join([b'{"messageId":"msg_0123456789"}'] * 100) + b"]"
    now, peak = 1_000.0, 0
    for _ in range(MESSAGES // 1_000):
        for _ in range(1_000):
            assert engine.room.try_take(2)
            engine.offer(counted(now))
        now += 0.02  # a million in 20 s: long before the first deadline
        for batch in engine.poll(now).start:
            engine.complete(batch, Reply(200, body), now)
        peak = max(peak, CountedEntry.alive)
        assert len(engine.poll(now).settled) == 1_000
    del batch
    assert engine.tally.finished == {"delivered": MESSAGES}
    assert peak < ALIVE_AT_MOST
    assert CountedEntry.alive < 1_000
    check(engine)


def test_failures_and_withdrawals_leave_nothing_behind() -> None:
    """Nor do messages that were retried, isolated or withdrawn, while one stays in flight for ever."""
    engine = Engine(Config(token="t", limit=LimitSettings(mode="fixed")), Random(1))
    now = 1_000.0
    assert engine.room.try_take(2)
    stuck = counted(now, 1e9)
    stuck.idempotent = False  # it is never given up: what is settled must not hang on what is held to the end
    engine.offer(stuck)
    (first,) = engine.poll(now).start
    for cycle in range(300):
        entries = []
        for number in range(100):
            entries.append(counted(now))
            entries[-1].queue = f"q{number % 7}" if number % 2 else None
            assert engine.room.try_take(2)
            engine.offer(entries[-1])
        engine.withdraw(entries[cycle % 100])
        del entries
        while engine.tally.admitted - engine.settled_total > 1:
            step = engine.poll(now)
            for index, batch in enumerate(step.start):
                answer = (Reply(400, b"{}"), Reply(429, b""), accepted(batch.entries))[(cycle + index) % 3]
                engine.complete(batch, answer if len(batch.entries) > 1 else accepted(batch.entries), now)
            if not step.start:
                now = min(now + 1.0, step.wake_at)
            cycle += 1
    check(engine)
    del batch, step
    engine.poll(now)
    assert engine.tally.isolations > 10
    assert engine.tally.finished["withdrawn"] > 100
    assert first.entries[0].outcome is None
    assert CountedEntry.alive < 1_000, "of 30,000"


class Cycle:
    """One message in, one request out, one answer back, with many lanes standing by."""

    def __init__(self, lanes: int, kind: str) -> None:
        limits: dict[str, Any] = {
            "queue_max_messages": 100_000,
            "limit_max_in_flight": 1_000,
            "limit_mode": "fixed",
        }
        config = Config.load(env={}, token="t", **limits)
        self.engine = Engine(config, Random(1))
        self.now = 1_000.0
        for number in range(lanes):
            self._offer(f"q{number}")
        out = self.engine.poll(self.now).start
        if kind == "idle":
            for batch in out:
                self.engine.complete(batch, accepted(batch.entries), self.now)
        else:
            for number in range(lanes):
                self._offer(f"q{number}")
        self.engine.poll(self.now)
        self.took: list[int] = []

    def _offer(self, queue: str | None) -> None:
        entry = make_entry(queue=queue, admitted_at=self.now)
        assert self.engine.room.try_take(len(entry.data))
        self.engine.offer(entry)

    def turn(self) -> None:
        """Measure one cycle: two polls, an offer and an answer."""
        self.now += 0.02
        engine = self.engine
        entry = make_entry(admitted_at=self.now)
        engine.room.try_take(len(entry.data))
        began_at = time.perf_counter_ns()
        engine.offer(entry)
        step = engine.poll(self.now)
        if not step.start:
            step = engine.poll(self.now + 0.01)
        engine.complete(step.start[0], Reply(200, b'[{"messageId":"m"}]'), self.now)
        engine.poll(self.now)
        self.took.append(time.perf_counter_ns() - began_at)


@pytest.mark.parametrize("kind", ["idle", "muted"])
def test_idle_lanes_cost_nothing(kind: str) -> None:
    """A poll and its `wake_at` cost the same with ten and with ten thousand of them (±50 %)."""
    few, many = Cycle(10, kind), Cycle(10_000, kind)
    for _ in range(CYCLES):
        few.turn()
        many.turn()
    ratio = median(many.took) / median(few.took)
    assert 1 / 1.5 < ratio < 1.5, f"{median(few.took)} ns with 10 lanes, {median(many.took)} ns with 10,000"
