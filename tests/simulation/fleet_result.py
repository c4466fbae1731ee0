"""What a run of a fleet showed: counts, quantiles and a time series, all in virtual time.

Filled by `fleet`, read by the tests, the command and the plots. Of messages, only the delivered ones are
timed, from admission to the receipt; of requests, only those the service accepted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.core.batch import Batch, Entry
    from dispatcher.core.engine import Engine
    from tests.simulation.fleet_scenario import Scenario

SAMPLE_SECONDS: Final = 0.1
STEADY_ROUND_TRIPS: Final = 3
"""A rate counts as reached once the mean over so many round trips has it."""
FIRST, STEP = 0.0313, 0.0937
"""Round trips at which such means begin: of no common measure, so that none begins with a wave of replies."""
REFUSALS: Final = frozenset({"429", "503"})


class Sample(Struct, frozen=True, gc=False):
    """The state at one instant, and what happened since the sample before."""

    at: float
    limits: tuple[int, ...]
    """Of each dispatcher that has started."""
    in_flight: int
    """Requests, of all dispatchers; so is all that follows."""
    held: int
    closed: int
    """Dispatchers whose gate is not open."""
    gate: str
    """State of the first dispatcher's gate."""
    delivered: tuple[int, ...]
    """Messages since the start, of each dispatcher."""
    rate: float
    """Messages delivered a second."""
    round_trip: float | None
    """Median of the accepted requests' seconds; `None` without any."""
    latency: float | None
    """Median of the delivered messages' seconds."""

    @property
    def limit(self) -> int:
        """Requests that may be in flight, of all dispatchers."""
        return sum(self.limits)


class Result:
    """The record of one run."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.seed = seed
        self.samples: list[Sample] = []
        self.sent_at = array("d")
        """When each request began."""
        self.answers: Counter[str] = Counter()
        """Requests that ended, by status or kind of failure."""
        self.failed: Counter[str] = Counter()
        """Messages that were not delivered, by their error's name."""
        self.held = 0
        """Messages held at the end."""
        self.drained: list[float | None] = [None] * len(scenario.outages)
        """For each outage, when the last message settled that was admitted before its end."""
        self._settled_at = array("d")
        self._latencies = array("d")
        self._answered_at = array("d")
        self._round_trips = array("d")

    # -------------------------------------------------------------------------------------- recording

    def on_answer(self, batch: Batch, word: str, now: float) -> None:
        """One request ended."""
        self.answers[word] += 1
        if word == "200":
            self._answered_at.append(now)
            self._round_trips.append(now - batch.started_at)

    def on_settled(self, entries: list[Entry], now: float) -> int:
        """Messages settled; how many of them are delivered."""
        seconds = [now - entry.admitted_at for entry in entries if type(entry.outcome) is Receipt]
        if len(seconds) < len(entries):
            failures = (entry.outcome for entry in entries if type(entry.outcome) is not Receipt)
            self.failed.update(type(outcome).__name__ for outcome in failures)
        self._latencies.extend(seconds)
        self._settled_at.extend([now] * len(seconds))
        for number, outage in enumerate(self.scenario.outages):
            if any(entry.admitted_at < outage.end for entry in entries):
                self.drained[number] = now
        return len(seconds)

    def sample(self, engines: list[Engine], delivered: tuple[int, ...], now: float) -> None:
        """Take down the state of every dispatcher that has started."""
        since = self.samples[-1].at if self.samples else 0.0
        states = [engine.gate.state for engine in engines]
        latencies = self._latencies[bisect_left(self._settled_at, since) :]
        round_trips = self._round_trips[bisect_left(self._answered_at, since) :]
        self.samples.append(
            Sample(
                at=now,
                limits=tuple(engine.limit.value for engine in engines),
                in_flight=sum(len(engine.out) for engine in engines),
                held=sum(engine.room.held_messages for engine in engines),
                closed=sum(state != "open" for state in states),
                gate=states[0] if states else "open",
                delivered=delivered,
                rate=len(latencies) / SAMPLE_SECONDS,
                round_trip=median(round_trips) if round_trips else None,
                latency=median(latencies) if latencies else None,
            )
        )

    def end(self, engines: list[Engine]) -> None:
        """The run is over: what is held, and which outages were never drained."""
        self.held = sum(engine.room.held_messages for engine in engines)
        left = min((entry.admitted_at for engine in engines for entry in engine.held()), default=float("inf"))
        for number, outage in enumerate(self.scenario.outages):
            if left < outage.end:
                self.drained[number] = float("inf")

    # ---------------------------------------------------------------------------------------- figures

    @property
    def delivered(self) -> int:
        """Messages delivered."""
        return len(self._latencies)

    def rate(self, start: float = 0.0, end: float | None = None) -> float:
        """Messages delivered a second, from `start` to `end`."""
        end = self.scenario.seconds if end is None else end
        return (self._before(end) - self._before(start)) / (end - start)

    def _before(self, instant: float) -> int:
        return bisect_left(self._settled_at, instant)

    def latency(self, share: float, start: float = 0.0, end: float = float("inf")) -> float:
        """Quantile of the seconds from admission to the receipt, of messages that settled in that span."""
        return quantile(self._latencies[self._before(start) : self._before(end)], share)

    def round_trip(self, share: float, start: float = 0.0, end: float = float("inf")) -> float:
        """Quantile of the accepted requests' seconds, of those answered in that span."""
        places = [bisect_left(self._answered_at, instant) for instant in (start, end)]
        return quantile(self._round_trips[slice(*places)], share)

    @property
    def requests(self) -> int:
        """Requests that ended."""
        return self.answers.total()

    @property
    def refused(self) -> float:
        """Share of the ended requests that the service refused with 429 or 503."""
        return sum(self.answers[word] for word in REFUSALS) / max(1, self.requests)

    def attempts(self, start: float, end: float) -> int:
        """Requests begun in that span."""
        return bisect_left(self.sent_at, end) - bisect_left(self.sent_at, start)

    def round_trips_to(self, rate: float, start: float = 0.0) -> float:
        """Round trips from `start` until the mean over the last few delivers that many messages a second.

        `inf` if that never comes. The first of those few begins at `start` at the earliest.
        """
        unit = self.scenario.round_trip
        span = STEADY_ROUND_TRIPS * unit
        at = start + FIRST * unit
        while at + span <= self.scenario.seconds:
            if self._before(at + span) - self._before(at) >= rate * span:
                return (at + span - start) / unit
            at += STEP * unit
        return float("inf")

    def deliveries(self, start: float = 0.0) -> list[int]:
        """Messages delivered by each dispatcher from the first sample at or after `start` on."""
        first = next((each for each in self.samples if each.at >= start), None)
        last = self.samples[-1].delivered
        before = (0,) * len(last) if first is None or start == 0.0 else first.delivered
        before += (0,) * (len(last) - len(before))
        return [after - already for already, after in zip(before, last, strict=True)]

    def series(self) -> list[tuple[object, ...]]:
        """Every sample as a tuple: what must not differ between two runs of one seed."""
        return [tuple(getattr(each, name) for name in Sample.__struct_fields__) for each in self.samples]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below or at which this share of them lies (nearest rank); NaN without any."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
