"""What a file says when it is opened: everything the ledger keeps in memory, read from it.

What a process that died had claimed waits again, with the instant of that claim. When the same process opens
its file anew, after an error, what it has claimed stays claimed. Two passes over the rows, and no row of what
waits is remembered. Runs once in each opening, in the store's thread.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from dispatcher.outbox import sqlite_statements as write
from dispatcher.outbox.sqlite_rows import (
    CLAIMED,
    WAITING,
    History,
    RowDamagedError,
    decode,
    encode,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from dispatcher.outbox.sqlite_ledger import Ledger
    from dispatcher.outbox.store import Claim

_FRESH: Final = "SELECT position FROM messages WHERE state = 0 AND position = ?"
_COVERED: Final = "SELECT position FROM messages WHERE state = 0 AND position BETWEEN ? AND ?"
_LOOKED_AT: Final = "SELECT position, queue, accepted_at, history FROM messages WHERE state > 1 AND state = ?"
_COUNTS: Final = """SELECT ifnull(max(position), 0),
    count(*) FILTER (WHERE state = 4), ifnull(sum(length(data)) FILTER (WHERE state = 4), 0),
    count(*) FILTER (WHERE state NOT IN (1, 4)),
    ifnull(sum(length(data)) FILTER (WHERE state NOT IN (1, 4)), 0)
    FROM messages"""
"""Without GROUP BY: that would sort the rows, with their data, in memory."""


def load(ledger: Ledger, owned: Mapping[int, Claim], now: float) -> int:
    """Read the file into a new ledger; returns how many messages are not settled.

    Args:
        owned: What this process has claimed, by position.
        now: Unix seconds.

    Raises:
        sqlite3.Error: It cannot be read, or written.
    """
    connection = ledger.connection
    ledger.begin(now)
    try:
        _end_runs(connection, owned, now)
        _end_claims(connection, owned)
        ledger.commit()
    except BaseException:
        ledger.rollback()
        raise
    _count(ledger)
    for position, queue, _, blob in connection.execute(_LOOKED_AT, (WAITING,)):
        ledger.order.hold(position, queue, _past(position, WAITING, blob, inf).due)
    for position in connection.execute("SELECT position FROM messages WHERE state = 1"):
        ledger.receipts.extend(position, now)
    for position, *_ in connection.execute(_LOOKED_AT, (CLAIMED,)):
        ledger.claimed[position] = (owned[position], 0)
    ledger.waiting -= len(ledger.claimed)
    return ledger.waiting + len(ledger.claimed)


def _end_runs(connection: sqlite3.Connection, owned: Mapping[int, Claim], now: float) -> None:
    """Fresh rows that were claimed in runs get a state of their own."""
    changed = []
    for position, claim in owned.items():
        if connection.execute(_FRESH, (position,)).fetchone() is not None:
            since = now if claim.sent_since is None else claim.sent_since
            changed.append((position, CLAIMED, encode(position, CLAIMED, History(sent_since=since))))
    write.change(connection, changed)
    for first, last, at in connection.execute("SELECT first, last, at FROM claims").fetchall():
        history = History(sent_since=at)
        covered = connection.execute(_COVERED, (first, last)).fetchall()
        write.change(connection, [(one, WAITING, encode(one, WAITING, history)) for (one,) in covered])
    connection.execute("DELETE FROM claims")


def _end_claims(connection: sqlite3.Connection, owned: Mapping[int, Claim]) -> None:
    """Claimed rows that nobody has claimed any more wait."""
    changed = []
    for position, _, accepted_at, blob in connection.execute(_LOOKED_AT, (CLAIMED,)).fetchall():
        if position not in owned:
            past = _past(position, CLAIMED, blob, accepted_at)
            changed.append((position, WAITING, encode(position, WAITING, past)))
    write.change(connection, changed)


def _count(ledger: Ledger) -> None:
    last, ledger.dead, ledger.dead_bytes, count, size = ledger.connection.execute(_COUNTS).fetchone()
    ledger.order.end = max(ledger.order.end, last + 1)
    ledger.count(count, size)
    ledger.damaged = ledger.connection.execute("SELECT count(*) FROM damaged").fetchone()[0]


def _past(position: int, state: int, blob: bytes, sent_since: float) -> History:
    """A history; of one that is damaged, that it may have been sent since (its claim will find it out)."""
    try:
        return decode(position, state, blob)
    except RowDamagedError:
        return History(sent_since=sent_since)
