"""The verdict at the end of a run: what the dispatcher said against what the service accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.core.invariants import check
from dispatcher.devserver.ledger import digest_of
from dispatcher.errors import Abandoned, DeliveryError, Halted, MessageRejected
from dispatcher.message import Receipt

if TYPE_CHECKING:
    from dispatcher.core.batch import Entry
    from tests.simulation.scenario import Draft
    from tests.simulation.world import World


def digest(one: Draft) -> bytes:
    """How the service's ledger knows a message."""
    body = one.message.body
    assert isinstance(body, str | bytes | None), "drafts have plain bodies"
    return digest_of(one.message.destination, one.message.queue, body)


def judge(world: World) -> None:
    """Raise `AssertionError` unless every outcome is true."""
    rows: dict[bytes, list[int]] = {}
    ledger = world.service.ledger
    for seq in range(len(ledger)):
        rows.setdefault(ledger.digest(seq), []).append(seq)
    _judge_totals(world)
    for one in world.drafts:
        found = rows.pop(digest(one), [])
        assert len(found) <= 1, f"message {one.number} was accepted {len(found)} times"
        entry = world.entries.get(one.number)
        if entry is None:
            assert one.number in world.gone, f"message {one.number} vanished before it was admitted"
            assert not found, f"message {one.number} was never admitted, and accepted"
        else:
            _judge_one(world, one, entry, found)
    assert not rows, "the service accepted what nobody sent"
    _judge_order(world)


def _judge_totals(world: World) -> None:
    engine = world.engine
    assert engine.settled_total == engine.tally.admitted == len(world.entries), "not everything is settled"
    assert len(world.watch.settled) == len(world.entries), "something settled without leaving"
    assert sum(engine.tally.finished.values()) == len(world.entries), "outcomes are miscounted"
    assert engine.room.held_messages == 0, "room is not given back"
    assert engine.room.held_bytes == 0, "bytes are not given back"
    assert engine.room.waiting == 0, "somebody waits for room for ever"
    assert world.watch.drain_at < float("inf") or not engine.out, "a request is out for ever"
    check(engine)


def _judge_one(world: World, one: Draft, entry: Entry, found: list[int]) -> None:
    outcome = entry.outcome
    where = f"message {one.number} (entry {entry.number}, {type(outcome).__name__})"
    if isinstance(outcome, Receipt):
        assert found, f"{where} has a receipt and was not accepted"
        ids = world.service.ledger.message_ids(found[0])
        assert outcome.message_ids == ids, f"{where} has {outcome}, the service has {ids}"
        assert outcome.deduplication_id == entry.deduplication_id, f"{where}: another deduplication id"
        assert not (outcome.deduplicated and entry.owns_id), f"{where} is called a duplicate of itself"
        assert not outcome.duplicate_possible, f"{where} was repeated past the window"
        return
    assert isinstance(outcome, DeliveryError), f"{where} has no outcome"
    assert outcome.message.body == one.message.body, f"{where}: the error shows another message"
    assert outcome.message.deduplication_id in (entry.deduplication_id, one.message.deduplication_id)
    _judge_certainty(world, one, entry, outcome, bool(found), where)


def _judge_certainty(
    world: World, one: Draft, entry: Entry, outcome: DeliveryError, accepted: bool, where: str
) -> None:
    if outcome.certainty in ("not_sent", "not_accepted"):
        assert not accepted, f"{where} says {outcome.certainty} and was accepted"
    if outcome.certainty == "not_sent":
        assert entry.number not in world.reached, f"{where} says not_sent and was sent"
    if one.number in world.withdrawn:
        assert isinstance(outcome, Abandoned), f"{where} was withdrawn"
        assert not accepted, f"{where} was withdrawn and accepted"
    if isinstance(outcome, MessageRejected):
        errors = world.service.error_entries[digest(one)]
        attempts = world.config.retry.error_entry_attempts
        assert one.is_culprit or errors >= attempts, f"{where} was rejected for its neighbour's fault"
    if world.scenario.all_delivered:
        fine = one.is_culprit or one.number in world.withdrawn
        assert fine or isinstance(outcome, MessageRejected), f"{where} should have been delivered: {outcome}"
        assert not isinstance(outcome, Halted), f"{where}: one message's fault is no systemic one"


def _judge_order(world: World) -> None:
    """Within a queue the service accepted in order of admission, its own error entries apart."""
    ledger, service = world.service.ledger, world.service
    numbers = {
        digest(one): world.entries[one.number].number for one in world.drafts if one.number in world.entries
    }
    last: dict[str, int] = {}
    late = 0
    for seq in range(len(ledger)):
        queue, key = ledger.queues[seq], ledger.digest(seq)
        if queue is None:
            continue
        if numbers[key] < last.get(queue, -1):
            late += 1
            assert not _is_strict(world, queue), f"strict queue {queue}: entry {numbers[key]} was overtaken"
            assert key in service.passed_over, f"queue {queue}: entry {numbers[key]} was overtaken"
        last[queue] = max(last.get(queue, -1), numbers[key])
    if world.scenario.every_reply_is_seen:
        assert late <= world.engine.tally.order_violations, "an order violation was not counted"


def _is_strict(world: World, queue: str) -> bool:
    policy = world.config.queues.get(queue)
    return policy is not None and policy.strict
