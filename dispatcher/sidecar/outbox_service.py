"""The sidecar's outbox as the process sees it: opened, watched, closed, and what it leaves behind.

Opened after the dispatcher and closed before it. A file that cannot be opened is a mistake of the
configuration; one that fails later makes the process not ready, a relay that died makes it end. Nothing here
looks into a message. Used by `daemon`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Final

from dispatcher.errors import ConfigError, OutboxError
from dispatcher.outbox import Outbox, SQLiteStore, StoreStatus

if TYPE_CHECKING:
    from dispatcher.dispatcher import Dispatcher
    from dispatcher.sidecar.outbox_settings import OutboxSettings

FULL: Final = 0.99
"""Of the bound of bytes: messages differ, and a large one is refused while a small one still fits."""
WITHDRAW_SECONDS: Final = 1.0
"""For the outbox to take back what has not left, before the dispatcher is asked to drain."""

logger: Final = logging.getLogger("dispatcher.sidecar")


class LastingStore(SQLiteStore):
    """Remembers how it was as it was closed."""

    last = StoreStatus()

    async def aclose(self) -> None:
        """See `SQLiteStore.aclose`."""
        self.last = self.status()
        await super().aclose()


class OutboxService:
    """One process's outbox.

    Args:
        file: Of its store.
    """

    def __init__(self, file: str, settings: OutboxSettings, dispatcher: Dispatcher) -> None:
        self.file = file
        self.key = secrets.token_urlsafe(32)
        """For those who may read the file, to be shown its bodies by the admin listener."""
        self._settings = settings
        self._store = LastingStore(
            file,
            max_messages=settings.max_messages,
            max_bytes=settings.max_bytes,
            min_free_bytes=settings.min_free_bytes,
            max_receipts=settings.max_receipts,
            keep_receipts=settings.keep_receipts,
            synchronous=settings.synchronous,
        )
        self.outbox = Outbox(
            self._store,
            dispatcher,
            after_window=settings.after_window,
            delays_from_acceptance=settings.delays_from_acceptance,
        )
        self._closing: asyncio.Task[None] | None = None

    async def start(self, admin: str | None) -> None:
        """Open it, and begin to send what it holds.

        Args:
            admin: URL of the admin listener, for those who find the file locked.

        Raises:
            ConfigError: It cannot be opened.
        """
        try:
            found = await self.outbox.start()
            self._store.announce(admin, self.key)
        except OutboxError as error:
            wanted = "wanted is an outbox file of this program that no other process has open, or a new one"
            raise ConfigError("outbox.file", self.file, wanted, problem=str(error)) from None
        logger.info(
            "outbox %s: %d messages wait, %d dead letters, synchronous=%s",
            self.file, found.waiting, found.dead, self._settings.synchronous,
        )  # fmt: skip
        if found.damaged:
            logger.error("outbox %s: %d records were damaged, and put aside", self.file, found.damaged)

    async def withdraw(self) -> None:
        """Accept nothing more, and take back what has not left; the rest of its end goes on meanwhile."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.outbox.aclose())
        await asyncio.wait([self._closing], timeout=WITHDRAW_SECONDS)

    async def aclose(self) -> None:
        """Have what is answered settled, and let go of the file."""
        await self.withdraw()
        if self._closing is not None:
            await self._closing

    # ----------------------------------------------------------------------------------------------- health

    def why_not_accepting(self) -> str:
        """Why nothing can be kept now, empty if it can."""
        status, settings = self.outbox.status(), self._settings
        if not self.outbox.is_open:
            return "the outbox is not open"
        if status.failure:
            return f"outbox: {status.failure}"
        if status.free_bytes is not None and status.free_bytes < settings.min_free_bytes:
            return f"outbox: its disk has {status.free_bytes} bytes left (outbox.min_free_bytes)"
        if status.waiting + status.claimed + status.dead >= settings.max_messages:
            return f"outbox: it is full with {settings.max_messages} messages (outbox.max_messages)"
        if status.held_bytes + status.dead_bytes >= FULL * settings.max_bytes:
            return f"outbox: it is full, near {settings.max_bytes} bytes (outbox.max_bytes)"
        return ""

    def why_not_alive(self) -> str:
        """Why nothing is sent any more, empty if it is."""
        return self.outbox.death or ""

    def legacy(self) -> str:
        """What stays in the file, in words; once it is closed."""
        last = self._store.last
        held = last.waiting + last.claimed
        return f"{held} messages and {last.dead} dead letters stay in {self.file}"
