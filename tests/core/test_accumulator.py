"""The lanes: order, turns by bytes, mutes, counts, and what idle ones cost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.accumulator import Accumulator
from dispatcher.core.batch import SETTLED, WAITING, Batch, Entry
from tests.core.rig import make_entry, numbers


class Lanes:
    """An accumulator, fed with numbered entries."""

    def __init__(self, max_messages: int = 100, max_bytes: int = 1_000_000, quantum: int = 16_384) -> None:
        self.lanes = Accumulator(max_messages, max_bytes, quantum)
        self._next = 0

    def put(
        self,
        count: int = 1,
        *,
        queue: str | None = None,
        size: int = 10,
        is_single: bool = False,
        at: float = 0.0,
    ) -> list[Entry]:
        made = [
            make_entry(size=size, queue=queue, is_single=is_single, admitted_at=at or self._next / 1000)
            for _ in range(count)
        ]
        for entry in made:
            entry.number = self._next
            self._next += 1
            self.lanes.extend([entry], entry.number, 0)
        return made

    def take(self) -> list[int]:
        batch = self.lanes.take()
        return [] if batch is None else numbers(batch.entries)

    def take_batch(self) -> Batch:
        batch = self.lanes.take()
        assert batch is not None
        return batch

    def settle(self, entry: Entry) -> None:
        entry.state = SETTLED


def test_one_lane_in_order() -> None:
    """First in, first out, at most as many as fit by count."""
    one = Lanes(max_messages=3)
    one.put(7)
    assert [one.take() for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6], []]


def test_bytes_on_the_wire_are_exact() -> None:
    """2 + Σ|e| + (n − 1): what fits exactly goes, one byte more waits."""
    for max_bytes, expected in ((2 + 3 * 10 + 2, [0, 1, 2]), (2 + 3 * 10 + 1, [0, 1])):
        one = Lanes(max_bytes=max_bytes)
        one.put(3)
        batch = one.take_batch()
        assert numbers(batch.entries) == expected
        assert len(batch.body()) <= max_bytes


def test_what_is_larger_than_a_batch_goes_alone() -> None:
    """It is not held up for ever, and takes nobody with it."""
    one = Lanes(max_bytes=100)
    one.put(1)
    one.put(1, size=500)
    one.put(1)
    assert [one.take() for _ in range(3)] == [[0], [1], [2]]


def test_a_flood_does_not_starve_others() -> None:
    """Ten thousand messages in one queue, one in another: it is in the very first batches."""
    one = Lanes(quantum=1_000)
    one.put(10_000, queue="flood", size=100)
    one.put(3, queue="quiet", size=100)
    one.put(3, size=100)
    first = one.take() + one.take()
    assert {10_000, 10_001, 10_002, 10_003, 10_004, 10_005} <= set(first)


def test_turns_are_by_bytes() -> None:
    """A lane of large messages gets as many bytes as one of small ones, not as many messages."""
    one = Lanes(max_messages=10_000, max_bytes=60_000, quantum=1_000)
    one.put(1_000, queue="large", size=1_000)
    one.put(10_000, queue="small", size=100)
    batch = one.take_batch()
    large = sum(len(e.data) for e in batch.entries if e.queue == "large")
    small = sum(len(e.data) for e in batch.entries if e.queue == "small")
    assert 0.8 < large / small < 1.25


def test_turns_go_on_from_batch_to_batch() -> None:
    """Over many batches each of five flooding lanes gets its fifth."""
    one = Lanes(max_messages=10, quantum=500)
    for name in "abcde":
        one.put(500, queue=name, size=100)
    share = dict.fromkeys("abcde", 0)
    for _ in range(100):
        batch = one.take_batch()
        for entry in batch.entries:
            assert entry.queue is not None
            share[entry.queue] += 1
            assert entry.lane is not None
            one.settle(entry)
            one.lanes.resolve(entry.lane, 1)
    assert sum(share.values()) == 1000
    assert max(share.values()) - min(share.values()) <= 20


def test_ten_thousand_queues_of_one_message_make_a_hundred_batches() -> None:
    """Fullness is asked of everything together, not lane by lane."""
    one = Lanes()
    for number in range(10_000):
        one.put(1, queue=f"q{number}")
    sizes = []
    while batch := one.take():
        sizes.append(len(batch))
    assert sizes == [100] * 100


def test_an_ordered_lane_is_muted_while_it_is_out() -> None:
    """Nothing of it goes until all that left is resolved; the default lane goes on."""
    one = Lanes(max_messages=2)
    queued = one.put(4, queue="q")
    one.put(2)
    assert one.take() == [0, 1]
    assert one.take() == [4, 5]
    assert one.take() == []
    assert one.lanes.sendable_messages == 0
    for entry in queued[:2]:
        assert entry.lane is not None
        assert one.take() == []
        one.lanes.resolve(entry.lane, 1)
    assert one.lanes.sendable_messages == 2
    assert one.take() == [2, 3]


def test_what_failed_goes_back_to_the_front_in_order() -> None:
    """Also if it comes back in two groups, the later part first."""
    one = Lanes(max_messages=4)
    queued = one.put(6, queue="q")
    assert one.take() == [0, 1, 2, 3]
    one.lanes.restore([queued[3], queued[1]])
    assert one.take() == []  # two of it are still out
    one.put(1, queue="q")
    one.lanes.restore([queued[0], queued[2]])
    assert one.take() == [0, 1, 2, 3]


def test_what_failed_merges_with_what_is_new() -> None:
    """Retries come first and take fresh messages along."""
    one = Lanes()
    first = one.put(3)
    one.take()
    one.put(2)
    one.lanes.restore(first[:2])
    assert one.take() == [0, 1, 3, 4]


def test_groups_of_the_default_lane_come_back_oldest_first() -> None:
    """The lane's head is its oldest, whatever order groups come back in (linger and flush ask it)."""
    one = Lanes()
    entries = one.put(6)
    one.take()
    one.lanes.restore(entries[:3])
    one.lanes.restore(entries[3:])
    head = one.lanes.oldest()
    assert head is entries[0]
    assert one.take() == [0, 1, 2, 3, 4, 5]


