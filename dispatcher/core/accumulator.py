"""The accumulator: which messages go next, out of all that wait.

Ready lanes take turns by bytes (deficit round robin), so a flood to one starves none; a run goes whole where
nobody is passed over. Called by the engine only. Decides who goes; never when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import WAITING, Batch
from dispatcher.core.lanes import Lanes

if TYPE_CHECKING:
    from dispatcher.core.batch import Entry, Lane

OVERTAKE_SECONDS: Final = 0.01
"""A run may overtake entries that were admitted so much earlier."""


class Accumulator(Lanes):
    """All lanes of one dispatcher, and who of them sends next."""

    __slots__ = ()

    def take(self) -> Batch | None:
        """The next batch, by deficit round robin over the ready lanes."""
        if self._runs:
            if self._may_take_run():
                run = self._runs.popleft()
                self._count_run(run, -1)
                return Batch(run, run.size_bytes, "")
            self._open_next()
        if len(self._ring) == 1 and self._ring[0] is self._default:
            lane = self._default
            if lane.count and lane.count == len(lane.waiting):
                return self._take_head(lane)
        entries: list[Entry] = []
        size = 0
        ring = self._ring
        touched: dict[int, tuple[Lane, int]] = {}
        aside: list[Lane] = []
        is_full = has_lone = False
        while ring and not is_full and len(aside) < self.max_messages:
            lane = ring[0]
            if lane.count == 0 or lane.is_muted:
                ring.popleft()
                lane.is_queued = False
                lane.deficit = 0
                continue
            if lane.count == 1 and self._is_lone(lane):
                has_lone = True
                size, is_full = self._take_lone(entries, size)
                continue
            head = self._head(lane)
            if entries and head is not None and head.single is not None:
                aside.append(ring.popleft())  # it goes by itself, and next, instead of ending this batch
                continue
            if lane.deficit <= 0:
                lane.deficit = self._quantum if len(ring) == 1 else lane.deficit + self._quantum
            before = len(entries)
            size, is_full = self._take_from(lane, entries, size)
            taken = len(entries) - before
            if taken and lane.ordered:
                earlier = touched.get(id(lane), (lane, 0))[1]
                touched[id(lane)] = (lane, earlier + taken)
            if lane.is_strict and taken:
                self._leave_ring(lane)  # its next message waits for this one
            elif lane.deficit <= 0:
                ring.rotate(-1)
        ring.extendleft(reversed(aside))
        for lane, left in touched.values():
            self._mute(lane, left)
        if not entries:
            return None
        return Batch(entries, size, "", single=entries[0].single, has_ordered=bool(touched) or has_lone)

    def take_alone(self) -> Batch | None:
        """The next message that travels alone, with nothing else being due."""
        entry = self._head(self._alone)
        if entry is None:
            return None
        self._alone.waiting.popleft()
        self._remove(self._alone, 1, len(entry.data))
        return Batch([entry], len(entry.data), "single", single=entry.single)

    def _may_take_run(self) -> bool:
        """The first run is next: it fits, no other lane is ready, and who it overtakes has not waited longer.

        It may overtake less than a batch of entries that are older by so little: to fill that batch, runs
        would have to be opened one after the other, each for the rest of the one before.
        """
        run = self._runs[0]
        if len(run) > self.max_messages or run.size_bytes + len(run) + 1 > self.max_bytes:
            return False
        if any(lane is not self._default for lane in self._ring):
            return False
        head = self._head(self._default)
        if head is None or head.number > run.number:
            return True
        return (
            self._default.count < self.max_messages and head.admitted_at >= run.admitted_at - OVERTAKE_SECONDS
        )

    def _take_head(self, lane: Lane) -> Batch:
        """What `take` does where only the default lane has anything, and all of that alive, in few steps."""
        waiting = lane.waiting
        popleft = waiting.popleft
        entries = [popleft() for _ in range(min(self.max_messages, len(waiting)))]
        size = sum([len(entry.data) for entry in entries])
        while size + len(entries) + 1 > self.max_bytes and len(entries) > 1:
            size -= len(entries[-1].data)
            waiting.appendleft(entries.pop())
        self._remove(lane, len(entries), size)
        lane.deficit = 0
        return Batch(entries, size, "")

    @staticmethod
    def _is_lone(lane: Lane) -> bool:
        """All that this ordered lane has is one message, which may be batched."""
        waiting = lane.waiting
        return lane.ordered and lane.count == len(waiting) == 1 and waiting[0].single is None

    def _take_lone(self, entries: list[Entry], size: int) -> tuple[int, bool]:
        """Move the only messages of the lanes at the ring's front into the batch, in few steps for each."""
        ring, space = self._ring, self.max_bytes - 2
        messages = taken_bytes = 0
        is_full = False
        while not is_full and ring and self._is_lone(ring[0]) and not ring[0].is_muted:
            lane = ring[0]
            entry = lane.waiting[0]
            cost = len(entry.data)
            if entries and size + cost + len(entries) > space:
                is_full = True
                break
            ring.popleft()
            lane.waiting.popleft()
            lane.is_queued = False
            lane.count = lane.size_bytes = lane.deficit = 0
            lane.unresolved, lane.head_at = 1, -1.0
            entries.append(entry)
            size += cost
            taken_bytes += cost
            messages += 1
            is_full = len(entries) == self.max_messages or size >= space
        self.waiting_messages -= messages
        self.waiting_bytes -= taken_bytes
        self.sendable_messages -= messages
        self.sendable_bytes -= taken_bytes
        return size, is_full

    def _take_from(self, lane: Lane, entries: list[Entry], size: int) -> tuple[int, bool]:
        """Move entries of one lane into the batch until its turn, its entries or the batch ends."""
        waiting = lane.waiting
        space = self.max_bytes - 2  # the brackets; each entry costs its comma, too
        taken = taken_bytes = 0
        is_full = False
        while waiting and lane.deficit > 0:
            entry = waiting[0]
            if entry.state != WAITING:
                waiting.popleft()
                continue
            cost = len(entry.data)
            if entries and entry.single is not None:
                break
            if entries and size + cost + len(entries) > space:
                is_full = True
                break
            waiting.popleft()
            entries.append(entry)
            size += cost
            taken += 1
            taken_bytes += cost
            lane.deficit -= cost if entry.single is None else max(cost, self._quantum)  # a whole request
            if entry.single is not None or len(entries) == self.max_messages or size >= space:
                is_full = True
                break
            if lane.is_strict:
                break
        self._remove(lane, taken, taken_bytes)
        if lane.count == 0:
            lane.deficit = 0
        return size, is_full

    def _mute(self, lane: Lane, left: int) -> None:
        if lane.unresolved == 0:
            self.sendable_messages -= lane.count
            self.sendable_bytes -= lane.size_bytes
        lane.unresolved += left
        self._forget_head(lane)

    def _leave_ring(self, lane: Lane) -> None:
        if self._ring and self._ring[0] is lane:
            self._ring.popleft()
            lane.is_queued = False
            lane.deficit = 0
