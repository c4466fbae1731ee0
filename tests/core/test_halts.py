"""A refused token or URL: first contact fails at once, later everything is held, probed and resumed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from dispatcher.core.batch import Batch, Reply
from dispatcher.errors import Halted, MessageRejected
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, accepted, certainty, is_held, numbers

REFUSALS = [(401, "invalid token"), (302, ""), (308, "")]


def known(**config: Any) -> Rig:
    """An engine whose service has accepted something."""
    rig = Rig(rng=Extremes(0.0), **config)
    rig.put(1)
    rig.ok(rig.poll()[0])
    return rig


def halted(**config: Any) -> tuple[Rig, Batch]:
    """An engine that was halted by a 401, and the batch that drew it."""
    rig = known(**config)
    rig.put(3)
    (batch,) = rig.poll()
    rig.refuse(batch, 401, "invalid token")
    assert rig.engine.gate.state == "halted"
    return rig, batch


# ------------------------------------------------------------------------------------ first contact


@pytest.mark.parametrize(("status", "text"), REFUSALS)
def test_a_newcomer_learns_it_at_once(status: int, text: str) -> None:
    """What was sent, what waits and what comes new fails as `Halted`, and nothing more is sent."""
    rig = Rig(limit_max_in_flight=1)
    first = rig.put(3)
    rig.poll()
    waiting = rig.put(150)
    rig.refuse(rig.out[0], status, text)
    assert all(isinstance(entry.outcome, Halted) for entry in first + waiting)
    assert {certainty(entry) for entry in first} == {"not_accepted"}
    assert {certainty(entry) for entry in waiting} == {"not_sent"}
    assert {len(entry.attempts) for entry in first} == {1}
    new = rig.put(1)
    assert rig.poll() == []
    assert isinstance(new[0].outcome, Halted)
    assert new[0].outcome.status == status


def test_a_newcomers_other_requests() -> None:
    """What is out when the first is refused is judged by its own answer."""
    rig = Rig()
    for _ in range(3):
        rig.put(100)
        rig.poll()
    entries = [batch.entries for batch in rig.out]
    rig.refuse(rig.out[0], 401)
    assert not any(entry.outcome for entry in entries[1] + entries[2])
    rig.refuse(rig.out[0], 401)
    assert all(isinstance(entry.outcome, Halted) for entry in entries[1])
    rig.fail(rig.out[0], "connect")
    assert all(isinstance(entry.outcome, Halted) for entry in entries[2])


def test_the_redirect_names_the_cure() -> None:
    """The text says where it points and what to check."""
    rig = Rig()
    entries = rig.put(1)
    rig.poll()
    rig.answer(rig.out[0], Reply(302, b"", {"location": "https://elsewhere.example/"}))
    assert "check the base URL" in str(entries[0].outcome)
    assert "a redirect to https://elsewhere.example;" in str(entries[0].outcome)


def test_a_refusal_without_words_has_ours() -> None:
    """An empty 401 is explained."""
    rig = Rig()
    entries = rig.put(1)
    rig.answer(rig.poll()[0], Reply(401, b""))
    assert "nothing was ever accepted under this URL and token" in str(entries[0].outcome)


def test_after_thirty_seconds_one_more_try() -> None:
    """Exactly one batch is let through; if it is accepted, all is well again."""
    rig = Rig(rng=Extremes(0.0))
    rig.put(1)
    rig.poll()
    rig.refuse(rig.out[0], 401)
    rig.advance(29.9)
    rig.put(1)
    assert rig.poll() == []
    rig.advance(0.2)
    again = rig.put(250)
    (batch,) = rig.poll()
    assert len(batch.entries) == 100
    assert is_held(again[249])
    assert len(rig.ok(batch)) == 2
    assert isinstance(again[0].outcome, Receipt)


def test_one_more_try_that_is_refused_too() -> None:
    """All that has come meanwhile fails like the first, and the next half minute begins."""
    rig = Rig()
    rig.put(1)
    rig.poll()
    rig.refuse(rig.out[0], 401)
    rig.advance(31.0)
    again = rig.put(1)
    (probe,) = rig.poll()
    behind = rig.put(2)
    rig.poll()
    assert is_held(behind[0])
    rig.refuse(probe, 401)
    assert isinstance(again[0].outcome, Halted)
    assert isinstance(behind[1].outcome, Halted)
    assert again[0].outcome.since == pytest.approx(31.0)
    rig.put(1)
    assert rig.poll() == []


def test_unhalt_after_first_contact() -> None:
    """The next messages are sent at once, and a refusal is a first contact again."""
    rig = Rig()
    rig.put(1)
    rig.refuse(rig.poll()[0], 401)
    rig.engine.unhalt()
    rig.put(150)
    assert len(rig.poll()) == 2
    rig.refuse(rig.out[0], 401)
    assert isinstance(rig.settled[-1].outcome, Halted)
    assert rig.engine.gate.is_refusing(rig.now)


def test_late_refusals_of_the_old_token_fail_nobody() -> None:
    """Two requests were out with the wrong token; it is replaced after the first answer."""
    rig = Rig(rng=Extremes(0.0))
    rig.put(100)
    rig.put(100)
    rig.poll()
    first, second = rig.out
    rig.refuse(first, 401)
    rig.engine.unhalt()
    rig.poll()
    assert [numbers(batch.entries) for batch in rig.refuse(second, 401)] == [list(range(100, 200))]
    assert rig.engine.gate.state == "open"
    rig.ok(rig.out[0])
    assert all(isinstance(entry.outcome, Receipt) for entry in second.entries)


# -------------------------------------------------------------------------------------------- later


@pytest.mark.parametrize(("status", "text"), REFUSALS)
def test_later_everything_is_held(status: int, text: str) -> None:
    """Nothing fails, nothing starts, and it says so."""
    rig = known()
    entries = rig.put(3)
    rig.refuse(rig.poll()[0], status, text)
    entries += rig.put(150) + rig.put(2, queue="q") + rig.put(1, is_single=True)
    assert rig.advance(29.9) == []
    assert all(is_held(entry) for entry in entries)
    assert rig.engine.gate.state == "halted"
    assert rig.engine.gate.refusal is not None
    assert rig.engine.gate.refusal.status == status


def test_a_probe_every_thirty_seconds() -> None:
    """One batch, of what was refused first; counted from the last refusal."""
    rig, batch = halted(deliver_within=500.0)
    rig.put(300)
    refused_at = [rig.now]
    for _ in range(4):
        probe = rig.next()
        assert numbers(probe.entries)[:3] == numbers(batch.entries)
        rig.now += 0.5
        refused_at.append(rig.now)
        rig.refuse(probe, 401, "invalid token")
    gaps = [later - earlier for earlier, later in pairwise(refused_at)]
    assert gaps == pytest.approx([30.5] * 4)
    assert len(rig.settled) == 1


def test_what_is_held_arrives_after_a_good_probe() -> None:
    """In order of admission where there is an order, and without a back-off."""
    rig, _ = halted()
    queued = rig.put(150, queue="q")
    rig.put(150)
    (probe,) = rig.advance(30.0)
    rig.ok(probe)
    rig.serve(lambda _: False)
    assert len(rig.settled) == 1 + 3 + 300
    assert [e.number for e in rig.settled if e.queue] == numbers(queued)
    assert rig.now == pytest.approx(130.0)


def test_the_new_token_is_tried_at_once() -> None:
    """`unhalt`: one probe now; when it is accepted, everything that was held."""
    rig, _ = halted()
    rig.put(250)
    rig.advance(3.0)
    rig.engine.unhalt()
    (probe,) = rig.poll()
    assert rig.advance(5.0) == []
    assert len(rig.ok(probe)) == 2
    rig.serve(lambda _: False)
    assert len(rig.settled) == 254
    assert all(isinstance(entry.outcome, Receipt) for entry in rig.settled)


def test_late_refusals_of_the_old_token_do_not_halt_the_new_one() -> None:
    """Three requests were out when it was replaced: each is sent again, and nothing waits half a minute."""
    rig = known()
    for _ in range(3):
        rig.put(100)
        rig.poll()
    rig.refuse(rig.out[0], 401)
    rig.engine.unhalt()
    (probe,) = rig.poll()
    rig.ok(probe)
    for _ in range(2):
        assert len(rig.refuse(rig.out[0], 401)) == 1
    rig.serve(lambda _: False)
    assert len(rig.settled) == 301
    assert all(isinstance(entry.outcome, Receipt) for entry in rig.settled)


def test_deadlines_run_on() -> None:
    """What expires meanwhile fails as `Halted`: not accepted if it was refused, not sent if it never left."""
    rig, batch = halted(deliver_within=20.0)
    fresh = rig.put(1)
    rig.advance(20.1)
    for entry, known_of_it in ((batch.entries[0], "not_accepted"), (fresh[0], "not_sent")):
        assert isinstance(entry.outcome, Halted)
        assert certainty(entry) == known_of_it
        assert entry.outcome.status == 401
        assert entry.outcome.since == pytest.approx(20.0)
        assert "invalid token" in str(entry.outcome)


@pytest.mark.parametrize("status", [400, 404, 403])
def test_a_probe_with_a_poisoned_message_shows_that_the_token_is_good(status: int) -> None:
    """Refused with 400, or with 404 after a 401: the service judged messages, and the search is open."""
    rig, batch = halted()
    rig.put(50)
    rig.engine.unhalt()
    (probe,) = rig.poll()
    rig.refuse(probe, status)
    assert rig.engine.gate.state == "open"
    rig.serve(lambda entry: entry is batch.entries[1], status)
    assert len(rig.settled) == 54
    assert isinstance(batch.entries[1].outcome, MessageRejected)


def test_a_probe_that_is_an_isolations() -> None:
    """The search was on when the token was refused: its probe is the gate's, and it ends as it should."""
    rig = known()
    entries = rig.put(8)
    rig.refuse(rig.poll()[0], 400)
    rig.refuse(rig.out[0], 401)
    assert rig.advance(29.0) == []
    (probe,) = rig.advance(1.5)
    assert probe.reason == "isolation"
    assert numbers(probe.entries) == numbers(entries[:4])
    rig.serve(lambda entry: entry is entries[5])
    assert [isinstance(entry.outcome, MessageRejected) for entry in entries] == [n == 5 for n in range(8)]


