"""What an answer means, and when to try again: the verdict table, the back-off, the groups that wait.

Retryability is policy, so it is a table here and no attribute of an error. Sources: the protocol's status
table; full jitter after "Exponential Backoff And Jitter" (delay drawn from 0 to the ceiling), simulated
against the alternatives on a model of the upstream.
"""

from __future__ import annotations

import heapq
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.core.batch import SETTLED, Entry, Failure, Reply, Rng
from dispatcher.core.gate import PAUSE_MAX, Pause
from dispatcher.core.replies import error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatcher.core.budget import Budget
    from dispatcher.core.gate import PauseKind
    from dispatcher.core.isolation import Isolation
    from dispatcher.core.limit import Signal
    from dispatcher.errors import Certainty

MAX_EXPONENT: Final = 30
MILLISECONDS_FROM: Final = 100_000_000_000
"""A reset instant this large is in milliseconds: as seconds it would lie 3,000 years ahead."""
INSTANT_FROM: Final = 1_000_000_000
"""A reset below this is no unix time but a number of seconds from now, as the IETF draft has it."""


class Verdict(Enum):
    """What to do with a request's entries."""

    DELIVERED = "delivered"
    """Settle each by its own position of the reply."""
    RETRY = "retry"
    """Try again: all if the service did not take them, the idempotent ones if that is unknown."""
    SPLIT = "split"
    """Some item spoils the request: find it; alone, it is rejected."""
    HALT = "halt"
    """The token or the URL is refused."""


class Ruling(Struct, frozen=True):
    """A verdict with what follows from it."""

    verdict: Verdict
    certainty: Certainty
    signal: Signal
    cause: str
    """Short name for metrics and logs, such as `throttled`."""
    infers: bool = False
    """A half that passes proves that the culprit is in the other (false for quotas and sizes)."""
    is_of_size: bool = False
    """The batch itself may be too large, and none of its messages to blame."""
    is_throttle: bool = False
    is_suspicious: bool = False
    """A message itself may have caused it: what fails together like this again and again is halved."""
    outage_within: float = 0.0
    """Seconds; having failed as fast as this, it may be that nobody is there at all."""
    may_be_systemic: bool = False
    """One message's fault or the URL's: three refused alone with nothing accepted decide."""


_DELIVERED: Final = Ruling(Verdict.DELIVERED, "accepted", "ok", "accepted")
_INVALID: Final = Ruling(Verdict.SPLIT, "not_accepted", "neutral", "invalid", infers=True)
_FORBIDDEN: Final = Ruling(Verdict.SPLIT, "not_accepted", "neutral", "forbidden", may_be_systemic=True)
_TOO_LARGE: Final = Ruling(Verdict.SPLIT, "not_accepted", "neutral", "too_large", is_of_size=True)
_TOKEN: Final = Ruling(Verdict.HALT, "not_accepted", "neutral", "token_refused")
_REDIRECT: Final = Ruling(Verdict.HALT, "not_accepted", "neutral", "redirected")
_THROTTLED: Final = Ruling(Verdict.RETRY, "not_accepted", "overload", "throttled", is_throttle=True)
_TROUBLE: Final = Ruling(Verdict.RETRY, "unknown", "neutral", "server_error", is_suspicious=True)
_BAD_GATEWAY: Final = Ruling(
    Verdict.RETRY, "unknown", "neutral", "server_error", is_suspicious=True, outage_within=0.1
)
_UNAVAILABLE: Final = Ruling(Verdict.RETRY, "unknown", "overload", "server_error", outage_within=0.1)
_GATEWAY_TIMEOUT: Final = Ruling(Verdict.RETRY, "unknown", "overload", "server_error", is_suspicious=True)
_OVERTAKEN: Final = Ruling(Verdict.RETRY, "unknown", "neutral", "overtaken")
_UNREADABLE: Final = Ruling(Verdict.RETRY, "unknown", "neutral", "unreadable_reply")
_CONNECT: Final = Ruling(Verdict.RETRY, "not_sent", "timeout", "connect_failed", outage_within=1.0)
_DISCONNECT: Final = Ruling(Verdict.RETRY, "unknown", "neutral", "disconnected", is_suspicious=True)
_BROKEN_OFF: Final = Ruling(Verdict.RETRY, "unknown", "neutral", "disconnected")
_TIMEOUT: Final = Ruling(Verdict.RETRY, "unknown", "timeout", "timed_out", is_suspicious=True)

RULINGS: Final = {
    400: _INVALID,
    401: _TOKEN,
    403: _FORBIDDEN,
    404: Ruling(Verdict.SPLIT, "not_accepted", "neutral", "not_found", infers=True, may_be_systemic=True),
    405: _FORBIDDEN,
    408: _TROUBLE,
    409: _INVALID,
    412: _TOO_LARGE,
    413: _TOO_LARGE,
    422: _INVALID,
    429: _THROTTLED,
    500: _TROUBLE,
    502: _BAD_GATEWAY,
    503: _UNAVAILABLE,
    504: _GATEWAY_TIMEOUT,
}
"""The protocol's status table; `judge` adds what depends on more than the number."""

FAILURES: Final = {
    "connect": _CONNECT,
    "disconnect": _DISCONNECT,
    "timeout": _TIMEOUT,
    "reply": _BROKEN_OFF,
    "overtaken": _OVERTAKEN,
}


