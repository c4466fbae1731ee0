"""Few lines for what fails often: in virtual time, and of a dispatcher whose service is away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, DeliveryError, Dispatcher, Message
from dispatcher.core.batch import Failure, Reply
from dispatcher.news import IN_A_ROW, News
from dispatcher.repeats import NEVER, SECONDS, Repeats
from dispatcher.testing import ManualClock, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("dispatcher.test")
URL = "https://example.com/hook"
LOST = Failure("connect", "cannot connect", "not_sent")
LATE = Failure("timeout", "late, says https://example.com/hook?key=QUERY", "unknown")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that were written since the last time, with their levels."""
    caplog.set_level(logging.INFO, "dispatcher")

    def take() -> list[str]:
        taken = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return taken

    return take


def repeats() -> Repeats:
    return Repeats(logger, "teller: ", 60.0)


# ----------------------------------------------------------------------------------------- virtual time


def test_an_outage_has_a_beginning_summaries_and_an_end(lines: Callable[[], list[str]]) -> None:
    """Eight failures a second for 150 s are four lines, whose counts make up all of them."""
    told, clock = repeats(), ManualClock(1_000.0)
    for number in range(1_200):
        told.failed("losses", f"lost {number}", clock.now, then="; trying again", is_lasting=True)
        clock.advance(0.125)
    assert told.ended("losses", "found again", clock.now)
    assert lines() == [
        "WARNING teller: lost 0; trying again",
        "WARNING teller: 480 more losses in 60 s, the latest: lost 480",
        "WARNING teller: 480 more losses in 60 s, the latest: lost 960",
        "INFO teller: found again; 1,200 losses in 150 s",
    ]
    told.tell(clock.advance(SECONDS))
    assert not told
    assert told.wake_at == NEVER
    assert lines() == []


def test_one_failure_is_one_line(lines: Callable[[], list[str]]) -> None:
    """Nothing is summarised where there is nothing to add, and the next one is news again."""
    told = repeats()
    for now in (0.0, 1_000.0):
        told.failed("faults", "broken", now)
        assert lines() == ["WARNING teller: broken"]
        assert told.wake_at == now + 60
        told.tell(now + 60)
        assert not told
    assert lines() == []


def test_a_burst_is_told_though_nothing_follows_it(lines: Callable[[], list[str]]) -> None:
    """What was counted is written when it is due, by who waits for `wake_at`; then that it is over."""
    told = repeats()
    for _ in range(1_000):
        told.failed("faults", "broken", 5.0, count=3, level=logging.ERROR)
    assert lines() == ["ERROR teller: broken"]
    told.tell(told.wake_at)
    assert lines() == ["ERROR teller: 2,997 more faults in 60 s, the latest: broken"]
    told.tell(told.wake_at)
    assert lines() == ["INFO teller: no more faults for 60 s; 3,000 faults in 0 s"]
    assert told.wake_at == NEVER


def test_what_comes_and_goes_costs_no_more_than_what_stays(lines: Callable[[], list[str]]) -> None:
    """Lost and found again every second for ten minutes: the first end is told, then the counts are."""
    told, clock, written = repeats(), ManualClock(), []
    for _ in range(600):
        told.failed("losses", "lost", clock.now, is_lasting=True)
        told.ended("losses", "found again", clock.advance(0.5))
        clock.advance(0.5)
        written += lines()
    assert written[:3] == [
        "WARNING teller: lost",
        "INFO teller: found again",
        "WARNING teller: 60 more losses in 60 s, the latest: lost",
    ]
    assert len(written) <= 2 + 10
    counted = sum(int(line.split()[2]) for line in written if " more " in line)
    assert 600 - 60 <= 1 + counted <= 600
    told.tell(clock.advance(60))
    told.tell(clock.advance(60))
    assert lines()[-1] == "INFO teller: no more losses for 60 s; 600 losses in 599 s"


def test_an_outage_that_nobody_tries_is_not_over(lines: Callable[[], list[str]]) -> None:
    """Without attempts nothing is known of it; it ends when it is said to."""
    told = repeats()
    told.failed("losses", "lost", 0.0, is_lasting=True)
    told.tell(60.0)
    assert told.wake_at == NEVER, "there is nothing to wake for"
    told.failed("losses", "lost", 1_000.0, is_lasting=True)
    assert told.wake_at == 1_060.0
    assert told.ended("losses", "found again", 1_030.0)
    assert lines() == ["WARNING teller: lost", "INFO teller: found again; 2 losses in 1030 s"]
    assert told.ended("losses", "found again", 1_031.0)
    assert lines() == []


def test_a_second_outage_has_an_end_of_its_own(lines: Callable[[], list[str]]) -> None:
    """It began right after the first; once a line has said that it goes on, its end is news."""
    told, clock = repeats(), ManualClock()
    told.failed("losses", "lost", clock.now, is_lasting=True)
    told.ended("losses", "found again", clock.advance(1))
    for _ in range(200):
        told.failed("losses", "lost", clock.advance(1), is_lasting=True)
    lines()
    told.ended("losses", "found again", clock.advance(1))
    assert lines() == ["INFO teller: found again; 201 losses in 202 s"]


def test_what_happens_rarely_is_not_told(lines: Callable[[], list[str]]) -> None:
    """`after` so many with no end in between; the line comes with the last of them."""
    told = repeats()
    for now in range(10):
        told.failed("faults", f"broken {now}", now, after=3)
        told.failed("faults", f"broken {now}", now, after=3)
        assert told.ended("faults", "mended", now)
        assert not told.ended("faults", "mended", now)
    assert lines() == []
    for now in range(3):
        told.failed("faults", f"broken {now}", now, after=3)
    assert lines() == ["WARNING teller: broken 2"]


