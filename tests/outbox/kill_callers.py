"""Callers of a sidecar that will be killed: what each hands in, by which door, and what it was answered.

A caller of a queue hands in one request after the other, so that its order is defined; what belongs to no
queue comes from several callers at once. Acknowledged is what was answered with an id and read to its end; a
request whose answer was lost is not repeated, for that would be another message. Used by `kill_serve`.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from tests.outbox.kill_child import LANES, PAUSE_SECONDS, URL, bodies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

CALLERS_WITHOUT_QUEUE = 4
ITEMS_MAX = 30
CLOSING = 503
"""Nothing more is accepted."""


class Callers:
    """All those of one life of the sidecar."""

    def __init__(self, token: str, round_: int, rng: Random) -> None:
        self.handed_in: list[str] = []
        self.acknowledged: dict[str, str] = {}
        """Ids by bodies."""
        self._headers = {"Authorization": f"Bearer {token}"}
        self._round = round_
        self._rng = rng

    async def run(self, intake: str) -> None:
        """Hand in at this URL until there is nothing left, or nobody answers any more."""
        async with (
            aiohttp.ClientSession(intake, headers=self._headers) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for lane in LANES:
                left = iter(bodies(self._round, lane))
                for _ in range(1 if lane else CALLERS_WITHOUT_QUEUE):
                    tasks.create_task(self._call(session, lane, left))

    async def _call(self, session: aiohttp.ClientSession, lane: str | None, left: Iterator[str]) -> None:
        ways = (self._publish, self._batch, self._stream)
        try:
            while True:
                way, most = self._rng.choice(ways), self._rng.randint(2, ITEMS_MAX)
                some = list(islice(left, 1 if way == self._publish else most))
                if not some:
                    return
                self.handed_in += some
                if await way(session, lane, some, self._preference()) == CLOSING:
                    return
                await asyncio.sleep(self._rng.uniform(0.0, PAUSE_SECONDS))
        except (aiohttp.ClientError, ConnectionError):
            return  # it was killed

    def _preference(self) -> dict[str, str]:
        return {"Prefer": "respond-async"} if self._rng.random() < 0.5 else {}

    # ------------------------------------------------------------------------------------------------ doors

    async def _publish(
        self, session: aiohttp.ClientSession, lane: str | None, some: list[str], headers: dict[str, str]
    ) -> int:
        path = f"publish/{URL}" if lane is None else f"enqueue/{lane}/{URL}"
        async with session.post(f"/v2/{path}", data=some[0], headers=headers) as response:
            self._take(some[0], await response.json())
            return response.status

    async def _batch(
        self, session: aiohttp.ClientSession, lane: str | None, some: list[str], headers: dict[str, str]
    ) -> int:
        items = [item(body, lane) for body in some]
        async with session.post("/v2/batch", json=items, headers=headers) as response:
            said = await response.json()
            if isinstance(said, list):
                for body, entry in zip(some, said, strict=True):
                    self._take(body, entry)
            return response.status

    async def _stream(
        self, session: aiohttp.ClientSession, lane: str | None, some: list[str], headers: dict[str, str]
    ) -> int:
        text = b"".join(orjson.dumps(item(body, lane)) + b"\n" for body in some)
        headers = {**headers, "Content-Type": "application/x-ndjson"}
        async with session.post("/v2/batch", data=text, headers=headers) as response:
            left = iter(some)
            async for line in response.content:
                if line.endswith(b"\n"):  # what was cut off was not said
                    self._take(next(left), orjson.loads(line))
            return response.status

    def _take(self, body: str, entry: dict[str, Any]) -> None:
        if "messageId" in entry:
            self.acknowledged[body] = entry["messageId"]


def item(body: str, lane: str | None) -> dict[str, str]:
    """As `/v2/batch` takes it."""
    return {"destination": URL, "body": body, **({"queue": lane} if lane else {})}
