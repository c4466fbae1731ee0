"""A state machine over the engine: any sequence of its inputs, answered by anything at all.

Where the simulation plays a likely world, this one is hostile: every outstanding request can be answered with
every status and failure, truly or not. The same watch looks on after every step; the small service here
knows what was accepted, so that certainties, receipts, order and doubles are judged exactly.
"""

from __future__ import annotations

import json
from itertools import count
from random import Random
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dispatcher.config import Config, Queue
from dispatcher.core.batch import IN_FLIGHT, SETTLED, WAITING, Batch, Entry, Failure, Reply
from dispatcher.core.engine import Engine
from dispatcher.errors import Abandoned, DeliveryError
from dispatcher.message import Receipt
from tests.core.known_run import carried, delivered, known_run, offer_run
from tests.core.rig import UNIX, make_entry
from tests.simulation.watch import Watch

QUEUES: Final = (None, None, "plain", "strict", "stop")
POISONS: Final = (0, 0, 0, 0, 0, 0, 400, 404, 413, 500)
STATUSES: Final = (300, 400, 401, 403, 404, 409, 412, 413, 422, 429, 500, 502, 503, 504)
FAILURES: Final = ("connect", "disconnect", "timeout", "reply")
INF: Final = float("inf")
SPIN_STEPS: Final = 3_000
"""So many steps while the clock moves once are a busy loop."""


class SmallService:
    """What was accepted: by admission number, and the order of it within each queue."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}
        self.orders: dict[str, list[int]] = {}
        self.passed_over: set[int] = set()

    def accept(self, entries: list[Entry], failing: frozenset[int] = frozenset()) -> list[object]:
        """Accept all but some positions; the reply's entries."""
        values: list[object] = []
        for position, entry in enumerate(entries):
            number = entry.number
            is_known = entry.idempotent and number in self.times
            if position in failing and not is_known:
                values.append({"error": "later"})
                later = (each.queue for place, each in enumerate(entries) if place > position)
                if entry.queue is not None and entry.queue in later:
                    self.passed_over.add(number)
                continue
            if not is_known:
                self.times[number] = self.times.get(number, 0) + 1
                if entry.queue is not None:
                    self.orders.setdefault(entry.queue, []).append(number)
            values.append({"messageId": f"m{number}"} | ({"deduplicated": True} if is_known else {}))
        return values


