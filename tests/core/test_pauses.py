"""The server's pauses in the engine: what Retry-After and Reset mean, who waits, one probe, the quota."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Batch, Reply
from dispatcher.core.gate import PROBE_RETRY_SECONDS
from dispatcher.core.retry import pause_of
from dispatcher.errors import DeadlineExceeded, QuotaExhausted
from dispatcher.message import Receipt
from tests.core.rig import UNIX, Extremes, Rig, accepted, certainty, is_held, numbers

BURST = "burst-ratelimit-reset"
DAILY = "ratelimit-reset"


def reply(unix_at: float = UNIX, **headers: object) -> Reply:
    """A 429 with these headers, the service's clock being at `unix_at`."""
    return Reply(429, b"", {name.replace("_", "-"): str(value) for name, value in headers.items()}, unix_at)


# ------------------------------------------------------------------------------ what the headers say


@pytest.mark.parametrize(
    ("text", "seconds"), [("2", 2.0), ("0.5", 0.5), ("9999", 60.0), ("60", 60.0), ("1e3", 60.0)]
)
def test_retry_after(text: str, seconds: float) -> None:
    """Seconds, believed up to a minute."""
    pause = pause_of(reply(retry_after=text))
    assert pause is not None
    assert (pause.kind, pause.seconds) == ("throttle", seconds)


@pytest.mark.parametrize(
    "text", ["-1", "0", "soon", "", "nan", "inf", "-inf", "Wed, 21 Oct 2026 07:28:00 GMT"]
)
def test_a_retry_after_that_says_nothing(text: str) -> None:
    """It is as if the header were not there: a bare refusal."""
    assert pause_of(reply(retry_after=text)) is None


@pytest.mark.parametrize("skew", [0.0, 7200.0, -7200.0, 1e6, -1e6])
@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize(("name", "kind"), [(BURST, "throttle"), (DAILY, "quota")])
def test_reset(name: str, kind: str, unit: int, skew: float) -> None:
    """An instant by the service's own clock, in seconds or milliseconds, whatever ours says."""
    unix_at = UNIX + skew
    pause = pause_of(reply(unix_at, **{name: (unix_at + 7.0) * unit}))
    assert pause is not None
    assert pause.kind == kind
    assert pause.seconds == pytest.approx(7.0)
    assert pause.reset_at == pytest.approx(unix_at + 7.0)


def test_a_reset_that_is_no_instant() -> None:
    """Below a thousand million it is a number of seconds from now, as a draft of the IETF has it."""
    pause = pause_of(reply(**{BURST: 12}))
    assert pause is not None
    assert pause.seconds == 12.0
    assert pause_of(reply(999_999_999.0, **{BURST: 999_999_999})).seconds == 60.0  # type: ignore[union-attr]


def test_where_seconds_end_and_milliseconds_begin() -> None:
    """A hundred thousand million: in the year 5138 by the one, in 1973 by the other."""
    as_seconds = pause_of(reply(99_999_999_990.0, **{BURST: 99_999_999_999.0}))
    assert as_seconds is not None
    assert as_seconds.seconds == pytest.approx(9.0)
    as_milliseconds = pause_of(reply(99_999_995.0, **{BURST: 100_000_000_000}))
    assert as_milliseconds is not None
    assert as_milliseconds.seconds == 60.0  # 100,000,000 is no instant, and so a number of seconds
    both = pause_of(reply(1_000_000_000.0 - 4.0, **{BURST: 1_000_000_000}))
    assert both is not None
    assert both.seconds == pytest.approx(4.0)


@pytest.mark.parametrize(("after", "reset", "seconds"), [(3, 9, 9.0), (9, 3, 9.0), (5, -100, 5.0)])
def test_the_larger_of_both(after: int, reset: int, seconds: float) -> None:
    """Retry-After and Reset in one reply; a reset that has passed says nothing."""
    pause = pause_of(reply(**{"retry_after": after, BURST: UNIX + reset}))
    assert pause is not None
    assert pause.seconds == pytest.approx(seconds)


def test_a_reset_that_has_passed_says_nothing() -> None:
    """Nor does one that is now."""
    assert pause_of(reply(**{BURST: UNIX})) is None
    assert pause_of(reply(**{BURST: UNIX - 5})) is None


def test_the_longest_pauses() -> None:
    """A minute for a burst, a day for the quota."""
    burst = pause_of(reply(**{BURST: UNIX + 1e6}))
    daily = pause_of(reply(**{DAILY: UNIX + 1e6}))
    assert burst is not None
    assert daily is not None
    assert (burst.seconds, daily.seconds) == (60.0, 86_400.0)
    assert daily.reset_at == UNIX + 86_400.0


