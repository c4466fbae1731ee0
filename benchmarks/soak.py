"""Ten minutes of a sidecar at 70 % of what it can do: do memory and descriptors stay flat, is nothing lost?

The sidecar, the upstream (which counts and keeps nothing) and the callers are processes of their own. A short
calibration with the same mixture of requests finds the capacity; then the mixture comes at a share of that
rate, open-loop, while the sidecar is looked at every few seconds. Exit 1 if a bound is missed.

    python -m benchmarks.soak [--minutes 10] [--load 0.7] [--json soak.json]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psutil
from msgspec import Struct

from benchmarks.rows_rounds import cores, pinned
from benchmarks.soak_judge import MB, Bounds, Finding, Sample, Totals, judge
from benchmarks.soak_load import Load
from benchmarks.upstream import TOKEN
from benchmarks.upstream_process import ROOT, report, upstream_process
from dispatcher.cli.loop import loop_factory, spare_collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CALIBRATION_SECONDS: Final = 5.0
CALLERS: Final = 128
"""Of the calibration: so many ask at once."""
SAMPLES: Final = 120
"""At most; with them the pairs of a half are few enough to take all."""
SAMPLE_SECONDS_MIN: Final = 0.5
SETTLE_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.05
END_SECONDS: Final = 30.0


class Result(Struct, frozen=True):
    """All of a soak."""

    minutes: float
    capacity: float
    """Requests of the mixture a second."""
    rate: float
    totals: Totals
    samples: list[Sample]
    findings: list[Finding]
    complaints: list[str]

    @property
    def holds(self) -> bool:
        return all(one.holds for one in self.findings)

    def __str__(self) -> str:
        last = self.samples[len(self.samples) // 2 :]
        resident = [one.resident_bytes / MB for one in last]
        latencies = [sorted(getattr(one, name) for one in last)[len(last) // 2] for name in ("p50", "p99")]
        return (
            f"{'holds' if self.holds else 'MISSED'}: {self.minutes:g} min at {self.rate:,.0f} of "
            f"{self.capacity:,.0f} requests/s, {self.totals.answered:,} answered, "
            f"{self.totals.confirmed_messages:,} messages; "
            f"resident {min(resident):.1f} to {max(resident):.1f} MB, "
            f"p50 {latencies[0] * 1000:.1f} ms, p99 {latencies[1] * 1000:.1f} ms; "
            + ", ".join(map(str, self.findings))
        )


class Sidecar:
    """The process under load."""

    def __init__(self, process: subprocess.Popen[bytes], intake: str, admin: str, upstream: str) -> None:
        self.process = process
        self._upstream = _address(upstream)
        self.address = _address(intake)
        self._admin = _address(admin)
        self._facts = psutil.Process(process.pid)

    async def status(self) -> dict[str, Any]:
        """What it says of itself."""
        reader, writer = await asyncio.open_connection(*self._admin)
        writer.write(b"GET /status HTTP/1.0\r\n\r\n")
        data = await reader.read()
        writer.close()
        found: dict[str, Any] = msgspec.json.decode(data.partition(b"\r\n\r\n")[2])
        return found

    async def sample(self, load: Load, began: float) -> Sample:
        """It, now, and the latencies since the last time."""
        status = await self.status()
        latencies, load.latencies = sorted(load.latencies), []
        count = len(latencies)
        return Sample(
            at=round(time.monotonic() - began, 3),
            resident_bytes=self._facts.memory_info().rss,
            descriptors=self.descriptors(),
            connections=status["intake"]["connections"],
            held=status["held"]["messages"],
            answers=count,
            p50=latencies[count // 2] if count else 0.0,
            p99=latencies[min(count - 1, count * 99 // 100)] if count else 0.0,
        )

    async def idle_descriptors(self) -> int:
        """How many it has once every caller has gone."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while _is_busy(await self.status()):  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(PAUSE_SECONDS)
        return self.descriptors()

    def descriptors(self) -> int:
        """Files and sockets, but for those to the upstream: their number is the limit's business."""
        ends = [tuple(one.raddr) for one in self._facts.net_connections("tcp")]
        return int(self._facts.num_fds()) - ends.count(self._upstream)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(END_SECONDS)


