"""Where the upstream queues silently: how much of what is out only waits there.

By Little's law, of a limit L whose attempts take r times as long as one would take alone, L·(1 - 1/r) only
wait. A few of them keep the upstream busy, more make everyone's round trip longer and nothing faster: up to
√L the limit may grow, above 2·√L it shrinks by one a round trip (TCP Vegas does the like).

What an attempt would take alone is a mean and no minimum, which noise would drag down, with half of its mean
deviation for good measure: over the first attempts, and every half minute over some at half the limit, once
the upstream's queue has drained. Batches of other sizes take other times, so each power of two has a measure
of its own. Used by `limit.AdaptiveLimit` only, where the setting `limit.latency_trim` asks for it.
"""

from __future__ import annotations

import math
from typing import Final, Literal

Advice = Literal["grow", "hold", "shrink"]

PROBE_SECONDS: Final = 30.0
"""Between two measurements at half the limit."""
FIRST_PROBE_SECONDS: Final = 2.0
PROBE_SHARE: Final = 0.5
PROBE_SAMPLES: Final = 32
"""Attempts that make a measurement."""
FIRST_SAMPLES: Final = 8
"""Those that make the first one."""
SMOOTHING: Final = 1 / 16
"""Weight of one attempt, in the ratio and in a measure that is renewed."""


class Measure:
    """What attempts of one size take alone."""

    __slots__ = ("deviation", "mean", "samples")

    def __init__(self) -> None:
        self.mean = self.deviation = 0.0
        self.samples = 0

    def learn(self, seconds: float) -> None:
        """One attempt took so long; the first ones count alike, later ones renew the measure."""
        self.samples += 1
        weight = max(SMOOTHING, 1.0 / self.samples)
        self.deviation += weight * (abs(seconds - self.mean) * (self.samples > 1) - self.deviation)
        self.mean += weight * (seconds - self.mean)

    @property
    def seconds(self) -> float:
        """So long an attempt may take without a word of waiting."""
        return self.mean + self.deviation / 2.0


class LatencyTrim:
    """What the round trips of a limit's attempts say about it."""

    __slots__ = ("_alone", "_next_probe_at", "_probed", "_probes_from", "_ratio")

    def __init__(self) -> None:
        self._alone: dict[int, Measure] = {}
        """By the size of the batch: the bits of its number of messages."""
        self._ratio = 1.0
        self._next_probe_at = float("inf")
        self._probes_from: float | None = None
        """While measuring: what started from this instant on finds a drained queue."""
        self._probed = 0

    @property
    def share(self) -> float:
        """Of the limit that holds now: half of it while the upstream's queue is drained and measured."""
        return 1.0 if self._probes_from is None else PROBE_SHARE

    def observe(
        self, limit: float, messages: int, started_at: float, now: float, *, was_reached: bool
    ) -> Advice:
        """One attempt succeeded; what that means for the limit."""
        seconds = now - started_at
        alone = self._alone.setdefault(messages.bit_length(), Measure())
        if alone.samples < FIRST_SAMPLES:
            alone.learn(seconds)
            self._next_probe_at = min(self._next_probe_at, now + FIRST_PROBE_SECONDS)
            return "grow"
        if self._probes_from is not None:
            self._probe(alone, seconds, started_at, now)
            return "hold"
        if not was_reached:
            return "hold"
        if now >= self._next_probe_at:
            self._probes_from, self._probed = now + seconds, 0
            return "hold"
        self._ratio += SMOOTHING * (seconds / max(alone.seconds, 1e-9) - self._ratio)
        waiting = limit * (1.0 - 1.0 / max(1.0, self._ratio))
        enough = math.sqrt(limit)
        return "grow" if waiting <= enough else "hold" if waiting <= 2.0 * enough else "shrink"

    def _probe(self, alone: Measure, seconds: float, started_at: float, now: float) -> None:
        assert self._probes_from is not None, "nothing is being measured"
        if started_at < self._probes_from:
            return
        alone.learn(seconds)
        self._probed += 1
        if self._probed == PROBE_SAMPLES:
            self._probes_from = None
            self._ratio = 1.0
            self._next_probe_at = now + PROBE_SECONDS
