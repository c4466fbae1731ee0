"""`python -m tests.simulation --seeds 2000 [--scenario NAME] [--start N]`: many seeds on every core."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.runs import failure
from tests.simulation.scenario import names

SHOWN = 3


def main() -> int:
    """Play the seeds; 1 if one fails, with the command that replays it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many, over all scenarios")
    parser.add_argument("--scenario", choices=names(), help="only this one")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    chosen = [given.scenario] if given.scenario else names()
    seeds = range(given.start, given.start + given.seeds)
    runs = [(chosen[seed % len(chosen)], seed) for seed in seeds]
    started = time.perf_counter()
    if given.seeds == 1:
        reports = [failure(*runs[0], full=True)]
    else:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            reports = list(pool.map(failure, *zip(*runs, strict=True), chunksize=8))
    failed = [report for report in reports if report is not None]
    for report in failed[:SHOWN]:
        print(report, end="\n\n")
    seconds = time.perf_counter() - started
    print(f"{len(runs)} seeds of {len(chosen)} scenarios in {seconds:.1f} s: {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
