"""Flushes: which of the held entries a flush covers, and when it is done.

A flush is an epoch's end: entries carry the epoch in which they were offered, through retries and
isolations, and each epoch counts its own that have not settled. Kept by `engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.core.batch import Entry, Run


class Flushes:
    """Counts of unsettled entries by epoch."""

    __slots__ = ("_unsettled", "epoch")

    def __init__(self) -> None:
        self._unsettled: dict[int, int] = {}
        self.epoch = 0
        """Of what is offered now."""

    @property
    def unsettled(self) -> int:
        """Entries of every epoch that have not settled."""
        return sum(self._unsettled.values())

    def begin(self) -> int:
        """Flush what was offered so far; the epoch to ask `is_done` about."""
        self.epoch += 1
        return self.epoch - 1

    def covers(self, entry: Entry | Run) -> bool:
        """It was offered before the last flush, and need not linger."""
        return entry.epoch < self.epoch

    def is_done(self, epoch: int) -> bool:
        """Everything offered in that epoch or before has settled."""
        return not self._unsettled or min(self._unsettled) > epoch

    def add(self, entries: int) -> None:
        """So many are offered now."""
        self._unsettled[self.epoch] = self._unsettled.get(self.epoch, 0) + entries

    def release_run(self, run: Run) -> None:
        """The same as `release`, for a run."""
        self._subtract(run.epoch, len(run))

    def release(self, entries: Sequence[Entry]) -> None:
        """These have settled: the flushes that cover them wait for fewer."""
        if len(self._unsettled) == 1:
            self._subtract(entries[0].epoch, len(entries))
            return
        for entry in entries:
            self._subtract(entry.epoch, 1)

    def _subtract(self, epoch: int, entries: int) -> None:
        unsettled = self._unsettled
        unsettled[epoch] -= entries
        if not unsettled[epoch]:
            del unsettled[epoch]
