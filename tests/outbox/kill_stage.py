"""Where programs with an outbox are killed: an upstream with faults, one file, and what has to hold of both.

The judge believes nobody's own figures: what was acknowledged is what a program had printed before it was
killed, what was delivered stands in the upstream's ledger, and what is stored is read from a copy of the file
by SQLite alone. Used by `kills` and its tests.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from dispatcher.outbox.sqlite_rows import DELIVERED
from tests.outbox.kill_child import POISON

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dispatcher.testing import AcceptedMessage, LocalUpstream

FAULTS = (
    f"latency=4ms error_after=0.04 disconnect_after=0.04 gateway_timeout=0.02 truncate=0.02 "
    f"error_before=0.02 bad_gateway=0.02 poison_400={POISON}"
)
"""Answers that are lost, before and after acceptance, and messages that the service never takes."""


class Stored(NamedTuple):
    """A file's messages, by id."""

    held: set[str]
    """That wait, are under way, or are dead."""
    delivered: set[str]
    """Whose receipt is kept still."""


class Killed(NamedTuple):
    """What a program had said when it was gone."""

    phase: str
    acknowledged: dict[str, str]
    """Bodies by the ids under which they were accepted."""


def look(path: Path) -> Stored:
    """What a file says that nobody has open; neither it nor its log is touched."""
    folder = path.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for one in (path, *(path.with_name(path.name + end) for end in ("-wal", "-journal"))):
        if one.exists():
            shutil.copyfile(one, folder / one.name)
    rows: list[tuple[str, int]] = []
    with closing(sqlite3.connect(folder / path.name)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'messages'").fetchone():
            rows = connection.execute("SELECT id, state FROM messages").fetchall()
    held = {one for one, state in rows if state != DELIVERED}
    return Stored(held, {one for one, state in rows if state == DELIVERED})


class Judge:
    """Follows the ledger and what was acknowledged, from one killing to the next."""

    def __init__(self, upstream: LocalUpstream) -> None:
        self.problems: list[str] = []
        self.acknowledged = 0
        self.delivered: Counter[str] = Counter()
        """How often each body was accepted upstream."""
        self._upstream = upstream
        self._read = -1
        self._open: dict[str, str] = {}
        """Acknowledged, and not delivered so far: bodies by ids."""
        self._ids: set[str] = set()
        """Under which something was delivered."""
        self._last: dict[str, str] = {}
        """The latest body of each queue."""

    @property
    def resent(self) -> int:
        """Messages that came again, and that the service knew."""
        return sum(row.repeats for row in self._upstream.accepted())

    def after_kill(self, killed: Killed, path: Path) -> None:
        """What must hold whenever a program has died."""
        self.acknowledged += len(killed.acknowledged)
        self._open |= killed.acknowledged
        stored = look(path)
        self._follow()
        lost = self._open.keys() - stored.held
        if lost:
            self._blame("acknowledged, and neither delivered nor stored", (self._open[one] for one in lost))
        for one in lost:
            del self._open[one]
        self._blame("settled as delivered, and unknown upstream", stored.delivered - self._ids)

    def at_end(self, dead: set[str]) -> None:
        """What must hold once everything has settled."""
        self._follow()
        poisoned = {one for one, body in self._open.items() if POISON in body}
        self._blame("acknowledged, and never delivered", self._open.keys() - poisoned)
        self._blame("poisoned, and no dead letter", poisoned - dead)
        self._blame("dead, and delivered all the same", dead & self._ids)

    def _follow(self) -> None:
        """Take in what the upstream has accepted since."""
        for row in self._upstream.accepted(self._read):
            self._read = row.seq
            self._take(row)

    def _take(self, row: AcceptedMessage) -> None:
        body = (row.body or b"").decode()
        self.delivered[body] += 1
        if self.delivered[body] > 1:
            self._blame("accepted twice", [body])
        elif row.queue is not None:
            if body <= self._last.get(row.queue, ""):
                self._blame(f"out of order in {row.queue}, behind {self._last[row.queue]!r}", [body])
            self._last[row.queue] = body
        if row.deduplication_id is not None:
            self._ids.add(row.deduplication_id)
            self._open.pop(row.deduplication_id, None)

    def _blame(self, what: str, whom: Iterable[str]) -> None:
        found = sorted(whom)
        if found:
            self.problems.append(f"{len(found)} {what}: {', '.join(found[:3])}")
