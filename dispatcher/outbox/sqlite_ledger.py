"""What the store does to its rows: operations as statements of one transaction, and what they mean in memory.

Between `begin` and `commit` the operations write; what they change in memory is put off until the commit has
succeeded, or is undone by `rollback`. Claims of fresh rows write no row: a run of positions is one row of
`claims`. Rows that were just appended are claimed without being read again. Lives in the store's thread
(`sqlite_group` drives it), and never opens, closes or syncs anything.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, assert_never

from dispatcher.outbox import sqlite_statements as write
from dispatcher.outbox.sqlite_order import FileOrder
from dispatcher.outbox.sqlite_receipts import Receipts
from dispatcher.outbox.sqlite_rows import (
    DEAD,
    DELIVERED,
    WAITING,
    History,
    KeptReceipt,
    Row,
    checksum,
    encode,
)
from dispatcher.outbox.store import Cancelled, Claim, Dead, Delivered, Record, Returned

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence

    from dispatcher.outbox.store import Mark, Settlement

RECENT_BYTES_MAX: Final = 8 << 20
"""Of what was just appended, kept for whoever claims it next; once he falls behind, nothing is kept."""


class Ledger:
    """The rows of one open file.

    Args:
        connection: The only one; owned by the caller.
        max_receipts: Delivered rows that are kept.
        keep_receipts: Seconds that they are kept.
    """

    def __init__(self, connection: sqlite3.Connection, max_receipts: int, keep_receipts: float) -> None:
        self.connection = connection
        self.order = FileOrder()
        self.receipts = Receipts(max_receipts, keep_receipts)
        self.claimed: dict[int, tuple[Claim, int]] = {}
        """By position: the claim, and the run it was claimed with (0: it has its own row's state)."""
        self.spans: dict[int, int] = {}
        """Of each run of claimed fresh rows, by its first position, how many are not settled."""
        self.recent: deque[tuple[int, Record]] = deque()
        """Every fresh row from the first of these on, while nobody has fallen behind."""
        self.waiting = self.dead = self.held_bytes = self.dead_bytes = 0
        self.commits = self.damaged = 0
        self.oldest = 1
        """Nothing before this position is unsettled."""
        self._now = 0.0
        self._changes = 0
        self._recent_bytes = 0
        self._on_commit: list[Callable[[], None]] = []
        self._on_rollback: list[Callable[[], None]] = []

    # -------------------------------------------------------------------------------------- transactions

    def begin(self, now: float) -> None:
        """All that follows is one transaction, at this instant (Unix seconds)."""
        self._now = now
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Durable, once it returns."""
        self.connection.execute("COMMIT")
        changes = self.connection.total_changes
        self.commits += changes != self._changes
        self._changes = changes
        self._on_rollback.clear()
        for effect in self._on_commit:
            effect()
        self._on_commit.clear()

    def rollback(self) -> None:
        """Nothing has happened; some errors have rolled back already."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        finally:
            self.forget_changes()

    def forget_changes(self) -> None:
        """In memory, nothing has happened since `begin`."""
        self._on_commit.clear()
        for undo in reversed(self._on_rollback):
            undo()
        self._on_rollback.clear()

    def undo(self, function: Callable[[], None]) -> None:
        """Called should this transaction fail."""
        self._on_rollback.append(function)

    def then(self, function: Callable[[], None]) -> None:
        """Called once this transaction is durable."""
        self._on_commit.append(function)

    # ------------------------------------------------------------------------------------------- appends

    def append(self, records: Sequence[Record]) -> None:
        """Fresh rows at the end."""
        order = self.order
        first = order.end
        numbered = enumerate(records, first)
        while some := list(islice(numbered, write.ROWS_MAX)):
            rows = [
                (position, one.id, one.queue, one.accepted_at, one.data, checksum(position, one))
                for position, one in some
            ]
            write.append(self.connection, rows)
        order.end = first + len(records)
        self._on_rollback.append(partial(self._unappend, first))
        size = sum([len(one.data) for one in records])
        self._on_commit.append(partial(self.count, len(records), size))
        if self.recent or order.cursor == first:
            self.recent.extend(enumerate(records, first))
            self._recent_bytes += size
            if self._recent_bytes > RECENT_BYTES_MAX:
                self.forget_recent()

    def mark(self, marks: Iterable[Mark]) -> None:
        """How far something was read; what is said last of a name is what counts."""
        for one in marks:
            self.connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (one.name, one.value))

    def _unappend(self, first: int) -> None:
        self.order.end = first
        self.order.cursor = min(self.order.cursor, first)
        self.forget_recent()

    def count(self, waiting: int, size_bytes: int) -> None:
        """So many more wait."""
        self.waiting += waiting
        self.held_bytes += size_bytes

    def forget_recent(self) -> None:
        """From now on rows are read."""
        self.recent.clear()
        self._recent_bytes = 0

    def recent_from(self, cursor: int) -> deque[tuple[int, Record]]:
        """Every fresh row from the cursor on, with its position; empty if they must be read."""
        recent = self.recent
        while recent and recent[0][0] < cursor:
            self._recent_bytes -= len(recent.popleft()[1].data)
        if recent and recent[0][0] != cursor:
            self.forget_recent()
        return recent

    # --------------------------------------------------------------------------------------- settlements

    def settle(self, settlements: Iterable[Settlement]) -> None:
        """What became of claimed rows; those that are not claimed are left alone: it was said before."""
        said = iter(settlements)
        while some := list(islice(said, write.ROWS_MAX)):  # the loop may go on between them
            self._settle(some)

    def _settle(self, settlements: list[Settlement]) -> None:
        delivered: list[tuple[int, bytes]] = []
        changed: list[tuple[int, int, bytes]] = []
        gone: list[int] = []
        popped: list[tuple[Settlement, tuple[Claim, int]]] = []
        for one in settlements:
            entry = self.claimed.pop(one.position, None)
            if entry is None:
                continue
            popped.append((one, entry))
            if isinstance(one, Delivered):
                delivered.append((one.position, _delivered(one, entry[0])))
            elif isinstance(one, Cancelled):
                gone.append(one.position)
            else:
                changed.append(_changed(one, entry[0]))
        self._on_rollback.append(partial(self._unsettle, popped))
        write.deliver(self.connection, delivered)
        write.change(self.connection, changed)
        write.delete(self.connection, gone)
        self._end_spans(popped)
        self._on_commit.append(partial(self._settled, popped))
        self._on_commit.append(partial(self.receipts.extend, [one for one, _ in delivered], self._now))

    def _unsettle(self, popped: list[tuple[Settlement, tuple[Claim, int]]]) -> None:
        for one, entry in popped:
            self.claimed[one.position] = entry

    def _end_spans(self, popped: list[tuple[Settlement, tuple[Claim, int]]]) -> None:
        fewer = Counter([entry[1] for _, entry in popped])
        del fewer[0]
        for first, count in fewer.items():
            self.spans[first] -= count
            if not self.spans[first]:
                self.connection.execute("DELETE FROM claims WHERE first = ?", (first,))
        self._on_rollback.append(partial(self._restore_spans, fewer))
        self._on_commit.append(partial(self._drop_spans, fewer))

    def _restore_spans(self, fewer: Counter[int]) -> None:
        for first, count in fewer.items():
            self.spans[first] += count

    def _drop_spans(self, fewer: Counter[int]) -> None:
        for first in fewer:
            if not self.spans.get(first, 1):
                del self.spans[first]

    def _settled(self, popped: list[tuple[Settlement, tuple[Claim, int]]]) -> None:
        for one, (claim, _) in popped:
            size = len(claim.record.data)
            match one:
                case Delivered():  # its receipt is counted with the others
                    self.held_bytes -= size
                case Returned():
                    self.order.hold(one.position, claim.record.queue, one.due)
                    self.waiting += 1
                case Dead():
                    self.held_bytes -= size
                    self.dead_bytes += size
                    self.dead += 1
                case Cancelled():
                    self.held_bytes -= size
                case _:
                    assert_never(one)

    def prune(self) -> None:
        """Forget receipts that are too many or too old."""
        positions = self.receipts.take_excess(self._now)
        if positions:
            self._on_rollback.append(partial(self.receipts.put_back, positions, self._now))
            write.prune(self.connection, positions)

    # ------------------------------------------------------------------------------------ what is left

    def put_aside(self, rows: Sequence[Row]) -> None:
        """Rows that fail their checksum: kept, and never given."""
        for row in rows:
            self.connection.execute("INSERT INTO damaged VALUES (?,?,?,?,?,?,?,?)", row)
        write.delete(self.connection, [row.position for row in rows])
        self._on_commit.append(partial(self._aside, rows))

    def _aside(self, rows: Sequence[Row]) -> None:
        logger.error(
            "outbox: %d rows fail their checksum, from position %d on; they are kept in the table `damaged`",
            len(rows),
            rows[0].position,
        )
        self.damaged += len(rows)
        self.count(-len(rows), -sum(len(row.data) for row in rows))

    def oldest_at(self) -> float | None:
        """The oldest acceptance that is not settled."""
        found = self.connection.execute(
            "SELECT position, accepted_at FROM messages WHERE position >= ? AND state IN (0, 2, 3) "
            "ORDER BY position LIMIT 1",
            (self.oldest,),
        ).fetchone()
        self.oldest = self.order.end if found is None else found[0]
        return None if found is None else found[1]


logger: Final = logging.getLogger("dispatcher")


def _delivered(one: Delivered, claim: Claim) -> bytes:
    history = History(claim.attempts, claim.returns, 0.0, None, "", one.at, KeptReceipt.of(one.receipt))
    return encode(one.position, DELIVERED, history)


def _changed(one: Returned | Dead, claim: Claim) -> tuple[int, int, bytes]:
    if isinstance(one, Returned):
        history = History(one.attempts, claim.returns + 1, one.due, one.sent_since)
        return one.position, WAITING, encode(one.position, WAITING, history)
    history = History(one.attempts, claim.returns, reason=one.reason, settled_at=one.at)
    return one.position, DEAD, encode(one.position, DEAD, history)
