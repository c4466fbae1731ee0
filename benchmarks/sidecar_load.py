"""Load on a server from the outside: wrk for single publishes, one long NDJSON request; CPU time by process.

Counts what was answered and how, so that a round that measures errors fails. Used by `sidecar`.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from benchmarks.loop_watch import Kept
from benchmarks.rows import DESTINATION
from benchmarks.upstream import TOKEN, Counts
from benchmarks.upstream_process import ROOT, report, spent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

END_SECONDS: Final = 20.0
LINES_A_BLOCK: Final = 500
_LISTENING: Final = re.compile(r"listening: intake (\S+), admin (\S+)")
_SCRIPT: Final = """
wrk.method = "POST"
wrk.path = "/v2/publish/{destination}"
wrk.body = string.rep("x", {body_bytes})
wrk.headers["Authorization"] = "Bearer {token}"
wrk.headers["Content-Type"] = "text/plain"
{prefer}
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nresult {{"requests":%d,"microseconds":%d,"failed":%d,"p50":%d,"p99":%d}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50), latency:percentile(99)))
end
"""


class FailedError(Exception):
    """Something was not answered as it should have been."""


class Served(NamedTuple):
    """A server in a process of its own."""

    pid: int
    url: str
    admin: str
    told: IO[str] | None = None
    """What it says on its standard output."""

    def kept(self) -> Kept:
        """How long a `watched` one's loop was kept since it was last asked."""
        assert self.told is not None
        os.kill(self.pid, signal.SIGUSR1)
        return msgspec.json.decode(self.told.readline(), type=Kept)

    def cpu_seconds(self) -> float:
        """User and system time of its process, by the kernel's clock of it."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def peak_mb(self) -> float:
        """Its most resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1_024 / 1e6
        return 0.0


class Held(Struct):
    """Part of the sidecar's status."""

    messages: int


class Callers(Struct):
    """Likewise."""

    connections: int


class Stored(Struct):
    """Likewise: what is in its outbox and not settled."""

    waiting: int
    claimed: int
    commits: int


class Status(Struct):
    """What is read of the sidecar's status."""

    held: Held
    intake: Callers
    outbox: Stored | None

    @property
    def left(self) -> int:
        """Messages that have not settled."""
        kept = self.outbox
        return self.held.messages + (0 if kept is None else kept.waiting + kept.claimed)


