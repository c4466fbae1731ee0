"""What the service objects to as a whole is learnt: batches shrink to what passes, and try more again."""

from __future__ import annotations

import json

from dispatcher.core.batch import Batch, Reply
from dispatcher.core.ceiling import BYTES_MIN, PATIENCE, Ceiling
from tests.core.rig import Rig


def test_the_configured_bounds_hold_until_the_service_objects() -> None:
    """Nothing is learnt from success alone."""
    ceiling = Ceiling(100, 1_000_000)
    assert not ceiling.is_lowered
    assert (ceiling.max_messages, ceiling.max_bytes) == (100, 1_000_000)


def test_it_falls_to_the_largest_part_that_passed() -> None:
    """Bytes never below the floor, a count as low as it must."""
    ceiling = Ceiling(100, 1_000_000)
    ceiling.on_too_large(100, 30_000, (50, 15_000))
    assert (ceiling.max_messages, ceiling.max_bytes, ceiling.is_lowered) == (50, BYTES_MIN, True)


def test_it_rises_by_a_tenth_after_patience_and_falls_back_to_what_it_knows() -> None:
    """A refusal at a little more costs one isolation, and no halving."""
    ceiling = Ceiling(100, 1_000_000)
    ceiling.on_too_large(100, 300_000, (50, 150_000))
    for _ in range(PATIENCE):
        assert ceiling.max_messages == 50
        ceiling.on_accepted(50, 150_000)
    assert ceiling.max_messages == 55
    ceiling.on_too_large(55, 165_000, (28, 84_000))
    assert ceiling.max_messages == 50


def test_small_batches_are_no_evidence() -> None:
    """Only what comes near the ceiling counts."""
    ceiling = Ceiling(100, 1_000_000)
    ceiling.on_too_large(100, 300_000, (50, 150_000))
    for _ in range(PATIENCE * 2):
        ceiling.on_accepted(10, 1_000)
    assert ceiling.max_messages == 50


def _serve(rig: Rig, most: int) -> int:
    """Answer everything like a service that takes at most so many items; the requests it saw."""
    requests = 0
    while rig.engine.room.held_messages:
        if not rig.out:
            rig.advance(0.01)
            continue
        batch: Batch = rig.out[0]
        requests += 1
        if len(batch.entries) > most:
            rig.answer(batch, Reply(412, json.dumps({"error": "too many items"}).encode()))
        else:
            rig.ok(batch)
    return requests


def test_a_service_that_takes_fifty_items_is_obeyed() -> None:
    """The first refusals are searched, found without a culprit, and later batches have fifty."""
    rig = Rig(limit_max_in_flight=4)
    rig.put(2_000, size=50)
    requests = _serve(rig, most=50)
    assert requests <= 2_000 / 50 + 4 + 10
    assert all(entry.outcome is not None for entry in rig.settled)
    assert {len(batch.entries) for batch in rig.started[-10:]} == {50}
    assert rig.engine.tally.finished == {"delivered": 2_000}


def test_one_message_that_is_too_large_lowers_nothing() -> None:
    """The culprit is found and rejected; the batch was not to blame."""
    rig = Rig()
    entries = rig.put(100, size=50)
    rig.poll()
    rig.serve(lambda entry: entry is entries[42], status=413, text="message too large")
    assert rig.engine.tally.finished == {"delivered": 99, "rejected": 1}
    assert not rig.engine.ceiling.is_lowered


def lowered(messages: int = 50, size_bytes: int = 200_000) -> Ceiling:
    """Batches of twice that were refused, and one of that passed."""
    ceiling = Ceiling(100, 1_000_000)
    ceiling.on_too_large(2 * messages, 2 * size_bytes, (messages, size_bytes))
    assert (ceiling.max_messages, ceiling.max_bytes) == (messages, size_bytes)
    return ceiling


def pass_often(ceiling: Ceiling, messages: int, size_bytes: int, times: int = PATIENCE) -> tuple[int, int]:
    """So many batches of that size pass; the bounds afterwards."""
    for _ in range(times):
        ceiling.on_accepted(messages, size_bytes)
    return ceiling.max_messages, ceiling.max_bytes


def test_near_in_one_of_both_is_evidence() -> None:
    """Nine tenths of the messages or of the bytes, exactly."""
    assert pass_often(lowered(), 45, 10) == (55, 220_000)
    assert pass_often(lowered(), 44, 10) == (50, 200_000)
    assert pass_often(lowered(), 1, 180_000) == (55, 220_000)
    assert pass_often(lowered(), 1, 179_999) == (50, 200_000)


def test_patience_begins_anew_after_each_rise() -> None:
    """Each tenth more takes its hundred batches."""
    ceiling = lowered()
    assert pass_often(ceiling, 50, 200_000, PATIENCE - 1) == (50, 200_000)
    assert pass_often(ceiling, 50, 200_000, 1) == (55, 220_000)
    assert pass_often(ceiling, 55, 220_000, PATIENCE - 1) == (55, 220_000)
    assert pass_often(ceiling, 55, 220_000, 1) == (60, 242_000)


def test_a_refusal_ends_patience() -> None:
    """What passed before it no longer counts towards the next rise."""
    ceiling = lowered()
    pass_often(ceiling, 50, 200_000, PATIENCE - 1)
    ceiling.on_too_large(50, 200_000, (25, 100_000))
    assert pass_often(ceiling, 25, 100_000, PATIENCE - 1) == (25, 100_000)


def test_it_rises_by_whole_messages_up_to_the_configuration() -> None:
    """A small count by one, and no bound above what was configured."""
    ceiling = lowered(4, 999_999)
    assert pass_often(ceiling, 4, 10) == (5, 1_000_000)
    for _ in range(100):
        pass_often(ceiling, ceiling.max_messages, 10)
    assert (ceiling.max_messages, ceiling.is_lowered) == (100, False)


def test_what_passed_at_the_refused_size_is_forgotten() -> None:
    """It passes no longer: only smaller successes bound it from below, in messages and bytes apart."""
    ceiling = lowered(80, 800_000)
    ceiling.on_accepted(60, 600_000)
    ceiling.on_too_large(70, 700_000, (35, 350_000))
    assert (ceiling.max_messages, ceiling.max_bytes) == (60, 600_000)
    ceiling.on_too_large(60, 600_000, (30, 300_000))
    assert (ceiling.max_messages, ceiling.max_bytes) == (30, 300_000)
    ceiling.on_too_large(20, 200_000, (10, 100_000))
    assert (ceiling.max_messages, ceiling.max_bytes) == (10, 100_000)


def test_at_least_one_message() -> None:
    """Also if no part of it passed."""
    ceiling = Ceiling(100, 1_000_000)
    ceiling.on_too_large(2, 200_000, (0, 0))
    assert (ceiling.max_messages, ceiling.max_bytes) == (1, BYTES_MIN)
