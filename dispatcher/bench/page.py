"""The report as one HTML file that needs nothing else: figures, plots, method.

Light or dark as the reader has it. No script, no font, no image from anywhere; every text that came from
outside is escaped. Pure; called by the command with `--html`.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from dispatcher.bench.chart import Line, chart, linear, logarithmic, number_text, percentiles, span
from dispatcher.bench.report import facts, finding_line, stage_text, time_text, trial_line
from dispatcher.bench.result import COARSE, STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dispatcher.bench.find import Finding
    from dispatcher.bench.recorder import Row
    from dispatcher.bench.result import Report, Result

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2933; --soft: #5b6875; --grid: #e3e7ec;
  --card: #f5f7f9; --warn: #a3360f; --c0: #1b5e9e; --c1: #1d8a7d; --c2: #c8541c; --c3: #8a4fa3;
  --c4: #6b7280; --c5: #a67c00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e4e8ec; --soft: #9aa7b4;
  --grid: #2b323a; --card: #1c2229; --warn: #ff9b73; --c0: #6db3f2; --c1: #4fd1bf; --c2: #ff9b62;
  --c3: #cf9bea; --c4: #a8b3bf; --c5: #e5c25a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 24px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 8px; }
p { margin: 4px 0; } .soft { color: var(--soft); } .warn { color: var(--warn); font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.card { background: var(--card); border-radius: 8px; padding: 10px 16px; flex: 1 1 120px; }
.card b { display: block; font-size: 21px; font-weight: 600; white-space: nowrap; }
.card span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: left; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; margin: 18px 0;
  font: 12px system-ui, 'DejaVu Sans', sans-serif; }
svg .t { font-size: 14px; font-weight: 600; fill: var(--ink); } svg .n { fill: var(--soft); }
svg .g { stroke: var(--grid); } svg .a { stroke: var(--soft); }
svg .l { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .h { fill: transparent; } svg .h:hover { fill: var(--ink); fill-opacity: 0.07; }
svg .s0 { stroke: var(--c0); } svg .s1 { stroke: var(--c1); } svg .s2 { stroke: var(--c2); }
svg .s3 { stroke: var(--c3); } svg .s4 { stroke: var(--c4); } svg .s5 { stroke: var(--c5); }
svg .d0 { fill: var(--c0); } svg .d1 { fill: var(--c1); } svg .d2 { fill: var(--c2); }
svg .d3 { fill: var(--c3); } svg .d4 { fill: var(--c4); } svg .d5 { fill: var(--c5); }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
"""
TITLE: Final = "dispatcher bench"
MILLISECONDS: Final = 1_000.0
STAGE_TONES: Final = {"total": 0, "dispatch": 1, "request": 2, "admission": 3, "lag": 4, "room": 5}


def page(report: Report) -> str:
    """The whole file."""
    parts = [f"<h1>{TITLE}</h1>", _paragraph(report.load), _paragraph(f"to {report.target}")]
    parts.append(_paragraph(f"{report.at} · version {report.version}", "soft"))
    if report.result is not None:
        parts += _run(report.result)
    if report.finding is not None:
        parts += _search(report.finding)
    if report.result is None and report.stopped:
        parts.append(_paragraph(f"Ended early: {report.stopped}", "warn"))
    parts += [_details("Method", _list(report.method)), _details("Machine", _table(report.machine))]
    parts += [_details("Load", _table(report.options)), _details("Settings", _table(report.settings))]
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{TITLE}: {escape(report.load)}</title><style>{STYLE}</style></head><body>"
    )
    return "\n".join([head, *parts, "</body></html>", ""])


# ------------------------------------------------------------------------------------------------ a run


def _run(result: Result) -> list[str]:
    parts = [_cards(result)]
    if result.stopped:
        parts.append(_paragraph(f"Ended early: {result.stopped}", "warn"))
    parts += [_paragraph(f"Warning: {warning}", "warn") for warning in result.warnings]
    parts += ["<h2>Latency</h2>", _stages(result)]
    parts += [_distribution(result), "<h2>Over time</h2>"]
    if result.rows:
        parts += [_latency_chart(result.rows), _rate_chart(result), _held_chart(result.rows)]
    return [*parts, "<h2>Counts</h2>", _table(dict(facts(result)))]


def _cards(result: Result) -> str:
    total = result.stages.get("total")
    cards = [(f"{result.achieved_rate:,.0f}", f"msg/s delivered, of {result.asked_rate:,.0f} asked")]
    if total is not None:
        cards += [(time_text(total.p50), "p50"), (time_text(total.p99), "p99"), (time_text(total.max), "max")]
    wrong = result.failed + result.unfinished
    cards += [(f"{wrong:,}", "failed or unfinished"), (f"{result.fill:,.1f}", "messages a request")]
    cards.append((f"{result.cpu_us:,.1f} µs", "processor time a message"))
    inner = "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{name}</span></div>" for value, name in cards
    )
    return f"<div class='cards'>{inner}</div>"


