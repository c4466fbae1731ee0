"""What is asked about single messages and dead letters, and what is decided about them.

Each runs within a transaction of the ledger's; what it changes in memory waits for the commit. Used by
`SQLiteStore`, whose calls carry them into the thread.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from dispatcher.outbox import sqlite_statements as write
from dispatcher.outbox.sqlite_rows import (
    DEAD,
    FRESH,
    SELECT,
    WAITING,
    History,
    Row,
    RowDamagedError,
    decode,
    encode,
)
from dispatcher.outbox.store import Found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.outbox.sqlite_ledger import Ledger

_DEAD_ROWS: Final = SELECT + "WHERE state > 1 AND state = 4"


def find(ledger: Ledger, message_id: str) -> Found | None:
    """What is known of a message; raises `RowDamagedError`."""
    row = _row(ledger, message_id)
    return None if row is None else row.found(is_claimed=row.position in ledger.claimed)


def cancel(ledger: Ledger, message_id: str) -> bool:
    """Delete one that waits."""
    row = _row(ledger, message_id)
    if row is None or row.state not in (FRESH, WAITING) or row.position in ledger.claimed:
        return False
    write.delete(ledger.connection, (row.position,))
    ledger.then(partial(_cancelled, ledger, row))
    return True


def _cancelled(ledger: Ledger, row: Row) -> None:
    ledger.count(-1, -len(row.data))
    ledger.forget_recent()
    if row.state == WAITING:
        ledger.order.drop(row.position, row.queue)


def mark(ledger: Ledger, name: str) -> bytes | None:
    """The value of a mark."""
    found = ledger.connection.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    return None if found is None else bytes(found[0])


def dead_letters(ledger: Ledger, after: str | None, limit: int) -> list[Found]:
    """In the order of positions."""
    behind = None if after is None else _row(ledger, after)
    position = 0 if behind is None else behind.position
    found = ledger.connection.execute(
        f"{_DEAD_ROWS} AND position > ? ORDER BY position LIMIT ?", (position, limit)
    )
    return [_letter(row) for row in map(Row._make, found.fetchall())]


def _letter(row: Row) -> Found:
    """A dead letter; of a damaged one, what there is, so that it hides no other."""
    try:
        return row.found(is_claimed=False)
    except RowDamagedError:
        return Found("dead", row.record(), reason="what is kept of its history fails its checksum")


def retry(ledger: Ledger, message_ids: Sequence[str] | None) -> int:
    """Dead ones wait again."""
    rows = _dead(ledger, message_ids)
    changed, held = [], []
    for position, queue, size, blob in rows:
        past = _past(position, blob)
        new = History(past.attempts, past.returns)
        changed.append((position, WAITING, encode(position, WAITING, new)))
        held.append((position, queue, size))
    write.change(ledger.connection, changed)
    ledger.then(partial(_undead, ledger, held, is_waiting=True))
    return len(rows)


def delete(ledger: Ledger, message_ids: Sequence[str] | None) -> int:
    """Dead ones go."""
    rows = _dead(ledger, message_ids)
    write.delete(ledger.connection, [row[0] for row in rows])
    ledger.then(partial(_undead, ledger, [row[:3] for row in rows], is_waiting=False))
    return len(rows)


def _undead(ledger: Ledger, rows: list[tuple[int, str | None, int]], *, is_waiting: bool) -> None:
    for position, queue, size in rows:
        ledger.dead -= 1
        ledger.dead_bytes -= size
        if is_waiting:
            ledger.oldest = min(ledger.oldest, position)
            ledger.count(1, size)
            ledger.order.hold(position, queue, 0.0)


def _row(ledger: Ledger, message_id: str) -> Row | None:
    if not _can_be(message_id):
        return None
    sql = SELECT + "WHERE id = ?"
    found = ledger.connection.execute(sql, (message_id,)).fetchone()
    return None if found is None else Row._make(found)


def _dead(ledger: Ledger, message_ids: Sequence[str] | None) -> list[tuple[int, str | None, int, bytes]]:
    sql = "SELECT position, queue, length(data), history FROM messages WHERE state > 1 AND state = 4"
    if message_ids is None:
        return ledger.connection.execute(sql).fetchall()
    unique = dict.fromkeys(filter(_can_be, message_ids))
    return [
        row for one in unique for row in ledger.connection.execute(f"{sql} AND id = ?", (one,)).fetchall()
    ]


def _can_be(message_id: str) -> bool:
    """Whether it can be an id at all: in one from outside there may be bytes that are no text."""
    try:
        message_id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _past(position: int, blob: bytes) -> History:
    try:
        return decode(position, DEAD, blob)
    except RowDamagedError:
        return History()
