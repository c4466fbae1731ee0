"""Times one round of one row, in a process of its own: reads a `Job` from standard input, prints a `Round`.

Opens the client, lets it send some messages that are not timed (connections, caches, the limit that has to be
found), collects garbage, then times the rest from the first message to the last receipt. Fails loudly if a
message was not confirmed, or if the upstream counted another number. Started by `__main__`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.peers_syslog import peak_bytes
from benchmarks.rows import ROWS, Driver, Job, Round
from benchmarks.upstream_process import report, spent
from dispatcher.cli.loop import loop_factory, spare_collector


def main() -> None:
    """Time as standard input says."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    factory = loop_factory() if job.loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(timed(job))
    print(msgspec.json.encode(result).decode())


async def timed(job: Job) -> Round:
    """One round.

    Raises:
        RuntimeError: Messages were lost, doubled or refused.
    """
    async with ROWS[job.row].opener()(job) as driver:
        _check(job, await driver.send(job.warm_up), job.warm_up, "confirmed to the client")
        if job.spares_collector:
            spare_collector()
        else:
            gc.collect()
        cpu_of = driver.cpu_seconds or time.process_time
        before = report(job.url)
        cpu, began = cpu_of(), time.perf_counter()
        confirmed = await driver.send(job.messages)
        seconds, cpu = time.perf_counter() - began, cpu_of() - cpu
        upstream = spent(before, report(job.url))
        _check(job, confirmed, job.messages, "confirmed to the client")
        _check(job, upstream.messages, job.messages, "accepted upstream")
        _check(job, upstream.refused, 0, "refused upstream")
        return Round(job.messages, seconds, cpu, _peak(driver), upstream.requests, upstream.idle)


def _check(job: Job, found: int, due: int, what: str) -> None:
    if found != due:
        raise RuntimeError(f"{job.row}: {found:,} {what}, {due:,} were due")


def _peak(driver: Driver) -> int:
    if driver.peak_bytes is not None:
        return driver.peak_bytes()
    if Path("/proc/self/status").exists():
        return peak_bytes()  # `ru_maxrss` would know the memory of the parent before `exec`, too
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1_024


if __name__ == "__main__":
    main()
