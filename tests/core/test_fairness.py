"""Fairness: floods starve nobody, what failed does not wait behind the backlog, room is served in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher.core.room import Room
from tests.core.rig import Extremes, Rig, make_entry, numbers

if TYPE_CHECKING:
    from dispatcher.core.batch import Entry


@pytest.mark.parametrize("flood", ["queue", "none", "single"])
def test_a_flood_delays_a_newcomer_by_a_request_or_two(flood: str) -> None:
    """Five thousand wait in one lane; what comes in another is in one of the next few requests."""
    rig = Rig(limit_max_in_flight=4, batch_quantum_bytes=2_000)
    rig.put(5_000, queue="flood" if flood == "queue" else None, is_single=flood == "single", size=100)
    rig.poll()
    newcomers = rig.put(1, queue="quiet", size=100) + rig.put(1, queue="calm", size=100)
    requests = 0
    while any(entry.outcome is None for entry in newcomers):
        rig.ok(rig.out[0])
        requests += 1
    assert requests <= 4 + 2


def test_lanes_share_by_bytes() -> None:
    """A lane of large messages gets no more than one of small ones."""
    rig = Rig(limit_max_in_flight=1, batch_quantum_bytes=1_000, batch_max_messages=1_000)
    rig.put(1)
    rig.poll()
    rig.put(400, queue="large", size=500)
    rig.put(4_000, queue="small", size=50)
    sizes = {"large": 0, "small": 0}
    queues = {entry.number: entry.queue for entry in rig.engine.held()}
    rig.ok(rig.out[0])
    for _ in range(4):
        for number in numbers(rig.out[0].entries):
            sizes[queues[number] or ""] += 500 if queues[number] == "large" else 50
        rig.ok(rig.out[0])
    assert sizes["large"] == pytest.approx(sizes["small"], rel=0.1)


@pytest.mark.parametrize("queue", [None, "q"])
def test_what_failed_does_not_wait_behind_the_backlog(queue: str | None) -> None:
    """It goes to the front: the first free slot after its back-off takes it."""
    rig = Rig(limit_max_in_flight=2, rng=Extremes())
    rig.put(100, queue=queue)
    rig.poll()
    failed = rig.out[0]
    rig.put(5_000)
    rig.poll()
    rig.fail(failed, "connect")
    rig.advance(0.06)
    for _ in range(2):
        rig.ok(rig.out[0])
    carried = {number for batch in rig.started[2:] for number in numbers(batch.entries)}
    assert set(range(100)) <= carried


def test_what_the_gate_put_off_goes_first() -> None:
    """After the pause the oldest are in the probe."""
    rig = Rig(rng=Extremes(0.0), limit_max_in_flight=2)
    rig.put(60)
    (batch,) = rig.poll()
    rig.put(3_000)
    rig.throttle(batch, 5)
    (probe,) = rig.advance(5.0)
    assert numbers(probe.entries)[:60] == list(range(60))


def test_ten_thousand_queues_take_turns() -> None:
    """Each is served once before any is served again."""
    rig = Rig(
        limit_max_in_flight=1, queue_max_messages=30_000, batch_quantum_bytes=10, batch_max_messages=100
    )
    rig.is_checked = False
    for number in range(1_000):
        rig.put(3, queue=f"q{number}", size=20)
    rig.poll()
    first = set()
    for _ in range(11):
        first |= {entry.queue for entry in rig.out[0].entries}
        rig.ok(rig.out[0])
    assert len(first) == 1_000


def test_room_is_granted_in_turn_and_not_one_by_one() -> None:
    """A full queue wakes nobody until it has emptied below the mark, and then in order of arrival."""
    room: Room[Entry] = Room(100, 10_000, 0.75)
    for _ in range(100):
        assert room.try_take(10)
    waiters = [make_entry(size=10) for _ in range(40)]
    for waiter in waiters:
        room.wait(waiter, 10)
    for _ in range(25):
        room.release(1, 10)
        assert room.grants() == []
    assert not room.try_take(10)
    room.release(1, 10)
    assert room.grants() == waiters[:26]
    room.release(27, 270)
    assert room.grants() == waiters[26:]


def test_a_large_head_blocks_smaller_ones() -> None:
    """That is fair: nobody passes it."""
    room: Room[Entry] = Room(100, 1_000, 1.0)
    assert room.try_take(900)
    large, small = make_entry(size=500), make_entry(size=5)
    room.wait(large, 500)
    room.wait(small, 5)
    assert room.grants() == []
    room.release(1, 900)
    assert room.grants() == [large, small]
