"""How large a batch the service takes: learnt from what it refused as a whole and took in parts.

A 413, a 412 or a 500 about a size may be one message's fault or the batch's. The isolation tells: if every
part of the refused batch passed, it was the batch. Then batches stay at the largest size that is known to
pass, and try a little more now and then, since a plan can be upgraded while we run.
"""

from __future__ import annotations

from typing import Final

BYTES_MIN: Final = 65_536
"""No refusal makes batches smaller than this in bytes; a count has no such floor."""
NEAR: Final = 0.9
PATIENCE: Final = 100
"""Batches near the ceiling that must pass before a tenth more is tried."""


class Ceiling:
    """The configured bounds of a batch, or what was learnt below them."""

    __slots__ = (
        "_best_bytes",
        "_best_messages",
        "_bytes",
        "_messages",
        "_passed",
        "max_bytes",
        "max_messages",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._messages = max_messages
        self._bytes = max_bytes
        self._best_messages = self._best_bytes = 0
        self._passed = 0
        self.max_messages = max_messages
        self.max_bytes = max_bytes

    @property
    def is_lowered(self) -> bool:
        """The service has objected."""
        return self.max_messages < self._messages or self.max_bytes < self._bytes

    def on_accepted(self, messages: int, size_bytes: int) -> None:
        """A batch of this size passed; called only while the ceiling is lowered, or by an isolation."""
        self._best_messages = max(self._best_messages, messages)
        self._best_bytes = max(self._best_bytes, size_bytes)
        if messages < self.max_messages * NEAR and size_bytes < self.max_bytes * NEAR:
            return
        self._passed += 1
        if self._passed >= PATIENCE:
            self._passed = 0
            self.max_messages = min(self._messages, self.max_messages + max(1, self.max_messages // 10))
            self.max_bytes = min(self._bytes, self.max_bytes + self.max_bytes // 10)

    def on_too_large(self, messages: int, size_bytes: int, passed: tuple[int, int]) -> None:
        """A batch of this size was refused although each part of it passed; `passed` is the largest part."""
        best_messages = self._best_messages if self._best_messages < messages else 0
        best_bytes = self._best_bytes if self._best_bytes < size_bytes else 0
        self.max_messages = min(self.max_messages, max(1, best_messages, passed[0]))
        self.max_bytes = min(self.max_bytes, max(BYTES_MIN, best_bytes, passed[1]))
        self._best_messages, self._best_bytes = best_messages, best_bytes
        self._passed = 0
