"""What the tests of `dispatcher send` share: the command as a real process, and its files."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

TOKEN = "test-token"
URL = "https://example.com/hook"
PATIENCE_SECONDS = 60.0


class Done(NamedTuple):
    """How a run ended."""

    code: int
    stdout: bytes
    stderr: str
    seconds: float


def environment(url: str | None, token: str | None = TOKEN, **others: str) -> dict[str, str]:
    """This process's, without settings of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("QSTASH_", "DISPATCHER_"))
    }
    given = {"QSTASH_URL": url, "QSTASH_TOKEN": token, **others}
    return {**kept, **{name: value for name, value in given.items() if value is not None}}


@asynccontextmanager
async def sending(
    *words: str, env: dict[str, str], stdin: int = asyncio.subprocess.DEVNULL, **streams: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`dispatcher send` while the context lasts."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "send", *words),
        env=env,
        stdin=stdin,
        stdout=streams.get("stdout", asyncio.subprocess.PIPE),
        stderr=streams.get("stderr", asyncio.subprocess.PIPE),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()  # a pipe that nobody reads would hold its end back
        await process.wait()


async def send(
    *words: str, url: str | None, token: str | None = TOKEN, stdin: bytes | None = None, **others: str
) -> Done:
    """Run the command to its end."""
    began = asyncio.get_running_loop().time()
    pipe = asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
    async with sending(*words, env=environment(url, token, **others), stdin=pipe) as process:
        async with asyncio.timeout(PATIENCE_SECONDS):
            stdout, stderr = await process.communicate(stdin)
    assert process.returncode is not None
    return Done(process.returncode, stdout, stderr.decode(), asyncio.get_running_loop().time() - began)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another process does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def write(path: Path, lines: Iterable[dict[str, Any] | bytes]) -> str:
    """An NDJSON file; its name."""
    path.write_bytes(b"".join((x if isinstance(x, bytes) else orjson.dumps(x)) + b"\n" for x in lines))
    return str(path)


def items(count: int) -> list[dict[str, Any]]:
    """Good lines, each with a body of its own."""
    return [{"destination": URL, "body": f"{number}"} for number in range(count)]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an NDJSON file."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def lines_in(path: Path) -> int:
    """How many lines are written by now."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
