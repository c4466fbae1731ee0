"""What `dispatcher top` draws, at every size, and its words and figures."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dispatcher.cli._top_feed import Listener
from dispatcher.cli._top_fleet import draw_fleet
from dispatcher.cli._top_layout import Frame, shares
from dispatcher.cli._top_report import Report, read
from dispatcher.cli._top_view import draw
from dispatcher.cli._top_words import age, instant, printable, rate, size, span, spark
from tests.cli.top_support import example

SIZES = [(20, 5), (40, 12), (80, 24), (119, 30), (120, 30), (200, 50)]
FULL = [example()["intake"]["recent_failures"][0] | {"reason": f"{n} 漢字 " * 40} for n in range(50)]
STATES: list[dict[str, Any]] = [
    {},
    {"phase": "draining"},
    {"gate": {"state": "halted", "reason": "401: unauthorized " * 20, "paused_for": 12.1}},
    {"gate": {"stopped_queues": [f"queue-{n}" for n in range(50)], "stopped_queues_total": 70}},
    {"outbox": None, "events": [], "sample": None, "requests": {"by_code": {}}},
    {"outbox": {"failure": "the disk is full"}, "intake": {"recent_failures": FULL}},
]


def listening(report: dict[str, Any] | None, trouble: str = "") -> Listener:
    """A listener that has said this."""
    made = Listener("http://127.0.0.1:8091")
    made.report = None if report is None else read(orjson.dumps(report), Report)
    made.is_live, made.trouble = not trouble and report is not None, trouble
    return made


def drawn(listener: Listener, columns: int = 80, lines: int | None = None) -> str:
    """The text of a drawing; by default of one that is not cut."""
    return "\n".join(one.plain.rstrip() for one in draw(listener, Frame(Console(), columns, lines)))


@pytest.mark.parametrize("report", [None, *(example(**state) for state in STATES)])
@pytest.mark.parametrize("trouble", ["", "nobody listens there"])
def test_a_drawing_fills_its_frame(report: dict[str, Any] | None, trouble: str) -> None:
    """Every line is as wide as the terminal, and there are as many; the state stands in the first ones."""
    listener = listening(report, trouble)
    for columns, lines in SIZES:
        frame = Frame(Console(), columns, lines)
        for drawing in (draw(listener, frame), draw_fleet([listener, listener], frame)):
            assert [cell_len(one.plain) for one in drawing] == [columns] * lines
            assert drawing[-1].plain.rstrip() == "q ends"
            assert "nobody listens" in "".join(x.plain for x in drawing) or not trouble or columns < 80


def test_everything_is_said() -> None:
    """Each figure of a report has its place, with its unit."""
    said = drawn(listening(example()))
    for words in (
        " Ready   dispatcher  version 0.1.0 · up 1 h 2 min  http://127.0.0.1:8091",
        "in       1,234/s ",
        "123,456 taken",
        "114,000 confirmed",
        "7 in all, 2 refused",
        "9,000 of 10,000 · oldest 2.5 s · 2 MB of 64 MB",
        "12 of 16 requests · 12.3/s · 97.6 messages in each",
        "p50 · p99  12.3 ms · 1.5 s  requests alone  10 ms · –",
        "1,240 requests/s · 40 connections · 3 callers wait for room",
        "upstream 200 ×1,200 · 429 ×5 · timeout ×1",
        "9,100 held, oldest 2.6 s · 1 dead letter · 17 MB on disk, 79 GB free",
        "×7  rejected (400) not accepted  the message to https://example.com/hook was rejected with 400",
        "publish  200 ×114,000 · 400 ×7",
        "refused: queue full  2",
        "tried again: throttled  30",
        "sent alone: too large  4",
        "https://example.com/hook  out_1  1 attempt  400: invalid",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("change", "badge", "note"),
    [
        (
            {"phase": "draining"},
            " Draining ",
            "Draining. Nothing new is taken; it ends when what is held (9,000",
        ),
        (
            {"gate": {"state": "halted", "reason": "401: no"}},
            " Halted ",
            "Halted. The upstream refuses the token",
        ),
        ({"gate": {"state": "refused"}}, " Refused ", "Refused at first contact. "),
        (
            {"gate": {"state": "throttled", "paused_for": 4.2}},
            " Throttled ",
            "may try in 5 s. Nothing is lost",
        ),
        ({"gate": {"state": "quota"}}, " Quota spent ", "Quota spent. The account's daily quota"),
        ({"gate": {"state": "outage"}}, " Outage ", "Outage. Nobody answers at the upstream"),
        ({"gate": {"state": "closed"}}, " Stopped ", "Stopped. The dispatcher has died"),
        ({"phase": "closed"}, " Closed ", "Closed. The drain is over."),
        ({"gate": {"state": "new_word"}}, " new_word ", ""),
        (
            {"gate": {"stopped_queues": ["a", "b"], "stopped_queues_total": 3}},
            " Ready ",
            "3 queues stopped at a failed message: a, b and 1 more.",
        ),
        ({"outbox": {"failure": "no space"}}, " Ready ", "Outbox. no space. Nothing is accepted until"),
        ({"outbox": {"death": "it broke"}}, " Ready ", "Outbox. it broke. Restart the process."),
    ],
)
def test_each_state_has_its_words(change: dict[str, Any], badge: str, note: str) -> None:
    """In the first line, and in a sentence that says what to do."""
    said = drawn(listening(example(**change))).splitlines()
    assert said[0].startswith(badge)
    assert note in said[1]
    assert said[1].startswith("in ") == (note == "")


def test_a_small_screen_says_what_it_leaves_out() -> None:
    """Every list keeps its title and a line, the most important one more; the rest is counted."""
    said = drawn(listening(example(intake={"recent_failures": FULL})), 80, 24)
    assert [title in said for title in ("Recent failures", "Intake by route", "Messages", "Dead")] == [
        True
    ] * 4
    assert "Recent failures  14" in said
    assert "more lines" in said


@given(st.lists(st.integers(2, 60), max_size=8), st.integers(0, 100))
def test_rows_are_shared(wants: list[int], room: int) -> None:
    """Never more than there are or than is wanted; none is left while somebody who has some wants one."""
    given_ = shares(wants, room)
    assert sum(given_) <= room
    assert all(rows == 0 or 2 <= rows <= want for rows, want in zip(given_, wants, strict=True))
    assert sum(given_) >= min(room - 1, sum(wants))


def test_the_spark_line_is_the_last_minute() -> None:
    """Nothing before the first sample, the highest at the top; a late sample leaves no hole, a stall does."""
    samples = [(100.0 + n, float(n)) for n in range(1, 61)]
    assert spark(samples, 160.0, 60.0, 8) == "▁▂▃▄▅▆▇█"
    assert spark(samples[30:], 160.0, 60.0, 4) == "  ▆█"
    assert spark([(101.4, 1.0), (102.6, 1.0), (104.0, 0.0)], 104.0, 4.0, 4) == " ██▁"
    assert spark([(101.0, 1.0), (104.0, 1.0)], 104.0, 4.0, 4) == "█  █"
    assert spark([(1.0, 0.0)], 1.0, 60.0, 2) == " ▁"
    assert spark([], 1.0, 60.0, 2) == "  "


def test_figures_have_their_units() -> None:
    """As on the status page."""
    assert [rate(value) for value in (0, 0.25, 12.345, 99.96, 1234.5)] == [
        "0",
        "0.25",
        "12.3",
        "100",
        "1,234",
    ]
    spans = [span(value) for value in (None, 0, 4.2e-5, 0.0123, 1, 119, 120, 7_200, 200_000)]
    assert spans == ["–", "0 s", "42 µs", "12.3 ms", "1 s", "119 s", "2 min", "2 h", "2.31 d"]
    assert [age(value) for value in (0.5, 59, 61, 3_600, 90_061)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h",
        "1 d 1 h",
    ]
    assert [size(value) for value in (0, 999, 1_000, 64_000_000)] == ["0 B", "999 B", "1 kB", "64 MB"]
    assert instant(1e300, 0.0) == "–"
    assert len(instant(0.0, 1.0)) < len(instant(0.0, 1e6))


@given(st.text())
def test_no_text_is_obeyed(text: str) -> None:
    """What is made printable has no control character, whatever it was, and is else as it was."""
    cleaned = printable({text: [text]})
    ((key, (value,)),) = cleaned.items()
    assert key == value
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 or one in "\u202e\u2066\u200b" for one in value)
    assert value.split() == printable(value).split()
    if text.isascii() and text.isprintable():
        assert value == text
