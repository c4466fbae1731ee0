"""A process that holds a store is killed at a random moment: what it had acknowledged is there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.imports import ROOT
from tests.outbox.sqlite_support import claim_all, opened

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


class Told(dict[str, set[int]]):
    """Numbers by what the child said of them."""

    def __init__(self, output: str) -> None:
        super().__init__(kept=set(), given=set(), settled=set())
        for line in output.splitlines(keepends=True):
            word, *rest = line.split()
            if line.endswith("\n") and word in self:
                self[word] |= set(map(int, rest))


def run_and_kill(path: Path, mode: str, seconds: float, lane: int = 0) -> Told:
    """What a child had said when it was killed, so long after it had opened the store."""
    command = [sys.executable, "-m", "tests.outbox.sqlite_child", str(path), mode, str(lane)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None  # without a buffer: `communicate` knows nothing of what one has read
        first = child.stdout.readline()
        assert first.startswith(b"open"), first
        try:
            output = child.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            child.kill()
            output = child.communicate()[0]
    return Told(output.decode())


async def stored(path: Path) -> tuple[set[int], set[int]]:
    """What waits in the file, and what of it may have been sent."""
    async with opened(path) as store:
        assert store.status().damaged == 0
        claims = await claim_all(store)
    return set(claims), {number for number, claim in claims.items() if claim.sent_since is not None}


async def test_what_was_acknowledged_is_stored(tmp_path: Path) -> None:
    """Ten rounds at random moments: acknowledged ⊆ stored ∪ settled, and what was given is marked."""
    moments = random.Random(7)
    for round_ in range(10):
        path = tmp_path / f"{round_}.db"
        told = run_and_kill(path, "relay", moments.uniform(0.02, 0.3))
        there, marked = await stored(path)
        gone = told["kept"] - there
        assert gone <= told["given"]
        assert told["given"] - there >= told["settled"]
        assert (told["given"] & there) <= marked


async def test_the_same_file_is_killed_again_and_again(tmp_path: Path) -> None:
    """Four processes one after another on one file, each killed: nothing of any of them is lost."""
    path = tmp_path / "outbox.db"
    kept: set[int] = set()
    for lane, moment in enumerate((0.1, 0.05, 0.2, 0.15)):
        told = run_and_kill(path, "append", moment, lane * 3)
        assert told["kept"]
        kept |= told["kept"]
    there, _ = await stored(path)
    assert kept <= there


async def test_a_store_that_answers_too_early_is_found_out(tmp_path: Path) -> None:
    """The control: with the answer before the commit, the same harness finds messages lost."""
    moments = random.Random(7)
    deadline = time.monotonic() + 60
    lost: set[int] = set()
    round_ = 0
    while not lost and time.monotonic() < deadline:
        round_ += 1
        path = tmp_path / f"{round_}.db"
        told = run_and_kill(path, "early", moments.uniform(0.02, 0.2))
        there, _ = await stored(path)
        lost = told["kept"] - there
    assert lost
