"""What the tests of rules and dashboards share: the real tools, the files, expressions taken apart.

The tools are Debian's `prometheus` package; where they are not installed the tests that need them skip.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import promql_parser
import pytest
import yaml
from promql_parser import Expr, VectorSelector

from tests.imports import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER: Final = ROOT / "deploy" / "prometheus"
RULES: Final = tuple(sorted(FOLDER.glob("*.yml")))
UNIT_TESTS: Final = tuple(sorted((FOLDER / "tests").glob("*.yml")))
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dispatcher.json"
RUNBOOK: Final = ROOT / "deploy" / "README.md"
PROMTOOL: Final = shutil.which("promtool")
PROMETHEUS: Final = shutil.which("prometheus")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is not installed")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed here")
FILLED: Final = {"$__rate_interval": "1m", "$__range": "1h", "$__interval": "15s"}
"""Grafana's own variables, as it might fill them in."""


def promtool(*words: str | Path, stdin: str = "") -> tuple[int, str]:
    """Exit code, and what it printed."""
    assert PROMTOOL is not None
    command = [PROMTOOL, *map(str, words)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def rules(kind: str = "") -> Iterator[dict[str, Any]]:
    """Every rule, or those of a kind: `alert` or `record`."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from (rule for rule in group["rules"] if not kind or kind in rule)


def dashboard() -> dict[str, Any]:
    """Grafana's document."""
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def charts(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels that show something."""
    return (panel for panel in document["panels"] if panel["type"] != "row")


def filled(expr: str, **variables: str) -> str:
    """An expression of the dashboard as a data source gets it; variables are all there is unless given."""
    for name, value in FILLED.items():
        expr = expr.replace(name, variables.get(name.strip("$_"), value))
    return re.sub(r"\$(\w+)", lambda found: variables.get(found[1], ".*"), expr)


def dashboard_expressions() -> list[str]:
    """Of every panel, variable and annotation, filled in."""
    document = dashboard()
    found = [target["expr"] for panel in charts(document) for target in panel["targets"]]
    found += [one["expr"] for one in document["annotations"]["list"]]
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert inner is not None, variable
            found.append(inner[1])
    return [filled(one) for one in found]


def selectors(expr: str) -> list[VectorSelector]:
    """What an expression takes from the store."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expr), visit)
    assert all(one.name for one in found), f"{expr}: a selector without a metric's name reads everything"
    return found
