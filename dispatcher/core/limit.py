"""How many batches may be out at once.

A `Limit` is an algorithm apart from its enforcement: the engine asks `value` and reports each attempt's end
as a `Signal`. Nothing here starts, stops or delays anything.

`AdaptiveLimit` finds the upstream's capacity by what the upstream refuses, as TCP finds the path's. It begins
with four batches and doubles them each round trip. At a refusal it shrinks by a factor, once for all that was
out together, and remembers the peak; from there it goes half of the way back to the peak each round trip, and
beyond it slowly at first, then faster (binary increase: Xu, Harfoush and Rhee, "BIC-TCP", 2004). It grows
only on evidence: the limit was reached while something ready waited. For some seconds after a refusal starts
are spread over a round trip: what starts together arrives together, and is refused together.

Measured on the model, a service that works on 20 at once: 0.92 of the best fixed limit's throughput (plain
AIMD, by one a round trip: 0.7), 0.7 % refused; without spreading 0.74, and of two dispatchers on a small
service one could starve. Why not by round trips: the size of batches moves them, and a limiter that reads
that as congestion needs seconds to find its way after an idle time (7–14 s of p99, against 0.4 s). Against an
upstream that queues silently instead of refusing there is `trim`, as an option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from dispatcher.core.trim import LatencyTrim

if TYPE_CHECKING:
    from dispatcher.core.trim import Advice

Signal = Literal["ok", "overload", "timeout", "neutral"]
"""ok: the service took it; overload: 429 without a word about time, 503, 504 or a failed connection; neutral
says nothing of load."""

MINIMUM: Final = 1.0
INITIAL: Final = 4.0
SHARE_KEPT: Final[dict[Signal, float]] = {"overload": 0.8, "timeout": 0.5}
"""What a cut leaves of the limit."""
STEP_MIN: Final = 0.1
"""Batches by which it grows in a round trip at least, next to the last peak."""
SPACED_SECONDS: Final = 10.0
"""After a refusal in which starts are spread."""
STEP_SHARE: Final = 0.25
"""Of itself, by which it grows in a round trip at most beyond the last peak (and never less than by one)."""


class Limit(Protocol):
    """Anything that says how many batches may be in flight."""

    @property
    def value(self) -> int:
        """Batches that may be in flight now, at least 1."""
        ...

    def observe(
        self, signal: Signal, *, started_at: float, now: float, messages: int, was_reached: bool
    ) -> bool:
        """One attempt, with so many messages, ended; true if the limit was cut for it.

        `was_reached`: a ready batch waited for a slot meanwhile.
        """
        ...

    def on_reopened(self, *, was_refused: bool) -> None:
        """The gate opens after a pause: the upstream refused us (or else it was away)."""
        ...

    def on_stalled(self) -> None:
        """Everything out is unanswered for long, and something ready waits."""
        ...

    def spacing(self, now: float) -> float:
        """Round trips between two starts; 0: any number may start at once."""
        ...

    def set_maximum(self, maximum: int) -> None:
        """Another `max_in_flight` from now on; what is out stays out."""
        ...


class LimitPolicy(Protocol):
    """What the configuration says of it; `config.LimitSettings` fits."""

    @property
    def mode(self) -> str: ...

    @property
    def max_in_flight(self) -> int: ...

    @property
    def latency_trim(self) -> bool: ...


def made(policy: LimitPolicy) -> Limit:
    """The limit that the configuration asks for."""
    if policy.mode == "fixed":
        return FixedLimit(policy.max_in_flight)
    return AdaptiveLimit(policy.max_in_flight, LatencyTrim() if policy.latency_trim else None)


class FixedLimit:
    """The same number whatever happens."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    def observe(
        self, signal: Signal, *, started_at: float, now: float, messages: int, was_reached: bool
    ) -> bool:
        """A fixed limit learns nothing."""
        return False

    def on_reopened(self, *, was_refused: bool) -> None:
        """It is as large as before."""

    def on_stalled(self) -> None:
        """At most so many are out."""

    def spacing(self, now: float) -> float:
        """Whatever may be out may start at once."""
        return 0.0

    def set_maximum(self, maximum: int) -> None:
        """The number itself."""
        self.value = maximum


