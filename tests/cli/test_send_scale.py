"""`dispatcher send` with very many lines, and with an upstream that is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dispatcher.cli._pipeline import BLOCK_LINES, WINDOW_LINES
from dispatcher.testing import local_upstream
from tests.cli.send_support import (
    PATIENCE_SECONDS,
    TOKEN,
    environment,
    items,
    lines_in,
    read,
    sending,
    until,
    write,
)
from tests.devserver.support import dev_process

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "send_memory.py"


@pytest.mark.parametrize("through_pipe", [False, True])
def test_memory_does_not_grow_with_the_lines(*, through_pipe: bool) -> None:
    """Below 200 MB, at most 20 MB more at the end than at line 100,000; a shorter run of the benchmark."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--lines", "150000", *(["--pipe"] if through_pipe else [])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "receipts in order" in done.stdout
    measured = re.search(r"resident at line 100,000: ([0-9.]+) MB", done.stdout)
    assert measured is not None
    assert 20 < float(measured[1]) < 200


@pytest.mark.anyio
async def test_reading_stops_at_the_window(tmp_path: Path) -> None:
    """While the first line cannot be settled, no more than 100,000 lines leave; then the rest follows."""
    count, out = WINDOW_LINES + 30_000, tmp_path / "out"
    lines = items(count)
    lines[0]["body"] = "POISON"
    words = (write(tmp_path / "in", lines), "--receipts", str(out), "--retry-max-delay", "0.5")
    async with local_upstream(faults="poison_500=POISON", keep_bodies=False) as upstream:
        async with sending(*words, env=environment(upstream.url)) as process:
            await until(lambda: upstream.summary()["accepted"] > WINDOW_LINES - 2 * BLOCK_LINES)
            for _ in range(20):  # what does not stop here is past it at once
                await asyncio.sleep(0.05)
                assert upstream.summary()["accepted"] < WINDOW_LINES
            assert lines_in(out) == 0
            upstream.set_faults(None)
            async with asyncio.timeout(PATIENCE_SECONDS):
                stderr = (await process.communicate())[1].decode()
        assert upstream.summary()["accepted"] == count
    assert process.returncode == 0, stderr
    receipts = read(out)
    assert receipts[0]["attempts"] > 2
    assert [receipt["line"] for receipt in receipts] == list(range(1, count + 1))


@pytest.mark.anyio
async def test_a_slow_reader_of_the_receipts_slows_the_reading(tmp_path: Path) -> None:
    """Receipts do not pile up in memory while nobody takes them; once somebody does, all is delivered."""
    count = 80_000
    words = (write(tmp_path / "in", items(count)), "--receipts", "-")
    async with local_upstream(keep_bodies=False) as upstream:
        async with sending(*words, env=environment(upstream.url)) as process:
            await until(lambda: upstream.summary()["accepted"] > 15_000)
            for _ in range(20):  # the stream of this test takes 128 KiB before it pauses the pipe
                await asyncio.sleep(0.05)
                assert upstream.summary()["accepted"] < 60_000
            async with asyncio.timeout(PATIENCE_SECONDS):
                stdout, stderr = await process.communicate()
        assert upstream.summary()["accepted"] == count
    assert process.returncode == 0, stderr
    assert stdout.count(b"\n") == count


@pytest.mark.anyio
async def test_an_upstream_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """`kill -9` amid the sending, started again on the same port: all delivered, nothing twice, exit 0."""
    count, out = 20_000, tmp_path / "out"
    name = write(tmp_path / "in", items(count))
    state = ("--token", TOKEN, "--state", str(tmp_path / "state"), "--faults", "latency=30ms")
    words = (name, "--receipts", str(out), "--limit-max-in-flight", "4")
    with dev_process(tmp_path, *state) as first:
        async with sending(*words, env=environment(first.url)) as process:
            await until(lambda: lines_in(out) > 2_000)
            first.kill()
            assert lines_in(out) < count
            with dev_process(tmp_path, *state, "--port", str(first.port)) as second:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    stderr = (await process.communicate())[1].decode()
                summary = await asyncio.to_thread(_summary, second.url)
    assert process.returncode == 0, stderr
    assert "cannot connect" in stderr
    assert f"{count:,} lines: {count:,} delivered, 0 failed" in stderr
    assert (summary["accepted"], summary["distinct"]) == (count, count)
    assert summary["accepted_again_by_id"] == summary["accepted_again_by_digest"] == 0
    receipts = read(out)
    assert len({receipt["messageId"] for receipt in receipts}) == count
    assert [receipt["line"] for receipt in receipts] == list(range(1, count + 1))


def _summary(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/dispatcher-dev/summary", timeout=10) as reply:
        summary: dict[str, Any] = json.loads(reply.read())
        return summary
