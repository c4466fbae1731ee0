"""Refused callers in the log: read off the counters, in virtual time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.refusal_news import RefusalNews
from dispatcher.testing import ManualClock

if TYPE_CHECKING:
    import pytest


def test_refusals_are_told_by_status_and_not_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """An hour of a wrong token and an overload: a line a minute and status; what was served is in none."""
    caplog.set_level(logging.INFO, "dispatcher")
    counters, clock = IntakeCounters(), ManualClock()
    news = RefusalNews(counters)
    for second in range(3_600):
        for _ in range(50):
            counters.request("publish", 200)
            counters.request("publish", 401)
            counters.request("proxy", 404)
        if second < 10:
            counters.request("enqueue", 429)
            counters.request("batch", 429)
            counters.request("publish", 400)
        news.look(clock.now)
        clock.advance(1)
    counters.request("publish", 401)
    news.close(clock.now)
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert lines[:3] == [
        "WARNING 50 requests (publish) were answered 401",
        "WARNING 2 requests (enqueue, batch) were answered 429",
        "INFO 1 requests (publish) were answered 400",
    ]
    of_token = [line for line in lines if "401" in line]
    assert len(of_token) <= 62
    assert sum(int(line.split()[1].replace(",", "")) for line in of_token) == 3_600 * 50 + 1
    latest = "2 requests (enqueue, batch) were answered 429"
    assert [line for line in lines if "429" in line][1:] == [
        f"WARNING 18 more requests answered 429 in 60 s, the latest: {latest}",
        "INFO no more requests answered 429 for 60 s; 20 requests answered 429 in 9 s",
    ]
    assert not any("404" in line or "200" in line for line in lines)
