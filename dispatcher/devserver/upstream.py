"""The service's model: what it accepts, refuses, deduplicates and answers. No I/O, no clock.

It never delivers anything. `now` is in seconds (unix time where replies are dated; any origin in virtual
time) and must not run backwards. Called by `responder` (behind a fault plan), `routes` (management) and
the simulation. A change is recorded in `changes` if `record_changes` is set, for `journal` to write before
the reply goes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.devserver.changes import (
    Accepted,
    Cancelled,
    Change,
    GroupChanged,
    LetterChanged,
    QueueChanged,
    ScheduleChanged,
)
from dispatcher.devserver.intake import Entry, Group, Item, Prepared, Validator
from dispatcher.devserver.ledger import Audit, DeduplicationWindow, Delivery, Ledger, combine
from dispatcher.devserver.options import Options, Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MIB: Final = 1024 * 1024
BATCH_BYTES: Final = 100_000_000


class Queue(Struct, gc=False):
    """A FIFO queue. `lag` counts its messages (this server never delivers them)."""

    name: str
    created_at: float
    updated_at: float
    parallelism: int = 1
    paused: bool = False
    lag: int = 0
    accepted: int = 0


class Upstream:
    """The state of one account: messages, URL groups, queues, deduplication window."""

    def __init__(
        self,
        *,
        deduplication_window: float = 600.0,
        max_items: int | None = None,
        max_message_bytes: int = MIB,
        max_batch_bytes: int = BATCH_BYTES,
        keep_bodies: bool = False,
        instance: str = "local0",
        record_changes: bool = False,
    ) -> None:
        self.max_items = max_items
        self.max_message_bytes = max_message_bytes
        self.max_batch_bytes = max_batch_bytes
        self.keep_bodies = keep_bodies
        self.deduplication_window = deduplication_window
        self.instance = instance
        self.changes: list[Change] | None = [] if record_changes else None
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.ledger = Ledger(instance=self.instance, keep_bodies=self.keep_bodies)
        self.window = DeduplicationWindow(self.ledger, self.deduplication_window)
        self.audit = Audit(self.ledger)
        self.queues: dict[str, Queue] = {}
        self.groups: dict[str, Group] = {}
        self.schedules: dict[str, ScheduleChanged] = {}
        self.letters: dict[str, LetterChanged] = {}
        """The DLQ, by its ids."""
        self.deduplicated = 0
        self.cancelled: set[tuple[int, int]] = set()
        self.cancelled_before = 0
        self.validator = Validator(self.groups, self.queues, self.max_message_bytes)

    # -- intake ---------------------------------------------------------------------------------

    def accept_batch(
        self,
        items: Sequence[Item],
        now: float,
        *,
        failing: Collection[int] = (),
        failing_endpoints: Collection[int] = (),
    ) -> list[Entry | list[Entry]]:
        """Accept the items of one batch; one entry each, in order.

        Raises `Refused` for the whole batch if one is invalid; nothing is accepted then. Items at the
        positions `failing` are valid but cannot be sent: they get an error entry, the others are accepted.
        """
        if self.max_items is not None and len(items) > self.max_items:
            raise Refused(412, f"too many messages in a batch: {len(items)}, the limit is {self.max_items}")
        prepared = []
        for position, item in enumerate(items):
            try:
                prepared.append(self.validator.prepare(item))
            except Refused as refused:
                raise Refused(refused.status, f"message {position}: {refused.text}") from None
        return self._accept(prepared, now, failing, failing_endpoints)

    def accept_one(self, item: Item, now: float) -> Entry | list[Entry]:
        """Accept one published or enqueued message; raises `Refused`."""
        return self._accept([self.validator.prepare(item)], now, (), ())[0]

    def _accept(
        self, prepared: list[Prepared], now: float, failing: Collection[int], partly: Collection[int]
    ) -> list[Entry | list[Entry]]:
        first = len(self.ledger)
        entries: list[Entry | list[Entry]] = []
        window = self.window
        window.expire(now)
        for position, message in enumerate(prepared):
            seq = None if message.key is None else window.find(message.key, now)
            if seq is not None:
                entries.append(self._repeat(seq, message))
            elif position in failing:
                entries.append(Entry(error="could not be sent, try again later"))
            else:
                entries.append(self._enqueue(message, now, position in partly))
        if self.changes is not None and len(self.ledger) > first:
            self.changes.append(Accepted.of(self.ledger, first, now))
        return entries

    def _enqueue(self, message: Prepared, now: float, partly: bool) -> Entry | list[Entry]:
        group = None
        if message.group is not None:
            last = len(message.group) - 1
            group = tuple(
                Delivery(url, name, partly and n == last)
                for n, (url, name) in enumerate(message.group.items())
            )
        digests = combine(message.destination, message.queue, message.body_digest) + message.body_digest
        seq = self.add(
            message.destination,
            message.queue,
            message.key,
            message.options,
            group,
            digests,
            message.body if self.keep_bodies else None,
            now,
        )
        if group is None:
            return Entry(self.ledger.message_id(seq))
        return self._endpoints(seq, group, deduplicated=False)

    def add(
        self,
        destination: str,
        queue: str | None,
        key: str | None,
        options: Options,
        group: tuple[Delivery, ...] | None,
        digests: bytes,
        body: bytes | None,
        now: float,
    ) -> int:
        """Add an accepted message, found valid before; returns its row."""
        name = None if queue is None else self._queue(queue, now, 1 if group is None else len(group))
        seq = self.ledger.append(destination, name, key, options, group, digests, body, now)
        if key is not None:
            self.window.add(key, seq)
        return seq

    def _queue(self, name: str, now: float, deliveries: int) -> str:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(name, now, now)
        queue.accepted += 1
        queue.lag += deliveries
        return queue.name

    def _repeat(self, seq: int, message: Prepared) -> Entry | list[Entry]:
        self.ledger.repeats[seq] += 1
        self.deduplicated += 1
        group = self.ledger.groups[seq]
        if group is None:
            entry = Entry(self.ledger.message_id(seq), deduplicated=True)
            if message.group is None:
                return entry
            entry.url = self.ledger.destinations[seq]
            return [entry]
        entries = self._endpoints(seq, group, deduplicated=True)
        # One id for a group and then for a URL: the service has one answer for a URL.
        return (
            entries
            if message.group is not None or not entries
            else Entry(entries[0].message_id, deduplicated=True)
        )

    def _endpoints(self, seq: int, group: tuple[Delivery, ...], *, deduplicated: bool) -> list[Entry]:
        return [
            Entry(url=delivery.url, error="endpoint could not be served")
            if delivery.failed
            else Entry(self.ledger.message_id(seq, n), delivery.url, deduplicated)
            for n, delivery in enumerate(group)
        ]

    # -- messages -------------------------------------------------------------------------------

    def find(self, message_id: str) -> tuple[int, int] | None:
        """Row and ordinal of a message that was not cancelled."""
        place = self.ledger.find(message_id)
        if place is None or place[0] < self.cancelled_before or place in self.cancelled:
            return None
        return place

    def cancel(self, message_ids: Sequence[str]) -> int:
        """Cancel messages by id; returns how many were there."""
        places = [place for place in dict.fromkeys(map(self.find, message_ids)) if place is not None]
        self.drop(places)
        return len(places)

    def cancel_all(self) -> int:
        """Cancel every message; returns how many there were."""
        ledger, first = self.ledger, self.cancelled_before
        count = sum(len(ledger.message_ids(seq)) for seq in range(first, len(ledger))) - len(self.cancelled)
        self.drop_before(len(ledger))
        return count

    def drop(self, places: Sequence[tuple[int, int]]) -> None:
        """Cancel messages by row and ordinal."""
        for seq, ordinal in places:
            self.cancelled.add((seq, ordinal))
            name = self.ledger.queues[seq]
            if name is not None and name in self.queues:
                self.queues[name].lag -= 1
        if places:
            self._changed(Cancelled(places=list(places)))

    def drop_before(self, seq: int) -> None:
        """Cancel every message in the rows before `seq`, which is the ledger's end."""
        self.cancelled_before = seq
        self.cancelled.clear()
        for queue in self.queues.values():
            queue.lag = 0
        self._changed(Cancelled(before=seq))

    # -- URL groups and queues --------------------------------------------------------------------

    def put_group(
        self, name: str, endpoints: dict[str, str | None] | None, created_at: float, now: float
    ) -> None:
        """Set a URL group's endpoints; `None` removes the group."""
        if endpoints is None:
            self.groups.pop(name, None)
        else:
            self.groups[name] = Group(name, created_at, now, endpoints)
        self._changed(GroupChanged(name, created_at, now, endpoints))

    def delete_queue(self, name: str, now: float) -> None:
        """Remove a queue and the messages in it."""
        ledger = self.ledger
        rows = [seq for seq in range(self.cancelled_before, len(ledger)) if ledger.queues[seq] == name]
        self.drop([place for seq in rows for place in map(self.find, ledger.message_ids(seq)) if place])
        self.put_queue(name, None, self.queues[name].created_at, now)

    def put_queue(
        self, name: str, parallelism: int | None, created_at: float, now: float, *, paused: bool = False
    ) -> None:
        """Set a queue up; parallelism `None` removes it."""
        if parallelism is None:
            self.queues.pop(name, None)
        elif name in self.queues:
            queue = self.queues[name]
            queue.parallelism, queue.paused, queue.updated_at = parallelism, paused, now
        else:
            self.queues[name] = Queue(name, created_at, now, parallelism, paused)
        self._changed(QueueChanged(name, created_at, now, parallelism, paused))

    # -- schedules and the DLQ --------------------------------------------------------------------

    def put_schedule(self, schedule: ScheduleChanged) -> None:
        """Set a schedule up; one without a destination goes."""
        if schedule.destination is None:
            self.schedules.pop(schedule.schedule_id, None)
        else:
            self.schedules[schedule.schedule_id] = schedule
        self._changed(schedule)

    def put_letter(self, letter: LetterChanged) -> None:
        """Put a message into the DLQ, or take it out."""
        if letter.seq < 0:
            self.letters.pop(letter.dlq_id, None)
        else:
            self.letters[letter.dlq_id] = letter
        self._changed(letter)

    # -- the journal ------------------------------------------------------------------------------

    def take_changes(self) -> list[Change]:
        """What changed since the last call; empty unless changes are recorded."""
        taken = self.changes or []
        if taken:
            self.changes = []
        return taken

    def _changed(self, change: Change) -> None:
        if self.changes is not None:
            self.changes.append(change)
