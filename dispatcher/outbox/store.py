"""What a store is: where an outbox keeps what it has accepted. The protocol, and the records that cross it.

A store keeps messages and says which may be tried next. It decides nothing else: what an answer means, when
something is tried again and what is dead is told to it. Everything is done in batches. A call that returns
has been made durable, as far as the store makes anything durable; one that raises `OutboxError` has changed
nothing that counts (what it was to append may still turn up: it was not promised).

Each message has a *position*: positions grow, and are the order of acceptance. A message waits, is claimed,
or is settled. **Claiming is committed before it returns**: after a crash, who was claimed may have been sent.
**Order**: of one queue, `claim` gives nothing while an earlier message of the queue waits for a later time,
and gives what it gives in the order of positions. Made for an exclusive store (a file), for a shared one
with leases (a stream), and for a transactional one (a database of the application's own).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.errors import Attempt
    from dispatcher.message import Receipt

State = Literal["waiting", "claimed", "delivered", "dead", "cancelled"]
"""waiting: to be tried, now or later. claimed: somebody tries. delivered: the service has taken it, and its
receipt is kept for a while. dead: the service refused it for good, kept until somebody decides. cancelled:
taken back before it left, or a dead letter that was deleted; such a message may be unknown as well."""


class Record(Struct, gc=False, frozen=True):
    """One accepted message, as it is kept."""

    id: str
    """`out_…`, unique for ever."""
    data: bytes
    """The message; only the outbox reads it."""
    queue: str | None = None
    """The upstream queue whose order it keeps."""
    accepted_at: float = 0.0
    """Unix seconds."""


class Mark(Struct, gc=False, frozen=True):
    """How far something has been read: kept with what came from it, so that it is read on from there."""

    name: str
    value: bytes
    """Only who reads knows what it says."""


class Claim(Struct, gc=False):
    """One message that is to be tried."""

    position: int
    record: Record
    attempts: tuple[Attempt, ...] = ()
    """Every attempt so far, the oldest first; `after` is in seconds since its acceptance."""
    returns: int = 0
    """How often it was given back."""
    sent_since: float | None = None
    """Unix seconds since when it may have been sent with an outcome that is not known; `None`: it was not.
    Of one that was claimed when a process died, the instant of that claim."""


class Delivered(Struct, gc=False):
    """The service has taken it."""

    position: int
    receipt: Receipt
    at: float
    """Unix seconds."""


class Returned(Struct, gc=False):
    """Not settled: it is to be tried again, not before an instant."""

    position: int
    due: float
    """Unix seconds. Later messages of its queue wait as long."""
    attempts: tuple[Attempt, ...]
    """All of them."""
    sent_since: float | None
    """As in `Claim`, from now on."""


class Dead(Struct, gc=False):
    """The service refused it for good."""

    position: int
    reason: str
    attempts: tuple[Attempt, ...]
    at: float


class Cancelled(Struct, gc=False):
    """Taken back before it left."""

    position: int


Settlement = Delivered | Returned | Dead | Cancelled


class Found(Struct, gc=False, frozen=True):
    """What is known of one message."""

    state: State
    record: Record
    attempts: tuple[Attempt, ...] = ()
    due: float = 0.0
    """Of one that waits: not before."""
    receipt: Receipt | None = None
    reason: str = ""
    """Of a dead one."""
    settled_at: float | None = None


class StoreStatus(Struct, gc=False, frozen=True):
    """A store at one instant."""

    waiting: int = 0
    claimed: int = 0
    dead: int = 0
    held_bytes: int = 0
    """Of what is not settled."""
    dead_bytes: int = 0
    """Of the dead letters, which count towards a bound as well."""
    oldest_at: float | None = None
    """Unix seconds of the oldest acceptance that is not settled."""
    disk_bytes: int = 0
    """What the store takes on its disk; 0 where there is none."""
    free_bytes: int | None = None
    """What its disk has left."""
    failure: str = ""
    """Why nothing can be kept now; empty: it can."""
    commits: int = 0
    recovered: int = 0
    """Messages that were not settled when it was opened."""
    damaged: int = 0
    """Records that could not be read when it was opened, and were put aside."""
    errors: dict[str, int] = {}
    """Failed operations by their name."""


class Store(Protocol):
    """Keeps messages; every method may raise `OutboxError`."""

    async def open(self) -> StoreStatus:
        """Make it ready; what was claimed by a process that died waits again, with `sent_since`."""
        ...

    async def aclose(self) -> None:
        """Finish what was asked for, and give the store free."""
        ...

    async def append(self, records: Sequence[Record], mark: Mark | None = None) -> None:
        """Keep all of them or none; with them a mark, in the place of the one of its name.

        Raises:
            StoreFull: A bound is reached; later there may be room.
            OutboxError: It could not be made durable.
        """
        ...

    async def claim(self, messages: int, size_bytes: int, now: float) -> list[Claim]:
        """Messages that may be tried now, at most so many and about so many bytes (but one, if there is any).

        Args:
            now: Unix seconds.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """What became of claimed messages; a caller whom it fails repeats it, which changes nothing more."""
        ...

    async def wait(self, now: float) -> None:
        """Return when `claim` may give something: at once, when something is appended, or when it is due."""
        ...

    async def find(self, message_id: str) -> Found | None:
        """What is known of a message; `None` if nothing is (any more)."""
        ...

    async def cancel(self, message_id: str) -> bool:
        """Take back a message that waits; false if there is none."""
        ...

    async def mark(self, name: str) -> bytes | None:
        """The value of a mark; `None` if there is none of this name."""
        ...

    async def dead_letters(self, after: str | None = None, limit: int = 100) -> list[Found]:
        """Dead letters in the order of acceptance, those behind the id `after`."""
        ...

    async def retry(self, message_ids: Sequence[str] | None = None) -> int:
        """Have dead letters, all or these, wait again in their old places; how many."""
        ...

    async def delete(self, message_ids: Sequence[str] | None = None) -> int:
        """Forget dead letters, all or these; how many."""
        ...

    def status(self) -> StoreStatus:
        """How it does; costs no input or output."""
        ...
