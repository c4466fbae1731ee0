"""Lives of a process over one store: each ends in the middle of something, the last one sends what is left.

Seeded, in one process: from the instant of a crash on nothing of that life reaches the store or the upstream.
The upstream refuses, loses replies, and knows ids; real processes are killed elsewhere.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from dispatcher import Config, Dispatcher, Message
from dispatcher.core.batch import Failure, Reply
from dispatcher.outbox import MemoryStore, Outbox, judging, relay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

URL = "https://example.com/hook"
LIVES = 6
WITHIN = 0.01
"""Seconds that one try of a message has."""
MESSAGES = 40
"""That each life accepts at most."""


class Upstream:
    """The service: it takes an id once, refuses some requests, and loses some of its replies."""

    def __init__(self, rng: Random) -> None:
        self.taken: dict[str, str] = {}
        """Body by id, in the order in which they were taken."""
        self._rng = rng

    def answer(self, items: list[dict[str, Any]]) -> Reply | Failure:
        """To one batch."""
        luck = self._rng.random()
        if luck < 0.1:
            return Reply(503, b'{"error":"busy"}')
        entries = []
        for item in items:
            identity = item["headers"]["Upstash-Deduplication-Id"]
            entry: dict[str, Any] = {"messageId": f"msg_{identity}"}
            if identity in self.taken:
                entry["deduplicated"] = True
            self.taken.setdefault(identity, item["body"])
            entries.append(entry)
        if luck < 0.25:
            return Failure("disconnect", "the reply was lost", "unknown")
        return Reply(200, orjson.dumps(entries))


class Life:
    """One process: its way to the upstream and to the store, both of which end with it."""

    def __init__(self, upstream: Upstream, store: MemoryStore, rng: Random) -> None:
        self.is_over = False
        self._upstream = upstream
        self._store = store
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        found: Any = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def through(*given: Any) -> Any:
            await self._pause()
            result = await found(*given)
            await self._pause()  # it is done, and whoever asked may never hear of it
            return result

        return through

    async def _pause(self) -> None:
        for _ in range(self._rng.randint(0, 2)):
            await asyncio.sleep(0)
        if self.is_over:
            await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        """A store is closed, and a connection pool; a crash closes neither."""

    async def start(self) -> None:
        """Part of `Transport`."""

    def set_token(self, token: str) -> None:
        """Part of `Transport`."""

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        """Part of `Transport`."""
        await self._pause()
        if self._rng.random() < 0.1:
            await asyncio.sleep(2 * WITHIN)  # and what it carries comes back to the store
            await self._pause()
        answer = self._upstream.answer(orjson.loads(body))
        await self._pause()
        return answer

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Reply | Failure:
        """Part of `Transport`; no message here leaves alone."""
        raise AssertionError(target)


def configured(messages: int) -> Config:
    """Short of time, so that much comes back."""
    return Config.load(
        env={}, token="t", retry_base=0.002, deliver_within=WITHIN, batch_max_messages=messages
    )


async def live(life: Life, accepted: list[tuple[str, str]], rng: Random, number: int) -> None:
    """Accept some messages, and crash at some point of it."""
    dispatcher = Dispatcher(
        configured(rng.choice([3, 100])),
        transport=life,  # a store and a transport in one
    )
    await dispatcher.start()
    outbox = Outbox(life, dispatcher)
    await outbox.start()

    async def produce(queue: str | None) -> None:
        for n in range(rng.randint(1, MESSAGES)):
            body = f"{number}.{n}.{queue}"
            stored = await outbox.put(Message(URL, body=body, queue=queue))
            accepted.append((stored.id, body))

    producers = [asyncio.ensure_future(produce(queue)) for queue in (None, "a", "b")]
    for _ in range(rng.randint(1, 400)):
        await asyncio.sleep(rng.choice([0, 0, 0, 0.0005]))
    life.is_over = True
    for one in producers:
        one.cancel()
    while rest := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in rest:  # again and again: some begin others as they end
            task.cancel()
        await asyncio.wait(rest, timeout=0.01)


async def finish(store: MemoryStore, upstream: Upstream) -> None:
    """The last life: it sends all that is left, and closes."""
    life = Life(upstream, store, Random(len(upstream.taken)))
    async with (
        Dispatcher(configured(3), transport=life) as dispatcher,
        Outbox(life, dispatcher),
        asyncio.timeout(30),
    ):
        await _until(lambda: not store.status().waiting and not store.status().claimed)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def ended(coroutine: Any) -> None:
    """Run it in a loop of its own, all of whose tasks end with it, as with a process."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda *_: None)  # what dies of the crash is no news
        runner.run(coroutine)


@pytest.mark.parametrize("seed", range(40))
def test_what_was_accepted_is_taken_once_and_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was going on as the process ended, however often it did."""
    monkeypatch.setattr(judging, "RETURN_SECONDS", 0.005)
    monkeypatch.setattr(judging, "RETURN_SECONDS_MAX", 0.02)
    monkeypatch.setattr(relay, "CLAIMED_AT_ONCE", 1 + seed % 30)
    rng = Random(seed)
    upstream, store = Upstream(rng), MemoryStore()
    accepted: list[tuple[str, str]] = []
    for number in range(LIVES):
        ended(live(Life(upstream, store, rng), accepted, rng, number))
    ended(finish(store, upstream))
    bodies = list(upstream.taken.values())
    assert len(set(bodies)) == len(bodies), "something was taken under two ids"
    assert {identity for identity, _ in accepted} <= upstream.taken.keys(), "something was lost"
    assert store.status().dead == 0
    for queue in "ab":
        mine = [body for body in bodies if body.endswith(queue)]
        assert mine == sorted(mine, key=_place), f"queue {queue} is out of order"


def _place(body: str) -> tuple[int, int]:
    life, number, _ = body.split(".")
    return int(life), int(number)
