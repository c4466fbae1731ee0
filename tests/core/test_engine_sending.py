"""The core's contract, sentence by sentence: when batches leave, what is in them, flush, room, drain."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.errors import Abandoned
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, certainty, numbers

LINGER = 0.010


def busy(**config: Any) -> Rig:
    """An engine with its two soft slots taken."""
    rig = Rig(**config)
    rig.put(1)
    rig.poll()
    rig.put(1)
    rig.poll()
    assert len(rig.out) == 2
    return rig


def test_an_idle_engine_sends_at_once() -> None:
    """The first two requests do not wait for company."""
    rig = Rig()
    rig.put(1)
    assert [batch.reason for batch in rig.poll()] == ["idle"]
    rig.put(1)
    assert [batch.reason for batch in rig.poll()] == ["idle"]


def test_what_is_submitted_together_travels_together() -> None:
    """One poll after many inputs: one batch, also with free slots."""
    rig = Rig()
    rig.put(50)
    assert [len(batch.entries) for batch in rig.poll()] == [50]


def test_the_third_request_lingers() -> None:
    """Until exactly `linger` after its first message."""
    rig = busy()
    rig.put(1)
    assert rig.poll() == []
    assert rig.wake_at == pytest.approx(rig.now + LINGER)
    rig.now = rig.wake_at - 1e-6
    assert rig.poll() == []
    rig.now += 2e-6
    assert [batch.reason for batch in rig.poll()] == ["linger"]


def test_the_window_runs_from_the_first_message_and_is_never_reset() -> None:
    """A steady trickle does not put it off."""
    rig = busy()
    began_at = rig.now
    started: list[object] = []
    while not started:
        rig.put(1)
        started = list(rig.advance(0.003))
        assert rig.now < began_at + 0.1
    assert rig.started[-1].started_at == pytest.approx(began_at + LINGER)
    assert len(rig.started[-1].entries) == 4


def test_no_linger_means_this_turn() -> None:
    """With `linger = 0` everything leaves with the next poll."""
    rig = busy(batch_linger=0)
    rig.put(3)
    assert [len(batch.entries) for batch in rig.poll()] == [3]


def test_without_soft_slots_everything_lingers() -> None:
    """Also the first."""
    rig = Rig(batch_soft_slots=0)
    rig.put(1)
    assert rig.poll() == []
    assert [batch.reason for batch in rig.advance(LINGER)] == ["linger"]


def test_full_by_messages() -> None:
    """A hundred do not wait; what is over lingers."""
    rig = busy()
    rig.put(130)
    assert [(batch.reason, len(batch.entries)) for batch in rig.poll()] == [("messages", 100)]
    assert [(batch.reason, len(batch.entries)) for batch in rig.advance(LINGER)] == [("linger", 30)]


def test_full_by_bytes() -> None:
    """Counted with brackets and commas, exactly."""
    rig = busy(batch_max_bytes=100, batch_max_message_bytes=1000)
    rig.put(3, size=32)
    assert [batch.reason for batch in rig.poll()] == ["bytes"]  # 2 + 96 + 2
    assert len(rig.started[-1].body()) == 100
    other = busy(batch_max_bytes=101, batch_max_message_bytes=1000)
    other.put(3, size=32)
    assert other.poll() == []


def test_full_is_asked_of_all_lanes_together() -> None:
    """Ten thousand queues of one message each make a hundred batches."""
    rig = Rig(queue_max_messages=10_000, limit_max_in_flight=200)
    for number in range(10_000):
        rig.put(1, queue=f"q{number}")
    step = rig.engine.poll(rig.now)
    assert [len(batch.entries) for batch in step.start] == [100] * 100


def test_if_no_slot_is_free_the_batch_just_grows() -> None:
    """Nothing leaves above the limit; the next free slot takes all that has gathered."""
    rig = Rig(limit_max_in_flight=2)
    rig.put(1)
    rig.poll()
    rig.put(1)
    rig.poll()
    for _ in range(30):
        rig.put(1)
        assert rig.advance(0.01) == []
    assert [len(batch.entries) for batch in rig.ok(rig.out[0])] == [30]


def test_someone_waiting_for_room_overrides_linger() -> None:
    """Then sending is the only way to make room."""
    rig = busy(queue_max_messages=3)
    rig.put(1)
    assert rig.poll() == []
    rig.engine.room.wait(rig.out[0].entries[0], 10)
    assert [batch.reason for batch in rig.poll()] == ["room"]


def test_flush_overrides_linger() -> None:
    """What was submitted before it leaves at once; what comes after lingers."""
    rig = busy()
    rig.put(1)
    assert rig.poll() == []
    rig.engine.flush()
    assert [batch.reason for batch in rig.poll()] == ["flush"]
    rig.put(1)
    assert rig.poll() == []


def test_flush_covers_retries() -> None:
    """It is over when everything before it is settled, by way of retries, too; later ones do not count."""
    rig = Rig()
    rig.put(2)
    rig.poll()
    epoch = rig.engine.flush()
    rig.put(1)
    rig.poll()
    assert not rig.engine.is_flushed(epoch)
    rig.fail(rig.out[0])
    assert not rig.engine.is_flushed(epoch)
    rig.advance(0.1)
    assert not rig.engine.is_flushed(epoch)
    rig.ok(next(batch for batch in rig.out if 0 in numbers(batch.entries)))
    assert rig.engine.is_flushed(epoch)
    assert rig.engine.tally.admitted - rig.engine.settled_total == 1


def test_flush_covers_isolation() -> None:
    """And the search for a culprit."""
    rig = Rig()
    rig.put(20)
    rig.poll()
    epoch = rig.engine.flush()
    rig.refuse(rig.out[0])
    assert not rig.engine.is_flushed(epoch)
    rig.serve(lambda entry: entry.number == 7)
    assert rig.engine.is_flushed(epoch)


def test_an_empty_flush_is_over_at_once() -> None:
    """Nothing was submitted before it."""
    rig = Rig()
    epoch = rig.engine.flush()
    assert rig.engine.is_flushed(epoch)
    rig.put(1)
    assert rig.engine.is_flushed(epoch)


def test_flush_epochs_are_nested() -> None:
    """Each covers what stood before it, and the earlier ones."""
    rig = Rig(limit_max_in_flight=1)
    epochs = []
    for _ in range(3):
        rig.put(1)
        epochs.append(rig.engine.flush())
        rig.poll()
    for done in range(3):
        assert [rig.engine.is_flushed(epoch) for epoch in epochs] == [done > n for n in range(3)]
        if rig.out:
            rig.ok(rig.out[0])
        if done == 0:
            assert len(rig.out[0].entries) == 2
            rig.errors(rig.out[0], 1)
            assert [rig.engine.is_flushed(epoch) for epoch in epochs] == [True, True, False]
            break


def test_a_flood_to_one_queue_does_not_starve_others() -> None:
    """Thousands wait for one queue and for no queue; a newcomer's message is in the next request or two."""
    rig = Rig(limit_max_in_flight=4, batch_quantum_bytes=2_000)
    rig.put(5_000, queue="flood", size=100)
    rig.put(4_000, size=100)
    rig.poll()
    (newcomer,) = rig.put(1, queue="quiet", size=100)
    requests = 0
    while newcomer.outcome is None:
        rig.ok(rig.out[0])
        requests += 1
    assert requests <= 8


