"""Claiming: which messages of the owned shards are given next, and what is asked of Redis for it.

First what was given back and is due again, then queues whose turn has come, then fresh ones in the order of
their numbers over all shards. What was chosen is taken out of memory at once; only the script says what of it
is given: it looks whether the shards are still ours, and each message still is where it was. Should it
fail, the owner throws away what it knows. Made by `redis_owner` for one call of `claim`.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heapreplace
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from dispatcher.errors import OutboxError
from dispatcher.outbox import redis_forms as forms
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_shard import Out
from dispatcher.outbox.store import Claim

if TYPE_CHECKING:
    from dispatcher.outbox.order import Queue
    from dispatcher.outbox.redis_link import Word
    from dispatcher.outbox.redis_owner import Owner
    from dispatcher.outbox.redis_shard import Held, Shard
    from dispatcher.outbox.store import Record

RECALL_ENTRIES: Final = 32
"""Read at once, when passed-over messages are read again."""
RECALL_BYTES: Final = 4 << 20


class Chosen:
    """Of one shard, for one script."""

    __slots__ = ("fresh", "held", "shard")

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.fresh: list[tuple[int, Record]] = []
        self.held: list[tuple[int, Held]] = []

    def words(self) -> list[Word]:
        """Arguments of the script."""
        words: list[Word] = [self.shard.number, len(self.fresh)]
        for number, record in self.fresh:
            words += (record.id, number)
        words.append(len(self.held))
        words += [number for number, _ in self.held]
        return words


class Claiming:
    """One call of `claim`."""

    def __init__(self, owner: Owner, messages: int, size_bytes: int, now: float) -> None:
        self._owner = owner
        self._messages = messages
        self._bytes = size_bytes
        self._now = now
        self._is_full = messages <= 0
        self._count = 0
        """Chosen so far."""
        self._claims: list[Claim] = []
        self._chosen: dict[int, Chosen] = {}
        self._to_recall: dict[int, list[str]] = {}

    async def run(self) -> list[Claim]:
        """What is given, in the order of positions; it is written that it is out."""
        try:
            await self._run()
        except OutboxError:
            if not self._claims:
                raise
            self._owner.doubt()  # what was given before it failed is given
        self._claims.sort(key=_position)
        return self._claims

    async def _run(self) -> None:
        while not self._is_full:
            await self._owner.read(self._unread())
            self._choose()
            if self._chosen or self._to_recall:
                await self._recall()
                await self._claim()
            elif not self._unread():
                return

    def _usable(self) -> list[Shard]:
        return [shard for shard in self._owner.shards.values() if shard.is_claimed_from]

    def _unread(self) -> list[Shard]:
        """Those of which more has to be read before it is known what comes first."""
        return [shard for shard in self._usable() if shard.has_more and not shard.fresh]

    # ------------------------------------------------------------------------------------------ choosing

    def _choose(self) -> None:
        shards = self._usable()
        for shard in shards:
            self._take_loose(shard)
        for shard in shards:
            self._take_queues(shard)
        self._take_fresh(shards)

    def _fits(self, size: int) -> bool:
        """Whether there is room for it; takes the room."""
        if self._is_full or (self._count and size > self._bytes):
            self._is_full = True
            return False
        self._bytes -= size
        self._count += 1
        self._is_full = self._count >= self._messages
        return True

    def _of(self, shard: Shard) -> Chosen:
        chosen = self._chosen.get(shard.number)
        if chosen is None:
            chosen = self._chosen[shard.number] = Chosen(shard)
        return chosen

    def _take_loose(self, shard: Shard) -> None:
        order = shard.order
        while order.loose and order.loose[0][0] <= self._now and not self._is_full:
            number = order.loose[0][1]
            if not self._take_held(shard, number):
                return
            order.pop_loose()

    def _take_held(self, shard: Shard, number: int) -> bool:
        """False if there is no room."""
        one = shard.held[number]
        if not self._fits(one.size):
            return False
        self._of(shard).held.append((number, one))
        del shard.held[number]
        return True

    def _take_queues(self, shard: Shard) -> None:
        later = []
        for name in shard.order.due_queues(self._now):
            queue = shard.order.queues[name]
            if self._take_queue(shard, name, queue):
                shard.order.set_timer(name)
            else:
                later.append(name)
            if self._is_full:
                break
        for name in later:
            shard.order.set_timer(name)

    def _take_queue(self, shard: Shard, name: str, queue: Queue) -> bool:
        """False if it cannot go on now, although it is due."""
        while queue.due <= self._now:
            if self._is_full:
                return False
            if queue.held:
                if not self._take_held(shard, queue.held[0][0]):
                    return False
                queue.pop()
            elif name not in shard.recalled:
                self._to_recall.setdefault(shard.number, []).append(name)
                return False
            elif not self._take_recalled(shard, name):
                return False
        return True

    def _take_recalled(self, shard: Shard, name: str) -> bool:
        messages = shard.recalled[name].messages
        if not self._fits(len(messages[0][1].data)):
            return False
        self._of(shard).fresh.append(messages.popleft())
        shard.took_recalled(name)
        return True

    def _take_fresh(self, shards: list[Shard]) -> None:
        """Merged by their numbers, until one that may have more has to be read first."""
        heads = [(shard.fresh[0][0], shard.number) for shard in shards if shard.fresh]
        heapify(heads)
        while heads and not self._is_full:
            number, of_shard = heads[0]
            shard = self._owner.shards[of_shard]
            record = shard.fresh[0][1]
            if not shard.pass_over(number, record.queue):
                if not self._fits(len(record.data)):
                    return
                self._of(shard).fresh.append((number, record))
            shard.fresh.popleft()
            if shard.fresh:
                heapreplace(heads, (shard.fresh[0][0], of_shard))
            elif shard.has_more:
                return
            else:
                heappop(heads)

    # ---------------------------------------------------------------------------------------- from Redis

    async def _claim(self) -> None:
        chosen, self._chosen = list(self._chosen.values()), {}
        if not chosen:
            return
        words: list[Word] = [self._owner.member, repr(float(self._now))]
        for one in chosen:
            words += one.words()
        no, answers = await self._owner.link.run(scripts.CLAIM, *words)
        self._owner.known.commits += 1
        for one, answer in zip(chosen, answers, strict=True):
            if not answer[0]:
                self._owner.lose(one.shard.number)
                self._give_up(one)
            else:
                self._given(one, int(no), set(answer[1]), answer[2])

    def _given(self, one: Chosen, no: int, gone: set[int], blobs: list[bytes | None]) -> None:
        shard, given = one.shard, 0
        for at, (number, record) in enumerate(one.fresh):
            if at in gone:
                self._gone(shard, number, len(record.data))
            else:
                self._give(Out(Claim(number, record), shard.number, no, 0))
                given += 1
        for (number, held), blob in zip(one.held, blobs, strict=True):
            if blob is None:
                self._gone(shard, number, held.size)
            else:
                kept = forms.kept(blob)
                self._give(Out(kept.claim(number), shard.number, no, kept.deaths))
                given += 1
        if given:
            shard.out += given
            self._owner.claims_left[shard.number, no] = given

    def _give(self, out: Out) -> None:
        self._owner.out[out.claim.position] = out
        self._claims.append(out.claim)

    def _gone(self, shard: Shard, number: int, size: int) -> None:
        """Somebody else settled it: there is room again."""
        shard.settled(number)
        self._room_again(size)

    def _give_up(self, one: Chosen) -> None:
        for _, record in one.fresh:
            self._room_again(len(record.data))
        for _, held in one.held:
            self._room_again(held.size)

    def _room_again(self, size: int) -> None:
        self._count -= 1
        self._bytes += size
        self._is_full = self._count >= self._messages

    async def _recall(self) -> None:
        to_recall, self._to_recall = self._to_recall, {}
        for number, names in to_recall.items():
            await self._recall_some(self._owner.shards[number], set(names))

    async def _recall_some(self, shard: Shard, names: set[str]) -> None:
        """Read again what was passed over of these queues, as far as there is memory for it."""
        queues = shard.order.queues
        starts = {name: queues[name].resume or 0 for name in names}
        end, covered, size = shard.read_to, 0, 0
        found: dict[str, deque[tuple[int, Record]]] = {name: deque() for name in names}
        at = await self._owner.entry_of(shard.number, min(starts.values()))
        while size < RECALL_BYTES and covered < end - 1:
            entries = await self._owner.entries(shard.number, at, RECALL_ENTRIES)
            for number, record in (one for messages in entries for one in messages):
                covered = number
                name = record.queue
                if name in starts and starts[name] <= number < end and number not in self._owner.out:
                    found[name].append((number, record))
                    size += len(record.data)
            if len(entries) < RECALL_ENTRIES:
                covered = end - 1
            at = covered + 1
        covered = min(covered, end - 1)
        for name, messages in found.items():
            shard.recall(name, messages, covered)
            shard.order.set_timer(name)


_position: Final = attrgetter("position")
