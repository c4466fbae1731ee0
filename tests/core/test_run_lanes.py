"""Lanes with runs: they stay whole where nobody is harmed by it, and are opened in their places elsewhere."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.accumulator import OVERTAKE_SECONDS, Accumulator
from dispatcher.core.batch import IN_FLIGHT, SETTLED, WAITING, Batch, Entry, Run
from tests.core.known_run import KnownRun, carried, known_run
from tests.core.rig import make_entry, numbers


class Lanes:
    """An accumulator with entries and runs, numbered in the order in which they come."""

    def __init__(self, max_messages: int = 10, max_bytes: int = 1_000_000, quantum: int = 16_384) -> None:
        self.lanes = Accumulator(max_messages, max_bytes, quantum)
        self._next = 0

    def put(
        self,
        count: int = 1,
        *,
        queue: str | None = None,
        at: float = 1.0,
        size: int = 10,
        is_single: bool = False,
    ) -> list[Entry]:
        entries = [
            make_entry(size=size, queue=queue, admitted_at=at, is_single=is_single) for _ in range(count)
        ]
        self.lanes.extend(entries, self._next, 0)
        self._next += count
        return entries

    def put_run(self, count: int, *, at: float = 1.0, size: int = 10) -> KnownRun:
        run = known_run([make_entry(size=size, admitted_at=at, identity="id") for _ in range(count)])
        run.number = self._next
        self.lanes.add_run(run)
        self._number(run)
        self._next += count
        return run

    @staticmethod
    def _number(run: KnownRun) -> None:
        for number, entry in enumerate(run.known, run.number):
            entry.number = number

    def take(self) -> tuple[list[int], bool]:
        """Numbers of the next batch, and whether it is a run as it was."""
        batch = self.lanes.take()
        if batch is None:
            return [], False
        _start(batch)
        return numbers(carried(batch)), batch.run is not None


def test_runs_leave_whole_and_in_order() -> None:
    """With nothing else there, however small they are."""
    one = Lanes()
    first, second = one.put_run(10), one.put_run(3)
    assert one.lanes.sendable_messages == one.lanes.waiting_messages == 13
    assert one.lanes.sendable_bytes == one.lanes.waiting_bytes == 130
    assert [one.take() for _ in range(3)] == [(list(range(10)), True), ([10, 11, 12], True), ([], False)]
    assert (first.entries, second.entries) == (None, None)
    assert one.lanes.sendable_messages == one.lanes.waiting_messages == 0
    assert one.lanes.sendable_bytes == one.lanes.waiting_bytes == 0


def test_a_run_goes_before_younger_entries() -> None:
    """It came first; they follow."""
    one = Lanes()
    one.put_run(4)
    one.put(3)
    assert [one.take() for _ in range(2)] == [([0, 1, 2, 3], True), ([4, 5, 6], False)]


def test_a_run_passes_a_few_entries_that_are_hardly_older() -> None:
    """Else each run would be opened for the rest of the one before."""
    one = Lanes()
    one.put(9, at=1.0)
    one.put_run(10, at=1.0 + OVERTAKE_SECONDS / 2)
    assert [one.take() for _ in range(2)] == [(list(range(9, 19)), True), (list(range(9)), False)]


def test_a_run_does_not_pass_what_is_much_older() -> None:
    """It is opened, and fills the batch of the older ones."""
    one = Lanes()
    one.put(4, at=1.0)
    run = one.put_run(10, at=1.0 + 2 * OVERTAKE_SECONDS)
    assert [one.take() for _ in range(2)] == [(list(range(10)), False), ([10, 11, 12, 13], False)]
    assert run.entries is not None


def test_no_run_passes_a_whole_batch() -> None:
    """As many as fill a batch go first, whatever their age."""
    one = Lanes()
    one.put(10)
    one.put_run(10)
    assert [one.take() for _ in range(2)] == [(list(range(10)), False), (list(range(10, 20)), True)]


def test_nobody_waits_for_ever_while_runs_keep_coming() -> None:
    """An entry is passed by the runs of the next hundredth of a second, and by no other."""
    one = Lanes()
    one.put(1, at=1.0)
    passed = 0
    for step in range(1, 200):
        one.put_run(10, at=1.0 + step * OVERTAKE_SECONDS / 4)
        taken, _ = one.take()
        if 0 in taken:
            break
        passed += 1
    assert passed == 4


def test_no_younger_entry_passes_a_run() -> None:
    """Not even while another lane is ready and more entries wait than fill a batch: it would starve."""
    one = Lanes(quantum=50)
    one.put_run(5)
    seen: set[int] = set()
    for step in range(3):
        one.put(20, at=2.0 + step)
        one.put(1, queue=f"q{step}", at=2.0 + step)
        taken, is_run = one.take()
        assert not is_run
        seen |= set(taken)
        assert set(range(5)) <= seen


def test_a_run_that_is_too_large_by_now_is_opened_in_its_turn() -> None:
    """The service takes less than when it was made: it is cut, ahead of everything that is younger."""
    for max_messages, max_bytes in ((4, 1_000_000), (10, 2 + 4 * 10 + 3)):
        one = Lanes()
        one.put_run(10)
        one.put(20, at=1.0)
        one.lanes.max_messages, one.lanes.max_bytes = max_messages, max_bytes
        assert [one.take() for _ in range(3)] == [
            ([0, 1, 2, 3], False),
            ([4, 5, 6, 7], False),
            ([8, 9, 10, 11], False),
        ]


def test_a_run_that_just_fits_stays_whole() -> None:
    """By messages and by the bytes of the array that it becomes."""
    one = Lanes(max_messages=3, max_bytes=2 + 3 * 10 + 2)
    one.put_run(3)
    batch = one.lanes.take()
    assert batch is not None
    assert batch.run is not None
    assert len(batch.body()) == one.lanes.max_bytes
    one = Lanes(max_messages=3, max_bytes=2 + 3 * 10 + 1)
    one.put_run(3)
    assert one.take() == ([0, 1], False)


def test_queues_have_their_turns_beside_runs() -> None:
    """A run that came first is opened for a queue that is ready: neither waits for all of the other."""
    one = Lanes(quantum=30)
    runs = [one.put_run(10) for _ in range(20)]
    one.put(5, queue="q")
    assert one.take() == ([200, 201, 202, 0, 1, 2, 203, 204, 3, 4], False)
    assert runs[0].entries is not None
    assert all(run.entries is None for run in runs[1:])


def test_opened_runs_stand_where_they_came() -> None:
    """Between entries, before them, after them, and beside what failed and came back."""
    one = Lanes(max_messages=30)
    one.put(2)
    one.put_run(3)
    one.put(2)
    one.put_run(3)
    one.put(2)
    one.lanes.open_runs()
    assert one.take() == (list(range(12)), False)
    one = Lanes(max_messages=2)
    failed = one.put(2)
    one.take()
    one.put_run(2)
    one.put(1)
    one.lanes.restore(failed[1:])
    one.lanes.open_runs()
    assert [one.take()[0] for _ in range(2)] == [[1, 2], [3, 4]]


def test_opening_changes_no_count() -> None:
    """As many messages and bytes wait as before, in as many places."""
    one = Lanes()
    one.put(2, size=7)
    run = one.put_run(5, size=9)
    lanes = one.lanes
    before = (lanes.waiting_messages, lanes.waiting_bytes, lanes.sendable_messages, lanes.sendable_bytes)
    assert before == (7, 59, 7, 59)
    lanes.open_runs()
    assert before == (
        lanes.waiting_messages,
        lanes.waiting_bytes,
        lanes.sendable_messages,
        lanes.sendable_bytes,
    )
    assert run.entries is not None
    assert (lanes.lanes[0].count, lanes.lanes[0].size_bytes) == (7, 59)
    lanes.open_runs()
    assert lanes.lanes[0].count == 7


def test_what_is_opened_can_be_discarded_and_restored() -> None:
    """It is like any entry of the default lane."""
    one = Lanes()
    run = one.put_run(3)
    entries = list(one.lanes)
    assert entries == list(run.known)
    one.lanes.discard(entries[1])
    entries[1].state = SETTLED
    assert one.take() == ([0, 2], False)
    one.lanes.restore([entries[0], entries[2]])
    assert one.take() == ([0, 2], False)


def test_the_oldest_may_be_a_run() -> None:
    """Or an entry before it, or one of another lane; of one instant, what came first."""
    one = Lanes()
    run = one.put_run(2, at=1.0)
    assert one.lanes.oldest() is run
    one.put(1, at=1.0)
    assert one.lanes.oldest() is run
    other = Lanes()
    (entry,) = other.put(1, queue="q", at=1.0)
    other.put_run(2, at=1.0)
    assert other.lanes.oldest() is entry


def test_the_oldest_after_a_run_was_opened_before_the_lane_s_head() -> None:
    """The lane's place among the others is that of its new head."""
    one = Lanes()
    one.put_run(2, at=1.0)
    one.put(1, queue="q", at=2.0)
    one.put(1, at=3.0)
    one.lanes.open_runs()
    oldest = one.lanes.oldest()
    assert oldest is not None
    assert (oldest.number, oldest.admitted_at) == (0, 1.0)


