"""The owner's side of a store: one task that settles, claims and decides, in turn, over one connection.

What is asked for together is done together: settlements in one script, then commands, then claims. Because
everything that changes what the owner knows passes through here, in order, what it knows is right; where an
answer was lost, it throws away what it knows of its shards, and loads them anew, except for what it has given
out. Used by `redis`, which asks, and `redis_members`, which says what is owned.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import OutboxError
from dispatcher.outbox import redis_forms as forms
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_claims import Claiming
from dispatcher.outbox.redis_load import load
from dispatcher.outbox.redis_settling import Settling
from dispatcher.outbox.redis_shard import Shard
from dispatcher.outbox.redis_worker import Worker
from dispatcher.outbox.store import Returned

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from dispatcher.outbox.redis_known import Known
    from dispatcher.outbox.redis_link import Link
    from dispatcher.outbox.redis_shard import Out
    from dispatcher.outbox.store import Claim, Record, Settlement
    from dispatcher.outbox.waiting import Bell

READ_BYTES: Final = 4 << 20
READ_ENTRIES: Final = 8
"""Of a shard, at once."""
GROUP_MESSAGES: Final = 1000
"""Settled by one script, so that the loop and Redis go on between them."""

logger: Final = logging.getLogger("dispatcher.outbox")


class Limits:
    """What a store was made with, as far as its owner needs it."""

    def __init__(self, max_receipts: int, keep_receipts: float, poison_cap: int) -> None:
        self.max_receipts = max_receipts
        self.keep_receipts = keep_receipts
        self.poison_cap = poison_cap


class Owner(Worker):
    """The shards of one member, and what is out of them.

    Args:
        link: Its own.
        member: Its name, which nobody had before.
        is_sure: Whether the leases are still far from their ends.
    """

    def __init__(
        self, link: Link, member: str, known: Known, bell: Bell, limits: Limits, is_sure: Callable[[], bool]
    ) -> None:
        self.link = link
        self.member = member
        self.known = known
        self.limits = limits
        self.shards: dict[int, Shard] = {}
        self.out: dict[int, Out] = {}
        """By position, also of shards that are not ours any more."""
        self.claims_left: Counter[tuple[int, int]] = Counter()
        """Of each claim, by shard and number, how many messages are out."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a shard was lost, or one that is to be given away has nothing out."""
        self._bell = bell
        self._is_sure = is_sure
        self._breaks = link.breaks
        self._settling: list[tuple[Sequence[Settlement], asyncio.Future[Any] | None]] = []
        self._asked: deque[tuple[Callable[[], Coroutine[Any, Any, Any]], asyncio.Future[Any]]] = deque()
        super().__init__()

    # ------------------------------------------------------------------------------------------- asking

    def settle(self, settlements: Sequence[Settlement]) -> asyncio.Future[Any]:
        """What became of claimed messages."""
        future = asyncio.get_running_loop().create_future()
        self._settling.append((settlements, future))
        self._has_work.set()
        return future

    def claim(self, messages: int, size_bytes: int, now: float) -> asyncio.Future[list[Claim]]:
        """Claims; those of somebody who has gone meanwhile are given back."""
        return self.ask(partial(self._claim, messages, size_bytes, now))

    def ask(self, command: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Future[Any]:
        """Run this in turn."""
        future = asyncio.get_running_loop().create_future()
        self._asked.append((command, future))
        self._has_work.set()
        return future

    # ---------------------------------------------------------------------------------------- in its turn

    async def _do_all(self) -> None:
        while self._settling or self._asked:
            await self._turn()
            self.ring()

    async def _turn(self) -> None:
        settling, self._settling = self._settling, []
        if settling:
            await self._settle(settling)
        for _ in range(len(self._asked)):
            command, future = self._asked.popleft()
            if future.cancelled():
                continue
            try:
                result = await command()
            except Exception as error:  # a fault of ours ends one call, not the owner
                self._fail(future, error)
            else:
                self._answer(future, result)

    def _answer(self, future: asyncio.Future[Any], result: Any) -> None:
        if not future.cancelled():
            future.set_result(result)
        elif isinstance(result, list) and result and not self._is_closing:  # claims that nobody gets
            again = [Returned(one.position, 0.0, one.attempts, one.sent_since) for one in result]
            self._settling.append((again, None))

    def _fail(self, future: asyncio.Future[Any] | None, error: Exception) -> None:
        self.known.failed(type(error).__name__)
        if not isinstance(error, OutboxError):
            logger.error("outbox: the store failed", exc_info=error)
        self.doubt()
        if future is not None and not future.done():
            future.set_exception(error)

    def ring(self) -> None:
        """Tell those who wait what may be claimed, and when."""
        self._bell.set(min((shard.due_at for shard in self.shards.values()), default=inf))

    async def _settle(self, settling: list[tuple[Sequence[Settlement], asyncio.Future[Any] | None]]) -> None:
        said = [one for settlements, _ in settling for one in settlements]
        try:
            for first in range(0, len(said), GROUP_MESSAGES):
                await Settling(self, said[first : first + GROUP_MESSAGES]).run()
        except Exception as error:
            for _, future in settling:
                self._fail(future, error)
            return
        for _, future in settling:
            if future is not None and not future.done():
                future.set_result(None)

    async def _claim(self, messages: int, size_bytes: int, now: float) -> list[Claim]:
        if not self._is_sure():
            raise OutboxError("redis: the leases could not be renewed in time; nothing is claimed meanwhile")
        await self.load()
        return await Claiming(self, messages, size_bytes, now).run()

    # -------------------------------------------------------------------------------------- what is owned

    async def take(self, shards: Iterable[int]) -> None:
        """These are ours, as far as Redis knows."""
        for number in shards:
            self.shards.setdefault(number, Shard(number))
        await self.load()
        await self.read(shard for shard in self.shards.values() if shard.has_more and not shard.fresh)

    def lose(self, number: int) -> None:
        """This one is not; what is out of it is settled all the same, as far as that is right."""
        if self.shards.pop(number, None) is not None:
            logger.warning("outbox: the lease of shard %d was lost", number)
            self.on_change()

    def drained(self) -> list[int]:
        """Those that may be given away."""
        return [shard.number for shard in self.shards.values() if shard.is_draining and not shard.out]

    def forget(self, shards: Iterable[int]) -> None:
        """They were given away."""
        for number in shards:
            self.shards.pop(number, None)

    def doubt(self) -> None:
        """Something failed: what was chosen before that is known to Redis only."""
        for shard in self.shards.values():
            shard.is_loaded = False

    async def load(self) -> None:
        """Get to know the shards that are not known (any more)."""
        if self._breaks != self.link.breaks:
            self._breaks = self.link.breaks
            self.doubt()
        for number in [shard.number for shard in self.shards.values() if not shard.is_loaded]:
            fresh = await load(self, number)
            if fresh is None:
                self.lose(number)
                continue
            fresh.is_draining = self.shards[number].is_draining
            self.shards[number] = fresh
        if self._breaks != self.link.breaks:
            raise OutboxError("redis: the connection was lost while shards were loaded")

    # ------------------------------------------------------------------------------------------- reading

    async def read(self, shards: Iterable[Shard]) -> None:
        """The next entries of these shards, and what others have put there."""
        wanted = list(shards)
        if not wanted:
            return
        words: list[int] = [READ_BYTES, READ_ENTRIES]
        for shard in wanted:
            words += (shard.number, shard.cursor + 1)
            shard.has_more = False  # what is appended from now on sets it again
        answers = await self.link.run(scripts.READ, *words)
        for shard, (more, entries, woken, blobs) in zip(wanted, answers, strict=True):
            shard.has_more = shard.has_more or bool(more)
            for number, blob in zip(woken, blobs, strict=True):
                if blob is not None:
                    shard.hold_kept(int(number), forms.kept(blob))
            for entry, left, blob in entries:
                messages = forms.unpacked(int(entry), blob)
                top = messages[-1][0]
                if int(left or 0) < len(messages):
                    messages = await self._there(messages)
                shard.read(int(entry), top, messages, self.out)
            if not shard.has_more:
                shard.read_all()

    async def _there(self, messages: list[tuple[int, Record]]) -> list[tuple[int, Record]]:
        """Those that still are in their entry."""
        ids = [record.id for _, record in messages]
        places = await self.link.ask("HMGET", f"{self.link.prefix}:ids", *ids)
        return [
            one
            for one, place in zip(messages, places, strict=True)
            if place is not None and place.startswith(b"q")
        ]

    async def entry_of(self, shard: int, number: int) -> int:
        """The entry where a message is, or was."""
        key = f"{self.link.prefix}:q:{shard}"
        found = await self.link.ask("XREVRANGE", key, number, "-", "COUNT", 1)
        return entry_number(found[0][0]) if found else number

    async def entries(self, shard: int, first: int, most: int) -> list[list[tuple[int, Record]]]:
        """The messages of a shard's entries from one on."""
        key = f"{self.link.prefix}:q:{shard}"
        found = await self.link.ask("XRANGE", key, first, "+", "COUNT", most)
        return [forms.unpacked(entry_number(entry), fields[1]) for entry, fields in found]


def entry_number(entry: bytes) -> int:
    """An entry's id without its second half, which is 0."""
    return int(entry.partition(b"-")[0])
