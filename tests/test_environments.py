"""In processes of their own: what else is installed or set there must not matter."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
{before}
from dispatcher import Config, Dispatcher, Message
from dispatcher.testing import local_upstream

async def main():
    {first}
    async with local_upstream() as upstream:
        config = Config(token=upstream.token, url=upstream.url)
        async with Dispatcher(config) as dispatcher:
            receipts = await asyncio.gather(
                *(dispatcher.send(Message("https://example.com", str(n))) for n in range(500))
            )
        print(len({{receipt.message_id for receipt in receipts}}))

{run}
"""
EAGER = "asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)"
CASES = {
    "plain": {},
    "sniffio": {"before": "import sniffio"},
    "uvloop": {"before": "import uvloop", "run": "uvloop.run(main())"},
    # (how long a turn takes is the machine's affair)
    "debug": {
        "first": "asyncio.get_running_loop().slow_callback_duration = 60",
        "run": "asyncio.run(main(), debug=True)",
    },
    "optimised": {},
    "eager": {"first": EAGER},
}


@pytest.mark.parametrize("case", CASES)
def test_it_works_in(case: str) -> None:
    """Five hundred messages, each with its own id, and not a word on the error output."""
    if case == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    words = {"before": "", "first": "pass", "run": "asyncio.run(main())", **CASES[case]}
    flags = ["-OO"] if case == "optimised" else []
    command = [sys.executable, *flags, "-W", "error", "-c", PROGRAM.format(**words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "500\n", "")
