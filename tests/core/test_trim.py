"""The latency trim: what round trips say of a queue at the upstream, and when they are measured anew."""

from __future__ import annotations

import pytest

from dispatcher.core.limit import AdaptiveLimit
from dispatcher.core.trim import (
    FIRST_PROBE_SECONDS,
    FIRST_SAMPLES,
    PROBE_SAMPLES,
    PROBE_SECONDS,
    Advice,
    LatencyTrim,
    Measure,
)

AT = 100.0
"""The first measurement; what follows comes before the next one is due."""


def tell(
    trim: LatencyTrim,
    seconds: float,
    *,
    limit: float = 10.0,
    messages: int = 100,
    now: float = AT + 1.0,
    was_reached: bool = True,
) -> Advice:
    """One attempt took so long; the advice."""
    return trim.observe(limit, messages, now - seconds, now, was_reached=was_reached)


def measured(seconds: float = 0.1, *, messages: int = 100) -> LatencyTrim:
    """A trim that knows what an attempt takes alone."""
    trim = LatencyTrim()
    for _ in range(FIRST_SAMPLES):
        assert tell(trim, seconds, messages=messages, now=AT) == "grow"
    return trim


def crowded(times: int = 2) -> LatencyTrim:
    """One whose attempts take so many times as long as alone, for long."""
    trim = measured()
    for _ in range(500):
        tell(trim, 0.1 * times)
    return trim


# -------------------------------------------------------------------------------------------- the measure


def test_a_measure_is_a_mean_and_half_of_its_deviation() -> None:
    """The first attempts count alike."""
    measure = Measure()
    measure.learn(1.0)
    assert measure.seconds == 1.0
    measure.learn(3.0)
    assert (measure.mean, measure.deviation, measure.seconds) == (2.0, 1.0, 2.5)


def test_a_measure_is_renewed() -> None:
    """After sixteen attempts each new one weighs a sixteenth, however many there were."""
    measure = Measure()
    for _ in range(1_000):
        measure.learn(1.0)
    measure.learn(17.0)
    assert measure.mean == pytest.approx(2.0)
    assert measure.deviation == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------- the advice


@pytest.mark.parametrize(
    ("times", "limit", "advice"),
    [
        # Of a limit L whose attempts take r times as long, L·(1 - 1/r) wait.
        (1, 1_000.0, "grow"),
        (2, 3.9, "grow"),
        (2, 4.1, "hold"),
        (2, 15.9, "hold"),
        (2, 16.1, "shrink"),
        (3, 2.2, "grow"),
        (3, 2.3, "hold"),
        (3, 8.9, "hold"),
        (3, 9.1, "shrink"),
    ],
)
def test_how_many_may_wait(times: int, limit: float, advice: Advice) -> None:
    """Up to the root of the limit it grows, from twice as many it shrinks."""
    assert tell(crowded(times), 0.1 * times, limit=limit) == advice


def test_one_slow_attempt_is_no_queue() -> None:
    """It weighs a sixteenth."""
    trim = measured()
    assert tell(trim, 0.3, limit=10.0) == "grow"
    advices = [tell(trim, 0.3, limit=10.0) for _ in range(40)]
    assert advices == sorted(advices, key=["grow", "hold", "shrink"].index)
    assert advices[-1] == "shrink"


def test_nothing_is_said_of_a_limit_that_was_not_reached() -> None:
    """What is out then is no more than is wanted."""
    trim = measured()
    assert {tell(trim, 9.0, was_reached=False) for _ in range(100)} == {"hold"}
    assert tell(trim, 0.1) == "grow", "nor is it remembered"


def test_the_first_measure() -> None:
    """Eight attempts, whatever they took; the ninth is held against them."""
    trim = LatencyTrim()
    advices = [tell(trim, seconds, limit=1e6, now=AT) for seconds in (0.1, 0.3) * 4]
    assert advices == ["grow"] * 8
    assert tell(trim, 0.25, limit=1e6) == "grow", "the mean is 0.2, and half of the deviation goes with it"
    for _ in range(100):
        advice = tell(trim, 0.4, limit=1e6)
    assert advice == "shrink"


def test_sizes_have_measures_of_their_own() -> None:
    """A batch of 128 takes longer than one of 127, and that is no queue; 64 to 127 share one."""
    trim = crowded(1)
    assert [tell(trim, 0.4, limit=1_000.0, messages=128) for _ in range(FIRST_SAMPLES)] == ["grow"] * 8
    assert [tell(trim, 0.4, limit=1_000.0, messages=255) for _ in range(50)] == ["grow"] * 50
    assert [tell(trim, 0.4, limit=1_000.0, messages=64) for _ in range(5)][-1] == "shrink"


# --------------------------------------------------------------------------------------------- the probes


def probing() -> LatencyTrim:
    """One that has just begun to measure: what starts from 102.1 on counts."""
    trim = crowded()
    assert tell(trim, 0.1, now=AT + FIRST_PROBE_SECONDS) == "hold"
    return trim


