"""Accepting: appends that are asked for while one is under way are packed and written together.

Over a connection of its own, beside the owner's. All of a group are kept, or, where something about one of
them is wrong, each for itself: an id that is there already refuses its own append, and no other. What was
asked and not answered is not promised, and may have been kept. Used by `redis`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import OutboxError, StoreFull
from dispatcher.outbox import redis_scripts as scripts
from dispatcher.outbox.redis_forms import packed
from dispatcher.outbox.redis_link import UnfitError
from dispatcher.outbox.redis_worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.outbox.redis_forms import Entry
    from dispatcher.outbox.redis_known import Known
    from dispatcher.outbox.redis_link import Link, Word
    from dispatcher.outbox.store import Mark, Record

GROUP_MESSAGES: Final = 1000
GROUP_BYTES: Final = 4 << 20
TWICE: Final = "an id is there already; every message needs its own"


class Append:
    """One call."""

    __slots__ = ("future", "mark", "records", "size")

    def __init__(self, records: Sequence[Record], mark: Mark | None, future: asyncio.Future[None]) -> None:
        self.records = records
        self.mark = mark
        self.size = sum([len(record.data) for record in records])
        self.future = future


class Appends(Worker):
    """The appends of one store.

    Args:
        link: Its own.
        on_written: Called for each entry with its shard, its number, and its first message's acceptance.
        is_ours: Whether a shard is owned here, so that nobody else need be told.
        turn: A shard to begin with.
    """

    def __init__(
        self,
        link: Link,
        known: Known,
        *,
        shards: int,
        max_messages: int,
        max_bytes: int,
        wait_replicas: int,
        turn: int,
        is_ours: Callable[[int], bool],
        on_written: Callable[[list[tuple[int, int, float]]], None],
    ) -> None:
        self._link = link
        self._known = known
        self._shards = shards
        self._bounds = (max_messages, max_bytes)
        self._wait_replicas = wait_replicas
        self._turn = turn
        self._is_ours = is_ours
        self._on_written = on_written
        self._waiting: list[Append] = []
        super().__init__()

    def append(self, records: Sequence[Record], mark: Mark | None) -> asyncio.Future[None]:
        """Keep all of them or none, and the mark."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Append(records, mark, future))
        self._has_work.set()
        return future

    async def _do_all(self) -> None:
        while group := self._next_group():
            await self._write_or_divide(group)

    def _next_group(self) -> list[Append]:
        """What goes together; what nobody waits for any more is left out."""
        group: list[Append] = []
        messages = size = taken = 0
        for one in self._waiting:
            messages += len(one.records)
            size += one.size
            if group and (messages > GROUP_MESSAGES or size > GROUP_BYTES):
                break
            taken += 1
            if not one.future.cancelled():
                group.append(one)
        del self._waiting[:taken]
        return group

    async def _write_or_divide(self, group: list[Append]) -> None:
        error = await self._tried(group)
        if error is not None and len(group) > 1 and not error.is_general:
            for one in group:
                alone = await self._tried([one])
                _tell([one], alone)
            return
        _tell(group, error)

    async def _tried(self, group: list[Append]) -> _RefusedError | None:
        """Write these together; why they were refused, if they were."""
        try:
            return await self._write(group)
        except UnfitError as error:
            return _RefusedError(OutboxError(str(error)), is_general=False)
        except OutboxError as error:
            self._known.failed("append")
            return _RefusedError(error, is_general=True)
        except (UnicodeError, TypeError, ValueError) as error:
            words = f"a record cannot be kept: {type(error).__name__}; ids and queues are text, data is bytes"
            return _RefusedError(OutboxError(words), is_general=False)

    async def _write(self, group: list[Append]) -> _RefusedError | None:
        records = group[0].records if len(group) == 1 else [one for each in group for one in each.records]
        ids = [record.id for record in records]
        if len(set(ids)) < len(ids):
            return _RefusedError(OutboxError(TWICE), is_general=False)
        size = sum(one.size for one in group)
        entries, self._turn = packed(records, self._shards, self._turn)
        words = self._words(group, ids, size, entries)
        answer = await self._ask(words)
        if answer[0] == b"ok":
            self._known.commits += 1
            self._known.update(answer[2])
            self._tell_written(int(answer[1]), entries, records)
            return None
        return self._refused(answer)

    def _words(self, group: list[Append], ids: list[str], size: int, entries: list[Entry]) -> list[Word]:
        foreign = sorted({entry.shard for entry in entries if not self._is_ours(entry.shard)})
        news = f"q {' '.join(map(str, foreign))}" if foreign else ""
        marks = [one.mark for one in group if one.mark is not None]
        words: list[Word] = [*self._bounds, size, news, len(marks)]
        for mark in marks:
            words += (mark.name, mark.value)
        words.append(len(ids))
        words += ids
        words.append(len(entries))
        for shard, blob, offsets in entries:
            words += (shard, len(offsets), blob)
            words += offsets
        return words

    async def _ask(self, words: list[Word]) -> Any:
        answer = await self._link.run(scripts.APPEND, *words)
        if self._wait_replicas and answer[0] == b"ok":
            have = await self._link.ask("WAIT", self._wait_replicas, int(self._link.timeout * 500))
            if have < self._wait_replicas:
                raise OutboxError(
                    f"redis: {have} of {self._wait_replicas} replicas have it; it may be lost in a failover, "
                    "and may be sent all the same"
                )
        return answer

    def _tell_written(self, base: int, entries: list[Entry], records: Sequence[Record]) -> None:
        written = [
            (entry.shard, base + entry.offsets[0], records[entry.offsets[0]].accepted_at) for entry in entries
        ]
        if written:
            self._on_written(written)

    def _refused(self, answer: Any) -> _RefusedError:
        if answer[0] == b"twice":
            return _RefusedError(OutboxError(TWICE), is_general=False)
        messages, size = int(answer[1]), int(answer[2])
        most, most_bytes = self._bounds
        words = (
            f"redis: {messages} of {most} messages and {size} of {most_bytes} bytes are kept; "
            "there is room again when some are settled, or dead ones deleted"
        )
        return _RefusedError(StoreFull(words), is_general=False)


class _RefusedError(Exception):
    """Why a group was not kept."""

    def __init__(self, error: OutboxError, *, is_general: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_general = is_general
        """It is not about what was given: each for itself would fare no better."""


def _tell(group: list[Append], refused: _RefusedError | None) -> None:
    for one in group:
        if one.future.done():
            continue
        if refused is None:
            one.future.set_result(None)
        else:
            one.future.set_exception(type(refused.error)(str(refused.error)))
