"""A shared store that is not sure of its leases: what has not left comes back, and goes on later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import Message, OutboxError
from dispatcher.outbox import MemoryStore
from dispatcher.outbox.leases import Leased
from dispatcher.testing import ScriptedTransport
from tests.outbox.test_outbox import URL, bodies, outbox, until

if TYPE_CHECKING:
    from dispatcher.outbox.store import Claim

pytestmark = pytest.mark.anyio


class LeasedStore(MemoryStore):
    """One that says what a test wants of its leases."""

    def __init__(self) -> None:
        super().__init__()
        self.sure = True

    def is_sure(self) -> bool:
        """See `Leased`."""
        return self.sure

    async def claim(self, *words: Any) -> list[Claim]:
        """See `Store.claim`."""
        if not self.sure:
            raise OutboxError("not now")
        return await super().claim(*words)


async def test_nothing_leaves_while_the_leases_are_not_sure() -> None:
    """Of 300 that stand behind a request nothing leaves any more; later all go, each queue in its order."""
    store, transport = LeasedStore(), ScriptedTransport()
    transport.hold()
    async with outbox(transport, store, limit_max_in_flight=1, drain_within=1) as opened:
        messages = [Message(URL, body=str(n), queue=f"q{n % 3}") for n in range(300)]
        await opened.put_many(messages)
        await until(lambda: store.status().claimed == 300)
        await until(lambda: bool(transport.batches))
        left = len(bodies(transport))
        store.sure = False
        await until(lambda: store.status().claimed == left)
        transport.release()
        await until(lambda: store.status().claimed == 0)
        assert len(bodies(transport)) == left < 300
        store.sure = True
        await until(lambda: store.status().waiting + store.status().claimed == 0)
    sent = [int(body) for body in bodies(transport)]
    assert sorted(sent) == list(range(300))
    for queue in range(3):
        mine = [each for each in sent if each % 3 == queue]
        assert mine == sorted(mine)


def test_a_store_for_one_has_no_leases() -> None:
    """Nothing is watched there."""
    assert isinstance(LeasedStore(), Leased)
    assert not isinstance(MemoryStore(), Leased)
