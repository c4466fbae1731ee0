"""Finds the highest rate that keeps a latency: bracketing, bisection, and a rule against noise.

A rate holds if two of three windows hold; a window holds if its quantile is within the bound and nothing
failed or stayed unfinished. What bisection ends at has been chosen among many, so it is measured once more,
and goes down until it holds again. Knows no clock and no socket: `measure` is an argument.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WINDOWS: Final = 3
NEEDED: Final = 2
TRIALS_MAX: Final = 60
RATE_LEAST: Final = 1.0
RATE_MOST: Final = 10_000_000.0
SAMPLES_BEYOND: Final = 10
"""How many messages a window has beyond the quantile, where it can be made long enough."""
STRETCH_MAX: Final = 10.0


class Goal(Struct, frozen=True):
    """A quantile of the total latency, and its bound in seconds."""

    share: float
    seconds: float

    @property
    def name(self) -> str:
        """Such as p99.9, or max."""
        return "max" if self.share >= 1.0 else f"p{self.share * 100:g}"

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.name} ≤ {self.seconds * 1000:g} ms"

    def window_seconds(self, rate: float, base: float) -> float:
        """How long a window at this rate is: long enough for the quantile to be one, within reason."""
        if self.share >= 1.0:
            return base
        wanted = SAMPLES_BEYOND / (1.0 - self.share) / rate
        return min(max(base, wanted), base * STRETCH_MAX)


class Window(Struct, frozen=True):
    """What one window measured."""

    value: float
    """The quantile, in seconds."""
    messages: int
    achieved: float
    """Delivered messages a second."""
    failed: int
    """Failed or unfinished."""
    late_share: float = 0.0
    """Of the messages, late for the generator's own reasons."""

    def holds(self, goal: Goal) -> bool:
        """Within the bound, and nothing failed."""
        return not self.failed and self.messages > 0 and self.value <= goal.seconds


class Trial(Struct, frozen=True):
    """One rate and its windows."""

    rate: float
    windows: tuple[Window, ...]
    holds: bool


class Finding(Struct, frozen=True):
    """How a search ended."""

    goal: Goal
    rate: float | None
    """The highest rate that held; `None` if none did."""
    fails_at: float | None
    """The lowest rate above it that did not; `None` if none was found."""
    trials: tuple[Trial, ...]
    is_complete: bool
    """It was not broken off, and the rate is confirmed."""


class Search:
    """Which rate to try next.

    Args:
        start: The first one.
        precision: How far apart, relatively, what holds and what does not may stay.
        most: Never tried above.
    """

    def __init__(self, start: float, precision: float, most: float = RATE_MOST) -> None:
        self._start = min(start, most)
        self._precision = precision
        self._most = most
        self._is_held = False
        """The lower bound has held; else it is what to fall back to."""
        self.low: float | None = None
        self.high: float | None = None
        self.is_confirmed = False

    @property
    def rate(self) -> float | None:
        """The highest that has held."""
        return self.low if self._is_held else None

    def next_rate(self) -> float | None:
        """`None` once there is nothing more to learn."""
        low, high = self.low, self.high
        if self.is_confirmed or (low is None and high is not None and high <= RATE_LEAST):
            return None
        if low is None:
            return self._start if high is None else max(high / 2, RATE_LEAST)
        if high is None:
            return low if low >= self._most else min(low * 2, self._most)
        return math.sqrt(low * high) if self._is_wide(low, high) else low

    def tell(self, rate: float, *, holds: bool) -> None:
        """What came of it."""
        if rate == self.low:
            self._confirm(rate, holds=holds)
        elif holds:
            self.low, self._is_held = rate, True
        else:
            self.high = rate

    def _confirm(self, rate: float, *, holds: bool) -> None:
        self._is_held = self.is_confirmed = holds
        if not holds:
            self.high = rate
            self.low = rate / (1.0 + self._precision) if rate > RATE_LEAST else None

    def _is_wide(self, low: float, high: float) -> bool:
        return high / low > (1.0 + self._precision) * (1.0 + 1e-9)


async def find(
    goal: Goal,
    search: Search,
    measure: Callable[[float], Awaitable[Window | None]],
    on_trial: Callable[[Trial], None],
) -> Finding:
    """Search to the end, or until `measure` gives `None` because it is to stop."""
    trials: list[Trial] = []
    while (rate := search.next_rate()) is not None and len(trials) < TRIALS_MAX:
        trial = await _try(goal, rate, measure)
        if trial is None:
            break
        trials.append(trial)
        on_trial(trial)
        search.tell(rate, holds=trial.holds)
    return Finding(goal, search.rate, search.high, tuple(trials), search.is_confirmed)


async def _try(goal: Goal, rate: float, measure: Callable[[float], Awaitable[Window | None]]) -> Trial | None:
    """Measure windows until enough of them agree."""
    windows: list[Window] = []
    held = 0
    while held < NEEDED and len(windows) - held <= WINDOWS - NEEDED:
        window = await measure(rate)
        if window is None:
            return None
        windows.append(window)
        held += window.holds(goal)
    return Trial(rate, tuple(windows), held >= NEEDED)
