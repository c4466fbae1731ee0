"""When each message is to start: constant, Poisson, in steps, in bursts. Pure, and decided by its arguments.

The instants depend on nothing that happens while they are carried out; that is what makes a load open. Read
by `generator` in real time, by the tests in virtual time.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROUNDING: Final = 1e-9


class Piece(Struct, frozen=True):
    """A stretch of time with one rate, in seconds and messages a second."""

    start: float
    end: float
    rate: float


class Burst(Struct, frozen=True):
    """So many messages at one instant, every so many seconds."""

    messages: int
    every: float


class Schedule(Struct, frozen=True):
    """All intended starts, as seconds from 0 to below `duration`, never descending."""

    duration: float
    pieces: tuple[Piece, ...] = ()
    is_poisson: bool = False
    """Independent arrivals at the same mean rate, as of many callers; else evenly spaced."""
    burst: Burst | None = None
    """Instead of the pieces."""
    seed: int = 0

    def instants(self) -> Iterator[float]:
        """One for each message."""
        if self.burst is not None:
            return _bursts(self.burst, self.duration)
        if self.is_poisson:
            return _poisson(self.pieces, random.Random(f"{self.seed}:starts"))
        return _even(self.pieces)

    def rate_at(self, at: float) -> float:
        """Messages a second asked for at this instant, on average."""
        if self.burst is not None:
            return self.burst.messages / self.burst.every
        return next((piece.rate for piece in self.pieces if piece.start <= at < piece.end), 0.0)

    @property
    def expected(self) -> float:
        """How many messages it has, or, where chance decides, has on average."""
        if self.burst is not None:
            return float(self.burst.messages * math.ceil(self.duration / self.burst.every - _ROUNDING))
        return sum(piece.rate * (piece.end - piece.start) for piece in self.pieces)

    @property
    def words(self) -> str:
        """For people."""
        if self.burst is not None:
            what = f"bursts of {self.burst.messages:,} every {self.burst.every:g} s"
        else:
            rates = ", ".join(f"{piece.rate:,g}" for piece in self.pieces)
            steps = "steps of " if len(self.pieces) > 1 else ""
            what = f"{steps}{rates} msg/s, {'Poisson' if self.is_poisson else 'evenly spaced'}"
        return f"{what}, for {self.duration:,g} s"


def constant(rate: float, duration: float, *, is_poisson: bool = False, seed: int = 0) -> Schedule:
    """One rate from beginning to end."""
    return steps([rate], duration, is_poisson=is_poisson, seed=seed)


def steps(rates: Sequence[float], duration: float, *, is_poisson: bool = False, seed: int = 0) -> Schedule:
    """One rate after the other, each for an equal part of the duration."""
    edges = [duration * place / len(rates) for place in range(len(rates) + 1)]
    pieces = tuple(Piece(start, end, rate) for start, end, rate in zip(edges, edges[1:], rates, strict=False))
    return Schedule(duration, pieces, is_poisson, seed=seed)


def bursts(messages: int, every: float, duration: float) -> Schedule:
    """So many at once, every so many seconds, the first at 0."""
    return Schedule(duration, burst=Burst(messages, every))


def _even(pieces: Sequence[Piece]) -> Iterator[float]:
    for piece in pieces:
        number = math.ceil((piece.end - piece.start) * piece.rate - _ROUNDING)
        for place in range(number):
            yield piece.start + place / piece.rate


def _poisson(pieces: Sequence[Piece], rng: random.Random) -> Iterator[float]:
    # Such arrivals have no memory: beginning anew at an edge changes nothing.
    for piece in pieces:
        at = piece.start + rng.expovariate(piece.rate)
        while at < piece.end:
            yield at
            at += rng.expovariate(piece.rate)


def _bursts(burst: Burst, duration: float) -> Iterator[float]:
    for place in range(math.ceil(duration / burst.every - _ROUNDING)):
        at = place * burst.every
        for _ in range(burst.messages):
            yield at
