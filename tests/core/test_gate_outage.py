"""The outage gate by itself: what closes it, when it probes, what opens it."""

from __future__ import annotations

import pytest

from dispatcher.core.gate import Gate, Pause, Permit
from tests.core.rig import Extremes

NO_JITTER = Extremes(0.0)
LATER = 10**9
"""Nothing that began earlier is out."""


def fail(
    gate: Gate, *numbers: int, now: float = 100.0, is_of_load: bool = False, oldest: int = LATER
) -> None:
    """These start one after the other, and each fails at once."""
    for number in numbers:
        gate.on_start(number, Permit.ALL)
        gate.on_failed_at_once(number, now, NO_JITTER, oldest=oldest, is_of_load=is_of_load)


def away(*, probe: int | None = None) -> Gate:
    """A gate that found nobody there at 100, and whose next probe is out, if it has a number."""
    gate = Gate()
    fail(gate, 1, 2, 3)
    assert gate.is_outage
    if probe is not None:
        assert gate.permit(gate.closed_until) is Permit.PROBE
        gate.on_start(probe, Permit.PROBE)
    return gate


@pytest.mark.parametrize("is_of_load", [False, True])
def test_three_in_a_row(is_of_load: bool) -> None:
    """Two are not enough, the third closes."""
    gate = Gate()
    fail(gate, 1, 2, is_of_load=is_of_load)
    assert (gate.state, gate.permit(100.0)) == ("open", Permit.ALL)
    fail(gate, 3, is_of_load=is_of_load)
    assert (gate.state, gate.permit(100.0), gate.is_outage) == ("outage", Permit.NOTHING, True)


@pytest.mark.parametrize("event", ["accepted", "understood", "bare", "pause"])
def test_a_word_of_the_service_between_them(event: str) -> None:
    """Somebody is there: it counts from one again."""
    gate = Gate()
    fail(gate, 1, 2)
    gate.on_start(3, Permit.ALL)
    if event == "accepted":
        gate.on_accepted(3)
    elif event == "understood":
        gate.on_understood(3)
    elif event == "bare":
        gate.on_bare(3, 100.0, NO_JITTER, oldest=LATER)
    else:
        gate.on_pause(3, Pause("throttle", 1.0), 100.0, NO_JITTER)
        gate.on_start(4, Permit.PROBE)
        gate.on_accepted(4)
    fail(gate, 5, 6)
    assert gate.state == "open"
    fail(gate, 7)
    assert gate.state == "outage"


def test_what_is_of_no_account_between_them() -> None:
    """A loss or a timeout says neither that nobody is there nor that somebody is."""
    gate = Gate()
    fail(gate, 1, 2)
    gate.on_start(3, Permit.ALL)
    gate.on_answered(3, 100.0)
    fail(gate, 4)
    assert gate.state == "outage"


@pytest.mark.parametrize(("share", "factor"), [(1.0, 1.0), (0.0, 0.5), (0.5, 0.75)])
def test_pauses_between_probes(share: float, factor: float) -> None:
    """From half to the whole of 0.1 s, doubling, of 2 s at most; each with a draw of its own."""
    gate, now = Gate(), 100.0
    rng = Extremes(share)
    for number in (1, 2, 3):
        gate.on_start(number, Permit.ALL)
        gate.on_failed_at_once(number, now, rng, oldest=LATER, is_of_load=False)
    waits = []
    for number in range(4, 12):
        waits.append(gate.closed_until - now)
        now = gate.closed_until
        assert gate.wake_at(now - 0.001) == now
        assert (gate.permit(now - 0.001), gate.permit(now)) == (Permit.NOTHING, Permit.PROBE)
        gate.on_start(number, Permit.PROBE)
        assert gate.permit(now + 60.0) is Permit.NOTHING
        gate.on_failed_at_once(number, now, rng, oldest=LATER, is_of_load=False)
    expected = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert waits == pytest.approx([seconds * factor for seconds in expected])


def test_the_next_outage_begins_anew() -> None:
    """With short pauses."""
    gate = away(probe=4)
    fail(gate, 4, now=101.0)
    gate.on_accepted(4)
    fail(gate, 5, 6, 7, now=200.0)
    assert gate.closed_until == pytest.approx(200.05)


@pytest.mark.parametrize("has_probe", [False, True])
@pytest.mark.parametrize("event", ["accepted", "understood"])
def test_any_success_opens(event: str, has_probe: bool) -> None:
    """Also of an attempt that began before the outage was found, whether a probe is out or not."""
    gate = away(probe=9 if has_probe else None)
    (gate.on_accepted if event == "accepted" else gate.on_understood)(1)
    assert (gate.state, gate.probe, gate.permit(100.0)) == ("open", None, Permit.ALL)


