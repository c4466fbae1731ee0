"""`dispatcher bench` as a user runs it: real processes and sockets, an upstream that is asked afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from dispatcher.cli import bench as command
from dispatcher.cli import main
from dispatcher.testing import local_upstream
from tests.bench.support import TOKEN, bench, ended, read, start
from tests.cli.send_support import environment

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.anyio
SHORT = ("--warm-up", "0")


def asked_of(upstream: Any) -> dict[str, int]:
    """Requests by kind."""
    return {kind: sum(codes.values()) for kind, codes in upstream.summary()["requests"].items()}


async def test_the_library_on_an_upstream_of_its_own(tmp_path: Path) -> None:
    """Nothing set at all: it starts its upstream, measures, reports, and writes both files."""
    json, html = tmp_path / "b.json", tmp_path / "b.html"
    words = ("--rate", "800", "--poisson", "--duration", "1500ms", "--warm-up", "200ms", "--body", "50-300")
    done = await bench(*words, "--json", str(json), "--html", str(html), token=None)
    assert (done.code, done.stderr) == (0, ""), done
    made = read(json)
    result = made["result"]
    assert result["asked"] == result["delivered"] == pytest.approx(1_200, rel=0.15)
    assert made["options"]["body"] == "50-300"
    assert result["stages"]["total"]["p50"] >= result["stages"]["request"]["p50"] > 0
    assert result["stages"]["total"]["count"] == result["stages"]["queue"]["count"] == result["delivered"]
    assert result["by_status"] == {"200": result["requests"]}
    assert result["cpu_us"] > 0
    assert result["peak_memory_bytes"] > 10_000_000
    assert (result["upstream_cpu_share"] is not None) is Path("/proc/self/stat").exists()
    assert sum(row["delivered"] for row in result["rows"]) == result["delivered"]
    assert f"delivered     {result['delivered']:,} in" in done.stdout
    ET.fromstring(html.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("--url",), {"batch"}),
        (("--api", "publish", "--target"), {"publish", "enqueue"}),
        (("--api", "batch", "--target"), {"batch"}),
    ],
)
async def test_any_upstream(tmp_path: Path, words: tuple[str, ...], kinds: set[str]) -> None:
    """Every message arrives once, by the requests that were asked for; no secret is written anywhere."""
    json = tmp_path / "b.json"
    mix = ("--queues", "3", "--queue-share", "0.5", "--destinations", "2", "--steps", "200,600")
    async with local_upstream(token=TOKEN) as upstream:
        done = await bench(*SHORT, *mix, "--duration", "600ms", "--json", str(json), *words, upstream.url)
        rows, asked = upstream.accepted(), asked_of(upstream)
    assert done.code == 0, done
    assert len(rows) == read(json)["result"]["delivered"] == 240
    assert {kind for kind in ("batch", "publish", "enqueue") if asked.get(kind)} == kinds
    assert sum(row.queue is not None for row in rows) == 120
    assert {row.destination for row in rows} == {f"https://example.com/bench/{n}" for n in range(2)}
    assert TOKEN not in json.read_text() + done.stdout + done.stderr


async def test_errors_are_counted_by_kind_and_exit_1() -> None:
    """A bare target has no retries: what the upstream refuses has failed."""
    async with local_upstream(token=TOKEN, faults="throttle_bare=0.5", seed=2) as upstream:
        done = await bench(*SHORT, "--rate", "400", "--duration", "500ms", "--target", upstream.url)
        accepted = len(upstream.accepted())
    assert done.code == 1
    assert 50 < accepted < 150
    assert f"failed        {200 - accepted}: {200 - accepted} HTTP 429" in done.stdout


async def test_overload_is_seen_as_waiting(tmp_path: Path) -> None:
    """More than an upstream takes: the rest waits, and its waiting is in the latency."""
    json = tmp_path / "b.json"
    slow = ("--faults", "workers=1 work=20ms", "--batch-max-messages", "10", "--queue-max-messages", "100")
    done = await bench(*SHORT, *slow, "--rate", "1500", "--duration", "500ms", "--json", str(json))
    result = read(json)["result"]
    assert done.code == 0, done  # about 500/s, so a second and a half's worth: within --drain-within
    assert result["delivered"] == 750
    assert result["asked_rate"] == pytest.approx(1_500)
    assert result["achieved_rate"] < 700
    assert result["stages"]["room"]["max"] > 0.5
    assert result["stages"]["total"]["max"] == pytest.approx(result["seconds"] - 0.5, abs=0.25)
    assert result["stages"]["room"]["mean"] > 0.7 * result["stages"]["admission"]["mean"]
    assert max(row["waiting"] for row in result["rows"]) > 250


async def test_ctrl_c_reports_what_was_measured() -> None:
    """The load ends, and the report is of what there was."""
    async with local_upstream(token=TOKEN) as upstream:
        process = await start(*SHORT, "--rate", "300", "--duration", "1h", "--url", upstream.url)
        while len(upstream.accepted()) < 100:
            assert process.returncode is None
            await asyncio.sleep(0.01)  # another process goes on
        process.send_signal(signal.SIGINT)
        done = await ended(process)
        accepted = len(upstream.accepted())
    assert done.code == 0, done
    assert f"delivered     {accepted:,} in" in done.stdout
    assert "ended early: SIGINT was received" in done.stdout


async def test_a_terminal_shows_how_it_goes() -> None:
    """One line that is drawn anew, with rates, what is held, the latest quantiles; and gone at the end."""
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatcher", "bench", *SHORT, "--rate", "200", "--duration", "800ms"),
            env=environment(None, None),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=theirs,
        )
        assert await process.wait() == 0
        drawn = os.read(ours, 65_536).decode().split("\r\x1b[K")
    finally:
        os.close(ours)
        os.close(theirs)
    shown = [line for line in drawn if line]
    assert len(shown) >= 2
    assert all(" msg/s · " in line and " in flight · " in line and "p99 " in line for line in shown)
    assert drawn[-1] == ""


async def test_a_search_finds_a_rate(tmp_path: Path) -> None:
    """One bare connection to an upstream that takes 10 ms: a hundred a second and no more."""
    json = tmp_path / "b.json"
    async with local_upstream(token=TOKEN, faults="latency=10ms") as upstream:
        target = ("--target", upstream.url, "--connections", "1", "--find", "p50=40ms", "--rate", "70")
        limits = ("--duration", "300ms", "--precision", "1", "--json", str(json))
        done = await bench(*SHORT, *target, *limits)
    assert done.code == 0, done
    finding = read(json)["finding"]
    assert finding["is_complete"]
    assert 40 <= finding["rate"] <= 130
    assert done.stderr.count(" msg/s  p50 ") == len(finding["trials"]) >= 3
    assert "msg/s keeps p50 ≤ 40 ms" in done.stdout


async def test_max_messages_is_a_bound_on_everything() -> None:
    """Warm-up and measurement together, also of a search."""
    async with local_upstream(token=TOKEN) as upstream:
        words = ("--url", upstream.url, "--rate", "500", "--warm-up", "100ms")
        done = await bench(*words, "--duration", "5s", "--max-messages", "80")
        assert len(upstream.accepted()) == 80
        assert done.code == 0
        assert "ended early: --max-messages is reached" in done.stdout
        done = await bench(*words, "--find", "p99=1s", "--duration", "200ms", "--max-messages", "300")
        assert len(upstream.accepted()) == 380
        assert done.code == 1
        assert "--max-messages is reached" in done.stdout


@pytest.mark.parametrize("way", ["--url", "--target"])
async def test_a_refused_token_ends_it_at_once(way: str) -> None:
    """Exit 2, long before the load would have ended, and in the service's words."""
    async with local_upstream(token="another") as upstream:
        done = await bench("--rate", "100", "--duration", "1h", way, upstream.url)
    assert done.code == 2
    assert "the upstream refuses the token or the URL" in done.stderr
    assert "401" in done.stderr
    assert TOKEN not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--url", "https://qstash.upstash.io"), "target: qstash.upstash.io is the real service"),
        (("--target", "https://qstash.upstash.io"), "add --real-service and --max-messages"),
        (("--real-service",), "max-messages: qstash.upstash.io is the real service"),
        (("--real-service", "--max-messages", "5"), "destinations: qstash.upstash.io is the real service"),
        (("--target", "127.0.0.1:80"), "target: '127.0.0.1:80' is not allowed; allowed is `library`, or"),
        (("--target", "http://a.example", "--url", "http://b.example"), "leave it"),
        (("--rate", "5", "--steps", "1,2"), "steps: '1,2' is not allowed; leave it or --rate"),
        (("--bursts", "5@1s", "--poisson"), "poisson: 'on' is not allowed"),
        (("--find", "p99=1s", "--steps", "1,2"), "steps: '1,2' is not allowed; --find raises"),
        (("--find", "p99"), "find: 'p99' is not allowed; allowed is QUANTILE=TIME"),
        (("--duration", "soon"), "duration: 'soon' is not allowed"),
        (("--connections", "0"), "connections: 0 is not allowed; allowed is 1 to 10000"),
        (("--queue-share", "nan"), "queue-share: nan is not allowed"),
        (("--faults", "typo=1"), "typo"),
        (("--max-messages", "0"), "max-messages: 0 is not allowed"),
        (("--json", "/nowhere/at/all.json"), "/nowhere/at/all.json cannot be written: No such file"),
    ],
)
async def test_wrong_usage_is_exit_2_and_sends_nothing(
    words: tuple[str, ...],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, and the real service is never reached: it is refused before anything is opened."""

    def load_nothing(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("a load was begun")

    monkeypatch.setattr(command, "bench", load_nothing)
    monkeypatch.setenv("QSTASH_TOKEN", TOKEN)
    monkeypatch.delenv("QSTASH_URL", raising=False)
    assert main(["bench", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert error in said.err
    assert len(said.err.splitlines()) == 1


async def test_the_real_service_in_the_environment_is_refused_too() -> None:
    """QSTASH_URL is what a shell that works with the service has set."""
    done = await bench("--rate", "1", url="https://qstash-eu.upstash.io")
    assert (done.code, done.stdout) == (2, "")
    assert "qstash-eu.upstash.io is the real service" in done.stderr


async def test_results_that_cannot_be_written_are_exit_1() -> None:
    """A full disk is told, and the report still printed."""
    full = Path("/dev/full")
    if not (full.exists() and stat.S_ISCHR(full.stat().st_mode) and os.access(full, os.W_OK)):
        pytest.skip("no /dev/full here")
    done = await bench(*SHORT, "--rate", "100", "--duration", "100ms", "--json", str(full))
    assert done.code == 1
    assert "could not be written: No space left" in done.stderr
    assert "delivered" in done.stdout
