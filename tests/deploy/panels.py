"""Draws the dashboard's panels from a real Prometheus's answers, as one picture.

    python -m tests.deploy.panels --out DIR

Plays the same story as the test of the alerts (some 35 seconds, ten sidecars in trouble and mended), asks
Prometheus for every expression of the dashboard as Grafana does (`query_range`, its variables filled in), and
writes `panels.html`, and `panels.png` where a Chromium is installed. Names panels without data: there is a
wrong expression, or nothing happened.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import promql_parser

from dispatcher.bench.chart import Line, trace
from tests.deploy.panels_wanted import THRESHOLD
from tests.deploy.prometheus import Prometheus, running_prometheus
from tests.deploy.promtool import PROMETHEUS, charts, dashboard, filled
from tests.deploy.stage import sidecars
from tests.deploy.watch import CALM_SECONDS, Watch, play
from tests.sidecar.browser import BROWSER, browser

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP_SECONDS: Final = 0.4
RATE_INTERVAL: Final = "2s"
"""Grafana makes it four scrapes at least."""
WIDTH, HEIGHT, LEFT, TOP, FOOT = 560, 150, 80, 8, 18
COLOURS: Final = ("#1b5e9e", "#2a9d8f", "#d1602a", "#8a4fa3", "#6b7280", "#a67c00", "#b03060", "#3c7d22")
LINES_MAX: Final = 10
PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SUFFIX: Final = {"s": " s", "reqps": " req/s", "mps": " msg/s", "ops": " ops/s", "bytes": "B"}
STYLE: Final = """
body { margin: 0; padding: 18px 22px; width: 1800px; background: #f2f4f6; color: #1f2933;
  font: 13px/1.35 'DejaVu Sans', sans-serif; }
