"""The gate when the token is replaced: what the old one was told does not bind the new one."""

from __future__ import annotations

from dispatcher.core.gate import Gate, Pause, Permit
from tests.core.test_gate import INF, LATER, NO_JITTER, bare, closed, probing


def halted() -> Gate:
    """Something was accepted, then the token was refused, batches 1 to 5 having started."""
    gate = Gate()
    for number in range(1, 6):
        gate.on_start(number, Permit.ALL)
    gate.on_accepted(1)
    gate.on_refused(2, 401, "bad token", 100.0)
    return gate


def test_unhalt_probes_at_once() -> None:
    """One batch, at once; while it is out it is still halted."""
    gate = halted()
    gate.unhalt()
    assert (gate.state, gate.permit(100.0)) == ("halted", Permit.PROBE)
    gate.on_start(6, Permit.PROBE)
    assert gate.permit(100.0) is Permit.NOTHING
    gate.on_accepted(6)
    assert gate.state == "open"


def test_unhalt_while_a_probe_is_out() -> None:
    """The old token's probe no longer decides; the new one's does."""
    gate = halted()
    probing(gate, 6, 130.0)
    gate.unhalt()
    probing(gate, 7, 131.0)
    gate.on_refused(6, 401, "bad token", 132.0)
    assert (gate.probe, gate.permit(132.0)) == (7, Permit.NOTHING)
    gate.on_accepted(7)
    assert gate.state == "open"


def test_refusals_of_the_old_token_do_not_halt_the_new_one() -> None:
    """Answers to what was out when it was replaced, of every kind that closes."""
    gate = halted()
    gate.unhalt()
    probing(gate, 6, 100.0).on_accepted(6)
    gate.on_refused(3, 401, "bad token", 101.0)
    gate.on_pause(5, Pause("quota", 9999.0), 101.0, NO_JITTER)
    for _ in range(5):
        gate.on_bare(5, 101.0, NO_JITTER, oldest=LATER)
        assert not gate.on_lone_refusal(5, 403, "", 101.0)
    assert (gate.state, gate.permit(101.0)) == ("open", Permit.ALL)
    gate.on_start(7, Permit.ALL)
    gate.on_refused(7, 401, "bad token", 102.0)
    assert gate.state == "halted"


def test_unhalt_forgets_what_the_old_token_counted() -> None:
    """Two bare refusals and two lone ones of the old token and one of the new are not three."""
    gate = Gate()
    bare(gate, 2)
    gate.on_lone_refusal(1, 404, "", 100.0)
    gate.on_lone_refusal(2, 404, "", 100.0)
    gate.unhalt()
    bare(gate, 1, first=3)
    assert not gate.on_lone_refusal(3, 404, "", 100.0)
    assert gate.permit(100.0) is Permit.ALL


def test_unhalt_tries_a_spent_quota_once() -> None:
    """It may be another account's token: one probe at once, and nothing new fails meanwhile."""
    gate = closed(9999.0, kind="quota")
    gate.unhalt()
    assert (gate.outlasts(101.0), gate.permit(101.0)) == (False, Permit.PROBE)
    gate.on_start(2, Permit.PROBE)
    gate.on_pause(2, Pause("quota", 9999.0), 102.0, NO_JITTER)
    assert (gate.outlasts(200.0), gate.permit(200.0)) == (True, Permit.NOTHING)


def test_unhalt_after_first_contact_is_a_new_first_contact() -> None:
    """Everything may start; refused again, everything fails again."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_refused(1, 401, "bad token", 100.0)
    gate.unhalt()
    assert (gate.state, gate.permit(101.0)) == ("open", Permit.ALL)
    gate.on_start(2, Permit.ALL)
    gate.on_refused(2, 401, "bad token", 102.0)
    assert gate.is_refusing(103.0)


def test_a_success_at_an_open_gate_keeps_the_first_bare_pause_short() -> None:
    """One second, as ever."""
    gate = Gate()
    gate.on_accepted(1)
    bare(gate, 3, first=2)
    assert gate.closed_until == 101.0


def test_unhalt_forgets_every_count() -> None:
    """Three of each are needed again, and it is no first contact any more."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_refused(1, 401, "", 100.0)
    gate.unhalt()
    assert gate.is_first_contact is False
    bare(gate, 2, 0.5, first=2)
    assert [gate.on_lone_refusal(number, 404, "", 0.5) for number in (2, 3)] == [False, False]
    assert gate.permit(0.5) is Permit.ALL


def test_an_opened_gate_is_no_first_contact() -> None:
    """Whatever it was before."""
    gate = Gate()
    gate.on_start(1, Permit.ALL)
    gate.on_refused(1, 401, "", 100.0)
    gate.on_start(2, Permit.PROBE)
    gate.on_understood(2)
    assert (gate.is_first_contact, gate.state) == (False, "open")
    assert gate.wake_at(100.0) == INF
