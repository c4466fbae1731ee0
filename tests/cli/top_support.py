"""What the tests of `dispatcher top` share: the command in a pseudo-terminal, and an emulator's screen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import sys
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import orjson
import pyte

from dispatcher.sidecar.feed import event
from tests.sidecar.daemon_support import PATIENCE_SECONDS, environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ALTERNATE_SCREEN = 1049 << 5
CURSOR_SHOWN = 25 << 5
"""Modes of a terminal, as the emulator numbers private ones."""
ADOPT = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)
"""Makes standard input the terminal of the session, where Ctrl-C is a signal, and becomes the command."""
EXAMPLE: dict[str, Any] = {
    "version": "0.1.0",
    "name": "default",
    "at": 1_000_000.0,
    "uptime": 3_725.0,
    "phase": "ready",
    "gate": {
        "state": "open",
        "reason": "",
        "paused_for": 0.0,
        "stopped_queues": [],
        "stopped_queues_total": 0,
    },
    "rates": {
        "taken": 1234.5,
        "delivered": 1200.0,
        "failed": 0.25,
        "requests": 12.3,
        "intake": 1240.0,
        "messages_per_request": 97.6,
    },
    "latency": {"message": {"p50": 0.0123, "p99": 1.5}, "request": {"p50": 0.01, "p99": None}},
    "held": {
        "messages": 9_000,
        "messages_limit": 10_000,
        "bytes": 2_000_000,
        "bytes_limit": 64_000_000,
        "oldest_age": 2.5,
        "waiting_for_room": 3,
    },
    "in_flight": {"requests": 12, "limit": 16, "limit_max": 256},
    "messages": {
        "taken": 123_456,
        "delivered": 114_000,
        "failed": 7,
        "refused": {"queue_full": 2},
        "finished": {"delivered": 114_000, "rejected": 7},
        "retried": {"throttled": 30},
    },
    "requests": {"by_code": {"200": 1_200, "429": 5, "timeout": 1}},
    "intake": {
        "requests": {"publish": {"200": 114_000, "400": 7}},
        "sent_alone": {"too_large": 4},
        "waiting": 1,
        "connections": 40,
        "recent_failures": [
            {
                "outcome": "rejected",
                "status": 400,
                "certainty": "not_accepted",
                "number": 7,
                "at": 999_990.0,
                "reason": "the message to https://example.com/hook was rejected with 400: invalid",
                "last": "",
            },
        ],
    },
    "outbox": {
        "waiting": 9_000,
        "claimed": 100,
        "dead": 1,
        "oldest_age": 2.6,
        "disk_bytes": 17_000_000,
        "free_bytes": 79_000_000_000,
        "failure": "",
        "death": "",
        "dead_letters": [
            {
                "messageId": "out_1",
                "acceptedAt": 999_980.0,
                "reason": "400: invalid",
                "destination": "https://example.com/hook",
                "attempts": [{"after": 0.1, "outcome": "400", "duration": 0.03}],
            },
        ],
    },
    "events": [{"at": 999_000.0, "phase": "ready", "state": "open", "reason": "", "stopped_queues": 0}],
    "sample": {"at": 1_000_000.0, "taken": 8.0, "delivered": 4.0, "failed": 0.0},
}
"""A report as a listener gives it, everything in it told from everything else."""


def example(**changes: Any) -> dict[str, Any]:
    """It anew, with other parts: `gate={"state": "halted"}` changes one field of a part."""
    made: dict[str, Any] = orjson.loads(orjson.dumps(EXAMPLE))
    for name, change in changes.items():
        made[name] = {**made[name], **change} if isinstance(change, dict) else change
    return made


def stream(*reports: dict[str, Any]) -> bytes:
    """What a listener answers: a stream of events."""
    history: dict[str, list[float]] = {name: [] for name in ("at", "taken", "delivered", "failed")}
    events = [("history", history), *(("status", one) for one in reports)]
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\nretry: 2000\n\n"
    return head + b"".join(event(name, data) for name, data in events)


@asynccontextmanager
async def answering(
    answer: bytes, *, hang_up: bool = False, asked: list[bytes] | None = None
) -> AsyncIterator[str]:
    """A listener that gives every request the same answer, and notes what it was asked; its address."""

    serving = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            if asked is not None:
                asked.append(request)
            writer.write(answer)
            await writer.drain()
            if not hang_up:
                await reader.read()
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it was enough
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


class Top:
    """A running `dispatcher top` and the screen before it."""

    def __init__(self, master: int, slave: int, columns: int, lines: int) -> None:
        self._master, self._slave = master, slave
        self.screen = pyte.Screen(columns, lines)
        self._emulator = pyte.ByteStream(self.screen)
        self.written = bytearray()
        """Everything that came."""
        self.process: asyncio.subprocess.Process
        self.modes_before = self.modes
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size; the kernel tells the process."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> None:
        """Take in what has come."""
        data = os.read(self._master, 65_536)
        self.written += data
        self._emulator.feed(data)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    @property
    def text(self) -> str:
        """The lines of the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def link(self) -> str:
        """What the first line says at its end of the one listener."""
        return (self.screen.display[0].split() or [""])[-1]

    @property
    def modes(self) -> list[Any]:
        """Of the line: echo and the like."""
        return termios.tcgetattr(self._slave)

    @property
    def is_drawn_on(self) -> bool:
        """The alternate screen is shown, the cursor is not."""
        return ALTERNATE_SCREEN in self.screen.mode and CURSOR_SHOWN not in self.screen.mode

    def colours_of(self, words: str) -> set[tuple[str, str]]:
        """Foregrounds and backgrounds of words on the screen."""
        for number, line in enumerate(self.screen.display):
            if words in line:
                begin = line.index(words)
                cells = [self.screen.buffer[number][begin + place] for place in range(len(words))]
                return {(cell.fg, cell.bg) for cell in cells}
        raise AssertionError(f"{words!r} is not on the screen:\n{self.text}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something on the screen; the process must not end before."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    assert self.process.returncode is None, self.text
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"never came; the screen:\n{self.text}") from None

    async def shows(self, *words: str) -> None:
        """Wait until all of these are on the screen."""
        await self.until(lambda: all(one in self.text for one in words))

    async def ended(self) -> int:
        """Wait for its exit code, and for all that it has written."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            code = await self.process.wait()
            while self.is_drawn_on:
                await asyncio.sleep(0.01)
        return code


@asynccontextmanager
async def watching(*words: str, size: tuple[int, int] = (80, 24), **others: str) -> AsyncIterator[Top]:
    """`dispatcher top` in a terminal of its own, while the context lasts."""
    master, slave = pty.openpty()
    top = Top(master, slave, *size)
    env = environment(None, None, TERM="xterm-256color", **others)
    if "NO_COLOR" not in others:
        env.pop("NO_COLOR", None)
    loop = asyncio.get_running_loop()
    top.process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ADOPT, "-m", "dispatcher", "top", *words),
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    loop.add_reader(master, top.read)
    try:
        yield top
    finally:
        if top.process.returncode is None:
            top.process.kill()
        await top.process.wait()
        loop.remove_reader(master)
        os.close(slave)
        os.close(master)
