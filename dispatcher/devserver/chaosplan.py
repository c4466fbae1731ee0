"""Plans for the chaos proxy: what can go wrong with a connection, how often, and the dice. Pure.

The plain-TCP sister of `faults`, and read like it. An *exchange* is one turn of the client's bytes and the
turn of the upstream's bytes that answers it: over HTTP/1.1 without pipelining, a request and its reply. Each
connection rolls its own dice, made from the seed and the connection's number, one throw an exchange: the
same seed gives the n-th connection the same faults on every machine. Read by `chaos` and by tests.
"""

from __future__ import annotations

import bisect
import enum
import math
import shlex
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotations of its structs
from itertools import accumulate
from random import Random
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from dispatcher.devserver.latency import Latency, parse_duration
from dispatcher.errors import ConfigError

Side = Literal["request", "reply"]


class ChaosKind(enum.StrEnum):
    """What goes wrong with one exchange (`REFUSE`: with a whole connection)."""

    NONE = "none"
    REFUSE = "refuse"
    STALL_REQUEST = "stall_request"
    STALL_REPLY = "stall_reply"
    HANG_REQUEST = "hang_request"
    HANG_REPLY = "hang_reply"
    RESET_REQUEST = "reset_request"
    RESET_REPLY = "reset_reply"
    HALF_CLOSE_REQUEST = "half_close_request"
    HALF_CLOSE_REPLY = "half_close_reply"
    DRIP_REQUEST = "drip_request"
    DRIP_REPLY = "drip_reply"
    TRUNCATE = "truncate"
    REUSE_RESET = "reuse_reset"
    REUSE_RESET_AFTER = "reuse_reset_after"


class ChaosRow(Struct, frozen=True):
    """One row of `CHAOS`."""

    side: Side
    """The direction that is struck."""
    meaning: str
    needs_reuse: bool = False
    """It strikes the second and later requests of a connection only."""


CHAOS: Final[Mapping[ChaosKind, ChaosRow]] = {
    ChaosKind.REFUSE: ChaosRow("request", "the connection is reset as soon as it is accepted"),
    ChaosKind.STALL_REQUEST: ChaosRow("request", "silence for `stall_for` amid the request, then the rest"),
    ChaosKind.STALL_REPLY: ChaosRow("reply", "silence for `stall_for` amid the reply, then the rest"),
    ChaosKind.HANG_REQUEST: ChaosRow("request", "silence amid the request until the client goes"),
    ChaosKind.HANG_REPLY: ChaosRow("reply", "silence amid the reply until the client goes"),
    ChaosKind.RESET_REQUEST: ChaosRow("request", "both connections are reset amid the request"),
    ChaosKind.RESET_REPLY: ChaosRow("reply", "both connections are reset amid the reply"),
    ChaosKind.HALF_CLOSE_REQUEST: ChaosRow("request", "the upstream sees the end amid the request"),
    ChaosKind.HALF_CLOSE_REPLY: ChaosRow("reply", "the client sees the end amid the reply, and may go on"),
    ChaosKind.DRIP_REQUEST: ChaosRow("request", "the request arrives in pieces over `drip_over`"),
    ChaosKind.DRIP_REPLY: ChaosRow("reply", "the reply arrives in pieces over `drip_over`"),
    ChaosKind.TRUNCATE: ChaosRow("reply", "a part of the reply, then both connections are closed"),
    ChaosKind.REUSE_RESET: ChaosRow(
        "request", "a kept-alive connection is reset at its next request, which is not forwarded", True
    ),
    ChaosKind.REUSE_RESET_AFTER: ChaosRow(
        "reply", "a kept-alive connection's next request is forwarded, and a reset is its reply", True
    ),
}
"""Every kind, the direction it strikes and what it does."""

