"""How `dispatcher top` draws one listener: lines for a terminal of any size, or all of them for a pipe.

Knows no socket and no terminal. Called by `top`; `_top_fleet` draws several.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from dispatcher.cli._top_feed import SPAN_SECONDS
from dispatcher.cli._top_layout import (
    BADGES,
    TONES,
    Frame,
    Part,
    Section,
    bar,
    beside,
    finished,
    line,
    stacked,
    told,
)
from dispatcher.cli._top_words import (
    NONE,
    Note,
    age,
    instant,
    many,
    notes,
    of_outbox,
    ranked,
    rate,
    size,
    span,
    spark,
    state_of,
    tone_of,
    words,
)

if TYPE_CHECKING:
    from dispatcher.cli._top_feed import Listener
    from dispatcher.cli._top_report import Failure, Quantiles, Report

LABEL_CELLS: Final = 9
ALARM: Final = 0.75
"""Of the room that is taken."""
EVENTS_SHOWN: Final = 12


def draw(listener: Listener, frame: Frame) -> list[Text]:
    """Everything about one listener, the most important first."""
    top = [*header(listener, frame), *told(every_note(listener), frame)]
    if listener.report is None:
        return finished(top, frame)
    top += [*figures(listener, listener.report, frame), Text()]
    rest = None if frame.height is None else max(0, frame.height - len(top) - 1)
    left, right = sections(listener.report)
    if frame.height is None or not frame.is_roomy:
        return finished([*top, *stacked([*left[:1], *right, *left[1:]], frame, frame.width, rest)], frame)
    widths = (frame.width * 3 // 5 - 3, frame.width - frame.width * 3 // 5)
    columns = [stacked(part, frame, width, rest) for part, width in zip((left, right), widths, strict=True)]
    return finished([*top, *beside(columns, widths)], frame)


# ------------------------------------------------------------------------------------------------- the head


def header(listener: Listener, frame: Frame) -> list[Text]:
    """State, name, version; at the right whether it is heard now."""
    report, link = listener.report, link_of(listener)
    if report is None:
        return [line(("dispatcher", "bold"), f" at {listener.url}  ", link)]
    text, tone = state_of(report.phase, report.gate.state)
    name = "" if report.name == "default" else f" {report.name}"
    badge = (f" {text} ", BADGES[tone] if listener.is_live or frame.height is None else "reverse")
    left = line(badge, (f"  dispatcher{name}", "bold"))
    left.append(f"  version {report.version} · up {age(report.uptime)}  {listener.url}")
    if frame.height is None:
        return [left]
    left.truncate(max(0, frame.width - cell_len(link[0]) - 1), overflow="ellipsis", pad=True)
    return [left.append(" ").append(*link)]


def link_of(listener: Listener) -> tuple[str, str]:
    """Whether it is heard, and in which colour to say so."""
    if listener.is_live:
        return "live", TONES["ok"]
    if not listener.trouble:
        return "connecting…", TONES["idle"]
    return "not heard" if listener.report is None else "lost", TONES["bad"]


def every_note(listener: Listener) -> list[Note]:
    """What is unusual about the listener, and what it says is unusual."""
    found = [] if listener.report is None else notes(listener.report)
    if not listener.trouble:
        return found
    if listener.report is None:
        return [Note("bad", f"{listener.url}:", f"{listener.trouble}; trying again.")]
    since = instant(listener.report.at, time.time())
    lost = Note("bad", f"Lost, as of {since}.", f"{listener.url}: {listener.trouble}; trying again.")
    return [lost, *found]


# ---------------------------------------------------------------------------------------------- the figures


def figures(listener: Listener, now: Report, frame: Frame) -> list[Text]:
    """One line for each thing that has a number."""
    lines = [
        *flows(listener, now, SPAN_SECONDS // (1 if frame.is_roomy else 2)),
        *gauges(now, 30 if frame.is_roomy else 12),
        labelled("latency", *_latency(now)),
        labelled("intake", *_intake(now)),
        labelled("upstream", *codes(now.requests.by_code)),
    ]
    if now.outbox is not None:
        style = TONES["warn"] if now.outbox.dead else ""
        held, dead, disk = of_outbox(now.outbox)
        lines.append(labelled("outbox", f"{held} · ", (dead, style), f" · {disk}"))
    return lines


def flows(listener: Listener, now: Report, cells: int) -> list[Text]:
    """What goes in and out, with its last minute."""
    totals, refused = now.messages, sum(now.messages.refused.values())
    rows = (
        ("in", "taken", now.rates.taken, "cyan", f"{totals.taken:,} taken"),
        ("out", "delivered", now.rates.delivered, "green", f"{totals.delivered:,} confirmed"),
        ("failed", "failed", now.rates.failed, "red", f"{totals.failed:,} in all, {refused:,} refused"),
    )
    lines = []
    for label, name, value, style, more in rows:
        samples = [(one.at, float(getattr(one, name))) for one in listener.samples]
        drawn = spark(samples, now.at, SPAN_SECONDS, cells)
        lines.append(labelled(label, f"{rate(value) + '/s':<10}", (drawn, style), f"  {more}"))
    return lines


def labelled(label: str, *parts: Part) -> Text:
    """A line behind its name."""
    return line((f"{label:<{LABEL_CELLS}}", "bold"), *parts)


def gauges(now: Report, cells: int) -> list[Text]:
    """What is held, and what is in flight, each against its limit."""
    held, flight = now.held, now.in_flight
    share = max(_share(held.messages, held.messages_limit), _share(held.bytes, held.bytes_limit))
    tone = "ok" if share < ALARM else "warn" if share < 1.25 * ALARM else "bad"
    oldest = f"oldest {span(held.oldest_age)}" if held.messages else "nothing waits"
    room = f"{held.messages:,} of {held.messages_limit:,} · {oldest}"
    each = now.rates.messages_per_request
    batch = "" if each is None else f" · {rate(each)} messages in each"
    used = f"{flight.requests:,} of {flight.limit:,} requests · {rate(now.rates.requests)}/s{batch}"
    return [
        labelled(
            "held",
            *bar(share, cells, TONES[tone]),
            f" {room} · {size(held.bytes)} of {size(held.bytes_limit)}",
        ),
        # A limit in full use is no alarm.
        labelled("flight", *bar(_share(flight.requests, flight.limit), cells, TONES["ok"]), f" {used}"),
    ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _latency(now: Report) -> list[Part]:
    alone = _pair(now.latency.request)
    return [("p50 · p99  ", "dim"), _pair(now.latency.message), ("  requests alone  ", "dim"), alone]


def _pair(both: Quantiles) -> str:
    return NONE if both.p50 is None else f"{span(both.p50)} · {span(both.p99)}"


def _intake(now: Report) -> list[Part]:
    waiting = max(now.held.waiting_for_room, now.intake.waiting)
    who = f"{many(waiting, 'caller')} {'waits' if waiting == 1 else 'wait'} for room"
    seen = f"{rate(now.rates.intake)} requests/s · {many(now.intake.connections, 'connection')} · "
    return [seen, (who, TONES["warn"]) if waiting else "nobody waits for room"]


def codes(counts: dict[str, int]) -> list[Part]:
    """Answers and how many of each."""
    found: list[Part] = []
    for code, number in ranked(counts):
        found += [" · " if found else "", (words(code), TONES[tone_of(code)]), f" ×{number:,}"]
    return found or [NONE]


# --------------------------------------------------------------------------------------------- the sections


def sections(now: Report) -> tuple[list[Section], list[Section]]:
    """What stands at the left and at the right; the first of the left is the most important."""
    kept = now.intake.recent_failures
    failures = Section("Recent failures", [failure(one, now.at) for one in kept])
    routes = [
        line(f"{words(route):<{LABEL_CELLS}}", *codes(counts))
        for route, counts in now.intake.requests.items()
    ]
    left = [failures, *_letters(now), Section("Gate and process", _events(now))]
    right = [Section("Intake by route and code", routes), Section("Messages", _messages(now))]
    empty = {
        "Dead letters": "they are being read",
        "Recent failures": "no message has failed",
        "Intake by route and code": "no request was answered",
    }
    for section in (*left, *right):
        if not section.lines:
            section.lines.append(line((empty.get(section.title, "nothing yet"), "dim")))
    return left, right


def failure(one: Failure, now: float) -> Text:
    """What failed, how often, how, and why."""
    status = "" if one.status is None else f" ({one.status})"
    tone = TONES["warn" if one.outcome in ("rejected", "invalid") else "bad"]
    last = f" · last attempt: {one.last}" if one.last and one.outcome != "rejected" else ""
    how = (f"{words(one.outcome)}{status}", tone)
    begin = f"{instant(one.at, now)}  ×{one.number:,}  "
    return line(begin, how, (f" {words(one.certainty)}  ", "dim"), f"{one.reason}{last}")


def _letters(now: Report) -> list[Section]:
    if now.outbox is None or not now.outbox.dead:
        return []
    rows = [
        line(
            f"{instant(one.accepted_at, now.at)}  {one.destination}  ",
            (f"{one.message_id}  ", "dim"),
            f"{many(len(one.attempts), 'attempt')}  {one.reason}",
        )
        for one in now.outbox.dead_letters
    ]
    return [Section("Dead letters", rows)]


def _events(now: Report) -> list[Text]:
    found = []
    for one in now.events[:EVENTS_SHOWN]:
        text, tone = state_of(one.phase, one.state)
        queues = f"{many(one.stopped_queues, 'stopped queue')}  " if one.stopped_queues else ""
        found.append(line(f"{instant(one.at, now.at)}  ", (text, TONES[tone]), f"  {queues}{one.reason}"))
    return found


def _messages(now: Report) -> list[Text]:
    groups = {
        "": now.messages.finished,
        "refused: ": now.messages.refused,
        "tried again: ": now.messages.retried,
        "sent alone: ": now.intake.sent_alone,
    }
    rows = [
        (f"{before}{words(name)}", number)
        for before, counts in groups.items()
        for name, number in ranked(counts)
    ]
    return [line(f"{name}  ", (f"{number:,}", "bold")) for name, number in rows]
