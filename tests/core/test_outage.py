"""An outage in the engine: what is one, who probes, who is woken, what happens to deadlines and order."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Batch, Failure, Reply
from dispatcher.core.limit import AdaptiveLimit
from dispatcher.errors import DeadlineExceeded, RetriesExhausted
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, accepted, certainty, is_held

REFUSED = Failure("connect", "connection refused", "not_sent")


def refuse_three(rig: Rig) -> None:
    """Three messages of lanes of their own, of which none gets a connection; each backs off."""
    for number in range(3):
        rig.put(1, queue=f"q{number}")
        rig.advance(0.02)
    for batch in rig.out[-3:]:
        rig.fail(batch, "connect")
    assert rig.engine.gate.state == "outage"
    assert rig.engine.tally.pauses == {"outage": 1}


@pytest.mark.parametrize(
    ("answer", "took", "state"),
    [
        (REFUSED, 0.99, "outage"),
        (REFUSED, 1.01, "open"),
        (Reply(503, b""), 0.09, "outage"),
        (Reply(503, b""), 0.11, "open"),
        (Reply(502, b""), 0.09, "outage"),
        (Reply(502, b""), 0.11, "open"),
        (Reply(500, b""), 0.001, "open"),
        (Reply(504, b""), 0.001, "open"),
        (Failure("timeout", "", "unknown"), 0.001, "open"),
        (Failure("disconnect", "", "unknown"), 0.001, "open"),
        (Failure("reply", "", "unknown"), 0.001, "open"),
        (Reply(503, b"", {"retry-after": "0"}), 0.001, "throttled"),  # a bare refusal
    ],
)
def test_what_is_an_outage(answer: Reply | Failure, took: float, state: str) -> None:
    """A connection refused within a second; 502 and 503 without a word about time within a tenth of one."""
    rig = Rig(rng=Extremes(0.0), limit_max_in_flight=1, batch_max_messages=1)
    rig.put(1)
    for number in range(3):
        assert rig.engine.gate.state == "open", number
        batch = rig.out[0] if rig.out else rig.next()
        rig.now += took
        rig.answer(batch, answer)
    assert rig.engine.gate.state == state


def test_hours_of_slow_failures_close_nothing() -> None:
    """There a probe would hang as well, and recovery with it."""
    rig = Rig(deliver_within=7_000.0, batch_max_messages=5, queue_max_messages=20_000)
    rig.put(500)
    rig.play(lambda _: REFUSED, 600.0, latency=3.0)
    assert rig.engine.tally.pauses == {}


def test_nothing_but_probes() -> None:
    """Twenty seconds without anybody there: a few attempts, at growing distances, one at a time."""
    rig = Rig(rng=Extremes(), queue_max_messages=20_000)
    rig.put(10_000)
    count = rig.play(lambda _: REFUSED, 20.0, latency=0.01)
    at = [batch.started_at for batch in rig.started]
    flight = sum(started_at == at[0] for started_at in at)
    gaps = [later - earlier for earlier, later in zip(at[flight:], at[flight + 1 :], strict=False)]
    assert gaps[:6] == pytest.approx([0.21, 0.41, 0.81, 1.61, 2.01, 2.01])
    assert count - flight <= 15


def test_an_adaptive_limit_meets_an_outage_with_few() -> None:
    """Thirty attempts at most in twenty seconds, and all the rest is delivered soon after."""
    rig = Rig(limit_mode="adaptive", queue_max_messages=50_000, queue_max_bytes=100_000_000)
    rig.put(40_000)
    assert rig.play(lambda _: REFUSED, 20.0, latency=0.001) <= 30
    rig.play(lambda batch: accepted(batch.entries), 5.0)
    assert len(rig.settled) == 40_000


def test_what_backs_off_is_brought_forward_to_probe_with() -> None:
    """With nothing else to send one of them goes at the probe's instant, however long its back-off."""
    rig = Rig(rng=Extremes(), retry_base=50.0, retry_max_delay=60.0)
    refuse_three(rig)
    failed_at = rig.now
    probe = rig.next()
    assert probe.started_at == pytest.approx(failed_at + 0.1)
    assert len(probe.entries) == 1
    assert len([*rig.engine.backoffs]) == 2


def test_what_is_fresh_probes_first() -> None:
    """Then what backs off keeps its time."""
    rig = Rig(rng=Extremes(), retry_base=50.0, retry_max_delay=60.0)
    refuse_three(rig)
    fresh = rig.put(2)
    assert rig.next().entries == fresh
    assert len([*rig.engine.backoffs]) == 3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_everything_is_woken(share: float) -> None:
    """After the probe's success all that backs off goes, spread over half a second."""
    rig = Rig(rng=Extremes(), retry_base=50.0, retry_max_delay=60.0)
    refuse_three(rig)
    probe = rig.next()
    rig.engine.rng = Extremes(share)
    rig.ok(probe)
    due = [group.due_at - rig.now for group in rig.engine.backoffs]
    assert due == ([] if share == 0.0 else pytest.approx([share / 2] * 2))
    rig.advance(0.5)
    assert sum(len(batch.entries) for batch in rig.out) == 2
    assert not rig.engine.backoffs


