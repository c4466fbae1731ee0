"""The core's contract: what every failure says is known, and its list of attempts."""

from __future__ import annotations

from dispatcher.errors import (
    MessageRejected,
    RetriesExhausted,
)
from tests.core.rig import Extremes, Rig, certainty


def test_one_unknown_outcome_stays_possible() -> None:
    """First a lost reply, then a refusal: it may have been taken by the first, and the error says so."""
    rig = Rig()
    entries = rig.put(1)
    rig.fail(rig.poll()[0])
    (batch,) = rig.advance(1.0)
    rig.refuse(batch, 400)
    assert isinstance(entries[0].outcome, MessageRejected)
    assert certainty(entries[0]) == "unknown"


def test_certainty_of_error_entries_after_an_unknown() -> None:
    """The same for error entries that run out of attempts."""
    rig = Rig()
    entries = rig.put(2)
    rig.fail(rig.poll()[0])
    for _ in range(5):
        batch = rig.next()
        rig.errors(batch, next(n for n, e in enumerate(batch.entries) if e.number == 1))
    assert certainty(entries[1]) == "unknown"


def test_errors_list_every_attempt() -> None:
    """When, what came back, how long: each request that carried it."""
    rig = Rig(retry_max_attempts=3, rng=Extremes())
    entries = rig.put(1)
    batch = rig.poll()[0]
    rig.now += 0.25
    rig.fail(batch, "connect")
    batch = rig.next()
    rig.now += 0.5
    rig.refuse(batch, 503, "busy")
    batch = rig.next()
    rig.now += 0.1
    rig.refuse(batch, 429, "slow down")
    outcome = entries[0].outcome
    assert isinstance(outcome, RetriesExhausted)
    assert [(attempt.outcome, round(attempt.duration, 3)) for attempt in outcome.attempts] == [
        ("connect failed", 0.25),
        ("503 busy", 0.5),
        ("429 slow down", 0.1),
    ]
    assert [round(attempt.after, 3) for attempt in outcome.attempts] == [0.0, 0.3, 0.9]
    assert outcome.certainty == "unknown"


def test_very_many_attempts_are_remembered_in_part() -> None:
    """The first ones and the last ones: a limit on everything."""
    rig = Rig(retry_max_attempts=200, retry_max_delay=0.1, deliver_within=1_000)
    entries = rig.put(1)
    for _ in range(200):
        rig.fail(rig.out[0] if rig.out else rig.next(), "connect")
    outcome = entries[0].outcome
    assert isinstance(outcome, RetriesExhausted)
    assert len(outcome.attempts) == 40
    assert outcome.attempts[0].after == 0.0
    assert outcome.attempts[-1].after > 15.0


def test_errors_show_no_secrets() -> None:
    """No body, no query of the destination, no user information, in text or repr."""
    rig = Rig(retry_max_attempts=1)
    url = "https://user:password@example.com/hook?token=secret"
    entries = rig.put(1, destination=url)
    rig.fail(rig.poll()[0])
    text = f"{entries[0].outcome} {entries[0].outcome!r}"
    assert "example.com/hook" in text
    assert not any(word in text for word in ("password", "secret", "body"))
