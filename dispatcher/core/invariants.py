"""The engine's invariants, asserted: what `dispatcher.core` promises, by walking over all that is held.

For tests and the simulation; nothing here runs in a program. Looking changes nothing: runs stay closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.core.batch import IN_FLIGHT, WAITING, Run

if TYPE_CHECKING:
    from dispatcher.core.batch import Entry
    from dispatcher.core.engine import Engine


def check(engine: Engine) -> None:
    """Assert every invariant of `dispatcher.core` (walks over all that is held: for tests)."""
    held = engine.tally.admitted - engine.settled_total
    assert held == sum(engine.populations().values()), "held is not the sum of its parts"
    assert held == engine.room.held_messages, "room and engine differ"
    holdings = list(engine.holdings())
    numbers = [number for each in holdings for number in _numbers(each)]
    assert len(set(numbers)) == len(numbers) == held, "an entry is lost or doubled"
    assert sum(map(_size, holdings)) == engine.room.held_bytes, "bytes differ"
    in_flight = sum(_messages(each) for each in holdings if each.state == IN_FLIGHT)
    assert in_flight == engine.counts[IN_FLIGHT], "in flight is miscounted"
    _check_runs(engine, holdings)
    _check_lanes(engine)
    assert engine.flushes.unsettled == held, "epochs are miscounted"
    apart = sum(batch.is_apart for batch in engine.out.values())
    assert apart == engine.apart, "what does not come from the lanes is miscounted"
    probe = engine.gate.probe
    assert probe is None or probe in engine.out or not held, "the gate waits for a probe that is not out"
    if held and not engine.out:
        assert engine.wake_at(0.0) < float("inf"), "something is held and nothing will wake it"


def _check_runs(engine: Engine, holdings: list[Entry | Run]) -> None:
    """A closed run has each of its columns, and is where its state says."""
    out = [batch.members for batch in engine.out.values()]
    for run in holdings:
        if isinstance(run, Run):
            assert run.entries is None, "a run is held that is open"
            assert run.receipts is None, "a run is held that is delivered"
            assert len(run) == len(run.items) == len(run.deduplication_ids) > 0, "columns differ in length"
            assert run.size_bytes == sum(map(len, run.items)), "a run's bytes are miscounted"
            is_out = any(members is run for members in out)
            assert run.state == (IN_FLIGHT if is_out else WAITING), "a run is not where its state says"


def _check_lanes(engine: Engine) -> None:
    lanes = engine.lanes
    waiting = list(lanes.holdings())
    assert lanes.waiting_messages == sum(map(_messages, waiting)), "waiting is miscounted"
    assert lanes.waiting_bytes == sum(map(_size, waiting)), "the bytes that wait are miscounted"
    runs = [each for each in waiting if isinstance(each, Run)]
    assert [run.number for run in runs] == sorted(run.number for run in runs), "runs wait out of order"
    sendable = [lane for lane in lanes.lanes if not lane.is_muted]
    messages = sum(lane.count for lane in sendable) + sum(map(len, runs))
    assert lanes.sendable_messages == messages, "sendable is miscounted"
    size = sum(lane.size_bytes for lane in sendable) + sum(run.size_bytes for run in runs)
    assert lanes.sendable_bytes == size, "bytes are miscounted"
    # A closed run has nothing of an ordered lane.
    out = [batch.members for batch in engine.out.values() if isinstance(batch.members, list)]
    for lane in lanes.lanes:
        sent = [sum(entry.lane is lane for entry in members) for members in out]
        assert not lane.ordered or sum(map(bool, sent)) <= 1, "an ordered lane has two batches in flight"
        assert not lane.is_strict or sum(sent) <= 1, "a strict lane has two messages in flight"


def _messages(each: Entry | Run) -> int:
    return len(each) if isinstance(each, Run) else 1


def _size(each: Entry | Run) -> int:
    return each.size_bytes if isinstance(each, Run) else len(each.data)


def _numbers(each: Entry | Run) -> range:
    return range(each.number, each.number + _messages(each))
