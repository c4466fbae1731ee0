"""429 without a word about time: the limit's business where part of a flight is taken, else the gate's."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dispatcher.core.batch import Batch, Reply
from dispatcher.core.gate import BARE_PAUSE_MAX, Gate, Permit
from dispatcher.core.limit import AdaptiveLimit
from tests.core.rig import Extremes, Rig, accepted

NO_JITTER = Extremes(0.0)
BARE = Reply(429, b"")


class Flights:
    """A gate whose batches start in flights, and what is still out of them."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.out: list[int] = []
        self._next = 1

    def start(self, number: int = 1) -> list[int]:
        """So many start together."""
        flight = [*range(self._next, self._next + number)]
        self._next += number
        for batch in flight:
            self.gate.on_start(batch, Permit.ALL)
        self.out += flight
        return flight

    def refuse(self, *batches: int) -> str:
        """These are refused one after the other; the gate's state then."""
        for batch in batches:
            self.out.remove(batch)
            self.gate.on_bare(batch, 100.0, NO_JITTER, oldest=min(self.out, default=self._next))
        return self.gate.state

    def accept(self, batch: int) -> None:
        """The service takes one."""
        self.out.remove(batch)
        self.gate.on_accepted(batch)


# ------------------------------------------------------------------------------------- the gate by itself


@pytest.mark.parametrize("size", [1, 2, 64])
def test_three_flights_refused_whole(size: int) -> None:
    """Of whatever size: a flight counts once, and the first of the third one closes."""
    flights = Flights()
    assert flights.refuse(*flights.start(size)) == "open"
    assert flights.refuse(*flights.start(size)) == "open"
    third = flights.start(size)
    assert flights.refuse(third[0]) == "throttled"


def test_a_large_flight_alone_closes_nothing() -> None:
    """A thousand at once are one refusal of a thousand at once."""
    flights = Flights()
    assert flights.refuse(*flights.start(1_000)) == "open"


@pytest.mark.parametrize("place", [0, 1])
def test_one_that_is_taken_counts_for_all(place: int) -> None:
    """A success in a flight that is refused else: the service works, and three more would be needed."""
    flights = Flights()
    for number in range(3):
        first, second, third = flights.start(3)
        flights.refuse(first)
        if number == place:
            flights.accept(second)
        else:
            flights.refuse(second)
        flights.out.remove(third)
    assert flights.gate.state == "open"


def test_something_older_is_still_out() -> None:
    """It may be taken yet: until it is answered nothing closes, however many flights are refused."""
    flights = Flights()
    (slow,) = flights.start()
    for _ in range(10):
        assert flights.refuse(*flights.start(4)) == "open"
    last = flights.start(2)
    flights.out.remove(slow)  # it timed out
    assert flights.refuse(last[0]) == "throttled"


def test_something_younger_that_is_out_keeps_nothing_open() -> None:
    """What started after the first refusal is under the same service."""
    flights = Flights()
    flights.refuse(*flights.start())
    flights.start()
    flights.refuse(*flights.start())
    assert flights.refuse(*flights.start()) == "throttled"


def test_what_was_out_with_the_last_counts_no_more() -> None:
    """Two flights that overlap: what had started before the refusal was told is one with it."""
    flights = Flights()
    a, b, c, d = flights.start(4)
    assert flights.refuse(a) == "open"
    (e,) = flights.start()
    assert flights.refuse(b, c) == "open"
    assert flights.refuse(e) == "open"
    (f,) = flights.start()
    assert flights.refuse(d) == "open"
    assert flights.refuse(f) == "throttled"


# ------------------------------------------------------------------------------------------ in the engine


class Small:
    """A service that works on ten requests at once, 50 ms each, and refuses what comes above that."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.states: set[str] = set()
        self._taken_at: list[float] = []

    def __call__(self, batch: Batch) -> Reply:
        self.states.add(self.rig.engine.gate.state)
        self._taken_at = [at for at in self._taken_at if at > batch.started_at - 0.0499]
        if len(self._taken_at) >= 10:
            return BARE
        self._taken_at.append(batch.started_at)
        return accepted(batch.entries)


def test_a_service_that_takes_some_of_each_flight_is_never_paused() -> None:
    """It refuses whatever is above ten at once; the limit finds that, and the gate stays open."""
    rig = Rig(limit=AdaptiveLimit(64), batch_max_messages=1, deliver_within=500.0)
    rig.is_checked = False
    rig.put(6_000)
    service = Small(rig)
    rig.play(service, 30.0)
    assert rig.engine.tally.requests["429"] > 30
    assert rig.engine.tally.cuts["throttled"] > 10
    assert service.states == {"open"}
    assert len(rig.settled) > 5_000


def test_a_fixed_limit_far_above_the_capacity_is_not_paused_either() -> None:
    """However much of each flight is refused."""
    rig = Rig(batch_max_messages=1, deliver_within=500.0, retry_budget=None)
    rig.is_checked = False
    rig.put(3_000)
    service = Small(rig)
    rig.play(service, 10.0)
    assert rig.engine.tally.requests["429"] > 1_000
    assert service.states == {"open"}


def test_a_service_that_takes_nothing_is_left_alone() -> None:
    """After three flights only probes: pauses that double from one second to the longest."""
    rig = Rig(rng=Extremes(0.0), limit_max_in_flight=4, deliver_within=500.0)
    rig.put(1_000)
    rig.play(lambda _: BARE, 60.0, latency=0.001)
    at = [batch.started_at for batch in rig.started]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    pauses = [gap for gap in gaps if gap > 0.9]
    assert pauses[:3] == pytest.approx([1.0, 2.0, 4.0], abs=0.01)
    assert pauses[4:] == pytest.approx([BARE_PAUSE_MAX] * len(pauses[4:]), abs=0.01)
    assert len(at) - len(pauses) <= 12, "three flights of four"


def test_one_slow_request_keeps_it_open() -> None:
    """Older than every refusal, and not answered yet: each message only backs off; then it closes."""
    rig = Rig(rng=Extremes(0.0), limit_max_in_flight=4)
    rig.put(1, queue="slow", idempotent=False)
    (slow,) = rig.poll()
    rig.put(100)
    for _ in range(6):
        rig.poll()
        rig.answer(rig.out[-1], BARE)
    assert rig.engine.gate.state == "open"
    rig.fail(slow, "timeout")
    rig.answer(rig.out[-1], BARE)
    assert rig.engine.gate.state == "throttled"


def test_to_close_is_no_cut_and_to_open_begins_anew() -> None:
    """It is what drew the refusal, then four; refused probes do not make it less."""
    limit = AdaptiveLimit(64)
    rig = Rig(limit=limit, batch_max_messages=1, queue_max_messages=20_000, deliver_within=500.0)
    rig.put(15_000)
    rig.play(lambda batch: accepted(batch.entries), 1.0)
    assert limit.value == 64
    rig.play(lambda _: BARE, 1.0)
    assert rig.engine.gate.state == "throttled"
    held = limit.value
    assert held < 64
    rig.play(lambda _: BARE, 20.0)
    assert limit.value == held
    rig.ok(rig.out[0] if rig.out else rig.next())
    assert limit.value == 4
