"""The README in parts: its blocks, its generated sections, its links.

`python -m tests.readme` writes the generated sections (errors, settings, metrics, speeds) anew, the last ones
from the figures in `benchmarks/results`; those of the benchmarks' own README, too.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import report_files, sidecar_report
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

README = ROOT / "README.md"
MEASUREMENTS = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    language: str
    text: str
    line: int
    """Of its first line of text, from 1."""


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order."""
    return [Block(one[1], one[2], text.count("\n", 0, one.start(2)) + 1) for one in FENCE.finditer(text)]


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


GENERATED: dict[str, Callable[[], str]] = {
    "errors": error_tree,
    "settings": settings_table,
    "metrics": metrics_table,
    "speed": speed_table,
    "sidecar-speed": sidecar_speed,
    "serve-settings": serve_settings_table,
    "outbox-settings": outbox_settings_table,
    "intake-metrics": intake_table,
    "outbox-metrics": outbox_table,
}


MEASURED: dict[str, Callable[[], str]] = {"matrix": matrix_table, "sidecar": sidecar_details}


def test_command(text: str) -> str:
    """The command in the block behind `<!-- test-command -->`."""
    found = re.findall(r"^<!-- test-command -->\n```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, "the README needs one <!-- test-command --> with an `sh` block right behind it"
    return str(found[0]).strip()


def links(text: str) -> list[str]:
    """Targets of links and images outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
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
