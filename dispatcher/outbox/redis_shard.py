"""What the owner of a shard knows of it: what is read and not given, what is held, what is the oldest.

Fresh messages are read entry by entry into a bounded buffer; those of a queue that has something held are
passed over, and read again (*recalled*) when their turn has come. Held ones are known without their data. It
is all a copy of what stands in Redis: who doubts it throws it away, and loads it anew. Pure; used by
`redis_owner` and `redis_claims`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from dispatcher.outbox.order import Order

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from dispatcher.outbox.redis_forms import Kept
    from dispatcher.outbox.store import Claim, Record

PASSED_MAX: Final = 20_000
"""Passed-over messages of a shard that are remembered as open; with more, the oldest may be a younger one."""


class Held(NamedTuple):
    """A held message, without its data."""

    id: str
    queue: str | None
    size: int
    accepted_at: float


class Out(NamedTuple):
    """A claimed message."""

    claim: Claim
    shard: int
    no: int
    """Of the claim."""
    deaths: int


class Recalled:
    """Fresh messages of one queue that were passed over, read again."""

    __slots__ = ("covered", "messages")

    def __init__(self, messages: deque[tuple[int, Record]], covered: int) -> None:
        self.messages = messages
        self.covered = covered
        """Up to this number, all of the queue are here."""


class Shard:
    """One owned shard."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.order = Order()
        self.held: dict[int, Held] = {}
        self.fresh: deque[tuple[int, Record]] = deque()
        """Read, in the order of numbers."""
        self.recalled: dict[str, Recalled] = {}
        self.cursor = 0
        """The entry up to which everything was read."""
        self.top = 0
        """The last number that was read."""
        self.has_more = True
        """Whether there may be something behind the cursor, or held by others."""
        self.is_draining = False
        """To be given away: nothing more is claimed from it."""
        self.is_loaded = False
        self.out = 0
        """Claimed messages that are not settled."""
        self._unread: tuple[int, float] | None = None
        """Number and acceptance of the first message of ours behind the cursor."""
        self._passed: dict[str, int] = {}
        """The last number of each queue that was passed over."""
        self._passed_count = 0
        self._open: OrderedDict[int, float] = OrderedDict()
        """The acceptance of those that were read and are not settled, in the order of numbers."""
        self._early: list[tuple[int, float]] = []
        """A heap of the same, of those that are known from elsewhere; settled ones go when they come up."""
        self._early_open: set[int] = set()

    # ------------------------------------------------------------------------------------------- filling

    def read(self, entry: int, top: int, messages: Iterable[tuple[int, Record]], out: Container[int]) -> None:
        """An entry, up to the number `top`; but those of its messages that are held or out."""
        for number, record in messages:
            if number not in self.held and number not in out:
                self.fresh.append((number, record))
                self._open[number] = record.accepted_at
        self.cursor, self.top = entry, top
        if self._unread is not None and self._unread[0] <= entry:
            self._unread = None

    def read_all(self) -> None:
        """There is nothing behind the cursor."""
        self._unread = None

    def hold(self, number: int, one: Held, due: float) -> None:
        """A message waits outside of its entry."""
        if number not in self.held:
            self.held[number] = one
            self.order.hold(number, one.queue, due)
            self.remember(number, one.accepted_at)

    def hold_kept(self, number: int, kept: Kept) -> None:
        """The same of one that was read from Redis."""
        self.hold(number, Held(kept.id, kept.queue, len(kept.data), kept.accepted_at), kept.due)

    def remember(self, number: int, accepted_at: float) -> None:
        """A message is not settled."""
        if number not in self._open and number not in self._early_open:
            self._early_open.add(number)
            heappush(self._early, (number, accepted_at))

    def appended(self, entry: int, accepted_at: float) -> None:
        """An entry of ours was written; it may have been read already."""
        if entry > self.cursor:
            self.has_more = True
            if self._unread is None:
                self._unread = (entry, accepted_at)

    # ------------------------------------------------------------------------------------------- taking

    def pass_over(self, number: int, queue: str | None) -> bool:
        """Whether the queue of a fresh message has an earlier one, so that it is left for later."""
        if queue is None or not self.order.pass_over(number, queue):
            return False
        self._passed[queue] = number
        self._passed_count += 1
        if self._passed_count > PASSED_MAX:
            self._open.pop(number, None)
        return True

    @property
    def read_to(self) -> int:
        """Numbers before this one were given, or passed over."""
        return self.fresh[0][0] if self.fresh else self.top + 1

    def recall(self, queue: str, messages: deque[tuple[int, Record]], covered: int) -> None:
        """Passed-over messages of a queue were read again: all of them up to a number."""
        self.recalled[queue] = Recalled(messages, covered)
        self.took_recalled(queue)

    def took_recalled(self, queue: str) -> None:
        """After the first of the recalled ones was taken: from where the queue is to be read again."""
        recalled, state = self.recalled[queue], self.order.queues[queue]
        if recalled.messages:
            state.resume = recalled.messages[0][0]
            return
        del self.recalled[queue]
        if self._passed.get(queue, 0) > recalled.covered:
            state.resume = recalled.covered + 1
        else:
            state.resume = None
            self._passed.pop(queue, None)

    def settled(self, number: int) -> None:
        """It is no concern of this shard's any more."""
        self._open.pop(number, None)
        self._early_open.discard(number)
        if (one := self.held.pop(number, None)) is not None:
            self.order.drop(number, one.queue)

    def cancelled(self, number: int) -> None:
        """One that waits was taken back."""
        self.settled(number)
        self.fresh = deque(one for one in self.fresh if one[0] != number)
        for queue, recalled in list(self.recalled.items()):
            if any(one[0] == number for one in recalled.messages):
                recalled.messages = deque(one for one in recalled.messages if one[0] != number)
                self.took_recalled(queue)
                self.order.set_timer(queue)

    # ----------------------------------------------------------------------------------------- questions

    @property
    def is_claimed_from(self) -> bool:
        """Whether something of it may be given."""
        return self.is_loaded and not self.is_draining

    @property
    def due_at(self) -> float:
        """When something may be claimed, or has to be looked at: 0 is now, infinity never."""
        if self.is_draining:
            return inf
        return 0.0 if self.fresh or self.has_more or not self.is_loaded else self.order.due_at

    def oldest(self) -> tuple[int, float] | None:
        """Number and acceptance of the oldest message that is not settled, as far as it is known."""
        while self._early and self._early[0][0] not in self._early_open:
            heappop(self._early)
        first = next(iter(self._open.items()), None) or self._unread
        early = self._early[0] if self._early else None
        return min((one for one in (first, early) if one is not None), default=None)