PAIRS: Final = ("stall", "hang", "reset", "half_close", "drip")
"""Short names: half of the rate for the request, half for the reply."""
DURATIONS: Final = {"stall_for": 0.5, "drip_over": 0.3}
NAMES: Final = ("latency", *PAIRS, *(kind.value for kind in CHAOS), *DURATIONS)
NO_LATENCY: Final = Latency("constant", 0.0)
RATES_MAX: Final = 1.0 + 1e-9


class Exchange(Struct, frozen=True):
    """What happens to one exchange."""

    number: int
    """Its place on the connection, from 1."""
    kind: ChaosKind
    share: float
    """Where in the struck direction's first bytes, from 0 to below 1."""
    delays: Mapping[Side, float]
    """Seconds before the first byte of each direction is passed on."""


class ChaosPlan(Struct, frozen=True):
    """How often what goes wrong. The plan without arguments is a faultless proxy.

    `latency=exponential(2ms) stall=0.01 reset=0.02 truncate=0.005 reuse_reset=0.01 stall_for=300ms`
    """

    rates: Mapping[ChaosKind, float] = MappingProxyType({})
    refuse: float = 0.0
    latency: Latency = NO_LATENCY
    durations: Mapping[str, float] = MappingProxyType(DURATIONS)

    @classmethod
    def parse(cls, text: str) -> ChaosPlan:
        """A plan from its text; raises `ConfigError` that says what is allowed."""
        settings = _settings(text)
        rates: dict[ChaosKind, float] = {}
        for name, value in settings.items():
            if name == "latency" or name in DURATIONS:
                continue
            kinds = _kinds(name)
            for kind in kinds:
                rates[kind] = rates.get(kind, 0.0) + _rate(name, value) / len(kinds)
        refuse = rates.pop(ChaosKind.REFUSE, 0.0)
        if math.fsum(rates.values()) > RATES_MAX:
            raise ConfigError("chaos", round(math.fsum(rates.values()), 6), "the rates must sum to ≤ 1")
        times = {n: parse_duration(f"chaos.{n}", settings[n]) for n in DURATIONS if n in settings}
        latency = NO_LATENCY
        if "latency" in settings:
            latency = Latency.parse("chaos.latency", settings["latency"])
        return cls(rates, refuse, latency, {**DURATIONS, **times})

    def dice(self, seed: int, connection: int) -> Dice:
        """The dice of a connection, the first being number 1."""
        return Dice(self, seed, connection)


def _settings(text: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError("chaos", text, f"write NAME=VALUE: {error}") from None
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError("chaos", word, "write NAME=VALUE, several separated by blanks")
        if name not in NAMES:
            raise ConfigError("chaos", name, f"the names are {', '.join(NAMES)}")
        settings[name] = value
    return settings


def _kinds(name: str) -> tuple[ChaosKind, ...]:
    if name in PAIRS:
        return ChaosKind(f"{name}_request"), ChaosKind(f"{name}_reply")
    return (ChaosKind(name),)


def _rate(name: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(f"chaos.{name}", value, "write a rate between 0 and 1")
    return rate


class Dice:
    """What one connection draws. Every throw takes the same numbers, so no kind shifts the others."""

    def __init__(self, plan: ChaosPlan, seed: int, connection: int) -> None:
        self._random = Random(f"{seed}:{connection}")
        self._latency = plan.latency
        self._kinds = tuple(plan.rates)
        self._bounds = tuple(accumulate(plan.rates.values()))
        self._number = 0
        self.is_refused = self._random.random() < plan.refuse

    def throw(self) -> Exchange:
        """The next exchange."""
        self._number += 1
        place = bisect.bisect_right(self._bounds, self._random.random())
        share = self._random.random()
        delays: dict[Side, float] = {
            "request": self._latency.sample(self._random),
            "reply": self._latency.sample(self._random),
        }
        kind = self._kinds[place] if place < len(self._kinds) else ChaosKind.NONE
        if self._number == 1 and kind is not ChaosKind.NONE and CHAOS[kind].needs_reuse:
            kind = ChaosKind.NONE
        return Exchange(self._number, kind, share, delays)
