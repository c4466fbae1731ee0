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
