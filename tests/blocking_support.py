"""What the tests of `BlockingDispatcher` share: scripted ones, conditions, programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from dispatcher import BlockingDispatcher, Config, DeliveryError, Message
from dispatcher.testing import ScriptedTransport
from tests.imports import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://example.com/hook"
PATIENCE = 20.0
"""Seconds after which a test that waits for something has failed."""
WARNINGS = ("-W", "error", "-W", "ignore:.*fork:DeprecationWarning")
"""For programs: newer Pythons warn about any fork of a process with threads."""


class Scripted:
    """A `BlockingDispatcher` over a `ScriptedTransport` that may hold its answers back."""

    def __init__(
        self,
        *script: Any,
        holds: bool = False,
        on_failure: Callable[[list[DeliveryError]], None] | None = None,
        name: str = "default",
        **settings: Any,
    ) -> None:
        self.transport: ScriptedTransport

        def make() -> ScriptedTransport:
            self.transport = ScriptedTransport(*script)
            if holds:
                self.transport.hold()
            return self.transport

        config = Config.load(env={}, token="t", retry_base=0.001, **settings)
        self.dispatcher = BlockingDispatcher(config, name=name, transport=make, on_failure=on_failure)

    def __enter__(self) -> BlockingDispatcher:
        return self.dispatcher.__enter__()

    def __exit__(self, *_: object) -> None:
        worker = self.dispatcher._worker
        if worker is not None and worker._thread.is_alive():
            self.release()
        self.dispatcher.close()

    def release(self) -> None:
        """Answer what is held, and go on."""
        worker = self.dispatcher._worker
        assert worker is not None
        worker.call(self.transport.release)

    @property
    def bodies(self) -> list[str]:
        """Of everything that was posted, in order."""
        return [item["body"] for batch in self.transport.batches for item in batch]


def message(body: object = "x", **options: Any) -> Message:
    """A message with this text."""
    return Message(URL, str(body), **options)


def wait_until(condition: Callable[[], object]) -> None:
    """Return once it is true."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.001)


class Call(threading.Thread):
    """A call in a thread of its own; `outcome()` is what it returned or raised."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._work: Callable[[], Any] = partial(function, *args, **kwargs)
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        """The thread's work."""
        try:
            self._outcome = self._work()
        except BaseException as error:
            self._outcome = error

    def outcome(self) -> Any:
        """Its end, waited for."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the call hangs"
        return self._outcome


def run_program(program: str, url: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and error output of a script that finds an upstream in its environment."""
    done = subprocess.run(
        [sys.executable, *WARNINGS, "-c", program],
        cwd=ROOT,
        env=program_environment(url, **environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def program_environment(url: str, **environment: str) -> dict[str, str]:
    """The environment of a program that sends to this upstream."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": path,
        "QSTASH_TOKEN": "test-token",
        "QSTASH_URL": url,
        **environment,
    }


def accepted(url: str) -> list[dict[str, Any]]:
    """What a local upstream in another process accepted, in order."""
    with urllib.request.urlopen(f"{url}/dispatcher-dev/accepted?limit=100000", timeout=PATIENCE) as reply:
        return [orjson.loads(line) for line in reply]
