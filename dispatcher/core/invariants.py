"""The engine's invariants, asserted: what `dispatcher.core` promises, by walking over all that is held.

For tests and the simulation; nothing here runs in a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.core.engine import Engine


def check(engine: Engine) -> None:
    """Assert every invariant of `dispatcher.core` (walks over all that is held: for tests)."""
    held = engine.tally.admitted - engine.settled_total
    assert held == sum(engine.populations().values()), "held is not the sum of its parts"
    assert held == engine.room.held_messages, "room and engine differ"
    entries = list(engine.held())
    assert len({entry.number for entry in entries}) == len(entries) == held, "an entry is lost or doubled"
    assert sum(len(entry.data) for entry in entries) == engine.room.held_bytes, "bytes differ"
    assert engine.lanes.waiting_messages == sum(1 for _ in engine.lanes), "waiting is miscounted"
    sendable = [lane for lane in engine.lanes.lanes if not lane.is_muted]
    assert engine.lanes.sendable_messages == sum(lane.count for lane in sendable), "sendable is miscounted"
    assert engine.lanes.sendable_bytes == sum(lane.size_bytes for lane in sendable), "bytes are miscounted"
    assert engine.flushes.unsettled == held, "epochs are miscounted"
    for lane in engine.lanes.lanes:
        out = [batch for batch in engine.out.values() if any(e.lane is lane for e in batch.entries)]
        assert not lane.ordered or len(out) <= 1, "an ordered lane has two batches in flight"
        sent = sum(entry.lane is lane for batch in out for entry in batch.entries)
        assert not lane.is_strict or sent <= 1, "a strict lane has two messages in flight"
    apart = sum(batch.is_apart for batch in engine.out.values())
    assert apart == engine.apart, "what does not come from the lanes is miscounted"
    probe = engine.gate.probe
    assert probe is None or probe in engine.out or not held, "the gate waits for a probe that is not out"
    if held and not engine.out:
        assert engine.wake_at(0.0) < float("inf"), "something is held and nothing will wake it"
