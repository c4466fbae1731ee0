"""What the tests of the local upstream share: raw sockets, raw HTTP, `dispatcher dev` as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from dispatcher.devserver.intake import Entry, Item
from dispatcher.testing import local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dispatcher.devserver.responder import FaultyUpstream, SimulatedReply
    from dispatcher.devserver.upstream import Upstream
    from dispatcher.testing import LocalUpstream

TOKEN = "test-token"
URL = "https://example.com/hook"


class Connection:
    """One raw HTTP/1.1 connection: nothing between the test and the bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, upstream: LocalUpstream) -> Connection:
        """Connect to a local upstream."""
        return cls(*await asyncio.open_connection(upstream.host, upstream.port))

    def write(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        """Send one request, the target byte for byte."""
        lines = {"Host": "local", "Authorization": f"Bearer {TOKEN}", **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        text = f"{method} {target} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(text.encode("latin-1") + body)

    async def read(self) -> tuple[int, dict[str, str], bytes]:
        """Read one reply: status, headers in lower case, body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(status_line.split()[1]), headers, body

    async def ask(self, method: str, target: str, body: Any = b"", **headers: str) -> tuple[int, Any]:
        """One request and its reply: status, and the body's JSON (bytes where it is none)."""
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        self.write(method, target, raw, {name.replace("_", "-"): value for name, value in headers.items()})
        status, _, answer = await self.read()
        try:
            return status, orjson.loads(answer)
        except orjson.JSONDecodeError:
            return status, answer

    async def close(self) -> None:
        """Close the client's side."""
        self.writer.close()
        await self.writer.wait_closed()


class DevProcess:
    """`dispatcher dev` as a real process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def kill(self) -> None:
        """`kill -9`, by its id."""
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=10)


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[tuple[LocalUpstream, Connection]]:
    """A local upstream and one raw connection to it."""
    async with local_upstream(**settings) as upstream:
        connection = await Connection.to(upstream)
        try:
            yield upstream, connection
        finally:
            await connection.close()


@contextmanager
def dev_process(directory: Path, *words: str) -> Iterator[DevProcess]:
    """Run `dispatcher dev --port 0` until the context ends."""
    port_file = directory / "port"
    port_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "dispatcher",
        "dev",
        "--port",
        "0",
        "--port-file",
        str(port_file),
        *words,
    ]
    environment = {**os.environ, "QSTASH_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()  # printed once it listens
        assert line, process.stderr.read()
        yield DevProcess(process, int(port_file.read_text()))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)
        process.stdout.close()
        process.stderr.close()


def item(destination: str = URL, body: Any = None, queue: str | None = None, **headers: Any) -> Item:
    """One item of a batch; header names with underscores for hyphens."""
    return Item(destination, body, {name.replace("_", "-"): value for name, value in headers.items()}, queue)


def entry(upstream: Upstream, message: Item, now: float = 0.0) -> Entry:
    """Accept one message that is answered with an object."""
    answer = upstream.accept_batch([message], now)[0]
    assert isinstance(answer, Entry)
    return answer


def endpoints(upstream: Upstream, message: Item, now: float = 0.0) -> list[Entry]:
    """Accept one message that is answered with an array."""
    answer = upstream.accept_batch([message], now)[0]
    assert isinstance(answer, list)
    return answer


def post(faulty: FaultyUpstream, items: list[dict[str, Any]], now: float = 0.0) -> SimulatedReply:
    """Post one batch in virtual time."""
    return faulty.respond("/v2/batch", orjson.dumps(items), (), now)