def test_two_seconds_after_the_first_attempt() -> None:
    """Half of the limit holds from there on; not before, and only where the limit is reached."""
    trim = measured()
    tell(trim, 0.1, now=AT + 1.999)
    assert trim.share == 1.0
    tell(trim, 0.1, now=AT + 2.0, was_reached=False)
    assert trim.share == 1.0
    tell(trim, 0.1, now=AT + 2.0)
    assert trim.share == 0.5


def test_another_size_does_not_put_it_off() -> None:
    """Its own first measure is taken later; the first probe is due by the first attempt of any."""
    trim = measured()
    for _ in range(FIRST_SAMPLES):
        tell(trim, 0.1, messages=1, now=AT + 1.9)
    tell(trim, 0.1, now=AT + 2.0)
    assert trim.share == 0.5


def test_which_attempts_count() -> None:
    """Those that began a round trip after the probe did; 32 of them end it."""
    trim = probing()
    for _ in range(100):
        assert tell(trim, 0.1, now=AT + 2.199) == "hold"  # began at 102.099
    assert trim.share == 0.5
    for _ in range(PROBE_SAMPLES - 1):
        assert tell(trim, 0.1, now=AT + 2.201) == "hold"
    assert trim.share == 0.5
    assert tell(trim, 0.1, now=AT + 2.201, was_reached=False) == "hold"
    assert trim.share == 1.0


def test_a_new_size_during_a_probe_gets_its_first_measure() -> None:
    """Which is not the probe's business."""
    trim = probing()
    advices = [tell(trim, 0.1, messages=1, now=AT + 3.0) for _ in range(FIRST_SAMPLES)]
    assert advices == ["grow"] * FIRST_SAMPLES
    for _ in range(PROBE_SAMPLES - 1):
        tell(trim, 0.1, now=AT + 3.0)
    assert trim.share == 0.5


def test_a_probe_renews_the_measure() -> None:
    """An upstream that has become slower for everyone has no queue; the ratio begins anew."""
    trim = probing()
    assert tell(crowded(), 0.2, limit=100.0) == "shrink"
    for _ in range(PROBE_SAMPLES):
        tell(trim, 0.2, limit=100.0, now=AT + 3.0)
    assert {tell(trim, 0.2, limit=100.0, now=AT + 4.0) for _ in range(100)} == {"grow"}


def test_every_half_minute() -> None:
    """From the end of the last one."""
    trim = probing()
    for _ in range(PROBE_SAMPLES):
        tell(trim, 0.1, now=AT + 5.0)
    tell(trim, 0.1, now=AT + 5.0 + PROBE_SECONDS - 0.001)
    assert trim.share == 1.0
    tell(trim, 0.1, now=AT + 5.0 + PROBE_SECONDS)
    assert trim.share == 0.5


# ------------------------------------------------------------------------------------ in an adaptive limit


class Queue:
    """An upstream that works on so many at once, 0.1 s each, and lets the others wait in silence."""

    def __init__(self, limit: AdaptiveLimit, workers: int) -> None:
        self.limit = limit
        self.workers = workers
        self.now = AT
        self.values: list[int] = []

    def serve(self, seconds: float) -> list[int]:
        """Flights that begin and end together; the limit after each."""
        until, self.values = self.now + seconds, []
        while self.now < until:
            started_at, out = self.now, self.limit.value
            took = 0.1 * max(1.0, out / self.workers)
            self.now += took
            for _ in range(out):
                self.limit.observe("ok", started_at=started_at, now=self.now, messages=100, was_reached=True)
            self.values.append(self.limit.value)
        return self.values


def test_a_silent_queue_is_kept_short() -> None:
    """Twenty workers: the limit stays at a few more; without the trim it is whatever is allowed."""
    for trim, lowest, highest in ((LatencyTrim(), 20, 32), (None, 1_000, 1_000)):
        queue = Queue(AdaptiveLimit(1_000, trim), 20)
        queue.serve(60.0)
        values = sorted(queue.serve(60.0))
        assert lowest <= values[len(values) // 2] <= highest
        assert values[-1] <= highest


def test_the_limit_is_halved_while_it_is_measured_and_comes_back() -> None:
    """For a moment, every half minute."""
    queue = Queue(AdaptiveLimit(1_000, LatencyTrim()), 20)
    queue.serve(60.0)
    values = queue.serve(40.0)
    usual = sorted(values)[len(values) // 2]
    low = [value for value in values if value <= usual * 0.6]
    assert low
    assert {abs(value - usual / 2) <= 2 for value in low} == {True}
    assert len(low) < len(values) / 10
    after = values[max(number for number, value in enumerate(values) if value in low) + 1]
    assert after >= usual - 2, "it comes back at once"


def test_one_less_a_round_trip() -> None:
    """Where too many wait, the limit falls by one for each flight."""
    limit = AdaptiveLimit(64, LatencyTrim())
    while limit.value < 64:
        limit.observe("ok", started_at=AT, now=AT + 0.1, messages=100, was_reached=True)
    for _ in range(200):  # until the mean has noticed
        limit.observe("ok", started_at=AT, now=AT + 0.3, messages=100, was_reached=True)
    before = limit.value
    assert before < 64
    for _ in range(before):
        limit.observe("ok", started_at=AT, now=AT + 0.3, messages=100, was_reached=True)
    assert limit.value in (before - 1, before - 2)
