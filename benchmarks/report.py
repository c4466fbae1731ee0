"""Figures from rounds: medians with their spread, ratios; as a table, as Markdown, as a chart.

Knows nothing of how they were measured. `report_files` writes the JSON.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from benchmarks.plot import COLOURS, Bar, bars
from benchmarks.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks.rows import Configuration, Round
    from benchmarks.rows_rounds import Contender

IDLE_MIN: Final = 0.10
"""An upstream with less idle time may be what is measured."""
CEILING, BY_HAND, ONE_BY_ONE = "ceiling", "sdk_batch", "sdk_single"
HEAD: Final = (
    *("row", "loop", "msg/s", "(min–max)", "wall µs", "CPU µs", "(min–max)"),
    *("of ceiling", "by CPU", "× SDK batched", "× SDK single", "upstream idle", "peak MB"),
)
TEXT_COLUMNS: Final = 2
OWN, PEER, BOUND = COLOURS[0], COLOURS[2], COLOURS[4]


class Spread(Struct, frozen=True):
    """A median of rounds, with the least and the most."""

    median: float
    min: float
    max: float


class Figures(Struct, frozen=True):
    """One row under one loop, over all counted rounds."""

    row: str
    label: str
    loop: str
    messages_per_second: Spread
    wall_us: Spread
    """A message."""
    cpu_us: Spread
    """A message, user and system time of the client."""
    upstream_idle: float
    """Share of the time, median."""
    peak_mb: float
    """The highest of all rounds."""
    of_ceiling: float | None
    """Ratio of the medians of messages a second; `None` without a ceiling in the run."""
    of_ceiling_by_cpu: float | None
    """The same by messages in a second of CPU time, which a machine that is busy otherwise spoils less."""
    times_sdk_batched: float | None
    times_sdk_single: float | None


def figures(rounds: Mapping[Contender, Sequence[Round]]) -> list[Figures]:
    """What the rounds of one configuration come to, in the order they were played."""
    rates = {one: median(took.messages / took.seconds for took in counted) for one, counted in rounds.items()}
    costs = {
        one: median(took.cpu_seconds / took.messages for took in counted) for one, counted in rounds.items()
    }
    return [_figures(one, counted, rates, costs) for one, counted in rounds.items()]


def _beside(one: Contender, row: str, values: Mapping[Contender, float]) -> float | None:
    """How many times another row's value this one's is, under the same loop or, without one, the first."""
    others = [value for other, value in values.items() if other.row == row]
    same = [value for other, value in values.items() if other.row == row and other.loop == one.loop]
    return values[one] / (same or others)[0] if others else None


def _figures(
    one: Contender,
    rounds: Sequence[Round],
    rates: Mapping[Contender, float],
    costs: Mapping[Contender, float],
) -> Figures:
    cost = _beside(one, CEILING, costs)
    return Figures(
        row=one.row,
        label=ROWS[one.row].label,
        loop=one.loop,
        messages_per_second=_spread(rounds, lambda took: took.messages / took.seconds),
        wall_us=_spread(rounds, lambda took: took.seconds / took.messages * 1e6),
        cpu_us=_spread(rounds, lambda took: took.cpu_seconds / took.messages * 1e6),
        upstream_idle=median(took.upstream_idle for took in rounds),
        peak_mb=max(took.peak_bytes for took in rounds) / 1e6,
        of_ceiling=_beside(one, CEILING, rates),
        of_ceiling_by_cpu=1.0 / cost if cost else None,
        times_sdk_batched=_beside(one, BY_HAND, rates),
        times_sdk_single=_beside(one, ONE_BY_ONE, rates),
    )


def _spread(rounds: Iterable[Round], value: Callable[[Round], float]) -> Spread:
    values = [value(took) for took in rounds]
    return Spread(median(values), min(values), max(values))


def warnings(rows: Iterable[Figures]) -> list[str]:
    """What makes a figure doubtful."""
    return [
        f"{one.row} ({one.loop}): the upstream was idle only {one.upstream_idle:.0%} of the time; "
        "this row may show the upstream's limit, not its own"
        for one in rows
        if one.upstream_idle < IDLE_MIN
    ]


# ------------------------------------------------------------------------------------------------ tables


def cells(one: Figures) -> tuple[str, ...]:
    """One line of the table."""
    rate, wall, cpu = one.messages_per_second, one.wall_us, one.cpu_us
    return (
        one.label,
        "–" if one.loop == "none" else one.loop,
        f"{rate.median:,.0f}",
        f"{rate.min:,.0f}–{rate.max:,.0f}",
        _micro(wall.median),
        _micro(cpu.median),
        f"{_micro(cpu.min)}–{_micro(cpu.max)}",
        _times(one.of_ceiling),
        _times(one.of_ceiling_by_cpu),
        _times(one.times_sdk_batched),
        _times(one.times_sdk_single),
        f"{one.upstream_idle:.0%}",
        f"{one.peak_mb:.0f}",
    )


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _micro(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def text_table(rows: Iterable[Figures]) -> str:
    """For a terminal."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < TEXT_COLUMNS else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(rows: Iterable[Figures]) -> str:
    """For a README."""
    rule = "|---" * TEXT_COLUMNS + "|---:" * (len(HEAD) - TEXT_COLUMNS) + "|"
    lines = [f"| {' | '.join(line)} |" for line in (HEAD, *map(cells, rows))]
    return "\n".join([lines[0], rule, *lines[1:]])


def short_table(rows: Iterable[Figures], loop: str) -> str:
    """What matters most, under one loop, in Markdown."""
    head = (
        "",
        "messages/s",
        "(min–max)",
        "CPU µs a message",
        "of the ceiling",
        "× SDK batched by hand",
        "× SDK",
    )
    lines = [
        (
            one.label,
            f"{one.messages_per_second.median:,.0f}",
            f"{one.messages_per_second.min:,.0f}–{one.messages_per_second.max:,.0f}",
            _micro(one.cpu_us.median),
            _times(one.of_ceiling),
            _times(one.times_sdk_batched),
            _times(one.times_sdk_single),
        )
        for one in rows
        if one.loop in {loop, "none"}
    ]
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    lines.insert(0, head)
    written = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([written[0], rule, *written[1:]])


def matrix(measured: Sequence[tuple[Configuration, Sequence[Figures]]], loop: str) -> str:
    """Messages a second of each row in each configuration, under one loop, in Markdown."""
    names = list(
        dict.fromkeys(one.label for _, rows in measured for one in rows if one.loop in {loop, "none"})
    )
    head = f"| | {' | '.join(str(configuration) for configuration, _ in measured)} |"
    lines = [head, "|---" + "|---:" * len(measured) + "|"]
    for name in names:
        found = [
            [one for one in rows if one.label == name and one.loop in {loop, "none"}] for _, rows in measured
        ]
        values = [f"{some[0].messages_per_second.median:,.0f}" if some else "–" for some in found]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- chart


def chart(configuration: Configuration, rows: Sequence[Figures], machine: str) -> str:
    """Messages a second of each row under the faster loop, as SVG bars."""
    loop = "uvloop" if any(one.loop == "uvloop" for one in rows) else "asyncio"
    shown = [one for one in rows if one.loop in {loop, "none"}]
    shown.sort(key=lambda one: -one.messages_per_second.median)
    return bars(
        "Messages a second, one client core",
        f"{configuration}, {loop}. {machine}",
        [Bar(one.label, round(one.messages_per_second.median), _colour(one.row)) for one in shown],
        "",
    )


def _colour(row: str) -> str:
    if row == CEILING:
        return BOUND
    return OWN if ROWS[row].place.startswith("rows_dispatcher") else PEER
