"""What the README says is so: its examples run, its tables are the generated ones, its commands exist."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from typing import TYPE_CHECKING

import pytest

from dispatcher.cli import COMMANDS
from dispatcher.testing import local_upstream
from tests.imports import ROOT
from tests.readme import (
    DOCS,
    GENERATED,
    MEASURED,
    MEASUREMENTS,
    PAGES,
    README,
    Block,
    anchors,
    blocks,
    broken_links,
    generated,
    links,
    run_block,
    section,
)
from tests.readme import (
    test_command as command_in,
)

if TYPE_CHECKING:
    from pathlib import Path

TEXT = README.read_text(encoding="utf-8")
RUNNABLE = [one for one in blocks(TEXT) if one.language == "python"]
CONTRIBUTING = DOCS / "contributing.md"
RUNNABLE_ELSEWHERE = [
    one for one in blocks(CONTRIBUTING.read_text(encoding="utf-8")) if one.language == "python"
]
OWN_UPSTREAM = ("local_upstream", "ScriptedTransport")
TESTED_BY = {
    "FastAPI": "test_embedding.py",
    "Starlette": "test_embedding.py",
    "aiohttp": "test_embedding.py",
    "Flask": "test_blocking_web.py",
    "Django: views.py": "test_blocking_web.py",
    "any program with the SDK": "test_readme_shell.py",
    "FastAPI: the whole application": "test_recipes.py",
    "settings.py": "test_recipes.py",
    "orders/apps.py": "test_recipes.py",
    "orders/views.py": "test_recipes.py",
    "conftest.py": "test_recipes.py",
    "test_orders.py": "test_recipes.py",
    "test_my_store.py": "test_recipes.py",
    "dispatcher/cli/count.py": "test_recipes.py",
}
"""Fragments (```py) by what their first line says, and where each of them is run."""


@pytest.mark.anyio
@pytest.mark.parametrize("block", RUNNABLE + RUNNABLE_ELSEWHERE, ids=lambda block: f"line {block.line}")
async def test_every_python_block_runs(block: Block, tmp_path: Path) -> None:
    """As it is, against a local upstream, without a warning; and the upstream really gets its messages."""
    async with local_upstream() as upstream:
        code, errors = await run_block(block, tmp_path, upstream)
        assert (code, errors) == (0, ""), f"line {block.line}:\n{errors}"
        is_sending = "Dispatcher(" in block.text and not any(word in block.text for word in OWN_UPSTREAM)
        assert bool(upstream.accepted()) == is_sending


def test_there_are_examples_to_run() -> None:
    """The first screen has one, and no block is without a language that says what it is."""
    assert RUNNABLE
    assert RUNNABLE_ELSEWHERE
    assert RUNNABLE[0].line < 30
    for page in PAGES:
        languages = {one.language for one in blocks(page.read_text(encoding="utf-8"))}
        assert languages <= {"python", "py", "sh", "text"}, page


def test_the_pages_are_one_step_from_the_first_screen() -> None:
    """The contents stand before the first example, and lead to every section and to every page."""
    screen = "\n".join(TEXT.splitlines()[: RUNNABLE[0].line])
    assert {(README.parent / target).resolve() for target in links(screen) if ".md" in target} >= set(
        PAGES[1:]
    )
    named = {target[1:] for target in links(screen) if target.startswith("#")}
    assert named == anchors(TEXT, level=2)
    for page in PAGES[1:]:
        assert "../../README.md" in links(page.read_text(encoding="utf-8")), page


def test_every_fragment_is_run_somewhere() -> None:
    """Each ```py block has a place in the table, which knows no others; the named tests speak of it."""
    found = {
        one.title: page
        for page in PAGES
        for one in blocks(page.read_text(encoding="utf-8"))
        if one.language == "py"
    }
    assert found.keys() == TESTED_BY.keys(), "a fragment needs a test, and its line in TESTED_BY"
    for title, name in TESTED_BY.items():
        source = (ROOT / "tests" / name).read_text(encoding="utf-8")
        assert title.partition(":")[0] in source, f"{name} does not run `# {title}`"


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative ones to files that exist, anchors to headings of their page, the others to https."""
    assert links(page.read_text(encoding="utf-8"))
    assert not broken_links(page)


def test_broken_pages_are_seen(tmp_path: Path) -> None:
    """The readers above read: a wrong anchor, a link or a heading in code, a missing page."""
    text = "# One Two\n[a](#one-two) `[b](x)`\n```sh\n# no heading\n[c](y)\n```\n[d](#three)\n"
    assert links(text) == ["#one-two", "#three"]
    assert anchors(text) == {"one-two"}
    assert blocks(text) == [Block("sh", "# no heading\n[c](y)\n", 4)]
    assert blocks(text)[0].title == "no heading"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    (tmp_path / "b.md").write_text("[a](a.md#one-two) [b](a.md#no) [c](c.md) [d](http://x)", encoding="utf-8")
    assert broken_links(tmp_path / "a.md") == ["#three"]
    assert broken_links(tmp_path / "b.md") == ["a.md#no", "c.md", "http://x"]


def test_every_guarantee_names_a_test_that_exists() -> None:
    """The table's proofs, and the pages', are files of this repository, and functions in them."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", pages)
    assert len(named) > 10
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^(async )?def {function}\(", source, re.MULTILINE), (
            path,
            function,
        )
