"""Fault plans, for the local upstream, the simulation in virtual time and the tests alike.

Pure: no clock, no I/O. A `FaultPlan` says how often what goes wrong; an `Injector`, made from a plan and a
seed, says it request by request. The same seed and the same sequence of calls give the same faults on
every machine; `now` only chooses the phase and dates the reset headers. `KINDS` is the table of what can be
injected, and on which side of acceptance each kind strikes.
"""

from __future__ import annotations

import bisect
import math
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from random import Random
from typing import Any, Final

from dispatcher.devserver.capacity import Capacity
from dispatcher.devserver.kinds import (
    DURATIONS,
    ITEM_RATES,
    KINDS,
    MARKERS,
    NAMES,
    REQUEST_RATES,
    Fault,
    FaultKind,
)
from dispatcher.devserver.latency import Latency, parse_duration
from dispatcher.errors import ConfigError

__all__ = ["KINDS", "NAMES", "Fault", "FaultKind", "FaultPlan", "Injector", "Phase", "Rates"]

NO_LATENCY: Final = Latency("constant", 0.0)
NO_LIMITS: Final = Capacity()


@dataclass(frozen=True, slots=True)
class Rates:
    """What goes wrong while it holds: rates per request or item, the latency, the durations, the limits."""

    requests: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, float] = field(default_factory=dict)
    durations: Mapping[str, float] = field(default_factory=lambda: dict(DURATIONS))
    latency: Latency = NO_LATENCY
    capacity: Capacity = NO_LIMITS
    markers: Mapping[str, str] = field(default_factory=dict)

    def changed(self, settings: Mapping[str, Any], where: str) -> Rates:
        """With `settings`; rates start from zero, everything else stays unless given."""
        rates = {name: _rate(where, name, settings[name]) for name in REQUEST_RATES if name in settings}
        if math.fsum(rates.values()) > 1.0 + 1e-9:
            raise ConfigError(
                where, round(math.fsum(rates.values()), 6), "the rates per request must sum to ≤ 1"
            )
        times = {n: parse_duration(f"{where}.{n}", settings[n]) for n in DURATIONS if n in settings}
        return replace(
            self,
            requests=rates,
            items={name: _rate(where, name, settings[name]) for name in ITEM_RATES if name in settings},
            durations={**self.durations, **times},
            latency=Latency.parse(f"{where}.latency", settings["latency"])
            if "latency" in settings
            else self.latency,
            capacity=self.capacity.changed(settings, where),
            markers={**self.markers, **{n: _marker(where, n, settings[n]) for n in MARKERS if n in settings}},
        )


def _rate(where: str, name: str, value: object) -> float:
    try:
        rate = float(str(value))
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(f"{where}.{name}", value, "write a rate between 0 and 1")
    return rate


def _marker(where: str, name: str, value: object) -> str:
    # Only what JSON writes as itself can be found in a body before it is parsed.
    if (
        isinstance(value, str)
        and value.isascii()
        and value.isprintable()
        and value
        and not set(value) & set('"\\/')
    ):
        return value
    raise ConfigError(
        f"{where}.{name}", value, "write a marker of printable ASCII without quotes and slashes"
    )


