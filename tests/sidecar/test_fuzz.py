"""The fuzzer finds nothing in the sidecar; and it finds each fault that is planted there."""

from __future__ import annotations

import pytest

from tests.sidecar.fuzz import fuzz, main

PLANT = (
    "import asyncio, sys\n"
    "from dispatcher.sidecar.dialect import Dialect\n"
    "from dispatcher.sidecar.intake import Intake\n"
    "read, answer = Dialect.read_publish, Intake._answer_one\n"
    "{}\n"
    "from dispatcher.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
RAISES = """
def read_publish(self, target, lines, body):
    return read(self, target, lines, body) if b"\\xff" not in body else 1 / 0
Dialect.read_publish = read_publish
"""
MANGLES = """
def read_publish(self, target, lines, body):
    return read(self, target, lines, body.rstrip(b"\\r\\n"))
Dialect.read_publish = read_publish
"""
HANGS = """
async def answer_one(self, request, route):
    if "%" in request.raw_path:
        await asyncio.sleep(3600)
    return await answer(self, request, route)
Intake._answer_one = answer_one
"""
LOSES = """
from dispatcher.sidecar import answers
entry = answers._entry
answers._entry = lambda one: {**entry(one), "messageId": "msg_made_up"} if one.message_id else entry(one)
"""
FAULTS = {
    "500": (RAISES, "status=500"),
    "mangled": (MANGLES, "Wanted("),
    "hang": (HANGS, "Hangs:"),
    "lost": (LOSES, "not in the ledger"),
}
REQUESTS = 1_500


def test_the_intake_stands_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A small part of the run: nothing is found, and the report names seed, routes and statuses."""
    assert main(["--requests", str(REQUESTS), "--seed", "7"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert said.startswith("seed 7: ")
    assert "publish  200: " in said
    assert ", 0 faults" not in said
    assert "FOUND" not in said


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    """A handler that fails, changes a body, never answers, or answers an id that is none: each comes out."""
    code, words = FAULTS[name]
    command = ("-c", PLANT.format(code))
    run, wrong = fuzz(20_000, 1, command=command, hang=1.0 if name == "hang" else 20.0, shrink=2.0)
    assert run.found is not None, f"{run.requests} requests found nothing"
    assert words in wrong[0]
