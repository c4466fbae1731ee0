"""The sidecar's outbox as the process sees it: opened, watched, closed, and what it leaves behind.

Opened after the dispatcher and closed before it. A file that cannot be opened is a mistake of the
configuration, a Redis that is away is waited for; one that fails later makes the process not ready, a relay
that died makes it end. Nothing here looks into a message. Used by `daemon`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Final

from dispatcher.errors import ConfigError, OutboxError
from dispatcher.outbox import Outbox, SQLiteStore, StoreStatus
from dispatcher.sidecar.outbox_redis import reached, redis_store

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

    @classmethod
    def of(cls, file: str, settings: OutboxSettings) -> LastingStore:
        """One that is not open."""
        return cls(
            file,
            max_messages=settings.max_messages,
            max_bytes=settings.max_bytes,
            min_free_bytes=settings.min_free_bytes,
            max_receipts=settings.max_receipts,
            keep_receipts=settings.keep_receipts,
            synchronous=settings.synchronous,
        )

    async def aclose(self) -> None:
        """See `SQLiteStore.aclose`."""
        self.last = self.status()
        await super().aclose()


class OutboxService:
    """One process's outbox.

    Args:
        file: Of its store, or the URL of a shared one, without the password.
    """

    def __init__(self, file: str, settings: OutboxSettings, dispatcher: Dispatcher) -> None:
        self.file = file
        self.key = "" if settings.is_shared else secrets.token_urlsafe(32)
        """For those who may read the file, to be shown its bodies by the admin listener; empty: nobody is."""
        self._settings = settings
        self._store = redis_store(settings) if settings.is_shared else LastingStore.of(file, settings)
        self.outbox = Outbox(
            self._store,
            dispatcher,
            after_window=settings.after_window,
            delays_from_acceptance=settings.delays_from_acceptance,
        )
        self._closing: asyncio.Task[None] | None = None

    async def start(self, admin: str | None, stop: asyncio.Event | None = None) -> bool:
        """Open it, and begin to send what it holds; false if it was asked to stop before Redis was there.

        Args:
            admin: URL of the admin listener, for those who find the file locked.
            stop: The process is to end.

        Raises:
            ConfigError: The file cannot be opened, or Redis refuses the password.
            OutboxError: Redis takes no writes, or has another kind of outbox under the fleet's name.
        """
        store = self._store
        if not isinstance(store, LastingStore) and not await reached(
            store, self._settings, stop or asyncio.Event()
        ):
            return False
        try:
            found = await self.outbox.start()
            if isinstance(store, LastingStore):
                store.announce(admin, self.key)
        except OutboxError as error:
            if self._settings.is_shared:  # it may pass, as during a failover: the process is started again
                raise OutboxError(f"outbox.file: {self.file} cannot be used: {error}") from None
            wanted = "wanted is an outbox file of this program that no other process has open, or a new one"
            raise ConfigError("outbox.file", self.file, wanted, problem=str(error)) from None
        how = f"synchronous={self._settings.synchronous}"
        if self._settings.is_shared:
            how = f"fleet={self._settings.fleet}"
        logger.info(
            "outbox %s: %d messages wait, %d dead letters, %s", self.file, found.waiting, found.dead, how
        )
        if found.damaged:
            logger.error("outbox %s: %d records were damaged, and put aside", self.file, found.damaged)
        return True

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
        store = self._store
        last = store.last if isinstance(store, LastingStore) else store.status()
        held = last.waiting + last.claimed
        return f"{held} messages and {last.dead} dead letters stay in {self.file}"
