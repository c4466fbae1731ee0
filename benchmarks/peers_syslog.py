"""syslog-ng's `http()` destination as a row: a daemon in C that batches lines and posts them.

It is given items as they leave, one a line, over a Unix socket, so that it need not compose JSON, and its
memory queue; it gives no receipt for a message: the row waits until the upstream has counted all of them.
Its figures are of its own process: the feeder stays on the upstream's core. Made for version 3.38 and later.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from benchmarks.rows import AT_ONCE, DESTINATION, Driver
from benchmarks.upstream_process import report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from benchmarks.rows import Job

PATIENCE_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.01
WRITE_BYTES: Final = 262_144
VERSION: Final = "3.38"
SETTINGS: Final = """@version: {version}
options {{ stats-freq(0); log-msg-size({line_bytes}); }};
source items {{
    unix-stream("{directory}/items.sock" flags(no-parse)
                max-connections(1) log-iw-size(100000) log-fetch-limit(1000) so-rcvbuf(1048576));
}};
destination upstream {{
    http(url("{url}/v2/batch") method("POST") body("$MESSAGE")
         headers("Authorization: Bearer {token}", "Content-Type: application/json")
         body-prefix("[") delimiter(",") body-suffix("]")
         batch-lines({batch}) batch-timeout(20) workers({workers}) log-fifo-size(200000){tls});
}};
log {{ source(items); destination(upstream); flags(flow-control); }};
"""


@asynccontextmanager
async def syslog_ng(job: Job) -> AsyncIterator[Driver]:
    """Lines into the socket; over when the upstream has them all."""
    item = orjson.dumps({"destination": DESTINATION, "body": job.body}) + b"\n"
    with tempfile.TemporaryDirectory() as name, _daemon(job, Path(name), len(item)) as (pid, channel):
        if job.other_cpu is not None:
            os.sched_setaffinity(0, {job.other_cpu})  # the feeder; the daemon stays where it was started

        async def run(count: int) -> int:
            before = report(job.url).messages
            await asyncio.to_thread(feed, channel, item, count)
            return await _counted(job.url, before, count)

        yield Driver(run, lambda: cpu_seconds(pid), lambda: peak_bytes(pid))


def feed(channel: socket.socket, line: bytes, count: int) -> None:
    """Write a line so many times."""
    together = max(1, WRITE_BYTES // len(line))
    block = line * together
    for _ in range(count // together):
        channel.sendall(block)
    channel.sendall(line * (count % together))


async def _counted(url: str, before: int, count: int) -> int:
    """How many the upstream has got, once it has all or none came for long."""
    got, last_at = 0, time.monotonic()
    while got < count and time.monotonic() - last_at < PATIENCE_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
        now = report(url).messages - before
        if now > got:
            got, last_at = now, time.monotonic()
    return got


@contextmanager
def _daemon(job: Job, directory: Path, line_bytes: int) -> Iterator[tuple[int, socket.socket]]:
    settings = directory / "syslog-ng.conf"
    settings.write_text(settings_of(job, directory, line_bytes))
    files = ("-f", settings, "-R", directory / "persist", "-p", directory / "pid", "-c", directory / "ctl")
    command = ["syslog-ng", "--foreground", "--no-caps", *map(str, files)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        with _connected(process, directory / "items.sock") as channel:
            yield process.pid, channel
    finally:
        process.terminate()
        process.communicate()


def settings_of(job: Job, directory: Path, line_bytes: int) -> str:
    """The daemon's configuration."""
    tls = "" if job.ca_file is None else f' tls(ca-file("{job.ca_file}") peer-verify(yes))'
    return SETTINGS.format(
        version=VERSION,
        directory=directory,
        line_bytes=max(65_536, 2 * line_bytes),
        url=job.url,
        token=job.token,
        batch=job.configuration.batch,
        workers=AT_ONCE,
        tls=tls,
    )


def _connected(process: subprocess.Popen[bytes], path: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < give_up_at:
        try:
            channel.connect(str(path))
        except OSError:
            time.sleep(LOOK_SECONDS)
        else:
            return channel
    channel.close()
    process.terminate()
    words = process.communicate()[1].decode(errors="replace")
    raise RuntimeError(f"syslog-ng did not start: {words.strip() or 'it said nothing'}")


def cpu_seconds(pid: int) -> float:
    """User and system time of another process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int | str = "self") -> int:
    """Most resident memory of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith("VmHWM"))
