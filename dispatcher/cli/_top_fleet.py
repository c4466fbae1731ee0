"""How `dispatcher top` draws several listeners: a row each, their sum, and what is unusual about any of them.

Used by `top`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from dispatcher.cli._top_layout import TONES, Frame, Section, finished, line, stacked, told
from dispatcher.cli._top_view import every_note, failure, link_of
from dispatcher.cli._top_words import NONE, Note, rate, span, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.cli._top_feed import Listener
    from dispatcher.cli._top_report import Report

HEADS: Final = ("listener", "state", "in/s", "out/s", "failed", "held", "oldest", "in flight", "p99", "dead")


class Row(NamedTuple):
    """One listener, or all."""

    cells: list[str]
    tone: str


def draw_fleet(listeners: Sequence[Listener], frame: Frame) -> list[Text]:
    """Everything about several listeners."""
    reports = [one.report for one in listeners if one.report is not None]
    live = sum(one.is_live for one in listeners)
    shown = f"{len(reports)} of {len(listeners)} heard" if frame.height is None else f"{live} live"
    top = [line(("dispatcher", "bold"), f"  {len(listeners)} listeners, {shown}"), Text()]
    top += table([*(row_of(one) for one in listeners), totals(reports)], frame)
    # What is printed once is told of those that were not heard on standard error.
    shown_of = [one for one in listeners if frame.height is not None or one.report is not None]
    top += [Text(), *told(_notes(shown_of), frame)]
    rest = None if frame.height is None else max(0, frame.height - len(top) - 1)
    return finished([*top, *stacked([_failures(listeners)], frame, frame.width, rest)], frame)


def row_of(listener: Listener) -> Row:
    """A listener's."""
    report = listener.report
    if report is None:
        return Row([listener.url, link_of(listener)[0], *[NONE] * (len(HEADS) - 2)], "bad")
    text, tone = state_of(report.phase, report.gate.state)
    if listener.trouble:
        text, tone = "Lost", "bad"
    return Row([listener.url, text, *_figures([report])], tone)


def totals(reports: Sequence[Report]) -> Row:
    """The sum; ages and latencies are the worst."""
    return Row(["all", "", *(_figures(reports) if reports else [NONE] * (len(HEADS) - 2))], "")


def _figures(reports: Sequence[Report]) -> list[str]:
    held = [one.held for one in reports]
    latest = [one.latency.message.p99 for one in reports if one.latency.message.p99 is not None]
    boxes = [one.outbox.dead for one in reports if one.outbox is not None]
    flight, limit = (sum(getattr(one.in_flight, name) for one in reports) for name in ("requests", "limit"))
    return [
        rate(sum(one.rates.taken for one in reports)),
        rate(sum(one.rates.delivered for one in reports)),
        f"{sum(one.messages.failed for one in reports):,}",
        f"{sum(one.messages for one in held):,}",
        span(max(one.oldest_age for one in held)),
        f"{flight:,}/{limit:,}",
        span(max(latest)) if latest else NONE,
        f"{sum(boxes):,}" if boxes else NONE,
    ]


def table(rows: Sequence[Row], frame: Frame) -> list[Text]:
    """Rows in columns; where there is little room the addresses are cut."""
    grid = [list(HEADS), *(row.cells for row in rows)]
    widths = [max(cell_len(cells[place]) for cells in grid) for place in range(len(HEADS))]
    if frame.height is not None:
        others = sum(widths[1:]) + 2 * (len(HEADS) - 1)
        widths[0] = max(8, min(widths[0], frame.width - others))
    lines = []
    for place, cells in enumerate(grid):
        tone = "" if place == 0 else TONES.get(rows[place - 1].tone, "")
        made = line(_fitted(cells[0], widths[0]), "  ", (_fitted(cells[1], widths[1]), tone))
        for cell, width in zip(cells[2:], widths[2:], strict=True):
            made.append("  " + " " * (width - cell_len(cell)) + cell)
        made.stylize("bold" if place in (0, len(rows)) else "")
        lines.append(made)
    return lines


def _fitted(text: str, width: int) -> str:
    made = Text(text)
    made.truncate(width, overflow="ellipsis", pad=True)
    return made.plain


def _notes(listeners: Sequence[Listener]) -> list[Note]:
    found = []
    for one in listeners:
        where = "" if one.trouble else f"{one.url}: "
        found += [Note(note.tone, f"{where}{note.head}", note.text) for note in every_note(one)]
    return found


def _failures(listeners: Sequence[Listener]) -> Section:
    """Of all, the latest first."""
    now = time.time()
    pairs = [
        (failed, one)
        for one in listeners
        if one.report is not None
        for failed in one.report.intake.recent_failures
    ]
    pairs.sort(key=lambda pair: -pair[0].at)
    rows = [
        line((f"{one.place.authority}  ", "dim")).append_text(failure(failed, now)) for failed, one in pairs
    ]
    return Section("Recent failures", rows or [line(("no message has failed", "dim"))])