class EngineMachine(RuleBasedStateMachine):
    """One engine, its inputs as rules, its oracles after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.wake_at = INF
        self.out: list[Batch] = []
        self.entries: list[Entry] = []
        self.poisons: dict[int, int] = {}
        self.sent: set[int] = set()
        self.withdrawn: set[int] = set()
        self.service = SmallService()

    @initialize(
        slots=st.integers(1, 4),
        messages=st.integers(1, 5),
        size=st.sampled_from([1_000_000, 150]),
        attempts=st.sampled_from([None, None, 3]),
        linger=st.sampled_from([0.0, 0.01, 1.0]),
        mode=st.sampled_from(["adaptive", "fixed"]),
        seed=st.integers(0, 9),
    )
    def open(
        self,
        slots: int,
        messages: int,
        size: int,
        attempts: int | None,
        linger: float,
        mode: str,
        seed: int,
    ) -> None:
        """Make the engine."""
        config = Config.load(
            env={},
            token="t",
            limit_max_in_flight=slots,
            limit_mode=mode,
            retry_budget=28,
            batch_max_messages=messages,
            batch_max_bytes=size,
            batch_linger=linger,
            retry_max_attempts=attempts,
            retry_error_entry_attempts=3,
            queues={"strict": Queue(strict=True), "stop": Queue(on_failure="stop")},
        )
        self.rng = Random(seed)
        self.engine = Engine(config, Random(seed))
        self.watch = Watch(self.engine, 1, lambda at: at + UNIX)
        self._pump()

    # -------------------------------------------------------------------------------------- inputs

    @rule(
        queue=st.sampled_from(QUEUES),
        poison=st.sampled_from(POISONS),
        within=st.sampled_from([0.5, 5.0, 60.0, 300.0]),
        has_id=st.sampled_from([True, True, True, False]),
        is_single=st.sampled_from([False, False, False, True]),
        number=st.integers(1, 4),
    )
    def offer(
        self, queue: str | None, poison: int, within: float, has_id: bool, is_single: bool, number: int
    ) -> None:
        """Admit a few messages of one kind, the last of which may be poisonous."""
        if self.engine.is_draining:
            return
        for _ in range(number):
            entry = make_entry(
                queue=queue,
                admitted_at=self.now,
                within=within,
                idempotent=has_id,
                identity=f"id-{len(self.entries)}" if has_id else None,
                is_single=is_single,
            )
            assert self.engine.room.try_take(len(entry.data))
            self.engine.offer(entry)
            self.watch.on_offer(entry)
            self.entries.append(entry)
        self.poisons[self.entries[-1].number] = poison
        self._pump()

    @rule(
        poison=st.sampled_from(POISONS),
        within=st.sampled_from([0.5, 5.0, 60.0, 300.0, 300.0]),
        size=st.sampled_from([1, 10, 60]),
        number=st.integers(1, 5),
    )
    def offer_run(self, poison: int, within: float, size: int, number: int) -> None:
        """Admit some together, the last of which may be poisonous; they may be more than a batch takes."""
        if self.engine.is_draining:
            return
        entries = [
            make_entry(size=size, admitted_at=self.now, within=within, identity=f"id-{len(self.entries) + i}")
            for i in range(number)
        ]
        assert self.engine.room.reserve(number, number * size) == (number, number * size)
        run = known_run(entries)
        offer_run(self.engine, run)
        for entry in entries:
            self.watch.on_offer(entry)
        self.entries += entries
        self.poisons[entries[-1].number] = poison
        self._pump()

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 3), failing=st.sets(st.integers(0, 4), max_size=1))
    def serve(self, place: int, failing: set[int]) -> None:
        """Answer a request as an honest service does, with an error entry now and then."""
        batch = self.out[place % len(self.out)]
        self._complete(batch, self._honest(batch, frozenset(failing)))

    @rule(batches=st.integers(2, 12))
    def serve_more(self, batches: int) -> None:
        """Answer requests, and those that follow them, oldest first."""
        while self.out and batches:
            batches -= 1
            self._complete(self.out[0], self._honest(self.out[0]))

    @precondition(lambda self: self.out)
    @rule(
        place=st.integers(0, 3), status=st.sampled_from(STATUSES), seconds=st.sampled_from([0, 0, 1, 7, 3600])
    )
    def refuse(self, place: int, status: int, seconds: int) -> None:
        """Answer with any status, and a pause where one may be."""
        batch = self.out[place % len(self.out)]
        headers = {}
        if seconds and status in (429, 503):
            name = self.rng.choice(["retry-after", "burst-ratelimit-reset", "ratelimit-reset"])
            headers[name] = str(seconds if name == "retry-after" else UNIX + self.now + seconds)
        if status >= 500 and self.rng.random() < 0.5 and not headers:
            self.service.accept(carried(batch))  # the answer is lost, not the messages
        self._complete(batch, Reply(status, b"{}", headers, UNIX + self.now))

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 3), kind=st.sampled_from(FAILURES), was_taken=st.booleans())
    def lose(self, place: int, kind: str, was_taken: bool) -> None:
        """The transport fails, before or after the service took it."""
        batch = self.out[place % len(self.out)]
        if was_taken and kind != "connect":
            self.service.accept(carried(batch))
        self._complete(batch, _failure(kind))

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 3), how=st.sampled_from(["short", "garbled", "strange"]))
    def mangle(self, place: int, how: str) -> None:
        """The service takes it and its reply does not match."""
        batch = self.out[place % len(self.out)]
        values = self.service.accept(carried(batch))
        if how == "strange":
            values = [{"state": "queued"} for _ in values]
        body = json.dumps(values[:-1] if how == "short" else values).encode()
        if batch.single is not None or (how == "short" and len(values) == 1):
            body = b"[]"
        self._complete(batch, Reply(200, body[: len(body) // 2] if how == "garbled" else body))

    @precondition(lambda self: self.entries)
    @rule(place=st.integers(0, 50))
    def withdraw(self, place: int) -> None:
        """Take one back."""
        entry = self.entries[place % len(self.entries)]
        was_out = entry.state in (IN_FLIGHT, SETTLED) or any(
            batch.run is not None and entry in carried(batch) for batch in self.out
        )
        if self.engine.withdraw(entry):
            assert not was_out, "withdrawn too late"
            self.withdrawn.add(entry.number)
        else:
            is_fresh = entry.state == WAITING and entry.trouble is None
            assert was_out or not is_fresh, "it only waits, and is not withdrawn"
        self._pump()

    @rule()
    def flush(self) -> None:
        """Cover everything so far."""
        self.watch.on_flush(self.engine.flush())
        self._pump()

    @rule()
    def resume(self) -> None:
        """Let the stopping queue go on."""
        was_stopped = "stop" in self.watch.stopped
        assert self.engine.resume("stop") == was_stopped, "the engine and the watch disagree on stopping"
        self.watch.on_resume("stop")
        self._pump()

    @rule()
    def replace_token(self) -> None:
        """Whatever was refused is tried again."""
        self.watch.gate.on_unhalt()
        self.engine.unhalt()
        self._pump()

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.2, 0.5, 1.0, 3.0, 31.0, 100.0]))
    def advance(self, seconds: float) -> None:
        """Let time pass; requests that nobody answers time out."""
        until = self.now + seconds
        for step in count():
            assert step < SPIN_STEPS, "a busy loop"
            timeout_at = min((batch.started_at + batch.timeout for batch in self.out), default=INF)
            at = min(self.wake_at, timeout_at)
            if at > until:
                break
            self.now = max(self.now, at)
            for batch in [each for each in self.out if each.started_at + each.timeout <= self.now]:
                if self.rng.random() < 0.5:
                    self.service.accept(carried(batch))
                self._complete(batch, _failure("timeout"), is_last=False)
            self._pump()
        self.now = until
        self._pump()

    @precondition(lambda self: not self.engine.is_draining and len(self.entries) > 8)
    @rule(seconds=st.sampled_from([0.2, 20.0]))
    def drain(self, seconds: float) -> None:
        """Close: nothing new comes, and nothing is held at the deadline."""
        self.watch.drain_at = self.now + seconds
        self.engine.drain(self.watch.drain_at, self.now)
        self._pump()

    def teardown(self) -> None:
        """Close, and judge everything."""
        if not hasattr(self, "engine"):
            return
        if not self.engine.is_draining:
            self.drain(20.0)
        self.advance(40.0)
        assert self.engine.settled_total == len(self.entries), "not everything is settled"
        assert self.engine.room.held_messages == self.engine.room.held_bytes == 0, "room is not given back"
        for entry in self.entries:
            self._judge(entry)

    # -------------------------------------------------------------------------------------- oracles

    def _pump(self) -> None:
        self.watch.before_step(self.now)
        step = self.engine.poll(self.now)
        self.out += step.start
        self.sent.update(entry.number for batch in step.start for entry in carried(batch))
        self.watch.on_step(step, self.now)
        self.wake_at = step.wake_at
        for entry in (*step.settled, *(entry for run in step.delivered for entry in delivered(run))):
            self._judge(entry)

    def _complete(self, batch: Batch, answer: Reply | Failure, *, is_last: bool = True) -> None:
        self.out.remove(batch)
        if batch.number in self.engine.out:
            self.watch.gate.on_answer(batch, answer, self.now)
        self.engine.complete(batch, answer, self.now)
        if is_last:
            self._pump()

    def _honest(self, batch: Batch, failing: frozenset[int] = frozenset()) -> Reply:
        poison = max(self.poisons.get(entry.number, 0) for entry in carried(batch))
        if poison:
            return Reply(poison, b'{"error":"refused"}')
        values: Any = self.service.accept(carried(batch), failing)
        return Reply(200, json.dumps(values if batch.single is None else values[0]).encode())

    def _judge(self, entry: Entry) -> None:
        """Its outcome against what the service knows, when it settles and at the end."""
        number, outcome = entry.number, entry.outcome
        times = self.service.times.get(number, 0)
        assert times <= 1, f"entry {number} was accepted {times} times"
        if isinstance(outcome, Receipt):
            assert times == 1, f"entry {number} has a receipt and was not accepted"
            assert outcome.message_id == f"m{number}", f"entry {number} has its neighbour's receipt"
            assert outcome.deduplication_id == entry.deduplication_id, "another deduplication id"
        else:
            assert isinstance(outcome, DeliveryError), f"entry {number} has no outcome"
            if outcome.certainty in ("not_sent", "not_accepted"):
                assert not times, f"entry {number} says {outcome.certainty} and was accepted"
            if outcome.certainty == "not_sent":
                # A refused connection sent nothing, although a request was tried.
                connects = [attempt for attempt in outcome.attempts if "connect" in attempt.outcome]
                assert len(connects) == len(outcome.attempts), "not_sent, and something else happened"
                assert outcome.attempts or number not in self.sent, "not_sent, and sent"
            if number in self.withdrawn:
                assert isinstance(outcome, Abandoned), "withdrawn, and something else"
                assert not times, "withdrawn, and accepted"
        if entry.queue is not None:
            self._judge_order(entry.queue)

    def _judge_order(self, queue: str) -> None:
        accepted = [n for n in self.service.orders.get(queue, []) if n not in self.service.passed_over]
        assert accepted == sorted(accepted), f"queue {queue} was accepted out of order: {accepted}"
        if queue == "strict":
            assert not self.service.passed_over & set(self.service.orders.get(queue, ())), "strict overtaken"


def _failure(kind: str) -> Failure:
    return Failure(kind, f"{kind} failed", "not_sent" if kind == "connect" else "unknown")