def test_nobody_is_woken_later_than_he_would_be_anyway() -> None:
    """A back-off that is over sooner than half a second keeps its instant."""
    rig = Rig(rng=Extremes(), retry_base=0.3)
    refuse_three(rig)
    before = sorted(group.due_at for group in rig.engine.backoffs)
    rig.ok(rig.next())
    assert sorted(group.due_at for group in rig.engine.backoffs) == before[1:]


@pytest.mark.parametrize("answer", ["ok", "400"])
def test_an_earlier_attempt_opens(answer: str) -> None:
    """What was out when the gate closed is answered: everything goes at once."""
    rig = Rig(rng=Extremes())
    rig.put(1, queue="early")
    (early,) = rig.poll()
    refuse_three(rig)
    rig.put(500)
    assert rig.poll() == []
    started = rig.ok(early) if answer == "ok" else rig.refuse(early, 400)
    assert rig.engine.gate.state == "open"
    assert len(started) == 5


def test_a_401_of_the_probe_halts() -> None:
    """Somebody is there, who does not know the token any more: what is held stays held."""
    rig = Rig()
    rig.put(1)
    rig.ok(rig.poll()[0])
    refuse_three(rig)
    rig.refuse(rig.next(), 401)
    assert rig.engine.gate.state == "halted"
    assert rig.advance(29.0) == []
    rig.engine.unhalt()
    assert len(rig.poll()) == 1


def test_a_pause_asked_of_the_probe() -> None:
    """Then the service's own time holds, and nothing is brought forward before it."""
    rig = Rig(rng=Extremes(0.0), retry_base=50.0)
    refuse_three(rig)
    rig.throttle(rig.next(), 9.0)
    assert rig.engine.gate.state == "throttled"
    assert rig.advance(8.99) == []
    assert len(rig.advance(0.02)) == 1


def test_queues_keep_their_order() -> None:
    """Through outages on and off, with a connection refused now and then between them."""
    rig = Rig(batch_max_messages=7, limit_max_in_flight=8, deliver_within=600.0)
    taken: dict[str | None, list[int]] = {}

    def service(batch: Batch) -> Reply | Failure:
        if int(rig.now) % 3 == 0 or batch.number % 5 == 0:
            return REFUSED
        for entry in batch.entries:
            taken.setdefault(entry.queue, []).append(entry.number)
        return accepted(batch.entries)

    for _ in range(50):
        for queue in ("a", "b", "c", None):
            rig.put(6, queue=queue)
        rig.play(service, 0.3, latency=0.02)
    rig.play(service, 30.0, latency=0.02)
    assert rig.engine.tally.pauses["outage"] > 3
    assert [len(numbers) for numbers in taken.values()] == [300] * 4
    assert all(taken[queue] == sorted(taken[queue]) for queue in ("a", "b", "c"))


def test_attempts_are_honoured() -> None:
    """Probes are attempts of their messages: who may have five has five."""
    rig = Rig(retry_max_attempts=5)
    entries = rig.put(3)
    rig.play(lambda _: REFUSED, 20.0, latency=0.001)
    assert all(isinstance(entry.outcome, RetriesExhausted) for entry in entries)
    assert {len(entry.attempts) for entry in entries} == {5}
    assert {certainty(entry) for entry in entries} == {"not_sent"}


def test_deadlines_run_on() -> None:
    """What was never sent says so, at its instant; what has longer waits on."""
    rig = Rig()
    short, long = rig.put(50, within=3.0), rig.put(50, within=30.0)
    rig.play(lambda _: REFUSED, 2.9, latency=0.001)
    assert rig.settled == []
    rig.play(lambda _: REFUSED, 0.2, latency=0.001)
    assert all(isinstance(entry.outcome, DeadlineExceeded) for entry in short)
    assert {certainty(entry) for entry in short} == {"not_sent"}
    assert all(is_held(entry) for entry in long)
    rig.play(lambda batch: accepted(batch.entries), 3.0)
    assert all(isinstance(entry.outcome, Receipt) for entry in long)


def test_a_drain_probes_to_its_end() -> None:
    """Then what is left is abandoned, and was not sent."""
    rig = Rig()
    entries = rig.put(300)
    rig.play(lambda _: REFUSED, 1.0, latency=0.001)
    rig.engine.drain(rig.now + 5.0, rig.now)
    assert rig.play(lambda _: REFUSED, 5.1, latency=0.001) >= 2
    assert {certainty(entry) for entry in entries} == {"not_sent"}
    assert not any(is_held(entry) for entry in entries)


def test_the_limit_begins_anew() -> None:
    """From four, as far and as fast as at first: an outage is no sign of its size, nor is each lost probe."""
    limit = AdaptiveLimit(64)
    rig = Rig(limit=limit, batch_max_messages=1, queue_max_messages=20_000)
    rig.put(3_000)
    rig.play(lambda batch: accepted(batch.entries), 1.0)
    assert limit.value == 64
    rig.play(lambda _: REFUSED, 5.0)
    assert rig.engine.gate.state == "outage"
    probe = rig.out[0] if rig.out else rig.next()
    rig.ok(probe)
    assert limit.value == 4
    rig.play(lambda batch: accepted(batch.entries), 0.6)
    assert limit.value == 64


def test_what_closes_the_gate_does_not_also_cut() -> None:
    """Two refused connections cut the limit, the third closes: one cut is counted, as of one flight."""
    limit = AdaptiveLimit(64)
    rig = Rig(limit=limit, rng=Extremes())
    refuse_three(rig)
    assert rig.engine.tally.cuts == {"connect_failed": 1}
