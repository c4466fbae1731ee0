"""What the relay says in the log of a store that fails: few lines, however often it is tried."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from dispatcher.repeats import Repeats

if TYPE_CHECKING:
    from dispatcher.errors import OutboxError

CLAIMS: Final = "failed claims"
SETTLEMENTS: Final = "failures to keep settlements"

logger: Final = logging.getLogger("dispatcher.outbox")


class StoreNews:
    """The log lines of one relay about its store; in a running loop."""

    def __init__(self) -> None:
        self._repeats = Repeats(logger, "")

    def claim_failed(self, error: OutboxError) -> None:
        """Nothing could be claimed; it is tried again."""
        self._failed(CLAIMS, f"the outbox cannot claim: {error}")

    def claimed(self) -> None:
        """It worked."""
        self._worked(CLAIMS, "the outbox claims again")

    def settling_failed(self, messages: int, error: OutboxError) -> None:
        """These could not be settled; it is tried again."""
        self._failed(SETTLEMENTS, f"{messages} settlements could not be kept yet: {error}")

    def settled(self) -> None:
        """It worked."""
        self._worked(SETTLEMENTS, "settlements are kept again")

    def close(self) -> None:
        """Nothing more is tried."""
        self._repeats.close(_now())

    def _failed(self, kind: str, words: str) -> None:
        self._repeats.failed(kind, words, _now(), is_lasting=True)

    def _worked(self, kind: str, words: str) -> None:
        if self._repeats:
            self._repeats.ended(kind, words, _now())


def _now() -> float:
    return asyncio.get_running_loop().time()
