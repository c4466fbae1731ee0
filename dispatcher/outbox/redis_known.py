"""What a store knows of the whole fleet's messages without asking: numbers that came with the answers.

Answers of different connections overtake each other; a version says which is the later. Used by the other
`redis_*`; costs no input or output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS: Final = ("version", "messages", "bytes", "dead", "dead_bytes")
"""Fields of `:count`, in the order in which scripts return them."""


class Known:
    """Numbers of one store."""

    def __init__(self) -> None:
        self.messages = self.bytes = self.dead = self.dead_bytes = 0
        """Of all that is not settled, dead letters included."""
        self.failure = "it is not open"
        """Why nothing can be kept now; empty: it can."""
        self.commits = 0
        """Scripts that wrote."""
        self.recovered = 0
        self.errors: dict[str, int] = {}
        self._version = -1

    def update(self, numbers: Sequence[bytes | None]) -> None:
        """What a script returned of `:count`."""
        version, messages, size, dead, dead_bytes = (int(number or 0) for number in numbers)
        if version >= self._version:
            self._version = version
            self.messages, self.bytes, self.dead, self.dead_bytes = messages, size, dead, dead_bytes

    def failed(self, operation: str) -> None:
        """An operation failed."""
        self.errors[operation] = self.errors.get(operation, 0) + 1
