"""Grafana's dashboard: made by its generator, parsed by Prometheus's tools, variables that there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml

from tests.deploy import dashboard as generator
from tests.deploy.promtool import (
    DASHBOARD,
    charts,
    dashboard,
    dashboard_expressions,
    filled,
    needs_promtool,
    promtool,
)

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT = dashboard()
PANELS = list(charts(DOCUMENT))
BUILT_IN = {"__rate_interval"}
UNITS = {"none", "short", "s", "bytes", "percentunit", "reqps", "mps", "ops"}
"""Ids of Grafana's that are used."""
WANTED_ROWS = ["Overview", "Rate, errors, duration", "Held and age", "Limit and gate", "Outbox", "Process"]


def test_the_file_is_the_generated_one() -> None:
    """Nobody edits it by hand: `python -m tests.deploy.dashboard` writes it."""
    assert DASHBOARD.read_text(encoding="utf-8") == generator.text()


def test_every_expression_is_parsed() -> None:
    """By a PromQL parser, with Grafana's variables filled in."""
    found = dashboard_expressions()
    assert len(found) > 60
    for expr in found:
        assert "$" not in expr
        promql_parser.parse(expr)
    with pytest.raises(ValueError, match="paren"):
        promql_parser.parse(filled('sum(rate(x{job=~"$job"}[$__rate_interval])'))


@needs_promtool
def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    """Prometheus's own parser, types included: each expression as a rule."""
    expressions = enumerate(dashboard_expressions())
    rules = [{"record": f"panel:number:{number}", "expr": expr} for number, expr in expressions]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    code, said = promtool("check", "rules", path)
    assert code == 0, said
    assert f"{len(rules)} rules found" in said


def test_no_data_source_is_wired_in() -> None:
    """Everything asks `$datasource`, which is chosen."""
    sources = list(values_of(DOCUMENT, "datasource"))
    assert len(sources) > 60
    assert all(one == {"type": "prometheus", "uid": "${datasource}"} for one in sources)
    assert DOCUMENT["templating"]["list"][0]["type"] == "datasource"


def values_of(part: Any, name: str) -> Any:
    """Every value under a name, however deep."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == name:
                yield value
            else:
                yield from values_of(value, name)
    elif isinstance(part, list):
        for one in part:
            yield from values_of(one, name)


def test_the_variables_used_are_the_ones_there_are() -> None:
    """Data source, job, instance and dispatcher: each defined once and used."""
    defined = [one["name"] for one in DOCUMENT["templating"]["list"]]
    assert defined == ["datasource", "job", "instance", "dispatcher"]
    texts = [target["expr"] for panel in PANELS for target in panel["targets"]]
    used = {name for text in [*texts, "${datasource}"] for name in re.findall(r"\$\{?(\w+)", text)}
    assert used == {*defined, *BUILT_IN}
    for text in texts:
        if "dispatcher:threshold:" not in text:
            assert 'job=~"$job"' in text
            assert 'instance=~"$instance"' in text


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_can_be_read(panel: dict[str, Any]) -> None:
    """A title, a sentence that explains it, a unit, a legend for each line, and names of its queries."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert panel["type"] == "stat" or (all(legends) and "__auto" not in legends)
    assert len(set(legends)) == len(legends)
    names = [target["refId"] for target in panel["targets"]]
    assert names == sorted(set(names))


def test_the_places_do_not_overlap() -> None:
    """On Grafana's grid of 24 columns; ids and the rows' titles are what they should be."""
    taken: set[tuple[int, int]] = set()
    for panel in DOCUMENT["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in DOCUMENT["panels"]]
    assert len(set(ids)) == len(ids)
    assert [panel["title"] for panel in DOCUMENT["panels"] if panel["type"] == "row"] == WANTED_ROWS


def test_what_grafana_wants_of_a_provisioned_one() -> None:
    """A lasting `uid`, no `id` of an installation, a schema it knows."""
    assert DOCUMENT["uid"] == "qstash-dispatcher"
    assert "id" not in DOCUMENT
    assert DOCUMENT["schemaVersion"] >= 39
    assert "__inputs" not in DOCUMENT
