"""What is compared: the rows of the benchmark, and what one timed round of a row is told and tells.

A row is an asynchronous context manager that opens a client and gives a `Driver`; it is imported only in
the process that times it, so that nobody pays for another's libraries. The rows themselves stand in
`rows_dispatcher`, `peers` and `peers_syslog`; `rows_child` times one round; `__main__` plays the rounds.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from importlib.util import find_spec
from typing import Final, NamedTuple, cast

from msgspec import Struct

DESTINATION: Final = "https://example.com/hook"
AT_ONCE: Final = 8
"""Requests that the hand-written clients keep in flight."""


class Configuration(Struct, frozen=True):
    """What all rows of a comparison have in common."""

    body_bytes: int = 200
    batch: int = 100
    latency_ms: float = 0.0
    tls: bool = False

    def __str__(self) -> str:
        tls = ", TLS" if self.tls else ""
        upstream = f"upstream {self.latency_ms:g} ms{tls}"
        return f"bodies of {self.body_bytes:,} bytes, batches of {self.batch}, {upstream}"


class Job(Struct, frozen=True):
    """One timed round of one row."""

    row: str
    loop: str
    """uvloop or asyncio."""
    url: str
    token: str
    configuration: Configuration
    messages: int
    warm_up: int
    """Messages before those that are timed."""
    cpu: int | None = None
    """The core of the client."""
    other_cpu: int | None = None
    """The core of the upstream, and of whatever only feeds the client."""
    ca_file: str | None = None
    spares_collector: bool = True
    """As this project's commands do: objects made before are frozen, and collections are rarer."""

    @property
    def body(self) -> str:
        """Text of the size asked for."""
        return "x" * self.configuration.body_bytes


class Round(Struct, frozen=True):
    """What one timed round of one row took."""

    messages: int
    seconds: float
    cpu_seconds: float
    """User and system time of the client's process."""
    peak_bytes: int
    """Most resident memory of the client's process, since its start."""
    requests: int
    """As the upstream counted them."""
    upstream_idle: float
    """Share of the round in which the upstream had nothing to do."""


class Driver(NamedTuple):
    """An open client."""

    send: Callable[[int], Awaitable[int]]
    """Sends so many messages; how many of them were confirmed, once all of them are settled."""
    cpu_seconds: Callable[[], float] | None = None
    """CPU time of the client, if it is another process."""
    peak_bytes: Callable[[], int] | None = None


Open = Callable[[Job], AbstractAsyncContextManager[Driver]]


class Row(Struct, frozen=True):
    """One way to get messages to the upstream."""

    label: str
    place: str
    """Where its context manager is: `module:name`, below `benchmarks`."""
    guess: int
    """Messages a second, for the first round; the later ones go by what that one took."""
    modules: tuple[str, ...] = ()
    """What it needs to import."""
    program: str | None = None
    """What it needs on the system."""
    has_loop: bool = True
    """It runs in an event loop of Python's."""

    @property
    def is_single(self) -> bool:
        """A request carries one message."""
        return self.place in ("peers:sdk_single", "peers:sdk_gather")

    def opener(self) -> Open:
        """Its context manager."""
        module, _, name = self.place.partition(":")
        return cast("Open", getattr(import_module(f"benchmarks.{module}"), name))

    def missing(self) -> str | None:
        """Why it cannot run here, if it cannot."""
        for name in self.modules:
            if find_spec(name) is None:
                return f"the package `{name}` is not installed"
        if self.program is not None and shutil.which(self.program) is None:
            return f"the program `{self.program}` is not installed"
        return None


ROWS: Final[dict[str, Row]] = {
    "ceiling": Row("ceiling: dicts, one dumps, aiohttp, one loads", "peers:ceiling", 400_000),
    "send_many": Row("dispatcher: send_many", "rows_dispatcher:many", 100_000),
    "stream": Row("dispatcher: stream", "rows_dispatcher:streamed", 100_000),
    "put_nowait": Row("dispatcher: put_nowait, then await", "rows_dispatcher:put", 100_000),
    "send": Row("dispatcher: send, 4,000 producers wait", "rows_dispatcher:send", 80_000),
    "blocking": Row("BlockingDispatcher: 50 threads", "rows_dispatcher:blocking", 60_000),
    "sdk_batch": Row(
        "qstash SDK, batched by hand, 8 at once", "peers:sdk_batch", 30_000, modules=("qstash",)
    ),
    "sdk_single": Row("qstash SDK, one by one, 8 at once", "peers:sdk_single", 400, modules=("qstash",)),
    "sdk_gather": Row("qstash SDK, one by one, 100 at once", "peers:sdk_gather", 400, modules=("qstash",)),
    "elasticsearch": Row(
        "elasticsearch async_streaming_bulk, 8 at once",
        "peers:elasticsearch",
        30_000,
        modules=("elasticsearch",),
    ),
    "syslog-ng": Row(
        "syslog-ng http(), no receipt a message",
        "peers_syslog:syslog_ng",
        100_000,
        program="syslog-ng",
        has_loop=False,
    ),
}
"""In the order of the table."""
