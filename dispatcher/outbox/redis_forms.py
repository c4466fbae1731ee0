"""What the values in Redis say: packed entries, held messages, dead letters, receipts, claims.

An entry packs up to `ENTRY_MESSAGES` messages and about `ENTRY_BYTES` bytes: MessagePack, an array of
`[offset, id, data, queue, accepted_at]`; a message's number is that of the entry, plus its offset, less the
first one's. A held message and a dead letter have one form (`Kept`). Pure; every `redis_*` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Struct

from dispatcher.errors import Attempt, OutboxError
from dispatcher.outbox.sqlite_rows import KeptReceipt  # noqa: TC001 - msgspec reads it when it decodes
from dispatcher.outbox.store import Claim, Found, Record, State

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRY_MESSAGES: Final = 100
ENTRY_BYTES: Final = 256 << 10

_encode: Final = msgspec.msgpack.Encoder().encode
Packed = tuple[int, str, bytes, str | None, float]
"""Offset, id, data, queue, acceptance."""
_decode_entry: Final = msgspec.msgpack.Decoder(list[Packed]).decode


class Entry(NamedTuple):
    """One packed entry before it has its number."""

    shard: int
    blob: bytes
    offsets: list[int]


class Kept(Struct, array_like=True, gc=False, frozen=True):
    """A message with its history; fields may be added at the end only."""

    id: str
    data: bytes
    queue: str | None
    accepted_at: float
    attempts: tuple[Attempt, ...] = ()
    returns: int = 0
    due: float = 0.0
    sent_since: float | None = None
    deaths: int = 0
    """How often its owner died while it was out."""
    reason: str = ""
    """Of a dead letter, as is the next."""
    settled_at: float | None = None

    def record(self) -> Record:
        """What was accepted."""
        return Record(self.id, self.data, self.queue, self.accepted_at)

    def claim(self, number: int) -> Claim:
        """As it is given to whoever tries it."""
        return Claim(number, self.record(), self.attempts, self.returns, self.sent_since)

    def found(self, state: State) -> Found:
        """What is known of it."""
        return Found(state, self.record(), self.attempts, self.due, None, self.reason, self.settled_at)


class KeptDelivered(Struct, array_like=True, gc=False, frozen=True):
    """A delivered message; fields may be added at the end only."""

    queue: str | None
    accepted_at: float
    attempts: tuple[Attempt, ...]
    settled_at: float
    receipt: KeptReceipt

    def found(self, message_id: str) -> Found:
        """What is known of it."""
        record = Record(message_id, b"", self.queue, self.accepted_at)
        receipt = self.receipt.receipt()
        return Found("delivered", record, self.attempts, receipt=receipt, settled_at=self.settled_at)


_decode_kept: Final = msgspec.msgpack.Decoder(Kept).decode
_decode_delivered: Final = msgspec.msgpack.Decoder(KeptDelivered).decode


def shard_of(queue: str, shards: int) -> int:
    """Where a queue's messages stand: it has one shard, so that one member at a time sends it."""
    return crc32(queue.encode("utf-8", "surrogatepass")) % shards


def packed(records: Sequence[Record], shards: int, turn: int) -> tuple[list[Entry], int]:
    """Entries of these messages, of each shard in their order and one after the other; and the next turn.

    Messages of a queue go to its shard, the others to one shard after the other, an entry's worth each.
    """
    done: list[Entry] = []
    filling: dict[int, tuple[list[Packed], int]] = {}
    loose = loose_bytes = 0
    for offset, one in enumerate(records):
        if one.queue is not None:
            shard = shard_of(one.queue, shards)
        else:
            if loose >= ENTRY_MESSAGES or loose_bytes >= ENTRY_BYTES:
                turn, loose, loose_bytes = turn + 1, 0, 0
            shard, loose, loose_bytes = turn % shards, loose + 1, loose_bytes + len(one.data)
        items, size = filling.get(shard) or ([], 0)
        if items and (len(items) >= ENTRY_MESSAGES or size + len(one.data) > ENTRY_BYTES):
            done.append(_entry(shard, items))
            items, size = [], 0
        items.append((offset, one.id, one.data, one.queue, one.accepted_at))
        filling[shard] = (items, size + len(one.data))
    done += [_entry(shard, items) for shard, (items, _) in filling.items()]
    return done, turn + (loose > 0)


def _entry(shard: int, items: list[Packed]) -> Entry:
    return Entry(shard, _encode(items), [item[0] for item in items])


def unpacked(number: int, blob: bytes) -> list[tuple[int, Record]]:
    """The messages of an entry with their numbers. Raises `OutboxError`."""
    try:
        items = _decode_entry(blob)
    except msgspec.DecodeError as error:
        raise OutboxError(f"the entry {number} cannot be read: {error}") from None
    base = number - items[0][0] if items else 0
    return [
        (base + offset, Record(id_, data, queue, accepted_at))
        for offset, id_, data, queue, accepted_at in items
    ]


def keep(kept: Kept | KeptDelivered) -> bytes:
    """As it stands in Redis."""
    return _encode(kept)


def kept(blob: bytes) -> Kept:
    """A held message or a dead letter. Raises `OutboxError`."""
    try:
        return _decode_kept(blob)
    except msgspec.DecodeError as error:
        raise OutboxError(f"what is held of a message cannot be read: {error}") from None


def delivered(blob: bytes) -> KeptDelivered:
    """A receipt. Raises `OutboxError`."""
    try:
        return _decode_delivered(blob)
    except msgspec.DecodeError as error:
        raise OutboxError(f"what is kept of a delivered message cannot be read: {error}") from None


class OldClaim(NamedTuple):
    """One field of `:c:S`."""

    no: int
    member: str
    at: float
    numbers: list[int]


def old_claim(no: bytes, said: bytes) -> OldClaim:
    """The same, read. Raises `OutboxError`."""
    try:
        member, at, *numbers = said.decode().split()
        return OldClaim(int(no), member, float(at), [int(number) for number in numbers])
    except ValueError:
        raise OutboxError(f"the claim {no!r} cannot be read") from None
