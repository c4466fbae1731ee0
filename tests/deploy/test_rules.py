"""The rules for Prometheus: read and tried by its own tool, over metrics that there are, with a runbook."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.promtool import (
    FOLDER,
    RULES,
    RUNBOOK,
    UNIT_TESTS,
    dashboard_expressions,
    needs_promtool,
    promtool,
    rules,
    selectors,
)
from tests.readme import anchors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from promql_parser import Matcher, VectorSelector

    from tests.deploy.conftest import Scrapes

Samples = dict[str, list[dict[str, str]]]
"""Label sets by the name of a series."""
GIVEN: Samples = {"up": [{}], "scrape_duration_seconds": [{}], "ALERTS": [{}]}
"""Series that Prometheus makes itself."""
OF_THE_TARGET = {"job", "instance", "alertname", "alertstate"}
"""Labels that Prometheus adds."""
LASTING = re.compile(r"increase\(|delta\(|changes\(|over_time\(|_damaged_records")
"""Conditions that remember for a while by themselves, and need no `for`."""
ALERTS = {rule["alert"]: rule for rule in rules("alert")}
RECORDED = {rule["record"] for rule in rules("record")}


# ----------------------------------------------------------------------------------------- promtool itself


@needs_promtool
def test_promtool_reads_every_rule() -> None:
    """`check rules` and, through the example's configuration, `check config`."""
    code, said = promtool("check", "rules", *RULES)
    assert code == 0, said
    assert [int(number) for number in re.findall(r"SUCCESS: (\d+) rules found", said)] == [
        len(ALERTS),
        len(RECORDED),
    ]
    code, said = promtool("check", "config", FOLDER / "config" / "prometheus.yml")
    assert code == 0, said
    assert "2 rule files found" in said


@needs_promtool
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_each_alert_fires_for_its_cause_and_clears(path: Any) -> None:
    """`promtool test rules`: not before its time, with its words, and not any more afterwards."""
    code, said = promtool("test", "rules", path)
    assert code == 0, said