@contextmanager
def sidecar_process(url: str, cpu: int | None = None, *words: str) -> Iterator[Sidecar]:
    """`dispatcher serve` before an upstream, on free ports; on a core of its own where that can be."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("QSTASH_", "DISPATCHER_"))
    }
    env |= {"QSTASH_URL": url, "QSTASH_TOKEN": TOKEN}
    command = [sys.executable, "-m", "dispatcher", "serve", "--port", "0", "--admin-port", "0", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        if cpu is not None:
            psutil.Process(process.pid).cpu_affinity([cpu])
        heard = process.stderr.readline().decode()
        if "listening: intake " not in heard:
            raise RuntimeError(f"the sidecar did not start: {heard}")
        intake, _, admin = heard.partition("intake ")[2].strip().partition(", admin ")
        yield Sidecar(process, intake, admin, url)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _is_busy(status: dict[str, Any]) -> bool:
    return bool(status["intake"]["connections"] or status["held"]["messages"])


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


async def soak(
    sidecar: Sidecar, url: str, seconds: float, share: float, bounds: Bounds, seed: int = 1
) -> Result:
    """Calibrate, load, judge."""
    warm = Load(*sidecar.address, seed)
    capacity = await warm.as_fast_as_it_goes(CALLERS, min(CALIBRATION_SECONDS, seconds / 4))
    await warm.settle(SETTLE_SECONDS)
    before, counted = await sidecar.idle_descriptors(), report(url).messages
    load = Load(*sidecar.address, seed + 1)
    samples = await _watched(sidecar, load, capacity * share, seconds)
    await load.settle(SETTLE_SECONDS)
    after = await sidecar.idle_descriptors()
    totals = Totals(
        wanted=load.wanted,
        answered=load.answers,
        hung_up=load.hung_up,
        unexpected=load.unexpected + warm.unexpected,
        confirmed_messages=load.confirmed_messages,
        hung_up_messages=load.hung_up_messages,
        upstream_messages=report(url).messages - counted,
        idle_descriptors_before=before,
        idle_descriptors_after=after,
        exit_code=await asyncio.to_thread(sidecar.stop),
    )
    findings = judge(samples, totals, bounds)
    said = warm.complaints + load.complaints
    return Result(seconds / 60, capacity, capacity * share, totals, samples, findings, said)


async def _watched(sidecar: Sidecar, load: Load, rate: float, seconds: float) -> list[Sample]:
    """The load, and a look at the sidecar every few seconds of it."""
    began, samples = time.monotonic(), list[Sample]()
    pause = max(SAMPLE_SECONDS_MIN, seconds / SAMPLES)
    loading = asyncio.create_task(load.at_rate(rate, seconds))
    while not (await asyncio.wait([loading], timeout=pause))[0]:
        samples.append(await sidecar.sample(load, began))
    loading.result()
    return samples


def main(words: Sequence[str] | None = None, bounds: Bounds | None = None) -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument(
        "--load", type=float, default=0.7, help="share of the capacity (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--slope-mb", type=float, help="bound on the memory's slope, MB a minute")
    parser.add_argument("--growth", type=float, help="bound on the memory's growth, a share")
    given = parser.parse_args(words)
    asked = {
        name: getattr(given, name) for name in ("slope_mb", "growth") if getattr(given, name) is not None
    }
    bounds = msgspec.structs.replace(bounds or Bounds(), **asked)
    cpu, other = cores()
    spare_collector()
    with (
        pinned(cpu),
        upstream_process(cpu=cpu) as url,
        sidecar_process(url, other) as sidecar,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        result = runner.run(soak(sidecar, url, given.minutes * 60, given.load, bounds))
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    print(result)
    for words_of_one in result.complaints:
        print(f"unexpected: {words_of_one}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
