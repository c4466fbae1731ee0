"""What an outbox costs the sidecar: the plain one beside `--outbox` with each `outbox.synchronous`.

*single*: `wrk` with 256 connections, each waiting for its answer, once for the service's id and once with
`Prefer: respond-async`. *lines*: one request of NDJSON, likewise. *rate*: so many publishes a second, by
`dispatcher bench`, for their latency. *loop*: how long the loop was kept from what was ready in each of
these, in daemons of their own that are watched. The sidecars, threads and all, have one core; callers and
upstream the other. Fails if an answer is missing, or the upstream counts another number.

    python -m benchmarks.durable --json benchmarks/results/durable.json      # five minutes
    python -m benchmarks.durable --only single,lines --rounds 2

Exit code: 0; 1 if a target was missed, something failed, or nothing could run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import durable_report
from benchmarks.durable_report import ASYNC, LINES, PARTS, PLAIN, RATE, RECEIPT, SETTINGS, SINGLE, Took, Way
from benchmarks.rows_rounds import cores, pinned
from benchmarks.sidecar import choice, progress
from benchmarks.sidecar_load import FailedError, lines, served, single_publishes, status_of
from benchmarks.upstream import TOKEN
from benchmarks.upstream_process import ROOT, upstream_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.loop_watch import Kept
    from benchmarks.sidecar_load import Served

ROUNDS: Final = 4
SECONDS: Final = 2.0
CONNECTIONS: Final = 256
BODY_BYTES: Final = 200
NDJSON_MESSAGES: Final = 100_000
PUBLISHES_PER_SECOND: Final = 2_000
RESPOND_ASYNC: Final = "respond-async"
LOOP: Final = "loop"
BESIDE: Final = (PLAIN, "full")
"""Whose loops are watched."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write, judge."""
    given = parsed(words)
    if shutil.which("wrk") is None:
        print("nothing can run here: the program `wrk` is not installed")
        return 1
    try:
        with tempfile.TemporaryDirectory(dir=given.directory) as directory:
            took, kept = Rounds(given, Path(directory)).play()
    except FailedError as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    report = durable_report.report(took, kept, given.connections, given.rate)
    print(durable_report.text(report))
    if given.json is not None:
        given.json.write_bytes(durable_report.document(report, took, kept, vars(given)))
    return 0 if all(one.holds for one in report.judged) else 1


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.durable",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, parts = parser.add_argument, (*PARTS, LOOP)
    add("--only", type=choice(parts), default=list(parts), help=f"{','.join(parts)} (default: all)")
    add("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    add("--rounds", type=int, default=ROUNDS, help="counted; 0: the first (default: %(default)s)")
    add("--seconds", type=float, default=SECONDS, help="of a round, whole ones (default: %(default)s)")
    add("--connections", type=int, default=CONNECTIONS, help="(default: %(default)s)")
    add("--messages", type=int, default=NDJSON_MESSAGES, help="of an NDJSON request (default: %(default)s)")
    add("--rate", type=int, default=PUBLISHES_PER_SECOND, help="publishes a second (default: %(default)s)")
    add("--directory", type=Path, default=Path(), help="where the outboxes are (default: here)")
    add("--json", type=Path, metavar="FILE", help="write every round, method and machine")
    return parser.parse_args(words)


class Rounds:
    """All rounds of one run: interleaved, the first of each not counted."""

    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self._given = given
        self._directory = directory
        self._server_cpu, self._other_cpu = cores()
        self._upstream = ""
        self._took: dict[Way, list[Took]] = {}
        self._kept: dict[Way, list[Kept]] = {}

    def play(self) -> tuple[dict[Way, list[Took]], dict[Way, list[Kept]]]:
        """What each took, and how long each of the watched loops was kept."""
        with (
            upstream_process(cpu=self._other_cpu) as self._upstream,
            pinned(self._other_cpu),
            ExitStack() as stack,
        ):
            parts = [part for part in PARTS if part in self._given.only]
            servers = {one: self._served(stack, "sidecar", one) for one in SETTINGS} if parts else {}
            watched = (
                {one: self._served(stack, "watched", one) for one in BESIDE}
                if LOOP in self._given.only
                else {}
            )
            for number in range(self._given.rounds + 1):
                for part in parts:
                    self._play_part(part, servers, number)
                for part in PARTS:
                    self._watch_part(part, watched, number)
        return self._took, self._kept

    def _served(self, stack: ExitStack, kind: str, synchronous: str) -> Served:
        settings = (
            {}
            if synchronous == PLAIN
            else {
                "DISPATCHER_OUTBOX_FILE": str(self._directory.resolve() / f"{kind}-{synchronous}.db"),
                "DISPATCHER_OUTBOX_SYNCHRONOUS": synchronous,
            }
        )
        return stack.enter_context(served(kind, self._given.loop, self._upstream, self._server_cpu, settings))

    def _play_part(self, part: str, servers: dict[str, Served], number: int) -> None:
        ways = [way for way in durable_report.ways() if way.part == part]
        turn = number % len(ways)
        for way in (*ways[turn:], *ways[:turn]):
            progress(f"round {number} of {self._given.rounds}: {part}, {way.synchronous}, {way.wait}")
            took = self._shot(way, servers[way.synchronous])
            if self._counts(number):
                self._took.setdefault(way, []).append(took)

    def _watch_part(self, part: str, servers: dict[str, Served], number: int) -> None:
        for synchronous, server in servers.items():
            progress(f"round {number} of {self._given.rounds}: {part}, loop of {synchronous}")
            way = Way(part, synchronous, RECEIPT)
            server.kept()
            self._shot(way, server)
            kept = server.kept()
            if self._counts(number):
                self._kept.setdefault(way, []).append(kept)

    def _counts(self, number: int) -> bool:
        return number > 0 or not self._given.rounds

    # ------------------------------------------------------------------------------------------- shots

    def _shot(self, way: Way, server: Served) -> Took:
        """One round of one row; CPU time until its last message has settled."""
        commits, cpu = _commits(server), server.cpu_seconds()
        prefer = RESPOND_ASYNC if way.wait == ASYNC else None
        if way.part == RATE:
            messages, seconds, p50, p99 = self._at_rate(server)
        else:
            messages, seconds, p50, p99 = self._at_full_speed(way.part, server, prefer)
        return Took(messages, seconds, server.cpu_seconds() - cpu, _commits(server) - commits, p50, p99)

    def _at_full_speed(
        self, part: str, server: Served, prefer: str | None
    ) -> tuple[int, float, float, float]:
        given = self._given
        if part == SINGLE:
            shot = single_publishes(
                server,
                self._upstream,
                given.seconds,
                connections=given.connections,
                body_bytes=BODY_BYTES,
                cpu=self._other_cpu,
                prefer=prefer,
            )
        else:
            assert part == LINES
            shot = lines(server, self._upstream, given.messages, body_bytes=BODY_BYTES, prefer=prefer)
        return shot.messages, shot.seconds, shot.p50_ms, shot.p99_ms

    def _at_rate(self, server: Served) -> tuple[int, float, float, float]:
        given, file = self._given, self._directory / "bench.json"
        command = [
            *(sys.executable, "-m", "dispatcher", "bench", "--target", server.url),
            *("--rate", str(given.rate), "--poisson", "--duration", f"{given.seconds:g}s"),
            *(
                "--warm-up",
                "500ms",
                "--body",
                str(BODY_BYTES),
                "--json",
                str(file),
                "--quiet",
                "--no-progress",
            ),
        ]
        environment = {**os.environ, "QSTASH_TOKEN": TOKEN, "QSTASH_URL": self._upstream}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FailedError(f"dispatcher bench: {done.stderr.strip()[-300:]}")
        result = msgspec.json.decode(file.read_bytes())["result"]
        if result["delivered"] != result["asked"]:
            raise FailedError(f"{result['delivered']} of {result['asked']} publishes were answered")
        total = result["stages"]["total"]
        return result["delivered"], result["seconds"], total["p50"] * 1e3, total["p99"] * 1e3


def _commits(server: Served) -> int:
    outbox = status_of(server).outbox
    return 0 if outbox is None else outbox.commits


if __name__ == "__main__":
    sys.exit(main())