class AdaptiveLimit:
    """Binary increase and multiplicative decrease on what the upstream refuses.

    Args:
        maximum: Batches in flight at most.
        trim: Shrinks it also where round trips grow; off by default.
    """

    __slots__ = ("_cut_at", "_has_succeeded", "_limit", "_maximum", "_peak", "_refused_at", "_trim", "value")

    def __init__(self, maximum: int, trim: LatencyTrim | None = None) -> None:
        self._maximum = float(maximum)
        self._peak = 0.0
        """What was refused last; 0: nothing yet."""
        self._limit = 0.0
        self._cut_at = self._refused_at = float("-inf")
        self._has_succeeded = False
        """Since the last cut: without it, another one tells nothing new of where the peak is."""
        self._trim = trim
        self.value = 1
        self._set(INITIAL)

    def observe(
        self, signal: Signal, *, started_at: float, now: float, messages: int, was_reached: bool
    ) -> bool:
        """Grow on a success if more was wanted, shrink on a refusal of what started after the last cut."""
        if signal == "ok":
            self._has_succeeded = True
            self._on_success(messages, started_at, now, was_reached=was_reached)
        if signal in ("ok", "neutral") or started_at <= self._cut_at:
            return False
        self._cut_at = now
        if signal == "overload":
            self._refused_at = now
        kept = SHARE_KEPT[signal]
        if self._has_succeeded:
            self._has_succeeded = False
            is_at_peak = self._limit >= self._peak
            # Refused below the last one: others want their share, and the next one is lower still.
            self._peak = self.value - 0.5 if is_at_peak else self._limit * (1.0 + kept) / 2.0
        self._set(self._limit * kept)
        return True

    def on_reopened(self, *, was_refused: bool) -> None:
        """Begin anew from a few: to half of what drew the refusal; if nobody was there, as far as it goes."""
        self._peak = max(MINIMUM, self._limit / 2.0) if was_refused else 0.0
        self._set(min(self._limit, INITIAL))

    def on_stalled(self) -> None:
        """Everything out may be lost: one more, to find out."""
        self._set(self._limit + 1.0)

    def spacing(self, now: float) -> float:
        """While the upstream refuses some, starts are spread over a round trip: a wave is refused as one."""
        return 1.0 / self._limit if now - self._refused_at < SPACED_SECONDS else 0.0

    def set_maximum(self, maximum: int) -> None:
        """Never above it; to a higher one it grows as ever."""
        self._maximum = float(maximum)
        self._set(self._limit)

    def _on_success(self, messages: int, started_at: float, now: float, *, was_reached: bool) -> None:
        advice: Advice = "grow"
        if self._trim is not None:
            advice = self._trim.observe(self._limit, messages, started_at, now, was_reached=was_reached)
            if advice != "grow":
                self._peak = self._limit
        if advice == "shrink":
            self._set(self._limit - 1.0 / self._limit)
        elif advice == "grow" and was_reached:
            self._set(self._limit + self._step / self._limit)
        elif self._trim is not None:
            self._set(self._limit)  # a measurement begins or ends

    @property
    def _step(self) -> float:
        """Growth a round trip: half-way to the last peak, and beyond it ever faster away from it."""
        if self._peak == 0.0:
            return self._limit
        way = self._peak - self._limit
        if way < 0.0:
            return min(max(1.0, self._limit * STEP_SHARE), max(STEP_MIN, -way))
        return min(self._limit, max(STEP_MIN, way / 2.0))

    def _set(self, limit: float) -> None:
        self._limit = min(self._maximum, max(MINIMUM, limit))
        share = 1.0 if self._trim is None else self._trim.share
        self.value = max(1, int(self._limit * share))
