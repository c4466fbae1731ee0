"""Mutants of what meets overload: outage gate, bare refusals, retry budget, requests that hang.

What only costs time is no mutant here: the unit tests of `limit`, `trim`, `budget` and `stalls` notice that.
"""

from __future__ import annotations

from dispatcher.core import settlement, stalls
from dispatcher.core.engine import Engine
from dispatcher.core.gate import Gate, Streak
from dispatcher.core.retry import Backoffs
from tests.simulation.mutation import one

OVERLOAD_MUTANTS = (
    # The outage gate.
    one(
        "slow failures are an outage",
        "flapping",
        settlement,
        "_not_delivered",
        "if now - batch.started_at < ruling.outage_within:",
        "if ruling.outage_within:",
    ),
    one(
        "two failures are an outage",
        "outage flapping machine",
        Gate,
        "on_failed_at_once",
        "self._failed.count >= OUTAGE_FAILURES",
        "self._failed.count >= OUTAGE_FAILURES - 1",
    ),
    one(
        "nothing is an outage",
        "outage flapping machine",
        Gate,
        "on_failed_at_once",
        "self._failed.count >= OUTAGE_FAILURES",
        "self._failed.count < 0",
    ),
    one(
        "the pauses of an outage do not grow",
        "outage flapping",
        Gate,
        "on_failed_at_once",
        "OUTAGE_PAUSE * 2.0**self._outage_probes",
        "OUTAGE_PAUSE",
    ),
    one(
        "failures are counted past a success",
        "outage flapping",
        Gate,
        "on_accepted",
        "    self._failed.clear()\n",
        "",
    ),
    one(
        "failures are counted past a refusal of messages",
        "flapping",
        Gate,
        "on_understood",
        "    self._failed.clear()\n",
        "",
    ),
    one(
        "an outage is not ended by an earlier attempt",
        "flapping",
        Gate,
        "on_accepted",
        "elif number == self._probe or self.is_outage:",
        "elif number == self._probe:",
    ),
    # What is out together.
    one(
        "each refusal of a flight counts",
        "flapping",
        Streak,
        "add",
        "if is_of_load and number <= self._last:",
        "if False:",
    ),
    one(
        "refusals close while something older is out",
        "flapping",
        Streak,
        "is_alone",
        "return oldest > self._first",
        "return True",
    ),
    one(
        "the pauses of bare refusals do not grow",
        "storm",
        Gate,
        "on_bare",
        "BARE_PAUSE * 2.0**self._bare_pauses",
        "BARE_PAUSE",
    ),
    # The budget.
    one(
        "an empty budget holds what is fresh",
        "budget",
        Engine,
        "poll",
        "permit = self.gate.permit(now)",
        "permit = self.gate.permit(now) if self.budget.tokens(now) >= 14 else Permit.NOTHING",
    ),
    one(
        "what cannot be paid for is dropped",
        "budget machine",
        Backoffs,
        "pop_due",
        "elif not self._budget.try_pay(group.cost, now):",
        "elif not self._budget.try_pay(group.cost, now) and self.pop():",
    ),
    one(
        "the budget is asked again and again",
        "budget machine",
        Backoffs,
        "next_at",
        "max(due_at, min(self._latest, self._budget.ready_at(group.cost)))",
        "due_at",
    ),
    one(
        "what waits for the budget is never woken",
        "budget machine",
        Engine,
        "wake_at",
        "backoffs.due_at if is_free else backoffs.next_at",
        'backoffs.due_at if backoffs.due_at > now else float("inf")',
    ),
    one(
        "a drain waits for the budget",
        "black_hole_drain machine",
        Backoffs,
        "pop_due",
        "is_free or now >= self._latest or not group.is_live",
        "is_free or not group.is_live",
    ),
    # What hangs.
    one(
        "the answer of what was given up is heard",
        "black_hole slow",
        Engine,
        "complete",
        "        return  # abandoned",
        "        pass  # abandoned",
    ),
    one(
        "what has no id is given up",
        "slow",
        stalls,
        "_may_be_given_up",
        "entry.idempotent and",
        "",
    ),
    one(
        "given up again and again",
        "slow",
        stalls,
        "_may_be_given_up",
        "or not entry.trouble.was_overtaken",
        "or True",
    ),
    one(
        "a stall adds to a limit that is not raised",
        "black_hole_drain",
        Engine,
        "_has_stalled",
        "return len(self.out) < self.limit.value",
        "return True",
    ),
)  # fmt: skip
