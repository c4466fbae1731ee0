"""A `Transport` that says what a test tells it to, and remembers what it was asked; part of `testing`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from dispatcher.core.batch import Failure, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Answer = Reply | Failure


class Single(msgspec.Struct, frozen=True):
    """A request that carried one message by itself."""

    target: str
    headers: tuple[tuple[str, str], ...]
    """Lines; a name may occur more than once."""
    body: bytes


class ScriptedTransport:
    """Answers each request by the next line of its script; when that has ended, accepts everything.

    Args:
        script: For each request a status, a `Reply`, a `Failure`, an exception to raise, or a function of the
            request's items that gives a `Reply` or a `Failure`.

    ::

        transport = ScriptedTransport(503, Failure("connect", "refused", "not_sent"))
        async with Dispatcher(config, transport=transport) as dispatcher:
            await dispatcher.send(Message("https://example.com/hook"))
        assert len(transport.batches) == 3
    """

    def __init__(
        self, *script: int | Answer | BaseException | Callable[[list[dict[str, Any]]], Answer]
    ) -> None:
        self._script = list(script)
        self._gate = asyncio.Event()
        self._gate.set()
        self._accepted = 0
        self.batches: list[list[dict[str, Any]]] = []
        """The items of each batch, in the order of the requests."""
        self.singles: list[Single] = []
        self.is_open = False
        self.tokens: list[str] = []
        """Every token that was set, in order."""

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._gate.clear()

    def release(self) -> None:
        """Answer what is held, and go on."""
        self._gate.set()

    async def start(self) -> None:
        """Part of `Transport`."""
        self.is_open = True

    async def aclose(self) -> None:
        """Part of `Transport`."""
        self.is_open = False

    def set_token(self, token: str) -> None:
        """Part of `Transport`."""
        self.tokens.append(token)

    async def post_batch(self, body: bytes, *, timeout: float) -> Answer:
        """Part of `Transport`: the next line of the script."""
        items: list[dict[str, Any]] = orjson.loads(body)
        self.batches.append(items)
        return await self._answer(items, wrapped=True)

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Answer:
        """Part of `Transport`: the next line of the script."""
        self.singles.append(Single(target, tuple(headers), body))
        return await self._answer([{"destination": target, "headers": dict(headers)}], wrapped=False)

    async def _answer(self, items: list[dict[str, Any]], *, wrapped: bool) -> Answer:
        line = self._script.pop(0) if self._script else 200
        await self._gate.wait()
        if isinstance(line, BaseException):
            raise line
        if isinstance(line, Reply | Failure):
            return line
        if not isinstance(line, int):
            return line(items)
        if not 200 <= line < 300:
            return Reply(line, orjson.dumps({"error": f"scripted {line}"}))
        entries = []
        for _ in items:
            self._accepted += 1
            entries.append({"messageId": f"msg_{self._accepted}"})
        return Reply(line, orjson.dumps(entries if wrapped else entries[0]))
