"""Where the fuzzer plays: a local upstream and a `dispatcher serve` before it, each a process of its own.

It tells the fuzzer what the upstream accepted, and whether the sidecar is in order. Bounds are small, so that
requests reach them. Used by `fuzz`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import psutil

from tests.sidecar.daemon_support import environment
from tests.sidecar.fuzz_requests import CALLER, GROUP, MAX_BATCH, MAX_BODY, MAX_HEAD, MAX_ITEMS, OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MODULE = ("-m", "dispatcher")
PATIENCE = 30.0
"""Seconds for a process to begin or to end, and for what it still holds to go."""
ALONE_ABOVE = 16_000
BOUNDS = {
    "serve-max-body-bytes": MAX_BODY,
    "serve-max-batch-bytes": MAX_BATCH,
    "serve-max-head-bytes": MAX_HEAD,
    "serve-max-items": MAX_ITEMS,
    "serve-head-timeout": 2,
    "serve-body-timeout": 2,
    "patience": 2,
    "batch-max-message-bytes": ALONE_ABOVE,
    "deliver-within": 4,
    "transport-attempt-timeout": 1,
    "retry-base": 0.01,
    "retry-throttle-base": 0.01,
    "retry-max-delay": 0.1,
}
FAULTS = (
    "error_before=0.02 error_after=0.02 disconnect_before=0.03 disconnect_after=0.03 truncate=0.02 "
    "unparsable=0.02 wrong_length=0.02 bad_gateway=0.02 gateway_timeout=0.02 throttle_burst=0.01 "
    "burst_reset=0.05 throttle_bare=0.01 error_entry=0.02 error_endpoint=0.05 "
    "hang_before=0.002 hang_after=0.002"
)
LOUD = ("error", "critical")


class Stage:
    """Both processes, while they run."""

    def __init__(self, upstream: str, process: subprocess.Popen[bytes]) -> None:
        self.upstream = upstream
        self.process = process
        self.records: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        self.intake = self.admin = ""
        self.is_faulty = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                self.other_lines.append(line.decode(errors="replace").rstrip())
                continue
            self.records.append(record)
            words = record["message"].replace(",", "").split()
            if words[0] == "listening:":
                self.admin = words[words.index("admin") + 1]
                self.intake = words[2]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the intake."""
        host, _, port = self.intake.removeprefix("http://").rpartition(":")
        return host.strip("[]"), int(port)

    # --------------------------------------------------------------------------------------- the upstream

    def set_faults(self, plan: str, seed: int) -> None:
        """Have the upstream fail so from now on; an empty plan is none."""
        self.is_faulty = bool(plan)
        _ask(f"{self.upstream}/dispatcher-dev/faults", json.dumps({"plan": plan, "seed": seed}).encode())

    def faults(self) -> int:
        """How often the upstream has failed on purpose so far."""
        found: dict[str, Any] = orjson.loads(_ask(f"{self.upstream}/dispatcher-dev/summary"))
        return sum(found["faults"].values())

    def accepted(self, after: int) -> list[dict[str, Any]]:
        """The rows of the upstream's ledger behind a place."""
        rows: list[dict[str, Any]] = []
        while True:
            data = _ask(f"{self.upstream}/dispatcher-dev/accepted?after={after}&limit=1000")
            page = [orjson.loads(line) for line in data.splitlines()]
            rows += page
            if len(page) < 1000:
                return rows
            after = page[-1]["seq"]

    # ---------------------------------------------------------------------------------------- the sidecar

    def status(self) -> dict[str, Any]:
        """What the sidecar says of itself."""
        found: dict[str, Any] = orjson.loads(_ask(f"{self.admin}/status"))
        return found

    def descriptors(self) -> int:
        """How many files and sockets the sidecar has open."""
        return int(psutil.Process(self.process.pid).num_fds())

    def complaints(self) -> list[str]:
        """Lines of its log that nothing a caller does may cause, or that say a secret."""
        found = list(self.other_lines)
        for record in self.records:
            text = orjson.dumps(record).decode()
            is_loud = record["level"] in LOUD or "exception" in record or "Traceback" in text
            if is_loud or any(secret.decode() in text for secret in (OWNER, CALLER)):
                found.append(text)
        return found

    def settle(self) -> list[str]:
        """What is wrong once every caller has gone: it must be at rest, as good as new."""
        self.set_faults("", 0)
        wrong = []
        try:
            _until(lambda: self._is_at_rest(), "at rest")
        except TimeoutError:
            status = self.status()
            wrong.append(
                f"not at rest: held {status['held']}, intake {status['intake']['connections']} connections"
            )
        if not self.status()["ready"]:
            wrong.append(f"not ready: {self.status()['why_not_ready']}")
        return wrong + self.complaints()

    def _is_at_rest(self) -> bool:
        status = self.status()
        intake = status["intake"]
        return not (status["held"]["messages"] or intake["connections"] or intake["waiting"])

    def stop(self) -> list[str]:
        """End it as a service manager does; what is wrong with that."""
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return ["it does not end after SIGTERM"]
        self._reader.join(PATIENCE)
        return ([f"SIGTERM: exit code {code}"] if code else []) + self.complaints()


@contextmanager
def staged(command: Sequence[str] = MODULE) -> Iterator[Stage]:
    """Both processes on free ports; they end with the block.

    Args:
        command: What stands in for `-m dispatcher`: words for the interpreter.
    """
    words = ("dev", "--port", "0", "--token", OWNER.decode(), "--keep-bodies")
    command_line = [sys.executable, *MODULE, *words]
    upstream = subprocess.Popen(  # its standard error: what its parser thinks of requests sent alone
        command_line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(None, None)
    )
    try:
        assert upstream.stdout is not None
        url = upstream.stdout.readline().split()[3].decode()
        _make_group(url)
        with _sidecar(url, command) as stage:
            yield stage
    finally:
        _end(upstream)
        assert upstream.stdout is not None
        upstream.stdout.close()


@contextmanager
def _sidecar(url: str, command: Sequence[str]) -> Iterator[Stage]:
    words = ["serve", "--port", "0", "--admin-port", "0", "--serve-log-format", "json"]
    words += [word for name, value in BOUNDS.items() for word in (f"--{name}", str(value))]
    env = environment(url, OWNER.decode(), DISPATCHER_SERVE_TOKENS=CALLER.decode())
    process = subprocess.Popen([sys.executable, *command, *words], stderr=subprocess.PIPE, env=env)
    try:
        stage = Stage(url, process)
        _until(lambda: bool(stage.intake) or process.poll() is not None, "listening")
        assert stage.intake, stage.other_lines
        yield stage
    finally:
        _end(process)
        stage._reader.join(PATIENCE)
        assert process.stderr is not None
        process.stderr.close()


def _make_group(url: str) -> None:
    urls = [{"url": f"https://sane.example/endpoint/{number}"} for number in range(2)]
    _ask(f"{url}/v2/topics/{GROUP}/endpoints", json.dumps({"endpoints": urls}).encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _ask(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {OWNER.decode()}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        data: bytes = answer.read()
    return data


def _until(condition: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > ends_at:
            raise TimeoutError(f"not {what} in {PATIENCE:g} s")
        time.sleep(0.02)
