"""Halving where other things happen at once: ordered lanes, searches, throttles, deadlines."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Batch, Entry, Failure, Reply, Trouble
from dispatcher.core.setback import _halves
from dispatcher.errors import DeadlineExceeded, MessageRejected
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, accepted, is_held, numbers
from tests.core.test_halving import WITHIN, poisoned, trouble


def accepted_order(rig: Rig, queue: str) -> list[int]:
    """Numbers of what the queue's service accepted, in the order of the answers."""
    return [e.number for e in rig.settled if e.queue == queue and isinstance(e.outcome, Receipt)]


@pytest.mark.parametrize("culprit", [0, 1, 7, 15])
def test_an_ordered_lane_keeps_its_order(culprit: int) -> None:
    """What stands behind the culprit waits for its end, and then arrives in order; others do not wait."""
    rig = Rig()
    queued = rig.put(16, queue="q")
    queued[culprit].deadline = rig.engine.next_expiry = rig.now + 20.0
    rig.put(16)
    rig.poll()
    rig.put(4, queue="q")
    rig.put(1)
    rig.play(poisoned(queued[culprit].number), 60.0)
    rest = [number for number in [*range(16), 32, 33, 34, 35] if number != culprit]
    assert accepted_order(rig, "q") == rest
    assert sum(isinstance(e.outcome, Receipt) for e in rig.settled if e.queue is None) == 17


def test_several_lanes_are_halved_at_their_fronts() -> None:
    """Of each queue only what stands at its front goes apart, and in one half only."""
    rig = Rig(rng=Extremes())
    for _ in range(4):
        for queue in ("a", "b"):
            rig.put(1, queue=queue)
    (batch,) = rig.poll()
    rig.refuse(batch, 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    queues: dict[str | None, set[int]] = {}
    for place, group in enumerate(group for group in rig.engine.backoffs if group.is_sealed):
        for entry in group.entries:
            queues.setdefault(entry.queue, set()).add(place)
    assert all(len(places) == 1 for places in queues.values())
    rig.play(lambda batch: accepted(batch.entries), 10.0)
    assert accepted_order(rig, "a") == [0, 2, 4, 6]
    assert accepted_order(rig, "b") == [1, 3, 5, 7]


def test_a_half_that_is_refused_is_searched() -> None:
    """A 400 of a half starts an isolation like any other's."""
    rig = Rig(rng=Extremes())
    entries = rig.put(8)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    rig.advance(1.0)
    rig.serve(lambda entry: entry.number == 2)
    assert isinstance(entries[2].outcome, MessageRejected)
    assert sum(isinstance(entry.outcome, Receipt) for entry in entries) == 7


def test_a_probe_that_fails_again_and_again_is_halved() -> None:
    """A message that draws a 500 among those of a refused batch: the search goes on without its part."""
    rig = Rig(deliver_within=WITHIN)
    entries = rig.put(16)
    rig.poll()
    rig.put(1)

    def service(batch: Batch) -> Reply | Failure:
        found = numbers(batch.entries)
        if 3 in found:
            return trouble("500")
        return Reply(400, b"{}") if 12 in found else accepted(batch.entries)

    rig.refuse(rig.out[0], 400)
    rig.play(service, 60.0)
    assert [entry.number for entry in entries if not isinstance(entry.outcome, Receipt)] == [3, 12]
    assert isinstance(entries[12].outcome, MessageRejected)
    assert is_held(entries[3])


def test_a_probes_queue_follows_it_into_the_halves() -> None:
    """What the search still has of the same queue must not be probed before it."""
    rig = Rig(deliver_within=300.0)
    queued = rig.put(16, queue="q")
    queued[3].deadline = rig.engine.next_expiry = rig.now + 15.0
    rig.poll()
    rig.put(1)
    rig.refuse(rig.out[0], 400)
    rig.play(poisoned(3), 60.0)
    assert accepted_order(rig, "q") == [number for number in range(16) if number != 3]


def test_a_halved_entry_can_be_withdrawn_or_expire() -> None:
    """Unknown outcomes are not taken back; what expires leaves its half, and the rest is sent."""
    rig = Rig(rng=Extremes())
    entries = rig.put(4)
    entries[0].deadline = rig.engine.next_expiry = rig.now + 0.08
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    assert not rig.engine.withdraw(entries[1])
    rig.advance(1.0)
    assert isinstance(entries[0].outcome, DeadlineExceeded)
    assert sorted(numbers(batch.entries) for batch in rig.out) == [[1], [2, 3]]


def test_a_throttled_half_stays_a_half() -> None:
    """It is put off whole, sealed, and goes as the probe."""
    rig = Rig(rng=Extremes(0.5))
    rig.put(4)
    rig.refuse(rig.poll()[0], 500)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.refuse(rig.next(), 500)
    rig.advance(1.0)
    left, right = rig.out
    rig.throttle(left, 5)
    rig.throttle(right, 5)
    (again,) = rig.advance(6.0)
    assert again.is_sealed
    assert numbers(again.entries) == [0, 1]
    assert [numbers(batch.entries) for batch in rig.ok(again)] == [[2, 3]]


def test_ten_culprits_of_both_kinds_in_a_stream() -> None:
    """Ten seconds of traffic with poison of both kinds: everything else arrives."""
    rig = Rig(deliver_within=60.0, queue_max_messages=20_000)
    bad: set[int] = set()

    def service(batch: Batch) -> Reply | Failure:
        found = {*numbers(batch.entries)} & bad
        if any(number % 2 for number in found):
            return trouble("timeout")
        return Reply(400, b"{}") if found else accepted(batch.entries)

    everything: list[Entry] = []
    for second in range(10):
        everything += rig.put(200)
        bad.add(everything[-1 - 7 * second - second % 2].number)
        rig.play(service, 1.0)
    rig.play(service, 70.0)
    lost = {entry.number for entry in everything if not isinstance(entry.outcome, Receipt)}
    assert lost == bad
    assert rig.engine.tally.finished["delivered"] == 2000 - len(bad)


def test_one_that_is_no_suspect_keeps_those_behind_it_in_the_lane() -> None:
    """Of `q` the first is a suspect, the second is not, the third is: only the first goes apart."""
    rig = Rig(rng=Extremes())
    for _ in range(3):
        rig.put(1, queue="q")
    rig.put(3)
    (batch,) = rig.poll()
    for entry in batch.entries:
        entry.trouble = Trouble(rig.now, suspicions=2, seen_accepted=-1)
    queued = [entry for entry in batch.entries if entry.queue]
    queued[1].trouble = Trouble(rig.now)
    left, right, loose = _halves(rig.engine, batch.entries, rig.now)
    plain = [entry for entry in batch.entries if entry.queue is None]
    assert loose == queued[1:]
    assert left + right == [queued[0], *plain]
    queued[0].trouble = Trouble(rig.now)
    plain[2].trouble = Trouble(rig.now)
    left, right, loose = _halves(rig.engine, batch.entries, rig.now)
    assert loose == [*queued, plain[2]]
    assert left + right == plain[:2]
