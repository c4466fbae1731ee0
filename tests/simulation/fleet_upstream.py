"""The service under load in virtual time: the way there and back, its hidden capacity, its outages.

Shares its model of capacity with the local upstream (`dispatcher.devserver.capacity`). Knows nothing of the
engines; called by `fleet` with instants that never go back.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import Failure, Reply
from dispatcher.devserver.capacity import Load

if TYPE_CHECKING:
    from random import Random

    from dispatcher.core.batch import Batch
    from tests.simulation.fleet_scenario import Network, Outage, Scenario, Upstream

UNIX: Final = 1_790_000_000.0
"""What the service's clock says at the start."""
REFUSED_SECONDS: Final = 0.001
TIMED_OUT: Final = Failure("timeout", "no answer in time", "unknown")
CUT: Final = Failure("disconnect", "connection reset", "unknown")
NOT_CONNECTED: Final = Failure("connect", "connection refused", "not_sent")
UNREACHED: Final = Failure("connect", "no connection in time", "not_sent")


@cache
def accepted(items: int) -> Reply:
    """The reply that takes everything; its ids need not differ, since nothing here looks at them."""
    return Reply(200, b"[" + b",".join([b'{"messageId":"m0"}'] * items) + b"]")


class Service:
    """Answers requests as its capacity allows."""

    def __init__(self, phases: list[Upstream], rng: Random) -> None:
        self._phases = sorted(phases, key=lambda phase: phase.start)
        self._rng = rng
        self._load = Load()
        self._now = phases[0]
        self._constant = self._now.bounds()
        self._turn()

    def respond(self, items: int, now: float) -> tuple[Reply, float]:
        """The answer to one request that arrives now, and the seconds until it leaves."""
        if now >= self._next_at:
            self._turn(now)
        phase, bounds = self._now, self._constant
        if phase.sigma:
            bounds = phase.bounds(math.exp(self._rng.gauss(0.0, phase.sigma)))
        seconds = self._load.begin(bounds, items, now)
        return (_refusal(phase, now), 0.0) if seconds is None else (accepted(items), seconds)

    def _turn(self, now: float = 0.0) -> None:
        """Another phase begins."""
        self._now = [phase for phase in self._phases if phase.start <= now][-1]
        self._constant = self._now.bounds()
        self._next_at = min((each.start for each in self._phases if each.start > now), default=math.inf)


def _refusal(phase: Upstream, now: float) -> Reply:
    unix = UNIX + now
    if phase.refusal == "503":
        return Reply(503, b"{}", {}, unix)
    if phase.refusal == "429 reset":
        return Reply(429, b"{}", {"burst-ratelimit-reset": str(math.ceil(unix + phase.reset))}, unix)
    return Reply(429, b"{}", {}, unix)


class Ways:
    """How long a request or a reply is on its way, and which outage catches it."""

    def __init__(self, network: Network, outages: list[Outage], rng: Random) -> None:
        self._half = network.round_trip / 2
        self._sigma = network.sigma
        self._outages = sorted(outages, key=lambda outage: outage.start)
        self._rng = rng

    def seconds(self) -> float:
        """One way."""
        return self._half * math.exp(self._rng.gauss(0.0, self._sigma)) if self._sigma else self._half

    def outage_between(self, start: float, end: float) -> Outage | None:
        """The first outage that touches this span."""
        for outage in self._outages:
            if outage.start <= end and start < outage.end:
                return outage
        return None


def loss(outage: Outage, batch: Batch, now: float, connect_timeout: float) -> tuple[Failure, float]:
    """What becomes of a request that an outage catches, and when; it is on its way, or leaves, now."""
    timeout_at = batch.started_at + batch.timeout
    is_sent = outage.start > batch.started_at
    if outage.kind == "black_hole" or (outage.kind == "unreachable" and is_sent):
        return TIMED_OUT, timeout_at
    if is_sent:
        return CUT, min(max(now, outage.start), timeout_at)
    if outage.kind == "unreachable":
        return UNREACHED, now + min(connect_timeout, batch.timeout)
    return NOT_CONNECTED, now + REFUSED_SECONDS


def starts(scenario: Scenario, rng: Random) -> list[float]:
    """When each dispatcher starts."""
    return [rng.uniform(0.0, scenario.stagger) for _ in range(scenario.dispatchers)] + scenario.late
