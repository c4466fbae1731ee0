"""The operators' page is so: its commands run, and what it names exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, Dispatcher, Message
from dispatcher.outbox import Outbox, SQLiteStore
from dispatcher.sidecar.settings import every_setting
from dispatcher.testing import local_upstream
from tests.deploy import page
from tests.deploy.tools import DEPLOY, tool
from tests.readme import README, anchors, links
from tests.test_readme import options_of

if TYPE_CHECKING:
    from pathlib import Path

TEXT = page.text()
COMMANDS = page.commands(TEXT)
RUN = [one for one in COMMANDS if one.mark == "run"]
PROGRAMS = ("kubectl", "promtool")
"""That may be missing where the tests run."""
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def test_every_block_says_whether_it_is_run() -> None:
    """Run here, part of the quick start, or not run, with the reason."""
    assert len(COMMANDS) >= 12
    assert len(RUN) >= 4
    for one in COMMANDS:
        assert re.fullmatch(r"run|quick start|not run: .{10,}", one.mark), one
    assert (
        page.commands("<!-- quick-start:begin -->\n<!-- quick-start:end -->\n\n```sh\na\n```\n")[0].mark == ""
    )


@pytest.mark.anyio
@pytest.mark.parametrize("block", RUN, ids=lambda one: one.text.split("\n", 1)[0][:40])
async def test_blocks_run(block: page.Commands, tmp_path: Path) -> None:
    """As they stand there, in a folder with this one's files and an outbox that has a message."""
    for name in PROGRAMS:
        if name in block.text and tool(name) is None:
            pytest.skip(f"{name} is not installed")
    env = page.install_here(tmp_path)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    if "outbox.db" in block.text:
        await filled(tmp_path / "outbox.db")
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", block.text],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    if "status" in block.text:
        assert re.search(r"^dead +1$", done.stdout, re.MULTILINE), done.stdout
    if "export" in block.text:
        assert "POISON" in (tmp_path / "dead-letters.ndjson").read_text(encoding="utf-8")


async def filled(path: Path) -> None:
    """An outbox with one dead letter."""
    async with local_upstream(faults="poison_400=POISON") as upstream:
        config = Config(token=upstream.token, url=upstream.url)
        async with Dispatcher(config) as dispatcher, Outbox(SQLiteStore(path), dispatcher) as outbox:
            stored = await outbox.put(Message("https://example.com/hook", body="POISON"))
            with pytest.raises(Exception, match="400"):
                await stored


def test_commands_and_their_options_exist() -> None:
    """Also of those that are not run."""
    every = "\n".join(one.text for one in COMMANDS).replace("\\\n", " ")
    calls = re.findall(r"(?:^|[ /])dispatcher ([a-z]+)([^\n#&]*)", every, re.MULTILINE)
    assert {name for name, _ in calls} == {"bench", "check", "dev", "outbox", "serve"}
    for name, rest in calls:
        options = set(re.findall(r"(?<=\s)--[a-z-]+", rest))
        assert options <= options_of(name), f"dispatcher {name}{rest}"


def test_settings_and_metrics_exist() -> None:
    """Each that is named in code, by the tables of the README and the settings themselves."""
    known = {one.path for one in every_setting()}
    sections = {one.partition(".")[0] for one in known if "." in one}
    named = {
        one for one in re.findall(r"`([a-z]+\.[a-z_]+)(?: = [^`]*)?`", TEXT) if one.split(".")[0] in sections
    }
    assert len(named) > 20
    assert named <= known
    table = set(re.findall(r"^\| `(dispatcher_\w+)`", README.read_text(encoding="utf-8"), re.MULTILINE))
    metrics = set(re.findall(r"`((?:dispatcher|process)_\w+)", TEXT)) - OF_THE_PROCESS
    assert len(metrics) > 15
    assert metrics <= table


def test_labels_of_metrics_exist() -> None:
    """A value that is named is one that the README lists for the metric."""
    readme = README.read_text(encoding="utf-8")
    named = re.findall(r'`(dispatcher_\w+)\{(\w+)="(\w+)"\}`', TEXT)
    assert len(named) >= 4
    for metric, label, value in named:
        (row,) = re.findall(rf"^\| `{metric}` \|.*$", readme, re.MULTILINE)
        assert f"`{label}`" in row
        assert label == "code" or re.search(rf"\b{value}\b", row), (metric, label, value)


def test_links_lead_somewhere() -> None:
    """To files beside it, and to its own headings."""
    assert "deploy/README.md" in links(README.read_text(encoding="utf-8"))
    for target in links(TEXT):
        path, _, anchor = target.partition("#")
        if "://" in target:
            assert target.startswith("https://")
        elif path:
            assert (DEPLOY / path).exists(), target
        else:
            assert anchor in anchors(TEXT), target
