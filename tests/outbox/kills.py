"""`kill -9` again and again: no message that was acknowledged is lost, doubled, or out of its queue's order.

    python -m tests.outbox.kills --rounds 200 --program library --seed 1

A program with an outbox is killed at random moments (as it opens, accepts, claims, settles, closes), started
again over the same file, and in the end left alone until everything has settled. After every killing:
acknowledged ⊆ delivered ∪ stored. At the end: delivered exactly once, in the queues' order, and dead is what
the service refused. Exit code 0 if all of it held.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dispatcher.testing import local_upstream
from tests.outbox.kill_programs import Library
from tests.outbox.kill_send import Send
from tests.outbox.kill_serve import Serve
from tests.outbox.kill_stage import FAULTS, Judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dispatcher.testing import LocalUpstream
    from tests.outbox.kill_programs import Program

PROGRAMS: Mapping[str, Callable[[Path, LocalUpstream], Program]] = {
    "library": Library,
    "serve": Serve,
    "send": Send,
}


class Finding(NamedTuple):
    """What a run found."""

    problems: list[str]
    phases: Counter[str]
    acknowledged: int
    delivered: int
    resent: int
    dead: int

    def __str__(self) -> str:
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(self.phases.items()))
        return (
            f"{self.phases.total()} killings ({phases}): {self.acknowledged:,} acknowledged, "
            f"{self.delivered:,} delivered, {self.resent:,} sent again, {self.dead:,} dead letters; "
            f"{len(self.problems) or 'no'} violations"
        )


async def run(
    make: Callable[[Path, LocalUpstream], Program],
    folder: Path,
    rounds: int,
    seed: int,
    tell: Callable[[str], None] = lambda words: None,
) -> Finding:
    """Kill a program so often, and judge it."""
    rng = random.Random(seed)
    phases: Counter[str] = Counter()
    async with local_upstream(faults=FAULTS, seed=seed) as upstream:
        program, judge = make(folder, upstream), Judge(upstream)
        for number in range(rounds):
            killed = await program.round(number, rng)
            phases[killed.phase] += 1
            judge.after_kill(killed)
            tell(f"{number + 1}: {killed.phase}, {len(killed.acknowledged)} acknowledged")
            if judge.problems:
                break
        dead = 0
        if not judge.problems:
            ended = await program.drain()
            judge.after_kill(ended)
            judge.at_end(ended.stored)
            dead = len(ended.stored.dead)
        counts = len(judge.acknowledged), len(judge.delivered), judge.resent, dead
        return Finding(judge.problems, phases, *counts)


def main() -> int:
    """Run it by its command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--program", choices=sorted(PROGRAMS), default="library")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    asked = parser.parse_args()
    print(f"--program {asked.program} --seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make = PROGRAMS[asked.program]
        finding = asyncio.run(
            run(make, Path(folder), asked.rounds, asked.seed, lambda words: print(words, flush=True))
        )
    print(finding, *finding.problems, sep="\n")
    return 1 if finding.problems else 0


if __name__ == "__main__":
    sys.exit(main())
