"""What the tests of death under load share: callers on raw sockets that remember every answer they got."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson

from tests.sidecar.daemon_support import DESTINATION, TOKEN, environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATIENCE = 30.0
NO_ANSWER = 0
"""Stands for the status where the connection ended instead."""
NOT_CONNECTED = -1
"""The same where there was none."""


class Told(NamedTuple):
    """What one caller was told."""

    body: str
    status: int
    value: Any = None

    @property
    def message_id(self) -> str:
        """Of one that was accepted."""
        return str(self.value["messageId"])


class Crowd:
    """Many callers at once, each with a connection, publishing one message after the other.

    Args:
        address: Host and port of the intake.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.told: list[Told] = []
        self.asked: set[str] = set()
        self.is_over = False
        self._numbers = itertools.count()

    @property
    def statuses(self) -> Counter[int]:
        """How often each was told."""
        return Counter(one.status for one in self.told)

    def accepted(self) -> dict[str, str]:
        """Ids of the bodies that were answered as accepted."""
        return {one.body: one.message_id for one in self.told if one.status == 200}

    async def run(self, callers: int) -> None:
        """Publish until `is_over`, or until there is no connection to be had."""
        await asyncio.gather(*(self._caller() for _ in range(callers)))

    async def _caller(self) -> None:
        while not self.is_over:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError:
                self.told.append(Told("", NOT_CONNECTED))
                return
            try:
                while not self.is_over:
                    body = f"body {next(self._numbers)}"
                    self.asked.add(body)
                    told = await self._publish(reader, writer, body)
                    self.told.append(told)
                    if told.status != 200:
                        return
            finally:
                writer.close()

    async def _publish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: str) -> Told:
        try:
            writer.write(post(f"/v2/publish/{DESTINATION}", body.encode()))
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                data = await reader.readexactly(length_of(head))
        except (ConnectionError, asyncio.IncompleteReadError):
            return Told(body, NO_ANSWER)
        return Told(body, int(head[9:12]), orjson.loads(data))


def post(target: str, body: bytes, *lines: str) -> bytes:
    """A request with its token and its length."""
    head = [f"POST {target} HTTP/1.1", "Host: sidecar", f"Authorization: Bearer {TOKEN}", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def length_of(head: bytes) -> int:
    """Of the body behind an answer's head."""
    (line,) = [one for one in head.lower().split(b"\r\n") if one.startswith(b"content-length:")]
    return int(line.partition(b":")[2])


class Stream:
    """One NDJSON request that goes on until its lines are refused, and what each line was told."""

    def __init__(self, address: tuple[str, int], queue: str | None = None) -> None:
        self.address = address
        self.queue = queue
        self.sent: list[str] = []
        self.told: list[dict[str, Any]] = []
        self._held = b""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Its connection, with both heads behind it."""
        reader, writer = await asyncio.open_connection(*self.address)
        lines = ("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
        try:
            writer.write(post("/v2/batch", b"", *lines).replace(b"Content-Length: 0\r\n", b""))
            async with asyncio.timeout(PATIENCE):
                assert (await reader.readuntil(b"\r\n\r\n"))[9:12] == b"200"
            yield reader, writer
        finally:
            writer.close()

    async def run(self) -> None:
        """Send and read at once; a line that is refused is the last but for those under way."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with self.opened() as (reader, writer), asyncio.timeout(PATIENCE):
                sending = asyncio.create_task(self._send_all(writer))
                try:
                    while await self.read_line(reader):
                        pass
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])

    def send(self, writer: asyncio.StreamWriter) -> None:
        """One more line."""
        body = f"{self.queue or 'lines'} {len(self.sent)}"
        item = {"destination": DESTINATION, "body": body, "queue": self.queue}
        line = orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE)
        self.sent.append(body)
        writer.write(b"%x\r\n%s\r\n" % (len(line), line))

    async def _send_all(self, writer: asyncio.StreamWriter) -> None:
        while not any("error" in one for one in self.told):
            self.send(writer)
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write(b"0\r\n\r\n")

    async def read_line(self, reader: asyncio.StreamReader) -> bool:
        """One more chunk of the answer; false at its end."""
        size = int(await reader.readuntil(b"\r\n"), 16)
        self._held += (await reader.readexactly(size + 2))[:-2]
        *whole, self._held = self._held.split(b"\n")
        self.told += map(orjson.loads, whole)
        return size > 0

    def accepted(self) -> dict[str, str]:
        """Ids of the bodies that were answered as accepted."""
        pairs = zip(self.sent, self.told, strict=False)
        return {body: told["messageId"] for body, told in pairs if "messageId" in told}


class UpstreamProcess:
    """`dispatcher dev` that can be killed, and comes back with what it had accepted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it is, each time."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, at the same port as before."""
        words = ["dev", "--port", str(self.port), "--token", TOKEN, "--state", str(self._folder / "state")]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatcher", *words),
            stdout=asyncio.subprocess.PIPE,
            env=environment(None, None),
        )
        assert self._process.stdout is not None
        said = (await self._process.stdout.readline()).decode()
        self.port = int(said.split()[3].rpartition(":")[2])

    async def accepted(self) -> Counter[str]:
        """How often each id is in its ledger."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/dispatcher-dev/accepted?limit=100000") as response,
        ):
            rows = [orjson.loads(line) for line in (await response.read()).splitlines()]
        return Counter(one for row in rows for one in row["messageIds"])

    async def kill(self) -> None:
        """At once, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def upstream_process(folder: Path) -> AsyncIterator[UpstreamProcess]:
    """One that runs, and is killed with the block."""
    upstream = UpstreamProcess(folder)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.kill()


def address_of(url: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)
