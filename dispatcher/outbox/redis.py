"""`RedisStore`: an outbox's store in Redis or Valkey, shared by many processes. What is asked for comes here.

Members of a fleet own shards by leases (`redis_members`); each claims from and settles what it owns
(`redis_owner`), and accepts for all (`redis_appends`). What stands in Redis is told by `redis_lua`. What
is acknowledged is as durable as that Redis makes it. Made by applications and by the sidecar; for one event
loop. The package `redis` is imported when a store is made, not before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import ConfigError, OutboxError
from dispatcher.outbox import redis_commands as commands
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_appends import Appends
from dispatcher.outbox.redis_known import Known
from dispatcher.outbox.redis_link import Link, LinkLostError, Place
from dispatcher.outbox.redis_lua import FORM
from dispatcher.outbox.redis_members import Members, News
from dispatcher.outbox.redis_owner import Limits, Owner
from dispatcher.outbox.redis_server import look_at_server
from dispatcher.outbox.store import StoreStatus
from dispatcher.outbox.waiting import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from dispatcher.outbox.store import Claim, Found, Mark, Record, Settlement

GIB: Final = 1 << 30
SHARDS_MAX: Final = 1024
LOOK_SECONDS: Final = 1.0
"""After which what others appended is found, should the news of it be lost."""

logger: Final = logging.getLogger("dispatcher.outbox")


class RedisStore:
    """A store in Redis, of one member of a fleet.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with user and password if there are any.
        name: Of the fleet's outbox: members with one name share it.
        shards: Into how many parts it is divided; fixed when it is made. A queue is in one of them, and at
            most so many members have something to do.
        max_messages: Most messages that are kept, receipts apart; of the whole fleet.
        max_bytes: Most bytes of their data.
        max_receipts: Delivered messages whose receipts are kept, about.
        keep_receipts: Seconds that they are kept at least, unless there are too many.
        lease_seconds: After which a dead member's shards go to others. Longer than the longest request and
            what precedes it: who is cut off from Redis may go on sending for so long.
        poison_cap: After so many deaths of its senders a message is a dead letter.
        wait_replicas: Replicas that must have an append before it is acknowledged.
        timeout: Seconds that Redis has to answer.

    Raises:
        ConfigError: A setting is out of its range, or the package `redis` is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "default",
        shards: int = 32,
        max_messages: int = 1_000_000,
        max_bytes: int = 2 * GIB,
        max_receipts: int = 100_000,
        keep_receipts: float = 3600.0,
        lease_seconds: float = 60.0,
        poison_cap: int = 8,
        wait_replicas: int = 0,
        timeout: float = 5.0,
    ) -> None:
        if not name or not name.isprintable() or set(name) & set("{} "):
            raise ConfigError("name", name, "printable characters without braces and spaces")
        _within("shards", shards, 1, SHARDS_MAX)
        for field, value, least in (
            ("max_messages", max_messages, 1),
            ("max_bytes", max_bytes, 1),
            ("max_receipts", max_receipts, 0),
            ("keep_receipts", keep_receipts, 0),
            ("lease_seconds", lease_seconds, 0.1),
            ("poison_cap", poison_cap, 1),
            ("wait_replicas", wait_replicas, 0),
            ("timeout", timeout, 0.05),
        ):
            _within(field, value, least)
        self.name = name
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.shards = shards
        self.lease_seconds = lease_seconds
        self._wait_replicas = wait_replicas
        self._limits = Limits(max_receipts, keep_receipts, poison_cap)
        self._place = Place(url, timeout)
        self._prefix = f"{{dispatcher:{name}}}"
        self._known = Known()
        self._bell = Bell()
        self._links = [Link(self._place, self._prefix) for _ in range(3)]
        self._pid = os.getpid()
        self._is_open = self._was_opened = False
        self._looking: asyncio.Task[None] | None = None
        self._owner: Owner
        self._appends: Appends
        self._members: Members
        self._news: News

    def __repr__(self) -> str:
        status = self.status()
        state = f"not in use: {status.failure}" if status.failure else f"{status.waiting} waiting"
        return f"<RedisStore {self.name}: {state}, {status.claimed} claimed, {status.dead} dead>"

    # ---------------------------------------------------------------------------------------- its life

    async def knock(self) -> None:
        """Ask whether Redis is there, before `open`; as often as wanted.

        Raises:
            OutboxError: It is not, not yet, or refuses the password.
        """
        await self._links[0].ask("PING")

    async def open(self) -> StoreStatus:
        """Join the fleet, and take what is free of its shards.

        Raises:
            OutboxError: Redis cannot be reached, or was set up otherwise.
        """
        if self._was_opened:
            raise OutboxError("redis: the store was opened before; make a new RedisStore")
        self._was_opened = True
        self._pid = os.getpid()
        append, own, beat = self._links
        try:
            await look_at_server(own)
            await self._set_up(own)
            member = f"{os.getpid()}-{secrets.token_hex(8)}"
            self._members = Members(
                beat, self._known, shards=self.shards, lease=self.lease_seconds, member=member
            )
            self._owner = Owner(own, member, self._known, self._bell, self._limits, self._members.is_sure)
            self._appends = self._made_appends(append)
            await self._members.start(self._owner)
        except BaseException:
            await self._close_links()
            raise
        self._known.recovered = self._known.messages - self._known.dead
        self._news = News(self._place, self._prefix, self._hear)
        self._news.start()
        self._looking = asyncio.get_running_loop().create_task(self._look())
        self._is_open = True
        self._owner.ring()
        return self.status()

    def _made_appends(self, link: Link) -> Appends:
        return Appends(
            link,
            self._known,
            shards=self.shards,
            max_messages=self.max_messages,
            max_bytes=self.max_bytes,
            wait_replicas=self._wait_replicas,
            turn=self._first_turn(),
            is_ours=lambda shard: shard in self._owner.shards,
            on_written=self._on_written,
        )

    def _first_turn(self) -> int:
        """Members begin at different shards, also those that append little and end."""
        return secrets.randbelow(self.shards)

    async def _set_up(self, link: Link) -> None:
        (form, shards), counts = await link.run(scripts.SETUP, FORM, self.shards, repr(time.time()))
        if int(form) != FORM:
            raise OutboxError(
                f"redis: the outbox {self.name} has the form {int(form)}; this version reads {FORM}: "
                "use the version that made it, or another name"
            )
        if int(shards) != self.shards:
            raise OutboxError(
                f"redis: the outbox {self.name} was made with {int(shards)} shards, and {self.shards} are "
                "wanted; every member needs the same number"
            )
        self._known.update(counts)

    async def aclose(self) -> None:
        """Do what was asked for, and give the shards to others; any number of times."""
        if not self._is_open or self._pid != os.getpid():
            return
        self._is_open = False
        self._known.failure = "it is closed"
        if self._looking is not None:
            self._looking.cancel()
        await self._appends.aclose()
        await self._members.stop()
        await self._owner.aclose()
        await self._members.leave()
        await self._close_links()
        self._bell.set(0.0)

    async def _close_links(self) -> None:
        if hasattr(self, "_news"):
            await self._news.aclose()
        for part in ("_appends", "_owner", "_members"):
            if hasattr(self, part):
                getattr(self, part).abort()
        for link in self._links:
            await link.aclose()

    async def abort(self) -> None:
        """Leave everything as a process would that is killed: leases, claims, whatever is under way."""
        self._is_open = False
        self._known.failure = "it is closed"
        if self._looking is not None:
            self._looking.cancel()
        await self._close_links()
        self._bell.set(0.0)

    # ----------------------------------------------------------------------------------------- messages

    async def append(self, records: Sequence[Record], mark: Mark | None = None) -> None:
        """Keep all of them or none; see `Store.append`."""
        self._check()
        if len(records) == 1 and len(records[0].data) > self.max_bytes:
            size = len(records[0].data)
            raise OutboxError(
                f"redis: a message of {size} bytes never fits into {self.max_bytes}: raise max_bytes"
            )
        if records or mark is not None:
            try:
                await self._appends.append(records, mark)
            except LinkLostError:
                if not self._known.failure:
                    self._members.poke()  # else it would be told as late as the next beat
                raise

    async def claim(self, messages: int, size_bytes: int, now: float) -> list[Claim]:
        """See `Store.claim`; of the shards that this member owns."""
        self._check()
        return await self._owner.claim(messages, size_bytes, now)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Store.settle`."""
        self._check()
        if settlements:
            await self._owner.settle(settlements)

    async def wait(self, now: float) -> None:
        """See `Store.wait`."""
        self._check()
        await self._bell.wait(now)

    # ----------------------------------------------------------------------------------------- commands

    async def find(self, message_id: str) -> Found | None:
        """See `Store.find`."""
        found: Found | None = await self._ask(partial(commands.find, message_id=message_id))
        return found

    async def cancel(self, message_id: str) -> bool:
        """See `Store.cancel`; whoever owns its shard."""
        return bool(await self._ask(partial(commands.cancel, message_id=message_id)))

    async def mark(self, name: str) -> bytes | None:
        """See `Store.mark`."""
        value: bytes | None = await self._ask(partial(commands.mark, name=name))
        return value

    async def dead_letters(self, after: str | None = None, limit: int = 100) -> list[Found]:
        """See `Store.dead_letters`; of the whole fleet, as are the next two."""
        found: list[Found] = await self._ask(partial(commands.dead_letters, after=after, limit=limit))
        return found

    async def retry(self, message_ids: Sequence[str] | None = None) -> int:
        """See `Store.retry`."""
        return int(await self._ask(partial(commands.retry, message_ids=message_ids)))

    async def delete(self, message_ids: Sequence[str] | None = None) -> int:
        """See `Store.delete`."""
        return int(await self._ask(partial(commands.delete, message_ids=message_ids)))

    def status(self) -> StoreStatus:
        """See `Store.status`. Of the fleet, but `claimed` and `oldest_at`, which are of this member."""
        known = self._known
        claimed = len(self._owner.out) if self._was_opened and hasattr(self, "_owner") else 0
        return StoreStatus(
            waiting=max(0, known.messages - known.dead - claimed),
            claimed=claimed,
            dead=known.dead,
            held_bytes=known.bytes - known.dead_bytes,
            dead_bytes=known.dead_bytes,
            oldest_at=self._oldest_at(),
            failure=known.failure,
            commits=known.commits,
            recovered=known.recovered,
            errors=dict(known.errors),
        )

    def _oldest_at(self) -> float | None:
        if not hasattr(self, "_owner"):
            return None
        oldest = [shard.oldest() for shard in self._owner.shards.values()]
        first = min((one for one in oldest if one is not None), default=None)
        return None if first is None else first[1]

    def is_sure(self) -> bool:
        """See `leases.Leased`: the leases were renewed less than half a lease ago."""
        return self._members.is_sure()

    @property
    def owned(self) -> int:
        """How many shards are this member's."""
        return len(self._owner.shards) if hasattr(self, "_owner") else 0

    @property
    def members(self) -> int:
        """How many members are alive, this one among them."""
        return self._members.alive if hasattr(self, "_members") else 0

    @property
    def commands(self) -> int:
        """Commands that were sent to Redis so far; a script is one."""
        return sum(link.commands for link in self._links)

    # ------------------------------------------------------------------------------------------ within

    def _check(self) -> None:
        if not self._is_open:
            raise OutboxError(f"redis: the store is {'closed' if self._was_opened else 'not open; open it'}")
        if self._pid != os.getpid():
            raise OutboxError(f"redis: the store was opened before a fork, by process {self._pid}")

    async def _ask(self, command: Callable[[Owner], Coroutine[Any, Any, Any]]) -> Any:
        self._check()

        async def run() -> Any:
            await self._owner.load()
            return await command(self._owner)

        return await self._owner.ask(run)

    def _on_written(self, written: list[tuple[int, int, float]]) -> None:
        for number, entry, accepted_at in written:
            shard = self._owner.shards.get(number)
            if shard is not None:
                shard.appended(entry, accepted_at)
        self._owner.ring()

    def _hear(self, what: str, shards: list[int]) -> None:
        """Somebody told something; nothing: what was told before may have been missed."""
        if what != "q":
            self._members.poke()
        if what == "q":
            self._look_at(shards)
        elif not what and self._members.alive > 1:
            self._look_at(list(self._owner.shards))

    def _look_at(self, shards: list[int]) -> None:
        for number in shards:
            shard = self._owner.shards.get(number)
            if shard is not None:
                shard.has_more = True
        self._owner.ring()

    async def _look(self) -> None:
        """In a fleet of several, others accept and settle, and news may be lost: look now and then."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._members.alive > 1:
                self._look_at(list(self._owner.shards))
                with suppress(OutboxError):  # the beats tell of it
                    await self._members.refresh()


def _within(name: str, value: float, least: float, most: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        bounds = f"from {least:g} up" if most == float("inf") else f"from {least:g} to {most:g}"
        raise ConfigError(name, value, f"a number {bounds}")
