"""The sidecar's benchmark: what it measures was answered and arrived, what was not makes it fail."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from benchmarks import sidecar as command
from benchmarks import sidecar_load, sidecar_report
from benchmarks.sidecar_burst import CLIENTS, Burst, bursts
from benchmarks.sidecar_load import FailedError, Served, Shot, lines, served, single_publishes
from benchmarks.sidecar_report import BARE, LINES, LOW_LEVEL, SIDECAR, Way
from benchmarks.upstream import TOKEN as UPSTREAM_TOKEN
from benchmarks.upstream_process import report as ask
from benchmarks.upstream_process import upstream_process
from tests.bench.support import TOKEN, bench
from tests.sidecar.daemon_support import environment, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="the program `wrk` is not installed")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the CPU clock of another process is Linux's")
pytestmark = LINUX


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """One that answers at once."""
    with upstream_process() as url:
        yield url


@pytest.fixture(scope="module")
def sidecar(upstream: str) -> Iterator[Served]:
    """A daemon in front of it."""
    with served("sidecar", "asyncio", upstream, None) as one:
        yield one


def publishes(server: Served, upstream: str | None) -> Shot:
    """A second of them."""
    return single_publishes(server, upstream, 1, connections=8, body_bytes=20, cpu=None)


@needs_wrk
def test_every_publish_that_counts_was_answered_and_arrived(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command measures every row, writes its report, and its figures can be read again."""
    file = tmp_path / "figures.json"
    words = "--only speed --loop asyncio --rounds 1 --seconds 1 --connections 16 --messages 3000 --json"
    assert command.main([*words.split(), str(file)]) in (0, 1)  # a busy machine may miss a target
    written = json.loads(file.read_text())
    rounds = {one["row"]: one["rounds"] for one in written["rounds"]["speed"]}
    assert {row: len(found) for row, found in rounds.items()} == dict.fromkeys(command.ROWS, 1)
    (singles,), (many,) = rounds[SIDECAR], rounds[LINES]
    assert singles["messages"] > 100
    assert 0 < singles["requests"] <= singles["messages"]
    assert (many["messages"], rounds[BARE][0]["requests"]) == (3_000, 0)
    assert many["requests"] >= 30
    assert all(found[0]["cpu_seconds"] > 0 for found in rounds.values())
    _, found = sidecar_report.read(file)
    assert sidecar_report.text(found) in capsys.readouterr().out
    assert sidecar_report.details(file).count("asyncio") == len(command.ROWS)


