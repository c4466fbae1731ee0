"""Scenarios with their numbers: storms of 429, a refused token, a spent quota, a body that draws 500."""

from __future__ import annotations

from typing import Any, Final

import pytest

from dispatcher.errors import Halted, QuotaExhausted
from dispatcher.message import Receipt
from tests.simulation.runs import run
from tests.simulation.scenario import POISON, Mix, Scenario
from tests.simulation.world import START, World

RATE: Final = 2_000
"""Messages a second."""
ROOM: Final = {"queue": {"max_messages": 100_000, "max_bytes": 500_000_000}}


def traffic(seconds: float, faults: dict[str, Any], **changes: Any) -> Scenario:
    """A steady stream, from 0.5 s on, against a service with these faults."""
    number = int(RATE * seconds)
    config = {**ROOM, "deliver_within": 300, **changes.pop("config", {})}
    changes.setdefault("runs", 0.0)  # a few messages at once are no run: they should have company
    faults = {"latency": "lognormal(60ms,0.3)", **faults}
    return Scenario(
        "",
        (number, number),
        (20, 200),
        seconds,
        changes.pop("burst", (1, 10)),
        uplink=0.01,
        config=config,
        faults=faults,
        **changes,
    )


def ended_at(world: World) -> float:
    """Seconds from the start at which the last message was settled."""
    return world.last_settled_at - START


@pytest.mark.parametrize(("reset", "seed"), [("1s", 0), ("1s", 1), ("20s", 2), ("5s", 3)])
def test_a_storm_with_resets(reset: str, seed: int) -> None:
    """429 with Reset for 20 s at 2,000 msg/s: at most 20 refused requests, drained within 4 s after it."""
    phase = {"start": 3.0, "end": 23.0, "throttle_burst": 1.0}
    faults = {"burst_reset": reset, "phase": [phase]}
    world = run(traffic(20.0, faults, all_delivered=True), seed, check_every=200)
    assert world.refused_requests <= 20
    assert world.engine.tally.finished == {"delivered": 20 * RATE}
    late = 7.25 if reset == "5s" else 4.0  # the last reset that it gives may lie five seconds after it
    assert ended_at(world) < 23.0 + late


def test_a_storm_over_whole_batches() -> None:
    """The same where hundreds are handed in at once: runs wait at the gate, and leave whole after it."""
    phase = {"start": 3.0, "end": 23.0, "throttle_burst": 1.0}
    faults = {"burst_reset": "1s", "phase": [phase]}
    world = run(traffic(20.0, faults, all_delivered=True, burst=(100, 400), runs=1.0), 1, check_every=200)
    assert world.refused_requests <= 20
    assert world.engine.tally.finished == {"delivered": 20 * RATE}
    assert ended_at(world) < 23.0 + 4.0
    assert sum(each.receipts is not None for each in world.runs) > 100


def test_a_storm_without_resets() -> None:
    """Bare 429: the gate closes after three, probes with growing pauses, and drains within one of them."""
    phase = {"start": 3.0, "end": 23.0, "throttle_bare": 1.0}
    world = run(traffic(20.0, {"phase": [phase]}, all_delivered=True), 1, check_every=200)
    assert world.refused_requests <= 40
    assert ended_at(world) < 23.0 + 20.0 + 4.0


def test_a_stuttering_service() -> None:
    """Three in a hundred requests refused without words: nobody waits for the gate, hardly more requests."""
    world = run(traffic(5.0, {"throttle_bare": 0.03}, all_delivered=True), 2, check_every=200)
    assert ended_at(world) < 5.5 + 4.0
    assert world.engine.tally.finished == {"delivered": 5 * RATE}


def test_a_replaced_token() -> None:
    """Refused for six seconds amid traffic, then replaced: one probe at once, and everything arrives."""
    phase = {"start": 2.0, "end": 8.0, "refuse_token": 1.0}
    world = run(traffic(9.0, {"phase": [phase]}, tokens=[8.0], all_delivered=True), 3, check_every=200)
    assert world.engine.tally.requests["401"] <= 10
    assert world.engine.tally.finished == {"delivered": 9 * RATE}
    assert ended_at(world) < 9.5 + 3.0


def test_a_token_that_recovers_by_itself() -> None:
    """Nobody replaces it: the next probe, half a minute after the last, finds it out."""
    phase = {"start": 2.0, "end": 8.0, "refuse_token": 1.0}
    world = run(traffic(9.0, {"phase": [phase]}, all_delivered=True), 3, check_every=200)
    assert world.engine.tally.requests["401"] <= 10
    assert ended_at(world) < 2.5 + 30.0 + 4.0


def test_a_wrong_token_from_the_start() -> None:
    """A newcomer's messages fail at once, every one, with a handful of requests."""
    world = run(traffic(5.0, {"refuse_token": 1.0}), 4, check_every=200)
    assert {type(entry.outcome) for entry in world.entries.values()} == {Halted}
    assert sum(world.engine.tally.requests.values()) <= 3
    assert ended_at(world) < 5.6


def test_a_spent_quota() -> None:
    """What cannot wait fails at once, new messages too; the rest arrives after the reset."""
    phase = {"start": 2.0, "end": 40.0, "throttle_daily": 1.0}
    faults = {"daily_reset": "38s", "phase": [phase]}
    deadlines = [(20.0, 0.5)]
    world = run(traffic(8.0, faults, deadlines=deadlines), 5, check_every=200)
    assert world.engine.tally.requests["429"] <= 10
    outcomes = [(entry, entry.outcome) for entry in world.entries.values()]
    exhausted = [(entry, outcome) for entry, outcome in outcomes if isinstance(outcome, QuotaExhausted)]
    delivered = [outcome for _, outcome in outcomes if isinstance(outcome, Receipt)]
    assert len(delivered) + len(exhausted) == len(outcomes)
    assert len(exhausted) > 4_000
    assert {round(entry.deadline - entry.admitted_at, 6) for entry, _ in exhausted} == {20.0}
    resets = {outcome.reset_at - world.offset - START for _, outcome in exhausted}
    assert all(40.0 <= reset < 42.0 for reset in resets)
    assert 40.0 < ended_at(world) < 46.0


def test_a_body_that_always_draws_500() -> None:
    """One of two hundred at a steady rate: it fails at its deadline, and the others do not notice."""
    scenario = traffic(
        5.0,
        {"poison_500": POISON},
        mix=Mix(poison=0.005, queued=0.2),
        culprit_within=20.0,
        all_delivered=True,
    )
    world = run(scenario, 6, check_every=200)
    culprits = [one for one in world.drafts if one.is_culprit]
    assert len(culprits) > 20
    for one in culprits:
        assert not isinstance(world.entries[one.number].outcome, Receipt)
    finished = world.engine.tally.finished
    assert finished == {"delivered": 5 * RATE - len(culprits), "deadline_exceeded": len(culprits)}
    unqueued = {one.number for one in world.drafts if not one.is_culprit and one.message.queue is None}
    assert max(world.settled_at[number] - world.entries[number].admitted_at for number in unqueued) < 8.0
