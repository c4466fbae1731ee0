"""What the README says is so: its examples run, its tables are the generated ones, its commands exist."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from dispatcher.cli import COMMANDS
from dispatcher.testing import local_upstream
from tests.imports import ROOT
from tests.readme import (
    GENERATED,
    MEASURED,
    MEASUREMENTS,
    README,
    Block,
    anchors,
    blocks,
    generated,
    links,
    section,
)
from tests.readme import (
    test_command as command_in,
)

if TYPE_CHECKING:
    from pathlib import Path

TEXT = README.read_text(encoding="utf-8")
RUNNABLE = [one for one in blocks(TEXT) if one.language == "python"]
OWN_UPSTREAM = ("local_upstream", "ScriptedTransport")
EXAMPLE_SECONDS = 30


async def run(block: Block, folder: Path, token: str, url: str) -> tuple[int, str]:
    """Exit code and error output of a block, as a file of its own."""
    path = folder / "example.py"
    path.write_text(block.text, encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "QSTASH_TOKEN": token,
        "QSTASH_URL": url,
    }
    with anyio.fail_after(EXAMPLE_SECONDS):
        done = await anyio.run_process(
            [sys.executable, "-W", "error", str(path)], cwd=folder, env=environment, check=False
        )
    return done.returncode, done.stderr.decode()


@pytest.mark.anyio
@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: f"line {block.line}")
async def test_every_python_block_runs(block: Block, tmp_path: Path) -> None:
    """As it is, against a local upstream, without a warning; and the upstream really gets its messages."""
    async with local_upstream() as upstream:
        code, errors = await run(block, tmp_path, upstream.token, upstream.url)
        assert (code, errors) == (0, ""), f"README.md, line {block.line}:\n{errors}"
        assert upstream.accepted() or any(word in block.text for word in OWN_UPSTREAM)


def test_there_are_examples_to_run() -> None:
    """The first screen has one, and no block is without a language that says what it is."""
    assert RUNNABLE
    assert RUNNABLE[0].line < 30
    assert {one.language for one in blocks(TEXT)} <= {"python", "py", "sh", "text", "toml", "json"}


def test_fragments_compile_too() -> None:
    """A ```py block is not run here, but it is Python."""
    for block in blocks(TEXT):
        if block.language == "py":
            compile(block.text, f"README.md, line {block.line}", "exec")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_sections_are_up_to_date(name: str) -> None:
    """The error tree, the settings and the metrics; `python -m tests.readme` writes them."""
    assert section(TEXT, name) == GENERATED[name]().strip(), "run `python -m tests.readme`"


@pytest.mark.parametrize("name", MEASURED)
def test_generated_sections_of_the_benchmarks_are_up_to_date(name: str) -> None:
    """Their tables are those of the reports that are kept."""
    text = MEASUREMENTS.read_text(encoding="utf-8")
    assert section(text, name) == MEASURED[name]().strip(), "run `python -m tests.readme`"


def test_writing_the_sections_changes_nothing_else() -> None:
    """`python -m tests.readme` fills an empty section and leaves the rest as it is."""
    page = "a\n" + "".join(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\nb\n" for name in GENERATED)
    written = generated(page)
    assert all(section(written, name) == make().strip() for name, make in GENERATED.items())
    assert re.sub(r"(:begin -->\n).*?(<!--)", r"\1old\n\2", written, flags=re.DOTALL) == page
    assert generated(written) == written


def test_ci_runs_the_readmes_test_command() -> None:
    """Word for word, as its last command."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands[-1] == command_in(TEXT)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_both_set_up_commands_begin_alike() -> None:
    """The one to try it and the one to test it make the same environment, and run what is installed there."""
    commands = [line for one in blocks(TEXT) if one.language == "sh" for line in one.text.splitlines()]
    set_up = [line.split(" && ") for line in commands if "venv" in line]
    assert [parts[0] for parts in set_up] == ["python3 -m venv .venv"] * 2
    assert [parts[1].rpartition(" ")[0] for parts in set_up] == [".venv/bin/pip install -q"] * 2
    test_command = ".venv/bin/python -m pytest -n 2 --dist loadfile"
    assert [parts[2] for parts in set_up] == [".venv/bin/dispatcher demo", test_command]


def test_commands_and_their_options_exist() -> None:
    """Every `dispatcher COMMAND --option` in a shell block is one."""
    calls = re.findall(r"(?:^|[ /])dispatcher ([a-z]+)([^\n]*)", shell_text(), re.MULTILINE)
    assert {name for name, _ in calls} == set(COMMANDS)
    for name, rest in calls:
        options = re.findall(r"(?<=\s)--[a-z-]+", rest)
        assert set(options) <= options_of(name), f"dispatcher {name}{rest}"


def shell_text() -> str:
    """All shell blocks."""
    return "\n".join(one.text for one in blocks(TEXT) if one.language == "sh")


def options_of(name: str) -> set[str]:
    """Long options of a command."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dispatcher.cli.{name}").add_arguments(parser)
    return {text for action in parser._actions for text in action.option_strings}


def test_links_lead_somewhere() -> None:
    """Relative ones to files that exist, anchors to headings of this page, the others to https."""
    for target in links(TEXT):
        path, _, anchor = target.partition("#")
        if "://" in target:
            assert target.startswith("https://")
        elif path:
            assert (ROOT / path).exists(), target
        else:
            assert anchor in anchors(TEXT), target


def test_broken_pages_are_seen() -> None:
    """The readers above read: a wrong anchor, a link in code, a heading in a block."""
    page = "# One Two\n[a](#one-two) `[b](x)`\n```sh\n# no heading\n[c](y)\n```\n[d](#three)\n"
    assert links(page) == ["#one-two", "#three"]
    assert anchors(page) == {"one-two"}
    assert blocks(page) == [Block("sh", "# no heading\n[c](y)\n", 4)]


def test_every_guarantee_names_a_test_that_exists() -> None:
    """The table's proofs are files of this repository, and functions in them."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 10
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^(async )?def {function}\(", source, re.MULTILINE), (
            path,
            function,
        )
