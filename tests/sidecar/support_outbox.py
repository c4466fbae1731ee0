"""A whole intake with an outbox behind it, on a socket; a store that waits or fails when a test says so."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dispatcher import Config, Dispatcher
from dispatcher.outbox import MemoryStore, Outbox
from dispatcher.sidecar.app import App
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.guard import Guard, make_server
from dispatcher.sidecar.intake import Intake
from dispatcher.sidecar.kept_messages import KeptMessages
from dispatcher.sidecar.proxy import Proxy
from dispatcher.sidecar.settings import ServeSettings
from tests.sidecar.support_intake import CALLER, TOKEN, Sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dispatcher.errors import OutboxError
    from dispatcher.outbox.store import Record
    from dispatcher.transport import Transport

NOWHERE = "http://127.0.0.1:9"


class HeldStore(MemoryStore):
    """Keeps what it is given once it may, or refuses it."""

    def __init__(self, **bounds: int) -> None:
        super().__init__(**bounds)
        self.may = asyncio.Event()
        self.may.set()
        self.asked = 0
        """Messages that it was to keep."""
        self.appends = 0
        self.error: OutboxError | None = None

    async def append(self, records: Sequence[Record], *more: Any, **named: Any) -> None:
        """See `Store.append`."""
        self.asked += len(records)
        self.appends += 1
        await self.may.wait()
        if self.error is not None:
            raise self.error
        await super().append(records, *more, **named)


class Durable(Sidecar):
    """What a test holds of one with an outbox."""

    outbox: Outbox

    @property
    def held(self) -> int:
        """Messages that are not settled."""
        status = self.outbox.status()
        return status.waiting + status.claimed


@asynccontextmanager
async def durable(
    transport: Transport | None = None,
    *,
    url: str = NOWHERE,
    store: MemoryStore | None = None,
    respond_after: float = 20.0,
    serve: ServeSettings | None = None,
    **settings: Any,
) -> AsyncIterator[Durable]:
    """An intake with an outbox, in front of a transport or of an upstream at `url`."""
    config = Config.load(
        env={}, token=TOKEN, url=url, **{"retry_base": 0.001, "drain_within": 0.1, **settings}
    )
    serve = serve or ServeSettings(admin_port=8091)
    counters = IntakeCounters()
    dispatcher, proxy = Dispatcher(config, transport=transport), Proxy(config, serve)
    outbox = Outbox(store or HeldStore(), dispatcher)
    intake = Intake(dispatcher, serve, counters, outbox, respond_after)
    app = App(
        dispatcher,
        intake,
        proxy,
        Guard([CALLER, TOKEN], TOKEN),
        counters,
        KeptMessages(outbox, proxy, counters),
    )
    async with dispatcher, outbox:
        await proxy.start()
        server = make_server(app.handle, serve, counters)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        one = Durable(listener.sockets[0].getsockname()[1], dispatcher, counters)
        one.outbox = outbox
        try:
            yield one
        finally:
            one.hang_up()
            listener.close()
            await outbox.aclose()
            await dispatcher.aclose()
            await server.shutdown(1.0)
            await listener.wait_closed()
            await proxy.aclose()
