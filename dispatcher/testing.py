"""What users test with: a clock they move by hand and a local upstream that behaves like the service.

::

    async with local_upstream(faults="throttle_burst=0.1 error_after=0.1", seed=7) as upstream:
        async with Dispatcher(Config(token=upstream.token, url=upstream.url)) as dispatcher:
            await dispatcher.send(Message("https://example.com/hook", body="…"))
        assert [row.body for row in upstream.accepted()] == [b"…"]
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dispatcher.devserver.faults import FaultKind, FaultPlan
from dispatcher.devserver.ledger import AcceptedMessage, digest_of
from dispatcher.devserver.server import LocalUpstream
from dispatcher.devserver.upstream import BATCH_BYTES, MIB
from dispatcher.scripted import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

__all__ = [
    "AcceptedMessage",
    "FaultKind",
    "FaultPlan",
    "LocalUpstream",
    "ManualClock",
    "ScriptedTransport",
    "digest_of",
    "local_upstream",
]


class ManualClock:
    """A clock that stands still until it is moved: `clock()` and `clock.now` are its seconds."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def __repr__(self) -> str:
        return f"<ManualClock at {self.now}>"

    def advance(self, seconds: float) -> float:
        """Move it forward; returns the new time. Raises `ValueError` for a step back."""
        if seconds < 0:
            raise ValueError(f"advance({seconds}): a clock does not run backwards")
        self.now += seconds
        return self.now


@asynccontextmanager
async def local_upstream(
    *,
    token: str = "test-token",  # noqa: S107 - it guards nothing
    faults: FaultPlan | str | None = None,
    seed: int = 0,
    deduplication_window: float = 600.0,
    max_items: int | None = None,
    max_message_bytes: int = MIB,
    max_batch_bytes: int = BATCH_BYTES,
    keep_bodies: bool = True,
    host: str = "127.0.0.1",
    port: int = 0,
    state: Path | str | None = None,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[LocalUpstream]:
    """A local upstream in the running loop, on a free port, while the context lasts.

    The arguments are `LocalUpstream`'s. It accepts and records messages and never delivers them:
    `upstream.accepted()` says what was accepted, in order; `upstream.requests` what was asked.
    """
    upstream = LocalUpstream(
        token=token,
        faults=faults,
        seed=seed,
        deduplication_window=deduplication_window,
        max_items=max_items,
        max_message_bytes=max_message_bytes,
        max_batch_bytes=max_batch_bytes,
        keep_bodies=keep_bodies,
        host=host,
        port=port,
        state=state,
        clock=clock,
    )
    async with upstream:
        yield upstream
