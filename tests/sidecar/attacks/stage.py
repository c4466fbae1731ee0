"""What an attack needs: a sidecar, an upstream that writes down every byte, another place, and a report."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.sidecar.daemon_support import serving
from tests.sidecar.support_raw import Answer, FakeUpstream, RawClient, body_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.sidecar.daemon_support import Sidecar

OWNER = "Upstreams-Own-Token-1a2b3c"
CALLER = "Callers-Own-Token-4d5e6f"
OTHER = "Another-Callers-Token-7g8h"
HOOK = "https://example.com/hook"
PUBLISH = f"/v2/publish/{HOOK}"
ENDLESS_BYTES = 50_000_000
ANSWER_SECONDS = 10.0
DESCRIPTORS = 8_192
"""Of this process, which opens a thousand connections."""


class Line(NamedTuple):
    """One thing that was tried."""

    group: str
    tried: str
    came: str
    is_right: bool

    def __str__(self) -> str:
        came = " ".join(self.came.split())
        return f"{'ok' if self.is_right else 'WRONG':5} {self.group:10} {self.tried}  →  {came[:140]}"


class Report:
    """All that was tried."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, group: str, tried: str, came: object, is_right: bool) -> None:
        """Note one."""
        self.lines.append(Line(group, tried, str(came), is_right))

    @property
    def wrong(self) -> list[Line]:
        """Those that ended as they must not."""
        return [line for line in self.lines if not line.is_right]


class Recorder(FakeUpstream):
    """An upstream that takes everything, quotes its caller's token, and keeps what it was sent."""

    def __init__(self, elsewhere: str) -> None:
        super().__init__(_answer)
        self.elsewhere = elsewhere
        self.bodies: list[bytes] = []
        self.ids = 0

    def items(self) -> list[dict[str, Any]]:
        """The items of every batch."""
        found = zip(self.heads, self.bodies, strict=False)
        return [one for head, body in found if b"/v2/batch " in head for one in json.loads(body)]


async def _answer(recorder: FakeUpstream, connection: RawClient, head: bytes) -> None:
    assert isinstance(recorder, Recorder)
    body = await body_of(connection, head)
    recorder.bodies.append(body)
    target = head.split(b" ", 2)[1].decode()
    quoted = " ".join(re.findall(r"(?i)authorization: (.*)\r", head.decode("latin-1")))
    if moved := re.search(r"moved-(\d+)", target) or (re.search(rb"moved-(\d+)", body)):
        lines = f"Location: {recorder.elsewhere}/\r\nX-Quoted: {quoted}\r\nContent-Length: {len(quoted)}\r\n"
        connection.send(f"HTTP/1.1 {int(moved[1])} Moved\r\n{lines}\r\n{quoted}".encode())
        return
    if target.endswith("/endless"):
        connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS_BYTES}\r\n\r\n".encode())
        connection.send(bytes(ENDLESS_BYTES))
        return
    status, value = 200, _value(recorder, target, body)
    if b"quote-my-token" in body:
        status, value = 400, {"error": f"no such thing, {quoted}"}
    elif value is None:
        value = {"quoted": quoted, "again": [quoted] * 3}
    answer = json.dumps(value).encode()
    lines = f"X-Quoted: {quoted}\r\nSet-Cookie: s={quoted}\r\nContent-Length: {len(answer)}\r\n\r\n"
    connection.send(f"HTTP/1.1 {status} Whatever\r\n{lines}".encode() + answer)


def _value(recorder: Recorder, target: str, body: bytes) -> Any:
    if target == "/v2/batch":
        items = json.loads(body)
        recorder.ids += len(items)
        return [{"messageId": f"msg_{recorder.ids - number}"} for number in range(len(items))]
    if target.startswith(("/v2/publish/", "/v2/enqueue/")):
        recorder.ids += 1
        return {"messageId": f"msg_{recorder.ids}"}
    return None


class Stage:
    """One sidecar under attack."""

    def __init__(self, process: Sidecar, upstream: Recorder, elsewhere: FakeUpstream, report: Report) -> None:
        self.process = process
        self.upstream = upstream
        self.elsewhere = elsewhere
        self.report = report
        self.intake, self.admin = _addresses(process.log)
        self.said: list[bytes] = []
        """All that came back to those who did not present the upstream's token."""

    async def connect(self, *, receive_bytes: int | None = None) -> RawClient:
        """A caller."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.intake))
        return RawClient(*await asyncio.open_connection(sock=sock, limit=2**22))

    async def ask(self, data: bytes, method: str = "POST", seconds: float = ANSWER_SECONDS) -> Answer | None:
        """The final answer to bytes on a connection of their own; `None`: there was none."""
        client = await self.connect()
        client.send(data)
        if not data:
            client.end()
        try:
            return await self.hear(client, method, seconds, is_owner=OWNER.encode() in data)
        finally:
            client.close()

    async def hear(
        self,
        client: RawClient,
        method: str = "POST",
        seconds: float = ANSWER_SECONDS,
        *,
        is_owner: bool = False,
    ) -> Answer | None:
        """The next final answer of a connection."""
        try:
            async with asyncio.timeout(seconds):
                while (answer := await client.answer(method)).status < 200:
                    pass
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            return None
        if not is_owner:
            self.said.append(f"{answer.line} {answer.headers}".encode() + answer.body)
        return answer

    async def expect(
        self, group: str, tried: str, data: bytes, status: int, words: str = ""
    ) -> Answer | None:
        """Try it, and note whether it got this status, with these words."""
        answer = await self.ask(data, data.split(b" ", 1)[0].decode("latin-1"))
        is_right = answer is not None and answer.status == status and words in answer.body.decode("latin-1")
        self.report.add(group, tried, came(answer), is_right)
        return answer

    def memory_bytes(self) -> int | None:
        """What the process has in memory, where the system tells."""
        path = Path(f"/proc/{self.process.process.pid}/statm")
        return int(path.read_text().split()[1]) * resource.getpagesize() if path.exists() else None


def came(answer: Answer | None) -> str:
    """An answer in one line."""
    if answer is None:
        return "no answer, the connection ended"
    where = "".join(f" Location: {value}" for name, value in answer.headers if name == "Location")
    return f"{answer.status}{where} {answer.body[:150].decode('latin-1')}"


def http(
    target: str, *lines: str, method: str = "POST", token: str | None = CALLER, body: bytes | None = None
) -> bytes:
    """A request."""
    head = [f"{method} {target} HTTP/1.1", "Host: sidecar.example"]
    head += [f"Authorization: Bearer {token}"] if token is not None else []
    head += [f"Content-Length: {len(body)}"] if body is not None else []
    return "\r\n".join([*head, *lines, "", ""]).encode("latin-1") + (body or b"")


@asynccontextmanager
async def stage(report: Report, *words: str, env: dict[str, str]) -> AsyncIterator[Stage]:
    """A sidecar before a recorder; `env` lacks only the upstream's URL."""
    async with FakeUpstream(_silent) as elsewhere, Recorder(elsewhere.url) as upstream:
        settings = {**env, "QSTASH_URL": upstream.url}
        async with serving(*words, "--serve-log-level", "debug", env=settings, ready=False) as process:
            await process.said("listening: intake")
            yield Stage(process, upstream, elsewhere, report)


async def _silent(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _addresses(log: str) -> tuple[int, int]:
    found = re.search(r"listening: intake http://[\d.]+:(\d+), admin http://[\d.]+:(\d+)", log)
    assert found is not None, log
    return int(found[1]), int(found[2])


def raise_descriptors() -> None:
    """Let this process have as many connections as the attacks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
