"""How much the service works on at once: the part of its behaviour that only load shows. Pure.

Two kinds of limit, which may be combined. Above `capacity` requests at once one more is *refused* at once,
with a 429 that says nothing of time. Above `workers` it *waits*, silently, and everybody's round trip grows.
A request is there from its arrival until its work is done, whether or not its client still waits.

`faults` parses it as a part of a plan; `responder` asks a `Load` for each request to the intake.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, structs

from dispatcher.devserver.latency import parse_duration
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTS: Final = ("capacity", "workers")
TIMES: Final = ("work", "work_per_item")
UNLIMITED: Final = "none"


class Capacity(Struct, frozen=True):
    """The limits in force. Without work no request is there longer than an instant, and none is reached."""

    capacity: int | None = None
    """Requests at once, above which one more is refused; `None`: any number."""
    workers: int | None = None
    """Requests that are worked on at once; others wait for their turn. `None`: any number."""
    work: float = 0.0
    """Seconds of work that a request takes."""
    work_per_item: float = 0.0
    """Seconds more for each of its messages."""

    def changed(self, settings: Mapping[str, Any], where: str) -> Capacity:
        """With those of `settings` that are limits, the others as they are; raises `ConfigError`."""
        changes: dict[str, int | float | None] = {
            name: _count(f"{where}.{name}", settings[name]) for name in COUNTS if name in settings
        }
        for name in TIMES:
            if name in settings:
                changes[name] = parse_duration(f"{where}.{name}", settings[name])
        return structs.replace(self, **changes) if changes else self


def _count(field: str, value: object) -> int | None:
    text = str(value).strip()
    if text == UNLIMITED:
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(
            field, value, f"write a whole number of requests, at least 1, or {UNLIMITED} for any number"
        )
    return number


class Load:
    """The requests that are being worked on or wait for it, by the instants at which they will be done.

    What was taken keeps the turn it was given, for its reply is dated by it: limits that change later hold
    for later requests. A clock that is set back is taken to have stood still.
    """

    __slots__ = ("_ends", "_now", "busy_max")

    def __init__(self) -> None:
        self.busy_max = 0
        """The most requests that were there at once."""
        self._ends: list[float] = []
        """In ascending order."""
        self._now = 0.0

    def at(self, now: float) -> int:
        """Requests not done at `now`."""
        return len(self._ends) - bisect_right(self._ends, now)

    def begin(self, capacity: Capacity, items: int, now: float) -> float | None:
        """Take one more request; seconds until it is done, `None` if it is refused.

        First come first served: it starts when fewer than `workers` of those before it are unfinished.
        """
        self._pass(now)
        ends = self._ends
        if capacity.capacity is not None and len(ends) >= capacity.capacity:
            return None
        starts_at = now
        if capacity.workers is not None and len(ends) >= capacity.workers:
            starts_at = ends[-capacity.workers]
        ends_at = starts_at + capacity.work + capacity.work_per_item * items
        insort(ends, ends_at)
        self.busy_max = max(self.busy_max, len(ends))
        return ends_at - now

    def _pass(self, now: float) -> None:
        """Let time go on until `now`; what is not done then ends after it."""
        if now < self._now:
            # Only the wall clock does this. By its old dates, what is there would be there for hours.
            self._ends = [end - (self._now - now) for end in self._ends]
        self._now = now
        del self._ends[: bisect_right(self._ends, now)]