def test_a_refused_token_is_no_failed_attempt() -> None:
    """It counts for no limit of attempts."""
    rig = known(retry_max_attempts=1)
    entries = rig.put(1)
    rig.refuse(rig.poll()[0], 401)
    rig.refuse(rig.next(), 401)
    assert is_held(entries[0])
    rig.ok(rig.next())
    assert isinstance(entries[0].outcome, Receipt)
    assert entries[0].outcome.attempts == 3


def test_a_throttled_probe_waits_as_it_was_told() -> None:
    """A halted gate is no reason to knock without pause."""
    rig, _ = halted()
    (probe,) = rig.advance(30.0)
    assert rig.throttle(probe, 20) == []
    assert rig.advance(19.9) == []
    (again,) = rig.advance(0.2)
    rig.ok(again)
    assert rig.engine.gate.state == "open"


# ----------------------------------------------------------------------------------------- systemic


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


@pytest.mark.parametrize("status", [403, 405])
def test_three_lone_refusals_hold_the_rest(status: int) -> None:
    """After something was accepted they halt: ninety-seven are held, and arrive later."""
    rig = known()
    entries = rig.put(100)
    rig.poll()
    rig.serve(lambda _: True, status)
    assert rig.engine.gate.state == "halted"
    assert sum(isinstance(entry.outcome, MessageRejected) for entry in entries) == 3
    assert sum(is_held(entry) for entry in entries) == 97
    assert rig.advance(29.0) == []
    rig.refuse(rig.next(), status)
    assert sum(is_held(entry) for entry in entries) == 97
    rig.next()
    rig.serve(lambda _: False)
    assert sum(isinstance(entry.outcome, Receipt) for entry in entries) == 97


