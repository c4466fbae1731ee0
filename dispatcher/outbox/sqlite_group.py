"""What is asked of the thread together, done together: one transaction for a group of calls.

Settlements, appends, commands, then claims. Where something of the group could change what may be claimed
first, the claims have a transaction of their own. An append that is at fault (an id that is there already)
is refused alone. A full disk refuses the appends, and the rest is tried without them. Every other error is
the whole group's: it is raised, and the thread knows what to do. Used by `sqlite_thread` only.
"""

from __future__ import annotations

import sqlite3
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import OutboxError, StoreFull
from dispatcher.outbox.sqlite_claims import Claiming
from dispatcher.outbox.sqlite_rows import RowDamagedError
from dispatcher.outbox.store import Delivered

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from dispatcher.outbox.sqlite_ledger import Ledger
    from dispatcher.outbox.store import Mark, Record, Settlement

SQLITE_FULL: Final = 13
NOBODYS_FAULT: Final = frozenset({SQLITE_FULL, 5, 6, 7, 8, 10, 11, 14, 23, 26})
"""Primary codes that are not about the values given: full, busy, locked, memory, read-only, input or output,
corrupt, cannot open, not authorized, no database."""


class Kind(Enum):
    """What a job wants; in the order in which a group does them."""

    SETTLE = 0
    APPEND = 1
    COMMAND = 2
    """Something that may change what is claimed next."""
    LOOK = 3
    CLAIM = 4


class Job:
    """One call of the store, and where its answer goes."""

    __slots__ = (
        "claim",
        "command",
        "error",
        "future",
        "is_done",
        "kind",
        "mark",
        "name",
        "records",
        "result",
        "settlements",
        "size",
    )

    def __init__(self, name: str, kind: Kind, future: asyncio.Future[Any] | None) -> None:
        self.name = name
        self.kind = kind
        self.future = future
        self.records: Sequence[Record] = ()
        self.mark: Mark | None = None
        """Kept with the records."""
        self.settlements: Sequence[Settlement] = ()
        self.claim: tuple[int, int, float] = (0, 0, 0.0)
        self.command: Callable[[Ledger], Any] | None = None
        self.size = 0
        """Bytes of the records."""
        self.result: Any = None
        self.error: OutboxError | None = None
        self.is_done = False
        """Whether it has its result, durable, or its error."""

    @property
    def is_wanted(self) -> bool:
        """Whether it still has to be done: what was settled has, even if nobody waits to hear of it."""
        return self.kind in (Kind.SETTLE, Kind.COMMAND) or self.future is None or not self.future.cancelled()

    def refuse(self, error: OutboxError) -> None:
        """It was not done."""
        self.result, self.error, self.is_done = None, error, True


def run_group(ledger: Ledger, jobs: Sequence[Job], now: float) -> bool:
    """Do all of it; every job has its result or its error then. Whether the disk had room for the appends.

    Raises:
        sqlite3.Error: Nothing of what has no result was done.
    """
    claims = [job for job in jobs if job.kind is Kind.CLAIM]
    others = [job for job in jobs if job.kind is not Kind.CLAIM]
    if claims and any(_moves(job) for job in others):
        fits = _run_or_shrink(ledger, others, now)
        return _run_or_shrink(ledger, claims, now) and fits
    return _run_or_shrink(ledger, others + claims, now)


def _moves(job: Job) -> bool:
    """Whether it may change which message is the first of its queue."""
    return job.kind is Kind.COMMAND or (
        job.kind is Kind.SETTLE and not set(map(type, job.settlements)) <= {Delivered}
    )


def _run_or_shrink(ledger: Ledger, jobs: Sequence[Job], now: float) -> bool:
    if _fits(ledger, jobs, now):
        return True
    rest = []
    for job in jobs:
        if job.kind is Kind.APPEND:
            job.refuse(StoreFull(NO_SPACE))
        else:
            rest.append(job)
    if rest and not _fits(ledger, rest, now):
        for job in rest:
            job.refuse(OutboxError(NO_SPACE))
    return False


NO_SPACE: Final = "the disk is full; it goes on by itself when there is space"


def _fits(ledger: Ledger, jobs: Sequence[Job], now: float) -> bool:
    try:
        _run(ledger, jobs, now)
    except sqlite3.Error as error:
        if code_of(error) != SQLITE_FULL:
            raise
        return False
    return True


def code_of(error: BaseException) -> int:
    """SQLite's primary code; 0 if the error is not SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _run(ledger: Ledger, jobs: Sequence[Job], now: float) -> None:
    """One transaction."""
    try:
        ledger.begin(now)
        ledger.settle(chain.from_iterable([job.settlements for job in jobs if job.kind is Kind.SETTLE]))
        _append(ledger, [job for job in jobs if job.kind is Kind.APPEND])
        for job in jobs:
            if job.command is not None:
                _command(ledger, job, job.command)
            elif job.kind is Kind.CLAIM:
                job.result = Claiming(ledger, *job.claim).run()
        ledger.prune()
        ledger.commit()
    except BaseException:
        ledger.rollback()
        raise
    for job in jobs:
        job.is_done = True


def _command(ledger: Ledger, job: Job, command: Callable[[Ledger], Any]) -> None:
    try:
        job.result = command(ledger)
    except RowDamagedError:
        job.error = OutboxError("what is kept of this message fails its checksum")
    except (OverflowError, UnicodeError, TypeError) as error:  # what was asked for, not what is kept
        problem = type(error).__name__
        job.error = OutboxError(f"this cannot be asked ({problem}): ids are text, a limit is below 2 ** 63")


def _append(ledger: Ledger, jobs: Sequence[Job]) -> None:
    """All in one go; if something about one of them is wrong, one by one."""
    if not jobs:
        return
    records = jobs[0].records if len(jobs) == 1 else [one for job in jobs for one in job.records]
    if _tried(ledger, records, [job.mark for job in jobs]) is None:
        return
    for job in jobs:
        job.error = _tried(ledger, job.records, [job.mark])


def _tried(ledger: Ledger, records: Sequence[Record], marks: Sequence[Mark | None]) -> OutboxError | None:
    """What is wrong with these records; they are not appended then, and not marked."""
    connection = ledger.connection
    connection.execute("SAVEPOINT appending")
    try:
        ledger.append(records)
        ledger.mark(one for one in marks if one is not None)
    except (sqlite3.Error, UnicodeError, OverflowError, TypeError) as error:
        if code_of(error) in NOBODYS_FAULT:
            raise
        connection.execute("ROLLBACK TO appending")
        connection.execute("RELEASE appending")
        return OutboxError(_wrong(error))
    connection.execute("RELEASE appending")
    return None


def _wrong(error: Exception) -> str:
    if isinstance(error, sqlite3.IntegrityError):
        return "an id is there already; every message needs its own"
    return f"a record cannot be kept: {type(error).__name__}; ids and queues are text, data is bytes"
