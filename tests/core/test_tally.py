"""Counters and histograms: what is counted, in which bucket, and what a quantile says of it."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Trouble
from dispatcher.core.tally import BYTES, MESSAGES, SECONDS, STAGES, Histogram, Tally, add
from tests.core.rig import Rig, make_entry

INF = float("inf")


def test_observations_fall_into_their_buckets() -> None:
    """A bound belongs to its own bucket; what is above all of them has the last."""
    histogram = Histogram((1.0, 2.0, 5.0))
    for value in (0.0, 1.0, 1.5, 2.0, 5.0, 5.1, 99.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1, 2]
    assert histogram.total == pytest.approx(0.0 + 1.0 + 1.5 + 2.0 + 5.0 + 5.1 + 99.0)


def test_many_at_once() -> None:
    """A run of equal values is one observation with its number."""
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.5, 40)
    histogram.observe(0.5, 2)
    assert (histogram.counts, histogram.total) == ([2, 40, 0], 61.0)


@pytest.mark.parametrize(
    ("share", "bound"),
    [(0.0, 1.0), (0.25, 1.0), (0.26, 2.0), (0.5, 2.0), (0.75, 5.0), (0.76, INF)],
)
def test_quantiles(share: float, bound: float) -> None:
    """The upper bound of the bucket in which the share is reached; infinite above them all."""
    histogram = Histogram((1.0, 2.0, 5.0))
    for value in (0.5, 1.5, 3.0, 7.0):
        histogram.observe(value)
    assert histogram.quantile(share) == bound


def test_a_quantile_of_nothing() -> None:
    """Nothing was observed: 0."""
    assert Histogram((1.0, 2.0)).quantile(0.5) == 0.0


def test_a_quantile_skips_empty_buckets() -> None:
    """The share 0 is reached where the first observation lies."""
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.5)
    assert histogram.quantile(0.0) == 2.0


def test_counters_come_into_being() -> None:
    """A key that was not there starts from nothing."""
    counts: dict[str, int] = {}
    add(counts, "a")
    add(counts, "a", 4)
    add(counts, "b", 0)
    assert counts == {"a": 5, "b": 0}


def test_a_new_tally() -> None:
    """Everything at nothing, each histogram with its own bounds."""
    tally = Tally()
    numbers = (tally.admitted, tally.isolations, tally.halvings, tally.order_violations, tally.late)
    assert numbers == (0, 0, 0, 0, 0)
    assert tally.unawaited_failures == 0
    for counts in (tally.refused, tally.finished, tally.retried, tally.batches, tally.requests, tally.pauses):
        assert counts == {}
    assert (tally.request_seconds.bounds, tally.batch_messages.bounds) == (SECONDS, MESSAGES)
    assert tally.batch_bytes.bounds == BYTES
    assert set(tally.stage_seconds) == set(STAGES)
    assert all(histogram.bounds == SECONDS for histogram in tally.stage_seconds.values())


def test_latencies_of_what_was_delivered() -> None:
    """By stage, in runs of one admission instant; who failed before counts from its own first attempt."""
    tally = Tally()
    entries = [make_entry(admitted_at=at) for at in (1.0, 1.0, 2.0, 2.5, 2.5, 2.5)]
    entries[3].trouble = Trouble(first_sent_at=2.75)
    tally.delivered(entries, started_at=3.0, now=4.0)
    assert tally.finished == {"delivered": 6}
    queue, delivery, total = (tally.stage_seconds[stage] for stage in STAGES)
    assert queue.total == pytest.approx(2.0 + 2.0 + 1.0 + 0.25 + 0.5 + 0.5)
    assert delivery.total == pytest.approx(1.0 * 5 + 1.25)
    assert total.total == pytest.approx(3.0 + 3.0 + 2.0 + 1.5 * 3)
    assert [sum(histogram.counts) for histogram in (queue, delivery, total)] == [6, 6, 6]


def test_latencies_when_only_repeats_arrive() -> None:
    """Everyone in the request had failed before."""
    tally = Tally()
    entries = [make_entry(admitted_at=1.0) for _ in range(3)]
    for entry in entries:
        entry.trouble = Trouble(first_sent_at=2.0)
    tally.delivered(entries, started_at=5.0, now=6.0)
    assert tally.stage_seconds["queue"].total == 3.0
    assert sum(tally.stage_seconds["total"].counts) == 3


def test_requests_by_answer_and_by_seconds() -> None:
    """Each answered request once: by status or kind of failure, with how long it took."""
    rig = Rig(limit_max_in_flight=4)
    for how in ("200", "429", "disconnect", "500"):
        rig.put(100)
        batch = next(each for each in rig.poll() if each.entries[0].trouble is None)
        rig.now += 0.3
        if how == "200":
            rig.ok(batch)
        elif how == "disconnect":
            rig.fail(batch)
        else:
            rig.refuse(batch, int(how))
    tally = rig.engine.tally
    assert {key: tally.requests[key] for key in ("200", "429", "disconnect", "500")} == {
        "200": 1,
        "429": 1,
        "disconnect": 1,
        "500": 1,
    }
    assert tally.request_seconds.total == pytest.approx(0.3 * 4)
    assert tally.retried == {"throttled": 100, "disconnected": 100, "server_error": 100}


def test_batches_by_messages_and_bytes() -> None:
    """Each request started, once, with what it carries."""
    rig = Rig()
    rig.put(7, size=100)
    rig.poll()
    tally = rig.engine.tally
    assert (tally.batch_messages.total, tally.batch_bytes.total) == (7.0, 700.0)
    assert sum(tally.batch_messages.counts) == sum(tally.batch_bytes.counts) == 1
