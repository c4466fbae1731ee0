"""Who waits for which message of an outbox, and what is known before the store knows it.

An outcome goes to whoever watches the message; of one that nobody watches it is kept here until it stands in
the store, so that no one who asks meanwhile is told too little. Used by `outbox`, `relay` and `stored`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dispatcher.errors import OutboxError
from dispatcher.outbox.judging import outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.errors import DispatcherError
    from dispatcher.message import Receipt
    from dispatcher.outbox.store import Store
    from dispatcher.outbox.stored import Stored


class Watching:
    """Of one outbox."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched: dict[str, Stored] = {}
        self._unread: dict[str, Receipt | DispatcherError] = {}
        """Outcomes that the store may not know yet, of messages that nobody watches."""
        self._end: DispatcherError | None = None
        """Why nothing more is told."""

    def add(self, stored: Stored) -> None:
        """Have it told its outcome as it comes."""
        self._watched[stored.id] = stored

    def drop(self, stored: Stored) -> None:
        """Nobody waits for it any more."""
        self._watched.pop(stored.id, None)

    async def wait_for(self, stored: Stored) -> None:
        """Return once its outcome is known here; raises what the store does."""
        while stored.outcome is None:
            if stored.id not in self._watched:
                await self._look_for(stored)
            elif self._end is not None:
                self.drop(stored)
                stored.tell(self._end)
            else:
                await asyncio.shield(stored.wait())

    async def _look_for(self, stored: Stored) -> None:
        """Have it told what comes, and what has come already."""
        self.add(stored)
        outcome = self._unread.get(stored.id)
        if outcome is None:
            try:
                found = await self._store.find(stored.id)
            except BaseException:
                self.drop(stored)
                stored.wake()  # whoever else waits looks himself
                raise
            outcome = OutboxError("nothing is known of it any more") if found is None else outcome_of(found)
        if outcome is not None and stored.outcome is None:
            self.drop(stored)
            stored.tell(outcome)

    def tell(self, message_id: str, outcome: Receipt | DispatcherError) -> None:
        """This is what became of a message."""
        stored = self._watched.pop(message_id, None)
        if stored is not None:
            stored.tell(outcome)
        else:
            self._unread[message_id] = outcome

    def unread(self) -> list[str]:
        """Messages whose outcome is kept here."""
        return list(self._unread)

    def forget(self, message_ids: Iterable[str]) -> None:
        """The store knows them."""
        for message_id in message_ids:
            del self._unread[message_id]

    def close(self, error: DispatcherError) -> None:
        """Nothing more will be told; whoever waits, or comes later, is told that."""
        self._end = error
        for stored in self._watched.values():
            stored.tell(error)
        self._watched.clear()
