"""The benchmark of what metrics cost: it runs, says every figure, and fails where one is too high."""

from __future__ import annotations

import pytest

from benchmarks import metrics_cost
from benchmarks.metrics_cost import Pair, Scrape, judge, still_histograms
from dispatcher.core.tally import Histogram


def test_it_measures_both_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A short run with real processes: three ratios, and a scrape that took time."""
    metrics_cost.main(["--rounds", "1", "--messages", "4000", "--lines", "4000"])
    said = capsys.readouterr().out
    for words in ("send_many: counted", "send: counted", "NDJSON: scraped", "a scrape: "):
        assert words in said


def test_what_is_too_dear_is_told() -> None:
    """Each bound by itself."""
    cheap, dear = Pair("a", [98.0, 99.0, 97.5], [100.0] * 3), Pair("b", [95.0, 96.0, 94.0], [100.0] * 3)
    assert judge([cheap], Scrape(0.005, 10_000)) == []
    assert "b: 0.950" in judge([cheap, dear], Scrape(0.005, 10_000))[0]
    assert "1.33%" in judge([cheap], Scrape(0.2, 10_000))[0]


def test_histograms_stand_still_only_meanwhile() -> None:
    """Nothing is observed inside, everything afterwards, also if the round failed."""
    histogram = Histogram((1.0,))

    def failing_round() -> None:
        with still_histograms():
            histogram.observe(0.5)
            raise RuntimeError("a round failed")

    with pytest.raises(RuntimeError, match="round"):
        failing_round()
    assert sum(histogram.counts) == 0
    histogram.observe(0.5)
    assert sum(histogram.counts) == 1
