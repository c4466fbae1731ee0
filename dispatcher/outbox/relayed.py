"""A claimed message in the dispatcher, and where the dispatcher puts it once it has settled.

All that settle within one turn of the loop are looked at together. Made by `relay`, its only caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dispatcher.delivery import Delivery

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Relayed(Delivery, eq=False, gc=False):
    """A claimed message in the dispatcher."""

    stops_queue: ClassVar[bool] = True
    claim: Any = None
    """Its `Claim`."""
    is_cancelled: bool = False
    """It was taken back for good."""

    def wake(self) -> bool:
        """It has settled: all of a turn's are looked at together. Called by the pump."""
        self.waiters.append(self)
        return True


class Sink:
    """Where the dispatcher puts what has settled."""

    __slots__ = ("_look", "_loop", "_settled")

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[list[Relayed]], None]) -> None:
        self._loop = loop
        self._look = look
        self._settled: list[Relayed] = []

    def append(self, relayed: Relayed) -> None:
        """One more."""
        if not self._settled:
            self._loop.call_soon(self._tell)
        self._settled.append(relayed)

    def _tell(self) -> None:
        settled, self._settled = self._settled, []
        self._look(settled)
