"""Deliberate faults in the core, each caught within a few seeds: the proof that the oracles can fail.

The first part writes a fault as Python; `test_mutants` holds those that are a change of a few words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from dispatcher.core import replies, setback, settlement
from dispatcher.core.accumulator import Accumulator
from dispatcher.core.batch import CERTAINTIES, WAITING, Batch, Entry, Run, Trouble
from dispatcher.core.engine import Engine
from dispatcher.core.isolation import Isolation
from dispatcher.core.replies import Accepted
from dispatcher.core.room import Room
from dispatcher.message import Receipt
from tests.simulation.runs import failure

if TYPE_CHECKING:
    from dispatcher.core.gate import Permit

SEEDS = 40


def _fails(scenario: str, *, seeds: int = SEEDS) -> str:
    """The first report of a failing seed."""
    for seed in range(seeds):
        report = failure(scenario, seed)
        if report is not None:
            assert f"--scenario {scenario} --start {seed} --seeds 1" in report
            return report
    pytest.fail(f"no seed of {scenario} noticed")


def test_shifted_ids_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt with the neighbour's id is noticed."""
    honest = replies.read_reply

    def shifted(body: bytes, expected: int, *, is_group: bool) -> object:
        outcomes = list(honest(body, expected, is_group=is_group) or [])
        return outcomes[1:] + outcomes[:1] or None

    monkeypatch.setattr(settlement, "read_reply", shifted)
    monkeypatch.setattr(settlement, "read_receipts", lambda *_: None)
    assert "the service has" in _fails("calm")