@needs_wrk
def test_refused_publishes_are_a_failure(
    sidecar: Served, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick 401 is no publish."""
    monkeypatch.setattr(sidecar_load, "TOKEN", "another")
    with pytest.raises(FailedError, match=r"(\d+) of \1 publishes failed"):
        publishes(sidecar, upstream)


@needs_wrk
def test_publishes_that_do_not_arrive_are_a_failure(sidecar: Served) -> None:
    """An answer is believed only if the upstream counts the message."""
    with upstream_process() as another, pytest.raises(FailedError, match="0 messages arrived upstream"):
        publishes(sidecar, another)


@needs_wrk
def test_a_server_that_is_gone_is_a_failure(sidecar: Served) -> None:
    """Nothing at all was answered."""
    nobody = sidecar._replace(url="http://127.0.0.1:1")
    with pytest.raises(FailedError):
        publishes(nobody, None)


def test_lines_are_counted_and_refused_ones_are_a_failure(
    sidecar: Served, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole blocks and a rest; each line has an answer with an id, or the round fails."""
    before = ask(upstream).messages
    shot = lines(sidecar, upstream, 1_234, body_bytes=20)
    assert (shot.messages, ask(upstream).messages - before) == (1_234, 1_234)
    monkeypatch.setattr(sidecar_load, "DESTINATION", "no destination")
    with pytest.raises(FailedError, match="of 10 lines 0 were accepted, 0 arrived"):
        lines(sidecar, upstream, 10, body_bytes=20)


def test_what_does_not_start_says_why(upstream: str) -> None:
    """With the server's own words."""
    with pytest.raises(FailedError, match="invalid choice"), served("nothing", "asyncio", upstream, None):
        pass


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_publishes_all_with_and_without_the_sidecar(client: str) -> None:
    """Straight, a request each; through the sidecar fewer; no error either way."""
    if client != "aiohttp":
        pytest.importorskip(CLIENTS[client].package)
    taken = bursts([client], 1, 60, (None, None), lambda _: None)
    (straight,), (through,) = taken[client, False], taken[client, True]
    assert (straight.confirmed, straight.requests, straight.errors) == (60, 60, {})
    assert (through.confirmed, through.errors) == (60, {})
    assert through.requests < 30


def test_a_client_that_lies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirmed is only what arrived upstream."""
    real = msgspec.json.decode

    def more(text: str, type: type) -> object:  # noqa: A002 - msgspec's own name
        found: Any = real(text, type=type)
        return Burst(found.seconds, found.confirmed + 1, {}) if type is Burst else found

    monkeypatch.setattr("benchmarks.sidecar_burst.msgspec.json.decode", more)
    with pytest.raises(FailedError, match="aiohttp: 12 were confirmed, 11 arrived"):
        bursts(["aiohttp"], 1, 10, (None, None), lambda _: None)


def shot(rate: float, cpu_us: float) -> Shot:
    """One second."""
    return Shot(int(rate), 1.0, rate * cpu_us / 1e6, 10)


def test_ratios_are_of_rounds_and_targets_are_judged() -> None:
    """A machine that is slow for one round spoils neither side's ratio; a missed target is said."""
    shots = {
        Way(BARE, "uvloop"): [shot(1_000, 10), shot(100, 100), shot(1_000, 10)],
        Way(LOW_LEVEL, "uvloop"): [shot(2_000, 5)] * 3,
        Way(SIDECAR, "uvloop"): [shot(800, 20), shot(80, 200), shot(700, 20)],
        Way(LINES, "uvloop"): [shot(4_000, 2)] * 3,
    }
    taken = {("aiohttp", False): [Burst(2.0, 10, {})], ("aiohttp", True): [Burst(1.0, 9, {"Timeout": 1}, 3)]}
    found = sidecar_report.report(shots, taken, 10)
    single = found.speed[2]
    assert (single.of_bare.median, single.of_bare.min, single.of_bare_by_cpu.median) == (0.8, 0.7, 0.5)
    assert single.messages_a_request == pytest.approx(1_580 / 30)
    assert [one.holds for one in found.judged] == [True, False]
    words = sidecar_report.text(found)
    assert "NDJSON of single publishes, uvloop: 5.71, wanted is at least 8 — MISSED" in words
    assert sidecar_report.burst_rows(found)[1][4:] == ("1.00", "9, 1 errors", "3")


def test_without_wrk_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured in its place."""
    monkeypatch.setattr("benchmarks.sidecar.shutil.which", lambda _: None)
    assert command.main(["--only", "speed"]) == 1
    said = capsys.readouterr().out
    assert "skipped speed: the program `wrk` is not installed" in said
    assert "nothing can run here" in said


@pytest.mark.alone
@pytest.mark.anyio
async def test_dispatcher_bench_loads_a_sidecar(upstream: str) -> None:
    """`--target` with single publishes, each awaited: none fails, and they leave as batches."""

    before = ask(upstream)
    async with serving(env=environment(upstream, UPSTREAM_TOKEN, DISPATCHER_SERVE_TOKENS=TOKEN)) as one:
        done = await bench("--target", one.intake, "--rate", "8000", "--duration", "125ms", "--warm-up", "0")
    after = ask(upstream)
    assert (done.code, after.messages - before.messages) == (0, 1_000), done
    assert after.requests - before.requests < 500
