"""The gate's first contact, alone and in the engine; the fixed limit."""

from __future__ import annotations

import pytest

from dispatcher.core.gate import RETRY_SECONDS, Gate
from dispatcher.core.limit import FixedLimit, Signal
from dispatcher.errors import Halted, MessageRejected
from dispatcher.message import Receipt
from tests.core.rig import Rig, certainty


def test_first_contact() -> None:
    """Refused and nothing ever accepted: it refuses for thirty seconds, then lets one try through."""
    gate = Gate()
    assert not gate.is_refusing(0.0)
    assert gate.on_refused(401, "bad token", 10.0)
    assert gate.is_refusing(10.0 + RETRY_SECONDS - 0.001)
    assert not gate.is_refusing(10.0 + RETRY_SECONDS)


def test_refused_since() -> None:
    """A second refusal goes on counting from the first."""
    gate = Gate()
    gate.on_refused(401, "bad token", 10.0)
    gate.on_refused(401, "bad token", 45.0)
    assert gate.refusal is not None
    assert gate.refusal.since == 10.0
    assert gate.is_refusing(74.0)


def test_after_something_was_accepted_it_is_no_first_contact() -> None:
    """Then a refusal is not the newcomer's, and fails nobody."""
    gate = Gate()
    gate.on_accepted()
    assert not gate.on_refused(401, "bad token", 10.0)
    assert not gate.is_refusing(10.0)


def test_three_alone_are_systemic() -> None:
    """One or two messages refused alone are their own fault, three in a row without success the URL's."""
    gate = Gate()
    assert [gate.on_lone_refusal(404, "not found", 1.0) for _ in range(3)] == [False, False, True]


def test_a_success_between_lone_refusals_resets_them() -> None:
    """Something was accepted: the URL is right."""
    gate = Gate()
    gate.on_lone_refusal(404, "", 1.0)
    gate.on_lone_refusal(404, "", 1.0)
    gate.on_accepted()
    assert not gate.on_lone_refusal(404, "", 1.0)


@pytest.mark.parametrize(("status", "text"), [(401, "invalid token"), (302, ""), (308, "")])
def test_a_refused_token_or_url_fails_everything_at_once(status: int, text: str) -> None:
    """What was sent, what waits and what comes new fails as `Halted`, and nothing more is sent."""
    rig = Rig(limit_max_in_flight=1)
    first = rig.put(3)
    rig.poll()
    waiting = rig.put(150)
    rig.refuse(rig.out[0], status, text)
    assert all(isinstance(entry.outcome, Halted) for entry in first + waiting)
    assert {certainty(entry) for entry in first} == {"not_accepted"}
    assert {certainty(entry) for entry in waiting} == {"not_sent"}
    new = rig.put(1)
    assert rig.poll() == []
    assert isinstance(new[0].outcome, Halted)
    assert new[0].outcome.status == status


def test_the_redirect_names_the_cure() -> None:
    """The text says where it points and what to check."""
    rig = Rig()
    entries = rig.put(1)
    rig.poll()
    rig.refuse(rig.out[0], 302)
    assert "check the base URL" in str(entries[0].outcome)


def test_after_thirty_seconds_one_more_try() -> None:
    """The next message is sent; if it is accepted, all is well again."""
    rig = Rig()
    rig.put(1)
    rig.poll()
    rig.refuse(rig.out[0], 401)
    rig.advance(29.9)
    rig.put(1)
    assert rig.poll() == []
    rig.advance(0.2)
    again = rig.put(1)
    (batch,) = rig.poll()
    rig.ok(batch)
    assert isinstance(again[0].outcome, Receipt)
    assert not rig.engine.gate.is_refusing(rig.now)


def test_one_more_try_that_is_refused_too() -> None:
    """It fails like the first, and the next half minute begins."""
    rig = Rig()
    rig.put(1)
    rig.poll()
    rig.refuse(rig.out[0], 401)
    rig.advance(31.0)
    again = rig.put(1)
    rig.refuse(rig.poll()[0], 401)
    assert isinstance(again[0].outcome, Halted)
    assert again[0].outcome.since == pytest.approx(31.0)
    rig.put(1)
    assert rig.poll() == []


def test_after_the_first_success_a_401_fails_nobody() -> None:
    """The token was right a moment ago: what was refused is tried again until its deadline."""
    rig = Rig()
    rig.put(1)
    rig.ok(rig.poll()[0])
    later = rig.put(1)
    rig.refuse(rig.poll()[0], 401)
    assert later[0].outcome is None
    rig.advance(5.0)
    rig.ok(rig.out[0])
    assert isinstance(later[0].outcome, Receipt)


@pytest.mark.parametrize("status", [403, 404, 405])
def test_three_lone_refusals_halt_a_newcomer(status: int) -> None:
    """Three messages refused alone with nothing ever accepted: everything else fails, unsent."""
    rig = Rig(limit_max_in_flight=1)
    entries = rig.put(100)
    rig.poll()
    waiting = rig.put(50)
    rig.serve(lambda _: True, status)
    outcomes = [entry.outcome for entry in entries]
    assert sum(isinstance(outcome, MessageRejected) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, Halted) for outcome in outcomes) == 97
    assert {certainty(entry) for entry in waiting} == {"not_sent"}


def test_a_lone_refusal_among_successes_halts_nobody() -> None:
    """Three messages to missing groups among ninety-seven good ones are rejected, the others delivered."""
    rig = Rig()
    entries = rig.put(100)
    rig.poll()
    rig.serve(lambda entry: entry.number in (70, 80, 90), 404)
    assert [entry.number for entry in entries if isinstance(entry.outcome, MessageRejected)] == [70, 80, 90]
    assert sum(isinstance(entry.outcome, Receipt) for entry in entries) == 97


@pytest.mark.parametrize("signal", ["ok", "overload", "timeout", "neutral"])
def test_a_fixed_limit_learns_nothing(signal: Signal) -> None:
    """Its value stays whatever is observed."""
    limit = FixedLimit(7)
    limit.observe(signal, started_at=0.0, now=1.0, was_reached=True)
    assert limit.value == 7
