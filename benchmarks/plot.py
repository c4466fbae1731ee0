"""Charts as plain SVG: lines over time in panels one above the other, and bars. No dependency, no script.

Colours tell series apart together with dashes, so a chart stays legible in grey. Used by the benchmarks'
commands; knows nothing of what is measured.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.bench.chart import STRAIGHT, number_text, round_values, trace

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 960
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 62, 46
PANEL: Final = 132
GAP: Final = 40
COLOURS: Final = ("#1b5e9e", "#2a9d8f", "#d1602a", "#8a4fa3", "#6b7280")
INK, FAINT, SHADE = "#1f2933", "#dfe3e8", "#f6dcd3"
FONT: Final = "font-family='DejaVu Sans, Verdana, sans-serif'"
TIME_TICKS: Final = 10
CHARACTER: Final = 6.7
"""Width of a legend's character, about."""


class Line(Struct, frozen=True):
    """One series; a value of `None` is a gap."""

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    dashed: bool = False
    steps: bool = False
    """The value holds until the next point."""


class Panel(Struct, frozen=True):
    """Lines over one time axis, with a vertical one of their own."""

    title: str
    """With its unit."""
    lines: Sequence[Line]


class Span(Struct, frozen=True):
    """A shaded stretch of the time axis."""

    start: float
    end: float
    label: str


class Bar(Struct, frozen=True):
    """One bar of a chart."""

    label: str
    value: float
    colour: str = COLOURS[0]


def timeline(
    title: str, subtitle: str, panels: Sequence[Panel], seconds: float, spans: Sequence[Span]
) -> str:
    """Panels over one time axis from 0 to `seconds`."""
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    inner = [_heading(title, subtitle)]
    for number, panel in enumerate(panels):
        inner.append(
            _panel(panel, TOP + GAP / 2 + number * (PANEL + GAP), seconds, spans, is_first=not number)
        )
    foot = TOP + GAP / 2 + len(panels) * (PANEL + GAP) - GAP
    inner.append(_time_axis(foot, seconds))
    return _document(height + GAP // 2, inner)


def bars(title: str, subtitle: str, rows: Sequence[Bar], unit: str) -> str:
    """Horizontal bars, each with its value written at its end."""
    step, left = 30, 40 + CHARACTER * max(len(row.label) for row in rows)
    most = max(row.value for row in rows) or 1.0
    inner = [_heading(title, subtitle)]
    for number, row in enumerate(rows):
        y = TOP + 14 + number * step
        width = (WIDTH - left - 120) * row.value / most
        inner.append(_text(left - 8, y + 14, row.label, anchor="end"))
        inner.append(f"<rect x='{left:.1f}' y='{y}' width='{width:.1f}' height='20' fill='{row.colour}'/>")
        inner.append(_text(left + width + 6, y + 14, f"{number_text(row.value)} {unit}".rstrip()))
    return _document(TOP + 14 + len(rows) * step + 16, inner)


# ---------------------------------------------------------------------------------------------- pieces


def _document(height: float, inner: list[str]) -> str:
    size = f"width='{WIDTH}' height='{height:.0f}' viewBox='0 0 {WIDTH} {height:.0f}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT} font-size='12' fill='{INK}'>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *inner, "</svg>", ""])


def _heading(title: str, subtitle: str) -> str:
    return (
        f"<text x='{LEFT}' y='26' font-size='17' font-weight='bold'>{escape(title)}</text>\n"
        f"<text x='{LEFT}' y='46' fill='#52606d'>{escape(subtitle)}</text>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'>{escape(text)}</text>"


def _across(at: float, seconds: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at / seconds


def _panel(panel: Panel, top: float, seconds: float, spans: Sequence[Span], *, is_first: bool) -> str:
    values = [value for line in panel.lines for _, value in line.points if value is not None]
    marks = round_values(max(values, default=1.0))
    parts = [_spans(spans, top, seconds, is_labelled=is_first)]
    for mark in marks:
        y = top + PANEL * (1 - mark / marks[-1])
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='{FAINT}'/>")
        parts.append(_text(LEFT - 8, y + 4, number_text(mark), anchor="end"))
    parts.extend(_path(line, top, seconds, marks[-1]) for line in panel.lines)
    parts.append(_text(LEFT, top - 9, panel.title))
    parts.append(_legend(panel.lines, top - 9))
    return "\n".join(part for part in parts if part)


def _spans(spans: Sequence[Span], top: float, seconds: float, *, is_labelled: bool) -> str:
    parts = []
    for span in spans:
        start, end = _across(max(0.0, span.start), seconds), _across(min(span.end, seconds), seconds)
        box = f"x='{start:.1f}' y='{top:.1f}' width='{end - start:.1f}' height='{PANEL}'"
        parts.append(f"<rect {box} fill='{SHADE}'/>")
        if is_labelled and span.label:
            parts.append(_text(start + 5, top + 14, span.label, colour="#9a3b1a"))
    return "\n".join(parts)


def _path(line: Line, top: float, seconds: float, most: float) -> str:
    places = (
        (_across(at, seconds), None if value is None else top + PANEL * (1 - value / most))
        for at, value in line.points
    )
    path = trace(places, "H{x:.1f}V{y:.1f}" if line.steps else STRAIGHT)
    dash = " stroke-dasharray='5 3'" if line.dashed else ""
    return f"<path d='{path}' fill='none' stroke='{line.colour}' stroke-width='1.6'{dash}/>"


def _legend(lines: Sequence[Line], y: float) -> str:
    """From the right edge leftwards, so that titles and legends share one row."""
    parts = []
    x = float(WIDTH - RIGHT)
    for line in reversed(lines):
        x -= CHARACTER * len(line.label)
        parts.append(_text(x, y, line.label))
        dash = " stroke-dasharray='5 3'" if line.dashed else ""
        stroke = f"stroke='{line.colour}' stroke-width='2.4'{dash}"
        parts.append(f"<path d='M{x - 28:.1f} {y - 4:.1f}h22' {stroke}/>")
        x -= 44
    return "\n".join(parts)


def _time_axis(y: float, seconds: float) -> str:
    parts = [f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='{INK}'/>"]
    marks = [mark for mark in round_values(seconds, TIME_TICKS) if mark <= seconds + 1e-9]
    for mark in marks:
        x = _across(mark, seconds)
        parts.append(f"<path d='M{x:.1f} {y:.1f}v5' stroke='{INK}'/>")
        parts.append(_text(x, y + 19, number_text(mark), anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, y + 38, "virtual seconds", anchor="middle"))
    return "\n".join(parts)
