"""The gate by itself: pauses, bare refusals, the one probe, halts, what a replaced token outdates."""

from __future__ import annotations

import pytest

from dispatcher.core.gate import HALT_PROBE_SECONDS, PROBE_RETRY_SECONDS, Gate, Pause, Permit
from tests.core.rig import Extremes

INF = float("inf")
NO_JITTER = Extremes(0.0)
LATER = 10**9
"""Nothing that began earlier is out."""


def closed(seconds: float = 10.0, *, kind: str = "throttle", jitter: float = 0.0, now: float = 100.0) -> Gate:
    """A gate that was asked at `now` to wait."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_pause(1, Pause(kind, seconds, 5_000.0), now, Extremes(jitter))  # type: ignore[arg-type]
    return gate


def probing(gate: Gate, number: int, now: float) -> Gate:
    """Let a batch be the probe."""
    assert gate.permit(now) is Permit.PROBE
    gate.on_start(number, Permit.PROBE)
    return gate


def bare(gate: Gate, times: int, now: float = 100.0, *, first: int = 1) -> None:
    """So many refusals without a word about time."""
    for number in range(first, first + times):
        gate.on_start(number, Permit.ALL)
        gate.on_bare(number, now, NO_JITTER, oldest=LATER)


def test_open() -> None:
    """A new gate lets everything through, and nothing about it changes by itself."""
    gate = Gate()
    assert (gate.state, gate.permit(0.0), gate.wake_at(0.0)) == ("open", Permit.ALL, INF)
    assert not gate.is_refusing(0.0)
    assert not gate.outlasts(0.0)


# ------------------------------------------------------------------------------------------- pauses


def test_closed_until_the_instant() -> None:
    """Nothing starts before it, one probe at it, and it says when that is."""
    gate = closed(10.0)
    assert (gate.state, gate.permit(109.999), gate.wake_at(105.0)) == ("throttled", Permit.NOTHING, 110.0)
    assert (gate.permit(110.0), gate.wake_at(110.0)) == (Permit.PROBE, INF)


@pytest.mark.parametrize(
    ("kind", "seconds", "longest"),
    [
        ("throttle", 59.0, 59.25),
        ("throttle", 61.0, 60.25),
        ("quota", 86_399.0, 86_399.25),
        ("quota", 1e9, 86_400.25),
    ],
)
def test_the_longest_pause(kind: str, seconds: float, longest: float) -> None:
    """A minute for a burst, a day for the quota, whatever the service says."""
    assert closed(seconds, kind=kind, jitter=1.0).closed_until == pytest.approx(100.0 + longest)


@pytest.mark.parametrize(("seconds", "jitter"), [(0.4, 0.1), (1.0, 0.25), (10.0, 0.25)])
def test_jitter(seconds: float, jitter: float) -> None:
    """At most a quarter of the pause, and a quarter of a second; at least nothing."""
    assert closed(seconds, jitter=1.0).closed_until == pytest.approx(100.0 + seconds + jitter)
    assert closed(seconds, jitter=0.0).closed_until == pytest.approx(100.0 + seconds)


def test_exactly_one_probe() -> None:
    """While it is out nothing else starts, however late it is."""
    gate = probing(closed(10.0), 2, 110.0)
    assert gate.probe == 2
    assert gate.permit(10_000.0) is Permit.NOTHING
    assert gate.wake_at(110.0) == INF


@pytest.mark.parametrize("event", ["accepted", "understood"])
def test_an_answered_probe_opens(event: str) -> None:
    """Whether the service took its messages or judged them."""
    gate = probing(closed(10.0), 2, 110.0)
    gate.on_accepted(2) if event == "accepted" else gate.on_understood(2)
    assert (gate.state, gate.probe, gate.permit(110.0)) == ("open", None, Permit.ALL)


def test_a_refused_probe_closes_again() -> None:
    """For as long as the service says then, be it shorter."""
    gate = probing(closed(10.0), 2, 110.0)
    gate.on_pause(2, Pause("throttle", 3.0), 111.0, NO_JITTER)
    assert (gate.permit(113.9), gate.permit(114.0)) == (Permit.NOTHING, Permit.PROBE)


def test_a_probe_without_an_answer_is_repeated() -> None:
    """A moment later, still alone."""
    gate = probing(closed(10.0), 2, 110.0)
    gate.on_answered(2, 120.0)
    again_at = 120.0 + PROBE_RETRY_SECONDS
    assert gate.wake_at(120.0) == again_at
    assert (gate.permit(again_at - 0.001), gate.permit(again_at)) == (Permit.NOTHING, Permit.PROBE)


def test_answers_to_earlier_attempts_do_not_open() -> None:
    """Neither a success nor a judgement nor a loss of a batch that is not the probe."""
    gate = closed(10.0)
    gate.on_accepted(1)
    gate.on_understood(1)
    gate.on_answered(1, 101.0)
    assert (gate.state, gate.closed_until) == ("throttled", 110.0)
    probing(gate, 2, 110.0)
    gate.on_accepted(1)
    gate.on_understood(1)
    gate.on_answered(1, 111.0)
    assert (gate.state, gate.probe) == ("throttled", 2)


def test_answers_to_earlier_attempts_do_not_shorten() -> None:
    """A shorter pause changes nothing, a longer one lengthens; neither is taken for the probe's."""
    gate = closed(10.0)
    gate.on_pause(1, Pause("throttle", 2.0), 101.0, NO_JITTER)
    assert gate.closed_until == 110.0
    probing(gate, 2, 110.0)
    gate.on_pause(1, Pause("throttle", 20.0), 111.0, NO_JITTER)
    assert (gate.closed_until, gate.probe) == (131.0, 2)


