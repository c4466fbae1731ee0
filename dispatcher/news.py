"""What a dispatcher says in the log: changes of its state, and what fails, in few lines however often.

A message is never named, a failed request only where several fail in a row. No token, no body and no query
string is in any line. Used by `pump`, which tells it of every answer; it decides nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from dispatcher.core.batch import Failure, Reply
from dispatcher.repeats import NEVER, Repeats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from dispatcher.core.gate import Gate
    from dispatcher.errors import DeliveryError

IN_A_ROW: Final = 3
"""Requests that fail before it is told: one that fails is retried, and that is all."""
AGAIN: Final = "; trying again"
UNREACHABLE: Final = "requests without a connection"
PAUSES: Final = "pauses that the service asked for"
OUTAGES: Final = "outages"
UNAWAITED: Final = "messages that failed and that nobody awaited"

NO_ANSWER: Final = {
    "timeout": "no complete answer in time",
    "disconnect": "the connection was lost before an answer",
    "reply": "a reply broke off, or could not be read",
}
"""Not the failure's own text: of a message that leaves alone that may name the destination."""

logger: Final = logging.getLogger("dispatcher")


class How(TypedDict, total=False):
    """The rest of what `Repeats.failed` is told."""

    then: str
    count: int
    after: int
    level: int
    error: BaseException | None
    is_lasting: bool


class News:
    """The log lines of one dispatcher.

    Args:
        name: The dispatcher's.
    """

    def __init__(self, name: str) -> None:
        self._teller = f"dispatcher {name}"
        self._repeats = Repeats(logger, f"{self._teller}: ")
        self._is_connected = True
        self._is_halted = False
        self._failing: dict[str, None] = {}
        """Kinds of requests that failed since one was answered as it should be."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """What is counted will be told in time."""
        self._loop = loop

    def close(self, now: float) -> None:
        """Nothing more will happen: what was counted is told now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None
        self._repeats.close(now)

    # ------------------------------------------------------------------------------------------ requests

    def answered(self, answer: Reply | Failure, now: float) -> None:
        """A request has come to its end."""
        if isinstance(answer, Reply) and answer.status < 500:
            if self._repeats:
                self._recovered(now)
            return
        if isinstance(answer, Reply):
            kind = f"requests answered {answer.status}"
            words = f"the service answers {answer.status}"
            self._reached(now)
        elif answer.kind == "connect":
            self._is_connected = False
            self._failed(UNREACHABLE, answer.text, now, then=AGAIN, is_lasting=True)
            return
        else:
            kind, words = f"requests without an answer ({answer.kind})", NO_ANSWER[answer.kind]
        self._failing[kind] = None
        self._failed(kind, words, now, then=AGAIN, after=IN_A_ROW, is_lasting=True)

    def _reached(self, now: float) -> None:
        """There is a reply: somebody is there."""
        if not self._is_connected:
            self._is_connected = True
            self._repeats.ended(UNREACHABLE, "the upstream is reached again", now)

    def _recovered(self, now: float) -> None:
        """There is one that says nothing is wrong with the service."""
        self._reached(now)
        for kind in self._failing:
            self._repeats.ended(kind, "requests are answered again", now)
        self._failing.clear()

    def transport_failed(self, error: Exception, now: float) -> None:
        """It raised, which it must not."""
        words = f"the transport failed with {type(error).__name__}"
        self._failed("failures of the transport", words, now, level=logging.ERROR, error=error)

    # ------------------------------------------------------------------------------------------ messages

    def unawaited(self, errors: Sequence[DeliveryError], now: float) -> None:
        """These failed, and nobody waits for them."""
        words = f"{len(errors)} messages failed and nobody awaited them, the first: {errors[0]}"
        self._failed(UNAWAITED, words, now, count=len(errors))

    def callback_failed(self, error: Exception, now: float) -> None:
        """`on_failure` raised."""
        words = "on_failure itself failed"
        self._failed("failures of on_failure", words, now, level=logging.ERROR, error=error)

    # ---------------------------------------------------------------------------------------- the gate

    def gate_changed(self, gate: Gate, held: int, now: float) -> None:
        """One line for a change of state, a loud one for a halt."""
        if gate.refusal is not None:
            self._is_halted = True
            what = "fails everything at first contact" if gate.is_first_contact else "halted"
            logger.error(
                "%s %s: the upstream refuses this token or URL with %d: %s; %d messages held",
                *(self._teller, what, gate.refusal.status, gate.refusal.reason, held),
            )
        elif gate.is_outage:
            if self._is_connected:  # else it was told that no connection is made
                then = "; trying with single requests"
                self._failed(OUTAGES, "nobody is there", now, then=then, is_lasting=True)
        elif gate.pause is not None:
            wait = gate.closed_until - now
            words = f"the service asks to wait {wait:.1f} s ({gate.state})"
            self._failed(PAUSES, words, now, is_lasting=True)
        else:
            self._opened(now)

    def _opened(self, now: float) -> None:
        ended = [self._repeats.ended(kind, "open again", now) for kind in (PAUSES, OUTAGES)]
        if self._is_halted and not any(ended):
            logger.info("%s: open again", self._teller)
        self._is_halted = False

    # --------------------------------------------------------------------------------------- the timer

    def _failed(self, kind: str, words: str, now: float, **how: Unpack[How]) -> None:
        self._repeats.failed(kind, words, now, **how)
        self._arm()

    def _arm(self) -> None:
        """While there is something to tell later, and only then, there is a timer."""
        wake_at = self._repeats.wake_at
        if self._timer is None and self._loop is not None and wake_at < NEVER:
            self._timer = self._loop.call_at(wake_at, self._tell)

    def _tell(self) -> None:
        self._timer = None
        if self._loop is not None:
            self._repeats.tell(self._loop.time())
            self._arm()