def test_the_daily_quota_is_told_by_its_names() -> None:
    """`RateLimit-…` is the quota, `Burst-RateLimit-…` is not; its limit alone tells the kind, too."""
    daily = pause_of(reply(ratelimit_limit=1000, retry_after=90))
    burst = pause_of(reply(burst_ratelimit_limit=100, retry_after=90))
    assert daily is not None
    assert burst is not None
    assert [(pause.kind, pause.seconds) for pause in (daily, burst)] == [("quota", 90.0), ("throttle", 60.0)]


# ------------------------------------------------------------------------------------- who waits, how


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_holds_everything(status: int) -> None:
    """Other batches, queues and messages that travel alone, to the instant; then exactly one probe."""
    rig = Rig(rng=Extremes(0.0))
    rig.put(100)
    (batch,) = rig.poll()
    rig.put(100)
    rig.put(1, queue="q")
    rig.put(1, is_single=True)
    rig.throttle(batch, 7, status)
    assert rig.engine.gate.state == "throttled"
    assert rig.engine.tally.pauses == {"throttle": 1}
    rig.out.clear()
    started = rig.advance(6.99)
    assert started == []
    assert len(rig.advance(0.01)) == 1


def test_after_the_probe_everything_goes() -> None:
    """In order: what was put off first."""
    rig = Rig(rng=Extremes(0.0))
    rig.put(100)
    rig.throttle(rig.poll()[0], 7)
    rig.put(250)
    rig.poll()
    (probe,) = rig.advance(7.0)
    assert numbers(probe.entries) == list(range(100))
    assert len(rig.ok(probe)) == 3
    assert rig.engine.gate.state == "open"


def test_a_pause_is_no_failed_attempt() -> None:
    """It counts for no limit of attempts and no back-off, however often; the error lists it all the same."""
    rig = Rig(rng=Extremes(), retry_max_attempts=2, retry_base=4.0, retry_max_delay=100.0)
    entries = rig.put(1)
    for _ in range(5):
        rig.throttle(rig.next(), 1)
    assert is_held(entries[0])
    rig.fail(rig.next(), "connect")
    assert rig.engine.backoffs.next_at == pytest.approx(rig.now + 4.0)  # its first failure
    rig.fail(rig.next(), "connect")
    assert len(entries[0].attempts) == 7
    assert certainty(entries[0]) == "not_accepted"


def test_the_probe_need_not_be_full() -> None:
    """One message that has just come is enough, and it does not linger."""
    rig = Rig(rng=Extremes(0.0), batch_linger=5.0, batch_soft_slots=0)
    rig.put(100)
    rig.throttle(rig.poll()[0], 2)
    for entry in rig.engine.held():
        rig.engine.withdraw(entry)
    rig.advance(3.0)
    rig.put(1)
    assert [batch.reason for batch in rig.poll()] == ["probe"]


def test_a_probe_that_times_out_is_repeated() -> None:
    """A moment after the loss, alone again; nothing goes meanwhile."""
    rig = Rig(rng=Extremes(0.0))
    rig.put(1)
    rig.throttle(rig.poll()[0], 2)
    rig.put(300)
    (probe,) = rig.advance(2.0)
    rig.now += 10.0
    assert rig.fail(probe, "timeout") == []
    assert rig.advance(PROBE_RETRY_SECONDS - 0.001) == []
    assert len(rig.advance(0.001)) == 1
    assert rig.advance(30.0) == []


def test_answers_to_what_was_out_neither_open_nor_shorten() -> None:
    """Successes after the refusal, and a shorter pause: it stays closed to its instant."""
    rig = Rig(rng=Extremes(0.0))
    for _ in range(4):
        rig.put(100)
        rig.poll()
    rig.put(50)
    rig.throttle(rig.out[0], 10)
    assert rig.ok(rig.out[0]) == []
    assert rig.throttle(rig.out[0], 1) == []
    assert rig.fail(rig.out[0]) == []
    assert rig.advance(9.99) == []
    assert len(rig.advance(0.02)) == 1


def test_three_bare_refusals_hold_everything() -> None:
    """In three flights one after the other; the first two back off by themselves."""
    rig = Rig(rng=Extremes(0.0))
    for _ in range(4):
        rig.put(100)
        rig.poll()
    for _ in range(4):
        assert len(rig.refuse(rig.out[0], 429)) == 1  # no jitter: it goes again at once
    rig.refuse(rig.out[0], 429)
    rig.refuse(rig.out[0], 429)
    assert rig.engine.gate.state == "open"
    for _ in range(2):
        rig.refuse(rig.out[0], 429)
    rig.refuse(rig.out[0], 429)
    assert rig.engine.gate.state == "throttled"
    rig.put(100)
    assert rig.advance(0.99) == []
    assert len(rig.advance(0.02)) == 1


