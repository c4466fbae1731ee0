"""A damaged file: every row that can be read goes into a new one, and it is kept aside, never deleted.

The file is not touched. A copy takes the log's good frames; if its first page is unreadable it gets that of
a new file, which is the same but for counts. The rows are read around what fails, then leaf by leaf where
the tree failed. The new file takes the old one's place in steps that can be taken up again (`finish`). For
`sqlite_recovery`.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from dispatcher.outbox import sqlite_statements as write
from dispatcher.outbox.sqlite_log import frames
from dispatcher.outbox.sqlite_pages import rows_in
from dispatcher.outbox.sqlite_rows import (
    DELIVERED,
    FRESH,
    SELECT,
    WAITING,
    History,
    Row,
    encode,
    span_checksum,
)
from dispatcher.outbox.sqlite_schema import PAGE_BYTES, create, log_path, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

BATCH_ROWS: Final = 500
POSITION_MAX: Final = 1 << 62

logger: Final = logging.getLogger("dispatcher")

Span = tuple[int, int, float, int]


def rescue(path: Path, problem: str) -> int:
    """Put a new file with all that can be read in the place of this one; how many rows could not be.

    Raises:
        OSError, sqlite3.Error: It could not be done; the damaged file is as it was.
    """
    logger.error("outbox %s: %s; what can be read is rescued into a new file", path, problem)
    image, new = _beside(path, "image"), _beside(path, "rescuing")
    _remove(image, new)
    try:
        _copy(path, image, new)
        rescued, lost = _fill(image, new)
        _sync(new)
        new.rename(_beside(path, "rescued"))
    finally:
        _remove(image, new)
    finish(path)
    logger.error("outbox %s: %d messages were rescued, %d could not be read", path, rescued, lost)
    return lost


def finish(path: Path) -> None:
    """Put a rescued file into its place, if there is one: the damaged one, and its log, get another name."""
    rescued = _beside(path, "rescued")
    if not rescued.exists():
        return
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = _beside(path, f"damaged-{at}")
    for one, other in ((path, aside), (log_path(path), log_path(aside))):
        if one.exists():
            _link(one, other)
    sync_directory(path.parent)
    _remove(log_path(path))  # a new file must not meet an old log
    rescued.replace(path)
    sync_directory(path.parent)
    logger.error("outbox %s: the damaged file is kept as %s", path, aside.name)


# ------------------------------------------------------------------------------------------- the copy


def _copy(path: Path, image: Path, template: Path) -> None:
    """The file with its log's good frames, and a first page that SQLite understands."""
    create(template, "off").close()
    first_page = template.read_bytes()[:PAGE_BYTES]
    _remove(template)
    shutil.copyfile(path, image)
    image.chmod(0o600)
    with image.open("r+b") as file:
        for number, data in _last_pages(path):
            file.seek((number - 1) * PAGE_BYTES)
            file.write(data)
        pages = -(-file.seek(0, os.SEEK_END) // PAGE_BYTES)
        file.truncate(max(pages, 1) * PAGE_BYTES)
    for page in (None, first_page):
        _patch_first_page(image, page, max(pages, 1))
        if _is_understood(image):
            return


def _last_pages(path: Path) -> Iterator[tuple[int, bytes]]:
    """Of the log's good frames those up to the last commit; a transaction with a wrong frame counts, too."""
    pending = []
    for frame in frames(log_path(path)):
        if frame.is_good and len(frame.data) == PAGE_BYTES and frame.page:
            pending.append((frame.page, frame.data))
        if frame.pages_after and frame.is_good:
            yield from pending
            pending.clear()


def _patch_first_page(image: Path, page: bytes | None, pages: int) -> None:
    """No log, no free pages, and the size that it has."""
    with image.open("r+b") as file:
        head = bytearray(file.read(PAGE_BYTES) if page is None else page)
        head[18:20] = b"\1\1"
        head[28:32] = pages.to_bytes(4, "big")
        head[32:40] = bytes(8)
        head[92:96] = head[24:28]
        file.seek(0)
        file.write(head)


def _is_understood(image: Path) -> bool:
    try:
        with closing(_reader(image)) as connection:
            connection.execute("SELECT first, last, at, crc FROM claims LIMIT 0").fetchall()
            connection.execute(SELECT + "LIMIT 0").fetchall()
    except sqlite3.Error:
        return False
    return True


def _reader(image: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(image, isolation_level=None)
    connection.execute("PRAGMA cell_size_check = ON").fetchall()
    return connection


# ------------------------------------------------------------------------------------------- the rows


def _fill(image: Path, new: Path) -> tuple[int, int]:
    """Rows rescued, rows lost: at least one for each gap where nobody knows better."""
    rescued = 0
    with closing(create(new, "off")) as target:
        target.execute("BEGIN")
        with closing(_reader(image)) as source:
            reading = _Reading(source)
            _copy_marks(source, target)
            spans = _spans(source)
            target.executemany("INSERT INTO claims (first, last, at, crc) VALUES (?, ?, ?, ?)", spans or ())
            insert = _inserter(target, spans)
            rescued += insert(reading.rows())
            if reading.gaps:
                rescued += insert(_latest(row for row in rows_in(image) if reading.is_missing(row.position)))
            expected = _expected(source)
        target.execute("COMMIT")
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return rescued, len(reading.gaps) if expected is None else max(expected - rescued, 0)


class _Reading:
    """Rows in the order of positions, around what fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.gaps: list[tuple[int, int]] = []
        """Positions, exclusive, between which something could not be read."""

    def rows(self) -> Iterator[Row]:
        """Every row that is whole."""
        position = 0
        while position < POSITION_MAX:
            rows = self._from(position, BATCH_ROWS)
            if rows is None:
                rows = self._from(position, 1)
            if rows is None:
                position = self._skip(position)
                continue
            if not rows:
                return
            for row in rows:
                if row.is_whole:
                    yield row
                else:
                    self.gaps.append((row.position - 1, row.position + 1))
            position = rows[-1].position + 1

    def is_missing(self, position: int) -> bool:
        """Whether it lies in a gap."""
        return any(first < position < last for first, last in self.gaps)

    def _from(self, position: int, limit: int) -> list[Row] | None:
        try:
            found = self.connection.execute(
                SELECT + "WHERE position >= ? ORDER BY position LIMIT ?", (position, limit)
            )
            return [Row._make(values) for values in found]
        except (sqlite3.Error, UnicodeError):
            return None

    def _skip(self, position: int) -> int:
        """The first position from which reading goes on: farther and farther, then back by halves."""
        step = 1
        while position + step < POSITION_MAX and self._from(position + step, 1) is None:
            step *= 2
        low, high = position + step // 2, min(position + step, POSITION_MAX)
        while high - low > 1:
            middle = (low + high) // 2
            if self._from(middle, 1) is None:
                low = middle
            else:
                high = middle
        self.gaps.append((position - 1, high))
        return high


def _latest(rows: Iterable[Row]) -> Iterable[Row]:
    """Of several that a position had, on pages that are no longer in use, the one that is most settled."""
    found: dict[int, Row] = {}
    for row in rows:
        known = found.get(row.position)
        if known is None or (row.state == DELIVERED, row.state) > (known.state == DELIVERED, known.state):
            found[row.position] = row
    return found.values()


def _inserter(target: sqlite3.Connection, spans: list[Span] | None) -> Callable[[Iterable[Row]], int]:
    """Puts rows into the new file; how many were not there before."""

    def insert(rows: Iterable[Row]) -> int:
        before = target.total_changes
        several = iter(rows)
        while batch := list(islice(several, BATCH_ROWS)):
            write.restore(target, [_as_kept(row, is_sure=spans is not None) for row in batch])
        return target.total_changes - before

    return insert


def _as_kept(row: Row, *, is_sure: bool) -> Row:
    """A fresh row of a file whose claims are lost may have been sent."""
    if row.state != FRESH or is_sure:
        return row
    history = encode(row.position, WAITING, History(sent_since=row.accepted_at))
    return row._replace(state=WAITING, history=history)


def _spans(source: sqlite3.Connection) -> list[Span] | None:
    """What the file says of claims; `None` if it cannot be relied on."""
    try:
        spans = source.execute("SELECT first, last, at, crc FROM claims").fetchall()
        is_right = all(crc == span_checksum(first, last, at) for first, last, at, crc in spans)
    except Exception:  # whatever a damaged value makes of it
        return None
    return spans if is_right else None


def _copy_marks(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """How far sources were read; whose mark is lost reads from the beginning, and is told why."""
    try:
        target.executemany("INSERT INTO marks VALUES (?, ?)", source.execute("SELECT name, value FROM marks"))
    except sqlite3.Error as error:
        logger.error("outbox: how far its sources were read cannot be read: %s", error)


def _expected(source: sqlite3.Connection) -> int | None:
    """How many rows there should be, by the index of ids; `None` if that is damaged as well."""
    with suppress(sqlite3.Error):
        sql = "SELECT count(*) FROM messages INDEXED BY sqlite_autoindex_messages_1"
        return int(source.execute(sql).fetchone()[0])
    return None


# ------------------------------------------------------------------------------------------- the files


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def _remove(*paths: Path) -> None:
    for path in paths:
        for one in (path, log_path(path), path.with_name(f"{path.name}-journal")):
            one.unlink(missing_ok=True)


def _link(path: Path, other: Path) -> None:
    try:
        other.hardlink_to(path)
    except OSError:  # a file system without
        shutil.copyfile(path, other)
        _sync(other)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
