"""The order of one file: what is held, and how far its fresh rows were read.

Fresh rows are read once, in the order of positions, by a `cursor`: however many wait, they cost nothing
here. Pure; used by `sqlite_ledger`.
"""

from __future__ import annotations

from dispatcher.outbox.order import Order


class FileOrder(Order):
    """The order of one file."""

    def __init__(self) -> None:
        super().__init__()
        self.cursor = 1
        """Every fresh row that waits from here on has not been read."""
        self.end = 1
        """The next position to be given."""

    @property
    def due_at(self) -> float:
        """When something may be claimed: 0 is now, infinity never."""
        return 0.0 if self.cursor < self.end else super().due_at
