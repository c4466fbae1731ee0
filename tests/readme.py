"""The README and the pages behind it in parts: their blocks, generated sections, links.

`python -m tests.readme` writes the generated sections (errors, settings, metrics, speeds) anew, the last ones
from the figures in `benchmarks/results`; those of the benchmarks' own README, too.
"""

from __future__ import annotations

import os
import re
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

import anyio

from benchmarks import durable_report, report_files, sidecar_report
from benchmarks.report import matrix, short_table
from dispatcher import errors
from dispatcher.config import settings_table
from dispatcher.metrics import metrics_table
from dispatcher.outbox_families import outbox_table
from dispatcher.sidecar.counters import intake_table
from dispatcher.sidecar.outbox_settings import outbox_settings_table
from dispatcher.sidecar.settings import serve_settings_table
from tests.imports import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dispatcher.testing import LocalUpstream

README = ROOT / "README.md"
MEASUREMENTS = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "dispatcher" / "docs"
BLOCK_SECONDS = 30
"""That one may run."""
PAGES = (README, *sorted(DOCS.glob("*.md")))
"""What users read; every block in them is run by some test."""
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    language: str
    text: str
    line: int
    """Of its first line of text, from 1."""

    @property
    def title(self) -> str:
        """What its first line says, if that is a comment."""
        first = self.text.partition("\n")[0]
        return first.removeprefix("# ") if first.startswith("# ") else ""


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order."""
    return [Block(one[1], one[2], text.count("\n", 0, one.start(2)) + 1) for one in FENCE.finditer(text)]


async def run_block(
    block: Block, folder: Path, upstream: LocalUpstream, flags: tuple[str, ...] = ("-W", "error")
) -> tuple[int, str]:
    """Exit code and error output of a block, run as a file of its own against this upstream."""
    path = folder / f"example_{block.line}.py"
    path.write_text(block.text, encoding="utf-8")
    with anyio.fail_after(BLOCK_SECONDS):
        done = await anyio.run_process(
            [sys.executable, *flags, str(path)], cwd=folder, env=environment_of(upstream), check=False
        )
    return done.returncode, done.stderr.decode()


def environment_of(upstream: LocalUpstream) -> dict[str, str]:
    """Of a program that sends to this upstream."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "QSTASH_TOKEN": upstream.token,
        "QSTASH_URL": upstream.url,
    }


def titled(page: Path, title: str) -> Block:
    """The block of a page that begins with this comment."""
    found = [one for one in blocks(page.read_text(encoding="utf-8")) if one.title == title]
    assert len(found) == 1, f"{page.name} needs one block that begins with `# {title}`, it has {len(found)}"
    return found[0]


def section(text: str, name: str) -> str:
    """What stands between `<!-- name:begin -->` and `<!-- name:end -->`."""
    found = re.findall(rf"^<!-- {name}:begin -->\n(.*?)^<!-- {name}:end -->$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, (
        f"the README needs one <!-- {name}:begin --> … <!-- {name}:end -->, it has {len(found)}"
    )
    return str(found[0]).strip("\n")


def error_tree() -> str:
    """The tree in the docstring of `errors`, as a block."""
    assert errors.__doc__ is not None
    tree = errors.__doc__.split("::\n\n", 1)[1].split("\n\n", 1)[0]
    return f"```text\n{dedent(tree).rstrip()}\n```"


def speed_table() -> str:
    """The headline's figures, as they were measured last."""
    machine, (headline,) = report_files.read(RESULTS / "headline.json")
    words = str(headline.configuration)
    caption = f"{words[0].upper()}{words[1:]}; uvloop; {machine}. Medians, with the least and the most."
    return f"{short_table(headline.figures, 'uvloop')}\n\n{caption}"


def matrix_table() -> str:
    """The same for every configuration that was measured, for the benchmarks' own README."""
    machine, measured = report_files.read(RESULTS / "matrix.json")
    rows = [(one.configuration, one.figures) for one in measured]
    return f"{matrix(rows, 'uvloop')}\n\n{machine}."


def sidecar_speed() -> str:
    """Bursts with and without the sidecar, and what one core of it takes."""
    return sidecar_report.readme(RESULTS / "sidecar.json")


def sidecar_details() -> str:
    """Every row of it, for the benchmarks' own README."""
    return sidecar_report.details(RESULTS / "sidecar.json")


def outbox_promises() -> str:
    """What each setting of an outbox keeps, and what it was measured to cost."""
    return durable_report.promises(RESULTS / "durable.json")


def outbox_details() -> str:
    """Every row of that, for the benchmarks' own README."""
    return durable_report.details(RESULTS / "durable.json")


GENERATED: dict[str, Callable[[], str]] = {
    "errors": error_tree,
    "settings": settings_table,
    "metrics": metrics_table,
    "speed": speed_table,
    "sidecar-speed": sidecar_speed,
    "serve-settings": serve_settings_table,
    "outbox-promises": outbox_promises,
    "outbox-settings": outbox_settings_table,
    "intake-metrics": intake_table,
    "outbox-metrics": outbox_table,
}


MEASURED: dict[str, Callable[[], str]] = {
    "matrix": matrix_table,
    "sidecar": sidecar_details,
    "durable": outbox_details,
}


def test_command(text: str) -> str:
    """The command in the block behind `<!-- test-command -->`."""
    found = re.findall(r"^<!-- test-command -->\n```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, "the README needs one <!-- test-command --> with an `sh` block right behind it"
    return str(found[0]).strip()


def links(text: str) -> list[str]:
    """Targets of links and images outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def broken_links(page: Path) -> list[str]:
    """Links that lead nowhere: to no file, to no heading of a page, or to the web without https."""
    broken = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if "://" in target:
            is_right = target.startswith("https://")
        else:
            is_right = there.exists() and (not anchor or anchor in anchors(there.read_text(encoding="utf-8")))
        if not is_right:
            broken.append(target)
    return broken


def anchors(text: str, level: int | None = None) -> set[str]:
    """What GitHub makes of the headings, or of those of one level."""
    marks = "#+" if level is None else f"#{{{level}}}"
    headings = re.findall(rf"^{marks} (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def generated(text: str, sections: Mapping[str, Callable[[], str]] = GENERATED) -> str:
    """The text with its generated sections made anew."""
    for name, make in sections.items():
        section(text, name)
        head, begin, rest = text.partition(f"<!-- {name}:begin -->\n")
        _, end, tail = rest.partition(f"<!-- {name}:end -->")
        text = f"{head}{begin}{make().strip()}\n{end}{tail}"
    return text


if __name__ == "__main__":
    for page, parts in ((README, GENERATED), (MEASUREMENTS, MEASURED)):
        page.write_text(generated(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
