"""The gate: may anything start at all?

It knows one reason so far, first contact: a URL and token that never accepted anything and are refused
(401, a redirect, or 403/404/405 on three messages sent alone) fail everything held and every new message
at once, so that a newcomer with a wrong token learns it in a second. After `RETRY_SECONDS` the next
message is let through to try again. Pauses, quota, outages and halts after first contact are further
reasons of this same machine.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

RETRY_SECONDS: Final = 30.0
LONE_REFUSALS: Final = 3
"""403, 404 and 405 may be one message's fault; three alone with nothing accepted since are the URL's."""


class Refusal(Struct, frozen=True):
    """The upstream refuses this token or URL."""

    status: int
    reason: str
    since: float


class Gate:
    """Open, or refusing until an instant."""

    __slots__ = ("_lone_refusals", "_retry_at", "has_accepted", "refusal")

    def __init__(self) -> None:
        self.has_accepted = False
        self.refusal: Refusal | None = None
        self._lone_refusals = 0
        self._retry_at = 0.0

    def on_accepted(self) -> None:
        """The service took something under this URL and token."""
        self.has_accepted = True
        self.refusal = None
        self._lone_refusals = 0

    def on_refused(self, status: int, reason: str, now: float) -> bool:
        """The service refused the token or the URL; true if this is first contact: fail everything."""
        if self.has_accepted:
            return False
        since = now if self.refusal is None else self.refusal.since
        self.refusal = Refusal(status, reason, since)
        self._retry_at = now + RETRY_SECONDS
        return True

    def on_lone_refusal(self, status: int, reason: str, now: float) -> bool:
        """A message was refused alone with 403, 404 or 405; true if that has become systemic."""
        self._lone_refusals += 1
        return self._lone_refusals >= LONE_REFUSALS and self.on_refused(status, reason, now)

    def is_refusing(self, now: float) -> bool:
        """Everything offered now fails at once; past the retry instant one more try is due."""
        return self.refusal is not None and now < self._retry_at
