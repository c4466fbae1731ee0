"""Who owns which shard: leases that are renewed, taken when they are free, and given away to who joins.

Each member aims at a fair share: shards divided by the members that are alive, rounded up. What it has beyond
that it drains (nothing more is claimed from it) and gives away once nothing of it is out. A member that
dies keeps its shards until their leases end. One whose renewals fail stops claiming after half a
lease, by its own clock and before Redis lets others in. Used by `redis`; the owner does what is decided here.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import OutboxError
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_known import COUNTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.outbox.redis_known import Known
    from dispatcher.outbox.redis_link import Link, Place
    from dispatcher.outbox.redis_owner import Owner

AGAIN_SECONDS: Final = 0.2
"""After a beat that failed; twice as long each time, up to `AGAIN_SECONDS_MAX`."""
AGAIN_SECONDS_MAX: Final = 2.0
SHORT_SECONDS: Final = 1.0
"""Between looks for shards that others give away, while there are fewer than a fair share."""
LATE_SECONDS: Final = 0.02
"""After somebody's lease has ended, by Redis' clock."""

logger: Final = logging.getLogger("dispatcher.outbox")


class Members:
    """One member's leases.

    Args:
        link: Its own: a beat must not wait for anything else.
        lease: Seconds.
    """

    def __init__(self, link: Link, known: Known, *, shards: int, lease: float, member: str) -> None:
        self.alive = 0
        """Members, as of the last beat."""
        self.owned: set[int] = set()
        """Shards whose leases are ours, as of the last beat."""
        self._link = link
        self._known = known
        self._shards = shards
        self._lease = lease
        self._member = member
        self._owner: Owner
        self._sure_until = 0.0
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def is_sure(self) -> bool:
        """Whether the leases are still far from their ends."""
        return asyncio.get_running_loop().time() < self._sure_until

    async def start(self, owner: Owner) -> None:
        """Take what is free, and go on from then."""
        self._owner = owner
        owner.on_change = self.poke
        pause = await self._beat()
        self._task = asyncio.get_running_loop().create_task(self._run(pause))

    def poke(self) -> None:
        """Something may have changed: beat now."""
        self._poked.set()

    async def refresh(self) -> None:
        """Ask how many messages the fleet has now. Raises `OutboxError`."""
        self._known.update(await self._link.ask("HMGET", f"{self._link.prefix}:count", *COUNTS))

    def abort(self) -> None:
        """End at once, as a process would that is killed."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """No more beats."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def leave(self) -> None:
        """Give everything away; what cannot be given ends with its lease."""
        try:
            await self._link.run(scripts.RELEASE, self._member, "1", *sorted(self.owned))
        except OutboxError as error:
            logger.warning("outbox: leases could not be given back, and end by themselves: %s", error)
        self.owned.clear()

    async def _run(self, pause: float) -> None:
        failed = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._poked.wait()
            self._poked.clear()
            try:
                pause = await self._beat()
                failed = 0
            except OutboxError as error:
                self._known.failure = str(error)
                if not failed:
                    logger.warning("outbox: %s", error)
                pause = min(AGAIN_SECONDS * 2.0 ** min(failed, 8), AGAIN_SECONDS_MAX, self._lease / 6)
                failed += 1

    async def _beat(self) -> float:
        """A sign of life, and what follows from the answer; seconds until the next."""
        began = asyncio.get_running_loop().time()
        await self._give_away()
        answer = await self._link.run(
            scripts.BEAT,
            self._member,
            int(self._lease * 1000),
            self._shards,
            len(self.owned),
            *sorted(self.owned),
        )
        alive, share, lost, taken, soonest, counts = answer
        self._sure_until = began + self._lease / 2
        self.alive = alive
        self._known.failure = ""
        self._known.update(counts)
        await self._follow([int(one) for one in lost], [int(one) for one in taken])
        self._drain(share)
        return self._pause(share, soonest)

    async def _follow(self, lost: list[int], taken: list[int]) -> None:
        self.owned.difference_update(lost)
        self.owned.update(taken)
        if not lost and not taken:
            return

        async def follow() -> None:
            for number in lost:
                self._owner.lose(number)
            await self._owner.take(taken)

        await self._owner.ask(follow)

    def _drain(self, share: int) -> None:
        """Mark as many as are too many; those that have the least out first. Fewer members: none."""
        shards = self._owner.shards
        draining = [one for one in shards.values() if one.is_draining]
        excess = len(self.owned) - share - len(draining)
        if excess > 0:
            others = [one for one in shards.values() if not one.is_draining]
            for shard in sorted(others, key=lambda one: one.out)[:excess]:
                shard.is_draining = True
            self.poke()  # what has nothing out can go at once
        elif excess < 0:
            for shard in draining[:-excess]:
                shard.is_draining = False

    async def _give_away(self) -> None:
        """What is drained goes to whoever takes it."""

        async def give_away() -> list[int]:
            drained = self._owner.drained()
            if drained:
                await self._owner.link.run(scripts.RELEASE, self._member, "0", *drained)
                self._owner.forget(drained)
            return drained

        if any(one.is_draining for one in self._owner.shards.values()):
            self.owned.difference_update(await self._owner.ask(give_away))

    def _pause(self, share: int, soonest: int) -> float:
        pause = self._lease / 3
        if len(self.owned) < share:
            pause = min(pause, SHORT_SECONDS)
            if soonest >= 0:
                pause = min(pause, soonest / 1000 + LATE_SECONDS)
        return pause


class News:
    """Listens to what other members tell; what is missed is found by looking, a little later."""

    def __init__(self, place: Place, prefix: str, hear: Callable[[str, list[int]], None]) -> None:
        self._place = place
        self._channel = f"{prefix}:news"
        self._hear = hear
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            self._connection = self._place.connection()
            try:
                await self._listen()
            except Exception as error:  # whatever ended it, it is begun again
                logger.debug("outbox: the news ended: %s", type(error).__name__)
            finally:
                with suppress(Exception):
                    await self._connection.disconnect(nowait=True)
            await asyncio.sleep(AGAIN_SECONDS_MAX)

    async def _listen(self) -> None:
        connection = self._connection
        await connection.connect()
        await connection.send_command("SUBSCRIBE", self._channel, check_health=False)
        self._hear("", [])
        while True:
            kind, _, said = await connection.read_response(disable_decoding=True)
            if kind == b"message":
                what, *shards = said.decode().split()
                self._hear(what, [int(shard) for shard in shards])
