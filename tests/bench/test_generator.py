"""The generator in real time: open loop, its own lateness apart from the target's, and its endings."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from dispatcher.bench.generator import Stop
from dispatcher.bench.recorder import LATE_SECONDS
from dispatcher.bench.schedule import bursts, constant
from tests.bench.support import Instant, load

pytestmark = pytest.mark.anyio


async def test_everything_starts_when_it_is_due() -> None:
    """As many as the schedule has, and none before its time."""
    target = Instant()
    recorder = await load(constant(500, 0.6), target)
    assert recorder.due == recorder.taken == recorder.delivered == 300
    assert recorder.lag.least >= 0.0
    starts = [at - recorder.began for at in target.taken]
    assert starts == pytest.approx([place / 500 for place in range(300)])
    assert sum(row.asked for row in recorder.rows) == sum(row.delivered for row in recorder.rows) == 300


async def test_waiting_for_a_target_that_stalls_is_measured() -> None:
    """No coordinated omission: what was due during a pause waited for the rest of it, on average half."""
    recorder = await load(constant(500, 0.8), Instant(stall_at=50, stall_for=0.4))
    assert recorder.delivered == 400
    waited = recorder.total.above(0.01)
    assert 170 <= waited <= 300  # about 0.39 s × 500/s, where a closed loop would have one slow message
    assert 0.35 <= recorder.total.greatest <= 0.6
    assert recorder.total.total / waited == pytest.approx(0.2, abs=0.06)


async def test_the_targets_pause_is_not_the_generators() -> None:
    """It counts as admission; the clockwork was on time all the while."""
    recorder = await load(constant(500, 0.6), Instant(stall_at=50, stall_for=0.3))
    assert recorder.room.greatest > 0.25
    assert recorder.admission.greatest == pytest.approx(recorder.room.greatest, abs=0.02)
    assert recorder.lag.quantile(0.9) < 0.1
    assert recorder.late < 100


async def test_a_loop_that_is_blocked_is_the_generators_own_lateness() -> None:
    """It is seen as lag, and counted: this is what the warning is about."""
    recorder = await load(constant(500, 0.6), Instant(stall_at=50, stall_for=0.2, blocks=True))
    assert 80 <= recorder.late <= 200
    assert recorder.lag.greatest > 0.15
    assert recorder.lag.above(LATE_SECONDS) == pytest.approx(recorder.late, abs=20)
    assert recorder.room.greatest == 0.0


async def test_bursts_are_handed_over_together() -> None:
    """All at their instants."""
    target = Instant()
    recorder = await load(bursts(200, 0.2, 0.5), target)
    assert [round(at - recorder.began, 9) for at in target.taken] == [0.0] * 200 + [0.2] * 200 + [0.4] * 200


async def test_asked_to_stop_it_starts_nothing_more() -> None:
    """And still waits for what is out."""
    stop = Stop()
    asyncio.get_running_loop().call_later(0.2, stop.ask, "enough")
    began = perf_counter()
    recorder = await load(constant(500, 60), Instant(), stop=stop)
    assert perf_counter() - began < 5
    assert 0 < recorder.due == recorder.delivered < 500
    assert (stop.why, stop.is_urgent) == ("enough", False)


async def test_what_never_ends_is_counted_with_its_age() -> None:
    """After the drain, or at once when asked twice: unfinished, and as old as it was."""
    recorder = await load(constant(100, 0.3), Instant(stall_at=10, stall_for=60), drain_within=0.2)
    assert (recorder.delivered, recorder.unfinished) == (10, 20)
    assert recorder.total.count == 30
    assert recorder.total.greatest == pytest.approx(0.4, abs=0.15)
    stop = Stop()
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, stop.ask, "first")
    loop.call_later(0.2, stop.ask, "second")
    began = perf_counter()
    recorder = await load(constant(100, 60), Instant(stall_at=1, stall_for=60), stop=stop, drain_within=60)
    assert perf_counter() - began < 5
    assert recorder.unfinished == recorder.due - 1
    assert (stop.why, stop.is_urgent) == ("first", True)


async def test_a_target_that_dies_ends_the_run() -> None:
    """With its own error, at once."""
    began = perf_counter()
    with pytest.raises(ConnectionError, match="died"):
        await load(constant(100, 60), Instant(stall_at=3, dies=True))
    assert perf_counter() - began < 5
