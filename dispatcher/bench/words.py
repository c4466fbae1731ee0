"""Reads what a load is asked for in words: durations, sizes, steps, bursts, goals. Pure.

Every function raises `ConfigError`, which names the option and says what would be right.
"""

from __future__ import annotations

import math
import re
from typing import Final

from dispatcher.bench.find import Goal
from dispatcher.bench.messages import DESTINATION
from dispatcher.bench.schedule import Burst
from dispatcher.errors import ConfigError

_UNITS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3_600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s|m|h|)")
_SIZES: Final = re.compile(r"(\d+)(?:-(\d+))?")
_QUANTILE: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?)|max")
_BURSTS: Final = re.compile(r"(\d+)@(.+)")
RATE_MAX: Final = 10_000_000.0
DURATION_MAX: Final = 7 * 86_400.0
BODY_MAX: Final = 64 * 1_048_576
DESTINATIONS_MAX: Final = 1_000_000


def duration(option: str, text: str) -> float:
    """`30s`, `250ms`, `5m`, `1h`, or seconds."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= DURATION_MAX:
        raise ConfigError(option, text, "allowed is a time above 0 such as 30s, 250ms or 5m, a week at most")
    return seconds


def rate(option: str, text: str) -> float:
    """Messages a second."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= RATE_MAX:
        raise ConfigError(option, text, f"allowed are messages a second, above 0, up to {RATE_MAX:,.0f}")
    return value


def rates(option: str, text: str) -> list[float]:
    """Rates separated by commas."""
    return [rate(option, part) for part in text.split(",")]


def burst(option: str, text: str) -> Burst:
    """`N@SECONDS`."""
    found = _BURSTS.fullmatch(text.strip())
    if found is None or not 0 < int(found[1]) <= RATE_MAX:
        raise ConfigError(option, text, "allowed is MESSAGES@TIME, such as 500@2s")
    return Burst(int(found[1]), duration(option, found[2]))


def sizes(option: str, text: str) -> tuple[int, int]:
    """`200`, or `100-2000`: bytes."""
    found = _SIZES.fullmatch(text.strip().replace(",", ""))
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not 0 <= least <= most <= BODY_MAX:
        allowed = f"allowed are bytes such as 200, or a range such as 100-2000, up to {BODY_MAX:,}"
        raise ConfigError(option, text, allowed)
    return least, most


def destinations(option: str, text: str | None) -> tuple[str, ...]:
    """A number of invented ones, or real ones separated by commas."""
    if text is None:
        return (DESTINATION,)
    if not text.isdecimal():
        return tuple(part.strip() for part in text.split(",") if part.strip()) or (DESTINATION,)
    if not 0 < int(text) <= DESTINATIONS_MAX:
        raise ConfigError(option, text, f"allowed is a number up to {DESTINATIONS_MAX:,}, or URLs")
    return tuple(f"{DESTINATION}/{number}" for number in range(int(text)))


def are_own(text: str | None) -> bool:
    """Whether destinations were named, and not just counted."""
    return text is not None and not text.isdecimal()


def goal(option: str, text: str) -> Goal:
    """`p99=50ms`, `p99.9=1s`, `max=2s`."""
    name, separator, bound = text.partition("=")
    found = _QUANTILE.fullmatch(name.strip())
    if not separator or found is None or (found[1] is not None and float(found[1]) == 0):
        raise ConfigError(option, text, "allowed is QUANTILE=TIME, such as p99=50ms, p99.9=1s or max=2s")
    return Goal(1.0 if found[1] is None else round(float(found[1]) / 100.0, 9), duration(option, bound))