@pytest.mark.parametrize("scenario", ["calm", "runs"])
def test_shifted_receipts_are_caught(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a reply is read in one go, for entries and for a run."""
    honest = replies.read_receipts

    def shifted(body: bytes, expected: int) -> list[Receipt] | None:
        receipts = honest(body, expected)
        return receipts and receipts[1:] + receipts[:1]

    monkeypatch.setattr(settlement, "read_receipts", shifted)
    assert "the service has" in _fails(scenario)


def test_shifted_receipts_of_a_run_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receipts in another order than the messages are noticed in runs alone."""
    honest = settlement._deliver_all

    def shifted(engine: Engine, batch: Batch, receipts: list[Receipt], now: float) -> None:
        honest(engine, batch, receipts if batch.run is None else receipts[1:] + receipts[:1], now)

    monkeypatch.setattr(settlement, "_deliver_all", shifted)
    assert "the service has" in _fails("runs")
    assert "the service has" in _fails("runs_faulty")


def test_a_guessed_id_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that is too short, read as far as it goes, is noticed."""
    honest = replies.read_reply

    def guessing(body: bytes, expected: int, *, is_group: bool) -> object:
        read = honest(body, expected, is_group=is_group)
        return read or [Accepted(f"msg_local0{number:016x}") for number in range(expected)]

    monkeypatch.setattr(settlement, "read_reply", guessing)
    monkeypatch.setattr(settlement, "read_receipts", lambda *_: None)
    assert "the service has" in _fails("lossy")


def test_a_guessed_receipt_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a reply is read in one go: a receipt is made up for each position that has none."""
    honest = replies.read_receipts

    def guessing(body: bytes, expected: int) -> list[Receipt] | None:
        made_up = [Receipt(f"msg_local0{number:016x}") for number in range(expected)]
        return honest(body, expected) or made_up

    monkeypatch.setattr(settlement, "read_receipts", guessing)
    assert "the service has" in _fails("runs_faulty")
    assert "the service has" in _fails("lossy")


def test_room_released_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room given back twice is noticed."""
    honest = Room.release

    def twice(room: Room[Entry], messages: int, size_bytes: int) -> None:
        honest(room, messages, size_bytes)
        if room.held_messages > messages:
            honest(room, messages, size_bytes)

    monkeypatch.setattr(Room, "release", twice)
    assert re.search("room|were released than taken", _fails("calm"))


def test_room_never_released_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that is not given back is noticed."""
    monkeypatch.setattr(Room, "release", lambda *_: None)
    assert "room" in _fails("calm")


def test_a_lane_that_is_not_muted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of one queue at once are noticed."""
    monkeypatch.setattr(Accumulator, "_mute", lambda *_: None)
    monkeypatch.setattr(Accumulator, "resolve", lambda *_: None)
    assert "unresolved is miscounted" in _fails("queues")


def test_a_broken_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed messages put at the end of their queue instead of its front are noticed."""

    def at_the_end(lanes: Accumulator, entries: list[Entry]) -> None:
        for entry in entries:
            lane = entry.lane
            assert lane is not None
            entry.state = WAITING
            lanes.extend([entry], entry.number, entry.epoch)
            if lane.ordered:
                lanes.resolve(lane, 1)

    monkeypatch.setattr(Accumulator, "restore", at_the_end)
    assert "out of order" in _fails("queues") or "overtaken" in _fails("queues")


def test_a_lost_message_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that a retry forgets is noticed."""
    honest = Accumulator.restore
    monkeypatch.setattr(Accumulator, "restore", lambda lanes, entries: honest(lanes, entries[1:]))
    _fails("storm")


def test_a_settlement_told_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that leaves twice is noticed."""
    honest = settlement._settle_delivered

    def twice(engine: Engine, batch: Batch, members: list[Entry] | Run, now: float) -> None:
        honest(engine, batch, members, now)
        if isinstance(members, list):
            engine.settled.append(members[0])

    monkeypatch.setattr(settlement, "_settle_delivered", twice)
    assert "settles twice" in _fails("calm")


def test_a_run_told_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that leaves as a whole, and once more in a later step or by the message, is noticed."""
    honest = settlement._settle_delivered
    for how in ("again", "opened"):
        last: dict[int, Run] = {}

        def twice(
            engine: Engine,
            batch: Batch,
            members: list[Entry] | Run,
            now: float,
            how: str = how,
            last: dict[int, Run] = last,
        ) -> None:
            honest(engine, batch, members, now)
            if id(engine) in last:
                run = last.pop(id(engine))
                engine.delivered += [run] * (how == "again")
                engine.settled += run.known[:1] if how == "opened" else []  # type: ignore[attr-defined]
            elif isinstance(members, Run):
                last[id(engine)] = members

        monkeypatch.setattr(settlement, "_settle_delivered", twice)
        assert "settles twice" in _fails("runs")


def test_an_opened_run_that_is_lost_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of which nothing is in the lane once it is open is noticed."""

    def lose(lanes: Accumulator) -> None:
        run = lanes._runs.popleft()
        lanes._count_run(run, -1)
        run.open()

    monkeypatch.setattr(Accumulator, "_open_run", lose)
    for scenario in ("runs", "runs_faulty", "calm"):
        _fails(scenario)


def test_a_message_lost_as_its_run_is_opened_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in flight that forgets its last message as it fails is noticed."""

    def careless(batch: Batch) -> list[Entry]:
        if isinstance(batch.members, Run):
            batch.members = batch.members.open()[:-1]
        return batch.members

    monkeypatch.setattr(Batch, "open", careless)
    _fails("runs_faulty")


def test_a_run_that_stays_in_its_lane_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was taken and waits again is noticed."""
    honest = Accumulator.take

    def taken_and_kept(lanes: Accumulator) -> Batch | None:
        batch = honest(lanes)
        if batch is not None and batch.run is not None:
            lanes.add_run(batch.run)
        return batch

    monkeypatch.setattr(Accumulator, "take", taken_and_kept)
    _fails("runs")


def test_a_message_sent_twice_at_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that starts again while it is out is noticed."""
    honest = Engine._next
    last: dict[int, Batch] = {}

    def again(engine: Engine, now: float, permit: Permit) -> Batch | None:
        batch = honest(engine, now, permit)
        if batch is None and id(engine) in last and last[id(engine)].number in engine.out:
            old = last.pop(id(engine))
            return Batch(old.members, old.size_bytes, "twice", single=old.single)
        if batch is not None:
            last[id(engine)] = batch
        return batch

    monkeypatch.setattr(Engine, "_next", again)
    _fails("calm")
    _fails("runs")


def test_a_false_certainty_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown outcome that is called "not accepted" is noticed."""
    honest = Trouble.learn
    assert CERTAINTIES["unknown"] > CERTAINTIES["not_accepted"]
    monkeypatch.setattr(Trouble, "learn", lambda trouble, _: honest(trouble, "not_accepted"))
    assert "and was accepted" in _fails("drain")


def test_repeating_the_unknown_without_an_id_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deduplication off, and an unknown outcome sent again all the same: the second acceptance is noticed."""
    honest = Engine.offer

    def careless(engine: Engine, entry: Entry) -> None:
        entry.idempotent = True
        honest(engine, entry)

    monkeypatch.setattr(Engine, "offer", careless)
    assert re.search(r"was accepted \d times", _fails("without_ids"))


def test_a_neighbour_rejected_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An isolation that blames the wrong message is noticed."""

    def blames_the_first(isolation: Isolation, *, infers: bool) -> Entry | None:
        segment = isolation._end_probe()
        isolation._infers = infers
        if len(segment.entries) <= 2:
            return segment.entries[0]
        segment.is_bad = True
        isolation._pending.append(segment)
        return None

    monkeypatch.setattr(Isolation, "on_refused", blames_the_first)
    _fails("poison")


def _sleep_through(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the engine forget one of the instants at which it wants to be asked again."""
    honest = Engine.wake_at

    def forgetful(engine: Engine, now: float) -> float:
        owner, _, attribute = name.rpartition(".")
        holder = getattr(engine, owner) if owner else engine
        kept = getattr(holder, attribute)
        setattr(holder, attribute, type(kept)() if owner else float("inf"))
        try:
            return honest(engine, now)
        finally:
            setattr(holder, attribute, kept)

    monkeypatch.setattr(Engine, "wake_at", forgetful)


def test_a_missed_deadline_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not wake for a deadline is noticed."""
    _sleep_through(monkeypatch, "next_expiry")
    assert "too late" in _fails("deadlines")


def test_a_missed_back_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not wake for the end of a back-off is noticed."""
    _sleep_through(monkeypatch, "backoffs._heap")
    assert "slept through" in _fails("outage")


def test_a_missed_linger_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not wake for the end of a linger is noticed."""
    honest = Engine.wake_at

    def late(engine: Engine, now: float) -> float:
        linger = engine.config.batch.linger
        oldest = engine.lanes.oldest()
        wake_at = honest(engine, now)
        return wake_at + 0.05 if oldest is not None and wake_at == oldest.admitted_at + linger else wake_at

    monkeypatch.setattr(Engine, "wake_at", late)
    assert "lingers too long" in _fails("calm")


def test_a_flush_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that claims to be over too early is noticed."""
    monkeypatch.setattr(Engine, "is_flushed", lambda *_: True)
    assert "flush" in _fails("calm")


def test_a_receipt_from_nowhere_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt for a message the service never took is noticed."""

    def forge(engine: Engine, entry: Entry, outcome: object, word: str) -> None:
        engine.settle(entry, outcome, word)  # type: ignore[arg-type]
        entry.outcome = Receipt("msg_forged")
        setback.resolve(engine, [entry])

    monkeypatch.setattr(settlement, "settle_failed", forge)
    monkeypatch.setattr(setback, "settle_failed", forge)
    assert "has a receipt and was not accepted" in _fails("poison")