def _stages(result: Result) -> str:
    headings = ("p50", "p90", "p99", "p99.9", "max")
    cells = "".join(f"<th class='n'>{heading}</th>" for heading in headings)
    rows = [f"<tr><th>stage</th>{cells}<th>from → to</th></tr>"]
    for name, stage in result.stages.items():
        values = (stage.p50, stage.p90, stage.p99, stage.p999, stage.max)
        cells = "".join(f"<td class='n'>{escape(stage_text(name, value))}</td>" for value in values)
        rows.append(f"<tr><td>{name}</td>{cells}<td class='soft'>{escape(STAGES[name])}</td></tr>")
    return f"<div class='scroll'><table>{''.join(rows)}</table></div>"


def _distribution(result: Result) -> str:
    lines = [
        Line(
            name,
            [(share, seconds * MILLISECONDS) for share, seconds in _ending(result, name)],
            STAGE_TONES[name],
            is_dashed=name != "total",
            is_stepped=True,  # between two shares the greater one's value holds
        )
        for name in result.curves
        if name not in COARSE
    ]
    most = max((share for line in lines for share, _ in line.points), default=0.9)
    up = logarithmic((value for line in lines for _, value in line.points if value), _milliseconds)
    return chart(
        "Latency by share of the messages, ms", lines, percentiles(most, "share of the messages"), up
    )


def _ending(result: Result, name: str) -> Iterable[tuple[float, float]]:
    """The curve up to where the last message stands: at 100 % the axis has no end."""
    count = result.stages[name].count
    last = 1.0 - 1.0 / (count + 1)
    return [(min(share, last), seconds) for share, seconds in result.curves[name]]


def _latency_chart(rows: Sequence[Row]) -> str:
    names = ("max", "p99", "p90", "p50")
    lines = [
        Line(name, [(row.at, _scaled(getattr(row, name))) for row in rows], tone, is_dashed=name == "max")
        for tone, name in zip((4, 2, 1, 0), names, strict=True)
    ]
    up = logarithmic((value for line in lines for _, value in line.points if value), _milliseconds)
    return chart("Total latency, ms (where it was confirmed)", lines, _time(rows), up)


def _rate_chart(result: Result) -> str:
    rows = result.rows
    asked = [(row.at, row.asked / row.seconds) for row in rows]
    delivered = [(row.at, row.delivered / row.seconds) for row in rows]
    lines = [
        Line("asked", asked, 4, is_dashed=True, is_stepped=True),
        Line("delivered", delivered, 0, is_stepped=True),
    ]
    values = [rate for _, rate in (*asked, *delivered)]
    if result.failed:
        failed = [(row.at, row.failed / row.seconds) for row in rows]
        lines.append(Line("failed", failed, 2, is_stepped=True))
        values += [rate for _, rate in failed]
    return chart("Messages a second", lines, _time(rows), linear(max(values)))


def _held_chart(rows: Sequence[Row]) -> str:
    upper = [
        Line("limit", [(row.at, row.limit) for row in rows], 4, is_dashed=True, is_stepped=True),
        Line("in flight", [(row.at, row.in_flight) for row in rows], 0, is_stepped=True),
    ]
    lower = [
        Line("waiting outside", [(row.at, row.waiting) for row in rows], 2, is_dashed=True),
        Line("held", [(row.at, row.held) for row in rows], 1),
    ]
    requests = linear(max(max(row.limit, row.in_flight) for row in rows))
    messages = linear(max(max(row.waiting, row.held) for row in rows))
    return chart("Requests", upper, _time(rows), requests) + chart("Messages", lower, _time(rows), messages)


def _time(rows: Sequence[Row]) -> Any:
    return span(rows[-1].at, "seconds")


def _scaled(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * MILLISECONDS


def _milliseconds(value: float) -> str:
    return f"{value:,.10g}"


# --------------------------------------------------------------------------------------------- a search


def _search(finding: Finding) -> list[str]:
    goal = finding.goal
    parts = [_paragraph(finding_line(finding), "" if finding.rate is not None else "warn")]
    if not finding.trials:
        return parts
    tried = [
        (trial.rate, trial.holds, window.value * MILLISECONDS)
        for trial in finding.trials
        for window in trial.windows
    ]
    least, most = min(rate for rate, _, _ in tried), max(rate for rate, _, _ in tried)
    bound = goal.seconds * MILLISECONDS
    lines = [
        Line("bound", [(least, bound), (most, bound)], 4, is_dashed=True),
        Line("holds", sorted((rate, value) for rate, holds, value in tried if holds), 1, is_dotted=True),
        Line(
            "does not", sorted((rate, value) for rate, holds, value in tried if not holds), 2, is_dotted=True
        ),
    ]
    up = logarithmic([bound, *(value for _, _, value in tried)], _milliseconds)
    across = logarithmic((rate for rate, _, _ in tried), number_text, "msg/s")
    parts.append(chart(f"{goal.name} of each window, ms", lines, across, up))
    return [*parts, _list(trial_line(goal, trial).strip() for trial in finding.trials)]


# ---------------------------------------------------------------------------------------------- pieces


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _table(rows: Mapping[str, Any]) -> str:
    cells = (
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<div class='scroll'><table>{''.join(cells)}</table></div>"


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _details(summary: str, inner: str) -> str:
    return f"<details><summary>{summary}</summary>{inner}</details>"
