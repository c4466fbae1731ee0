"""What the core moves about: an `Entry` for each admitted message, a `Batch` for each request.

An entry is the only record a message costs on the good path (the runtime's `Delivery` is an entry); what
goes wrong with it is kept in a `Trouble` of its own, made at the first failure. Messages that were handed in
together may do without entries: a `Run` has them in columns, until something happens to one of them. Nothing
here decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections import deque

    from dispatcher.core.isolation import Isolation
    from dispatcher.errors import Attempt, Certainty, DeliveryError
    from dispatcher.message import Message, Receipt

WAITING: Final = 0
IN_FLIGHT: Final = 1
BACKING_OFF: Final = 2
ISOLATED: Final = 3
SETTLED: Final = 4
STATES: Final = ("waiting", "in_flight", "backing_off", "isolated", "settled")

CERTAINTIES: Final[dict[Certainty, int]] = {"not_sent": 0, "not_accepted": 1, "unknown": 2, "accepted": 3}

HISTORY_HEAD: Final = 8
HISTORY_LENGTH: Final = 40
"""A message remembers its first attempts and its last ones: a limit on everything."""


class Rng(Protocol):
    """The random source the core is given; `random.Random` fits."""

    def uniform(self, a: float, b: float, /) -> float: ...


class LanePolicy(Protocol):
    """What an ordered lane is told; `config.Queue` fits."""

    @property
    def strict(self) -> bool: ...

    @property
    def on_failure(self) -> str: ...


class SingleRequest(Struct, gc=False, frozen=True):
    """How a message that cannot be batched leaves: a request of its own, with raw bytes as its body."""

    target: str
    """Path below the base URL, the destination pasted raw: `/v2/publish/https://…`."""
    headers: tuple[tuple[str, str], ...]
    """Header lines; a name may occur more than once."""


class Trouble(Struct):
    """What went wrong with an entry so far."""

    first_sent_at: float
    attempts: int = 0
    """Requests that carried it and did not settle it."""
    failures: int = 0
    """Those of them that are charged: not what the service put off."""
    streak: int = 0
    """Those since it was last halved away from others: the back-off's exponent."""
    suspicions: int = 0
    """Failures that the message itself may have caused."""
    seen_accepted: int = 0
    """How many requests the service had accepted at the first of those."""
    error_entries: int = 0
    was_overtaken: bool = False
    """A request with it was given up because a later one had succeeded; that is done once."""
    paid: int = 0
    """Tokens of the retry budget that the present attempt has cost, returned if it succeeds."""
    certainty: Certainty = "not_sent"
    window_ends_at: float | None = None
    """When repeating it stops being safe; the entry's deadline was cut to it."""
    history: list[Attempt] = []

    def learn(self, certainty: Certainty) -> None:
        """Certainty only ever gets worse: one unknown outcome stays possible whatever follows it."""
        if CERTAINTIES[certainty] > CERTAINTIES[self.certainty]:
            self.certainty = certainty

    def record(self, attempt: Attempt, *, is_charged: bool) -> None:
        """Remember one failed attempt; of very many, the first and the last."""
        self.attempts += 1
        self.failures += is_charged
        self.streak += is_charged
        if len(self.history) >= HISTORY_LENGTH:
            del self.history[HISTORY_HEAD]
        self.history.append(attempt)


class Lane(Struct, eq=False, gc=False):
    """Messages that keep an order among themselves; the default lane keeps none."""

    key: str | None
    ordered: bool
    waiting: deque[Entry]
    count: int = 0
    """Live entries waiting; withdrawn ones are subtracted at once and skipped when met."""
    size_bytes: int = 0
    unresolved: int = 0
    """Entries of an ordered lane that left and are not settled; above zero it is muted."""
    deficit: int = 0
    is_strict: bool = False
    """One message in flight at a time."""
    stops: bool = False
    """It stops at a failed message, until it is resumed."""
    is_stopped: bool = False
    is_queued: bool = False
    """It stands in the ring of ready lanes."""
    head_at: float = -1.0
    """Admission instant under which the lane stands in the heap of heads; negative: it does not."""

    @property
    def is_muted(self) -> bool:
        return self.ordered and (self.unresolved > 0 or self.is_stopped)