@needs_promtool
def test_a_threshold_that_is_missing_is_told(tmp_path: Any) -> None:
    """The unit tests can fail: without one threshold at least one alert does not fire."""
    for name in ("dispatcher.alerts.yml", "dispatcher.recording.yml"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("record: dispatcher:threshold:held_ratio", "record: x:y:z"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "one.yml").write_text((FOLDER / "tests" / "messages.yml").read_text())
    code, said = promtool("test", "rules", tmp_path / "tests" / "one.yml")
    assert code != 0
    assert "DispatcherHeldNearBound" in said


@needs_promtool
@pytest.mark.parametrize("which", ["plain", "durable"])
def test_promtool_finds_nothing_in_a_live_scrape(scrapes: Scrapes, which: str) -> None:
    """`check metrics` over what a running sidecar exports, with and without an outbox."""
    text = getattr(scrapes, which)
    assert ("dispatcher_outbox_commits_total" in text) == (which == "durable")
    code, said = promtool("check", "metrics", stdin=text)
    assert (code, said) == (0, "")


@needs_promtool
def test_promtool_would_find_something() -> None:
    """A counter without `_total` and help is told."""
    code, said = promtool("check", "metrics", stdin="# TYPE dispatcher_things counter\ndispatcher_things 1\n")
    assert code != 0
    assert "dispatcher_things" in said


# ------------------------------------------------------------------------------- what the unit tests cover


def expectations() -> Iterator[tuple[str, bool]]:
    """Of the unit tests, in order: an alert, and whether it is to fire."""
    for path in UNIT_TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for one in test["alert_rule_test"]:
                yield one["alertname"], bool(one["exp_alerts"])


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_unit_test(name: str) -> None:
    """It fires, it clears afterwards, and where it has to last it has not fired at once."""
    found = [fires for alert, fires in expectations() if alert == name]
    assert True in found
    assert found[-1] is False
    assert "for" not in ALERTS[name] or found[0] is False


def test_files_and_names_are_in_order() -> None:
    """Rules only beside the sub-folders; alerts and records in their own files, each name once."""
    assert [path.name for path in RULES] == ["dispatcher.alerts.yml", "dispatcher.recording.yml"]
    for path, kind in zip(RULES, ("alert", "record"), strict=True):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            assert all(kind in rule for rule in group["rules"])
    assert len(ALERTS) == len(list(rules("alert")))
    assert len(RECORDED) == len(list(rules("record")))
    assert all(re.fullmatch(r"Dispatcher[A-Za-z]+", name) for name in ALERTS)
    assert all(re.fullmatch(r"(dispatcher|instance)\w*:[a-z_]+:\w+", name) for name in RECORDED)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_somebody_needs(name: str) -> None:
    """Severity, two texts, its runbook's section, and a time it has to last unless it remembers by itself."""
    rule = ALERTS[name]
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["runbook_url"] == f"deploy/README.md#{name.lower()}"
    assert len(notes["summary"]) < 110
    assert notes["description"].endswith(".")
    assert name == "DispatcherAbsent" or "$labels.instance" in notes["summary"] + notes["description"]
    assert "for" in rule or LASTING.search(rule["expr"])


def test_every_alert_has_a_section_of_the_runbook_and_the_other_way_round() -> None:
    """In the same order."""
    text = RUNBOOK.read_text(encoding="utf-8")
    runbook = re.split(r"^## ", text.partition("\n## Runbook\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    headings = re.findall(r"^### (.+)$", runbook, re.MULTILINE)
    assert headings == list(ALERTS)
    sections = re.split(r"^### .+$", runbook, flags=re.MULTILINE)[1:]
    assert all(len(section.split()) > 25 for section in sections)
    known = anchors(text)
    assert all(target in known for target in re.findall(r"\]\(#([\w-]+)\)", runbook))


# --------------------------------------------------------------------------------- what the rules ask about


def exported(scrapes: Scrapes) -> Samples:
    """Every series of the live scrapes."""
    found: Samples = {name: list(labels) for name, labels in GIVEN.items()}
    for family in [f for text in scrapes for f in text_string_to_metric_families(text)]:
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def fits(labels: dict[str, str], matchers: Iterable[Matcher]) -> bool:
    """Whether a series is selected, the labels apart that Prometheus adds, and codes that did not occur."""
    for one in matchers:
        if one.name in OF_THE_TARGET or one.name == "code":
            continue
        value, is_regex = labels.get(one.name, ""), str(one.op) in ("MatchOp.Re", "MatchOp.NotRe")
        is_met = bool(re.fullmatch(one.value, value)) if is_regex else value == one.value
        if is_met == (str(one.op) in ("MatchOp.NotEqual", "MatchOp.NotRe")):
            return False
    return True


def complaint(selector: VectorSelector, known: Samples) -> str:
    """What is wrong with what it asks for, empty if nothing is."""
    name = selector.name or ""
    if name in RECORDED:
        return ""
    if name not in known:
        return f"{name} is exported by nobody"
    for one in selector.matchers.matchers:
        if one.name not in OF_THE_TARGET and not any(one.name in labels for labels in known[name]):
            return f"{name} has no label {one.name}"
    if not any(fits(labels, selector.matchers.matchers) for labels in known[name]):
        return f"no series of {name} is like {selector}"
    return ""


def test_everything_asked_for_is_exported(scrapes: Scrapes) -> None:
    """Metrics, labels and their values of every rule and every panel are those of a live scrape."""
    known = exported(scrapes)
    asked = [rule["expr"] for rule in rules()] + dashboard_expressions()
    found = [complaint(selector, known) for expr in asked for selector in selectors(expr)]
    assert len(found) > 150
    assert not [words for words in found if words]


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("dispatcher_message_total", "by nobody"),
        ('dispatcher_gate{status="open"}', "no label"),
        ('rate(dispatcher_messages_finished_total{outcome="lost"}[5m])', "no series"),
        ('dispatcher_gate{state=~"closed|shut"}', "no series"),
    ],
)
def test_what_nobody_exports_is_seen(scrapes: Scrapes, expr: str, words: str) -> None:
    """The comparison can fail: by the name, by a label, by its value."""
    (selector,) = selectors(expr)
    assert words in complaint(selector, exported(scrapes))


def test_what_is_recorded_is_used() -> None:
    """By an alert, a panel or another record; thresholds by an alert."""
    used = [
        selector.name
        for expr in [*(rule["expr"] for rule in rules()), *dashboard_expressions()]
        for selector in selectors(expr)
    ]
    thresholds = [
        selector.name
        for rule in ALERTS.values()
        for selector in selectors(rule["expr"])
        if (selector.name or "").startswith("dispatcher:threshold:")
    ]
    assert set(thresholds) == {one for one in RECORDED if ":threshold:" in one}
    assert set(used) >= RECORDED
