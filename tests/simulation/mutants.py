"""Mutants of the core: each a change of a few words, made in its source text while a test runs."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from dispatcher.core import retry, setback, settlement
from dispatcher.core.accumulator import Accumulator
from dispatcher.core.engine import Engine
from dispatcher.core.gate import Gate
from dispatcher.core.isolation import Isolation

if TYPE_CHECKING:
    import pytest


class Change(Struct, frozen=True):
    """One place of a function's source."""

    owner: Any
    """The class or module."""
    name: str
    old: str
    new: str


class Mutant(Struct, frozen=True):
    """A deliberate fault and who has to notice it."""

    name: str
    by: tuple[str, ...]
    """Scenarios, or `machine`; each of them has to."""
    changes: tuple[Change, ...]


def apply(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the mutant in the core's place for one test."""
    for change in mutant.changes:
        target = inspect.getattr_static(change.owner, change.name)
        function = target.fget if isinstance(target, property) else target
        assert function is not None, f"{change.name} cannot be read"
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(change.old) == 1, f"{mutant.name}: {change.old!r} is not what it changes any more"
        changed = compile(
            "from __future__ import annotations\n" + source.replace(change.old, change.new),
            f"<{mutant.name}>",
            "exec",
        )
        made: dict[str, Any] = {}
        exec(changed, vars(sys.modules[function.__module__]), made)
        _install(change, target, made[change.name], monkeypatch)


def _install(change: Change, target: Any, replacement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if inspect.isclass(change.owner):
        monkeypatch.setattr(change.owner, change.name, replacement)
        return
    for name, module in list(sys.modules.items()):  # also where it was imported by its name
        if name.startswith("dispatcher.core") and getattr(module, change.name, None) is target:
            monkeypatch.setattr(module, change.name, replacement)


def one(name: str, by: str, owner: Any, function: str, old: str, new: str) -> Mutant:
    """A mutant of one change."""
    return Mutant(name, tuple(by.split()), (Change(owner, function, old, new),))


NEWEST = "max(entry.admitted_at for entry in self.lanes)"
MUTANTS = (
    # When a batch leaves, and what it holds.
    Mutant(
        "timer reset on append",
        ("trickle",),
        (
            Change(Engine, "_ready", "now >= oldest.admitted_at +", f"now >= {NEWEST} +"),
            Change(Engine, "_wake_at", "oldest.admitted_at +", f"{NEWEST} +"),
        ),
    ),
    one(
        "slot held in back-off",
        "mixed machine",
        Engine,
        "poll",
        "while len(self.out) < self.limit.value:",
        "while len(self.out) + bool(self.counts[2]) * 9 < self.limit.value:",
    ),
    one(
        "one slot too many",
        "mixed machine",
        Engine,
        "poll",
        "while len(self.out) < self.limit.value:",
        "while len(self.out) <= self.limit.value:",
    ),
    one(
        "probes hold the last slot",
        "withdrawals",
        Engine,
        "_next_apart",
        "max(1, self.limit.value - 1)",
        "max(1, self.limit.value)",
    ),
    Mutant(
        "room released at send",
        ("calm", "machine"),
        (
            Change(
                Engine,
                "_start",
                "    self.out[batch.number] = batch",
                "    self.out[batch.number] = batch\n    self.room.release(len(entries), batch.size_bytes)",
            ),
            Change(
                settlement, "_settle_delivered", "    engine.room.release(len(entries), size)\n", ""
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
        "if entries[0].deadline - now < timeout:",
        "if False:",
    ),
    one(
        "flush ignores retries",
        "lossy machine",
        Engine,
        "is_flushed",
        "return not self.unsettled or min(self.unsettled) > epoch",
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
        Engine,
        "_expire",
        "for entry in list(self.held()):",
        "for entry in [each for each in self.held() if each.state != BACKING_OFF]:",
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
        Engine,
        "_ready_apart",
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
        "storm token machine",
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
        "elif number == self._probe:",
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
        "if self._bare < BARE_REFUSALS and number != self._probe:",
        "if number != self._probe:",
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
