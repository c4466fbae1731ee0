"""One engine at a clock moved by hand, with the answers a test needs in a word each."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

from dispatcher.config import Config
from dispatcher.core.batch import CERTAINTIES, Batch, Entry, Failure, Reply, Run, SingleRequest, Step
from dispatcher.core.engine import Engine
from dispatcher.core.invariants import check
from dispatcher.errors import (
    Abandoned,
    DeadlineExceeded,
    DeliveryError,
    Halted,
    MessageRejected,
    OutcomeUnknown,
    QuotaExhausted,
    RetriesExhausted,
)
from dispatcher.message import Message, Receipt
from tests.core.known_run import KnownRun, carried, delivered, known_run, offer_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dispatcher.core.limit import Limit

URL = "https://example.com/hook"
UNIX = 1_790_000_000.0
"""What the service's clock says when it answers."""


def make_entry(
    *,
    size: int = 10,
    queue: str | None = None,
    admitted_at: float = 0.0,
    within: float = 120.0,
    idempotent: bool = True,
    identity: str | None = None,
    is_single: bool = False,
    destination: str = URL,
) -> Entry:
    """An entry of `size` encoded bytes, as admission would make it."""
    return Entry(
        message=Message(destination, "body", queue=queue),
        data=b"x" * size,
        queue=queue,
        deduplication_id=identity,
        idempotent=idempotent,
        owns_id=idempotent,
        admitted_at=admitted_at,
        deadline=admitted_at + within,
        single=SingleRequest("/v2/publish/" + destination, ()) if is_single else None,
    )


class Extremes:
    """A random source that always draws the upper end (or what the test says)."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def uniform(self, a: float, b: float, /) -> float:
        """The point at `share` between the two."""
        return a + (b - a) * self.share


class Rig:
    """An engine, its clock, and what has left it."""

    def __init__(
        self, *, limit: Limit | None = None, rng: Any = None, now: float = 100.0, **config: Any
    ) -> None:
        config.setdefault("limit_mode", "fixed")
        self.engine = Engine(Config.load(env={}, token="t", **config), rng or Random(1), limit)
        self.is_checked = True
        self.now = now
        self.wake_at = float("inf")
        self.out: list[Batch] = []
        """Started and not answered, oldest first."""
        self.settled: list[Entry] = []
        self.delivered: list[Run] = []
        """What of it has settled as a whole."""
        self.started: list[Batch] = []

    def put(self, number: int = 1, **shape: Any) -> list[Entry]:
        """Admit that many entries of one shape."""
        shape.setdefault("within", self.engine.config.deliver_within)
        entries = [make_entry(admitted_at=self.now, **shape) for _ in range(number)]
        for entry in entries:
            if entry.deduplication_id is None and entry.idempotent:
                entry.deduplication_id = f"id-{self.engine.tally.admitted}"
            assert self.engine.room.try_take(len(entry.data)), "the rig's room is full"
            self.engine.offer(entry)
        return entries

    def put_run(self, number: int, **shape: Any) -> KnownRun:
        """Admit that many plain entries of one shape together."""
        shape.setdefault("within", self.engine.config.deliver_within)
        names = [f"id-{self.engine.tally.admitted + place}" for place in range(number)]
        run = known_run([make_entry(admitted_at=self.now, identity=name, **shape) for name in names])
        assert self.engine.room.reserve(number, run.size_bytes) == (number, run.size_bytes)
        offer_run(self.engine, run)
        return run

    def poll(self) -> list[Batch]:
        """Poll once, check every invariant; what has started."""
        step: Step = self.engine.poll(self.now)
        assert step.wake_at > self.now
        self.out += step.start
        self.started += step.start
        left = [*step.settled, *(entry for run in step.delivered for entry in delivered(run))]
        self.settled += left
        self.delivered += step.delivered
        self.wake_at = step.wake_at
        if self.is_checked:
            check(self.engine)
        for entry in left:
            check_outcome(entry)
        expected = Counter(word_of(entry) for entry in self.settled)
        assert expected == self.engine.tally.finished, "outcomes are counted under other words"
        return step.start

    def advance(self, seconds: float) -> list[Batch]:
        """Move the clock, waking whenever the engine asks for it; what has started meanwhile."""
        until, started = self.now + seconds, self.poll()
        while self.wake_at <= until:
            self.now = self.wake_at
            started += self.poll()
        self.now = until
        return started + self.poll()

    def next(self) -> Batch:
        """Wake as often as the engine asks until something starts; the one batch that does."""
        started = self.poll()
        while not started:
            self.now = self.wake_at
            started = self.poll()
        (batch,) = started
        return batch

    def answer(self, batch: Batch, answer: Reply | Failure) -> list[Batch]:
        """Complete a batch and poll."""
        self.out.remove(batch)
        self.engine.complete(batch, answer, self.now)
        return self.poll()

    def ok(self, batch: Batch) -> list[Batch]:
        """The service takes everything; ids tell the entries apart."""
        return self.answer(batch, accepted(carried(batch)))

    def errors(self, batch: Batch, *positions: int) -> list[Batch]:
        """The service takes everything but these positions."""
        values: list[object] = [{"messageId": f"m{entry.number}"} for entry in carried(batch)]
        for position in positions:
            values[position] = {"error": "try again later"}
        return self.answer(batch, Reply(200, json.dumps(values).encode()))

    def fail(self, batch: Batch, kind: str = "disconnect") -> list[Batch]:
        """The transport fails."""
        certainty: Any = "not_sent" if kind == "connect" else "unknown"
        return self.answer(batch, Failure(kind, f"{kind} failed", certainty))

    def throttle(self, batch: Batch, seconds: float, status: int = 429) -> list[Batch]:
        """The service asks to wait that long."""
        return self.answer(batch, Reply(status, b"", {"retry-after": str(seconds)}))

    def spend_quota(self, batch: Batch, seconds: float) -> list[Batch]:
        """The daily quota is spent, and filled again after that long by the service's clock."""
        headers = {
            "ratelimit-limit": "1000",
            "ratelimit-remaining": "0",
            "ratelimit-reset": str(UNIX + seconds),
        }
        return self.answer(batch, Reply(429, b"", headers, UNIX))

    def play(
        self, service: Callable[[Batch], Reply | Failure], seconds: float, *, latency: float = 0.05
    ) -> int:
        """Answer every request after `latency` by what `service` says, for so long; how many there were."""
        until, asked = self.now + seconds, len(self.started)
        self.poll()
        while True:
            ready_at = min((batch.started_at + latency for batch in self.out), default=float("inf"))
            at = min(ready_at, self.wake_at)
            if at > until:
                self.now = until
                return len(self.started) - asked
            self.now = max(at, self.now)
            due = [batch for batch in self.out if batch.started_at + latency <= self.now]
            for batch in due:
                self.out.remove(batch)
                self.engine.complete(batch, service(batch), self.now)
            self.poll()

    def refuse(self, batch: Batch, status: int = 400, text: str = "invalid request") -> list[Batch]:
        """The service refuses the whole request."""
        return self.answer(batch, Reply(status, json.dumps({"error": text}).encode()))

    def serve(
        self, refuses: Callable[[Entry], bool], status: int = 400, text: str = "invalid request"
    ) -> int:
        """Answer until nothing is out, refusing requests that carry a culprit; how many requests."""
        requests = 0
        while self.out:
            batch = self.out[0]
            requests += 1
            if any(refuses(entry) for entry in carried(batch)):
                self.refuse(batch, status, text)
            else:
                self.ok(batch)
        return requests

    @property
    def numbers(self) -> list[list[int]]:
        """Admission numbers in every request so far."""
        return [numbers(carried(batch)) for batch in self.started]


