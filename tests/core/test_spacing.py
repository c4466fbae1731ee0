"""Starts are spread over a round trip while the upstream refuses some."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from dispatcher.core.engine import SPREAD
from dispatcher.core.limit import SPACED_SECONDS
from tests.core.rig import Extremes, Rig, accepted

ROUND_TRIP = 0.1
LIMIT = 4


def refused(mode: str = "adaptive", **config: Any) -> Rig:
    """An engine that knows its round trip; of a flight of four one was refused, and much waits."""
    rig = Rig(
        rng=Extremes(0.0), limit_mode=mode, limit_max_in_flight=LIMIT, queue_max_messages=100_000, **config
    )
    rig.is_checked = False
    for _ in range(60):  # until the mean round trip is what each took
        rig.put(1)
        (batch,) = rig.poll()
        rig.now += ROUND_TRIP
        rig.ok(batch)
    assert rig.engine.stalls.round_trip == pytest.approx(ROUND_TRIP, rel=0.01)
    rig.put(50_000)
    assert len(rig.poll()) == LIMIT
    rig.now += ROUND_TRIP
    rig.refuse(rig.out[0], 429)
    return rig


def gaps(rig: Rig, seconds: float) -> list[float]:
    """Between the starts of so long a time in which everything is accepted."""
    number = len(rig.started)
    rig.play(lambda batch: accepted(batch.entries), seconds, latency=ROUND_TRIP)
    return [later.started_at - earlier.started_at for earlier, later in pairwise(rig.started[number:])]


def answered_at_once(rig: Rig) -> int:
    """Every slot becomes free in the same instant; how many start then."""
    for batch in rig.out:
        rig.engine.complete(batch, accepted(batch.entries), rig.now)
    rig.out.clear()
    return len(rig.poll())


def test_after_a_refusal_starts_are_spread() -> None:
    """No two together, none later than it needs to be, and woken for each."""
    found = gaps(refused(), 5.0)
    assert min(found) >= SPREAD[0] * ROUND_TRIP / LIMIT * 0.98
    assert len(found) > 0.9 * 5.0 * 3 / ROUND_TRIP  # three at least are always out


def test_freed_together_they_do_not_start_together() -> None:
    """One at once, and an instant to wake at for the next."""
    rig = refused()
    gaps(rig, 1.0)
    assert answered_at_once(rig) <= 1
    assert rig.now < rig.wake_at <= rig.now + SPREAD[1] * ROUND_TRIP


def test_some_seconds_later_they_do() -> None:
    """What was refused once is forgotten."""
    rig = refused()
    gaps(rig, SPACED_SECONDS + 1.0)
    assert answered_at_once(rig) == LIMIT


def test_a_fixed_limit_spreads_nothing() -> None:
    """Whatever is refused."""
    rig = refused("fixed")
    assert answered_at_once(rig) == LIMIT


def test_without_a_round_trip_nothing_is_spread() -> None:
    """Refused at the very first, there is nothing to spread over."""
    rig = Rig(rng=Extremes(), limit_mode="adaptive", queue_max_messages=100_000)
    rig.put(5_000)
    rig.poll()
    rig.refuse(rig.out[0], 429)
    assert rig.engine.spaced_until <= rig.now
