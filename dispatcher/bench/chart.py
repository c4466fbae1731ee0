"""Charts as SVG to stand inside a page: lines over an axis, each axis linear, logarithmic, or of shares.

Colours are the page's (`var(--c0)` …), so one chart serves light and dark; dashes tell series apart too.
Every stretch of a chart has its values as a tooltip, without a script. Pure; knows nothing of what is drawn.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WIDTH: Final = 920
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 64, 30, 34, 42
TICKS: Final = 5
CHARACTER: Final = 6.6
"""Width of a legend's character, about."""
NINES: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
TONES: Final = 6
DECADES_MAX: Final = 5
FINE_DECADES: Final = 3.0
STRAIGHT: Final = "L{x:.1f} {y:.1f}"


class Line(Struct, frozen=True):
    """One series; a value of `None` is a gap."""

    label: str
    points: Sequence[tuple[float, float | None]]
    tone: int = 0
    is_dashed: bool = False
    is_stepped: bool = False
    """A value holds from the point before to its own."""
    is_dotted: bool = False
    """Points without a line."""


class Scale(Struct, frozen=True):
    """An axis: where values lie on it, from 0 to 1, and what is written at it."""

    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]
    label: str = ""


def linear(most: float, label: str = "", number: int = TICKS) -> Scale:
    """From 0 to a round value at or above `most`."""
    marks = round_values(most, number)
    return Scale(lambda value: value / marks[-1], [(mark, number_text(mark)) for mark in marks], label)


def span(most: float, label: str = "", number: int = 10) -> Scale:
    """From 0 to exactly `most`: for time."""
    marks = [mark for mark in round_values(most, number) if mark <= most * (1 + 1e-9)]
    return Scale(lambda value: value / (most or 1.0), [(mark, number_text(mark)) for mark in marks], label)


def logarithmic(values: Iterable[float], text: Callable[[float], str], label: str = "") -> Scale:
    """From a value of 1, 2 or 5 times a power of ten to another; over many powers only those are marked."""
    positive = [value for value in values if value > 0] or [1.0]
    most = max(positive)
    least = max(min(positive), most / 10.0**DECADES_MAX)
    powers = range(math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 2)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    low = max(mark for mark in marks if mark <= least * (1 + 1e-9))
    high = min(mark for mark in marks if mark >= most * (1 - 1e-9) and mark > low)
    span_of = math.log10(high / low)
    shown = marks if span_of <= FINE_DECADES else marks[::3]
    ticks = [(mark, text(mark)) for mark in shown if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]

    def place(value: float) -> float:
        return 0.0 if value <= low else min(1.0, math.log10(value / low) / span_of)

    return Scale(place, ticks, label)


def percentiles(most: float, label: str = "") -> Scale:
    """Shares, the nines spread out: 90 %, 99 % and 99.9 % are equally far apart."""
    end = -math.log10(1.0 - min(most, NINES[-1]))

    def place(share: float) -> float:
        return min(1.0, -math.log10(max(1.0 - share, 1e-12)) / (end or 1.0))

    return Scale(
        place,
        [(share, f"{share * 100:.6g} %") for share in NINES if place(share) <= 1 and share <= most],
        label,
    )


def chart(title: str, lines: Sequence[Line], across: Scale, up: Scale) -> str:
    """One chart."""
    parts = [f"<text class='t' x='0' y='16'>{escape(title)}</text>", _legend(lines), _axes(across, up)]
    parts += [_line(one, across, up) for one in lines]
    parts.append(_tooltips(lines, across, up))
    height = TOP + HEIGHT + BOTTOM
    head = f"<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{escape(title, quote=True)}'>"
    return "\n".join([head, *[part for part in parts if part], "</svg>"])


def round_values(most: float, number: int = TICKS) -> list[float]:
    """Round values from 0 to at least `most`, about that number of them."""
    if most <= 0.0:
        return [0.0, 1.0]
    raw = most / number
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def number_text(value: float) -> str:
    """A value as an axis shows it."""
    if value >= 1e6:
        return f"{value / 1e6:,.6g} M"
    return f"{value:,.3f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------------------------------------- pieces


