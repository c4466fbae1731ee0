"""More callers than are served at once: the bound, the line of those who wait, and who is sent away.

A client that opens a connection for each of a thousand calls repeats no 503; so who is one too many waits
unread, first come first served, as long as callers have patience. Meanwhile idle connections are closed and
answers close theirs, so that places come free. Owned by `server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from dispatcher.sidecar.refusals import raw_refusal

if TYPE_CHECKING:
    import asyncio

    from dispatcher.sidecar.settings import ServeSettings

TURNED_AWAY_MAX: Final = 64
"""Callers that are told at once that there are too many; more are reset."""
LINGER_SECONDS: Final = 1.0
"""How long one who is sent away has to read it."""


class Caller(Protocol):
    """A connection that may have to wait."""

    def enter(self, transport: asyncio.Transport, early: bytes) -> None:
        """There is a place: serve it, from what it has sent already."""
        ...


class Waiting:
    """One who waits."""

    __slots__ = ("early", "timer", "transport")

    def __init__(self, transport: asyncio.Transport, timer: asyncio.TimerHandle) -> None:
        self.transport = transport
        self.timer = timer
        self.early = b""
        """What it sent before the system was told to keep the rest."""


class Counters(Protocol):
    """Where it is counted."""

    def request(self, route: str, status: int) -> object: ...

    def connection(self, change: int) -> object: ...


class Crowd:
    """Callers that are served, and those that wait to be."""

    def __init__(self, serve: ServeSettings, counters: Counters, loop: asyncio.AbstractEventLoop) -> None:
        self.serve = serve
        self.opened = 0
        """Connections that are served now."""
        self._counters = counters
        self._loop = loop
        self._line: dict[Caller, Waiting] = {}
        self._turned_away = 0

    @property
    def waits(self) -> bool:
        """Somebody waits for a place."""
        return bool(self._line)

    def admit(self, caller: Caller, transport: asyncio.Transport) -> bool:
        """Serve a new connection now; else it waits, or is sent away, and hears of it in time."""
        most = self.serve.max_connections
        if self.opened < most and not self._line:
            self._count(1)
            return True
        if len(self._line) >= most:
            self._send_away(transport)
            return False
        timer = self._loop.call_later(self.serve.patience, self._give_up, caller)
        self._line[caller] = Waiting(transport, timer)
        return False

    def hear(self, caller: Caller, data: bytes) -> None:
        """Something came from one who is not served. (Not all loops let it be stopped before.)"""
        waiting = self._line.get(caller)
        if waiting is not None:
            waiting.early += data
            waiting.transport.pause_reading()

    def release(self) -> None:
        """A connection that was served has ended: the next one has its place."""
        self._count(-1)
        while self._line and self.opened < self.serve.max_connections:
            caller = next(iter(self._line))
            waiting = self._take(caller)
            self._count(1)
            caller.enter(waiting.transport, waiting.early)

    def leave(self, caller: Caller) -> None:
        """It has gone while it waited, if it did."""
        if caller in self._line:
            self._take(caller)

    def dismiss(self) -> None:
        """Nobody is served any more."""
        for caller in list(self._line):
            self._give_up(caller)

    def _take(self, caller: Caller) -> Waiting:
        waiting = self._line.pop(caller)
        waiting.timer.cancel()
        if waiting.early:
            waiting.transport.resume_reading()
        return waiting

    def _give_up(self, caller: Caller) -> None:
        self._send_away(self._take(caller).transport)

    def _send_away(self, transport: asyncio.Transport) -> None:
        self._counters.request("refused", 503)
        if self._turned_away >= TURNED_AWAY_MAX:
            transport.abort()
            return
        self._turned_away += 1
        most = self.serve.max_connections
        transport.write(raw_refusal(503, f"there are {most} connections already, the most that are served"))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(LINGER_SECONDS, self._drop, transport)

    def _drop(self, transport: asyncio.Transport) -> None:
        self._turned_away -= 1
        transport.abort()

    def _count(self, change: int) -> None:
        self.opened += change
        self._counters.connection(change)
