"""`MemoryStore`: the protocol of `store` in plain dictionaries, for tests and as a measure for other stores.

Nothing of it outlives the process, and nothing of it is clever: a claim walks everything that waits. It must
never be stricter or more lenient than the protocol; the conformance suite runs against it first. Made by
whoever tests something that stands on an outbox.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, assert_never

from msgspec import Struct

from dispatcher.errors import OutboxError, StoreFull
from dispatcher.outbox.store import (
    Cancelled,
    Claim,
    Dead,
    Delivered,
    Found,
    Mark,
    Record,
    Returned,
    State,
    StoreStatus,
)
from dispatcher.outbox.waiting import Bell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatcher.errors import Attempt
    from dispatcher.message import Receipt
    from dispatcher.outbox.store import Settlement


class _Kept(Struct):
    """One message and what became of it so far."""

    position: int
    record: Record
    state: State = "waiting"
    attempts: tuple[Attempt, ...] = ()
    returns: int = 0
    due: float = 0.0
    sent_since: float | None = None
    claimed_at: float = 0.0
    receipt: Receipt | None = None
    reason: str = ""
    settled_at: float | None = None


class MemoryStore:
    """A store that forgets everything with its process.

    Args:
        max_messages: Most messages that it keeps, receipts apart.
        max_bytes: Most bytes of their data.
        max_receipts: Delivered ones that it remembers.
    """

    def __init__(
        self, max_messages: int = 1_000_000, max_bytes: int = 1 << 31, max_receipts: int = 100_000
    ) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.max_receipts = max_receipts
        self._kept: dict[int, _Kept] = {}
        """What is not delivered, in the order of positions."""
        self._positions: dict[str, int] = {}
        self._delivered: dict[str, _Kept] = {}
        self._marks: dict[str, bytes] = {}
        self._next = 1
        self._bytes = 0
        self._commits = 0
        self._is_open = False
        self._bell = Bell()

    async def open(self) -> StoreStatus:
        """Make it ready; what somebody claimed who never closed it waits again."""
        for kept in self._kept.values():
            if kept.state == "claimed":
                kept.state, kept.due = "waiting", 0.0
                kept.sent_since = kept.claimed_at if kept.sent_since is None else kept.sent_since
        self._is_open = True
        return self.status()

    async def aclose(self) -> None:
        """Nothing is accepted from now on."""
        self._is_open = False
        self._bell.set(0.0)

    async def append(self, records: Sequence[Record], mark: Mark | None = None) -> None:
        """Keep all of them or none; see `Store.append`."""
        self._check_open()
        size = sum(len(record.data) for record in records)
        if len(self._kept) + len(records) > self.max_messages or self._bytes + size > self.max_bytes:
            raise StoreFull(
                f"{len(self._kept)} of {self.max_messages} messages and {self._bytes} of {self.max_bytes} "
                "bytes are kept in memory; there is room again when some are settled"
            )
        ids = {record.id for record in records}
        if len(ids) < len(records) or not ids.isdisjoint(self._positions) or self._delivered.keys() & ids:
            raise OutboxError("an id is there already; every message needs its own")
        for record in records:
            self._kept[self._next] = _Kept(self._next, record)
            self._positions[record.id] = self._next
            self._next += 1
        self._bytes += size
        if mark is not None:
            self._marks[mark.name] = mark.value
        self._commit()

    async def claim(self, messages: int, size_bytes: int, now: float) -> list[Claim]:
        """See `Store.claim`."""
        self._check_open()
        claims: list[Claim] = []
        blocked: set[str | None] = set()
        for kept in self._waiting():
            queue = kept.record.queue
            if queue in blocked:
                continue
            if kept.due > now:
                blocked |= {queue} - {None}
                continue
            if len(claims) >= messages or (claims and size_bytes < len(kept.record.data)):
                break
            size_bytes -= len(kept.record.data)
            kept.state, kept.claimed_at = "claimed", now
            claims.append(Claim(kept.position, kept.record, kept.attempts, kept.returns, kept.sent_since))
        if claims:
            self._commit()
        else:
            self._ring()
        return claims

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Store.settle`."""
        self._check_open()
        for settlement in settlements:
            kept = self._kept.get(settlement.position)
            if kept is not None and kept.state == "claimed":
                self._settle(kept, settlement)
        self._commit()

    def _settle(self, kept: _Kept, settlement: Settlement) -> None:
        match settlement:
            case Delivered(receipt=receipt, at=at):
                self._forget(kept)
                kept.record = Record(kept.record.id, b"", kept.record.queue, kept.record.accepted_at)
                kept.state, kept.receipt, kept.settled_at = "delivered", receipt, at
                self._delivered[kept.record.id] = kept
                if len(self._delivered) > self.max_receipts:
                    del self._delivered[next(iter(self._delivered))]
            case Returned(due=due, attempts=attempts, sent_since=sent_since):
                kept.state, kept.due, kept.attempts, kept.sent_since = "waiting", due, attempts, sent_since
                kept.returns += 1
            case Dead(reason=reason, attempts=attempts, at=at):
                kept.state, kept.reason, kept.attempts, kept.settled_at = "dead", reason, attempts, at
            case Cancelled():
                self._forget(kept)
            case _:
                assert_never(settlement)

    async def wait(self, now: float) -> None:
        """See `Store.wait`."""
        self._check_open()
        await self._bell.wait(now)

    async def find(self, message_id: str) -> Found | None:
        """See `Store.find`."""
        self._check_open()
        kept = self._delivered.get(message_id) or self._kept.get(self._positions.get(message_id, 0))
        return None if kept is None else _found(kept)

    async def cancel(self, message_id: str) -> bool:
        """See `Store.cancel`."""
        self._check_open()
        kept = self._kept.get(self._positions.get(message_id, 0))
        if kept is None or kept.state != "waiting":
            return False
        self._forget(kept)
        self._commit()
        return True

    async def mark(self, name: str) -> bytes | None:
        """See `Store.mark`."""
        self._check_open()
        return self._marks.get(name)

    async def dead_letters(self, after: str | None = None, limit: int = 100) -> list[Found]:
        """See `Store.dead_letters`."""
        self._check_open()
        behind = 0 if after is None else self._positions.get(after, 0)
        return [_found(kept) for kept in self._dead(None) if kept.position > behind][:limit]

    async def retry(self, message_ids: Sequence[str] | None = None) -> int:
        """See `Store.retry`."""
        self._check_open()
        again = self._dead(message_ids)
        for kept in again:
            kept.state, kept.reason, kept.settled_at = "waiting", "", None
            kept.due, kept.sent_since = 0.0, None
        self._commit()
        return len(again)

    async def delete(self, message_ids: Sequence[str] | None = None) -> int:
        """See `Store.delete`."""
        self._check_open()
        gone = self._dead(message_ids)
        for kept in gone:
            self._forget(kept)
        self._commit()
        return len(gone)

    def status(self) -> StoreStatus:
        """See `Store.status`."""
        held = [kept for kept in self._kept.values() if kept.state != "dead"]
        held_bytes = sum(len(kept.record.data) for kept in held)
        return StoreStatus(
            waiting=sum(kept.state == "waiting" for kept in held),
            claimed=sum(kept.state == "claimed" for kept in held),
            dead=len(self._kept) - len(held),
            held_bytes=held_bytes,
            dead_bytes=self._bytes - held_bytes,
            oldest_at=held[0].record.accepted_at if held else None,
            failure="" if self._is_open else "it is not open",
            commits=self._commits,
        )

    def _waiting(self) -> Iterator[_Kept]:
        return (kept for kept in self._kept.values() if kept.state == "waiting")

    def _dead(self, message_ids: Sequence[str] | None) -> list[_Kept]:
        wanted = None if message_ids is None else set(message_ids)
        dead = (kept for kept in self._kept.values() if kept.state == "dead")
        return [kept for kept in dead if wanted is None or kept.record.id in wanted]

    def _forget(self, kept: _Kept) -> None:
        del self._kept[kept.position]
        del self._positions[kept.record.id]
        self._bytes -= len(kept.record.data)

    def _commit(self) -> None:
        self._commits += 1
        self._ring()

    def _ring(self) -> None:
        """What may be claimed next, and when: of each queue its first, and whatever is in none."""
        due_at, queues = inf, set[str]()
        for kept in self._waiting():
            queue = kept.record.queue
            if queue is None or queue not in queues:
                due_at = min(due_at, kept.due)
                if due_at <= 0:
                    break
            if queue is not None:
                queues.add(queue)
        self._bell.set(due_at)

    def _check_open(self) -> None:
        if not self._is_open:
            raise OutboxError("the store is not open; `await store.open()` first")


def _found(kept: _Kept) -> Found:
    return Found(kept.state, kept.record, kept.attempts, kept.due, kept.receipt, kept.reason, kept.settled_at)
