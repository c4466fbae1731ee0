"""Starts the upstream as a process of its own, asks it what it did, and makes it a certificate for TLS.

Used by the benchmarks and their tests. The process ends with the block, and with its parent, however that
ends: it reads its standard input until that closes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from benchmarks.upstream import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
END_SECONDS: Final = 10.0


class Spent(Struct, frozen=True):
    """What the upstream did between two reports."""

    messages: int
    requests: int
    refused: int
    cpu_seconds: float
    seconds: float

    @property
    def idle(self) -> float:
        """Share of the time in which the upstream had nothing to do, 0 to 1."""
        return max(0.0, 1.0 - self.cpu_seconds / self.seconds) if self.seconds else 1.0


@contextmanager
def upstream_process(
    latency: float = 0.0, *, cpu: int | None = None, certificate: Path | None = None
) -> Iterator[str]:
    """An upstream on a free port of this machine; its base URL.

    Args:
        latency: Seconds before each answer.
        cpu: The core it stays on.
        certificate: PEM file of its certificate and key; it then speaks TLS.
    """
    command = [sys.executable, "-m", "benchmarks.upstream", "--latency", str(latency)]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    command += [] if certificate is None else ["--certificate", str(certificate)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the upstream did not start; what it wrote to standard error says why")
        yield f"http{'' if certificate is None else 's'}://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def report(url: str) -> Counts:
    """What the upstream has done since it started; of a TLS one, `SSL_CERT_FILE` names the certificate."""
    with urllib.request.urlopen(f"{url}/report") as answer:
        return msgspec.json.decode(answer.read(), type=Counts)


def spent(before: Counts, after: Counts) -> Spent:
    """The difference of two reports."""
    return Spent(
        after.messages - before.messages,
        after.requests - before.requests,
        after.refused - before.refused,
        after.cpu_seconds - before.cpu_seconds,
        after.at - before.at,
    )


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one PEM file.

    Raises:
        RuntimeError: There is no `openssl` command.
    """
    if shutil.which("openssl") is None:
        raise RuntimeError("TLS needs the command `openssl` to make a certificate; it is not installed")
    file = directory / "upstream.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-days", "1"]
    key = directory / "key.pem"
    made = ["-keyout", str(key), "-out", str(file)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made, *subject]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file
