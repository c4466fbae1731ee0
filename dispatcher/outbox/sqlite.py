"""`SQLiteStore`: an outbox's store in one SQLite file, for one process. The loop's side of it.

Calls become jobs for the file's thread and are answered from there, many at a time; bounds are checked
here, against numbers that the thread has published. Nothing here reads or writes anything, and no call does
more for a message than add up its bytes. Made by applications and by the sidecar; for one event loop.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import ConfigError, OutboxError, StoreFull
from dispatcher.outbox import sqlite_commands as commands
from dispatcher.outbox.sqlite_group import NO_SPACE, Job, Kind
from dispatcher.outbox.sqlite_schema import SYNCHRONOUS
from dispatcher.outbox.sqlite_thread import Published, Settings, StoreThread
from dispatcher.outbox.store import Returned, StoreStatus
from dispatcher.outbox.waiting import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.outbox.sqlite_ledger import Ledger
    from dispatcher.outbox.sqlite_schema import Synchronous
    from dispatcher.outbox.store import Claim, Found, Mark, Record, Settlement

GIB: Final = 1 << 30
MIB: Final = 1 << 20


class SQLiteStore:
    """A store in one file, and files beside it: `FILE-wal`, `FILE.lock`, and what was damaged.

    Args:
        path: The file; its directory must be there.
        max_messages: Most messages that are kept, receipts apart.
        max_bytes: Most bytes of their data.
        min_free_bytes: What has to stay free on the disk; below, nothing is accepted.
        max_receipts: Delivered messages whose receipts are kept.
        keep_receipts: Seconds that they are kept.
        synchronous: `full`: what is acknowledged survives a loss of power. `normal`, `off`: it survives the
            process, and the machine's last moments may be lost; `off` may damage the file.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_messages: int = 1_000_000,
        max_bytes: int = 2 * GIB,
        min_free_bytes: int = 64 * MIB,
        max_receipts: int = 100_000,
        keep_receipts: float = 3600.0,
        synchronous: Synchronous = "full",
    ) -> None:
        if synchronous not in SYNCHRONOUS:
            raise ConfigError("synchronous", synchronous, f"one of {', '.join(SYNCHRONOUS)}")
        _at_least("max_messages", max_messages, 1)
        _at_least("max_bytes", max_bytes, 1)
        for name, value in (("min_free_bytes", min_free_bytes), ("max_receipts", max_receipts)):
            _at_least(name, value, 0)
        _at_least("keep_receipts", keep_receipts, 0)
        self.path = Path(path)
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.min_free_bytes = min_free_bytes
        self._settings = Settings(self.path, min_free_bytes, max_receipts, keep_receipts, synchronous)
        self._known = Published(StoreStatus(failure="it is not open"))
        self._pending_messages = self._pending_bytes = 0
        """Of appends that are not answered."""
        self._bell = Bell()
        self._pid = os.getpid()
        self._is_closing = False
        self._thread: StoreThread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._opened: asyncio.Future[None]
        self._closed: asyncio.Future[None]

    def __repr__(self) -> str:
        status = self.status()
        state = f"not in use: {status.failure}" if status.failure else f"{status.waiting} waiting"
        return f"<SQLiteStore {self.path.name}: {state}, {status.claimed} claimed, {status.dead} dead>"

    # ---------------------------------------------------------------------------------------- its life

    async def open(self) -> StoreStatus:
        """Lock the file, make it if it is not there, put it right, and read what it holds.

        Raises:
            OutboxError: Another process has it, it is no outbox, or it cannot be read or written.
        """
        if self._thread is not None:
            raise OutboxError(f"{self.path}: was opened before; make a new SQLiteStore")
        self._loop = asyncio.get_running_loop()
        self._opened, self._closed = self._loop.create_future(), self._loop.create_future()
        self._pid = os.getpid()
        self._thread = StoreThread(self._settings, self._publish)
        self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except asyncio.CancelledError:
            self._opened.add_done_callback(lambda opened: opened.cancelled() or opened.exception())
            self._ask_to_close()
            raise
        return self.status()

    async def aclose(self) -> None:
        """Do what was asked for, write the log into the file, and let go of it; any number of times."""
        if self._thread is None or self._pid != os.getpid():
            return
        self._ask_to_close()
        await asyncio.shield(self._closed)
        self._thread.join()

    def announce(self, admin: str | None, key: str | None = None) -> None:
        """Let those who find the file locked know where its holder can be asked, and with which key."""
        self._check()
        assert self._thread is not None
        self._thread.lock.announce(admin, key)

    def _ask_to_close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            assert self._thread is not None
            self._thread.inbox.put(None)

    # ----------------------------------------------------------------------------------------- messages

    async def append(self, records: Sequence[Record], mark: Mark | None = None) -> None:
        """Keep all of them or none; see `Store.append`."""
        self._check()
        if not records and mark is None:
            return
        size = sum([len(record.data) for record in records])
        self._check_room(len(records), size)
        job = self._job("append", Kind.APPEND)
        job.records, job.size, job.mark = records, size, mark
        self._pending_messages += len(records)
        self._pending_bytes += size
        await self._ask(job)

    async def claim(self, messages: int, size_bytes: int, now: float) -> list[Claim]:
        """See `Store.claim`."""
        self._check()
        job = self._job("claim", Kind.CLAIM)
        job.claim = (messages, size_bytes, now)
        claims: list[Claim] = await self._ask(job)
        return claims

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Store.settle`."""
        self._check()
        if settlements:
            job = self._job("settle", Kind.SETTLE)
            job.settlements = settlements
            await self._ask(job)

    async def wait(self, now: float) -> None:
        """See `Store.wait`."""
        self._check()
        await self._bell.wait(now)

    # ----------------------------------------------------------------------------------------- commands

    async def find(self, message_id: str) -> Found | None:
        """See `Store.find`."""
        found: Found | None = await self._command(
            "find", Kind.LOOK, lambda ledger: commands.find(ledger, message_id)
        )
        return found

    async def cancel(self, message_id: str) -> bool:
        """See `Store.cancel`."""
        return bool(
            await self._command("cancel", Kind.COMMAND, lambda ledger: commands.cancel(ledger, message_id))
        )

    async def mark(self, name: str) -> bytes | None:
        """See `Store.mark`."""
        value: bytes | None = await self._command(
            "mark", Kind.LOOK, lambda ledger: commands.mark(ledger, name)
        )
        return value

    async def dead_letters(self, after: str | None = None, limit: int = 100) -> list[Found]:
        """See `Store.dead_letters`."""
        found: list[Found] = await self._command(
            "dead_letters", Kind.LOOK, lambda ledger: commands.dead_letters(ledger, after, limit)
        )
        return found

    async def retry(self, message_ids: Sequence[str] | None = None) -> int:
        """See `Store.retry`."""
        return int(
            await self._command("retry", Kind.COMMAND, lambda ledger: commands.retry(ledger, message_ids))
        )

    async def delete(self, message_ids: Sequence[str] | None = None) -> int:
        """See `Store.delete`."""
        return int(
            await self._command("delete", Kind.COMMAND, lambda ledger: commands.delete(ledger, message_ids))
        )

    def status(self) -> StoreStatus:
        """See `Store.status`."""
        return self._known.status

    # ----------------------------------------------------------------------------------- to the thread

    async def _command(self, name: str, kind: Kind, command: Callable[[Ledger], Any]) -> Any:
        self._check()
        job = self._job(name, kind)
        job.command = command
        return await self._ask(job)

    def _job(self, name: str, kind: Kind) -> Job:
        return Job(name, kind, self._loop.create_future())

    def _ask(self, job: Job) -> asyncio.Future[Any]:
        assert self._thread is not None
        assert job.future is not None
        self._thread.inbox.put(job)
        return job.future

    def _check(self) -> None:
        if self._thread is None or not self._known.is_open or self._is_closing:
            raise OutboxError(f"{self.path}: {'it is closed' if self._is_closing else 'open it first'}")
        if self._pid != os.getpid():
            raise OutboxError(f"{self.path}: was opened before a fork, by process {self._pid}; open it here")

    def _check_room(self, messages: int, size_bytes: int) -> None:
        if messages == 1 and size_bytes > self.max_bytes:
            raise OutboxError(
                f"{self.path}: a message of {size_bytes} bytes never fits into {self.max_bytes}: "
                "raise max_bytes"
            )
        known = self._known
        status = known.status
        held = status.waiting + status.claimed + status.dead + self._pending_messages
        held_bytes = known.kept_bytes + self._pending_bytes
        if held + messages > self.max_messages or held_bytes + size_bytes > self.max_bytes:
            raise StoreFull(
                f"{self.path}: {held} of {self.max_messages} messages and {held_bytes} of {self.max_bytes} "
                "bytes are kept; there is room again when some are settled, or dead ones deleted"
            )
        if known.is_full:
            raise StoreFull(f"{self.path}: {NO_SPACE}")
        if status.free_bytes is not None and status.free_bytes < self.min_free_bytes:
            raise StoreFull(
                f"{self.path}: its disk has {status.free_bytes} bytes left, and {self.min_free_bytes} have "
                "to stay free; it goes on by itself when there are more"
            )
        if status.failure:
            raise OutboxError(f"{self.path}: {status.failure}")

    # --------------------------------------------------------------------------------- from the thread

    def _publish(self, jobs: Sequence[Job], known: Published, ended: BaseException | None) -> None:
        """In the thread; raises `RuntimeError` if the loop is closed."""
        self._loop.call_soon_threadsafe(partial(self._receive, jobs, known, ended))

    def _receive(self, jobs: Sequence[Job], known: Published, ended: BaseException | None) -> None:
        """In the loop: one call for everything that was done together."""
        self._known = known
        for job in jobs:
            self._answer(job)
        if not self._opened.done():
            if ended is None:
                self._opened.set_result(None)
            else:
                self._opened.set_exception(ended)
        if not known.is_open:
            self._is_closing = True
            self._closed.set_result(None)
        self._bell.set(known.due_at if known.is_open else 0.0)

    def _answer(self, job: Job) -> None:
        self._pending_messages -= len(job.records)
        self._pending_bytes -= job.size
        future = job.future
        if future is None:
            return
        if future.cancelled():
            self._give_back(job)
        elif job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(job.result)

    def _give_back(self, job: Job) -> None:
        """Whoever claimed has gone: what he was given waits again, as if he had not asked."""
        if job.kind is not Kind.CLAIM or not job.result or self._is_closing:
            return
        again = Job("settle", Kind.SETTLE, None)
        again.settlements = [Returned(one.position, 0.0, one.attempts, one.sent_since) for one in job.result]
        self._ask_unanswered(again)

    def _ask_unanswered(self, job: Job) -> None:
        assert self._thread is not None
        self._thread.inbox.put(job)


def _at_least(name: str, value: float, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ConfigError(name, value, f"a number from {least} up")