h1 { font-size: 20px; margin: 0 0 2px; } p { margin: 0 0 8px; color: #5b6875; }
h2 { font-size: 15px; margin: 16px 0 6px; border-bottom: 1px solid #c9d1d9; }
.row { display: grid; grid-template-columns: repeat(24, 1fr); gap: 8px; }
.panel { background: #fff; border: 1px solid #dfe3e8; border-radius: 4px; padding: 6px 8px; min-width: 0; }
.panel b { font-size: 13px; } .empty { color: #b3261e; padding: 40px 0; text-align: center; }
.figure { font-size: 30px; font-weight: 600; padding: 6px 0; }
.bad { color: #b3261e; } .good { color: #22702f; }
.legend { font-size: 11px; color: #3e4c59; line-height: 1.5; } .legend i { display: inline-block; width: 14px;
  height: 3px; margin: 0 4px 3px 8px; } svg { display: block; width: 100%; height: auto; }
svg text { font: 11px 'DejaVu Sans', sans-serif; fill: #5b6875; }
"""

Series = tuple[str, list[tuple[float, float | None]]]
"""A legend and its points."""


async def collect(folder: Path) -> tuple[dict[str, Any], dict[int, list[list[Series]]], float, str]:
    """Play the story; the dashboard, each panel's answers by query, the seconds it took, what fired."""
    document = dashboard()
    async with running_prometheus(folder) as prometheus, sidecars(folder) as story:
        prometheus.scrape(story.addresses())
        watch = Watch(prometheus)
        async with asyncio.timeout(20):
            while await prometheus.value("count(up == 1)") != len(story.actors):
                await asyncio.sleep(0.1)
        began = time.time()
        await story.begin()
        await play(story, watch)
        await asyncio.sleep(CALM_SECONDS)
        ended = time.time()
        code, report = await story.end()
        assert code == 0, report
        answers = {
            panel["id"]: [await ask(prometheus, target, began, ended) for target in panel["targets"]]
            for panel in charts(document)
        }
    return document, answers, ended - began, watch.table()


async def ask(prometheus: Prometheus, target: dict[str, Any], began: float, ended: float) -> list[Series]:
    """What Grafana would draw of one query."""
    expr = filled(target["expr"], rate_interval=RATE_INTERVAL)
    promql_parser.parse(expr)
    data = await prometheus.ask("query_range", query=expr, start=began, end=ended, step=STEP_SECONDS)
    times = [began + place * STEP_SECONDS for place in range(int((ended - began) / STEP_SECONDS) + 1)]
    found = []
    for result in data["result"]:
        known = {round((at - began) / STEP_SECONDS): float(value) for at, value in result["values"]}
        points = [(at - began, finite(known.get(place))) for place, at in enumerate(times)]
        found.append((legend(target["legendFormat"], result["metric"]), points))
    return sorted(found, key=lambda one: one[0])


def finite(value: float | None) -> float | None:
    """A value that can be drawn."""
    return value if value is not None and abs(value) < float("inf") else None


def legend(template: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def amount(value: float, unit: str) -> str:
    """A value with its unit."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s" and 0 < value < 1:
        return f"{value * 1_000:.3g} ms"
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:.3g} {prefix}{SUFFIX.get(unit, '').strip()}"
    return f"{value:.3g}{SUFFIX.get(unit, '')}"


# ------------------------------------------------------------------------------------------------ drawing


def is_line_apart(name: str) -> bool:
    """A threshold: dashed, and never stacked."""
    return name == THRESHOLD


def stacked(series: Sequence[Series]) -> list[Series]:
    """Each on top of the one before; those apart as they are."""
    kept = [one for one in series if not is_line_apart(one[0])]
    columns = zip(*([value or 0.0 for _, value in points] for _, points in kept), strict=True)
    sums = list(zip(*(accumulate(column) for column in columns), strict=True))
    times = [at for at, _ in kept[0][1]] if kept else []
    found: list[Series] = [
        (name, list(zip(times, values, strict=True))) for (name, _), values in zip(kept, sums, strict=True)
    ]
    return found + [one for one in series if is_line_apart(one[0])]


def chart(panel: dict[str, Any], series: list[Series], seconds: float) -> str:
    """One chart and its legend."""
    defaults = panel["fieldConfig"]["defaults"]
    is_stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    lines = stacked(series) if is_stacked else series
    most = max((value for _, points in lines for _, value in points if value is not None), default=0.0) or 1.0
    most = 1.0 if defaults["unit"] == "percentunit" and 0.5 < most <= 1.001 else most * 1.05
    parts = [axes(most, defaults["unit"], seconds)]
    for place, (name, points) in reversed(list(enumerate(lines))):
        parts.append(drawn(Line(name, points, place), most, seconds, is_filled=is_stacked))
    head = f"<svg viewBox='0 0 {WIDTH} {TOP + HEIGHT + FOOT}'>"
    return f"{head}{''.join(parts)}</svg>{legends(lines)}"


def place_of(at: float, value: float, most: float, seconds: float) -> tuple[float, float]:
    """On the paper."""
    return LEFT + (WIDTH - LEFT - 8) * at / seconds, TOP + HEIGHT * (1 - max(0.0, value) / most)


def drawn(line: Line, most: float, seconds: float, *, is_filled: bool) -> str:
    """One line, with its area if it is stacked."""
    at = [
        place_of(time, value, most, seconds) if value is not None else (0.0, None)
        for time, value in line.points
    ]
    path, colour = trace(at, "L{x:.1f} {y:.1f}"), colour_of(line.label, line.tone)
    if is_line_apart(line.label):
        return f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='1.2' stroke-dasharray='7 5'/>"
    area = ""
    if is_filled and path:
        ends = [x for x, y in at if y is not None]
        around = f"{path}L{ends[-1]:.1f} {TOP + HEIGHT}L{ends[0]:.1f} {TOP + HEIGHT}Z"
        area = f"<path d='{around}' fill='#fff'/><path d='{around}' fill='{colour}' fill-opacity='.3'/>"
    return f"{area}<path d='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>"


def colour_of(name: str, number: int) -> str:
    """Of a line."""
    return "#c62828" if is_line_apart(name) else COLOURS[number % len(COLOURS)]


def axes(most: float, unit: str, seconds: float) -> str:
    """A grid of quarters, and the seconds."""
    parts = []
    for quarter in range(5):
        _, y = place_of(0, most * quarter / 4, most, seconds)
        text = escape(amount(most * quarter / 4, unit))
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - 8}' stroke='#e3e7ec'/>")
        parts.append(f"<text x='{LEFT - 5}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>")
    for second in range(0, int(seconds) + 1, 5):
        x, _ = place_of(second, 0, most, seconds)
        parts.append(f"<text x='{x:.1f}' y='{TOP + HEIGHT + 14}' text-anchor='middle'>{second}</text>")
    return "".join(parts)


def legends(lines: Sequence[Series]) -> str:
    """Colours and names, not too many."""
    shown = [
        f"<i style='background:{colour_of(name, place)}'></i>{escape(name)}"
        for place, (name, _) in enumerate(lines)
    ]
    more = f" … and {len(shown) - LINES_MAX} more" if len(shown) > LINES_MAX else ""
    return f"<div class='legend'>{''.join(shown[:LINES_MAX])}{more}</div>"


def figure(panel: dict[str, Any], series: list[Series]) -> str:
    """A large figure: the worst moment and the last, since here they differ."""
    values = [value for _, points in series for _, value in points if value is not None]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    is_bad = len(steps) > 1 and values[-1] >= steps[1]["value"]
    last, most = (escape(amount(value, unit)) for value in (values[-1], max(values)))
    return f"<div class='figure {'bad' if is_bad else 'good'}'>{last}</div><p>last; at most {most}</p>"


def page(document: dict[str, Any], answers: dict[int, list[list[Series]]], seconds: float) -> str:
    """The whole page."""
    parts = [f"<h1>{escape(document['title'])}</h1>"]
    parts.append(
        "<p>Every panel of the dashboard, from a real Prometheus's answers: ten sidecars, nine of them "
        "brought into trouble and mended. Seconds across.</p>"
    )
    is_open = False
    for panel in document["panels"]:
        if panel["type"] == "row":
            parts.append(f"{'</div>' if is_open else ''}<h2>{escape(panel['title'])}</h2><div class='row'>")
            is_open = True
            continue
        series = [one for answer in answers[panel["id"]] for one in answer]
        if not has_data(series):
            inside = "<div class='empty'>no data</div>"
        elif panel["type"] == "stat":
            inside = figure(panel, series)
        else:
            inside = chart(panel, series, seconds)
        span = f"grid-column: span {panel['gridPos']['w']}"
        parts.append(f"<div class='panel' style='{span}'><b>{escape(panel['title'])}</b>{inside}</div>")
    return f"<!doctype html><meta charset='utf-8'><style>{STYLE}</style>{''.join(parts)}</div>"


def has_data(series: Sequence[Series]) -> bool:
    """Whether anything but a threshold is there."""
    drawn_ones = [points for name, points in series if not is_line_apart(name)]
    return any(value is not None for points in drawn_ones for _, value in points)


async def photograph(html: Path, png: Path, profile: Path) -> None:
    """The page as a picture."""
    async with browser(profile) as tab:
        await tab.show(1_844)
        await tab.open(html.as_uri())
        png.write_bytes(await tab.picture())


def main() -> int:
    """Draw it; 1 if a panel is empty."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.deploy.panels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    given = parser.parse_args()
    if PROMETHEUS is None:
        parser.error("Prometheus is not installed here (Debian: apt-get install prometheus)")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        document, answers, seconds, table = asyncio.run(collect(Path(folder)))
    print(table)
    html = given.out / "panels.html"
    html.write_text(page(document, answers, seconds), encoding="utf-8")
    if BROWSER is not None:
        with tempfile.TemporaryDirectory() as profile:
            asyncio.run(photograph(html.resolve(), given.out / "panels.png", Path(profile)))
    empty = [
        panel["title"]
        for panel in charts(document)
        if not has_data([one for answer in answers[panel["id"]] for one in answer])
    ]
    print(f"{len(answers)} panels; without data: {', '.join(empty) or 'none'}")
    return int(bool(empty))


if __name__ == "__main__":
    sys.exit(main())
