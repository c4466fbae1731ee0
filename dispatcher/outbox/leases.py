"""What is done while a shared store is not sure of its leases: nothing more leaves of what it gave.

Others will get the same messages once the leases have ended, so what has not left is taken back at once; what
is under way has until then. Stores that nobody shares have no leases. Used by `relay`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.outbox.relayed import Relayed
    from dispatcher.outbox.store import Store

LOOK_SECONDS: Final = 0.25
"""Between looks at the leases; what leaves meanwhile is covered by `LEASE_MARGIN`."""
LEASE_MARGIN: Final = 1.0
"""Seconds that half a lease is longer than the longest request, at least."""


@runtime_checkable
class Leased(Protocol):
    """A store that is shared; a part of `Store` that others do not have."""

    def is_sure(self) -> bool:
        """What it gave is its own still, for half a lease or nearly so; false long before that ends."""
        ...


def take_back(out: Mapping[str, Relayed]) -> None:
    """Have what has not left come back, to wait in the store."""
    for relayed in list(out.values()):
        relayed.withdraw()


async def watch_leases(store: Store, out: Mapping[str, Relayed]) -> None:
    """Take back what has not left, as long as the store is not sure of it; for ever."""
    while isinstance(store, Leased):
        if not store.is_sure():
            take_back(out)
        await asyncio.sleep(LOOK_SECONDS)