def test_singles_of_no_queue_do_not_tear_batches() -> None:
    """However many bytes wait: the batch is full, the single goes by itself, neither is forgotten."""
    one = Lanes()
    one.put(50, size=400)
    one.put(1, is_single=True)
    one.put(50, size=400)
    taken = [one.take() for _ in range(2)]
    assert sorted(len(batch) for batch in taken) == [1, 100]
    assert one.take() == []


def test_singles_of_queues_do_not_tear_batches() -> None:
    """A binary message at the head of a queue leaves the other lanes' batch whole."""
    one = Lanes()
    for number in range(10):
        one.put(1, queue=f"b{number}", is_single=True)
        one.put(10, queue=f"q{number}")
    taken = []
    while batch := one.take():
        taken.append(len(batch))
    assert sorted(taken) == [1] * 10 + [100]


def test_singles_are_not_starved_by_a_flood() -> None:
    """Full batches without end: the single is among the first requests all the same."""
    one = Lanes()
    one.put(2_000, size=400)
    one.put(1, is_single=True)
    assert [2_000] in [one.take() for _ in range(4)]


def test_a_flood_of_singles_starves_nobody() -> None:
    """A thousand binary messages, and one of text behind them: it goes within the first turns."""
    one = Lanes(quantum=1_000)
    one.put(1_000, is_single=True, size=100)
    one.put(1)
    taken = [one.take() for _ in range(12)]
    assert [1_000] in taken


def test_the_next_single() -> None:
    """It can be taken by itself while the others wait for company."""
    one = Lanes()
    one.put(2)
    assert not one.lanes.has_alone()
    one.put(1, is_single=True)
    assert one.lanes.has_alone()
    batch = one.lanes.take_alone()
    assert batch is not None
    assert (numbers(batch.entries), batch.reason) == ([2], "single")
    assert one.lanes.take_alone() is None
    assert one.take() == [0, 1]


def test_discarded_entries_are_skipped_and_swept() -> None:
    """They leave every count at once, are not sent, and do not pile up behind a lane that is muted."""
    one = Lanes()
    queued = one.put(1_001, queue="q")
    one.lanes.take()
    waiting = [entry for entry in queued if entry.state == WAITING and entry.number >= 100]
    for entry in waiting[:-1]:
        one.lanes.discard(entry)
        one.settle(entry)
    lane = queued[0].lane
    assert lane is not None
    assert (lane.count, one.lanes.waiting_messages, one.lanes.waiting_bytes) == (1, 1, 10)
    assert len(lane.waiting) < 200
    one.lanes.resolve(lane, 100)
    assert one.take() == [1_000]


