"""Mutants of the core, and who has to notice each: scenarios, or the state machine."""

from __future__ import annotations

from dispatcher.core import apart, expiry, retry, setback, settlement
from dispatcher.core.accumulator import Accumulator
from dispatcher.core.engine import Engine
from dispatcher.core.gate import Gate
from dispatcher.core.isolation import Isolation
from tests.simulation.mutants_overload import OVERLOAD_MUTANTS
from tests.simulation.mutants_runs import RUN_MUTANTS
from tests.simulation.mutation import Change, Mutant, apply, one

__all__ = ["MUTANTS", "Mutant", "apply"]

NEWEST = "max(entry.admitted_at for entry in self.lanes)"
MUTANTS = (
    *OVERLOAD_MUTANTS,
    *RUN_MUTANTS,
    # When a batch leaves, and what it holds.
    Mutant(
        "timer reset on append",
        ("trickle",),
        (
            Change(Engine, "_ready", "now >= oldest.admitted_at +", f"now >= {NEWEST} +"),
            Change(Engine, "wake_at", "oldest.admitted_at +", f"{NEWEST} +"),
        ),
    ),
    one(
        "slot held in back-off",
        "mixed machine",
        Engine,
        "poll",
        "while len(self.out) < self.limit.value or",
        "while len(self.out) + bool(self.counts[2]) * 9 < self.limit.value or",
    ),
    one(
        "one slot too many",
        "mixed machine",
        Engine,
        "poll",
        "while len(self.out) < self.limit.value or",
        "while len(self.out) <= self.limit.value or",
    ),
    one(
        "probes hold the last slot",
        "withdrawals",
        apart,
        "next_apart",
        "max(1, engine.limit.value - 1)",
        "max(1, engine.limit.value)",
    ),
    Mutant(
        "room released at send",
        ("calm", "machine"),
        (
            Change(
                Engine,
                "_start",
                "    self.out[batch.number] = batch",
                "    self.out[batch.number] = batch\n    self.room.release(len(members), batch.size_bytes)",
            ),
            Change(
                settlement, "_settle_delivered", "    engine.room.release(len(delivered), size)\n", ""
            ),
        ),
    ),
    one(
        "a single has company",
        "calm",
        Accumulator,
        "_take_from",
        "if entries and entry.single is not None:\n            break",
        "if False:\n            break",
    ),
    one(
        "an attempt outlasts its deadlines",
        "deadlines machine",
        Engine,
        "_start",
        "if earliest - now < timeout:",
        "if False:",
    ),
    one(
        "flush ignores retries",
        "lossy machine",
        Engine,
        "is_flushed",
        "return self.flushes.is_done(epoch)",
        "return all(entry.epoch > epoch or entry.trouble is not None for entry in self.held())",
    ),
    one(
        "a drain that does not end",
        "drain machine",
        Engine,
        "poll",
        "if now >= self.drain_at:",
        "if now >= self.drain_at and not self.out:",
    ),
    # What settles, and with what.
    one(
        "a withdrawn entry is sent",
        "withdrawals machine",
        Engine,
        "withdraw",
        "    return True",
        "    entry.state = WAITING\n    return True",
    ),
    one(
        "deadline ignored in back-off",
        "deadlines machine",
        expiry,
        "expire",
        "for each in list(engine.holdings()):",
        "for each in [each for each in engine.holdings() if each.state != 2]:",
    ),
    one(
        "deduplication id redrawn on retry",
        "lossy",
        Engine,
        "_return",
        "    if not group.is_sealed and group.isolation is None:",
        "    for entry in live:\n"
        "        entry.data = entry.data.replace(b'\"id', b'\"di')\n"
        "    if not group.is_sealed and group.isolation is None:",
    ),
    one(
        "the unknown is repeated without an id",
        "without_ids machine",
        setback,
        "_repeatable",
        'if ruling.certainty == "unknown" and not entry.idempotent:',
        "if False:",
    ),
    one(
        "withdrawn although it may have arrived",
        "withdrawals",
        Engine,
        "withdraw",
        'if failures.certainty_of(entry) == "unknown":',
        "if False:",
    ),
    # Order.
    one(
        "lane dispatched twice",
        "queues machine",
        Accumulator,
        "_mute",
        "    lane.unresolved += left\n",
        "    lane.unresolved += left - 1\n",
    ),
    one(
        "a strict lane sends two",
        "stopping machine",
        Accumulator,
        "_take_from",
        "if lane.is_strict:\n            break",
        "if False:\n            break",
    ),
    one(
        "a stopped lane goes on",
        "stopping machine",
        Accumulator,
        "stop",
        "    lane.is_stopped = True",
        "    lane.is_stopped = lane.unresolved > 3",
    ),
    one(
        "a lane dropped with its last message forgets that it stopped",
        "stopping machine",
        Accumulator,
        "stop",
        "        self._lanes.setdefault(lane.key, lane)",
        "        pass",
    ),
    one(
        "a search goes on with what stopped",
        "stopped_search",
        apart,
        "ready",
        "if isolation is not None:  # what",
        "if False:  # what",
    ),
    one(
        "both halves hold one lane",
        "poison_500",
        setback,
        "_halves",
        "if entry.queue is not None and place",
        "if False and place",
    ),
    one(
        "a probe's followers stay in the search",
        "queues",
        Isolation,
        "extract",
        "    for segment in reversed(self._pending):",
        "    for segment in []:",
    ),
    # The gate.
    one(
        "two gate probes",
        "storm token",
        Gate,
        "permit",
        "if self._probe is not None or now < self._reopens_at:",
        "if now < self._reopens_at:",
    ),
    one(
        "gate opened by an old answer",
        "storm",
        Gate,
        "on_accepted",
        "elif number == self._probe or self.is_outage:",
        "else:",
    ),
    one(
        "pause shortened by an old answer",
        "storm",
        Gate,
        "on_pause",
        "or until > self.closed_until:",
        "or until != self.closed_until:",
    ),
    one(
        "pause measured by our own clock",
        "storm",
        retry,
        "pause_of",
        "left = reset - reply.unix_at if",
        "left = reset - 1_790_000_000.0 - 1_003.0 if",
    ),
    one(
        "a refused probe opens",
        "storm quota",
        Gate,
        "on_pause",
        "    if is_probe:\n        self._probe = None",
        "    if is_probe:\n        return self._open()",
    ),
    one(
        "a lost probe is never repeated",
        "quota machine",
        Gate,
        "on_answered",
        "    self._probe = None\n",
        "",
    ),
    one(
        "bare refusals never close",
        "storm",
        Gate,
        "on_bare",
        "self._bare.count >= BARE_REFUSALS and",
        "False and",
    ),
    one(
        "what cannot wait for the quota waits",
        "quota",
        Gate,
        "outlasts",
        "deadline < self.closed_until",
        "deadline < 0.0",
    ),
    one(
        "halted: the probe does not wait",
        "token",
        Gate,
        "on_refused",
        "    self._probe_at = now + HALT_PROBE_SECONDS",
        "    self._probe_at = now + 3.0",
    ),
    one(
        "halted: what is held fails",
        "token",
        settlement,
        "_halt",
        "if not engine.gate.is_first_contact or refusal is None:",
        "if refusal is None:",
    ),
    one(
        "the old token's refusals halt the new one",
        "token",
        Gate,
        "on_refused",
        "if number <= self._outdated:",
        "if False:",
    ),
    one(
        "first contact is held",
        "first_contact",
        Gate,
        "on_refused",
        "self.is_first_contact = not self.has_accepted",
        "self.is_first_contact = False",
    ),
)  # fmt: skip
