"""The local upstream as an object with a life: settings in, a URL out, start and stop.

With `app` the only module here that knows the loop, the clock and the file system. Used by
`dispatcher.testing.local_upstream` and the commands `dev` and `demo`.
"""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from dispatcher.devserver.app import App, new_instance
from dispatcher.devserver.faults import FaultPlan
from dispatcher.devserver.inspection import summary
from dispatcher.devserver.journal import Journal
from dispatcher.devserver.service import Service
from dispatcher.devserver.upstream import BATCH_BYTES, MIB, Upstream
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from aiohttp import web

    from dispatcher.devserver.ledger import AcceptedMessage
    from dispatcher.devserver.service import RequestRecord

STOP_GRACE_SECONDS: Final = 0.05
BACKLOG: Final = 1024


class LocalUpstream:
    """A local upstream on a socket of this machine.

    Args:
        token: What clients must send as `Authorization: Bearer …`.
        faults: A `FaultPlan`, or its inline text; `None` for no faults.
        seed: The faults are the same for the same seed and the same sequence of requests.
        deduplication_window: Seconds for which a deduplication id is remembered; 0 for not at all.
        max_items: Messages a batch may carry; `None` for any number. More is a 412.
        max_message_bytes: Bytes a body may have. More is a 413.
        max_batch_bytes: Bytes a request may have. More is a 413.
        keep_bodies: Keep every accepted body in memory, for `accepted()` and the message look-up.
        host, port: Where to listen; port 0 takes a free one.
        state: A file that what was accepted is appended to before the reply, and read from at start.
        clock: Unix time in seconds; dates messages and moves the window. Latencies are real time anyway.

    Raises `ConfigError` for a setting that is wrong, a state file that is damaged or in use.
    """

    def __init__(
        self,
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
    ) -> None:
        self.token = token
        self.host = host
        self.port = port
        self._clock = clock or time.time
        self.upstream = Upstream(
            deduplication_window=deduplication_window,
            max_items=max_items,
            max_message_bytes=max_message_bytes,
            max_batch_bytes=max_batch_bytes,
            keep_bodies=keep_bodies,
            instance=new_instance(),
            record_changes=state is not None,
        )
        plan = FaultPlan.parse(faults) if isinstance(faults, str) else faults or FaultPlan()
        self.service = Service(self.upstream, token, plan, seed, self._clock())
        self._state = None if state is None else Path(state)
        self._journal: Journal | None = None
        self._listener: asyncio.Server | None = None
        self._protocols: web.Server | None = None

    def __repr__(self) -> str:
        state = self.url if self._listener is not None else "not listening"
        return f"<LocalUpstream {state}, {len(self.upstream.ledger)} accepted>"

    @property
    def url(self) -> str:
        """The base URL for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def requests(self) -> deque[RequestRecord]:
        """The last 10,000 requests and their answers, oldest first."""
        return self.service.traffic.recent

    @property
    def connections(self) -> int:
        """How many client connections are open."""
        return 0 if self._protocols is None else len(self._protocols.connections)

    def accepted(self, after: int = -1, limit: int | None = None) -> list[AcceptedMessage]:
        """What was accepted, in the order of acceptance, behind place `after`."""
        return list(self.upstream.ledger.rows(after, limit))

    def summary(self) -> dict[str, Any]:
        """The same as `GET /dispatcher-dev/summary`."""
        return summary(self.service, self._clock())

    def set_token(self, token: str) -> None:
        """Accept this token from now on, and the one before no more."""
        self.token = self.service.token = token

    def set_faults(self, faults: FaultPlan | str | None, seed: int = 0) -> None:
        """Swap the fault plan; its phases count from now."""
        plan = FaultPlan.parse(faults) if isinstance(faults, str) else faults or FaultPlan()
        self.service.set_faults(plan, seed, self._clock())

    async def start(self) -> Self:
        """Read the state file, if there is one, and listen; after `stop` on the same port again."""
        if self._state is not None:
            self._journal = Journal(self._state)
            try:
                self.upstream.clear()
                self._journal.load(self.upstream)
            except BaseException:
                self._journal.close()
                raise
        app = App(self.service, self._clock, self._journal)
        self._protocols = app.make_server()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._protocols, self.host, self.port, backlog=BACKLOG
            )
        except OSError as error:
            self._protocols = None
            self._close_journal()
            raise _not_listening(self.host, self.port, error) from None
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening and close every connection; requests under way end without a reply."""
        if self._listener is not None:
            self._listener.close()
        if self._protocols is not None:
            await self._protocols.shutdown(STOP_GRACE_SECONDS)
        if self._listener is not None:
            await self._listener.wait_closed()
        self._listener = self._protocols = None
        self._close_journal()

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()


def _not_listening(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        problem = f"{host}:{port} is taken"
        return ConfigError("port", port, "use another, or 0 for a free one", problem=problem)
    problem = f"cannot listen on {host}:{port}: {error.strerror or error}"
    return ConfigError("host", host, "wanted is an address of this machine", problem=problem)
