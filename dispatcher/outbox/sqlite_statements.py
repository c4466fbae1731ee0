"""The statements that touch many rows: one execution for up to 256 of them.

Every step of a statement gives Python's lock away and has to get it back, which beside a busy loop takes up
to five milliseconds. So rows go in and change by the hundred a step, never one by one. Used by
`sqlite_ledger`.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

ROWS_MAX: Final = 256
"""A power of two: any number of rows is a few executions of a few statements, each compiled once."""


def _by_size(before: str, row: str, after: str = "") -> dict[int, str]:
    sizes = [1 << power for power in range(ROWS_MAX.bit_length())]
    return {size: f"{before}{','.join([row] * size)}{after}" for size in sizes}


_APPEND: Final = _by_size(
    "INSERT INTO messages (position, id, queue, accepted_at, state, data, crc) VALUES ", "(?,?,?,?,0,?,?)"
)
_RESTORE: Final = _by_size("INSERT OR IGNORE INTO messages VALUES ", "(?,?,?,?,?,?,?,?)")
_DELIVERED: Final = _by_size(
    "UPDATE messages SET state = 1, data = x'', history = new.column2 FROM (VALUES ",
    "(?,?)",
    ") AS new WHERE position = new.column1",
)
_CHANGED: Final = _by_size(
    "UPDATE messages SET state = new.column2, history = new.column3 FROM (VALUES ",
    "(?,?,?)",
    ") AS new WHERE position = new.column1",
)
_DELETE: Final = _by_size("DELETE FROM messages WHERE position IN (", "?", ")")


def append(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Fresh rows: position, id, queue, accepted_at, data, crc."""
    _execute(connection, _APPEND, rows)


def restore(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Whole rows as they were; one whose position or id is there already is left out."""
    _execute(connection, _RESTORE, rows)


def deliver(connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes]]) -> None:
    """Rows that were delivered, with their histories: their data goes."""
    _execute(connection, _DELIVERED, rows)


def change(connection: sqlite3.Connection, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Rows in a new state, with their histories."""
    _execute(connection, _CHANGED, rows)


def delete(connection: sqlite3.Connection, positions: Sequence[int]) -> None:
    """Rows that go."""
    _execute(connection, _DELETE, [(position,) for position in positions])


def prune(connection: sqlite3.Connection, positions: Iterable[int]) -> None:
    """Delivered rows that go, run by run."""
    for first, last in _runs(sorted(positions)):
        connection.execute("DELETE FROM messages WHERE position BETWEEN ? AND ? AND state = 1", (first, last))


def _execute(
    connection: sqlite3.Connection, statements: dict[int, str], rows: Sequence[tuple[Any, ...]]
) -> None:
    done, count = 0, len(rows)
    while done < count:
        size = min(ROWS_MAX, 1 << (count - done).bit_length() - 1)
        some = rows[done : done + size]
        connection.execute(statements[size], tuple(chain.from_iterable(some)))
        done += size


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = positions[0] if positions else 0
    for position in positions[1:]:
        if position != last + 1:
            yield first, last
            first = position
        last = position
    if positions:
        yield first, last
