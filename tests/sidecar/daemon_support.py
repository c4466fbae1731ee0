"""What the tests of the daemon share: `dispatcher serve` as a real process, its log read as it comes."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

TOKEN = "test-token"
DESTINATION = "https://example.com/hook"
PATIENCE_SECONDS = 30.0
ADOPT = (
    "import fcntl, os, sys\n"
    "descriptors = [int(one) for one in sys.argv[1].split(',')]\n"
    "kept = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in descriptors]\n"
    "for place, one in enumerate(kept): os.dup2(one, 3 + place, inheritable=True)\n"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)))\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])\n"
)
"""Puts descriptors where a service manager puts them, by way of free places, and becomes the command."""


def environment(url: str | None, token: str | None = TOKEN, **others: str) -> dict[str, str]:
    """This process's, without settings and without a service manager."""
    dropped = ("QSTASH_", "DISPATCHER_", "LISTEN_", "NOTIFY_", "WATCHDOG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    given = {"QSTASH_URL": url, "QSTASH_TOKEN": token, **others}
    return {**kept, **{name: value for name, value in given.items() if value is not None}}


class Sidecar:
    """A running `dispatcher serve`."""

    def __init__(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.session = session
        self.records: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self.intake = self.admin = ""

    @property
    def log(self) -> str:
        """All of it, as one text."""
        return "\n".join([*(record["message"] for record in self.records), *self.other_lines])

    async def read(self) -> None:
        """Take the log in until it ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                self.other_lines.append(line.decode().rstrip("\n"))
                continue
            self.records.append(record)
            words = record["message"].replace(",", "").split()
            if words[0] == "listening:":
                self.intake, self.admin = words[2], words[words.index("admin") + 1]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something the process does or says; it must not end before."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.01)

    async def said(self, words: str) -> None:
        """Wait for words in the log."""
        await self.until(lambda: words in self.log)

    async def publish(
        self, body: str = "hello", *, token: str = TOKEN, session: aiohttp.ClientSession | None = None
    ) -> tuple[int, Any]:
        """One publish to the intake: the status and the answer."""
        url = f"{self.intake}/v2/publish/{DESTINATION}"
        headers = {"Authorization": f"Bearer {token}"}
        async with (session or self.session).post(url, data=body.encode(), headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def health(self, path: str) -> int:
        """The status of a path of the admin listener."""
        async with self.session.get(self.admin + path) as response:
            await response.read()
            return response.status

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, by its pid."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its exit code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def serving(
    *words: str,
    url: str | None = None,
    env: dict[str, str] | None = None,
    hand_over: Sequence[int] = (),
    ready: bool = True,
) -> AsyncIterator[Sidecar]:
    """`dispatcher serve` on free ports while the context lasts."""
    command = ["-m", "dispatcher", "serve", "--admin-port", "0", "--serve-log-format", "json", *words]
    if hand_over:
        command = ["-c", ADOPT, ",".join(map(str, hand_over)), *command]
    elif "--socket" not in words and "--port" not in words:
        command += ["--port", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=environment(url) if env is None else env,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=tuple(hand_over),
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sidecar = Sidecar(process, session)
        reading = asyncio.create_task(sidecar.read())
        try:
            if ready:
                await sidecar.until(lambda: bool(sidecar.intake))
            yield sidecar
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading


async def refused(*words: str, env: dict[str, str]) -> tuple[int, str]:
    """Run `dispatcher serve` to an end of its own: the exit code, and what it said."""
    async with serving(*words, env=env, ready=False) as sidecar:
        code = await sidecar.ended()
    return code, sidecar.log


def write(path: Path, text: str) -> str:
    """Put a text into a file in one step; its name."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
    return str(path)
