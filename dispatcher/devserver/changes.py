"""What changed in the model: the records `journal` writes before a reply, and how each is made again.

Pure. A record says what *became* so, never what was asked: reading it back needs no validation and gives
the same state under other settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from dispatcher.devserver.ledger import Delivery, Ledger

if TYPE_CHECKING:
    from dispatcher.devserver.upstream import Upstream


class Row(Struct, array_like=True, gc=False):
    """One accepted message. `header_set` is a place in the `header_sets` of its record."""

    destination: str
    queue: str | None
    key: str | None
    digests: bytes
    header_set: int
    group: list[tuple[str, str | None, bool]] | None = None
    body: bytes | None = None


class Accepted(Struct, tag="accepted", tag_field="change"):
    """The messages that one request had accepted, at `at`."""

    at: float
    header_sets: list[list[tuple[str, str]]]
    rows: list[Row]

    @classmethod
    def of(cls, ledger: Ledger, first: int, at: float) -> Accepted:
        """The rows from `first` on."""
        places: dict[int, int] = {}
        header_sets: list[list[tuple[str, str]]] = []
        rows = []
        for seq in range(first, len(ledger)):
            options, group = ledger.options[seq], ledger.groups[seq]
            place = places.setdefault(id(options), len(header_sets))
            if place == len(header_sets):
                header_sets.append(list(options.pairs))
            rows.append(
                Row(
                    ledger.destinations[seq],
                    ledger.queues[seq],
                    ledger.keys[seq],
                    ledger.digests(seq),
                    place,
                    None if group is None else [(d.url, d.name, d.failed) for d in group],
                    None if ledger.bodies is None else ledger.bodies[seq],
                )
            )
        return cls(at, header_sets, rows)


class GroupChanged(Struct, tag="group", tag_field="change"):
    """A URL group as it is now; `endpoints` is `None` when it is gone."""

    name: str
    created_at: float = 0.0
    updated_at: float = 0.0
    endpoints: dict[str, str | None] | None = None


class QueueChanged(Struct, tag="queue", tag_field="change"):
    """A queue as it is now; `parallelism` is `None` when it is gone."""

    name: str
    created_at: float = 0.0
    updated_at: float = 0.0
    parallelism: int | None = None
    paused: bool = False


class Cancelled(Struct, tag="cancelled", tag_field="change"):
    """Messages that were cancelled: by row and ordinal, or every row before `before`."""

    places: list[tuple[int, int]] = []
    before: int = 0


class ScheduleChanged(Struct, tag="schedule", tag_field="change"):
    """A schedule as it is now; `destination` is `None` when it is gone."""

    schedule_id: str
    destination: str | None = None
    created_at: float = 0.0
    cron: str = ""
    queue: str | None = None
    lines: list[tuple[str, str]] = []
    """Its header lines, without what is of the schedule itself."""
    body: bytes = b""
    paused: bool = False


class LetterChanged(Struct, tag="letter", tag_field="change"):
    """A message of the DLQ, by its row and ordinal; `seq` is negative when it is there no more."""

    dlq_id: str
    seq: int = -1
    ordinal: int = 0
    at: float = 0.0
    status: int = 0
    answer: str = ""
    """The body of the destination's last answer."""


Change = Accepted | GroupChanged | QueueChanged | Cancelled | ScheduleChanged | LetterChanged


def restore(upstream: Upstream, change: Change) -> None:
    """Make one recorded change again."""
    if isinstance(change, Accepted):
        _restore_rows(upstream, change)
    elif isinstance(change, GroupChanged):
        upstream.put_group(change.name, change.endpoints, change.created_at, change.updated_at)
    elif isinstance(change, QueueChanged):
        upstream.put_queue(
            change.name, change.parallelism, change.created_at, change.updated_at, paused=change.paused
        )
    elif isinstance(change, ScheduleChanged):
        upstream.put_schedule(change)
    elif isinstance(change, LetterChanged):
        upstream.put_letter(change)
    elif change.before:
        upstream.drop_before(change.before)
    else:
        upstream.drop(change.places)


def _restore_rows(upstream: Upstream, change: Accepted) -> None:
    header_sets = [upstream.validator.compiled(tuple(pairs)) for pairs in change.header_sets]
    for row in change.rows:
        group = None if row.group is None else tuple(Delivery(*delivery) for delivery in row.group)
        destination = upstream.validator.interned(row.destination) if group is None else row.destination
        upstream.add(
            destination,
            row.queue,
            row.key,
            header_sets[row.header_set],
            group,
            row.digests,
            row.body,
            change.at,
        )
