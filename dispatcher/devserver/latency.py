"""Durations and the distributions of latency a fault plan may name. Pure; read by `faults` only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from random import Random

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)?")
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_CALL: Final = re.compile(r"([a-z]+)\(([^()]*)\)")
_SHAPES: Final = {"constant": 1, "uniform": 2, "exponential": 1, "lognormal": 2}
ALLOWED: Final = (
    "write 30ms, constant(30ms), uniform(10ms,50ms), exponential(MEAN) or lognormal(MEDIAN,SIGMA), "
    "durations as 20us, 30ms, 1.5s, 2m, 1h"
)


def parse_duration(field: str, value: object) -> float:
    """Seconds; a bare number is seconds. Raises `ConfigError` naming `field`."""
    match = _DURATION.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise ConfigError(field, value, "write a duration such as 30ms, 1.5s, 2m or 1h")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long the server takes to answer, in seconds.

    `constant(low)`; `uniform` between `low` and `high`; `exponential` with mean `low`;
    `lognormal` with median `low` and sigma `high` (of the logarithm, without a unit).
    """

    shape: str
    low: float
    high: float = 0.0

    def sample(self, rng: Random) -> float:
        """One latency in seconds."""
        if self.shape == "constant":
            return self.low
        if self.shape == "uniform":
            return rng.uniform(self.low, self.high)
        if self.shape == "exponential":
            return rng.expovariate(1.0 / self.low) if self.low else 0.0
        return self.low * rng.lognormvariate(0.0, self.high)

    @classmethod
    def parse(cls, field: str, value: object) -> Latency:
        """From text such as `lognormal(30ms,0.5)`; raises `ConfigError` that lists the forms."""
        text = str(value).replace(" ", "")
        call = _CALL.fullmatch(text)
        if call is None:
            call = _CALL.fullmatch(f"constant({text})")
        if call is None or _SHAPES.get(call[1]) != len(words := call[2].split(",")):
            raise ConfigError(field, value, ALLOWED)
        try:
            low = parse_duration(field, words[0])
            high = 0.0 if len(words) == 1 else _second(field, call[1], words[1])
        except (ConfigError, ValueError):
            raise ConfigError(field, value, ALLOWED) from None
        if call[1] == "uniform" and high < low:
            raise ConfigError(field, value, "uniform(LOW,HIGH) needs LOW ≤ HIGH")
        return cls(call[1], low, high)


def _second(field: str, shape: str, word: str) -> float:
    return float(word) if shape == "lognormal" else parse_duration(field, word)