def not_found(rig: Rig, body: bytes) -> list[str]:
    """Three messages to missing groups, each alone: the gate's state after each of them."""
    states = []
    for name in ("alpha", "beta", "gamma"):
        rig.put(1, destination=name)
        (batch,) = rig.advance(0.02)
        rig.answer(batch, Reply(404, body.replace(b"GROUP", name.encode())))
        states.append(rig.engine.gate.state)
    return states


def test_not_found_in_the_services_words_is_the_messages_own() -> None:
    """Once the URL is known to be right, callers of missing groups halt nobody."""
    assert not_found(known(), b'{"error":"topic not found"}') == ["open"] * 3


def test_not_found_by_name_is_the_messages_own() -> None:
    """So it is at first contact, if the service names what is missing."""
    assert not_found(Rig(), b'{"error":"URL group GROUP not found"}') == ["open"] * 3


@pytest.mark.parametrize("body", [b"<h1>GROUP: not found</h1>", b'{"message":"GROUP"}', b'["GROUP"]', b""])
def test_not_found_in_other_words_is_the_urls(body: bytes) -> None:
    """A page of something else that stands there now, whatever it names: the third halts."""
    assert not_found(known(), body) == ["open", "open", "halted"]
    assert not_found(Rig(), body) == ["open", "open", "refused"]