def test_singles_do_not_wait_for_company() -> None:
    """A message that travels alone has none to wait for."""
    rig = busy()
    rig.put(1)
    rig.put(1, is_single=True)
    (batch,) = rig.poll()
    assert (batch.reason, numbers(batch.entries)) == ("single", [3])
    assert batch.single is batch.entries[0].single is not None


def test_singles_do_not_tear_batches_apart() -> None:
    """A binary message among a hundred of text: one request for them, one for it."""
    rig = Rig()
    rig.put(50, size=400)
    rig.put(1, size=400, is_single=True)
    rig.put(50, size=400)
    assert sorted(len(batch.entries) for batch in rig.poll()) == [1, 100]


def test_a_single_of_a_queue_keeps_its_place() -> None:
    """Not batched, and overtaking nothing."""
    rig = Rig()
    rig.put(2, queue="q")
    rig.put(1, queue="q", is_single=True)
    rig.put(2, queue="q")
    rig.poll()
    while rig.out:
        rig.ok(rig.out[0])
    assert rig.numbers == [[0, 1], [2], [3, 4]]


def test_draining_stops_lingering() -> None:
    """What waits for company leaves at once."""
    rig = busy()
    rig.put(1)
    assert rig.poll() == []
    rig.engine.drain(rig.now + 5.0, rig.now)
    assert [batch.reason for batch in rig.poll()] == ["drain"]


def test_draining_brings_back_offs_forward() -> None:
    """What would wait past the drain's end gets its last attempt before it."""
    rig = Rig(rng=Extremes(), retry_base=1000)
    entries = rig.put(1)
    rig.fail(rig.poll()[0])
    rig.engine.drain(rig.now + 8.0, rig.now)
    began_at = rig.now
    (batch,) = rig.advance(7.9)
    assert batch.started_at <= began_at + 7.5
    rig.ok(batch)
    assert isinstance(entries[0].outcome, Receipt)


