"""The static checks, as tests: one command runs everything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.imports import ROOT, package_sources

CORE_FILE = "dispatcher/core/planted.py"
PLANTED = "import asyncio\n\nasyncio.get_running_loop()\n"


def run(*words: str, stdin: str = "") -> tuple[int, str]:
    """Exit code and output of a tool of this environment, in the project's folder."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, input=stdin, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_format_is_ruffs() -> None:
    """`ruff format` would change nothing."""
    code, output = run("ruff", "format", "--check", ".")
    assert code == 0, output


def test_ruff_has_no_complaint() -> None:
    """`ruff check` passes on everything."""
    code, output = run("ruff", "check", "--output-format=concise", ".")
    assert code == 0, output


def test_mypy_has_no_complaint() -> None:
    """The package, the tests and the benchmarks are typed, strictly."""
    code, output = run("mypy")
    assert code == 0, output


def banned(path: str) -> bool:
    """Whether ruff would refuse the planted import in a file of this name."""
    code, output = run("ruff", "check", "--select=TID251", f"--stdin-filename={path}", "-", stdin=PLANTED)
    assert code in (0, 1), output
    assert ("TID251" in output) == (code == 1), output
    return code == 1


@pytest.mark.parametrize("path", [CORE_FILE, "dispatcher/core/deeper/planted.py"])
def test_the_ban_holds_inside_the_core(path: str) -> None:
    """A planted `import asyncio` is refused there, by the project's own configuration."""
    assert banned(path)


def test_the_ban_holds_nowhere_else() -> None:
    """Neither in a neighbour of the core nor in a file whose name resembles it."""
    folders = {name.split(".")[1] for name in package_sources() if name.count(".") == 2} - {"core"}
    paths = [f"dispatcher/{folder}/planted.py" for folder in sorted(folders)]
    paths += ["dispatcher/core.py", "dispatcher/corelike.py", "dispatcher/checks.py", "dispatcher/config.py"]
    paths += ["tests/core/test_planted.py", "benchmarks/planted.py"]
    assert {path: banned(path) for path in paths} == dict.fromkeys(paths, False)
