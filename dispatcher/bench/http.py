"""A load straight onto an upstream or a sidecar: single publishes, or what is waiting as one batch.

A bounded number of requests is out at once, each on a connection of its own; a message that finds them all
taken waits, and that wait is counted as admission. Nothing is retried and no redirect is followed: what is
measured is what came back. Over the library's own transport, so it is the only thing here that has sockets.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from dispatcher.bench.histogram import BOUNDS
from dispatcher.bench.recorder import Gauges
from dispatcher.core.batch import Failure, Reply
from dispatcher.core.tally import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.bench.generator import Work
    from dispatcher.bench.recorder import Recorder
    from dispatcher.message import Message
    from dispatcher.transport import Transport

PUBLISH: Final = "publish"
BATCH: Final = "batch"
ERROR_ENTRY: Final = "error entry"
UNREADABLE: Final = "unreadable reply"
REFUSALS: Final = frozenset({"301", "302", "303", "307", "308", "401", "403", "404", "405"})
"""Statuses that say that the token or the URL is wrong, if there are no others."""
REFUSALS_ENOUGH: Final = 10
_HEADERS: Final = {"Content-Type": "text/plain; charset=utf-8"}


class HTTPTarget:
    """An upstream by its transport, which has been started.

    Args:
        transport: Posts one request.
        api: `publish` for one message a request, `batch` for all that wait, up to `batch_messages`.
        connections: Requests that may be out at once.
        batch_messages: In a request at most.
        timeout: Seconds that a request may take.
    """

    def __init__(
        self, transport: Transport, *, api: str, connections: int, batch_messages: int, timeout: float
    ) -> None:
        self._transport = transport
        self._size = batch_messages if api == BATCH else 1
        self._is_batch = api == BATCH
        self._connections = connections
        self._timeout = timeout
        self._out: dict[int, list[float]] = {}
        """Intended starts of each request that is out."""
        self._active = self._number = 0
        self.requests: Counter[str] = Counter()
        """By status, or the kind of failure."""
        self.seconds = Histogram(BOUNDS)
        """That they took."""
        self.messages = 0
        """That they carried."""

    async def serve(self, work: Work, recorder: Recorder) -> None:
        """Post all of it, and wait for every answer."""
        async with asyncio.TaskGroup() as group:
            while True:
                wanted = min(-(-len(work.due) // self._size), self._connections - self._active)
                for _ in range(wanted):
                    self._active += 1
                    group.create_task(self._work_off(work, recorder))
                if self._active >= self._connections:
                    work.fill(perf_counter())
                if not await work.more():
                    break

    async def _work_off(self, work: Work, recorder: Recorder) -> None:
        """One connection: request after request, as long as something waits."""
        try:
            while work.due:
                await self._post(work, recorder)
        finally:
            self._active -= 1
            work.unfill(perf_counter())

    async def _post(self, work: Work, recorder: Recorder) -> None:
        number = min(self._size, len(work.due))
        taken = [work.due.popleft() for _ in range(number)]
        messages = [next(work.messages) for _ in range(number)]
        now = perf_counter()
        full = work.full_seconds(now)
        for one in taken:
            recorder.take(one.intended, one.handed_at, full - one.full_before, now)
        self._number += 1
        key, starts = self._number, [one.intended for one in taken]
        self._out[key] = starts
        answer = await self._ask(messages)
        del self._out[key]
        self.messages += number
        self.requests[str(answer.status) if isinstance(answer, Reply) else answer.kind] += 1
        ended_at = perf_counter()
        self.seconds.observe(ended_at - now)
        for intended, error in zip(starts, self._errors(answer, number), strict=True):
            if error is None:
                recorder.deliver(intended, now, ended_at)
            else:
                recorder.fail(error, ended_at)

    async def _ask(self, messages: list[Message]) -> Reply | Failure:
        if self._is_batch:
            items = [_item(one) for one in messages]
            return await self._transport.post_batch(msgspec.json.encode(items), timeout=self._timeout)
        message = messages[0]
        assert isinstance(message.body, str)
        body, headers = message.body.encode(), tuple(_HEADERS.items())
        return await self._transport.post_single(_path(message), headers, body, timeout=self._timeout)

    def _errors(self, answer: Reply | Failure, number: int) -> list[str | None]:
        """For each message what went wrong, `None` if it was taken."""
        if isinstance(answer, Failure):
            return [answer.kind] * number
        if not 200 <= answer.status < 300:
            return [f"HTTP {answer.status}"] * number
        try:
            entries = msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            return [UNREADABLE] * number
        if not self._is_batch:
            entries = [entries]
        if not isinstance(entries, list) or len(entries) != number:
            return [UNREADABLE] * number
        return [None if _is_taken(entry) else ERROR_ENTRY for entry in entries]

    def gauges(self) -> Gauges:
        """It now."""
        held = sum(map(len, self._out.values()))
        is_refused = self.requests.total() >= REFUSALS_ENOUGH and self.requests.keys() <= REFUSALS
        state, reason = ("refused", "HTTP " + ", ".join(self.requests)) if is_refused else ("open", "")
        return Gauges(held, len(self._out), self._connections, state, reason)

    def unfinished(self) -> Iterable[float]:
        """Of requests that are still out; they have been cancelled by then."""
        left = [intended for starts in self._out.values() for intended in starts]
        self._out.clear()
        return left


def _item(message: Message) -> dict[str, Any]:
    item: dict[str, Any] = {"destination": message.destination, "body": message.body, "headers": _HEADERS}
    return item if message.queue is None else {**item, "queue": message.queue}


def _path(message: Message) -> str:
    if message.queue is None:
        return f"/v2/publish/{message.destination}"
    return f"/v2/enqueue/{quote(message.queue, safe='')}/{message.destination}"


def _is_taken(entry: object) -> bool:
    """An object with an id, or a group's array."""
    return isinstance(entry, list) or (isinstance(entry, dict) and bool(entry.get("messageId")))
