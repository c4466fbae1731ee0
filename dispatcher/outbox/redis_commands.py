"""What is asked about single messages and dead letters, and what is decided about them.

Any member may, whoever owns the shard: the scripts look at what stands in Redis. Each runs in the owner's
turn, so that what it changes is known here at once. Used by `redis`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from dispatcher.errors import OutboxError
from dispatcher.outbox import redis_forms as forms
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_forms import Kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.outbox.redis_link import Word
    from dispatcher.outbox.redis_owner import Owner
    from dispatcher.outbox.store import Found

DECIDED: Final = 200
"""Dead letters that are decided on at once."""


async def find(owner: Owner, message_id: str) -> Found | None:
    """What is known of a message."""
    answer = await owner.link.run(scripts.FIND, message_id)
    if answer is None:
        return None
    state, number, blob = answer[0], int(answer[1]), answer[2]
    if blob is None:
        raise OutboxError("redis: what was kept of this message has gone; were keys of the store deleted?")
    if state == b"r":
        return forms.delivered(blob).found(message_id)
    if state == b"d":
        return forms.kept(blob).found("dead")
    kept = forms.kept(blob) if state == b"h" else _in_entry(int(answer[4]), blob, number)
    return kept.found("claimed" if answer[3] else "waiting")


def _in_entry(entry: int, blob: bytes, wanted: int) -> Kept:
    for number, one in forms.unpacked(entry, blob):
        if number == wanted:
            return Kept(one.id, one.data, one.queue, one.accepted_at)
    raise OutboxError(f"redis: the entry {entry} does not hold the message {wanted}")


async def cancel(owner: Owner, message_id: str) -> bool:
    """Delete one that waits."""
    found = await find(owner, message_id)
    if found is None or found.state != "waiting":
        return False
    answer = await owner.link.run(scripts.CANCEL, message_id, len(found.record.data))
    if answer is None:
        return False
    owner.known.commits += 1
    owner.known.update(answer[2])
    shard, number = owner.shards.get(int(answer[0])), int(answer[1])
    if shard is not None and shard.is_loaded:
        shard.cancelled(number)
        if number > shard.top:
            await owner.read((shard,))
    return True


async def mark(owner: Owner, name: str) -> bytes | None:
    """The value of a mark."""
    value: bytes | None = await owner.link.ask("HGET", f"{owner.link.prefix}:marks", name)
    return value


async def dead_letters(owner: Owner, after: str | None, limit: int) -> list[Found]:
    """In the order of acceptance."""
    _, blobs = await owner.link.run(scripts.LETTERS, after or "", max(0, limit))
    return [forms.kept(blob).found("dead") for blob in blobs if blob is not None]


async def retry(owner: Owner, message_ids: Sequence[str] | None) -> int:
    """Dead ones wait again."""
    done = 0
    for some in await _chunks(owner, message_ids):
        ids, blobs = await owner.link.run(scripts.LETTERS, "", -1, *some)
        words: list[Word] = []
        for one, blob in zip(ids, blobs, strict=True):
            if blob is not None:
                again = replace(forms.kept(blob), due=0.0, sent_since=None, reason="", settled_at=None)
                words += (one, forms.keep(replace(again, deaths=0)))
        done += await _decide(owner, words)
    return done


async def delete(owner: Owner, message_ids: Sequence[str] | None) -> int:
    """Dead ones go."""
    done = 0
    for some in await _chunks(owner, message_ids):
        done += await _decide(owner, [word for one in some for word in (one, b"")])
    return done


async def _chunks(owner: Owner, message_ids: Sequence[str] | None) -> list[list[Any]]:
    ids: Iterable[str | bytes]
    if message_ids is None:
        ids = await owner.link.ask("ZRANGE", f"{owner.link.prefix}:dead", 0, -1)
    else:
        ids = dict.fromkeys(message_ids)
    every = list(ids)
    return [every[first : first + DECIDED] for first in range(0, len(every), DECIDED)]


async def _decide(owner: Owner, words: Sequence[Word]) -> int:
    if not words:
        return 0
    done, woken, counts = await owner.link.run(scripts.DECIDE, *words)
    owner.known.commits += 1
    owner.known.update(counts)
    shards = [owner.shards.get(int(number)) for number in woken]
    await owner.read(one for one in shards if one is not None and one.is_loaded)
    return int(done)