def _x(scale: Scale, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * scale.place(value)


def _y(scale: Scale, value: float) -> float:
    return TOP + HEIGHT * (1.0 - scale.place(value))


def _axes(across: Scale, up: Scale) -> str:
    parts = []
    for value, text in up.ticks:
        y = _y(up, value)
        parts.append(f"<path class='g' d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>")
        parts.append(
            f"<text class='n' x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{escape(text)}</text>"
        )
    foot = TOP + HEIGHT
    for value, text in across.ticks:
        x = _x(across, value)
        parts.append(f"<path class='a' d='M{x:.1f} {foot}v5'/>")
        parts.append(
            f"<text class='n' x='{x:.1f}' y='{foot + 18}' text-anchor='middle'>{escape(text)}</text>"
        )
    parts.append(f"<path class='a' d='M{LEFT} {foot}H{WIDTH - RIGHT}'/>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = escape(across.label)
    parts.append(f"<text class='n' x='{middle}' y='{foot + 36}' text-anchor='middle'>{label}</text>")
    return "\n".join(parts)


def _line(line: Line, across: Scale, up: Scale) -> str:
    tone = line.tone % TONES
    if line.is_dotted:
        dots = [
            f"<circle class='d{tone}' cx='{_x(across, at):.1f}' cy='{_y(up, value):.1f}' r='4'/>"
            for at, value in line.points
            if value is not None
        ]
        return "".join(dots)
    dash = " stroke-dasharray='6 3'" if line.is_dashed else ""
    return f"<path class='l s{tone}' d='{_path(line, across, up)}'{dash}/>"


def _path(line: Line, across: Scale, up: Scale) -> str:
    places = ((_x(across, at), None if value is None else _y(up, value)) for at, value in line.points)
    return trace(places, "V{y:.1f}H{x:.1f}" if line.is_stepped else STRAIGHT)


def trace(points: Iterable[tuple[float, float | None]], stroke: str) -> str:
    """An SVG path through points; a `y` of `None` is a gap, `stroke` how it goes on from one to the next."""
    steps: list[str] = []
    is_open = False
    for x, y in points:
        if y is not None:
            steps.append((stroke if is_open else "M{x:.1f} {y:.1f}").format(x=x, y=y))
        is_open = y is not None
    return "".join(steps)


def _legend(lines: Sequence[Line]) -> str:
    """From the right edge leftwards, beside the title."""
    parts = []
    x = float(WIDTH - RIGHT)
    for line in reversed(lines):
        x -= CHARACTER * len(line.label)
        tone = line.tone % TONES
        parts.append(f"<text class='n' x='{x:.1f}' y='16'>{escape(line.label)}</text>")
        if line.is_dotted:
            parts.append(f"<circle class='d{tone}' cx='{x - 14:.1f}' cy='12' r='4'/>")
        else:
            dash = " stroke-dasharray='6 3'" if line.is_dashed else ""
            parts.append(f"<path class='l s{tone}' d='M{x - 28:.1f} 12h22'{dash}/>")
        x -= 44
    return "\n".join(parts)


def _tooltips(lines: Sequence[Line], across: Scale, up: Scale) -> str:
    """An unseen stripe for each place across, whose title has the values there."""
    places: dict[float, list[str]] = {}
    for line in lines:
        for at, value in line.points:
            if value is not None:
                places.setdefault(at, []).append(f"{line.label} {value:,.4g}")
    edges = sorted(places)
    parts = []
    for number, at in enumerate(edges):
        left = _x(across, edges[number - 1] if number else at)
        right = _x(across, edges[number + 1] if number + 1 < len(edges) else at)
        here = _x(across, at)
        start, end = (left + here) / 2, (here + right) / 2
        text = escape("\n".join(places[at]))
        box = f"x='{start:.1f}' y='{TOP}' width='{max(1.0, end - start):.1f}' height='{HEIGHT}'"
        parts.append(f"<rect class='h' {box}><title>{text}</title></rect>")
    return "".join(parts)
