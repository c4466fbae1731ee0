"""Much that waits: killed and delivered once, in order; and the memory it takes to open it, which is none."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from tests.imports import ROOT
from tests.outbox.backlog import run
from tests.outbox.conformance import record
from tests.outbox.sqlite_support import opened

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
GROWTH_KIB_MAX = 32 << 10
"""The pages that SQLite may keep, and as much again for the rest."""
OPEN = """
import asyncio, sys
from dispatcher.outbox import SQLiteStore

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

async def main(path):
    before = peak()
    store = SQLiteStore(path, min_free_bytes=0)
    status = await store.open()
    print(status.waiting, peak() - before)
    await store.aclose()

asyncio.run(main(sys.argv[1]))
"""


async def test_an_outage_and_a_kill_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    """The upstream is down, 5,000 messages are acknowledged, `kill -9`; then each is delivered once."""
    found = await run(tmp_path, 5_000, few=1_000)
    assert not found.problems
    assert found.messages == 5_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_what_waits_takes_no_memory_when_it_is_opened(tmp_path: Path) -> None:
    """64 MiB of messages are counted, and not read into memory for that."""
    path = tmp_path / "outbox.db"
    async with opened(path) as store:
        for first in range(0, 16_000, 1_000):
            await store.append([record(number, size=4_096) for number in range(first, first + 1_000)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OPEN, str(path)), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].split()
    assert process.returncode == 0
    assert int(said[0]) == 16_000
    assert int(said[1]) < GROWTH_KIB_MAX