@dataclass(frozen=True, slots=True)
class Phase:
    """Rates that hold from `start` to `end`, in seconds since the injector started."""

    start: float
    end: float
    rates: Rates


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """How often what goes wrong. The plan without arguments is the faultless one.

    Inline: `latency=lognormal(30ms,0.5) throttle_burst=0.02 error_entry=0.002 poison_400=POISON`;
    what only load shows: `capacity=20 workers=16 work=30ms work_per_item=500us`.
    TOML: the same names, and `[[phase]]` tables with `start` and `end` (seconds) besides. Inside a phase
    only its own rates apply; latency, durations, limits and markers stay unless it gives its own
    (`capacity="none"` lifts one).
    """

    base: Rates = Rates()
    phases: tuple[Phase, ...] = ()

    @classmethod
    def parse(cls, text: str) -> FaultPlan:
        """A plan from its inline form; raises `ConfigError` that says what is allowed."""
        settings: dict[str, Any] = {}
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(
                "faults", text, f"write NAME=VALUE, values in quotes as in a shell: {error}"
            ) from None
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                raise ConfigError("faults", word, "write NAME=VALUE, several separated by blanks")
            settings[name] = value
        return cls.from_mapping(settings)

    @classmethod
    def parse_toml(cls, text: str) -> FaultPlan:
        """A plan from TOML; raises `ConfigError` that says what is allowed."""
        try:
            return cls.from_mapping(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError("faults", "TOML", f"it cannot be read: {error}") from None

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> FaultPlan:
        """A plan from names and values, `phase` being a list of mappings (as in a scenario file)."""
        tables = settings.get("phase", [])
        _check_names("faults", settings, (*NAMES, "phase"))
        base = Rates().changed(settings, "faults")
        if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
            raise ConfigError("faults.phase", tables, "write [[phase]] tables with start and end")
        return cls(base, tuple(_phase(base, table, f"faults.phase[{i}]") for i, table in enumerate(tables)))

    def rates(self, elapsed: float) -> Rates:
        """What holds `elapsed` seconds after the start: the first phase that covers it, or the base."""
        for phase in self.phases:
            if phase.start <= elapsed < phase.end:
                return phase.rates
        return self.base

    def injector(self, seed: int = 0, start: float = 0.0) -> Injector:
        """Faults by this plan, exactly the same for the same `seed`; phases count from `start`."""
        return Injector(self, seed, start)


def _check_names(where: str, settings: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for name in settings:
        if name not in allowed:
            raise ConfigError(where, name, f"the names are {', '.join(allowed)}")


def _phase(base: Rates, table: Mapping[str, Any], where: str) -> Phase:
    _check_names(where, table, (*NAMES, "start", "end"))
    start = parse_duration(f"{where}.start", table.get("start", 0))
    end = parse_duration(f"{where}.end", table["end"]) if "end" in table else math.inf
    if end <= start:
        raise ConfigError(f"{where}.end", end, f"it must be later than start = {start}")
    return Phase(start, end, base.changed(table, where))


class Injector:
    """Draws one `Fault` a request. Kinds, latencies and items have their own streams of numbers."""

    def __init__(self, plan: FaultPlan, seed: int, start: float) -> None:
        self.plan = plan
        self.seed = seed
        self._start = start
        self._kinds, self._latencies, self._items = (
            Random(f"{seed}:{s}") for s in ("kind", "latency", "item")
        )
        self._drawn: Rates | None = None
        self._names: list[FaultKind] = []
        self._bounds: list[float] = []

    def next(self, now: float, items: int) -> Fault:
        """The fault of the next request, which carries `items` messages (0: not a batch)."""
        rates = self.plan.rates(now - self._start)
        kind = self._pick(rates)
        latency = rates.latency.sample(self._latencies)
        if kind in (FaultKind.HANG_BEFORE, FaultKind.HANG_AFTER):
            latency = math.inf
        return Fault(
            kind,
            latency,
            _headers(kind, rates.durations, now),
            self._positions(rates.items.get("error_entry", 0.0), items),
            self._positions(rates.items.get("error_unqueued", 0.0), items),
            self._positions(rates.items.get("error_endpoint", 0.0), items),
            rates.durations["drip_over"] if kind is FaultKind.DRIP else 0.0,
        )

    def markers(self, now: float) -> Mapping[str, str]:
        """The poison markers in force, by kind."""
        return self.plan.rates(now - self._start).markers

    def capacity(self, now: float) -> Capacity:
        """How much the service works on at once."""
        return self.plan.rates(now - self._start).capacity

    def _pick(self, rates: Rates) -> FaultKind:
        if rates is not self._drawn:
            self._drawn = rates
            self._names = [FaultKind(name) for name in rates.requests]
            self._bounds = list(accumulate(rates.requests.values()))
        place = bisect.bisect_right(self._bounds, self._kinds.random())
        return self._names[place] if place < len(self._names) else FaultKind.NONE

    def _positions(self, rate: float, items: int) -> tuple[int, ...]:
        """Each of `items` with probability `rate`, by the gaps between them: one draw a hit, not an item."""
        if rate <= 0.0 or not items:
            return ()
        if rate >= 1.0:
            return tuple(range(items))
        hits: list[int] = []
        place, scale = -1, math.log1p(-rate)
        while True:
            gap = math.log1p(-self._items.random()) / scale
            if place + 1 + gap >= items:
                return tuple(hits)
            place += 1 + int(gap)
            hits.append(place)


def _headers(kind: FaultKind, durations: Mapping[str, float], now: float) -> tuple[tuple[str, str], ...]:
    if kind is FaultKind.THROTTLE_BURST:
        return _rate_limit("Burst-RateLimit", 100, now + durations["burst_reset"])
    if kind is FaultKind.THROTTLE_DAILY:
        return _rate_limit("RateLimit", 1000, now + durations["daily_reset"])
    if kind is FaultKind.UNAVAILABLE and durations["retry_after"] > 0:
        return (("Retry-After", str(math.ceil(durations["retry_after"]))),)
    return ()


def _rate_limit(prefix: str, limit: int, reset_at: float) -> tuple[tuple[str, str], ...]:
    return (
        (f"{prefix}-Limit", str(limit)),
        (f"{prefix}-Remaining", "0"),
        (f"{prefix}-Reset", str(math.ceil(reset_at))),
    )
