"""Opening a file that may be new, whole or damaged: what comes out is a connection that can be relied on.

The log's checksums are followed before SQLite sees it, as SQLite takes the first wrong one for the log's
end. Then SQLite's own check, and each row's checksum (both for files up to `CHECKED_BYTES_MAX`; of larger
ones rows are checked when they are claimed, and a broken page is found when it is met). What fails is
rescued into a new file, and the old one kept aside. Runs in the store's thread, under the lock, with no
connection open.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from dispatcher.outbox import sqlite_rescue
from dispatcher.outbox.sqlite_log import is_torn_inside
from dispatcher.outbox.sqlite_rows import SELECT, Row, span_checksum
from dispatcher.outbox.sqlite_schema import connect, create, log_path, prepare, recognize

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.outbox.sqlite_schema import Synchronous

CHECKED_BYTES_MAX: Final = 128 << 20
"""About two seconds' worth."""
CODES_OF_DAMAGE: Final = frozenset({11, 26})
"""SQLITE_CORRUPT, SQLITE_NOTADB."""

logger: Final = logging.getLogger("dispatcher")


def open_file(path: Path, synchronous: Synchronous, *, has_been_ours: bool) -> tuple[sqlite3.Connection, int]:
    """The one connection, the log written and synced into the file; and how many rows were lost.

    Args:
        has_been_ours: A store has been kept at this path before.

    Raises:
        OutboxError: It is another program's file, or a later version's.
        OSError, sqlite3.Error: It cannot be read or written.
    """
    sqlite_rescue.finish(path)
    kind = recognize(path, has_been_ours=has_been_ours)
    if kind == "new":
        return create(path, synchronous), 0
    lost = 0
    problem = "its header is damaged" if kind == "damaged" else _problem_of(path, synchronous)
    if problem:
        lost = sqlite_rescue.rescue(path, problem)
    return _connect(path, synchronous), lost


def _connect(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    connection = connect(path)
    try:
        prepare(connection, synchronous)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _problem_of(path: Path, synchronous: Synchronous) -> str:
    """What is wrong with a file; empty if nothing is known to be."""
    if is_torn_inside(log_path(path)):
        return "its log is damaged"
    try:
        with closing(connect(path)) as connection:
            prepare(connection, synchronous)
            return _problem_in(connection, path)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in CODES_OF_DAMAGE:
            raise
        return str(error)


def _problem_in(connection: sqlite3.Connection, path: Path) -> str:
    for first, last, at, crc in connection.execute("SELECT first, last, at, crc FROM claims"):
        if not isinstance(at, float) or crc != span_checksum(first, last, at):
            return "what it says of claims is damaged"
    if path.stat().st_size > CHECKED_BYTES_MAX:
        return ""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        return f"a page is damaged ({found})".replace("\n", " ")
    for values in connection.execute(SELECT):
        if not Row._make(values).is_whole:
            return f"the row at position {values[0]} is damaged"
    return ""