def test_looking_opens_nothing_and_iterating_does() -> None:
    """Holdings are runs as they are and entries that wait; who wants entries gets only these."""
    one = Lanes()
    run = one.put_run(2)
    gone, kept = one.put(2)
    one.lanes.discard(gone)
    gone.state = SETTLED
    assert list(one.lanes.holdings()) == [run, kept]
    assert run.entries is None
    assert numbers(one.lanes) == [0, 1, 3]
    assert one.lanes.lanes[0].count == 3
    assert all(isinstance(each, Entry) for each in one.lanes.holdings())


def test_a_settled_head_does_not_hold_a_run_back() -> None:
    """Whoever was withdrawn where it stood is not passed by anybody."""
    one = Lanes()
    (gone,) = one.put(1, at=1.0)
    one.put_run(10, at=5.0)
    one.lanes.discard(gone)
    gone.state = SETTLED
    assert one.take() == (list(range(1, 11)), True)


def test_what_is_dead_before_them_lets_nobody_pass_a_run() -> None:
    """Withdrawn entries count for nothing where a batch's last one is looked for."""
    one = Lanes(max_messages=2)
    entries = one.put(4, at=1.0)
    for entry in entries[:3]:
        one.lanes.discard(entry)
        entry.state = SETTLED
    one.put_run(2, at=1.0 + 2 * OVERTAKE_SECONDS)
    one.put(2, at=2.0)
    assert [one.take()[0] for _ in range(3)] == [[3, 4], [5, 6], [7]]


_operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "run", "run", "take", "take", "restore", "settle", "discard", "open", "age"]),
        st.integers(0, 3),
        st.integers(1, 30),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(_operations)
def test_counts_and_order_for_any_sequence(operations: list[tuple[str, int, int, bool]]) -> None:
    """Runs and entries in any mixture: sums are right, nothing is lost, doubled or passed by the younger."""
    one = Lanes(max_messages=5, max_bytes=100, quantum=40)
    held: set[int] = set()
    out: list[Batch] = []
    now = 1.0
    for what, lane, size, is_single in operations:
        if what == "put":
            queue = f"q{lane}" if lane else None
            held.update(numbers(one.put(1, queue=queue, at=now, size=size, is_single=is_single)))
        elif what == "run":
            held.update(numbers(one.put_run(1 + lane, at=now, size=size).known))
        elif what == "age":
            now += OVERTAKE_SECONDS * (0.4 + lane)
        elif what == "open":
            one.lanes.open_runs()
        elif what == "take":
            batch = one.lanes.take()
            if batch is None:
                assert one.lanes.sendable_messages == 0
                continue
            _check_batch(one.lanes, batch, held)
            out.append(batch)
        elif what == "restore" and out:
            one.lanes.restore(list(reversed(out.pop(size % len(out)).open())))
        elif what == "settle" and out:
            for entry in carried(out.pop(size % len(out))):
                entry.state = SETTLED
                held.discard(entry.number)
                if entry.queue is not None and entry.lane is not None:
                    one.lanes.resolve(entry.lane, 1)
        elif what == "discard":
            waiting = [each for each in one.lanes.holdings() if isinstance(each, Entry)]
            if waiting:
                entry = waiting[size % len(waiting)]
                one.lanes.discard(entry)
                entry.state = SETTLED
                held.discard(entry.number)
        _check(one.lanes, held, out)


def _check_batch(lanes: Accumulator, batch: Batch, held: set[int]) -> None:
    _start(batch)
    entries = carried(batch)
    assert set(numbers(entries)) <= held
    assert len(entries) <= 5
    assert len(entries) == 1 or len(batch.body()) <= 100
    default = lanes.lanes[0]
    own = [entry.number for entry in entries if batch.run is not None or entry.lane is default]
    for each in lanes.holdings():
        if isinstance(each, Run) and own:
            assert each.number > max(own), "a run is passed"
        elif batch.run is not None and each.lane is default and each.number < batch.run.number:
            assert batch.run.admitted_at - each.admitted_at <= OVERTAKE_SECONDS + 1e-9


def _start(batch: Batch) -> None:
    """What the engine does as a batch leaves."""
    if batch.run is not None:
        batch.run.state = IN_FLIGHT
    else:
        for entry in batch.entries:
            entry.state = IN_FLIGHT


def _check(lanes: Accumulator, held: set[int], out: list[Batch]) -> None:
    waiting: list[Entry] = []
    for each in lanes.holdings():
        waiting += each.known if isinstance(each, KnownRun) else [each]  # type: ignore[list-item]
    taken = [number for batch in out for number in numbers(carried(batch))]
    assert sorted(numbers(waiting) + taken) == sorted(held)
    assert lanes.waiting_messages == len(waiting)
    assert lanes.waiting_bytes == sum(len(entry.data) for entry in waiting)
    sendable = [entry for entry in waiting if entry.lane is None or not entry.lane.is_muted]
    assert lanes.sendable_messages == len(sendable)
    assert lanes.sendable_bytes == sum(len(entry.data) for entry in sendable)
    assert (lanes.oldest() is None) == (not sendable)
    assert all(entry.state == WAITING for entry in waiting)
