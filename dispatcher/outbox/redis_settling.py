"""Settling: what became of claimed messages, in one script, and what that means for who owns their shards.

A message stays out until Redis has said that it knows; so a settlement whose answer was lost can be said
again. Also used to fold what others had claimed (`redis_load`). Made by `redis_owner` for one group.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, assert_never

from dispatcher.outbox import redis_forms as forms
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_forms import Kept, KeptDelivered
from dispatcher.outbox.redis_lua import BUCKETS
from dispatcher.outbox.redis_shard import Held
from dispatcher.outbox.sqlite_rows import KeptReceipt
from dispatcher.outbox.store import Cancelled, Dead, Delivered, Returned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.outbox.redis_link import Word
    from dispatcher.outbox.redis_owner import Owner
    from dispatcher.outbox.redis_shard import Out
    from dispatcher.outbox.store import Settlement


class Settled:
    """The arguments of one script."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._done: list[Word] = []
        self._returned: list[Word] = []
        self._dead: list[Word] = []
        self._claims: list[Word] = []

    def done(self, message_id: str, size: int, receipt: bytes) -> None:
        """Delivered, or without a receipt taken back."""
        self._done += (message_id, size, receipt)

    def returned(self, claim: int, kept: Kept) -> None:
        """It waits again."""
        self._returned += (kept.id, claim, forms.keep(kept))

    def dead(self, claim: int, kept: Kept) -> None:
        """It is a dead letter."""
        self._dead += (kept.id, claim, len(kept.data), forms.keep(kept))

    def claims(self, ended: Iterable[tuple[int, int]]) -> None:
        """Nothing of these, by shard and number, is out any more."""
        for shard, no in ended:
            self._claims += (shard, no)

    async def run(self) -> list[int]:
        """Of each that was returned, whether it is held now."""
        limits = self._owner.limits
        returned, counts = await self._owner.link.run(
            scripts.SETTLE,
            self._owner.member,
            int(limits.keep_receipts * 1000),
            -(-limits.max_receipts // BUCKETS),
            len(self._done) // 3,
            *self._done,
            len(self._returned) // 3,
            *self._returned,
            len(self._dead) // 4,
            *self._dead,
            len(self._claims) // 2,
            *self._claims,
        )
        self._owner.known.commits += 1
        self._owner.known.update(counts)
        held: list[int] = returned
        return held


class Settling:
    """One group of settlements."""

    def __init__(self, owner: Owner, settlements: Sequence[Settlement]) -> None:
        self._owner = owner
        self._of: dict[int, tuple[Settlement, Out]] = {}
        for one in settlements:  # what is not out was settled before
            out = owner.out.get(one.position)
            if out is not None:
                self._of.setdefault(one.position, (one, out))

    async def run(self) -> None:
        """Say it, and note what has changed."""
        if not self._of:
            return
        settled = Settled(self._owner)
        returned: list[tuple[Out, Kept]] = []
        for one, out in self._of.values():
            kept = _add(settled, one, out)
            if kept is not None:
                returned.append((out, kept))
        fewer = Counter((out.shard, out.no) for _, out in self._of.values())
        left = self._owner.claims_left
        settled.claims(claim for claim, count in fewer.items() if left[claim] <= count)
        held = await settled.run()
        self._end_claims(fewer)
        self._forget()
        for (out, kept), is_held in zip(returned, held, strict=True):
            if is_held:
                self._hold(out, kept)

    def _end_claims(self, fewer: Counter[tuple[int, int]]) -> None:
        left = self._owner.claims_left
        for claim, count in fewer.items():
            left[claim] -= count
            if left[claim] <= 0:
                del left[claim]

    def _forget(self) -> None:
        owner = self._owner
        drained = False
        for position, (_, out) in self._of.items():
            del owner.out[position]
            shard = owner.shards.get(out.shard)
            if shard is not None:
                shard.settled(position)
                shard.out -= 1
                drained = drained or (shard.is_draining and not shard.out)
        if drained:
            owner.on_change()

    def _hold(self, out: Out, kept: Kept) -> None:
        shard = self._owner.shards.get(out.shard)
        if shard is not None and shard.is_loaded:
            held = Held(kept.id, kept.queue, len(kept.data), kept.accepted_at)
            shard.hold(out.claim.position, held, kept.due)


def _add(settled: Settled, one: Settlement, out: Out) -> Kept | None:
    """One settlement, among the arguments; of one that comes back, what is kept of it."""
    claim = out.claim
    record = claim.record
    match one:
        case Delivered():
            receipt = KeptReceipt.of(one.receipt)
            kept = KeptDelivered(record.queue, record.accepted_at, claim.attempts, one.at, receipt)
            settled.done(record.id, len(record.data), forms.keep(kept))
        case Cancelled():
            settled.done(record.id, len(record.data), b"")
        case Returned():
            back = _kept(out, one, returns=claim.returns + 1, due=one.due, sent_since=one.sent_since)
            settled.returned(out.no, back)
            return back
        case Dead():
            settled.dead(out.no, _kept(out, one, returns=claim.returns, reason=one.reason, settled_at=one.at))
        case _:
            assert_never(one)
    return None


def _kept(
    out: Out,
    one: Returned | Dead,
    *,
    returns: int,
    due: float = 0.0,
    sent_since: float | None = None,
    reason: str = "",
    settled_at: float | None = None,
) -> Kept:
    record = out.claim.record
    return Kept(
        record.id,
        record.data,
        record.queue,
        record.accepted_at,
        one.attempts,
        returns,
        due,
        sent_since,
        out.deaths,
        reason,
        settled_at,
    )