def judge(answer: Reply | Failure) -> Ruling:
    """What the answer to one request means for the request as a whole."""
    if isinstance(answer, Failure):
        return FAILURES[answer.kind]
    status = answer.status
    if 200 <= status < 300:
        return _DELIVERED
    if status == 503 and "retry-after" in answer.headers:
        return _THROTTLED
    if status == 500 and b"maxMessageSize" in answer.body:
        return _TOO_LARGE
    found = RULINGS.get(status)
    if found is not None:
        return found
    if 300 <= status < 400:
        return _REDIRECT
    return _FORBIDDEN if 400 <= status < 500 else _TROUBLE


UNREADABLE: Final = _UNREADABLE
"""The ruling on a 2xx whose body does not match the request."""


def describe(answer: Reply | Failure) -> str:
    """The answer in a few words, for an attempt's record."""
    if isinstance(answer, Failure):
        return answer.text
    words = error_text(answer.body) if answer.body else ""
    return f"{answer.status} {words}".rstrip()


def pause_of(reply: Reply) -> Pause | None:
    """How long a throttled request's reply asks us to wait; `None` if it does not say.

    From Retry-After (seconds) and the Reset of either family of rate-limit headers (unix time, in seconds or
    milliseconds), measured by the service's own clock, so a wrong one here does not matter. The family
    without `Burst-` is the daily quota.
    """
    headers = reply.headers
    is_quota = "ratelimit-limit" in headers or "ratelimit-reset" in headers
    reset = _number(headers.get("ratelimit-reset" if is_quota else "burst-ratelimit-reset", ""))
    if reset >= MILLISECONDS_FROM:
        reset /= 1000.0
    left = reset - reply.unix_at if reset >= INSTANT_FROM else reset
    seconds = max(_number(headers.get("retry-after", "")), left)
    if seconds <= 0.0:
        return None
    kind: PauseKind = "quota" if is_quota else "throttle"
    seconds = min(seconds, PAUSE_MAX[kind])
    return Pause(kind, seconds, reply.unix_at + seconds)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 < value < float("inf") else 0.0


def backoff(rng: Rng, base: float, ceiling: float, failures: int) -> float:
    """Full jitter: seconds before the attempt that follows `failures` failed ones."""
    return rng.uniform(0.0, min(ceiling, base * 2.0 ** min(max(failures - 1, 0), MAX_EXPONENT)))


class Group(Struct, eq=False):
    """Entries that failed together and wait out one delay together."""

    due_at: float
    entries: list[Entry]
    is_sealed: bool = False
    """They travel by themselves, not with others."""
    isolation: Isolation | None = None
    """Of a probe, which is repeated whole: its isolation is not told of an outage."""
    cost: int = 0
    """Tokens of the retry budget."""

    @property
    def is_live(self) -> bool:
        """Something in it has not settled meanwhile."""
        return any(entry.state != SETTLED for entry in self.entries)

    @property
    def live(self) -> list[Entry]:
        """Those that have not settled meanwhile."""
        return [entry for entry in self.entries if entry.state != SETTLED]


class Backoffs:
    """A heap of groups by the instant they are due; what is due waits until the budget can pay for it."""

    __slots__ = ("_budget", "_heap", "_latest", "_ticks")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._heap: list[tuple[float, int, Group]] = []
        self._ticks = count()
        self._latest = float("inf")
        """From here on nothing waits for the budget: a drain has to end."""

    @property
    def due_at(self) -> float:
        """When the next group's delay is over; `inf` if there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    @property
    def next_at(self) -> float:
        """When the next group is due and paid for, at the latest; `inf` if there is none."""
        if not self._heap:
            return float("inf")
        due_at, _, group = self._heap[0]
        return max(due_at, min(self._latest, self._budget.ready_at(group.cost)))

    def add(self, group: Group) -> None:
        """Let a group wait until its `due_at`."""
        heapq.heappush(self._heap, (group.due_at, next(self._ticks), group))

    def pop_due(self, now: float, *, is_free: bool = False) -> Group | None:
        """The next group whose time has come, once it is paid for (or is free)."""
        if not self._heap or self._heap[0][0] > now:
            return None
        group = self._heap[0][2]
        if is_free or now >= self._latest or not group.is_live:
            group.cost = 0
        elif not self._budget.try_pay(group.cost, now):
            return None
        return self.pop()

    def pop(self) -> Group:
        """The next group, due or not."""
        return heapq.heappop(self._heap)[2]

    def clip(self, latest: float) -> None:
        """No group waits past `latest` (a drain has to end)."""
        self._latest = latest
        self._move(lambda due_at: min(due_at, latest))

    def wake(self, now: float, rng: Rng, within: float) -> None:
        """Every group is due within so many seconds, spread over them."""
        self._move(lambda due_at: min(due_at, now + rng.uniform(0.0, within)))

    def _move(self, change: Callable[[float], float]) -> None:
        groups = self.clear()
        for group in groups:
            group.due_at = change(group.due_at)
            self.add(group)

    def clear(self) -> list[Group]:
        """Take every group out."""
        groups = [group for _, _, group in sorted(self._heap, key=lambda item: item[:2])]
        self._heap.clear()
        return groups

    def __bool__(self) -> bool:
        return bool(self._heap)

    def __iter__(self) -> Iterator[Group]:
        return (group for _, _, group in self._heap)
