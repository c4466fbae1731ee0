"""The thread that owns the file: it alone touches it, from the lock to the last byte.

What the loop asks for comes through a queue, goes through `sqlite_group` together, and is answered together
by one call into the loop. After an error of input or output the connection is closed, everything is
refused, and after a pause the file is opened anew: no fsync is ever repeated, but what the log holds is
written and synced again into the file, and a fresh log begun, before anything is accepted. Made by
`SQLiteStore`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from dispatcher.errors import OutboxError
from dispatcher.outbox.sqlite_group import NO_SPACE, SQLITE_FULL, Job, code_of, run_group
from dispatcher.outbox.sqlite_ledger import Ledger
from dispatcher.outbox.sqlite_load import load
from dispatcher.outbox.sqlite_lock import FileLock
from dispatcher.outbox.sqlite_recovery import CODES_OF_DAMAGE, open_file
from dispatcher.outbox.sqlite_rescue import rescue
from dispatcher.outbox.sqlite_schema import SQLITE_MINIMUM, log_path
from dispatcher.outbox.store import StoreStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dispatcher.outbox.sqlite_schema import Synchronous
    from dispatcher.outbox.store import Claim

GROUP_MESSAGES_MAX: Final = 10_000
GROUP_BYTES_MAX: Final = 16 << 20
"""Of one transaction; the rest waits for the next."""
LOOK_SECONDS: Final = 1.0
"""Between looks at the disk, and after a full one or an error until it is tried again."""
IDLE_SECONDS: Final = 0.25
"""Without work, until the file is tidied."""
VACUUM_PAGES: Final = 256
"""Given back to the disk at a time."""
LOG_BYTES_IDLE: Final = 1 << 20
"""Of a log that is left as it is when nothing happens."""
LOG_BYTES_MAX: Final = 128 << 20
"""A log that has grown so far was not written into the file: SQLite says why when it is told to."""

logger: Final = logging.getLogger("dispatcher")


class Settings(Struct, frozen=True):
    """What the thread has to know; see `SQLiteStore`."""

    path: Path
    min_free_bytes: int
    max_receipts: int
    keep_receipts: float
    synchronous: Synchronous


class Published(Struct, frozen=True, gc=False):
    """What the loop knows of the thread."""

    status: StoreStatus
    due_at: float = inf
    """When something may be claimed, in Unix seconds."""
    kept_bytes: int = 0
    """Of everything that counts against the bounds."""
    is_full: bool = False
    """Whether there is no space for appends."""
    is_open: bool = False


class StoreThread(threading.Thread):
    """One file's thread, from `start` until `None` is put into its `inbox`, or the file cannot be opened.

    Args:
        publish: Called in the thread with jobs that are done, what is known now, and what ended the thread.
    """

    def __init__(
        self, settings: Settings, publish: Callable[[Sequence[Job], Published, BaseException | None], None]
    ) -> None:
        super().__init__(name=f"outbox {settings.path.name}", daemon=True)
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self.lock: FileLock
        self._settings = settings
        self._publish = publish
        self._connection: sqlite3.Connection | None = None
        self._ledger: Ledger
        self._failure = ""
        self._is_full = False
        self._retry_at = self._look_at = 0.0
        self._chore: Callable[[], None] | None = None
        self._is_closing = False
        self._jobs: Sequence[Job] = ()
        """Those that are not answered."""
        self._errors: Counter[str] = Counter()
        self._oldest_at: float | None = None
        self._status = StoreStatus()
        """As it was told last."""
        self._free_bytes = self._disk_bytes = self._recovered = self._lost = self._commits = 0

    def run(self) -> None:
        """The thread's life."""
        try:
            self._begin()
        except Exception as error:
            self._publish((), Published(StoreStatus(failure=str(error))), error)
            return
        try:
            self._tell(())
            while not self._is_closing:
                self._turn()
        except RuntimeError:  # the loop was closed, and nobody waits any more
            logger.warning("outbox %s: its event loop is closed", self._settings.path)
        except Exception:  # ours: whoever waits must not wait for ever
            logger.exception("outbox %s: its thread died", self._settings.path)
        finally:
            self._end()

    def _turn(self) -> None:
        jobs = self._jobs = self._collect()
        if self._failure and time.monotonic() >= self._retry_at:
            self._open_anew()
        if jobs:
            self._serve(jobs)
        elif not self._failure:
            self._tidy()
        if time.monotonic() >= self._look_at:
            self._look()
        self._tell(jobs)
        self._jobs = ()

    # ----------------------------------------------------------------------------------------- the file

    def _begin(self) -> None:
        path = self._settings.path
        if sqlite3.sqlite_version_info < SQLITE_MINIMUM:
            wanted = ".".join(map(str, SQLITE_MINIMUM))
            raise OutboxError(f"the outbox needs SQLite {wanted}; this Python has {sqlite3.sqlite_version}")
        if not path.parent.is_dir():
            raise OutboxError(f"{path.parent}: is no directory; make it first")
        self.lock = FileLock(path)
        try:
            self._open({})
            self.lock.announce()
        except BaseException as error:
            self._close()
            self.lock.release()
            if isinstance(error, OSError | sqlite3.Error):
                raise OutboxError(f"{path}: cannot be opened: {error}") from error
            raise
        self._recovered = self._ledger.waiting

    def _open(self, owned: Mapping[int, Claim]) -> None:
        try:
            self._load(owned)
        except sqlite3.DatabaseError as error:
            if code_of(error) not in CODES_OF_DAMAGE:
                raise
            self._close()
            self._lost += rescue(self._settings.path, _words(error))
            self._load(owned)
        self._look()

    def _load(self, owned: Mapping[int, Claim]) -> None:
        settings = self._settings
        has_been_ours = bool(owned) or self.lock.has_been_held
        self._connection, lost = open_file(settings.path, settings.synchronous, has_been_ours=has_been_ours)
        self._lost += lost
        ledger = Ledger(self._connection, settings.max_receipts, settings.keep_receipts)
        load(ledger, owned, time.time())
        ledger.commits = self._commits
        self._ledger = ledger

    def _open_anew(self) -> None:
        """After an error: with what this process has claimed still claimed."""
        self._retry_at = time.monotonic() + LOOK_SECONDS
        try:
            self._open({position: claim for position, (claim, _) in self._ledger.claimed.items()})
        except Exception as error:
            self._close()
            self._errors["open"] += 1
            self._failure = _words(error)
            return
        self._failure = ""
        logger.warning("outbox %s: opened anew, and in use again", self._settings.path)

    def _fail(self, error: Exception, jobs: Sequence[Job]) -> None:
        """Nothing can be relied on now but what was answered before."""
        logger.error(
            "outbox %s: %s; nothing is accepted until it can be opened anew", self._settings.path, error
        )
        self._failure = _words(error)
        self._retry_at = time.monotonic() + LOOK_SECONDS
        self._commits = self._ledger.commits
        self._close()
        for job in jobs:
            if not job.is_done:
                job.refuse(OutboxError(self._failure))

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _end(self) -> None:
        """Close the file, so that it is one file, and let go of it."""
        try:
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as problem:  # what is in the log is durable all the same
            logger.error("outbox %s: %s while it was closed", self._settings.path, problem)
        self._close()
        self.lock.release()
        left = [*self._jobs]
        with suppress(Empty):
            while (job := self.inbox.get_nowait()) is not None:
                left.append(job)
        for job in left:
            job.refuse(OutboxError("it is closed"))
        with suppress(RuntimeError):
            self._publish(left, Published(replace(self._status, failure="it is closed")), None)

    # ----------------------------------------------------------------------------------------- the work

    def _collect(self) -> list[Job]:
        """All that is asked for, up to a transaction's size; nothing, if nothing comes for a while."""
        jobs: list[Job] = []
        messages = size = 0
        with suppress(Empty):
            job = self.inbox.get(timeout=self._pause())
            while job is not None:
                jobs.append(job)
                messages += len(job.records) + len(job.settlements)
                size += job.size
                if messages >= GROUP_MESSAGES_MAX or size >= GROUP_BYTES_MAX:
                    return jobs
                job = self.inbox.get_nowait()
            self._is_closing = True
        return jobs

    def _pause(self) -> float | None:
        """Seconds until something has to be done unasked; `None`: nothing has."""
        if self._failure:
            return max(self._retry_at - time.monotonic(), 0.0)
        if self._chore is not None:
            return IDLE_SECONDS
        due_at = self._ledger.receipts.due_at
        pause = inf if due_at is None else max(due_at - time.time(), IDLE_SECONDS)
        if self._is_short:
            pause = min(pause, LOOK_SECONDS)
        return None if pause == inf else min(pause, threading.TIMEOUT_MAX)

    def _serve(self, jobs: Sequence[Job]) -> None:
        if self._failure:
            for job in jobs:
                job.refuse(OutboxError(self._failure))
        else:
            try:
                self._set_full(
                    not run_group(self._ledger, [job for job in jobs if job.is_wanted], time.time())
                )
            except Exception as error:
                if not isinstance(error, sqlite3.Error):
                    logger.exception("outbox %s: unexpected", self._settings.path)
                self._fail(error, jobs)
            self._chore = self._vacuum
        self._errors.update(job.name for job in jobs if job.error is not None)

    def _set_full(self, is_full: bool) -> None:
        if is_full:
            self._look_at = time.monotonic() + LOOK_SECONDS
            if not self._is_full:
                logger.error("outbox %s: %s", self._settings.path, NO_SPACE)
            self._is_full = True

    # ------------------------------------------------------------------------------------------ idleness

    def _tidy(self) -> None:
        """Nothing came for a while: prune, give space back, and leave a short log behind."""
        chore, self._chore = self._chore, None
        try:
            if self._ledger.receipts.has_excess(time.time()):
                run_group(self._ledger, (), time.time())
            if chore is not None:
                chore()
        except sqlite3.Error as error:
            if code_of(error) != SQLITE_FULL:
                self._errors["tidy"] += 1
                self._fail(error, ())

    def _vacuum(self) -> None:
        assert self._connection is not None
        if self._connection.execute("PRAGMA freelist_count").fetchone()[0] > VACUUM_PAGES:
            # It has a step for each page and no row, and `execute` takes one step where there is no row.
            self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            self._chore = self._vacuum if self.inbox.empty() else None
        else:
            self._chore = self._shorten

    def _shorten(self) -> None:
        assert self._connection is not None
        if _size(log_path(self._settings.path)) > LOG_BYTES_IDLE:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._measure()

    # ------------------------------------------------------------------------------------------- telling

    @property
    def _is_short(self) -> bool:
        return self._is_full or self._free_bytes < self._settings.min_free_bytes

    def _look(self) -> None:
        """At the disk, once a second at most; a full one is tried again."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._measure()
        if self._free_bytes >= self._settings.min_free_bytes:
            self._is_full = False
        if self._connection is None:
            return
        if _size(log_path(self._settings.path)) > LOG_BYTES_MAX:
            self._chore = self._shorten

    def _measure(self) -> None:
        path = self._settings.path
        with suppress(OSError):
            found = os.statvfs(path.parent)
            self._free_bytes = found.f_bavail * found.f_frsize
        self._disk_bytes = _size(path) + _size(log_path(path))

    def _tell(self, jobs: Sequence[Job]) -> None:
        """Answer, and say how things are."""
        ledger = self._ledger
        if not self._failure:
            try:
                self._oldest_at = ledger.oldest_at()
            except sqlite3.Error as error:
                self._fail(error, ())
        status = StoreStatus(
            waiting=ledger.waiting,
            claimed=len(ledger.claimed),
            dead=ledger.dead,
            held_bytes=ledger.held_bytes,
            dead_bytes=ledger.dead_bytes,
            oldest_at=self._oldest_at,
            disk_bytes=self._disk_bytes,
            free_bytes=self._free_bytes,
            failure=self._failure or (NO_SPACE if self._is_short else ""),
            commits=ledger.commits,
            recovered=self._recovered,
            damaged=self._lost + ledger.damaged,
            errors=dict(self._errors),
        )
        due_at = inf if self._failure else ledger.order.due_at
        kept = ledger.held_bytes + ledger.dead_bytes
        self._status = status
        self._publish(jobs, Published(status, due_at, kept, self._is_full, is_open=True), None)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _words(error: Exception) -> str:
    """An error for people: SQLite's words and its name for them."""
    name = getattr(error, "sqlite_errorname", None)
    return f"{error} ({name})" if name else str(error) or type(error).__name__
