"""Figures of the sidecar's benchmark from its rounds: medians with their spread, ratios, targets.

Ratios are made round by round, of what ran right after one another, and their median is taken: what slows the
machine for a while slows both sides. Knows nothing of how they were measured. Used by `sidecar` and by what
writes the READMEs.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from benchmarks.report import Spread
from benchmarks.report_files import machine, machine_words
from benchmarks.sidecar_burst import CLIENTS, LATENCY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.sidecar_burst import Burst
    from benchmarks.sidecar_load import Shot

BARE: Final = "application"
LOW_LEVEL: Final = "server"
SIDECAR: Final = "sidecar"
LINES: Final = "lines"
LABELS: Final = {
    BARE: "bare handler, `web.Application`",
    LOW_LEVEL: "bare handler, low-level `web.Server`",
    SIDECAR: "sidecar: single publishes",
    LINES: "sidecar: one request of NDJSON",
}
OF_BARE_MIN: Final = 0.75
LINES_MIN: Final = 8.0
FORMAT: Final = 1
NOT_OURS: Final = ("json", "only")


class Way(NamedTuple):
    """A row under one event loop."""

    row: str
    loop: str


class Speed(Struct, frozen=True):
    """One row under one loop, over all counted rounds."""

    row: str
    loop: str
    messages_per_second: Spread
    cpu_us: Spread
    """A message, user and system time of the server's process."""
    of_bare: Spread
    """Of the rate of the bare handler."""
    of_bare_by_cpu: Spread
    of_low_level: Spread
    of_low_level_by_cpu: Spread
    of_singles: Spread
    """Of the rate of the sidecar's single publishes."""
    p50_ms: float
    p99_ms: float
    messages_a_request: float | None
    """Upstream."""


class Bursts(Struct, frozen=True):
    """One client, with or without the sidecar."""

    client: str
    is_through_sidecar: bool
    seconds: Spread
    messages_per_second: float
    requests: float
    """Upstream, median."""
    errors: dict[str, int]
    """Of all rounds."""


class Judged(Struct, frozen=True):
    """A target."""

    what: str
    value: float
    least: float

    @property
    def holds(self) -> bool:
        """It was reached."""
        return self.value >= self.least


class Report(Struct, frozen=True):
    """Everything."""

    speed: list[Speed]
    bursts: list[Bursts]
    judged: list[Judged]
    publishes: int


def report(
    shots: Mapping[Way, Sequence[Shot]], taken: Mapping[tuple[str, bool], Sequence[Burst]], publishes: int
) -> Report:
    """What the rounds come to."""
    rows = [_speed(way, shots) for way in shots]
    some = [_bursts(client, through, rounds) for (client, through), rounds in taken.items()]
    return Report(rows, some, [one for row in rows for one in _judged(row)], publishes)


def _speed(way: Way, shots: Mapping[Way, Sequence[Shot]]) -> Speed:
    mine = shots[way]

    def beside(row: str, *, by_cpu: bool = False) -> Spread:
        value = _frugality if by_cpu else _rate
        others = shots[Way(row, way.loop)]
        return spread(value(one) / value(other) for one, other in zip(mine, others, strict=True))

    requests = sum(one.requests for one in mine)
    return Speed(
        row=way.row,
        loop=way.loop,
        messages_per_second=spread(map(_rate, mine)),
        cpu_us=spread(1e6 / _frugality(one) for one in mine),
        of_bare=beside(BARE),
        of_bare_by_cpu=beside(BARE, by_cpu=True),
        of_low_level=beside(LOW_LEVEL),
        of_low_level_by_cpu=beside(LOW_LEVEL, by_cpu=True),
        of_singles=beside(SIDECAR),
        p50_ms=median(one.p50_ms for one in mine),
        p99_ms=median(one.p99_ms for one in mine),
        messages_a_request=sum(one.messages for one in mine) / requests if requests else None,
    )


def _rate(one: Shot) -> float:
    return one.messages / one.seconds


def _frugality(one: Shot) -> float:
    """Messages in a second of CPU time."""
    return one.messages / one.cpu_seconds


def _judged(one: Speed) -> Iterable[Judged]:
    if one.row == SIDECAR:
        yield Judged(f"single publishes of the bare handler, {one.loop}", one.of_bare.median, OF_BARE_MIN)
    elif one.row == LINES:
        yield Judged(f"NDJSON of single publishes, {one.loop}", one.of_singles.median, LINES_MIN)


def _bursts(client: str, is_through: bool, rounds: Sequence[Burst]) -> Bursts:
    errors: dict[str, int] = {}
    for one in rounds:
        for name, number in one.errors.items():
            errors[name] = errors.get(name, 0) + number
    return Bursts(
        client=client,
        is_through_sidecar=is_through,
        seconds=spread(one.seconds for one in rounds),
        messages_per_second=median(one.confirmed / one.seconds for one in rounds),
        requests=median(one.requests for one in rounds),
        errors=errors,
    )


def spread(values: Iterable[float]) -> Spread:
    """Median, least and most."""
    found = list(values)
    return Spread(median(found), min(found), max(found))


# ------------------------------------------------------------------------------------------------- tables


