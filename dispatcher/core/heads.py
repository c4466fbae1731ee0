"""The lanes by their oldest waiting entry: whose has waited longest?

Nearly always a lane gets a head that is younger than all the others', so a queue keeps most of them in order;
a heap takes those that come back (unmuted, restored). A lane is known under one instant, `Lane.head_at`; what
stands here under another is stale, and dropped when it comes to the front. Kept by `accumulator`.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.core.batch import Lane


class Heads:
    """Lanes and the admission instants of their heads."""

    __slots__ = ("_in_order", "_others", "_ticks")

    def __init__(self) -> None:
        self._in_order: deque[tuple[float, Lane]] = deque()
        self._others: list[tuple[float, int, Lane]] = []
        self._ticks = count()

    def __len__(self) -> int:
        """How many stand here, stale ones included."""
        return len(self._in_order) + len(self._others)

    def add(self, lane: Lane, at: float) -> None:
        """The lane's head was admitted at that instant."""
        self._drop_stale()
        lane.head_at = at
        if not self._in_order or at >= self._in_order[-1][0]:
            self._in_order.append((at, lane))
        else:
            heapq.heappush(self._others, (at, next(self._ticks), lane))

    def first(self) -> Lane | None:
        """The lane whose head was admitted first, as far as is known here."""
        self._drop_stale()
        if not self._others:
            return self._in_order[0][1] if self._in_order else None
        at, _, lane = self._others[0]
        return lane if not self._in_order or at < self._in_order[0][0] else self._in_order[0][1]

    def _drop_stale(self) -> None:
        in_order, others = self._in_order, self._others
        while in_order and in_order[0][1].head_at != in_order[0][0]:
            in_order.popleft()
        while others and others[0][2].head_at != others[0][0]:
            heapq.heappop(others)
