"""What one row of the file says, and how it proves it: states, histories, and a checksum for each half.

A row has a half that never changes (id, queue, acceptance, data; the column `crc`) and one that is written
whole whenever its state changes (`history`, which begins with a checksum of its own). So a claim and a
settlement need not read what they do not change. A fresh row has no history. Pure; every `sqlite_*` uses it.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Struct

from dispatcher.errors import Attempt  # noqa: TC001 - msgspec reads it when it decodes
from dispatcher.message import Endpoint, Receipt
from dispatcher.outbox.store import Claim, Found, Record, State

FRESH, DELIVERED, CLAIMED, WAITING, DEAD = range(5)
"""A fresh row waits, or is claimed if a row of `claims` covers it. CLAIMED and WAITING are rows that were
given back before, so that their history says more. A cancelled row is deleted."""
STATES: Final[tuple[State, ...]] = ("waiting", "delivered", "claimed", "waiting", "dead")

SELECT: Final = "SELECT position, id, queue, accepted_at, state, data, history, crc FROM messages "
"""Of a `Row`'s columns; what follows says which rows."""
CRC_BYTES: Final = 4
_HEAD: Final = Layout("<qd")


class RowDamagedError(ValueError):
    """What a row says is not what was written."""


class Row(NamedTuple):
    """A row of `messages`, in the order of its columns."""

    position: int
    id: str
    queue: str | None
    accepted_at: float
    state: int
    data: bytes
    history: bytes | None
    crc: int

    @property
    def is_whole(self) -> bool:
        """Whether both halves are what was written."""
        try:
            self.check()
        except RowDamagedError:
            return False
        return True

    def check(self) -> None:
        """Raises `RowDamagedError` unless both halves are what was written."""
        kinds = (int, str, float, bytes, int)
        if tuple(map(type, (self.position, self.id, self.accepted_at, self.data, self.crc))) != kinds:
            raise RowDamagedError
        if not (self.queue is None or isinstance(self.queue, str)) or self.state not in range(5):
            raise RowDamagedError
        if self.state != DELIVERED and self.crc != checksum(self.position, self.record()):
            raise RowDamagedError
        self.past()

    def record(self) -> Record:
        """What was accepted; without its data once it was delivered."""
        return Record(self.id, self.data, self.queue, self.accepted_at)

    def past(self) -> History:
        """Its history; raises `RowDamagedError`."""
        return NEW if self.state == FRESH else decode(self.position, self.state, self.history)

    def claim(self, past: History) -> Claim:
        """As it is given to whoever tries it."""
        return Claim(self.position, self.record(), past.attempts, past.returns, past.sent_since)

    def found(self, *, is_claimed: bool) -> Found:
        """What is known of it; raises `RowDamagedError`."""
        past = self.past()
        state = "claimed" if is_claimed else STATES[self.state]
        receipt = None if past.receipt is None else past.receipt.receipt()
        return Found(state, self.record(), past.attempts, past.due, receipt, past.reason, past.settled_at)


class KeptReceipt(Struct, array_like=True, gc=False, frozen=True):
    """A receipt without its names: a hundred thousand of them are kept."""

    message_id: str | None
    deduplicated: bool
    deduplication_id: str | None
    attempts: int
    duplicate_possible: bool
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def of(cls, one: Receipt) -> KeptReceipt:
        """A receipt's parts."""
        return cls(
            one.message_id,
            one.deduplicated,
            one.deduplication_id,
            one.attempts,
            one.duplicate_possible,
            one.endpoints,
        )

    def receipt(self) -> Receipt:
        """The receipt again."""
        return Receipt(
            self.message_id,
            self.deduplicated,
            self.deduplication_id,
            self.attempts,
            self.duplicate_possible,
            self.endpoints,
        )


class History(Struct, array_like=True, gc=False, frozen=True):
    """What became of a message so far; instants are Unix seconds."""

    attempts: tuple[Attempt, ...] = ()
    returns: int = 0
    due: float = 0.0
    sent_since: float | None = None
    """Of a claimed one: since when it may have been sent, should this process die."""
    reason: str = ""
    settled_at: float | None = None
    receipt: KeptReceipt | None = None


NEW: Final = History()
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(History).decode


def checksum(position: int, record: Record) -> int:
    """Of a row's unchanging half."""
    head = crc32(_HEAD.pack(position, record.accepted_at))
    if record.queue is not None:
        head = crc32(record.queue.encode("utf-8", "surrogatepass"), head)
    return crc32(record.data, crc32(record.id.encode("utf-8", "surrogatepass"), head))


def encode(position: int, state: int, history: History) -> bytes:
    """The column `history` of a row in this state."""
    payload = _encode(history)
    return crc32(payload, _seed(position, state)).to_bytes(CRC_BYTES, "little") + payload


def decode(position: int, state: int, blob: bytes | None) -> History:
    """A row's history again; raises `RowDamagedError`."""
    if not isinstance(blob, bytes) or len(blob) <= CRC_BYTES:
        raise RowDamagedError
    payload = blob[CRC_BYTES:]
    if crc32(payload, _seed(position, state)) != int.from_bytes(blob[:CRC_BYTES], "little"):
        raise RowDamagedError
    try:
        return _decode(payload)
    except msgspec.DecodeError:  # a later version's, or one chance in four thousand million
        raise RowDamagedError from None


def span_checksum(first: int, last: int, at: float) -> int:
    """Of a row of `claims`."""
    return crc32(_HEAD.pack(last, at), first & 0xFFFFFFFF)


def _seed(position: int, state: int) -> int:
    return (position << 3 | state) & 0xFFFFFFFF
