"""The file itself: how it is made, recognized, opened and put right; what SQLite is told to do with it.

A file is made in one transaction with the old journal, so that its header says from the first moment what
it is, and only then begins its write-ahead log. What is another program's, or of a later version, is
refused before a byte of it changes. Exactly one connection is ever open to a live file (SQLite up to 3.51.2
can corrupt a log that has more); `locking_mode=EXCLUSIVE` holds to that, and needs no shared memory. Used
by the store's thread.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Final, Literal

from dispatcher.errors import OutboxError

if TYPE_CHECKING:
    from pathlib import Path

Synchronous = Literal["full", "normal", "off"]
SYNCHRONOUS: Final[tuple[Synchronous, ...]] = ("full", "normal", "off")

APPLICATION_ID: Final = 0x71536F62
SCHEMA_VERSION: Final = 1
SQLITE_MINIMUM: Final = (3, 33, 0)
"""The first with `UPDATE … FROM`."""
PAGE_BYTES: Final = 8192
HEADER_BYTES: Final = 100
MAGIC: Final = b"SQLite format 3\0"
FLIPS_MAX: Final = 16
"""Bits in which a damaged header may differ from ours and is still taken for it."""

CHECKPOINT_PAGES: Final = 2048
"""The log is written into the file when it has about so many pages: 16 MiB."""
LOG_BYTES_KEPT: Final = 32 << 20
"""What is kept of the log's space once it is empty."""
CACHE_KIB: Final = 16 << 10

TABLES: Final = (
    """CREATE TABLE messages (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, queue TEXT,
    accepted_at REAL NOT NULL, state INTEGER NOT NULL, data BLOB NOT NULL, history BLOB,
    crc INTEGER NOT NULL)""",
    """CREATE TABLE claims (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, at REAL NOT NULL,
    crc INTEGER NOT NULL)""",
    "CREATE TABLE marks (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE damaged (position INTEGER, id, queue, accepted_at, state, data, history, crc)",
    "CREATE INDEX in_queues ON messages (queue, position) WHERE state = 0 AND queue IS NOT NULL",
    "CREATE INDEX looked_at ON messages (state, position) WHERE state > 1",
)
"""`claims` has a row for each run of fresh rows claimed together; `damaged` what failed its checksum; `marks`
how far the sources of messages have been read."""


def connect(path: Path) -> sqlite3.Connection:
    """The one connection; raises `sqlite3.Error`."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.0, cached_statements=256)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    return connection


def prepare(connection: sqlite3.Connection, synchronous: Synchronous) -> None:
    """Set what a connection does not remember."""
    for pragma in (
        "journal_mode = WAL",
        f"synchronous = {synchronous}",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        f"journal_size_limit = {LOG_BYTES_KEPT}",
        f"cache_size = -{CACHE_KIB}",
        "temp_store = MEMORY",
        "cell_size_check = ON",
        "secure_delete = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def create(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    """A new file, and the connection to it.

    Raises:
        OSError, sqlite3.Error: It cannot be made.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = connect(path)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}").fetchall()
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL").fetchall()
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}").fetchall()
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}").fetchall()
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")
        prepare(connection, synchronous)
        sync_directory(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection


def sync_directory(path: Path) -> None:
    """Make names in it durable; raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def log_path(path: Path) -> Path:
    """The write-ahead log's file."""
    return path.with_name(f"{path.name}-wal")


def recognize(path: Path, *, has_been_ours: bool) -> Literal["new", "ours", "damaged"]:
    """What is at this path, from the header alone.

    Args:
        has_been_ours: A store has been kept here before: what cannot be recognized is one that was damaged.

    Raises:
        OutboxError: It is another program's file, or of a later version, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return "new"
    except OSError as error:
        raise OutboxError(f"{path}: cannot be read: {error.strerror}") from None
    if not header:
        return "damaged" if has_been_ours and _has_bytes(log_path(path)) else "new"
    application_id = int.from_bytes(header[68:72], "big")
    version = int.from_bytes(header[60:64], "big")
    if header[:16] == MAGIC and application_id == APPLICATION_ID:
        if SCHEMA_VERSION < version < 1 << 16:
            raise OutboxError(
                f"{path}: is an outbox of version {version}, and this program knows those up to "
                f"{SCHEMA_VERSION}; use the newer program"
            )
        return "ours" if version == SCHEMA_VERSION and len(header) == HEADER_BYTES else "damaged"
    flips = (application_id ^ APPLICATION_ID).bit_count()
    is_close = application_id == APPLICATION_ID or (header[:16] == MAGIC and flips <= FLIPS_MAX // 4)
    if is_close or (has_been_ours and header[:16] != MAGIC):
        return "damaged"
    raise OutboxError(f"{path}: is no outbox but another program's file; name another, it is left as it is")


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