def test_at_the_drains_deadline_nothing_is_held() -> None:
    """Whatever is waiting, backing off, isolated or in flight is abandoned, and says truly what is known."""
    rig = Rig(limit_max_in_flight=3, rng=Extremes(), retry_base=20, batch_max_messages=4)
    backing_off = rig.put(1, queue="b")
    rig.refuse(rig.poll()[0], 429)
    unknown = rig.put(1, queue="u")
    rig.fail(rig.poll()[0])
    isolated = rig.put(4)
    rig.refuse(rig.poll()[0], 400)
    in_flight = rig.put(4)
    rig.poll()
    in_flight += rig.put(4)
    rig.poll()
    waiting = rig.put(2)
    rig.engine.drain(rig.now + 0.5, rig.now)
    rig.advance(0.49)
    assert not any(entry.outcome for entry in backing_off + unknown + in_flight + waiting)
    rig.advance(0.02)
    everything = backing_off + unknown + isolated + in_flight + waiting
    assert all(isinstance(entry.outcome, Abandoned) for entry in everything)
    assert {certainty(entry) for entry in waiting} == {"not_sent"}
    assert {certainty(entry) for entry in in_flight} == {"unknown"}
    assert sorted({certainty(entry) for entry in isolated}) == ["not_accepted", "unknown"]
    assert len(rig.settled) == len({id(entry) for entry in rig.settled}) == len(everything)
    assert rig.engine.room.held_messages == 0
    assert rig.wake_at == float("inf")


def test_the_last_second_of_a_drain_is_no_busy_loop() -> None:
    """Against a service that fails at once, attempts stay apart to the end."""
    rig = Rig(rng=Extremes(0.5), retry_base=30.0, retry_max_delay=30.0)
    rig.put(1)
    rig.poll()
    rig.engine.drain(rig.now + 3.0, rig.now)
    attempts = 0
    until = rig.now + 3.0
    while rig.now < until and rig.engine.settled_total == 0:
        while rig.out:
            rig.fail(rig.out[0], "connect")
            attempts += 1
            assert attempts < 60, "a busy loop"
        rig.now = min(rig.wake_at, until)
        rig.poll()
    assert rig.engine.settled_total == 1


def test_an_answer_after_the_drain_changes_nothing() -> None:
    """Its entries are settled and told of once."""
    rig = Rig()
    entries = rig.put(3)
    (batch,) = rig.poll()
    rig.engine.drain(rig.now + 1.0, rig.now)
    rig.advance(1.1)
    rig.ok(batch)
    assert all(isinstance(entry.outcome, Abandoned) for entry in entries)
    assert len(rig.settled) == 3


def test_a_poll_with_nothing_held_asks_for_nothing() -> None:
    """`wake_at` is infinite, and nothing starts."""
    rig = Rig()
    rig.poll()
    assert rig.wake_at == float("inf")
    rig.put(1)
    rig.ok(rig.poll()[0])
    assert rig.wake_at == float("inf")


def test_why_a_batch_left_is_counted() -> None:
    """Each request once, by its reason, with its size."""
    rig = busy()
    rig.put(100)
    rig.put(1, is_single=True)
    rig.poll()
    tally = rig.engine.tally
    assert tally.batches == {"idle": 2, "messages": 1, "single": 1}
    assert sum(tally.batch_messages.counts) == 4
    assert tally.batch_messages.total == 103


def test_an_entry_larger_than_a_batch_travels_alone() -> None:
    """Above the batch's bytes: a batch of one."""
    rig = Rig(batch_max_bytes=100, batch_max_message_bytes=5000)
    rig.put(1, size=30)
    big = rig.put(1, size=400)
    rig.put(1, size=30)
    rig.advance(LINGER)
    assert rig.numbers == [[0], [1], [2]]
    assert big[0].state == 1


def test_the_age_of_the_oldest() -> None:
    """In whatever state it is; nothing is held: none."""
    rig = Rig()
    assert rig.engine.oldest_at() is None
    rig.put(1)
    (batch,) = rig.poll()
    rig.now += 5.0
    rig.put(3)
    assert rig.engine.oldest_at() == 100.0
    rig.ok(batch)
    assert rig.engine.oldest_at() == 105.0


def test_a_message_that_travels_alone_takes_its_own_way() -> None:
    """Its request's target and headers, its raw body; from the lanes, as a repeat, in a queue."""
    for queue in (None, "q"):
        rig = Rig(batch_linger=5.0, rng=Extremes())
        (entry,) = rig.put(1, is_single=True, queue=queue)
        (batch,) = rig.poll()
        for _ in range(7):
            assert batch.single is entry.single
            assert (batch.reason in ("single", "halving"), batch.body()) == (True, entry.data)
            rig.refuse(batch, 500)
            batch = rig.next()