def test_a_bare_refusal_of_an_earlier_attempt_changes_nothing() -> None:
    """The gate is closed already, for a time that the service has named."""
    gate = closed(10.0)
    for number in range(1, 6):
        gate.on_bare(number, 101.0, NO_JITTER, oldest=LATER)
    assert gate.closed_until == 110.0


# ----------------------------------------------------------------------------------- bare refusals


def test_three_bare_refusals_close() -> None:
    """One or two are the batch's own affair."""
    gate = Gate()
    bare(gate, 2)
    assert gate.permit(100.0) is Permit.ALL
    bare(gate, 1, first=3)
    assert (gate.state, gate.closed_until) == ("throttled", 101.0)


def test_a_success_between_bare_refusals_counts_anew() -> None:
    """Two, a success, two: open."""
    gate = Gate()
    bare(gate, 2)
    gate.on_accepted(1)
    bare(gate, 2, first=3)
    assert gate.permit(100.0) is Permit.ALL


def test_bare_pauses_double() -> None:
    """1, 2, 4, 8, 16 and then 20 seconds, one for each refused probe."""
    gate, now, pauses = Gate(), 100.0, []
    bare(gate, 3, now)
    for number in range(10, 22):
        pauses.append(gate.closed_until - now)
        now = gate.closed_until
        probing(gate, number, now).on_bare(number, now, NO_JITTER, oldest=LATER)
    assert pauses == [1.0, 2.0, 4.0] + [5.0] * 9


def test_bare_pauses_begin_anew_after_a_success() -> None:
    """The probe was taken: the next three close for one second."""
    gate = Gate()
    bare(gate, 3)
    probing(gate, 9, 101.0).on_bare(9, 101.0, NO_JITTER, oldest=LATER)
    probing(gate, 10, 103.0).on_accepted(10)
    bare(gate, 2, 200.0, first=11)
    assert gate.permit(200.0) is Permit.ALL
    bare(gate, 1, 200.0, first=13)
    assert gate.closed_until == 201.0


def test_bare_pauses_have_jitter() -> None:
    """Those who are refused together do not come back together."""
    gate = Gate()
    for number in range(3):
        gate.on_bare(number + 1, 100.0, Extremes(), oldest=LATER)
    assert gate.closed_until == 101.25


# -------------------------------------------------------------------------------------------- quota


def test_what_a_quota_outlasts() -> None:
    """What has to be sent before it is filled again; a burst outlasts nothing."""
    gate = closed(1000.0, kind="quota")
    assert gate.state == "quota"
    assert (gate.outlasts(1099.0), gate.outlasts(1100.0)) == (True, False)
    assert not closed(50.0).outlasts(101.0)


