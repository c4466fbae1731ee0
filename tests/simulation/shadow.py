"""The gate once more, written from the protocol's words and not from the core's: the oracle of its rules.

It sees what the service answers and what the engine starts, and says what may start: everything, one
probe, or nothing. It draws no jitter, so its pauses are the shortest that are allowed; `LATEST` more is the
longest. It measures a reset by the service's own clock as the simulation knows it, not as the reply tells it.
Called by the watch after every step, and by the state machine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import Batch, Failure, Reply
from dispatcher.core.gate import PROBE_RETRY_SECONDS
from dispatcher.core.replies import Accepted, AcceptedByGroup
from dispatcher.core.settlement import _read
from tests.core.known_run import carried, is_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.core.batch import Entry
    from dispatcher.core.engine import Engine

LATEST: Final = 1.25 + 1e-6
"""Seconds later than asked for at which the gate must have opened: jitter, and a Date in whole seconds."""
BURST_MAX: Final = 60.0
DAY: Final = 86_400.0
LONE: Final = 3
ROUNDING: Final = 1e-6
JUDGED: Final = frozenset({400, 409, 412, 413, 422})


class ShadowGate:
    """What the gate has to do, by everything that was answered so far."""

    def __init__(self, engine: Engine, service_clock: Callable[[float], float]) -> None:
        self.engine = engine
        self.is_paused = self.is_refused = self.is_first_contact = self.is_systemic = self.is_quota = False
        self.has_accepted = False
        self.quiet_until = 0.0
        """Nothing starts before it while the gate is paused."""
        self.halted_until = 0.0
        self.probe: int | None = None
        self.lone = self.bare = self.bare_pauses = 0
        self.is_outage = False
        self.failed = self.outage_probes = 0
        self._started = self._outdated = 0
        self._told: dict[str, tuple[int, int]] = {}
        """By kind of streak: what had started at its first and at its latest."""
        self._service_clock = service_clock

    # ---------------------------------------------------------------------------------------- questions

    @property
    def is_open(self) -> bool:
        """Everything may start."""
        return not (self.is_paused or self.is_refused)

    def may_probe(self, now: float) -> bool:
        """One batch may start."""
        due_at = max(self.quiet_until * self.is_paused, self.halted_until * self.is_refused)
        return self.probe is None and now >= due_at - ROUNDING

    def must_probe(self, now: float) -> bool:
        """One batch has to start, if there is one."""
        return not self.is_open and self.may_probe(now - LATEST)

    # ------------------------------------------------------------------------------------------- events

    def on_starts(self, batches: list[Batch], now: float) -> None:
        """Check what one step started."""
        for batch in batches:
            if not self.is_open:
                assert self.may_probe(now), f"batch {batch.number} starts at a gate that is {self}"
                self.probe = batch.number
            self._started = batch.number
        state = self.engine.gate.state
        expected = self.is_refused, self.is_first_contact and self.is_refused, self.is_paused
        found = state in ("halted", "refused"), state == "refused", self.engine.gate.pause is not None
        assert self.is_refused or (state == "outage") == self.is_outage, (
            f"the gate says {state} and is {self}"
        )
        assert found == expected, f"the gate says {state} and is {self}"

    def on_answer(self, batch: Batch, answer: Reply | Failure, now: float) -> None:
        """A batch is about to be completed with this answer."""
        meaning = self._meaning(batch, answer)
        is_probe = batch.number == self.probe
        if is_probe:
            self.probe = None
        if meaning == "accepted":
            self._on_accepted(is_probe=is_probe)
        elif meaning == "understood":
            self._on_understood(batch, answer, now, is_probe=is_probe)
        elif self._is_of_outage(batch, answer, now) and not (self.is_refused or is_probe > self.is_outage):
            self._on_failed_at_once(batch, answer, now, is_probe=is_probe)
        elif batch.number <= self._outdated:
            return
        elif meaning == "refused":
            self._refuse(now, is_systemic=isinstance(answer, Reply) and self._is_lone(answer.status))
        elif isinstance(answer, Reply) and meaning == "throttled":
            self._on_throttled(batch, answer, now, is_probe=is_probe)
        elif is_probe and self.is_refused:
            self.halted_until = now + 30.0
        elif is_probe:
            self.quiet_until = now + PROBE_RETRY_SECONDS

    def on_unhalt(self) -> None:
        """The token was replaced."""
        self.probe = None
        self.halted_until = self.quiet_until = 0.0
        self.lone = self.bare = self.failed = 0
        self._outdated = self._started
        if self.is_first_contact:
            self.is_refused = self.is_first_contact = False

    # ------------------------------------------------------------------------------------------ meaning

    def _meaning(self, batch: Batch, answer: Reply | Failure) -> str:
        if isinstance(answer, Failure):
            return "vague"
        status = answer.status
        if 200 <= status < 300:
            entries = carried(batch)
            outcomes = _read(Batch(entries, batch.size_bytes, "", single=batch.single), answer)
            if not outcomes:
                return "vague"
            pairs = zip(entries, outcomes, strict=True)
            taken = [e for e, o in pairs if isinstance(o, Accepted | AcceptedByGroup)]
            return "accepted" if any(is_out(batch, entry) for entry in taken) else "understood"
        if status == 429 or (status == 503 and "retry-after" in answer.headers):
            return "throttled"
        if status == 401 or 300 <= status < 400:
            return "refused"
        if status in JUDGED or (status == 500 and b"maxMessageSize" in answer.body):
            return "understood"
        if self._is_lone(status):
            return "refused" if self.is_refused and self.is_systemic else "understood"
        return "vague"

    @staticmethod
    def _is_lone(status: int) -> bool:
        return 400 <= status < 500 and status not in JUDGED and status not in (401, 408, 429)

    def _on_accepted(self, *, is_probe: bool) -> None:
        self.has_accepted = True
        self.is_first_contact = False
        self.lone = self.bare = self.failed = 0
        if self.is_open:
            self.bare_pauses = 0
        elif is_probe or (self.is_outage and not self.is_refused):
            self._open()

    def _counts(self, kind: str, batch: Batch, *, is_of_load: bool) -> tuple[int, bool] | None:
        """Does it count beside what was told before? And is nothing out that is older than its first?"""
        first, latest = self._told.get(kind, (0, 0)) if getattr(self, kind) else (0, 0)
        if is_of_load and batch.number <= latest:
            return None
        self._told[kind] = first, _ = first or self._started, self._started
        older = [number for number in self.engine.out if number <= first and number != batch.number]
        return 1, not older

    @staticmethod
    def _is_of_outage(batch: Batch, answer: Reply | Failure, now: float) -> bool:
        took = now - batch.started_at
        if isinstance(answer, Failure):
            return answer.kind == "connect" and took < 1.0
        return answer.status in (502, 503) and "retry-after" not in answer.headers and took < 0.1

    def _on_failed_at_once(
        self, batch: Batch, answer: Reply | Failure, now: float, *, is_probe: bool
    ) -> None:
        is_of_load = isinstance(answer, Reply)
        if not is_probe:
            if self.is_paused or not (counted := self._counts("failed", batch, is_of_load=is_of_load)):
                return
            self.failed += 1
            if self.failed < 3 or (is_of_load and not counted[1]):
                return
            self.outage_probes = 0
        self.is_paused = self.is_outage = True
        self.is_quota = False
        self.quiet_until = now + 0.5 * min(2.0, 0.1 * 2.0**self.outage_probes)
        self.outage_probes += 1

    def _on_understood(self, batch: Batch, answer: Reply | Failure, now: float, *, is_probe: bool) -> None:
        self.failed = 0
        if is_probe or (self.is_outage and not self.is_refused):
            self._open()
        entries = carried(batch)
        is_alone = len(entries) == 1 and is_out(batch, entries[0])
        if isinstance(answer, Reply) and self._is_lone(answer.status) and is_alone:
            if answer.status == 404 and self._names_what_is_missing(answer, entries[0]):
                return
            if batch.number <= self._outdated:
                return
            self.lone += 1
            if self.lone >= LONE:
                self._refuse(now, is_systemic=True)

    def _names_what_is_missing(self, reply: Reply, entry: Entry) -> bool:
        """The service itself says that something is not found: once its URL is known, or by name."""
        try:
            words = json.loads(reply.body)["error"]
        except (ValueError, TypeError, KeyError):
            return False
        values = (entry.message.destination, entry.message.queue, entry.deduplication_id)
        return self.has_accepted or any(value in words for value in values if value and len(value) > 3)

    def _on_throttled(self, batch: Batch, reply: Reply, now: float, *, is_probe: bool) -> None:
        seconds, is_quota = self._asked(reply, now)
        if seconds <= 0.0:
            self.failed = 0
            counted = self._counts("bare", batch, is_of_load=True)
            self.bare += bool(counted)
            is_enough = counted is not None and self.bare >= 3 and counted[1]
            if not is_probe and (self.is_paused or not is_enough):
                return
            seconds, is_quota = min(5.0, 2.0**self.bare_pauses), False
            self.bare_pauses = min(self.bare_pauses + 1, 10)
        self.failed = 0
        until = now + min(seconds, DAY if is_quota else BURST_MAX)
        if is_probe or not self.is_paused or self.is_outage or until > self.quiet_until:
            self.quiet_until = until
            self.is_quota = is_quota
            self.is_outage = False
        self.is_paused = True

    def _asked(self, reply: Reply, now: float) -> tuple[float, bool]:
        headers = reply.headers
        is_quota = "ratelimit-reset" in headers
        reset = float(headers.get("ratelimit-reset", headers.get("burst-ratelimit-reset", "0")))
        left = (reset / 1000.0 if reset > 1e11 else reset) - self._service_clock(now) if reset else 0.0
        return max(float(headers.get("retry-after", "0")), left), is_quota

    def _refuse(self, now: float, *, is_systemic: bool) -> None:
        if not self.is_refused:
            self.is_first_contact = not self.has_accepted
        self.is_refused, self.is_systemic = True, is_systemic
        self.halted_until = now + 30.0

    def _open(self) -> None:
        self.is_paused = self.is_refused = self.is_first_contact = self.is_outage = False
        self.bare_pauses = 0
        self.probe = None

    def __repr__(self) -> str:
        paused, refused = f"paused={self.is_paused}", f"refused={self.is_refused}"
        return (
            f"open={self.is_open} {paused} until {self.quiet_until:.3f}, {refused} until"
            f" {self.halted_until:.3f} first_contact={self.is_first_contact} probe={self.probe}"
        )
