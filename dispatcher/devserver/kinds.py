"""The table of faults: every kind, on which side of acceptance it strikes, and one drawn fault. Pure.

The vocabulary that `faults` parses plans in, `responder` acts on and tests assert with.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping


class FaultKind(enum.StrEnum):
    """What goes wrong with one request."""

    NONE = "none"
    THROTTLE_BURST = "throttle_burst"
    THROTTLE_DAILY = "throttle_daily"
    THROTTLE_BARE = "throttle_bare"
    REFUSE_TOKEN = "refuse_token"  # noqa: S105 - a fault's name
    UNAVAILABLE = "unavailable"
    ERROR_BEFORE = "error_before"
    ERROR_AFTER = "error_after"
    BAD_GATEWAY = "bad_gateway"
    GATEWAY_TIMEOUT = "gateway_timeout"
    DISCONNECT_BEFORE = "disconnect_before"
    DISCONNECT_AFTER = "disconnect_after"
    HANG_BEFORE = "hang_before"
    HANG_AFTER = "hang_after"
    TRUNCATE = "truncate"
    UNPARSABLE = "unparsable"
    WRONG_LENGTH = "wrong_length"
    DRIP = "drip"
    POISON_400 = "poison_400"
    POISON_500 = "poison_500"
    OVER_CAPACITY = "over_capacity"


class Kind(Struct, frozen=True):
    """One row of `KINDS`."""

    accepts: bool
    """Whether the messages of the request are accepted all the same."""
    status: int | None
    """The status of the reply; `None` where there is none."""
    meaning: str


KINDS: Final[Mapping[FaultKind, Kind]] = {
    FaultKind.NONE: Kind(True, 200, "nothing goes wrong"),
    FaultKind.THROTTLE_BURST: Kind(False, 429, "too fast: `Burst-RateLimit-*`, reset after `burst_reset`"),
    FaultKind.THROTTLE_DAILY: Kind(False, 429, "daily quota spent: `RateLimit-*`, reset after `daily_reset`"),
    FaultKind.THROTTLE_BARE: Kind(False, 429, "429 without any header"),
    FaultKind.REFUSE_TOKEN: Kind(False, 401, "the token is refused, as if it had been revoked"),
    FaultKind.UNAVAILABLE: Kind(False, 503, "503 with `Retry-After: retry_after` (0: without the header)"),
    FaultKind.ERROR_BEFORE: Kind(False, 500, "500, nothing was accepted"),
    FaultKind.ERROR_AFTER: Kind(True, 500, "500, although everything was accepted"),
    FaultKind.BAD_GATEWAY: Kind(False, 502, "502 from a proxy that never reached the service"),
    FaultKind.GATEWAY_TIMEOUT: Kind(
        True, 504, "504 from a proxy that did not wait, although everything was accepted"
    ),
    FaultKind.DISCONNECT_BEFORE: Kind(False, None, "the connection is reset, nothing was accepted"),
    FaultKind.DISCONNECT_AFTER: Kind(
        True, None, "the connection is reset after acceptance, before the reply"
    ),
    FaultKind.HANG_BEFORE: Kind(False, None, "no answer ever, nothing was accepted"),
    FaultKind.HANG_AFTER: Kind(True, None, "no answer ever, although everything was accepted"),
    FaultKind.TRUNCATE: Kind(True, 200, "half of the reply, then the connection closes"),
    FaultKind.UNPARSABLE: Kind(True, 200, "a 200 whose body is not JSON"),
    FaultKind.WRONG_LENGTH: Kind(True, 200, "a reply array without its last entry"),
    FaultKind.DRIP: Kind(True, 200, "the right reply, in pieces, over `drip_over`"),
    FaultKind.POISON_400: Kind(False, 400, "a body with this marker makes the whole request 400"),
    FaultKind.POISON_500: Kind(False, 500, "a body with this marker makes the whole request 500"),
    FaultKind.OVER_CAPACITY: Kind(False, 429, "429 without any header, above `capacity` requests at once"),
}
"""Every kind, its side of acceptance and its status."""

MARKERS: Final = (FaultKind.POISON_400.value, FaultKind.POISON_500.value)
_UNRATED: Final = (FaultKind.NONE.value, FaultKind.OVER_CAPACITY.value, *MARKERS)
REQUEST_RATES: Final = tuple(kind.value for kind in FaultKind if kind.value not in _UNRATED)
ITEM_RATES: Final = {
    "error_entry": 'an item is not accepted; its entry is `{"error": …}`, its neighbours are accepted',
    "error_unqueued": "the same, sparing messages of queues (an error entry breaks their order)",
    "error_endpoint": "a URL group's last endpoint is not served and carries the error, the others are",
}
DURATIONS: Final = {"burst_reset": 1.0, "daily_reset": 3600.0, "retry_after": 1.0, "drip_over": 1.0}
LIMITS: Final = {
    "capacity": "requests at once, above which one more is refused with a bare 429; or none",
    "workers": "requests worked on at once, above which one more waits silently for its turn; or none",
    "work": "how long the service works on a request; without work none is in the way of another",
    "work_per_item": "how much longer for each of its messages",
}
"""What only load shows: names and meanings."""
NAMES: Final = ("latency", *REQUEST_RATES, *ITEM_RATES, *DURATIONS, *LIMITS, *MARKERS)


class Fault(Struct, frozen=True, gc=False):
    """What goes wrong with one request."""

    kind: FaultKind = FaultKind.NONE
    latency: float = 0.0
    """Seconds until the reply begins (or the connection is reset); infinite for the two that hang."""
    headers: tuple[tuple[str, str], ...] = ()
    error_entries: tuple[int, ...] = ()
    """Positions of the items that are not accepted."""
    errors_unqueued: tuple[int, ...] = ()
    """The same, where the item is not of a queue."""
    error_endpoints: tuple[int, ...] = ()
    """Positions where, if it is a URL group's, the last endpoint is not served."""
    drip_over: float = 0.0
    """Seconds over which the reply is written in pieces."""

    @property
    def accepts(self) -> bool:
        """Whether the messages of the request are accepted all the same."""
        return KINDS[self.kind].accepts

    @property
    def status(self) -> int | None:
        """The status of the reply; `None` where there is none."""
        return KINDS[self.kind].status