def test_idle_ordered_lanes_are_forgotten() -> None:
    """However they became idle: delivered, or discarded while they waited."""
    one = Lanes()
    for number in range(50):
        (entry,) = one.put(1, queue=f"sent{number}")
        one.take()
        assert entry.lane is not None
        one.lanes.resolve(entry.lane, 1)
        (entry,) = one.put(1, queue=f"withdrawn{number}")
        one.lanes.discard(entry)
        one.settle(entry)
    assert len(one.lanes.lanes) == 2
    one.put(1, queue="sent1")
    assert one.take() == [100]


def test_the_oldest_over_all_lanes() -> None:
    """Muted lanes do not count, and what has left is not remembered."""
    one = Lanes(max_messages=1)
    assert one.lanes.oldest() is None
    queued = one.put(2, queue="q", at=1.0)
    (plain,) = one.put(1, at=2.0)
    (late,) = one.put(1, queue="r", at=3.0)
    assert one.lanes.oldest() is queued[0]
    assert one.take() == [0]
    assert one.lanes.oldest() is plain
    assert one.take() == [2]
    assert one.lanes.oldest() is late
    assert queued[0].lane is not None
    one.lanes.restore([queued[0]])
    assert one.lanes.oldest() is queued[0]


_operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "take", "alone", "restore", "settle", "discard"]),
        st.integers(0, 3),
        st.integers(1, 60),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(_operations)
def test_counts_and_order_for_any_sequence(operations: list[tuple[str, int, int, bool]]) -> None:
    """Whatever happens in whatever order: the sums are right, order is kept, nothing is lost or doubled."""
    one = Lanes(max_messages=5, max_bytes=200, quantum=64)
    held: set[int] = set()
    out: list[list[Entry]] = []
    last: dict[str, int] = {}
    for what, lane, size, is_single in operations:
        if what == "put":
            held.update(
                numbers(one.put(1, queue=f"q{lane}" if lane else None, size=size, is_single=is_single))
            )
        elif what in ("take", "alone"):
            batch = one.lanes.take() if what == "take" else one.lanes.take_alone()
            if batch is None:
                assert what == "alone" or one.lanes.sendable_messages == 0
                continue
            assert len(batch.entries) == 1 or len(batch.body()) <= 200
            assert len(batch.entries) == 1 or all(entry.single is None for entry in batch.entries)
            for entry in batch.entries:
                assert entry.number in held
                if entry.queue is not None:
                    assert last.get(entry.queue, -1) < entry.number
                    last[entry.queue] = entry.number
                entry.state = 1
            out.append(batch.entries)
        elif what == "restore" and out:
            entries = out.pop(size % len(out))
            for entry in entries:
                if entry.queue is not None:
                    last[entry.queue] = min(last[entry.queue], entry.number - 1)
            one.lanes.restore(list(reversed(entries)))
        elif what == "settle" and out:
            for entry in out.pop(size % len(out)):
                one.settle(entry)
                held.discard(entry.number)
                if entry.queue is not None and entry.lane is not None:
                    one.lanes.resolve(entry.lane, 1)
        elif what == "discard":
            waiting = list(one.lanes)
            if waiting:
                entry = waiting[size % len(waiting)]
                one.lanes.discard(entry)
                one.settle(entry)
                held.discard(entry.number)
        _check(one.lanes, held, out)


def _check(lanes: Accumulator, held: set[int], out: list[list[Entry]]) -> None:
    waiting = list(lanes)
    assert sorted(numbers(waiting) + [number for batch in out for number in numbers(batch)]) == sorted(held)
    assert lanes.waiting_messages == len(waiting)
    assert lanes.waiting_bytes == sum(len(entry.data) for entry in waiting)
    sendable = [entry for entry in waiting if entry.lane is not None and not entry.lane.is_muted]
    assert lanes.sendable_messages == len(sendable)
    assert lanes.sendable_bytes == sum(len(entry.data) for entry in sendable)
    oldest = lanes.oldest()
    assert (oldest is None) == (not sendable)
    if oldest is not None:
        heads = {id(entry.lane): entry for entry in reversed(sendable)}.values()
        assert oldest.admitted_at == min(entry.admitted_at for entry in heads)
    for batch in out:
        assert pytest.approx(len(batch)) == len({entry.number for entry in batch})
