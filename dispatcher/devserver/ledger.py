"""What was accepted, in the order of acceptance: columns, because a load test holds millions of rows.

Pure: no clock, no I/O. One row is one accepted *message* (one item of a batch, one publish), also when a
URL group makes several deliveries of it: the proof that nothing was lost or doubled counts messages. A row
costs about 100 bytes beside its deduplication id (and its body, if bodies are kept). Written by
`upstream` only; read by `routes`, `inspection` and the tests.
"""

from __future__ import annotations

from array import array
from collections import deque
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.devserver.options import Options

DIGEST_BYTES: Final = 16
_PAIR_BYTES: Final = 2 * DIGEST_BYTES
CONTENT_KEY: Final = ":"
"""Opens a content-based deduplication key; a caller's id cannot contain it."""


def body_bytes(body: str | bytes | None) -> bytes:
    """The body as it would be delivered; no body is an empty one."""
    if body is None:
        return b""
    return body.encode() if isinstance(body, str) else body


def body_digest_of(body: str | bytes | None) -> bytes:
    """blake2b-128 of the body's bytes (text as UTF-8, no body as none)."""
    return blake2b(body_bytes(body), digest_size=DIGEST_BYTES).digest()


def digest_of(destination: str, queue: str | None, body: str | bytes | None) -> bytes:
    """What identifies a message in the ledger, 16 bytes.

    blake2b-128 of: the destination as it was sent (a URL group's name, not its endpoints) in UTF-8, NUL,
    the queue's name or nothing, NUL, and `body_digest_of(body)`. Headers take no part, so that a message
    is recognised whatever deduplication id it travelled under.
    """
    return combine(destination, queue, body_digest_of(body))


def combine(destination: str, queue: str | None, body_digest: bytes) -> bytes:
    """`digest_of` for a body whose digest is known."""
    text = f"{destination}\0{queue or ''}\0".encode("utf-8", "surrogateescape")
    return blake2b(text + body_digest, digest_size=DIGEST_BYTES).digest()


def content_key(destination: str, headers: bytes, body_digest: bytes) -> str:
    """The deduplication key of a content-deduplicated message: destination, its headers' part, body."""
    text = destination.encode("utf-8", "surrogateescape") + b"\0" + headers + b"\0" + body_digest
    return CONTENT_KEY + blake2b(text, digest_size=DIGEST_BYTES).hexdigest()


class Delivery(Struct, frozen=True, gc=False):
    """One endpoint of the URL group that an accepted message went to."""

    url: str
    name: str | None = None
    failed: bool = False
    """The endpoint could not be served (fault `error_endpoint`): it has no message id."""


class AcceptedMessage(Struct, frozen=True):
    """One row of the ledger."""

    seq: int
    """Place in the order of acceptance, from 0."""
    message_ids: tuple[str, ...]
    """One; for a URL group one for each endpoint that was served."""
    destination: str
    queue: str | None
    deduplication_id: str | None
    """The id the message carried; `None` without one (or with content-based deduplication)."""
    digest: bytes
    body_digest: bytes
    at: float
    repeats: int
    """How many times it was sent again inside the window, and not enqueued."""
    headers: tuple[tuple[str, str], ...]
    """Its header lines, without the deduplication id."""
    body: bytes | None
    """`None` unless bodies are kept."""


