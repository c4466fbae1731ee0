"""The lanes: what waits, and in which order; how much of it, and how much may be sent.

One unordered default lane, one for messages that travel alone (so that they do not tear batches apart;
the default lane promises no order), and an ordered lane for each upstream queue. Of the default lane much
waits as runs, which are opened when their messages are needed one by one. Lanes that may send stand in a
ring; one leaves it when it is empty or muted, and comes back when something is appended or restored; stale
members of ring and heads are skipped when met, so nothing here costs more for more idle lanes.

The accumulator's ground floor: it never decides who goes, or when.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import WAITING, Entry, Lane, Run
from dispatcher.core.heads import Heads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dispatcher.core.batch import LanePolicy

SWEEP_AT_LEAST: Final = 64
"""Withdrawn entries are swept out of a lane when there are this many and they are more than half."""


class Lanes:
    """All lanes of one dispatcher."""

    __slots__ = (
        *("_alone", "_default", "_heads", "_lanes", "_policies", "_quantum", "_ring", "_runs"),
        *("max_bytes", "max_messages"),
        *("sendable_bytes", "sendable_messages", "waiting_bytes", "waiting_messages"),
    )

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        quantum_bytes: int,
        policies: Mapping[str, LanePolicy] | None = None,
    ) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._quantum = quantum_bytes
        self._policies = policies or {}
        self._default = Lane(None, False, deque())
        self._alone = Lane(None, False, deque())
        self._runs: deque[Run] = deque()
        """Of the default lane, and counted with it, but not open: what is ahead of its entries, mostly."""
        self._lanes: dict[str, Lane] = {}
        self._ring: deque[Lane] = deque()
        self._heads = Heads()
        self.sendable_messages = 0
        self.sendable_bytes = 0
        self.waiting_messages = 0
        self.waiting_bytes = 0

    # ------------------------------------------------------------------------------------ in and out

    def extend(self, entries: Sequence[Entry], number: int, epoch: int) -> None:
        """New entries at the ends of their lanes, numbered from `number` on."""
        default = self._default
        size = 0
        elsewhere: list[Entry] = []
        for entry in entries:
            entry.number = number
            entry.epoch = epoch
            number += 1
            if entry.queue is None and entry.single is None:
                entry.lane = default
                size += len(entry.data)
            else:
                elsewhere.append(entry)
        if len(elsewhere) < len(entries):
            default.waiting.extend(
                [entry for entry in entries if entry.lane is default] if elsewhere else entries
            )
            self._add(default, len(entries) - len(elsewhere), size)
        for entry in elsewhere:
            entry.lane = lane = self._lane_of(entry)
            lane.waiting.append(entry)
            self._add(lane, 1, len(entry.data))

    def add_run(self, run: Run) -> None:
        """A run at the end of the default lane."""
        run.lane = self._default
        self._runs.append(run)
        self._count_run(run, 1)

    def open_runs(self) -> None:
        """Open every run: its messages are ordinary entries of the default lane now."""
        while self._runs:
            self._open_run()

    def _open_next(self) -> None:
        """Open the runs that have a part in the next batch: no younger entry may pass them."""
        lane, last = self._default, self.max_messages - 1
        # Counted from the end: what is dead, and not taken, may stand anywhere before.
        while self._runs and (
            lane.count <= last or lane.waiting[last - lane.count].number > self._runs[0].number
        ):
            self._open_run()

    def _open_run(self) -> None:
        lane, run = self._default, self._runs.popleft()
        self._count_run(run, -1)
        self._insert(lane.waiting, run.open())
        self._forget_head(lane)
        self._add(lane, len(run), run.size_bytes)

    def clear(self) -> None:
        """Everything here has settled: forget it."""
        for lane in (self._default, self._alone, *self._lanes.values()):
            lane.waiting.clear()

    def restore(self, entries: Sequence[Entry]) -> None:
        """Entries that failed go back to the front of their lanes, ahead of all that is newer."""
        by_lane: dict[int, list[Entry]] = {}
        for entry in entries:
            entry.state = WAITING
            by_lane.setdefault(id(entry.lane), []).append(entry)
        for members in by_lane.values():
            lane = members[0].lane
            assert lane is not None, "only what was appended can be restored"
            returning, size = len(members), sum(len(entry.data) for entry in members)
            if lane.ordered:
                lane.waiting.extendleft(reversed(self._merged(lane, members)))
            else:
                self._insert(lane.waiting, members)
            self._forget_head(lane)
            self._add(lane, returning, size)
            if lane.ordered:
                self.resolve(lane, returning)

    def discard(self, entry: Entry) -> None:
        """A waiting entry has settled where it stood: it is subtracted now and skipped when met."""
        lane = entry.lane
        assert lane is not None
        size = len(entry.data)
        lane.count -= 1
        lane.size_bytes -= size
        self.waiting_messages -= 1
        self.waiting_bytes -= size
        if not lane.is_muted:
            self.sendable_messages -= 1
            self.sendable_bytes -= size
        dead = len(lane.waiting) - lane.count
        if dead >= SWEEP_AT_LEAST and dead > lane.count:
            # The entry being discarded still says WAITING; it is told apart by identity.
            lane.waiting = deque(each for each in lane.waiting if each.state == WAITING and each is not entry)
        if lane.ordered and lane.count == 0 and lane.unresolved == 0:
            self._drop(lane)

    def resolve(self, lane: Lane, entries: int) -> None:
        """`entries` that had left an ordered lane are settled or restored; the last one unmutes it."""
        lane.unresolved -= entries
        assert lane.unresolved >= 0, "an ordered lane resolved more than had left it"
        if lane.unresolved == 0 and entries and not lane.is_stopped:
            self._unmute(lane)

    def stop(self, lane: Lane) -> None:
        """Nothing of this lane goes out until it is resumed."""
        if not lane.is_muted:
            self.sendable_messages -= lane.count
            self.sendable_bytes -= lane.size_bytes
        lane.is_stopped = True
        if lane.key is not None:
            self._lanes.setdefault(lane.key, lane)  # dropped with its last message, which is what stops it
        self._forget_head(lane)

    def resume(self, queue: str) -> bool:
        """Let a stopped lane go on; false if it is not stopped."""
        lane = self._lanes.get(queue)
        if lane is None or not lane.is_stopped:
            return False
        lane.is_stopped = False
        if lane.unresolved == 0:
            self._unmute(lane)
        return True

    def _unmute(self, lane: Lane) -> None:
        self.sendable_messages += lane.count
        self.sendable_bytes += lane.size_bytes
        if lane.count:
            self._enqueue(lane, first=True)
        else:
            self._drop(lane)

    # ----------------------------------------------------------------------------------------- looking

    def oldest(self) -> Entry | Run | None:
        """What is sendable and was admitted first, as far as heads tell (a lane's head is its oldest)."""
        entry = self._oldest_entry()
        if self._runs and (entry is None or self._runs[0].number < entry.number):
            return self._runs[0]
        return entry

    def _oldest_entry(self) -> Entry | None:
        while (lane := self._heads.first()) is not None:
            at, lane.head_at = lane.head_at, -1.0
            head = None if lane.is_muted else self._head(lane)
            if head is not None:
                if head.admitted_at == at:
                    lane.head_at = at
                    return head
                self._heads.add(lane, head.admitted_at)
        return None

    def has_alone(self) -> bool:
        """Something waits that needs no company."""
        return self._alone.count > 0

    def __iter__(self) -> Iterator[Entry]:
        """Every waiting entry, in no particular order of lanes; opens all runs."""
        self.open_runs()
        for each in self.holdings():
            assert isinstance(each, Entry), "a run was added in between"
            yield each

    def holdings(self) -> Iterator[Entry | Run]:
        """The same with runs as they are."""
        yield from self._runs
        for lane in (self._default, self._alone, *self._lanes.values()):
            for entry in lane.waiting:
                if entry.state == WAITING:
                    yield entry

    @property
    def stopped(self) -> tuple[str, ...]:
        """Queues that stopped at a failed message."""
        return tuple(name for name, lane in self._lanes.items() if lane.is_stopped)

    @property
    def lanes(self) -> list[Lane]:
        """Every lane there is."""
        return [self._default, self._alone, *self._lanes.values()]

    # --------------------------------------------------------------------------------------- book-keeping

    def _lane_of(self, entry: Entry) -> Lane:
        if entry.queue is None:
            return self._default if entry.single is None else self._alone
        lane = self._lanes.get(entry.queue)
        if lane is None:
            lane = self._lanes[entry.queue] = Lane(entry.queue, True, deque())
            policy = self._policies.get(entry.queue)
            if policy is not None:
                lane.is_strict, lane.stops = policy.strict, policy.on_failure == "stop"
        return lane

    def _add(self, lane: Lane, messages: int, size: int) -> None:
        lane.count += messages
        lane.size_bytes += size
        self.waiting_messages += messages
        self.waiting_bytes += size
        if lane.ordered and lane.is_muted:  # only an ordered one can be: that saves the call
            return
        self.sendable_messages += messages
        self.sendable_bytes += size
        if not lane.is_queued or lane.head_at < 0.0:
            self._enqueue(lane, first=False)

    def _count_run(self, run: Run, sign: int) -> None:
        """Add a run to what waits and may be sent, or subtract it."""
        messages, size = sign * len(run), sign * run.size_bytes
        self.waiting_messages += messages
        self.waiting_bytes += size
        self.sendable_messages += messages
        self.sendable_bytes += size

    def _remove(self, lane: Lane, messages: int, size: int) -> None:
        """Take live entries of a lane that is not muted out of every count."""
        lane.count -= messages
        lane.size_bytes -= size
        self.waiting_messages -= messages
        self.waiting_bytes -= size
        self.sendable_messages -= messages
        self.sendable_bytes -= size

    def _enqueue(self, lane: Lane, *, first: bool) -> None:
        if not lane.is_queued:
            lane.is_queued = True
            if first:
                self._ring.appendleft(lane)
            else:
                self._ring.append(lane)
        if lane.head_at < 0.0 and (head := self._head(lane)) is not None:
            self._heads.add(lane, head.admitted_at)

    def _forget_head(self, lane: Lane) -> None:
        lane.head_at = -1.0  # its place among the heads is stale now

    def _drop(self, lane: Lane) -> None:
        """An idle ordered lane costs nothing: it is made anew when its queue is used again."""
        lane.waiting.clear()  # at most what has settled where it stood: it refers to the lane
        if not lane.is_stopped and lane.key is not None and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    @staticmethod
    def _head(lane: Lane) -> Entry | None:
        waiting = lane.waiting
        while waiting:
            if waiting[0].state == WAITING:
                return waiting[0]
            waiting.popleft()
        return None

    @staticmethod
    def _insert(waiting: deque[Entry], members: list[Entry]) -> None:
        """Put members before what is younger, so that an unordered lane's head is its oldest."""
        members.sort(key=_number)
        place = bisect_left(waiting, members[0].number, key=_number)
        waiting.rotate(-place)
        waiting.extendleft(reversed(members))
        waiting.rotate(place)

    @staticmethod
    def _merged(lane: Lane, members: list[Entry]) -> list[Entry]:
        """Members with those at the lane's front that were admitted before the last of them, in order."""
        members.sort(key=_number)
        last = members[-1].number
        ahead: list[Entry] = []
        while lane.waiting and lane.waiting[0].number < last:
            entry = lane.waiting.popleft()
            if entry.state == WAITING:
                ahead.append(entry)
        return sorted([*members, *ahead], key=_number) if ahead else members


def _number(entry: Entry) -> int:
    return entry.number
