"""Where programs with an outbox are killed: an upstream with faults, one file, and what has to hold of both.

The judge believes nobody's own figures: what was acknowledged is what a program had said before it was
killed, what was delivered stands in the upstream's ledger, and what is stored is read from a copy of the file
by SQLite alone. Messages are known by their bodies, which are all different; the ids under which they were
acknowledged, stored and delivered have to agree. Used by `kills` and the programs.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import orjson

from dispatcher.outbox.codec import unpack
from dispatcher.outbox.sqlite_rows import DEAD, DELIVERED
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
OURS = "out_"
"""How the ids of an outbox begin; others are the service's."""


class Stored(NamedTuple):
    """What a file holds."""

    held: dict[str, str]
    """Bodies by ids: they wait, are under way, or are dead."""
    dead: set[str]
    """Ids."""
    delivered: set[str]
    """Ids whose receipt is kept still."""
    marks: dict[str, bytes]
    """How far sources were read."""


class Killed(NamedTuple):
    """What is known of a program that is gone."""

    phase: str
    acknowledged: dict[str, str]
    """Ids by bodies; an empty one where it was not told."""
    handed_in: Iterable[str]
    """Bodies of all that it may have accepted."""
    stored: Stored


def look(path: Path) -> Stored:
    """What a file says that nobody has open; neither it nor its log is touched."""
    folder = path.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for one in (path, *(path.with_name(path.name + end) for end in ("-wal", "-journal"))):
        if one.exists():
            shutil.copyfile(one, folder / one.name)
    rows: list[tuple[str, int, bytes]] = []
    marks: dict[str, bytes] = {}
    with closing(sqlite3.connect(folder / path.name)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'messages'").fetchone():
            rows = connection.execute("SELECT id, state, data FROM messages").fetchall()
            marks = dict(connection.execute("SELECT name, value FROM marks"))
    return Stored(
        {one: body_of(data) for one, state, data in rows if state != DELIVERED},
        {one for one, state, _ in rows if state == DEAD},
        {one for one, state, _ in rows if state == DELIVERED},
        marks,
    )


def body_of(data: bytes) -> str:
    """The body of a kept message, as it will travel."""
    encoded = unpack(data).encoded
    return str(orjson.loads(encoded.data)["body"]) if encoded.single is None else encoded.data.decode()


class Judge:
    """Follows the ledger and what was acknowledged, from one killing to the next."""

    def __init__(self, upstream: LocalUpstream) -> None:
        self.problems: list[str] = []
        self.acknowledged: set[str] = set()
        """Bodies."""
        self.delivered: Counter[str] = Counter()
        """How often each body was accepted upstream."""
        self._upstream = upstream
        self._read = -1
        self._open: dict[str, str] = {}
        """Acknowledged, and not delivered so far: ids by bodies."""
        self._ids: set[str] = set()
        """Under which something was delivered."""
        self._last: dict[str, str] = {}
        """The latest body of each queue."""
        self._handed_in: set[str] = set()

    @property
    def resent(self) -> int:
        """Messages that came again, and that the service knew."""
        return sum(row.repeats for row in self._upstream.accepted())

    def after_kill(self, killed: Killed) -> None:
        """What must hold whenever a program has died."""
        self._handed_in.update(killed.handed_in)
        new = killed.acknowledged.keys() - self.acknowledged
        self.acknowledged |= new
        self._open |= {body: killed.acknowledged[body] for body in new}
        self._follow()
        self._look(killed.stored)
        held = set(killed.stored.held.values())
        lost = self._open.keys() - held
        self._blame("acknowledged, and neither delivered nor stored", lost)
        early = {body for body, one in self._open.items() if one and not one.startswith(OURS)}
        self._blame("answered with the service's id, and not delivered", early - lost)
        for one in lost:
            del self._open[one]

    def _look(self, stored: Stored) -> None:
        """What the file says has to agree with what was said, and with the ledger."""
        bodies = Counter(stored.held.values())
        self._blame("stored twice", (body for body, count in bodies.items() if count > 1))
        self._blame("stored, and handed in by nobody", bodies.keys() - self._handed_in)
        said = ((body, one, self._open.get(body, "")) for one, body in stored.held.items())
        other = (body for body, one, told in said if told.startswith(OURS) and told != one)
        self._blame("stored under another id than was acknowledged", other)
        self._blame("settled as delivered, and unknown upstream", stored.delivered - self._ids)

    def at_end(self, stored: Stored) -> None:
        """What must hold once everything has settled."""
        dead = {stored.held[one] for one in stored.dead}
        poisoned = {body for body in self._open if POISON in body}
        self._blame("left unsettled", set(stored.held.values()) - dead)
        self._blame("acknowledged, and never delivered", self._open.keys() - poisoned)
        self._blame("poisoned, and no dead letter", poisoned - dead)
        self._blame("dead, and not poisoned", (body for body in dead if POISON not in body))
        self._blame("dead, and delivered all the same", dead & self.delivered.keys())

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
        if body not in self._handed_in:
            self._blame("delivered, and handed in by nobody", [body])
        if row.deduplication_id is not None:
            self._ids.add(row.deduplication_id)
        told = self._open.pop(body, "")
        if told not in ("", row.deduplication_id, *row.message_ids):
            self._blame(f"delivered under another id than the acknowledged {told}", [body])

    def _blame(self, what: str, whom: Iterable[str]) -> None:
        found = sorted(whom)
        if found:
            self.problems.append(f"{len(found)} {what}: {', '.join(found[:3])}")
