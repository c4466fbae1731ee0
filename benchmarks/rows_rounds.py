"""Plays the rounds of one configuration: every row in turn, each time in a process of its own.

Interleaved, so that a machine that slows down slows all of them; each round begins with another row. The
first round is not counted: it shows how many messages make a round as long as asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct

from benchmarks.rows import AT_ONCE, ROWS, Job, Round
from benchmarks.upstream import TOKEN
from benchmarks.upstream_process import ROOT, make_certificate, upstream_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.rows import Configuration

MESSAGES_MAX: Final = 3_000_000
WARM_UP_SHARE: Final = 0.1
PATIENCE_SECONDS: Final = 180.0


class Contender(NamedTuple):
    """A row under one event loop."""

    row: str
    loop: str
    """uvloop, asyncio, or none."""


class Plan(Struct, frozen=True):
    """How long, and how often."""

    rounds: int
    seconds: float
    """A round of a row, about."""
    messages: int | None = None
    """In each round, instead."""
    spares_collector: bool = True
    """Whether each row's process has its garbage collector look less often."""


class Site(NamedTuple):
    """Where the upstream is, and who runs on which core."""

    url: str
    cpu: int | None
    other_cpu: int | None
    ca_file: Path | None


class FailedError(Exception):
    """A row did not deliver what it should have."""


def cores() -> tuple[int | None, int | None]:
    """The client's and the upstream's, where there are two and processes can be kept on one."""
    if not hasattr(os, "sched_setaffinity"):
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[-1]) if len(allowed) > 1 else (None, None)


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """This process on one core, for the length of the block."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def site(configuration: Configuration) -> Iterator[Site]:
    """An upstream as the configuration says."""
    cpu, other = cores()
    with tempfile.TemporaryDirectory() as directory:
        certificate = make_certificate(Path(directory)) if configuration.tls else None
        latency = configuration.latency_ms / 1_000
        with upstream_process(latency, cpu=other, certificate=certificate) as url:
            yield Site(url, cpu, other, certificate)


def play(
    configuration: Configuration,
    contenders: Sequence[Contender],
    plan: Plan,
    tell: Callable[[str], None],
) -> dict[Contender, list[Round]]:
    """All rounds of one configuration.

    Args:
        tell: Is told about progress.

    Raises:
        FailedError: A row lost, doubled or could not send messages.
    """
    counted: dict[Contender, list[Round]] = {one: [] for one in contenders}
    sizes = {one: first_size(one.row, configuration, plan) for one in contenders}
    with site(configuration) as where:
        for number in range(plan.rounds + 1):
            turn = number % len(contenders)
            for one in (*contenders[turn:], *contenders[:turn]):
                tell(f"round {number} of {plan.rounds}: {one.row}, {one.loop}")
                took = timed(job_of(one, configuration, sizes[one], where, plan))
                if number:
                    counted[one].append(took)
                else:
                    sizes[one] = next_size(one.row, configuration, plan, took)
    return counted


def job_of(contender: Contender, configuration: Configuration, messages: int, where: Site, plan: Plan) -> Job:
    """One round's orders."""
    return Job(
        row=contender.row,
        loop=contender.loop,
        url=where.url,
        token=TOKEN,
        configuration=configuration,
        messages=messages,
        warm_up=max(AT_ONCE, int(messages * WARM_UP_SHARE)),
        cpu=where.cpu,
        other_cpu=where.other_cpu,
        ca_file=None if where.ca_file is None else str(where.ca_file),
        spares_collector=plan.spares_collector,
    )


def timed(job: Job) -> Round:
    """One round in a process of its own."""
    environment = dict(os.environ)
    if job.ca_file is not None:
        environment["SSL_CERT_FILE"] = job.ca_file
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.rows_child"],
            cwd=ROOT,
            env=environment,
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{job.row} ({job.loop}): no end after {PATIENCE_SECONDS:g} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise FailedError(f"{job.row} ({job.loop}): {words[-1]}")
    return msgspec.json.decode(done.stdout, type=Round)


def first_size(row: str, configuration: Configuration, plan: Plan) -> int:
    """Messages of the round that is not counted, by what the row is likely to reach."""
    if plan.messages is not None:
        return plan.messages
    rate = float(ROWS[row].guess)
    if configuration.latency_ms:
        rate = min(rate, AT_ONCE * _unit(row, configuration) * 1_000 / configuration.latency_ms)
    return _whole(row, configuration, rate * plan.seconds / 2)


def next_size(row: str, configuration: Configuration, plan: Plan, took: Round) -> int:
    """Messages of a round that is counted."""
    if plan.messages is not None:
        return plan.messages
    return _whole(row, configuration, took.messages / took.seconds * plan.seconds)


def _unit(row: str, configuration: Configuration) -> int:
    """Messages in one request of the row."""
    return 1 if ROWS[row].is_single else configuration.batch


def _whole(row: str, configuration: Configuration, messages: float) -> int:
    """Whole batches, and at least one for each request that is out at once."""
    unit = _unit(row, configuration)
    return max(AT_ONCE * unit, min(MESSAGES_MAX, int(messages)) // unit * unit)
