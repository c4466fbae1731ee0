"""Makes Grafana's dashboard of `panels_wanted`, in its classic JSON model, which every version reads.

    python -m tests.deploy.dashboard     # writes deploy/grafana/dispatcher.json

The file is never edited by hand; a test compares. No data source is wired in: `$datasource` is a variable.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tests.deploy.panels_wanted import ROWS, THRESHOLD, I
from tests.imports import ROOT

if TYPE_CHECKING:
    from tests.deploy.panels_wanted import Query, Wanted

FILE: Final = ROOT / "deploy" / "grafana" / "dispatcher.json"
SCHEMA: Final = 42
"""Of Grafana 12 and 13; older ones ignore what they do not know."""
COLUMNS: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
MULTIPLE: Final = {"multi": True, "includeAll": True, "allValue": ".*", "refresh": 2, "sort": 1}


def variable(name: str, label: str, metric: str) -> dict[str, Any]:
    """One that takes the values of a label."""
    query = f"label_values({metric}, {name})"
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "Variable"},
        "current": {"text": ["All"], "value": ["$__all"]},
        **MULTIPLE,
    }


def variables() -> list[dict[str, Any]]:
    """Each narrows the next one."""
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "current": {},
        "refresh": 1,
    }
    return [
        source,
        variable("job", "Job", "dispatcher_build_info"),
        variable("instance", "Instance", 'dispatcher_build_info{job=~"$job"}'),
        variable("dispatcher", "Dispatcher", f"dispatcher_gate{{{I}}}"),
    ]


def target(number: int, query: Query, *, is_instant: bool) -> dict[str, Any]:
    """One query of a panel."""
    return {
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": is_instant,
        "range": not is_instant,
        "refId": chr(ord("A") + number),
    }


def line_override(name: str, colour: str) -> dict[str, Any]:
    """A dashed line without a filling, which is not stacked."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [
            {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}},
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
        ],
    }


def chart(wanted: Wanted) -> dict[str, Any]:
    """What is a chart's own."""
    legends = {query.legend for query in wanted.queries}
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if wanted.is_stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if wanted.is_stacked else "none", "group": "A"},
    }
    return {
        "type": "timeseries",
        "fieldConfig": {
            "defaults": {
                "unit": wanted.unit,
                "min": 0,
                "color": {"mode": "palette-classic"},
                "custom": custom,
            },
            "overrides": [line_override(THRESHOLD, "red")] if THRESHOLD in legends else [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def figure(wanted: Wanted) -> dict[str, Any]:
    """What is a large figure's own."""
    calm: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if wanted.title in ("Alerts firing", "Gates not open"):
        calm.append({"color": "red", "value": 1})
    if wanted.title == "Not delivered":
        calm.append({"color": "red", "value": 0.01})
    return {
        "type": "stat",
        "fieldConfig": {
            "defaults": {"unit": wanted.unit, "thresholds": {"mode": "absolute", "steps": calm}},
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value",
        },
    }


def panel(number: int, wanted: Wanted, x: int, y: int) -> dict[str, Any]:
    """One panel at its place."""
    is_stat = wanted.kind == "stat"
    return {
        "id": number,
        "title": wanted.title,
        "description": wanted.description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": wanted.width, "h": 4 if is_stat else 8},
        "targets": [target(place, one, is_instant=False) for place, one in enumerate(wanted.queries)],
        **(figure(wanted) if is_stat else chart(wanted)),
    }


def panels() -> list[dict[str, Any]]:
    """All of them, row by row."""
    found: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        heading = {"type": "row", "id": len(found) + 1, "title": row.title, "gridPos": place}
        found.append({**heading, "collapsed": False, "panels": []})
        x, y, height = 0, y + 1, 0
        for wanted in row.panels:
            if x + wanted.width > COLUMNS:
                x, y = 0, y + height
            found.append(panel(len(found) + 1, wanted, x, y))
            x, height = x + wanted.width, found[-1]["gridPos"]["h"]
        y += height
    return found


def alert_marks() -> list[dict[str, Any]]:
    """When which alert fired, over every chart."""
    expr = f'ALERTS{{alertname=~"Dispatcher.*", alertstate="firing", {I}}}'
    return [
        {
            "name": "Alerts",
            "datasource": SOURCE,
            "enable": True,
            "hide": False,
            "iconColor": "red",
            "expr": expr,
            "titleFormat": "{{alertname}}",
            "textFormat": "{{instance}} {{severity}}",
            "step": "15s",
        }
    ]


def dashboard() -> dict[str, Any]:
    """The whole document."""
    return {
        "uid": "qstash-dispatcher",
        "title": "QStash dispatcher",
        "description": "Dispatchers, embedded or as sidecars: rate, errors, duration; what is held; limit "
        "and gate; the outbox; the process. Thresholds and alerts come from deploy/prometheus.",
        "tags": ["qstash", "dispatcher"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [],
        "annotations": {"list": alert_marks()},
        "templating": {"list": variables()},
        "panels": panels(),
    }


def text() -> str:
    """As it is kept."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
