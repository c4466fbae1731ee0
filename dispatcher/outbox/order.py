"""What was given back and may be claimed again, and when: an order in memory, and none of its messages.

Messages that were given back are *held* by position: those without a queue by the instant they are due,
those of a queue behind each other. A queue with a held one keeps its fresh ones back as well; whoever reads
fresh ones passes over them, and the queue remembers only from which position it has to `resume`. Whatever of
a queue was claimed once stands before whatever of it was not. Pure; `sqlite_order` and `redis_shard` use it.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf, nan
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

FAR: Final = 1e15
"""The latest instant: infinity means that nothing waits."""


class Queue:
    """One queue that has something held or passed over."""

    __slots__ = ("held", "resume", "timer")

    def __init__(self) -> None:
        self.held: list[tuple[int, float]] = []
        """A heap of (position, due)."""
        self.resume: int | None = None
        """The first of its fresh rows that the cursor has passed over."""
        self.timer = nan
        """The instant of its valid timer."""

    @property
    def due(self) -> float:
        """When its next row may be claimed; infinity if it has none."""
        if self.held:
            return self.held[0][1]
        return inf if self.resume is None else 0.0

    def pop(self) -> tuple[int, float]:
        """Take its first held row."""
        return heappop(self.held)


class Order:
    """The order of what is held."""

    def __init__(self) -> None:
        self.loose: list[tuple[float, int]] = []
        """A heap of (due, position) of those in no queue."""
        self.queues: dict[str, Queue] = {}
        self._timers: list[tuple[float, int, str]] = []
        self._turn = 0

    @property
    def due_at(self) -> float:
        """When something held may be claimed: 0 is now, infinity never."""
        self._drop_stale()
        loose = self.loose[0][0] if self.loose else inf
        return min(loose, self._timers[0][0] if self._timers else inf)

    def hold(self, position: int, queue: str | None, due: float) -> None:
        """A row waits, or waits again, in its old place."""
        due = min(due, FAR)
        if queue is None:
            heappush(self.loose, (due, position))
            return
        heappush(self.queues.setdefault(queue, Queue()).held, (position, due))
        self.set_timer(queue)

    def drop(self, position: int, queue: str | None) -> None:
        """A held row waits no more; one that is not held is ignored."""
        if queue is None:
            self.loose = [one for one in self.loose if one[1] != position]
            heapify(self.loose)
        elif (found := self.queues.get(queue)) is not None:
            found.held = [one for one in found.held if one[0] != position]
            heapify(found.held)
            self.set_timer(queue)

    def pass_over(self, position: int, queue: str | None) -> bool:
        """Whether a fresh row must stay, as its queue has an earlier one; it is remembered then."""
        found = None if queue is None else self.queues.get(queue)
        if found is None or queue is None:
            return False
        if found.resume is None:
            found.resume = position
            self.set_timer(queue)
        return True

    def pop_loose(self) -> None:
        """Take the next of those in no queue."""
        heappop(self.loose)

    def resume_from(self, queue: str, position: int) -> None:
        """Put back where a queue's fresh rows have to be read from."""
        self.queues.setdefault(queue, Queue()).resume = position
        self.set_timer(queue)

    def due_queues(self, now: float) -> Iterator[str]:
        """Queues whose next row may be claimed, by turns; each needs `set_timer` before the next."""
        self._drop_stale()
        while self._timers and self._timers[0][0] <= now:
            name = heappop(self._timers)[2]
            self.queues[name].timer = nan
            yield name
            self._drop_stale()

    def set_timer(self, name: str) -> None:
        """After a queue has changed; one that has nothing left is forgotten."""
        queue = self.queues[name]
        due = queue.due
        if due == inf:
            del self.queues[name]
        elif due != queue.timer:
            queue.timer = due
            self._turn += 1
            heappush(self._timers, (due, self._turn, name))

    def _drop_stale(self) -> None:
        timers = self._timers
        while timers and not self._is_valid(timers[0]):
            heappop(timers)

    def _is_valid(self, timer: tuple[float, int, str]) -> bool:
        queue = self.queues.get(timer[2])
        return queue is not None and queue.timer == timer[0]
