"""The shell blocks of the README and its pages: each line is run here or by a test in the table."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from dispatcher.testing import local_upstream
from tests.imports import ROOT
from tests.readme import BLOCK_SECONDS, PAGES, README, blocks, environment_of, titled
from tests.sidecar.daemon_support import environment, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatcher.testing import LocalUpstream

pytestmark = pytest.mark.anyio
ELSEWHERE = {
    "python3 -m venv .venv && .venv/bin/pip install -q . &&": "tests/cli/test_demo.py",
    "python3 -m venv .venv && .venv/bin/pip install -q '.[test]'": "tests/test_readme.py",
    "pip install '.[bench]' && python -m benchmarks": "tests/test_benchmarks.py",
    "dispatcher dev": "tests/devserver/test_dev_command.py",
    "dispatcher serve --port": "tests/test_readme_shell.py",
    "dispatcher serve --outbox": "tests/sidecar/test_outbox_daemon.py",
    "dispatcher demo": "tests/cli/test_demo.py",
    "dispatcher bench": "tests/bench/test_command.py",
    "dispatcher top": "tests/cli/test_top.py",
    ".venv/bin/python -m pytest": "tests/test_readme.py",
    ".venv/bin/python -m tests.readme": "tests/test_readme.py",
    ".venv/bin/python -m tests.simulation": "tests/simulation/test_simulation.py",
    ".venv/bin/python -m tests.outbox.kills": "tests/outbox/test_kills.py",
    ".venv/bin/python -m tests.outbox.backlog": "tests/outbox/test_backlog.py",
    ".venv/bin/python -m tests.outbox.powerloss": "tests/outbox/test_powerloss.py",
    ".venv/bin/python -m tests.sidecar.attacks": "tests/sidecar/test_attacks.py",
    ".venv/bin/python -m tests.sidecar.fuzz": "tests/sidecar/test_fuzz.py",
    ".venv/bin/python -m benchmarks": "tests/test_benchmarks.py",
    ".venv/bin/dispatcher demo": "tests/cli/test_demo.py",
}
"""Commands that go on for long, or for ever, or make an environment: by how they begin, who runs them."""
MESSAGES = '{"destination": "https://example.com/hook", "body": "%d"}\n'


def command_of(line: str) -> str:
    """A line without the variables before its command."""
    words = line.split(" ")
    while words and "=" in words[0] and words[0].partition("=")[0].isupper():
        words.pop(0)
    return " ".join(words)


def claimed_by(line: str) -> str | None:
    """The beginning that stands in the table; the longest, if several do."""
    found = [begin for begin in ELSEWHERE if command_of(line).startswith(begin)]
    return max(found, key=len, default=None)


def lines() -> Iterator[tuple[Path, str]]:
    """Every command of every shell block."""
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.language == "sh":
                for line in block.text.splitlines():
                    yield page, line


HERE = [(page, line) for page, line in lines() if claimed_by(line) is None]


def command_folder(folder: Path) -> Path:
    """A directory with the command `dispatcher`, as an installation would have it."""
    program = folder / "bin" / "dispatcher"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dispatcher "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    return program.parent


async def run_line(line: str, folder: Path, upstream: LocalUpstream) -> str:
    """What a line prints; it has to end with 0."""
    env = environment_of(upstream)
    env["PATH"] = os.pathsep.join([str(folder / "bin"), env["PATH"]])
    command = line.replace("QSTASH_TOKEN=…", f"QSTASH_TOKEN={upstream.token}")
    with anyio.fail_after(BLOCK_SECONDS):
        done = await anyio.run_process(
            ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=env, check=False
        )
    printed = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, f"{line}\n{printed}"
    return printed


async def test_lines_that_end_are_run(tmp_path: Path) -> None:
    """In the order of the pages, in one directory with the files that they name, against one upstream."""
    command_folder(tmp_path)
    (tmp_path / "messages.ndjson").write_text(
        "".join(MESSAGES % number for number in range(20)), encoding="utf-8"
    )
    (tmp_path / "dispatcher.toml").write_text("[batch]\nlinger = 0.002\n", encoding="utf-8")
    sent = 0
    async with local_upstream() as upstream:
        for _, line in HERE:
            printed = await run_line(line, tmp_path, upstream)
            if "dispatcher send" in line:
                sent += 300 if "seq 300" in line else 20
            if "dispatcher check" in line:
                assert "batch.linger" in printed
                assert "0.002" in printed
        assert len(upstream.accepted()) == sent > 300
    assert len((tmp_path / "receipts.ndjson").read_text().splitlines()) == 20


async def test_the_sidecar_before_a_program_with_the_sdk(tmp_path: Path) -> None:
    """Command and program, on free ports: its message arrives, with an id drawn by the sidecar."""
    commands = [command_of(line) for _, line in lines() if claimed_by(line) == "dispatcher serve --port"]
    assert commands == ["dispatcher serve --port 8090"]
    block = titled(README, "any program with the SDK")
    async with local_upstream(token="t") as upstream:
        words = shlex.split(commands[0])[2:]
        words[words.index("8090")] = "0"
        async with serving(*words, env=environment(upstream.url, "t")) as sidecar:
            assert "http://127.0.0.1:8090" in block.text
            program = block.text.replace("http://127.0.0.1:8090", sidecar.intake)
            with anyio.fail_after(BLOCK_SECONDS):
                done = await anyio.run_process([sys.executable, "-c", program], cwd=tmp_path, check=False)
            assert done.returncode == 0, done.stderr.decode()
        (row,) = upstream.accepted()
    assert (row.destination, row.body) == ("https://example.com/hook", b"hello")
    assert row.deduplication_id


def test_every_line_has_somebody_who_runs_it() -> None:
    """The table names tests that exist; commands of modules name modules that exist."""
    used = {claimed_by(line) for _, line in lines()} - {None}
    for begin in used:
        assert begin is not None
        assert (ROOT / ELSEWHERE[begin]).exists(), begin
    for _, line in lines():
        words = line.split()
        if "-m" in words and (module := words[words.index("-m") + 1]) not in ("venv", "pytest"):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


def test_a_planted_line_is_seen() -> None:
    """Variables are no part of a command, and an unknown command is nobody's."""
    assert command_of("QSTASH_TOKEN=… QSTASH_URL=x dispatcher serve --port 1") == "dispatcher serve --port 1"
    assert claimed_by("QSTASH_TOKEN=… dispatcher serve --outbox a.db") == "dispatcher serve --outbox"
    assert claimed_by("make coffee") is None