class Shot(Struct, frozen=True):
    """What one timed round took."""

    messages: int
    seconds: float
    cpu_seconds: float
    """Of the server."""
    requests: int
    """Upstream."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0


@contextmanager
def served(
    name: str, loop: str, upstream: str, cpu: int | None, settings: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """One of `sidecar_servers`, until the block ends; `settings` are variables of its environment."""
    command = [sys.executable, "-m", "benchmarks.sidecar_servers", name, "--loop", loop]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QSTASH_", "DISPATCHER_", "LISTEN_"))}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, "QSTASH_URL": upstream, "QSTASH_TOKEN": TOKEN, **(settings or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    with process.stderr as log, process.stdout as told:
        try:
            intake, admin = _addresses(log)
            reading = threading.Thread(target=log.read, daemon=True)  # so that it never waits to be read
            reading.start()
            yield Served(process.pid, intake, admin, told)
            process.terminate()
            reading.join(END_SECONDS)
        finally:
            process.kill()
            process.wait()


def _addresses(log: IO[str]) -> tuple[str, str]:
    """Where it listens, as it says."""
    said: list[str] = []
    for line in log:
        said.append(line)
        found = _LISTENING.search(line)
        if found is not None:
            return found[1], found[2].rstrip('"}')
    raise FailedError(f"the server did not start: {''.join(said)[-500:]}")


# ------------------------------------------------------------------------------------------------ singles


def single_publishes(
    server: Served,
    upstream: str | None,
    seconds: float,
    *,
    connections: int,
    body_bytes: int,
    cpu: int | None,
    prefer: str | None = None,
) -> Shot:
    """Publishes over so many connections, each waiting for its answer; `upstream` counts what arrives.

    `prefer` is a header that each of them has.

    Raises:
        FailedError: An answer was no 200, a connection failed, or the upstream counted another number.
    """
    before = None if upstream is None else report(upstream)
    used = server.cpu_seconds()
    said = _wrk(server.url, seconds, connections, _script(body_bytes, prefer), cpu)
    used = server.cpu_seconds() - used
    if said["failed"] or not said["requests"]:
        raise FailedError(f"{said['failed']} of {said['requests']} publishes failed")
    requests = 0
    if upstream is not None and before is not None:
        after = spent(before, _settled(server, upstream))
        beyond = after.messages - said["requests"]
        # When the time is over wrk hangs up on those under way; they may have left.
        if not 0 <= beyond <= connections or after.refused:
            raise FailedError(
                f"{said['requests']} publishes were answered, {after.messages} messages arrived upstream, "
                f"{after.refused} requests were refused there"
            )
        requests = after.requests
    return Shot(
        said["requests"],
        said["microseconds"] / 1e6,
        used,
        requests,
        said["p50"] / 1e3,
        said["p99"] / 1e3,
    )


def _script(body_bytes: int, prefer: str | None) -> str:
    wish = "" if prefer is None else f'wrk.headers["Prefer"] = "{prefer}"'
    return _SCRIPT.format(destination=DESTINATION, body_bytes=body_bytes, token=TOKEN, prefer=wish)


def _wrk(url: str, seconds: float, connections: int, text: str, cpu: int | None) -> dict[str, int]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(text)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script.name, url]
        if cpu is not None:
            command = ["taskset", "-c", str(cpu), *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    _, _, result = done.stdout.partition("\nresult ")
    if done.returncode or not result:
        raise FailedError(f"wrk: {(done.stderr or done.stdout).strip()[-300:]}")
    return msgspec.json.decode(result.partition("\n")[0], type=dict[str, int])


def status_of(server: Served) -> Status:
    """How a sidecar does."""
    with urllib.request.urlopen(f"{server.admin}/status") as answer:
        return msgspec.json.decode(answer.read(), type=Status)


def _settled(server: Served, upstream: str) -> Counts:
    """The upstream's report once the sidecar has no caller and holds no message any more."""
    until = time.monotonic() + END_SECONDS
    while time.monotonic() < until:
        status = status_of(server)
        if not status.intake.connections and not status.left:
            return report(upstream)
        time.sleep(0.02)
    raise FailedError(f"the sidecar still holds {status.left} messages")


# ------------------------------------------------------------------------------------------------- NDJSON


def lines(
    server: Served, upstream: str, messages: int, *, body_bytes: int, prefer: str | None = None
) -> Shot:
    """One request of NDJSON with so many messages, its answer read while it is written.

    Raises:
        FailedError: A line was not answered with an id, or the upstream counted another number.
    """
    before, used, began = report(upstream), server.cpu_seconds(), time.perf_counter()
    answered = _posted(server.url, messages, body_bytes, prefer)
    seconds = time.perf_counter() - began
    after, used = spent(before, _settled(server, upstream)), server.cpu_seconds() - used
    if answered != messages or after.messages != messages or after.refused:
        raise FailedError(f"of {messages} lines {answered} were accepted, {after.messages} arrived upstream")
    return Shot(messages, seconds, used, after.requests)


def _posted(url: str, messages: int, body_bytes: int, prefer: str | None) -> int:
    line = msgspec.json.encode({"destination": DESTINATION, "body": "x" * body_bytes}) + b"\n"
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    connection.putrequest("POST", "/v2/batch")
    for name, value in (
        ("Authorization", f"Bearer {TOKEN}"),
        ("Content-Type", "application/x-ndjson"),
        ("Content-Length", str(len(line) * messages)),
        *([] if prefer is None else [("Prefer", prefer)]),
    ):
        connection.putheader(name, value)
    connection.endheaders()

    def write() -> None:
        block = line * LINES_A_BLOCK
        for _ in range(messages // LINES_A_BLOCK):
            connection.send(block)
        connection.send(line * (messages % LINES_A_BLOCK))

    writing = threading.Thread(target=write)
    writing.start()
    answer = connection.getresponse().read()
    writing.join()
    connection.close()
    return answer.count(b'"messageId"')