class Ledger:
    """Every accepted message, by its place in the order of acceptance."""

    def __init__(self, *, instance: str, keep_bodies: bool) -> None:
        self.instance = instance
        self.destinations: list[str] = []
        self.queues: list[str | None] = []
        self.keys: list[str | None] = []
        self.options: list[Options] = []
        self.groups: list[tuple[Delivery, ...] | None] = []
        self.at = array("d")
        self.repeats = array("I")
        self.bodies: list[bytes] | None = [] if keep_bodies else None
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self.destinations)

    def append(
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
        """Add one row; returns its place. `digests` is the message's digest and its body's, joined."""
        seq = len(self.destinations)
        self.destinations.append(destination)
        self.queues.append(queue)
        self.keys.append(key)
        self.options.append(options)
        self.groups.append(group)
        self._digests += digests
        self.at.append(now)
        self.repeats.append(0)
        if self.bodies is not None:
            self.bodies.append(body or b"")
        return seq

    def digests(self, seq: int) -> bytes:
        """The digest of the message and that of its body, joined."""
        return bytes(self._digests[seq * _PAIR_BYTES : (seq + 1) * _PAIR_BYTES])

    def digest(self, seq: int) -> bytes:
        """What identifies the message: `digest_of(destination, queue, body)`."""
        return bytes(self._digests[seq * _PAIR_BYTES : seq * _PAIR_BYTES + DIGEST_BYTES])

    def message_id(self, seq: int, ordinal: int = 0) -> str:
        """The service's id of a row (of its endpoint `ordinal`, for a URL group)."""
        return f"msg_{self.instance}{seq:012x}{ordinal:04x}"

    def find(self, message_id: str) -> tuple[int, int] | None:
        """The row and ordinal of an id this ledger gave out."""
        prefix = f"msg_{self.instance}"
        digits = message_id[len(prefix) :]
        if not message_id.startswith(prefix) or len(digits) != 16:
            return None
        try:
            seq, ordinal = int(digits[:12], 16), int(digits[12:], 16)
        except ValueError:
            return None
        known = (
            seq < len(self) and self.message_id(seq, ordinal) == message_id and self._is_served(seq, ordinal)
        )
        return (seq, ordinal) if known else None

    def _is_served(self, seq: int, ordinal: int) -> bool:
        group = self.groups[seq]
        if group is None:
            return ordinal == 0
        return ordinal < len(group) and not group[ordinal].failed

    def message_ids(self, seq: int) -> tuple[str, ...]:
        """Every id of a row."""
        group = self.groups[seq]
        if group is None:
            return (self.message_id(seq),)
        return tuple(self.message_id(seq, n) for n, delivery in enumerate(group) if not delivery.failed)

    def row(self, seq: int) -> AcceptedMessage:
        """One row as a record."""
        key, digests = self.keys[seq], self.digests(seq)
        return AcceptedMessage(
            seq=seq,
            message_ids=self.message_ids(seq),
            destination=self.destinations[seq],
            queue=self.queues[seq],
            deduplication_id=None if key is None or key.startswith(CONTENT_KEY) else key,
            digest=digests[:DIGEST_BYTES],
            body_digest=digests[DIGEST_BYTES:],
            at=self.at[seq],
            repeats=self.repeats[seq],
            headers=self.options[seq].pairs,
            body=None if self.bodies is None else self.bodies[seq],
        )

    def rows(self, after: int = -1, limit: int | None = None) -> Iterator[AcceptedMessage]:
        """Rows behind place `after`, in order, at most `limit`."""
        end = len(self) if limit is None else min(len(self), after + 1 + limit)
        for seq in range(after + 1, end):
            yield self.row(seq)


class DeduplicationWindow:
    """Which key was accepted as which row within the last `seconds`."""

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self.seconds = seconds
        self._ledger = ledger
        self._rows: dict[str, int] = {}
        self._oldest: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, key: str, now: float) -> int | None:
        """The row accepted under `key`, if that was less than the window ago."""
        seq = self._rows.get(key)
        if seq is None or self._ledger.at[seq] + self.seconds <= now:
            return None
        return seq

    def add(self, key: str, seq: int) -> None:
        """Remember that `key` was accepted as row `seq`, which is in the ledger already."""
        self._rows[key] = seq
        self._oldest.append(key)

    def expire(self, now: float) -> None:
        """Forget keys that have left the window."""
        oldest, rows, at = self._oldest, self._rows, self._ledger.at
        while oldest:
            seq = rows.get(oldest[0])
            if seq is not None and at[seq] + self.seconds > now:
                return
            key = oldest.popleft()
            if seq is not None:
                del rows[key]


class Audit:
    """Counts what was accepted more than once; reads on from where it stopped, costs nothing until asked."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._read = 0
        self._digests: dict[bytes, int] = {}
        self._keys: dict[str, int] = {}
        self._twice = self._twice_by_id = 0

    def take(self) -> dict[str, int]:
        """`distinct` messages by digest; rows beyond the first of a digest, and of a deduplication key."""
        ledger = self._ledger
        for seq in range(self._read, len(ledger)):
            self._twice += self._count(self._digests, ledger.digest(seq))
            key = ledger.keys[seq]
            if key is not None:
                self._twice_by_id += self._count(self._keys, key)
        self._read = len(ledger)
        return {
            "distinct": len(self._digests),
            "accepted_again_by_digest": self._twice,
            "accepted_again_by_id": self._twice_by_id,
        }

    @staticmethod
    def _count(seen: dict[Any, int], key: bytes | str) -> int:
        times = seen[key] = seen.get(key, 0) + 1
        return int(times > 1)
