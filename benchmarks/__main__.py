"""What it costs to hand messages to the upstream: the dispatcher beside the ceiling and its alternatives.

Times every row in processes of their own, in interleaved rounds, against a minimal upstream on another core,
and prints messages a second, wall and CPU time a message with their spread, and ratios. The default is the
headline configuration: bodies of 200 bytes, batches of 100, an upstream that answers at once.

    python -m benchmarks                                      # a few minutes
    python -m benchmarks --quick                              # about one
    python -m benchmarks --full --json FILE                   # one dimension after the other
    python -m benchmarks --bodies 1k --rows send_many,syslog-ng
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import report, report_files
from benchmarks.rows import ROWS, Configuration
from benchmarks.rows_rounds import Contender, FailedError, Plan, play
from dispatcher.cli.loop import loop_factory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.report import Figures
    from benchmarks.rows import Round

    Played = tuple[Configuration, Mapping[Contender, Sequence[Round]], Sequence[Figures]]

QUICK: Final = Plan(rounds=3, seconds=0.4)
NORMAL: Final = Plan(rounds=7, seconds=1.0)
LOOPS: Final = ("uvloop", "asyncio")
FULL: Final = (
    Configuration(),
    Configuration(body_bytes=1_000),
    Configuration(body_bytes=10_000),
    Configuration(batch=10),
    Configuration(batch=500),
    Configuration(latency_ms=30),
    Configuration(latency_ms=100),
    Configuration(tls=True),
)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a row failed."""
    given = parsed(words)
    skipped = {row: why for row in given.rows if (why := ROWS[row].missing()) is not None}
    contenders = contenders_of([row for row in given.rows if row not in skipped], given.loop)
    if not contenders:
        print("nothing can run here: " + "; ".join(f"{row}: {why}" for row, why in skipped.items()))
        return 1
    plan = plan_of(given)
    played: list[Played] = []
    try:
        for configuration in configurations(given):
            rounds = play(configuration, contenders, plan, _progress)
            rows = report.figures(rounds)
            played.append((configuration, rounds, rows))
            show(configuration, rows, as_markdown=given.markdown)
    except FailedError as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    for row, why in skipped.items():
        print(f"skipped {row}: {why}")
    write(given, plan, played, skipped)
    return 0


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=_rows, default=list(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--loop", type=_loops, default=_loops(None), help="uvloop,asyncio (default: both)")
    parser.add_argument("--bodies", type=_sizes, default=[200], help="bytes, such as 200,1k,10k")
    parser.add_argument("--batches", type=_sizes, default=[100], help="messages, such as 10,100,500")
    parser.add_argument("--latency", type=_sizes, default=[0], help="upstream's ms, such as 0,30,100")
    parser.add_argument("--tls", action="store_true", help="talk TLS to the upstream")
    parser.add_argument("--rounds", type=_positive, help="that are counted (default: 7)")
    parser.add_argument("--seconds", type=float, help="of a round, about (default: 1)")
    parser.add_argument("--messages", type=_positive, help="in each round, instead")
    parser.add_argument(
        "--collector",
        choices=("spared", "default"),
        default="spared",
        help="spared: as a program would, each row's process freezes what is there and collects less often",
    )
    parser.add_argument("--quick", action="store_true", help="three short rounds, the first loop only")
    parser.add_argument("--full", action="store_true", help="every body, batch, latency and TLS in turn")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round, method and machine")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the first configuration")
    return parser.parse_args(words)


def plan_of(given: argparse.Namespace) -> Plan:
    """How long and how often."""
    base = QUICK if given.quick else NORMAL
    rounds = base.rounds if given.rounds is None else given.rounds
    seconds = base.seconds if given.seconds is None else given.seconds
    return Plan(rounds, seconds, given.messages, given.collector == "spared")


def configurations(given: argparse.Namespace) -> Sequence[Configuration]:
    """What is measured, in turn."""
    if given.full:
        return FULL
    return [
        Configuration(body, batch, latency, given.tls)
        for body, batch, latency in product(given.bodies, given.batches, given.latency)
    ]


def contenders_of(rows: Sequence[str], loops: Sequence[str]) -> list[Contender]:
    """Each row under each loop; what has none of Python's once."""
    return [
        *(Contender(row, loop) for loop in loops for row in rows if ROWS[row].has_loop),
        *(Contender(row, "none") for row in rows if not ROWS[row].has_loop),
    ]


def show(configuration: Configuration, rows: Sequence[Figures], *, as_markdown: bool) -> None:
    """One configuration's table."""
    words = str(configuration)
    print(f"\n{'### ' if as_markdown else ''}{words[0].upper()}{words[1:]}\n")
    print(report.markdown_table(rows) if as_markdown else report.text_table(rows))
    for warning in report.warnings(rows):
        print(f"warning: {warning}")
    sys.stdout.flush()


def write(
    given: argparse.Namespace, plan: Plan, played: Sequence[Played], skipped: Mapping[str, str]
) -> None:
    """The files that were asked for."""
    if given.json is not None:
        given.json.write_bytes(report_files.document(plan, played, skipped))
    if given.svg is not None:
        configuration, _, rows = played[0]
        chart = report.chart(configuration, rows, report_files.machine_line())
        given.svg.write_text(chart, encoding="utf-8")


def _progress(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def _rows(words: str) -> list[str]:
    return _some(words, ROWS, "row")


def _loops(words: str | None) -> list[str]:
    available = LOOPS if loop_factory() is not None else ("asyncio",)
    return list(available) if words is None else _some(words, available, "loop")


def _some(words: str, allowed: Sequence[str] | Mapping[str, object], what: str) -> list[str]:
    chosen = [word for word in words.split(",") if word]
    for word in chosen:
        if word not in allowed:
            raise argparse.ArgumentTypeError(f"no {what} `{word}` here; there are {', '.join(allowed)}")
    return chosen


def _sizes(words: str) -> list[int]:
    try:
        sizes = [
            int(word.removesuffix("k")) * (1_000 if word.endswith("k") else 1) for word in words.split(",")
        ]
    except ValueError:
        raise argparse.ArgumentTypeError(f"`{words}` is no list such as 200,1k,10k") from None
    if min(sizes) < 0:
        raise argparse.ArgumentTypeError("sizes are not negative")
    return sizes


def _positive(words: str) -> int:
    if not words.isdigit() or int(words) < 1:
        raise argparse.ArgumentTypeError(f"`{words}` is no number above 0")
    return int(words)


if __name__ == "__main__":
    sys.exit(main())
