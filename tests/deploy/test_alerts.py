"""A real Prometheus over running sidecars: each alert fires when its cause is made, and clears again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.deploy.prometheus import quick_rules, running_prometheus
from tests.deploy.promtool import RULES, needs_prometheus, needs_promtool, promtool, rules
from tests.deploy.stage import BY_UNIT_TEST_ONLY, EXPECTED, sidecars
from tests.deploy.watch import Watch, play

if TYPE_CHECKING:
    from pathlib import Path


@needs_prometheus
@pytest.mark.anyio
async def test_each_alert_fires_for_real_and_clears(tmp_path: Path) -> None:
    """Ten sidecars, nine in trouble; the healthy one, under `dispatcher bench`, never has an alert."""
    async with running_prometheus(tmp_path) as prometheus:
        watch = Watch(prometheus)
        async with sidecars(tmp_path) as story:
            await watch.until_fired([("", "DispatcherAbsent")])
            prometheus.scrape(story.addresses())
            await watch.until_calm()
            await story.begin()
            await play(story, watch)
            code, report = await story.end()
    assert not [alert for instance, alert in watch.fired if instance == "healthy"], watch.table()
    assert code == 0, report
    assert watch.fired.keys() == watch.cleared.keys()
    print(watch.table())


def test_every_alert_is_caused_or_named() -> None:
    """What no test here causes is listed with its reason, and nothing else is."""
    caused = {alert for alerts in EXPECTED.values() for alert in alerts}
    assert caused | set(BY_UNIT_TEST_ONLY) == {rule["alert"] for rule in rules("alert")}
    assert not caused & set(BY_UNIT_TEST_ONLY)


@needs_promtool
def test_quick_motion_changes_durations_only(tmp_path: Path) -> None:
    """Ranges and `for` are divided, the rest is as it is kept; promtool reads what comes of it."""
    for path in RULES:
        (tmp_path / path.name).write_text(quick_rules(path.read_text(encoding="utf-8")))
    code, said = promtool("check", "rules", *tmp_path.glob("*.yml"))
    assert code == 0, said
    text = (tmp_path / "dispatcher.recording.yml").read_text()
    assert "rate(dispatcher_requests_total[3000ms])" in text
    assert "(vector(60)) / 100" in text
    one = "groups: [{name: g, rules: [{alert: A, expr: 'x offset 1d > 5', for: 10m}]}]"
    assert "x offset 864000ms > 5" in quick_rules(one)
    assert "for: 6000ms" in quick_rules(one)
