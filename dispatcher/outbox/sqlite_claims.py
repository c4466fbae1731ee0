"""Claiming: which rows are given next, and the little that has to be written for it.

First what was given back and is due again, then queues whose turn has come, then fresh rows in the order of
positions. What a transaction takes from the order in memory is put back should it fail. A row that fails its
checksum goes to the table `damaged`, and is never given. Runs in the store's thread, for `sqlite_group` only.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from dispatcher.outbox import sqlite_statements as write
from dispatcher.outbox.sqlite_rows import (
    CLAIMED,
    NEW,
    SELECT,
    WAITING,
    History,
    Row,
    encode,
    span_checksum,
)
from dispatcher.outbox.store import Claim

if TYPE_CHECKING:
    from collections.abc import Generator

    from dispatcher.outbox.order import Queue
    from dispatcher.outbox.sqlite_ledger import Ledger

PASSED_MAX: Final = 20_000
"""Fresh rows of held queues that one claim may pass over: others wait for the thread meanwhile."""

_ONE: Final = SELECT + "WHERE position = ?"
_FRESH: Final = SELECT + "WHERE position >= ? AND state = 0 ORDER BY position"
_QUEUED: Final = (
    SELECT + "WHERE state = 0 AND queue IS NOT NULL AND queue = ? AND position >= ? "
    "AND position < ? ORDER BY position"
)


class Claiming:
    """One call of `claim`, within a transaction."""

    def __init__(self, ledger: Ledger, messages: int, size_bytes: int, now: float) -> None:
        self._ledger = ledger
        self._order = ledger.order
        self._claims: list[Claim] = []
        self._messages = messages
        self._bytes = size_bytes
        self._now = now
        self._is_full = messages <= 0
        self._changed: list[tuple[int, int, bytes]] = []
        self._runs: list[list[Claim]] = []
        """Fresh rows claimed together: no other fresh row stands between the first and the last of a run."""
        self._is_running = False
        self._damaged: list[Row] = []

    def run(self) -> list[Claim]:
        """What is given, in the order of positions; durable only with the transaction."""
        self._ledger.undo(partial(self._undo, self._order.cursor))
        self._take_loose()
        if not self._is_full:
            self._take_queues()
        self._take_fresh()
        self._write()
        self._claims.sort(key=_position)
        self._ledger.then(partial(self._ledger.count, -len(self._claims), 0))
        return self._claims

    # -------------------------------------------------------------------------------------- what to give

    def _fits(self, size: int) -> bool:
        """Whether there is room for it; takes the room."""
        if self._claims and size > self._bytes:
            self._is_full = True
            return False
        self._bytes -= size
        self._is_full = len(self._claims) + 1 >= self._messages
        return True

    def _take_loose(self) -> None:
        order = self._order
        while not self._is_full and order.loose and order.loose[0][0] <= self._now:
            due, position = order.loose[0]
            if not self._give_held(position):
                return
            order.pop_loose()
            self._ledger.undo(partial(order.hold, position, None, due))

    def _take_queues(self) -> None:
        for name in self._order.due_queues(self._now):
            self._take_queue(name, self._order.queues[name])
            self._order.set_timer(name)
            if self._is_full:
                return

    def _take_queue(self, name: str, queue: Queue) -> None:
        while not self._is_full and queue.due <= self._now:
            if not queue.held:
                self._take_passed(name, queue)
            elif self._give_held(queue.held[0][0]):
                position, due = queue.pop()
                self._ledger.undo(partial(self._order.hold, position, name, due))

    def _take_passed(self, name: str, queue: Queue) -> None:
        """Fresh rows of a queue that the cursor has passed over."""
        assert queue.resume is not None
        self._ledger.undo(partial(self._order.resume_from, name, queue.resume))
        with closing(self._rows(_QUEUED, (name, queue.resume, self._order.cursor))) as rows:
            for row in rows:
                if not self._fits(len(row.data)):
                    return
                self._give(row, NEW)
                queue.resume = row.position + 1
                if self._is_full:
                    return
        queue.resume = None

    def _take_fresh(self) -> None:
        order, passed = self._order, 0
        while order.cursor < order.end and not self._is_full and passed < PASSED_MAX:
            if not self._take_recent():
                passed += self._read_fresh()

    def _take_recent(self) -> bool:
        """Fresh rows that were just appended, without reading them; false if the next one must be read."""
        order = self._order
        recent = self._ledger.recent_from(order.cursor)
        for position, record in recent:
            if order.queues and order.pass_over(position, record.queue):
                self._is_running = False
            elif self._fits(len(record.data)):
                self._give_fresh(Claim(position, record))
            else:
                break
            order.cursor = position + 1
            if self._is_full:
                break
        return bool(recent)

    def _read_fresh(self) -> int:
        """Fresh rows from the file, until there is no room or no row; how many were passed over."""
        order, passed = self._order, 0
        with closing(self._rows(_FRESH, (order.cursor,))) as rows:
            for row in rows:
                if order.pass_over(row.position, row.queue):
                    passed += 1
                    self._is_running = False
                elif not self._fits(len(row.data)):
                    return passed
                else:
                    self._give_fresh(Claim(row.position, row.record()))
                order.cursor = row.position + 1
                if self._is_full or passed >= PASSED_MAX:
                    return passed
        order.cursor = order.end
        return passed

    def _rows(self, sql: str, values: tuple[str | int, ...]) -> Generator[Row, None, None]:
        """Rows that are whole; the others are put aside later."""
        with closing(self._ledger.connection.execute(sql, values)) as cursor:
            for values in cursor:
                row = Row._make(values)
                if row.is_whole:
                    yield row
                else:
                    self._damaged.append(row)
                    self._is_running = False

    # ------------------------------------------------------------------------------------------- giving

    def _give_held(self, position: int) -> bool:
        """Give a row that was given back; false if there is no room. One that is not there is done with."""
        with closing(self._rows(_ONE, (position,))) as rows:
            row = next(rows, None)
        if row is None or row.state != WAITING:
            return True
        if not self._fits(len(row.data)):
            return False
        self._give(row, row.past())
        return True

    def _give(self, row: Row, past: History) -> None:
        """Give a row whose state says so from now on."""
        claim = row.claim(past)
        since = self._now if past.sent_since is None else past.sent_since
        history = History(past.attempts, past.returns, sent_since=since)
        self._changed.append((row.position, CLAIMED, encode(row.position, CLAIMED, history)))
        self._claims.append(claim)
        self._ledger.claimed[row.position] = (claim, 0)

    def _give_fresh(self, claim: Claim) -> None:
        """Give a fresh row, which is left as it is: its run is written."""
        self._claims.append(claim)
        if not self._is_running:
            self._runs.append([])
            self._is_running = True
        run = self._runs[-1]
        run.append(claim)
        self._ledger.claimed[claim.position] = (claim, run[0].position)

    def _write(self) -> None:
        ledger = self._ledger
        write.change(ledger.connection, self._changed)
        spans = []
        for run in self._runs:
            first, last = run[0].position, run[-1].position
            ledger.spans[first] = len(run)
            spans.append((first, last, self._now, span_checksum(first, last, self._now)))
        ledger.connection.executemany("INSERT INTO claims (first, last, at, crc) VALUES (?, ?, ?, ?)", spans)
        if self._damaged:
            ledger.put_aside(self._damaged)

    def _undo(self, cursor: int) -> None:
        self._order.cursor = min(self._order.cursor, cursor)
        self._ledger.forget_recent()
        for claim in self._claims:
            self._ledger.claimed.pop(claim.position, None)
        for run in self._runs:
            self._ledger.spans.pop(run[0].position, None)


_position: Final = attrgetter("position")
