"""How many batches may be out at once.

A `Limit` is an algorithm apart from its enforcement: the engine asks `value` and reports each attempt's
end as a `Signal`. Here is the fixed one; an adaptive one takes its place by the same two members.
"""

from __future__ import annotations

from typing import Literal, Protocol

Signal = Literal["ok", "overload", "timeout", "neutral"]
"""ok: the service took it; overload: 429, 503, 504 or a refused connection; neutral says nothing of load."""


class Limit(Protocol):
    """Anything that says how many batches may be in flight."""

    @property
    def value(self) -> int:
        """Batches that may be in flight now, at least 1."""
        ...

    def observe(self, signal: Signal, *, started_at: float, now: float, was_reached: bool) -> None:
        """One attempt ended; `was_reached`: a ready batch waited for a slot meanwhile."""
        ...


class FixedLimit:
    """The same number whatever happens."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    def observe(self, signal: Signal, *, started_at: float, now: float, was_reached: bool) -> None:
        """A fixed limit learns nothing."""
