"""The page and the report: well-formed, self-contained, and what they say is what was measured."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import msgspec
import pytest
from msgspec.structs import replace

from dispatcher.bench.chart import Line, chart, linear, logarithmic, percentiles, round_values, span
from dispatcher.bench.find import Finding, Goal, Trial, Window
from dispatcher.bench.machine import Effort
from dispatcher.bench.page import page
from dispatcher.bench.recorder import Gauges, Recorder
from dispatcher.bench.report import lines, live_line, time_text
from dispatcher.bench.result import SCHEMA, Counts, Report, sum_up

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.bench.result import Result

BROWSER: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE: Final = "<script>alert('&')</script>"


def recorded() -> Recorder:
    """Two seconds at 100/s, 10 ms each, some of it late, failed and unfinished."""
    recorder = Recorder(100.0, 2.0)
    for number in range(200):
        intended = 100.0 + number / 100
        recorder.hand_over(intended, intended + (0.007 if number < 20 else 0.001))
        recorder.take(intended, intended + 0.001, 0.0, intended + (0.007 if number < 20 else 0.002))
        if number < 190:
            recorder.deliver(intended, intended + 0.002, intended + 0.01)
        elif number < 195:
            recorder.fail(HOSTILE, intended + 0.01)
        if number % 25 == 24:
            recorder.tick(intended + 0.01, number + 1, 3, Gauges(7, 2, 4))
    recorder.leave([101.95, 101.96, 101.97, 101.98, 101.99], 102.5)
    recorder.close(102.5, 0, Gauges())
    return recorder


def result() -> Result:
    """Of that."""
    counts = Counts(requests={"200": 19, "429": 1}, carried=200, retried={"throttled": 10})
    return sum_up(recorded(), counts, 2.0, (Effort(0.0, 1.0, 5.0), Effort(2.5, 1.5, 7.49)), "")


def report(**changes: object) -> Report:
    """A whole one."""
    made = Report(
        version="1",
        at="2026-01-01T00:00:00+00:00",
        target=HOSTILE,
        load="100 msg/s",
        method=("open loop",),
        machine={"python": "3"},
        options={"body": HOSTILE},
        settings={"url": "http://127.0.0.1"},
        result=result(),
    )
    return replace(made, **changes)


def search() -> Report:
    """Of a search."""
    windows = (Window(0.02, 100, 100.0, 0), Window(0.06, 100, 100.0, 0), Window(0.03, 100, 99.0, 0))
    trials = (Trial(100.0, windows, holds=True), Trial(200.0, windows[1:2] * 2, holds=False))
    return report(result=None, finding=Finding(Goal(0.99, 0.05), 100.0, 200.0, trials, is_complete=True))


def parsed(text: str) -> ET.Element:
    """The page as a tree; raises if it is not well-formed."""
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


@pytest.mark.parametrize("made", [report(), search(), report(result=None, stopped="refused")])
def test_the_page_is_well_formed_and_needs_nothing_else(made: Report) -> None:
    """No script, no style sheet, no image, no address to load from; and what came from outside is text."""
    text = page(made)
    tags = {one.tag for one in parsed(text).iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    assert not re.search(r"\b(href|src|url\(|@import)", text)
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_draws_what_was_measured() -> None:
    """Five charts of a run, each line with its points inside the frame; one of a search, a dot a window."""
    charts = parsed(page(report())).findall(".//svg")
    assert [one.get("aria-label") for one in charts] == [
        "Latency by share of the messages, ms",
        "Total latency, ms (where it was confirmed)",
        "Messages a second",
        "Requests",
        "Messages",
    ]
    for one in charts:
        _, _, width, height = map(float, (one.get("viewBox") or "").split())
        paths = [path.get("d") or "" for path in one.iter("path") if path.get("class", "").startswith("l ")]
        assert len(paths) >= 4  # two of lines, two of the legend
        for x, y in (
            map(float, pair) for path in paths for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)
        ):
            assert 0 <= x <= width
            assert 0 <= y <= height
    (found,) = parsed(page(search())).findall(".//svg")
    assert len([dot for dot in found.iter("circle") if dot.get("cx") and float(dot.get("cy") or 0) > 34]) == 5


def test_figures_are_those_of_the_run() -> None:
    """Rates, quantiles, lateness, effort; and what is wrong with the run is said."""
    made = result()
    assert (made.asked, made.delivered, made.failed, made.unfinished) == (200, 190, 5, 5)
    assert made.asked_rate == 100.0
    assert made.achieved_rate == pytest.approx(190 / 2.0, rel=0.01)
    assert made.stages["total"].p50 == pytest.approx(0.01, rel=0.011)
    assert made.stages["total"].max == pytest.approx(0.55)
    assert made.stages["dispatch"].max == pytest.approx(0.008, rel=0.011)
    assert (made.late_share, made.fill, made.requests) == (0.1, 10.0, 20)
    assert made.cpu_share == pytest.approx(0.2)
    assert made.upstream_cpu_share == pytest.approx(0.996)
    assert made.cpu_us == pytest.approx(0.5 / 190 * 1e6)
    assert not made.is_clean
    assert len(made.warnings) == 2
    assert "10.0% of the messages were taken in more than 5 ms late" in made.warnings[0]
    assert "upstream used 100%" in made.warnings[1]
    assert sum(row.asked for row in made.rows) == 200
    assert sum(row.delivered for row in made.rows) == 190


def test_the_report_tells_all_of_it() -> None:
    """Every stage, every count, the warnings; of a search its end."""
    text = "\n".join(lines(report()))
    for words in (
        "100 msg/s",
        "190 in",
        "5: 5 <script>",
        "5 (counted below",
        "19 200, 1 429",
        "10 throttled",
    ):
        assert words in text
    assert re.search(r"^  total +(9\.9\d|10\.[01]) ms ", text, re.MULTILINE)
    assert text.count("warning:") == 2
    assert "100 msg/s keeps p99 ≤ 50 ms; 200 does not" in "\n".join(lines(search()))
    windows = (Window(1.0, 100, 100.0, 0, late_share=0.2),) * 2
    late = (*search().finding.trials[:1], Trial(200.0, windows, holds=False))  # type: ignore[union-attr]
    own = report(result=None, finding=Finding(Goal(0.99, 0.05), 100.0, 200.0, late, is_complete=False))
    assert "200 does not, where this process itself was too slow (broken off" in "\n".join(lines(own))
    none = report(result=None, finding=Finding(Goal(0.5, 1.0), None, 1.0, (), is_complete=False))
    assert "no rate that was tried keeps p50 ≤ 1000 ms" in "\n".join(lines(none))
    assert list(lines(report(result=None, stopped="why")))[-1] == "nothing was measured: why"


def test_the_live_line_is_of_the_last_second() -> None:
    """Rates and quantiles of the last ticks, not of the whole run."""
    recorder = Recorder(0.0, 60.0)
    for tick in range(1, 21):
        for _ in range(10 if tick > 10 else 1_000):
            recorder.deliver(tick / 4 - 0.005, tick / 4 - 0.004, tick / 4)
        recorder.tick(tick / 4, tick * 20, 0, Gauges(5, 2, 4))
    line = live_line(recorder, Gauges(5, 2, 4), waiting=9)
    assert line == "40 of 80 msg/s · 2 in flight · 5 held · 9 waiting · p50 5.00 ms, p99 5.00 ms"
    assert len(recorder.rows) == 20


def test_memory_does_not_grow_with_the_run() -> None:
    """A day's rows are as few as a minute's, and unknown kinds of errors are bounded."""
    recorder = Recorder(0.0, 86_400.0)
    for tick in range(4 * 3_600):
        recorder.tick(tick / 4, tick, 0, Gauges())
        recorder.fail(f"kind {tick}", 0.0)
    assert len(recorder.rows) <= 11
    assert len(recorder.errors) <= 51
    assert recorder.errors.total() == recorder.failed


def test_json_has_a_schema_and_no_gaps() -> None:
    """It names its version, and everything is a number, a text or a list of them."""
    made = msgspec.json.decode(report().to_json())
    assert made["schema"] == SCHEMA
    assert made["result"]["stages"]["total"].keys() == {"count", "mean", "p50", "p90", "p99", "p99.9", "max"}
    assert set(made["result"]["rows"][0]) >= {
        "at",
        "asked",
        "delivered",
        "p50",
        "p99",
        "max",
        "limit",
        "held",
    }
    shares = [share for share, _ in made["result"]["curves"]["total"]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert msgspec.json.decode(search().to_json())["finding"]["trials"][0]["windows"][0]["value"] == 0.02


def test_axes_have_round_marks() -> None:
    """And places between 0 and 1."""
    assert round_values(0.0) == [0.0, 1.0]
    assert round_values(9.3) == [0, 2, 4, 6, 8, 10]
    assert [mark for mark, _ in logarithmic([3, 800], str).ticks] == pytest.approx(
        [2, 5, 10, 20, 50, 100, 200, 500, 1000]
    )
    assert [mark for mark, _ in logarithmic([0.2, 70_000], str).ticks] == pytest.approx(
        [1, 10, 100, 1e3, 1e4, 1e5]
    )
    assert [logarithmic([1, 100], str).place(value) for value in (0, 1, 10, 100, 999)] == [0, 0, 0.5, 1, 1]
    assert [text for _, text in percentiles(0.9995).ticks] == ["0 %", "50 %", "90 %", "99 %", "99.9 %"]
    assert percentiles(0.99).place(0.9) == pytest.approx(0.5)
    assert span(7.0).place(7.0) == 1.0
    gap = chart("t", [Line("a", [(0, 1.0), (1, None), (2, 1.0)])], span(2), linear(1.0))
    assert len(re.findall(r"M[\d.]+ [\d.]+M", gap)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 µs"),
        (0.000_25, "250 µs"),
        (0.001, "1.00 ms"),
        (0.0523, "52.3 ms"),
        (0.9999, "1.00 s"),
        (75.0, "75.0 s"),
    ],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    """And a unit that suits them."""
    assert time_text(seconds) == text


def ground(png: bytes) -> bytes:
    """The colour of a screenshot's first pixel: no filter changes that one."""
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    return zlib.decompress(data)[1:4]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
@pytest.mark.parametrize(("theme", "colour"), [("light", "ffffff"), ("dark", "14181d")])
def test_a_browser_shows_it(tmp_path: Path, theme: str, colour: str) -> None:
    """A real one takes a picture of the page, on the ground of the reader's theme."""
    source, picture = tmp_path / "page.html", tmp_path / "page.png"
    source.write_text(page(report()), encoding="utf-8")
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    command += ["--window-size=1000,1600", f"--screenshot={picture}", source.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert ground(picture.read_bytes()).hex() == colour
    assert picture.stat().st_size > 20_000
