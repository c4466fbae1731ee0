"""What the sidecar takes: its publishes beside a bare aiohttp handler, NDJSON beside both; bursts of clients.

*speed*: the daemon on one core; `wrk` with 256 connections and an upstream that answers at once on the other.
Each of its publishes is compared with the same request to an aiohttp handler that reads the body and answers
a constant. Fails if an answer is no 200, or if the upstream counts another number. *burst*: 800 publishes at
once, by HTTP clients and the official SDK, against an upstream of 30 ms, with and without the sidecar.

    python -m benchmarks.sidecar                                     # five minutes
    python -m benchmarks.sidecar --only speed --loop uvloop --rounds 3
    python -m benchmarks.sidecar --json FILE

Exit code: 0; 1 if a target was missed, something failed, or nothing could run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import sidecar_report
from benchmarks.rows_rounds import cores, pinned
from benchmarks.sidecar_burst import CLIENTS, PUBLISHES, Burst, bursts
from benchmarks.sidecar_load import FailedError, Shot, lines, served, single_publishes
from benchmarks.sidecar_report import BARE, LINES, LOW_LEVEL, SIDECAR, Way
from benchmarks.upstream_process import upstream_process
from dispatcher.cli.loop import loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.sidecar_load import Served

    Progress = Callable[[str], None]

ROUNDS: Final = 7
BURST_ROUNDS: Final = 5
SECONDS: Final = 2.0
CONNECTIONS: Final = 256
BODY_BYTES: Final = 200
NDJSON_MESSAGES: Final = 300_000
ROWS: Final = (BARE, LOW_LEVEL, SIDECAR, LINES)
PARTS: Final = ("speed", "burst")
LOOPS: Final = ("uvloop", "asyncio")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write, judge."""
    given = parsed(words)
    shots: dict[Way, list[Shot]] = {}
    taken: dict[tuple[str, bool], list[Burst]] = {}
    try:
        if "speed" in given.only:
            shots = speed(given)
        if "burst" in given.only:
            taken = bursts(_clients(), given.burst_rounds, given.publishes, cores(), progress)
    except FailedError as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    if not shots and not taken:
        print("nothing can run here")
        return 1
    report = sidecar_report.report(shots, taken, given.publishes)
    print(sidecar_report.text(report))
    if given.json is not None:
        given.json.write_bytes(sidecar_report.document(report, shots, taken, vars(given)))
    return 0 if all(one.holds for one in report.judged) else 1


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sidecar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    available = LOOPS if loop_factory() is not None else LOOPS[1:]
    add("--only", type=choice(PARTS), default=list(PARTS), help="speed,burst (default: both)")
    add("--loop", type=choice(available), default=list(available), help="uvloop,asyncio (default: both)")
    add("--rounds", type=int, default=ROUNDS, help="of speed, counted (default: %(default)s)")
    add("--seconds", type=float, default=SECONDS, help="of a round, whole ones (default: %(default)s)")
    add("--connections", type=int, default=CONNECTIONS, help="(default: %(default)s)")
    add("--messages", type=int, default=NDJSON_MESSAGES, help="of an NDJSON request (default: %(default)s)")
    add("--burst-rounds", type=int, default=BURST_ROUNDS, help="of burst (default: %(default)s)")
    add("--publishes", type=int, default=PUBLISHES, help="of a burst (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every round, method and machine")
    return parser.parse_args(words)


def choice(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A type of argument: some of these, with commas between them."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        for one in chosen:
            if one not in allowed:
                raise argparse.ArgumentTypeError(f"no `{one}` here; there are {', '.join(allowed)}")
        return chosen

    return read


def _clients() -> list[str]:
    missing = {name: one.package for name, one in CLIENTS.items() if find_spec(one.package) is None}
    for name, package in missing.items():
        print(f"skipped {name}: the package `{package}` is not installed")
    return [name for name in CLIENTS if name not in missing]


def speed(given: argparse.Namespace) -> dict[Way, list[Shot]]:
    """All rounds of every row, under each loop."""
    if shutil.which("wrk") is None:
        print("skipped speed: the program `wrk` is not installed")
        return {}
    shots: dict[Way, list[Shot]] = {}
    for loop in given.loop:
        shots |= _speed_under(loop, given)
    return shots


def _speed_under(loop: str, given: argparse.Namespace) -> dict[Way, list[Shot]]:
    """Interleaved: a machine that slows down slows all of them; the first round is not counted."""
    server_cpu, other_cpu = cores()
    shots: dict[Way, list[Shot]] = {Way(row, loop): [] for row in ROWS}
    with upstream_process(cpu=other_cpu) as upstream, pinned(other_cpu), ExitStack() as stack:
        servers = {
            name: stack.enter_context(served(name, loop, upstream, server_cpu))
            for name in (BARE, LOW_LEVEL, SIDECAR)
        }
        for number in range(given.rounds + 1):
            turn = number % len(ROWS)
            for row in (*ROWS[turn:], *ROWS[:turn]):
                progress(f"speed, {loop}, round {number} of {given.rounds}: {row}")
                shot = _shot(row, servers, upstream, given, other_cpu)
                if number:
                    shots[Way(row, loop)].append(shot)
    return shots


def _shot(
    row: str, servers: dict[str, Served], upstream: str, given: argparse.Namespace, cpu: int | None
) -> Shot:
    if row == LINES:
        return lines(servers[SIDECAR], upstream, given.messages, body_bytes=BODY_BYTES)
    return single_publishes(
        servers[row],
        upstream if row == SIDECAR else None,
        given.seconds,
        connections=given.connections,
        body_bytes=BODY_BYTES,
        cpu=cpu,
    )


def progress(words: str) -> None:
    """Say what is measured now, to who looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