def test_a_lone_refusal_among_successes_halts_nobody() -> None:
    """Three messages to missing groups among ninety-seven good ones are rejected, the others delivered."""
    rig = Rig()
    entries = rig.put(100)
    rig.poll()
    rig.serve(lambda entry: entry.number in (70, 80, 90), 404)
    assert [entry.number for entry in entries if isinstance(entry.outcome, MessageRejected)] == [70, 80, 90]
    assert sum(isinstance(entry.outcome, Receipt) for entry in entries) == 97


@pytest.mark.parametrize("status", [400, 409, 412, 413, 422])
def test_refusals_of_messages_never_halt(status: int) -> None:
    """However many there are and whatever was accepted before."""
    rig = Rig()
    entries = rig.put(20)
    rig.poll()
    rig.serve(lambda _: True, status)
    assert all(isinstance(entry.outcome, MessageRejected) for entry in entries)
    assert rig.engine.gate.state == "open"


def test_a_drain_ends_at_a_halted_gate() -> None:
    """At its deadline what is held is given up, and says what is known."""
    rig, batch = halted()
    fresh = rig.put(2)
    rig.engine.drain(rig.now + 5.0, rig.now)
    rig.advance(5.1)
    assert {certainty(entry) for entry in batch.entries} == {"not_accepted"}
    assert {certainty(entry) for entry in fresh} == {"not_sent"}
    assert rig.wake_at == float("inf")


def test_a_service_that_comes_back_by_itself() -> None:
    """No new token is needed: the next probe finds it out."""
    rig = known(deliver_within=300.0)
    rig.put(500)
    until = rig.now + 100.0

    def service(batch: Batch) -> Reply:
        return Reply(401, b"") if rig.now < until else accepted(batch.entries)

    refused = rig.play(service, 99.0)
    assert refused <= 5 + 4
    rig.play(service, 31.0)
    assert len(rig.settled) == 501


def test_what_was_refused_has_no_back_off_of_its_own() -> None:
    """The new token is tried at once, and a half stays one."""
    rig = Rig(rng=Extremes(), retry_base=20.0, retry_max_delay=60.0)
    rig.put(1)
    rig.ok(rig.poll()[0])
    rig.put(4)
    batch = rig.poll()[0]
    batch.is_sealed = True
    rig.engine.apart += 1
    rig.refuse(batch, 401)
    rig.engine.unhalt()
    (probe,) = rig.poll()
    assert (probe.reason, probe.is_sealed) == ("halving", True)