def test_failures_of_what_was_out_change_nothing() -> None:
    """The pause neither grows nor begins anew by those that are not the probe."""
    gate = away()
    until = gate.closed_until
    for number in (1, 2, 3):
        gate.on_failed_at_once(number, 100.04, NO_JITTER, oldest=LATER, is_of_load=False)
    assert gate.closed_until == until


def test_a_probe_that_is_lost_slowly_is_repeated() -> None:
    """A moment later; it is still an outage for all that is known."""
    gate = away(probe=4)
    gate.on_answered(4, 110.0)
    assert gate.is_outage
    assert (gate.permit(110.19), gate.permit(110.21)) == (Permit.NOTHING, Permit.PROBE)


@pytest.mark.parametrize("number", [1, 4])
def test_a_pause_that_was_asked_for_replaces_it(number: int) -> None:
    """The service is there, and too busy: its word holds, whichever attempt it is told to."""
    gate = away(probe=4)
    gate.on_pause(number, Pause("throttle", 7.0), 101.0, NO_JITTER)
    assert (gate.state, gate.is_outage, gate.closed_until) == ("throttled", False, 108.0)
    gate.on_accepted(2)
    assert gate.state == "throttled", "an old answer does not open that"


def test_a_shorter_pause_replaces_it_too() -> None:
    """Who asks for a moment is there."""
    gate = away()
    gate.on_pause(1, Pause("throttle", 0.01), 100.0, NO_JITTER)
    assert gate.state == "throttled"
    assert gate.permit(100.011) is Permit.PROBE


def test_a_bare_refusal_of_the_probe_is_a_pause() -> None:
    """One second, as at any other probe."""
    gate = away(probe=4)
    gate.on_bare(4, 101.0, NO_JITTER, oldest=LATER)
    assert (gate.state, gate.closed_until) == ("throttled", 102.0)


def test_a_pause_is_no_outage() -> None:
    """While the service has asked to wait, failures say nothing new: its probe is only repeated."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_pause(1, Pause("throttle", 7.0), 100.0, NO_JITTER)
    fail(gate, 2, 3, 4, 5)
    assert (gate.state, gate.closed_until) == ("throttled", 107.0)
    gate.on_start(6, Permit.PROBE)
    gate.on_failed_at_once(6, 107.0, NO_JITTER, oldest=LATER, is_of_load=False)
    assert gate.state == "throttled"
    assert gate.closed_until == pytest.approx(107.2)


def test_a_refused_token_halts() -> None:
    """It is the probe's answer that counts; failures do not end or soften a halt."""
    gate = Gate()
    gate.on_accepted(1)
    fail(gate, 1, 2, 3)
    gate.on_start(4, Permit.PROBE)
    gate.on_refused(4, 401, "bad token", 101.0)
    assert (gate.state, gate.is_outage, gate.permit(130.9)) == ("halted", False, Permit.NOTHING)
    fail(gate, 5, 6, 7, now=102.0)
    assert (gate.state, gate.permit(130.9), gate.permit(131.0)) == ("halted", Permit.NOTHING, Permit.PROBE)
    gate = Gate()
    gate.on_accepted(1)
    gate.on_refused(1, 401, "bad token", 101.0)
    fail(gate, 5, 6, 7, now=102.0)
    assert gate.pause is None


def test_a_new_token_tries_at_once() -> None:
    """Whatever was found out with the old one: the probe need not wait, and the count begins anew."""
    gate = away()
    gate.unhalt()
    assert gate.permit(100.0) is Permit.PROBE
    gate = Gate()
    fail(gate, 1, 2)
    gate.unhalt()
    fail(gate, 3, 4)
    assert gate.state == "open"


def test_of_one_flight_a_503_counts_once() -> None:
    """Part of a flight refused is the limit's business; a connection refused says more than that."""
    for is_of_load in (True, False):
        gate = Gate()
        for number in range(1, 9):
            gate.on_start(number, Permit.ALL)
        for number in range(1, 9):
            gate.on_failed_at_once(number, 100.0, NO_JITTER, oldest=number + 1, is_of_load=is_of_load)
        assert gate.is_outage is not is_of_load
    fail(gate := Gate(), 1, is_of_load=True)
    for number in (2, 3):
        gate.on_start(number, Permit.ALL)
    gate.on_failed_at_once(2, 100.0, NO_JITTER, oldest=3, is_of_load=True)
    gate.on_failed_at_once(3, 100.0, NO_JITTER, oldest=LATER, is_of_load=True)
    assert not gate.is_outage, "two flights"
    fail(gate, 4, is_of_load=True)
    assert gate.is_outage, "three"


def test_a_503_does_not_close_while_something_older_is_out() -> None:
    """It may still succeed, and show that the service only refuses what is too much."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    fail(gate, 2, 3, 4, 5, is_of_load=True, oldest=1)
    assert not gate.is_outage
    fail(gate, 6, is_of_load=True)
    assert gate.is_outage
