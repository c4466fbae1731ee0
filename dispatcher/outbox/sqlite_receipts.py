"""Which delivered rows are kept, and which have to go.

Positions in the order of their delivery, eight bytes each. Used by `sqlite_ledger`; pure.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GROUP_POSITIONS_MAX: Final = 1000
GROUP_SECONDS: Final = 1.0
SLACK: Final = 50
"""Once there are too many, one in so many more go, so that it is done by the hundred."""


class Receipts:
    """Positions of delivered rows.

    Args:
        max_receipts: Most of them.
        keep: Seconds.
    """

    def __init__(self, max_receipts: int, keep: float) -> None:
        self.max_receipts = max_receipts
        self.keep = keep
        self.count = 0
        self._groups: deque[tuple[float, array[int]]] = deque()

    @property
    def due_at(self) -> float | None:
        """When the oldest have been kept long enough."""
        return self._groups[0][0] + self.keep + GROUP_SECONDS if self._groups else None

    def has_excess(self, now: float) -> bool:
        """Whether some have to go."""
        due_at = self.due_at
        return self.count > self.max_receipts or (due_at is not None and due_at <= now)

    def extend(self, positions: Sequence[int], at: float) -> None:
        """These were delivered, at an instant of this clock."""
        if not positions:
            return
        groups = self._groups
        last = groups[-1] if groups else None
        if last is None or at > last[0] + GROUP_SECONDS or len(last[1]) >= GROUP_POSITIONS_MAX:
            groups.append((at, array("q", positions)))
        else:
            last[1].extend(positions)
        self.count += len(positions)

    def take_excess(self, now: float) -> array[int]:
        """Those that are too many or too old, the oldest first."""
        taken: array[int] = array("q")
        groups = self._groups
        while groups and groups[0][0] + self.keep + GROUP_SECONDS <= now:
            taken += groups.popleft()[1]
        excess = self.count - len(taken) - self.max_receipts
        if excess > 0:
            self._take(taken, excess + self.max_receipts // SLACK)
        self.count -= len(taken)
        return taken

    def put_back(self, positions: Iterable[int], at: float) -> None:
        """They could not go."""
        kept = array("q", positions)
        self._groups.appendleft((at - self.keep - GROUP_SECONDS, kept))
        self.count += len(kept)

    def _take(self, taken: array[int], wanted: int) -> None:
        groups = self._groups
        while wanted > 0 and groups:
            at, group = groups.popleft()
            taken += group[:wanted]
            if len(group) > wanted:
                groups.appendleft((at, group[wanted:]))
            wanted -= len(group)
