"""The outbox's benchmark: every row is measured, what is kept from the loop is seen, targets are judged."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks import durable as command
from benchmarks import durable_report
from benchmarks.callbacks import watched_loop
from benchmarks.durable_report import ASYNC, LINES, PLAIN, RATE, RECEIPT, SINGLE, Took, Way, ways
from benchmarks.loop_watch import Kept, LoopWatch

if TYPE_CHECKING:
    from pathlib import Path

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="the program `wrk` is not installed")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the CPU clock of another process is Linux's")


@LINUX
@needs_wrk
def test_every_row_is_measured_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting, with and without waiting; durable ones commit; tables can be made of what was written."""
    file = tmp_path / "figures.json"
    words = "--only lines,loop --rounds 0 --seconds 1 --connections 16 --messages 2000 --rate 200"
    assert command.main([*words.split(), "--directory", str(tmp_path), "--json", str(file)]) in (0, 1)
    written = json.loads(file.read_text())
    took = {
        (one["part"], one["synchronous"], one["wait"]): one["rounds"] for one in written["rounds"]["took"]
    }
    assert set(took) == {way for way in ways() if way.part == LINES}
    for way, (one,) in took.items():
        assert one["messages"] > 100
        assert (one["commits"] > 0) == (way[1] != PLAIN), way
    assert took[LINES, "full", ASYNC][0]["messages"] == 2_000
    kept = {(one["part"], one["synchronous"]): one["rounds"][0] for one in written["rounds"]["kept"]}
    assert set(kept) == {(part, one) for part in durable_report.PARTS for one in command.BESIDE}
    assert kept[SINGLE, "full"]["outbox"] > 0
    assert kept[SINGLE, PLAIN]["outbox"] == 0
    _, found = durable_report.read(file)
    assert durable_report.text(found) in capsys.readouterr().out
    assert durable_report.details(file).count("no outbox") == 4


def test_without_wrk_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured in its place."""
    monkeypatch.setattr("benchmarks.durable.shutil.which", lambda _: None)
    assert command.main([]) == 1
    assert "`wrk` is not installed" in capsys.readouterr().out


def took(rate: float, p50_ms: float = 0.0) -> Took:
    """One second."""
    return Took(int(rate), 1.0, 0.5, int(rate / 10), p50_ms, p50_ms * 2)


def test_ratios_are_of_rounds_and_targets_are_judged() -> None:
    """A machine that is slow for one round spoils no ratio; the worst of the loop's rounds counts."""
    shots = {way: [took(1_000), took(100)] for way in ways()}
    shots[Way(SINGLE, "full", RECEIPT)] = [took(400), took(40)]
    shots[Way(LINES, "full", RECEIPT)] = [took(50_000), took(45_000)]
    kept = {
        Way(SINGLE, PLAIN, RECEIPT): [Kept(late=9.0, paused=9.0)] * 2,
        Way(SINGLE, "full", RECEIPT): [Kept(paused=8.0, by_store=4.0), Kept(by_store=1.0, outbox=0.5)],
        Way(RATE, "full", RECEIPT): [Kept(by_store=1.0), Kept(outbox=6.0, outbox_name="Relay._claim")],
    }
    found = durable_report.report(shots, kept)
    single = next(one for one in found.figures if (one.part, one.synchronous) == (SINGLE, "full"))
    assert single.of_plain is not None
    assert (single.of_plain.median, single.of_plain.min, single.messages_a_commit) == (0.4, 0.4, 10)
    judged = {one.what: (one.value, one.holds) for one in found.judged}
    assert list(judged.values()) == [(0.4, False), (47_500, True), (4.0, True), (6.0, False)]
    assert "0.40, wanted is at least 0.5 — MISSED" in durable_report.text(found)
    assert "6.00, wanted is at most 5 — MISSED" in durable_report.text(found)


def test_what_another_thread_takes_is_told_apart() -> None:
    """A thread that takes Python's lock pauses a callback; one that only computes is late and not paused."""
    watch = LoopWatch()

    async def run() -> tuple[Kept, Kept]:
        watching = asyncio.ensure_future(watch.watch())
        await asyncio.sleep(0.01)
        watch.take()
        await asyncio.sleep(0.01)
        spin(0.05)
        await asyncio.sleep(0.01)
        alone = msgspec.json.decode(watch.take(), type=Kept)
        thread = threading.Thread(target=spin, args=(0.2,))
        thread.start()
        while thread.is_alive():
            spin(0.03)
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        beside = msgspec.json.decode(watch.take(), type=Kept)
        watching.cancel()
        return alone, beside

    with watched_loop("asyncio", watch) as factory, asyncio.Runner(loop_factory=factory) as runner:
        alone, beside = runner.run(run())
    assert alone.late > 30
    assert alone.by_store < 1
    assert beside.by_store > 3
    assert beside.paused >= beside.by_store


def spin(seconds: float) -> None:
    """Take so much CPU time, holding Python's lock."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
