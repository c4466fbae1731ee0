"""The soak: a short one holds loose bounds, and its judgement finds what it is there to find."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from benchmarks.soak import main
from benchmarks.soak_judge import MB, Bounds, Sample, Totals, growth, judge, slope

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOSE = Bounds(slope_mb=60.0, growth=0.3, descriptors=120.0, answered=0.9, backlog=1.0)
"""For a time in which caches still fill, on a machine that does other things too."""
GOOD = Totals(1000, 990, 10, 0, 5000, 20, 5005, 30, 31, 0)


def series(leak: float = 0.0, sockets: float = 0.0) -> list[Sample]:
    """Ten minutes of a sidecar: noise, a few outliers, and what leaks a minute (MB, descriptors)."""
    rng = random.Random(1)
    samples = []
    for number in range(120):
        minutes = number / 12
        warm = 20 * MB * min(1.0, minutes / 3)  # caches fill in the first half, which is not judged
        resident = 80 * MB + warm + leak * MB * minutes + rng.gauss(0, 0.2 * MB)
        resident += 15 * MB * (number % 17 == 0)
        connections = rng.randint(50, 150)
        descriptors = 30 + connections + int(sockets * minutes)
        samples.append(Sample(60 * minutes, int(resident), descriptors, connections, 10, 5000, 0.002, 0.01))
    return samples


def missed(samples: list[Sample], totals: Totals = GOOD) -> list[str]:
    """What does not hold."""
    return [one.name for one in judge(samples, totals, Bounds()) if not one.holds]


def test_what_stays_flat_holds() -> None:
    """Noise, outliers, a warm-up and connections that come and go are no leak."""
    assert missed(series()) == []


@pytest.mark.parametrize(
    ("samples", "name"),
    [
        (lambda: series(leak=1.5), "memory MB/min"),
        (lambda: series(leak=3.0), "memory growth"),
        (lambda: series(sockets=5), "descriptors/min"),
    ],
    ids=["memory", "much memory", "descriptors"],
)
def test_a_leak_is_found(samples: Callable[[], list[Sample]], name: str) -> None:
    """A steady one, under the same noise."""
    assert name in missed(samples())


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"idle_descriptors_after": 40}, "descriptors kept"),
        ({"unexpected": 1}, "unexpected answers"),
        ({"upstream_messages": 4999}, "messages lost"),
        ({"upstream_messages": 5021}, "messages nobody sent"),
        ({"answered": 900}, "share answered"),
        ({"exit_code": 1}, "exit code"),
    ],
)
def test_what_went_wrong_is_found(changed: dict[str, Any], name: str) -> None:
    """One at a time."""
    assert missed(series(), replace(GOOD, **changed)) == [name]


def test_a_load_that_was_too_much_is_found() -> None:
    """On a machine with other work: then nothing else that is said of it counts."""
    samples = [replace(one, p50=3.0) if number % 20 == 0 else one for number, one in enumerate(series())]
    assert missed(samples) == ["samples with a backlog"]


def test_the_slope_is_robust() -> None:
    """A fifth of the points far away does not move it; without points there is none."""
    points = [(float(x), 2.0 * x + (1e6 if x % 5 == 0 else 0)) for x in range(40)]
    assert slope(points) == pytest.approx(2.0, abs=0.1)
    assert slope([]) == slope([(1.0, 5.0)]) == 0.0
    assert growth([100.0] * 10 + [110.0] * 10) == pytest.approx(0.1)


@pytest.mark.alone
def test_a_short_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real one: flat within loose bounds, nothing lost, nothing unexpected, every figure in the file."""
    file = tmp_path / "soak.json"
    code = main(["--minutes", "0.7", "--load", "0.3", "--json", str(file)], LOOSE)
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.startswith("holds: 0.7 min at ")
    result = json.loads(file.read_bytes())
    assert len(result["samples"]) > 30
    assert result["totals"]["answered"] > 1000
    assert all(one["descriptors"] > 0 and one["resident_bytes"] > MB for one in result["samples"])