def test_a_storm_without_words_is_bounded() -> None:
    """A minute of bare refusals costs a few requests, and the end of it is noticed within the last pause."""
    rig = Rig(deliver_within=300.0, queue_max_messages=20_000)
    rig.put(5_000)
    until = rig.now + 60.0

    def service(batch: Batch) -> Reply:
        return Reply(429, b"") if rig.now < until else accepted(batch.entries)

    refused = rig.play(service, 60.0)
    assert refused < 85  # the 64 of the first flight, and then the pauses 1, 2, 4, 8, 16, 20, 20
    rig.play(service, 22.0)
    assert len(rig.settled) == 5_000


# -------------------------------------------------------------------------------------------- quota


def test_what_cannot_wait_for_the_quota_fails_at_once() -> None:
    """Held in every state, and new; with the instant at which it is filled again; the rest waits for it."""
    rig = Rig(rng=Extremes(), retry_base=50.0, retry_max_delay=60.0, limit_max_in_flight=4)
    mine = rig.put(2, within=50.0) + rig.put(1, within=500.0)
    backing_off = rig.put(1, within=50.0, queue="b")
    (first,) = rig.poll()
    rig.fail(first, "connect")
    isolated = rig.put(4, within=50.0)
    rig.refuse(rig.poll()[0], 400)
    asked = rig.put(1, within=50.0)
    (batch,) = rig.poll()
    waiting = rig.put(1, within=50.0) + rig.put(1, within=200.0)
    rig.spend_quota(batch, 100.0)
    failed = [*mine[:2], *backing_off, *isolated[2:], *asked, waiting[0]]
    assert all(isinstance(entry.outcome, QuotaExhausted) for entry in failed)
    assert all(e.outcome.reset_at == UNIX + 100.0 for e in failed)  # type: ignore[union-attr]
    assert is_held(mine[2])
    assert is_held(waiting[1])
    new = rig.put(1, within=99.0) + rig.put(1, within=101.0)
    rig.poll()
    assert isinstance(new[0].outcome, QuotaExhausted)
    assert certainty(new[0]) == "not_sent"
    assert certainty(asked[0]) == "not_accepted"
    assert is_held(new[1])


def test_the_rest_arrives_after_the_quota_is_filled() -> None:
    """One probe at the reset, then everything."""
    rig = Rig(rng=Extremes(0.0), deliver_within=7200.0)
    rig.put(100)
    rig.spend_quota(rig.poll()[0], 3600.0)
    rig.put(200)
    assert rig.advance(3599.0) == []
    (probe,) = rig.advance(1.1)
    assert probe.started_at == pytest.approx(100.0 + 3600.0)
    for batch in [*rig.ok(probe)]:
        rig.ok(batch)
    assert sum(isinstance(entry.outcome, Receipt) for entry in rig.settled) == 300


@pytest.mark.parametrize("how", ["disconnect", "429", "errors"])
def test_what_comes_back_while_the_quota_is_spent_fails_at_once(how: str) -> None:
    """It was out when the quota ended, and cannot live to the reset either."""
    rig = Rig()
    rig.put(100, within=50.0)
    rig.put(100, within=50.0)
    rig.poll()
    first, second = rig.out
    rig.spend_quota(first, 100.0)
    if how == "errors":
        rig.errors(second, 3)
        assert isinstance(second.entries[3].outcome, QuotaExhausted)
        return
    rig.refuse(second, 429) if how == "429" else rig.fail(second)
    assert all(isinstance(entry.outcome, QuotaExhausted) for entry in second.entries)
    assert {certainty(entry) for entry in second.entries} == {"not_accepted" if how == "429" else "unknown"}


def test_a_burst_fails_nobody_early() -> None:
    """What cannot live to the end of a short pause has its deadline all the same."""
    rig = Rig()
    entries = rig.put(1, within=5.0)
    rig.throttle(rig.poll()[0], 30)
    rig.advance(4.9)
    assert is_held(entries[0])
    rig.advance(0.2)
    assert isinstance(entries[0].outcome, DeadlineExceeded)
    assert certainty(entries[0]) == "not_accepted"


def test_what_was_put_off_has_no_back_off_of_its_own() -> None:
    """The gate's instant is the only one that holds."""
    rig = Rig(rng=Extremes(), retry_throttle_base=20.0, retry_base=20.0)
    rig.put(1)
    rig.throttle(rig.poll()[0], 0.4)
    (probe,) = rig.advance(0.5)
    assert probe.started_at == pytest.approx(100.5)