# -------------------------------------------------------------------------------------------- halts


def test_first_contact() -> None:
    """Refused and nothing ever accepted: it refuses for thirty seconds, then lets one try through."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_refused(1, 401, "bad token", 10.0)
    assert (gate.state, gate.permit(10.0), gate.is_refusing(39.999)) == ("refused", Permit.NOTHING, True)
    assert (gate.is_refusing(40.0), gate.permit(40.0)) == (False, Permit.PROBE)
    gate.on_start(2, Permit.PROBE)
    assert gate.permit(41.0) is Permit.NOTHING


def test_halted() -> None:
    """After something was accepted nobody is refused: a probe every thirty seconds, counted from the last."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_accepted(1)
    gate.on_refused(2, 401, "bad token", 10.0)
    assert (gate.state, gate.is_refusing(10.0), gate.wake_at(11.0)) == ("halted", False, 40.0)
    probing(gate, 3, 40.0).on_refused(3, 401, "bad token", 42.0)
    assert (gate.permit(71.9), gate.permit(72.0)) == (Permit.NOTHING, Permit.PROBE)
    assert gate.refusal is not None
    assert gate.refusal.since == 10.0


def test_a_halted_probe_without_an_answer_is_repeated() -> None:
    """Half a minute later."""
    gate = Gate()
    gate.on_accepted(1)
    gate.on_refused(2, 401, "", 10.0)
    probing(gate, 3, 40.0).on_answered(3, 50.0)
    assert gate.wake_at(50.0) == 50.0 + HALT_PROBE_SECONDS


@pytest.mark.parametrize("event", ["accepted", "understood"])
def test_a_halted_probe_that_is_answered_opens(event: str) -> None:
    """The token is good again."""
    gate = Gate()
    gate.on_accepted(1)
    gate.on_refused(2, 401, "", 10.0)
    probing(gate, 3, 40.0)
    gate.on_accepted(3) if event == "accepted" else gate.on_understood(3)
    assert (gate.state, gate.refusal) == ("open", None)


def test_a_success_of_an_earlier_attempt_ends_first_contact_and_not_the_halt() -> None:
    """Something was accepted under this token after all: what is held stays held instead of failing."""
    gate = Gate()
    gate.on_refused(2, 401, "", 10.0)
    gate.on_accepted(1)
    assert (gate.state, gate.is_refusing(11.0), gate.permit(11.0)) == ("halted", False, Permit.NOTHING)


def test_a_pause_of_a_halted_gate_is_kept_too() -> None:
    """A probe that is told to wait does so: the later of the two instants holds."""
    gate = Gate()
    gate.on_accepted(1)
    gate.on_refused(2, 401, "", 10.0)
    probing(gate, 3, 40.0).on_pause(3, Pause("throttle", 20.0), 41.0, NO_JITTER)
    assert (gate.state, gate.permit(60.9), gate.permit(61.0)) == ("halted", Permit.NOTHING, Permit.PROBE)
    gate.on_start(4, Permit.PROBE)
    gate.on_accepted(4)
    assert gate.state == "open"


@pytest.mark.parametrize("status", [403, 404, 405, 410])
def test_three_alone_are_systemic(status: int) -> None:
    """One or two messages refused alone are their own fault, three in a row without success the URL's."""
    gate = Gate()
    assert [gate.on_lone_refusal(number, status, "", 1.0) for number in (1, 2, 3)] == [False, False, True]
    assert gate.refusal is not None
    assert gate.refusal.is_systemic


@pytest.mark.parametrize("status", [301, 308, 401])
def test_what_is_said_outright_is_not_systemic(status: int) -> None:
    """A token or a URL refused as such says nothing of a later refusal of messages."""
    gate = Gate()
    gate.on_refused(1, status, "", 1.0)
    assert gate.refusal is not None
    assert not gate.refusal.is_systemic


def test_a_success_between_lone_refusals_resets_them() -> None:
    """Something was accepted: the URL is right."""
    gate = Gate()
    gate.on_lone_refusal(1, 404, "", 1.0)
    gate.on_lone_refusal(2, 404, "", 1.0)
    gate.on_accepted(3)
    assert not gate.on_lone_refusal(4, 404, "", 1.0)
