"""Loading a shard whose lease is ours: what its last owner left is put right, and what is held is read.

What somebody had claimed who is no member of it any more waits again, with the instant of that claim; of a
claim of ours whose answer was lost nothing was given out, so it is forgotten. A message whose owners died
too often while it was out is declared dead, with a reason: it might be what kills them. Used by
`redis_owner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from dispatcher.outbox import redis_forms as forms
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_forms import Kept
from dispatcher.outbox.redis_settling import Settled
from dispatcher.outbox.redis_shard import Shard

if TYPE_CHECKING:
    from dispatcher.outbox.redis_forms import OldClaim
    from dispatcher.outbox.redis_owner import Owner

SCANNED: Final = 1000
"""Held messages that are read at once."""
FOLDED: Final = 500
ENTRIES: Final = 16


async def load(owner: Owner, number: int) -> Shard | None:
    """A shard as it stands in Redis; `None` if it is not ours."""
    found = await owner.link.run(scripts.LOAD, owner.member, number)
    if found is None:
        return None
    claims, held = found
    old = [forms.old_claim(no, said) for no, said in zip(claims[::2], claims[1::2], strict=True)]
    old = [claim for claim in old if (number, claim.no) not in owner.claims_left]
    if old:
        await _fold(owner, number, old)
        held = 1
    shard = Shard(number)
    for position, out in owner.out.items():
        if out.shard == number:
            shard.out += 1
            shard.remember(position, out.claim.record.accepted_at)
    if held:
        await _read_held(owner, shard)
    shard.is_loaded = True
    return shard


async def _read_held(owner: Owner, shard: Shard) -> None:
    key, cursor = f"{owner.link.prefix}:h:{shard.number}", b"0"
    while True:
        cursor, fields = await owner.link.ask("HSCAN", key, cursor, "COUNT", SCANNED)
        for number, blob in zip(fields[::2], fields[1::2], strict=True):
            if int(number) not in owner.out:
                shard.hold_kept(int(number), forms.kept(blob))
        if cursor == b"0":
            return


async def _fold(owner: Owner, shard: int, old: list[OldClaim]) -> None:
    """Everything of these claims that is not settled waits again; then they are gone."""
    latest: dict[int, OldClaim] = {}
    for claim in sorted(old):
        if claim.member != owner.member:
            latest.update(dict.fromkeys(claim.numbers, claim))
    numbers = sorted(number for number in latest if number not in owner.out)
    for first in range(0, len(numbers), FOLDED):
        some = numbers[first : first + FOLDED]
        folded = Settled(owner)
        for number, kept in (await _kept(owner, shard, some)).items():
            _fold_one(folded, latest[number], kept, owner.limits.poison_cap)
        await folded.run()
    ended = Settled(owner)
    ended.claims((shard, claim.no) for claim in old)
    await ended.run()


def _fold_one(folded: Settled, claim: OldClaim, kept: Kept, poison_cap: int) -> None:
    since = claim.at if kept.sent_since is None else kept.sent_since
    again = replace(kept, due=0.0, sent_since=since, deaths=kept.deaths + 1)
    if again.deaths < poison_cap:
        folded.returned(claim.no, again)
    else:
        reason = f"{again.deaths} times its sender died or was lost while it was out"
        folded.dead(claim.no, replace(again, reason=reason, settled_at=claim.at))


async def _kept(owner: Owner, shard: int, numbers: list[int]) -> dict[int, Kept]:
    """What is known of these messages: they are held, or still in their entries, or settled."""
    key = f"{owner.link.prefix}:h:{shard}"
    blobs: list[Any] = await owner.link.ask("HMGET", key, *numbers)
    found = {
        number: forms.kept(blob) for number, blob in zip(numbers, blobs, strict=True) if blob is not None
    }
    left = [number for number in numbers if number not in found]
    while left:
        wanted = set(left)
        at = await owner.entry_of(shard, left[0])
        last = left[0]
        for messages in await owner.entries(shard, at, ENTRIES):
            for number, one in messages:
                last = max(last, number)
                if number in wanted:
                    found[number] = Kept(one.id, one.data, one.queue, one.accepted_at)
        left = [number for number in left if number > last]
    return found
