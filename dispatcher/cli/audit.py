"""Compares what the library told its callers with what the upstream says it accepted.

Every message of a run is known by its digest (destination, queue, body), which the local upstream computes
by itself from what arrived. Nothing here is counted from the library's own statistics. Used by `demo`.

With deduplication off what had no answer is not repeated: such a message is reported as unknown, exactly as
many are as answers were lost, and each of them was accepted once or not at all. It may have been accepted at
any time, an abandoned request arriving late; so it takes no part in the order of its queue.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatcher.devserver.ledger import digest_of
from dispatcher.errors import DeliveryError, MessageRejected, OutcomeUnknown
from dispatcher.message import Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.errors import DispatcherError


@dataclass(slots=True)
class Sent:
    """One message of the run and what its caller was told."""

    message: Message
    place: int
    """Its place in its queue, in the order of submission."""
    outcome: Receipt | DispatcherError | None = None
    """`None`: its caller never heard of it again."""
    seconds: float = 0.0
    is_poisoned: bool = False
    """The upstream accepts it never: it must fail, and alone."""

    @property
    def digest(self) -> str:
        """What identifies it in the upstream's ledger."""
        body = self.message.body
        assert body is None or isinstance(body, str | bytes)
        return digest_of(self.message.destination, self.message.queue, body).hex()


@dataclass(slots=True)
class Audit:
    """The findings; every count that has no other word about it ought to be 0."""

    delivered: int = 0
    """Not to be 0: reported as delivered."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Poisoned messages that failed, by the service's words or the error's name."""
    answers_lost: int = 0
    """How many messages ought to be reported as unknown."""
    unknown: int = 0
    """Messages reported as unknown."""
    unknown_accepted: int = 0
    """Those of them that were accepted."""
    failed: Counter[str] = field(default_factory=Counter)
    """Sound messages that failed in any other way, by the error's name."""
    cured: int = 0
    """Poisoned messages that were delivered."""
    unheard: int = 0
    """Their callers were told nothing."""
    lost: int = 0
    """Reported as delivered, and not accepted upstream."""
    duplicated: int = 0
    """Accepted more than once."""
    denied: int = 0
    """Accepted, although the error said that they were not."""
    misattributed: int = 0
    """Receipts whose id belongs to another message."""
    foreign: int = 0
    """Accepted, and never sent by this run."""
    out_of_order: int = 0
    """Accepted in a queue after one that was submitted later."""

    @property
    def holds(self) -> bool:
        """Nothing was lost, doubled, mixed up or reordered, and nobody was left waiting."""
        return not (
            self.unheard
            or self.lost
            or self.duplicated
            or self.denied
            or self.misattributed
            or self.foreign
            or self.out_of_order
            or self.failed
            or self.cured
            or self.unknown != self.answers_lost
        )


def audit(sent: Iterable[Sent], accepted: Iterable[dict[str, Any]], *, answers_lost: int = 0) -> Audit:
    """Compare the run with the upstream's ledger, in the ledger's order.

    `answers_lost`: how many messages ought to be reported as unknown (none where repeating is safe).
    """
    found = Audit(answers_lost=answers_lost)
    by_digest = {each.digest: each for each in sent}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    last_place: dict[str, int] = {}
    for row in accepted:
        rows[row["digest"]].append(row)
        each = by_digest.get(row["digest"])
        if each is None:
            found.foreign += 1
            continue
        queue = each.message.queue
        is_first = len(rows[row["digest"]]) == 1
        if queue is not None and is_first and not isinstance(each.outcome, OutcomeUnknown):
            if each.place < last_place.get(queue, -1):
                found.out_of_order += 1
            last_place[queue] = max(each.place, last_place.get(queue, -1))
    for digest, each in by_digest.items():
        _judge(found, each, rows.get(digest, []))
    return found


def _judge(found: Audit, each: Sent, rows: list[dict[str, Any]]) -> None:
    if len(rows) > 1:
        found.duplicated += 1
    outcome = each.outcome
    if outcome is None:
        found.unheard += 1
    elif isinstance(outcome, Receipt):
        found.delivered += 1
        found.cured += each.is_poisoned
        if not rows:
            found.lost += 1
        elif not set(outcome.message_ids) & {one for row in rows for one in row["messageIds"]}:
            found.misattributed += 1
    else:
        _judge_failure(found, each, outcome, accepted=bool(rows))


def _judge_failure(found: Audit, each: Sent, outcome: DispatcherError, *, accepted: bool) -> None:
    if each.is_poisoned:
        found.rejected[_words(outcome)] += 1
    elif isinstance(outcome, OutcomeUnknown):
        found.unknown += 1
        found.unknown_accepted += accepted
    else:
        found.failed[type(outcome).__name__] += 1
    certainty = outcome.certainty if isinstance(outcome, DeliveryError) else "not_sent"
    if accepted and certainty in {"not_sent", "not_accepted"}:
        found.denied += 1


def _words(outcome: DispatcherError) -> str:
    if isinstance(outcome, MessageRejected):
        return f"{outcome.status}: {outcome.reason.partition(': ')[2]}"
    return type(outcome).__name__
