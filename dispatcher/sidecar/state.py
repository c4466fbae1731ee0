"""What the daemon is doing: starting, ready, draining, closed. Set by the daemon, read by everything else.

It only moves forward, holds no task and knows no socket. Readiness also depends on the dispatcher, whose
state is an argument here; nothing is asked of the upstream.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

Phase = Literal["starting", "ready", "draining", "closed"]
PHASES: Final[tuple[Phase, ...]] = ("starting", "ready", "draining", "closed")
HALTED: Final = frozenset({"halted", "refused"})
"""States of a dispatcher to which nothing should be sent: the upstream refuses its token or URL."""
ENDED: Final = frozenset({"draining", "closed"})
"""States of a dispatcher that takes nothing more."""


class Acceptance(Protocol):
    """What accepts without the upstream."""

    def why_not_accepting(self) -> str:
        """Empty if it does."""
        ...

    def why_not_alive(self) -> str:
        """Empty if it works."""
        ...


class State:
    """The phase of the process, and since when.

    Args:
        clock: Monotonic seconds, for the uptime.
        wall: Unix seconds, for the instant of the start.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.phase: Phase = "starting"
        self.started_at = wall()
        """Unix seconds."""
        self.acceptance: Acceptance | None = None
        """Of an outbox: it accepts whatever the upstream says."""
        self._clock = clock
        self._began = clock()

    def __repr__(self) -> str:
        return f"<State {self.phase}>"

    @property
    def uptime(self) -> float:
        """Seconds since this was made."""
        return self._clock() - self._began

    @property
    def is_draining(self) -> bool:
        """Nothing more is taken: the process is about to end, or has ended its work."""
        return self.phase in ("draining", "closed")

    def set_ready(self) -> None:
        """The listeners are there."""
        self._move("ready")

    def set_draining(self) -> None:
        """Take nothing more; what is held is being delivered. From here it is not ready."""
        self._move("draining")

    def set_closed(self) -> None:
        """The drain is over."""
        self._move("closed")

    def _move(self, phase: Phase) -> None:
        """Forward only: a second signal, or a late listener, takes nothing back."""
        if PHASES.index(phase) > PHASES.index(self.phase):
            self.phase = phase

    def why_not_ready(self, dispatcher_state: str) -> str:
        """Why callers should be sent elsewhere, empty if they should not.

        A pause the service asked for and an outage are no reasons: they hit every instance alike, what is
        held in the meantime is delivered afterwards, and a full sidecar makes its callers wait. With an
        outbox a halt is none either, but one that cannot keep anything is.
        """
        if self.phase != "ready":
            return self.phase
        if dispatcher_state in ENDED:
            return "the dispatcher has stopped"
        if self.acceptance is not None:
            return self.acceptance.why_not_alive() or self.acceptance.why_not_accepting()
        if dispatcher_state in HALTED:
            return f"{dispatcher_state}: the upstream refuses the token or URL"
        return ""

    def why_not_alive(self, dispatcher_state: str) -> str:
        """Why only another process would help, empty if this one works: its dispatcher or relay died."""
        if self.phase != "ready":
            return ""
        if dispatcher_state in ENDED:
            return "the dispatcher has stopped"
        return "" if self.acceptance is None else self.acceptance.why_not_alive()
