"""The operators' page in parts: its shell blocks, and whether each of them is run here."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.deploy.tools import DEPLOY, PATH
from tests.imports import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE: Final = DEPLOY / "README.md"
BLOCK: Final = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK_START: Final = re.compile(
    r"^<!-- quick-start:begin -->\n(.*?)^<!-- quick-start:end -->$", re.MULTILINE | re.DOTALL
)


class Commands(NamedTuple):
    """One shell block."""

    text: str
    mark: str
    """`run`, `not run: REASON`, or `quick start`; empty if nothing is said."""


def text() -> str:
    """The whole page."""
    return PAGE.read_text(encoding="utf-8")


def commands(page: str) -> list[Commands]:
    """Every shell block, in order."""
    (quick_start,) = QUICK_START.findall(page)
    found = []
    for mark, block in BLOCK.findall(page):
        is_there = f"```sh\n{block}```" in quick_start
        found.append(Commands(block, "quick start" if is_there else mark))
    return found


def install_here(folder: Path) -> dict[str, str]:
    """What a reader has after the first block, `.venv/bin/dispatcher`; and the environment to run it in."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    program = programs / "dispatcher"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dispatcher "$@"\n')
    program.chmod(0o755)
    return {"PATH": os.pathsep.join((str(programs), PATH)), "PYTHONPATH": str(ROOT)}