def test_kinds_are_apart_and_closing_tells_the_rest(lines: Callable[[], list[str]]) -> None:
    """Each has its lines; what was counted and not told is written at the end, and only that."""
    told = repeats()
    for now in range(4):
        told.failed("faults", "broken", now)
        told.failed("rare", "seldom", now, after=9)
    told.failed("losses", "lost", 4.0)
    told.close(5.0)
    assert not told
    assert lines() == [
        "WARNING teller: broken",
        "WARNING teller: lost",
        "WARNING teller: 3 more faults in 5 s, the latest: broken",
    ]


# ------------------------------------------------------------------------------------- of a dispatcher


def test_requests_that_fail_are_told_when_several_do_in_a_row(lines: Callable[[], list[str]]) -> None:
    """By what they failed with, without the words of the failure, which may name a destination."""
    news = News("default")
    for _ in range(50):
        for _ in range(IN_A_ROW - 1):
            news.answered(LATE, 0.0)
            news.answered(Reply(502, b"secret words"), 0.0)
        news.answered(Reply(200, b""), 0.0)
    assert lines() == []
    for second in range(90):
        news.answered(LATE, second)
        news.answered(Reply(502, b"secret words"), second)
    news.answered(Reply(200, b""), 90.0)
    timeouts, answers = "requests without an answer (timeout)", "requests answered 502"
    teller = "dispatcher default: "
    assert lines() == [
        f"WARNING {teller}no complete answer in time; trying again",
        f"WARNING {teller}the service answers 502; trying again",
        f"WARNING {teller}60 more {timeouts} in 60 s, the latest: no complete answer in time",
        f"WARNING {teller}60 more {answers} in 60 s, the latest: the service answers 502",
        f"INFO {teller}requests are answered again; 90 {timeouts} in 90 s",
        f"INFO {teller}requests are answered again; 90 {answers} in 90 s",
    ]


def test_the_connection_is_told_twice_at_most(lines: Callable[[], list[str]]) -> None:
    """Once when it is lost, once when there is a reply again; a timeout in between is news of neither."""
    news, gone = News("default"), Failure("disconnect", "gone", "unknown")
    for answer in (LATE, LOST, LATE, LOST, gone, Reply(503, b""), gone):
        news.answered(answer, 0.0)
    assert lines() == [
        "WARNING dispatcher default: cannot connect; trying again",
        "INFO dispatcher default: the upstream is reached again; 2 requests without a connection in 0 s",
    ]


def test_a_day_of_outages_is_a_line_a_minute(lines: Callable[[], list[str]]) -> None:
    """Failures of every kind each second, now and then a success: nothing is lost of the counts."""
    news, clock = News("default"), ManualClock()
    for number in range(86_400):
        for answer in (LOST, LATE, Reply(503, b""), Failure("disconnect", "gone", "unknown")):
            news.answered(answer, clock.now)
        if number % 1_000 == 999:
            news.answered(Reply(200, b""), clock.now)
        clock.advance(1)
    news.close(clock.now)
    found = lines()
    assert len(found) < 1.1 * 4 * 86_400 / 60
    for kind in ("requests without a connection", "requests answered 503"):
        summaries = [line for line in found if f" more {kind}" in line]
        told = sum(int(line.split(" more ")[0].split()[-1].replace(",", "")) for line in summaries)
        assert 0.9 * 86_400 < told <= 86_400


@pytest.mark.anyio
async def test_an_outage_of_a_service_is_told_and_its_end(lines: Callable[[], list[str]]) -> None:
    """Through the whole dispatcher: what is retried in between is not."""
    transport = ScriptedTransport(200, *[503] * 5)
    settings = Config.load(env={}, token="t", retry_base=0.001, retry_max_delay=0.001)
    async with Dispatcher(settings, transport=transport) as dispatcher:
        for _ in range(3):
            await dispatcher.send(Message(URL, body="x"))
    assert len(transport.batches) == 3 + 5
    teller = "dispatcher default: "
    begin, end = [line for line in lines() if "503" in line]
    assert begin == f"WARNING {teller}the service answers 503; trying again"
    assert end.startswith(f"INFO {teller}requests are answered again; 5 requests answered 503 in ")


@pytest.mark.anyio
async def test_failures_that_nobody_awaits_are_one_line_and_a_count(lines: Callable[[], list[str]]) -> None:
    """Of a hundred batches; `on_failure` hears of each all the same, and its own failures are told once."""
    heard: list[DeliveryError] = []

    def on_failure(errors: list[DeliveryError]) -> None:
        heard.extend(errors)
        raise ValueError("a fault of the callback")

    transport = ScriptedTransport(*[Reply(400, b'{"error":"no"}')] * 300)
    settings = Config.load(env={}, token="t", batch_max_messages=1)
    async with Dispatcher(settings, transport=transport, on_failure=on_failure) as dispatcher:
        for number in range(100):
            dispatcher.put_nowait(Message(URL, body=str(number)))
            await dispatcher.flush()
    assert len(heard) == 100
    found = lines()
    assert sum("nobody awaited them" in line for line in found) == 1 + 1
    assert sum(line.startswith("ERROR") for line in found) == 1 + 1
    assert any("99 more messages that failed and that nobody awaited" in line for line in found)
    assert any("99 more failures of on_failure" in line for line in found)


@pytest.mark.anyio
async def test_an_idle_dispatcher_has_no_timer_for_it() -> None:
    """There is one while something is counted, and closing ends it."""
    transport = ScriptedTransport(LOST, LOST)
    settings = Config.load(env={}, token="t", retry_base=0.001)
    async with Dispatcher(settings, transport=transport) as dispatcher:
        news = dispatcher._pump._news
        await dispatcher.send(Message(URL, body="x"))
        assert news._timer is not None
    assert news._timer is None
