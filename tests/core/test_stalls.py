"""Patience with requests that hang, and the limit that gives one more when nothing goes any more."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.batch import Batch, Failure
from dispatcher.core.stalls import PATIENCE_MIN, PATIENCE_ROUND_TRIPS, SMOOTHING, Stalls
from tests.core.rig import Rig, accepted

LOST = Failure("timeout", "no answer in time", "unknown")


def test_patience() -> None:
    """Two seconds, or eight times what requests take on the average, if that is more."""
    assert (PATIENCE_MIN, PATIENCE_ROUND_TRIPS) == (2.0, 8.0)
    stalls = Stalls()
    assert stalls.patience == 2.0
    for _ in range(200):
        stalls.on_success(0.2)
    assert stalls.patience == 2.0
    for _ in range(200):
        stalls.on_success(1.5)
    assert stalls.patience == pytest.approx(12.0)
    stalls.on_success(9.5)
    assert stalls.patience == pytest.approx(8 * (1.5 + 8.0 * SMOOTHING))


def stuck(**config: Any) -> Rig:
    """A rig at 100 with every slot taken by what hangs, and more that waits."""
    rig = Rig(**{"limit_mode": "adaptive", "batch_max_messages": 1, **config})
    rig.put(20)
    rig.poll()
    return rig


def test_one_more_each_time() -> None:
    """Whenever nothing has begun for two seconds, at just that instant."""
    rig = stuck()
    assert len(rig.out) == 4
    for number in range(1, 4):
        assert rig.wake_at == 100.0 + 2.0 * number
        started = rig.advance(2.0)
        assert [batch.started_at for batch in started] == [100.0 + 2.0 * number]
        assert rig.engine.limit.value == len(rig.out) == 4 + number


def test_patience_is_also_what_a_stall_takes() -> None:
    """Where requests take a second each, eight."""
    rig = stuck()
    for _ in range(200):
        rig.engine.stalls.on_success(1.0)
    rig.poll()
    assert rig.wake_at == pytest.approx(108.0)
    assert rig.advance(7.99) == []
    assert len(rig.advance(0.02)) == 1


def test_a_fixed_limit_is_never_exceeded() -> None:
    """Its number is a promise; nor does it ask to be woken for nothing."""
    rig = stuck(limit_mode="fixed", limit_max_in_flight=4)
    assert rig.advance(9.9) == []
    assert len(rig.out) == 4
    assert rig.engine.limit.value == 4


def test_the_maximum_is_never_exceeded() -> None:
    """However long it takes."""
    rig = stuck(limit_max_in_flight=5)
    assert len(rig.advance(9.9)) == 1
    assert len(rig.out) == 5


def test_with_nothing_ready_nothing_is_stalled() -> None:
    """The limit stays as it is; a message that comes then goes at once."""
    rig = Rig(limit_mode="adaptive", batch_max_messages=1)
    rig.put(4)
    rig.poll()
    rig.advance(5.0)
    assert rig.engine.limit.value == 4
    rig.put(1)
    assert len(rig.poll()) == 1


def test_nothing_goes_through_a_closed_gate() -> None:
    """The service has asked to wait: no stall opens that."""
    rig = Rig(limit_mode="adaptive", batch_max_messages=1)
    rig.put(20)
    rig.poll()
    rig.throttle(rig.out[0], 9.0)
    assert rig.advance(8.9) == []
    assert rig.engine.limit.value == 4
    rig = stuck()
    rig.fail(rig.out[0], "timeout")
    rig.throttle(rig.out[0], 9.0)
    assert len(rig.out) == rig.engine.limit.value == 2
    assert rig.advance(8.9) == []
    assert rig.engine.limit.value == 2


def test_above_a_limit_that_was_cut_nothing_is_added() -> None:
    """More is out than it allows: that has to end first."""
    rig = stuck()
    rig.engine.limit.observe("timeout", started_at=99.0, now=100.0, messages=1, was_reached=True)
    assert rig.engine.limit.value == 2
    assert rig.advance(9.0) == []
    assert rig.engine.limit.value == 2


def test_back_from_a_black_hole() -> None:
    """Twenty seconds in which nothing is answered at all: within three more everything has arrived."""
    rig = Rig(limit_mode="adaptive", queue_max_messages=50_000, deliver_within=120.0)
    rig.is_checked = False
    rig.put(10_000)
    until = rig.now + 20.0

    def ends_at(batch: Batch) -> float:
        return batch.started_at + (batch.timeout if batch.started_at < until else 0.05)

    rig.poll()
    while len(rig.settled) < 10_000:
        rig.now = max(rig.now, min([rig.wake_at, *map(ends_at, rig.out)]))
        for batch in [batch for batch in rig.out if ends_at(batch) <= rig.now]:
            rig.out.remove(batch)
            is_lost = batch.started_at < until
            rig.engine.complete(batch, LOST if is_lost else accepted(batch.entries), rig.now)
        rig.poll()
    assert until < rig.now < until + 3.0
    assert len(rig.started) < 150
    assert rig.engine.tally.finished == {"delivered": 10_000}
