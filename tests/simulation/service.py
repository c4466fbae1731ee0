"""The upstream's model with an observer: which messages got error entries, and where that broke an order."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dispatcher.devserver.ledger import digest_of
from dispatcher.devserver.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dispatcher.devserver.intake import Entry, Item


class Service(Upstream):
    """Counts its own exceptions, so that the verdict can tell them from the core's faults."""

    def __init__(self, max_items: int | None = None, max_message_bytes: int = 1_048_576) -> None:
        super().__init__(max_items=max_items, max_message_bytes=max_message_bytes)
        self.error_entries: Counter[bytes] = Counter()
        """Error entries by the message's digest."""
        self.passed_over: set[bytes] = set()
        """Messages refused by an error entry while a later one of their queue was accepted."""

    def accept_batch(
        self,
        items: Sequence[Item],
        now: float,
        *,
        failing: Collection[int] = (),
        failing_endpoints: Collection[int] = (),
    ) -> list[Entry | list[Entry]]:
        entries = super().accept_batch(items, now, failing=failing, failing_endpoints=failing_endpoints)
        if failing:
            self._observe(items, entries)
        return entries

    def _observe(self, items: Sequence[Item], entries: list[Entry | list[Entry]]) -> None:
        accepted: set[str | None] = set()
        for item, entry in zip(reversed(items), reversed(entries), strict=True):
            if isinstance(entry, list) or entry.error is None:
                accepted.add(item.queue)
                continue
            digest = digest_of(item.destination or "", item.queue, item.body)
            self.error_entries[digest] += 1
            if item.queue and item.queue in accepted:
                self.passed_over.add(digest)