def accepted(entries: Sequence[Entry]) -> Reply:
    """A reply that takes everything; a publish is answered without an array."""
    values = [{"messageId": f"m{entry.number}"} for entry in entries]
    is_single = any(entry.single is not None for entry in entries)
    return Reply(200, json.dumps(values[0] if is_single else values).encode())


def numbers(entries: Iterable[Entry]) -> list[int]:
    """Their numbers of admission."""
    return [entry.number for entry in entries]


def is_held(entry: Entry) -> bool:
    """Nothing has settled it yet."""
    return entry.outcome is None


def certainty(entry: Entry) -> str:
    """What a failed entry's error says is known."""
    value: str = entry.outcome.certainty  # type: ignore[union-attr]
    return value


WORDS = {
    Receipt: "delivered",
    MessageRejected: "rejected",
    OutcomeUnknown: "unknown",
    DeadlineExceeded: "deadline_exceeded",
    RetriesExhausted: "retries_exhausted",
    QuotaExhausted: "quota_exhausted",
    Halted: "halted",
    Abandoned: "abandoned",
}


def word_of(entry: Entry) -> str:
    """Under which word its outcome is counted."""
    outcome = entry.outcome
    if isinstance(outcome, Abandoned) and "withdrawn" in outcome.reason:
        return "withdrawn"
    return WORDS[type(outcome)]


def check_outcome(entry: Entry) -> None:
    """What every failure carries: its message, ready to be sent again, its attempts, a reason in words."""
    outcome = entry.outcome
    if isinstance(outcome, Receipt):
        assert outcome.deduplication_id == entry.deduplication_id
        return
    assert isinstance(outcome, DeliveryError)
    assert outcome.message.destination == entry.message.destination
    assert outcome.message.deduplication_id == (entry.deduplication_id or entry.message.deduplication_id)
    assert outcome.certainty in CERTAINTIES
    assert outcome.attempts == entry.attempts
    assert outcome.reason
    assert "None" not in str(outcome)


def receipts(rig: Rig) -> dict[int, Receipt]:
    """Receipts by number of admission."""
    return {entry.number: entry.outcome for entry in rig.settled if isinstance(entry.outcome, Receipt)}
