"""What the tests of the official SDKs share: a sidecar before an upstream that both can be asked about."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from dispatcher.devserver.deadletters import fail
from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import PATIENCE_SECONDS, environment, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dispatcher.devserver.server import LocalUpstream
    from dispatcher.testing import AcceptedMessage

ODD_DESTINATIONS = (
    "https://example.com//double//slash",
    "https://example.com/a%2Fb%20c",
    "https://example.com/hook?url=https://other.example/x?y=1&z=%26",
    "https://example.com/%E2%82%AC?q=gr%C3%BC%C3%9Fe",
    "https://user@example.com:8443/hook;v=1/(a),b",
    "https://example.com/trailing/",
    "https://example.com?only=query",
)
"""What has to arrive as it was written."""


class Site(NamedTuple):
    """An upstream, and where the sidecar before it listens."""

    upstream: LocalUpstream
    intake: str

    def rows(self) -> dict[str, AcceptedMessage]:
        """What the upstream has, by id."""
        return {name: row for row in self.upstream.accepted() for name in row.message_ids}

    def bodies(self) -> dict[str, bytes | None]:
        """The bodies of that."""
        return {name: row.body for name, row in self.rows().items()}

    def posts(self) -> int:
        """How many requests brought messages."""
        return sum(one.kind in ("batch", "publish", "enqueue") for one in self.upstream.requests)

    def fail(self, message_ids: list[str], *, status: int, answer: str) -> int:
        """Let the delivery of messages have failed; how many there were."""
        return fail(self.upstream.upstream, message_ids, time.time(), status=status, answer=answer)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the upstream sees."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def site(faults: str | None = None, **settings: str) -> AsyncIterator[Site]:
    """A sidecar before an upstream; settings are environment variables of the sidecar."""
    async with (
        local_upstream(faults=faults) as upstream,
        serving(env=environment(upstream.url, **settings)) as sidecar,
    ):
        yield Site(upstream, sidecar.intake)