class Entry(Struct, eq=False, gc=False):
    """One admitted, encoded message.

    Outside the garbage collector's care: once settled it is in no structure of the core.
    """

    stops_queue: ClassVar[bool] = False
    """Its queue stops if it fails, whatever the queue's own rules are."""

    message: Message
    data: bytes
    """The item's JSON, encoded once; of a single, the raw body."""
    queue: str | None
    deduplication_id: str | None
    idempotent: bool
    """Repeating it is safe: it carries an id, or is content-deduplicated."""
    owns_id: bool
    """The id was drawn by us, so `deduplicated: true` means our own earlier attempt."""
    admitted_at: float
    deadline: float
    single: SingleRequest | None = None
    home: object = None
    """Whatever the runtime keeps for all of its entries; none of the core's business."""
    is_claimed: bool = False
    """Someone will look at the outcome: a failure is not reported as unawaited."""
    lane: Lane | None = None
    number: int = 0
    """Order of admission."""
    epoch: int = 0
    state: int = WAITING
    trouble: Trouble | None = None
    outcome: Receipt | DeliveryError | None = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return () if self.trouble is None else tuple(self.trouble.history)


class Run(Struct, eq=False):
    """A batch's worth of plain messages of the default lane that were admitted together: columns, no entries.

    Nearly every message is sent once and accepted; its neighbours share its instants, its lane and its fate.
    So a run waits, leaves and settles as a whole. Whoever needs its messages one by one opens it, for good.
    """

    messages: list[Message]
    """Empty where each has an entry from the beginning."""
    items: list[bytes]
    """Each item's JSON, encoded once."""
    deduplication_ids: list[str]
    """Drawn by us, each of them."""
    admitted_at: float = 0.0
    deadline: float = 0.0
    home: object = None
    is_claimed: bool = False
    size_bytes: int = 0
    """Sum of the items'."""
    lane: Lane | None = None
    number: int = 0
    """The first message's."""
    epoch: int = 0
    state: int = WAITING
    entries: list[Entry] | None = None
    """Set once it is open: nothing else here counts from then on."""
    receipts: list[Receipt] | None = None
    """Set once the whole run is delivered."""

    def __len__(self) -> int:
        return len(self.items)

    def entry(self, index: int) -> Entry:
        """One of its messages as an entry."""
        raise NotImplementedError

    def open(self) -> list[Entry]:
        """Its messages as entries, each in the state that the run is in."""
        entries = self.entries
        if entries is None:
            entries = [self.entry(index) for index in range(len(self))]
            for number, entry in enumerate(entries, self.number):
                entry.lane, entry.number, entry.epoch, entry.state = self.lane, number, self.epoch, self.state
            self.entries = entries
        return entries


class Batch(Struct, eq=False):
    """One request's worth of entries."""

    members: list[Entry] | Run
    size_bytes: int
    """Sum of the entries' encoded bytes."""
    reason: str
    """Why it left: messages, bytes, linger, idle, flush, room, drain, retry, isolation, single, probe,
    halving."""
    single: SingleRequest | None = None
    isolation: Isolation | None = None
    """Set on a probe."""
    is_sealed: bool = False
    """Its entries failed together before: they travel by themselves, not with others."""
    number: int = 0
    started_at: float = 0.0
    timeout: float = 0.0
    """Seconds this attempt may take."""
    has_ordered: bool = False
    """Some of its entries belong to ordered lanes."""
    slept: float = 0.0
    """Seconds that the machine was suspended while this was out, of which its clock knows nothing."""
    has_expired: bool = False
    """An entry settled at its deadline while this batch was in flight."""

    @property
    def entries(self) -> list[Entry]:
        """What it carries, one by one; opens a run."""
        return self.members if isinstance(self.members, list) else self.open()

    @property
    def run(self) -> Run | None:
        """What it carries, as a whole."""
        return None if isinstance(self.members, list) else self.members

    def open(self) -> list[Entry]:
        """Open its run, if it has one."""
        if isinstance(self.members, Run):
            self.members = self.members.open()
        return self.members

    @property
    def is_apart(self) -> bool:
        """Not taken from the lanes: a probe, or a half of what failed together."""
        return self.is_sealed or self.isolation is not None

    def body(self) -> bytes:
        """The request's body."""
        if self.single is not None:
            return self.entries[0].data
        run = self.run
        items = [entry.data for entry in self.entries] if run is None else run.items
        return b"[" + b",".join(items) + b"]"


class Reply(Struct, gc=False):
    """What the service said."""

    status: int
    body: bytes
    headers: dict[str, str] = {}
    """Lower-case names; only those the core reads: `retry-after` and the `ratelimit-…` families."""
    unix_at: float = 0.0
    """The service's clock when it answered, in unix seconds (ours if it did not say)."""


class Failure(Struct, gc=False):
    """What the transport says when the service said nothing usable."""

    kind: str
    """connect, disconnect, timeout, reply; overtaken, which the core says itself."""
    text: str
    certainty: Certainty
    """`not_sent` or `unknown`."""


class Step(Struct):
    """One answer of `Engine.poll`."""

    start: list[Batch]
    settled: list[Entry]
    delivered: list[Run]
    """Those that have settled as a whole."""
    wake_at: float
    """Monotonic instant of the next poll that could change anything; `inf` if only inputs can."""