def text(found: Report) -> str:
    """For a terminal."""
    parts = [plain(speed_rows(found.speed))] if found.speed else []
    parts += [plain(burst_rows(found))] if found.bursts else []
    parts += [
        f"{one.what}: {one.value:.2f}, wanted is at least {one.least:g}{'' if one.holds else ' — MISSED'}"
        for one in found.judged
    ]
    return "\n\n".join(parts)


def speed_rows(rows: Sequence[Speed]) -> list[tuple[str, ...]]:
    """A heading, and a line for each row."""
    head = (
        *("", "loop", "messages/s", "(min–max)", "CPU µs a message", "of the bare handler", "(min–max)"),
        *("by CPU", "of the low-level one", "by CPU", "p50 / p99 ms"),
    )
    return [head, *map(_speed_cells, rows)]


def _speed_cells(one: Speed) -> tuple[str, ...]:
    rate, latency = one.messages_per_second, f"{one.p50_ms:.1f} / {one.p99_ms:.1f}"
    return (
        LABELS[one.row],
        one.loop,
        f"{rate.median:,.0f}",
        f"{rate.min:,.0f}–{rate.max:,.0f}",
        f"{one.cpu_us.median:.1f}",
        f"{one.of_bare.median:.2f}",
        f"{one.of_bare.min:.2f}–{one.of_bare.max:.2f}",
        f"{one.of_bare_by_cpu.median:.2f}",
        f"{one.of_low_level.median:.2f}",
        f"{one.of_low_level_by_cpu.median:.2f}",
        latency if one.p50_ms else "–",
    )


def burst_rows(found: Report) -> list[tuple[str, ...]]:
    """A heading, and a line for each client."""
    head = ("", "without: s", "messages/s", "requests", "with the sidecar: s", "messages/s", "requests")
    pairs: dict[str, list[Bursts]] = {}
    for one in found.bursts:
        pairs.setdefault(one.client, []).append(one)
    lines = []
    for client, both in pairs.items():
        cells = [CLIENTS[client].label]
        for one in sorted(both, key=lambda one: one.is_through_sidecar):
            errors = f", {sum(one.errors.values())} errors" if one.errors else ""
            cells += [f"{one.seconds.median:.2f}", f"{one.messages_per_second:,.0f}{errors}"]
            cells.append(f"{one.requests:,.0f}")
        lines.append(tuple(cells))
    return [head, *lines]


def markdown(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """The same for a README; so many columns are texts."""
    head, *rest = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|---" * texts + "|---:" * (len(rows[0]) - texts) + "|", *rest])


def plain(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(cells[place]) for cells in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    )


# ------------------------------------------------------------------------------------------------- files


def document(
    found: Report,
    shots: Mapping[Way, Sequence[Shot]],
    taken: Mapping[tuple[str, bool], Sequence[Burst]],
    asked: Mapping[str, Any],
) -> bytes:
    """The whole report as JSON: figures, every round, method, machine."""
    content = {
        "format": FORMAT,
        "method": {
            **{name: value for name, value in asked.items() if name not in NOT_OURS},
            "order": "interleaved; the first round of speed is not counted",
            "cpu": "user and system time of the server's process",
            "ratios": "of each round, their median",
        },
        "machine": machine(),
        "report": found,
        "rounds": {
            "speed": [
                {"row": way.row, "loop": way.loop, "rounds": list(rounds)} for way, rounds in shots.items()
            ],
            "bursts": [
                {"client": client, "is_through_sidecar": through, "rounds": list(rounds)}
                for (client, through), rounds in taken.items()
            ],
        },
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def read(path: Path) -> tuple[str, Report]:
    """A report that was written: the machine in a few words, and the figures."""
    content = msgspec.json.decode(path.read_bytes())
    return machine_words(content["machine"]), msgspec.convert(content["report"], Report)


def readme(path: Path) -> str:
    """The table of the project's README, and the line below it."""
    words, found = read(path)
    by = {(one.row, one.loop): one for one in found.speed}
    single, bare, many = by[SIDECAR, "uvloop"], by[BARE, "uvloop"], by[LINES, "uvloop"]
    rate, ratio, cost = single.messages_per_second, single.of_bare, single.cpu_us.median
    return (
        f"{markdown(burst_rows(found))}\n\n"
        f"{found.publishes} publishes at once, an upstream of {LATENCY * 1e3:g} ms; medians. "
        f"One core of sidecar takes {rate.median:,.0f} ({rate.min:,.0f}–{rate.max:,.0f}) publishes a second "
        f"over 256 connections, {cost:.1f} µs of CPU each: {ratio.median:.2f} "
        f"({ratio.min:.2f}–{ratio.max:.2f}) of the rate of an aiohttp handler that reads the body and "
        f"answers a constant ({bare.cpu_us.median:.1f} µs); as NDJSON "
        f"{many.messages_per_second.median:,.0f} messages a second, {many.cpu_us.median:.1f} µs each. "
        f"uvloop; {words}."
    )


def details(path: Path) -> str:
    """The table of the benchmarks' own README."""
    words, found = read(path)
    return f"{markdown(speed_rows(found.speed), texts=2)}\n\n{words}."
