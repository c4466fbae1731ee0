"""The gate: may anything start at all?

One machine with four states. *Open*. *Closed* until an instant, because the service asked us to wait: too
fast, or the daily quota is spent. *Half-open* after it: exactly one batch, the probe, goes out; accepted it
opens, refused it closes again. *Halted*: the service refuses the token or the URL; what is held stays held,
and a probe goes out every `HALT_PROBE_SECONDS` and at once when the token is replaced. If nothing was ever
accepted under a URL and token (first contact), everything fails at once instead.

Answers to attempts that began before the gate closed neither open it nor shorten its pause; those that began
before the token was replaced do not close it. It is global to the token: no lane passes it. A further reason,
such as an outage, is one more `Pause`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from dispatcher.core.batch import Rng

GATE_STATES: Final = ("open", "throttled", "quota", "halted", "refused")
"""What `Gate.state` may say."""
PauseKind = Literal["throttle", "quota"]
PAUSE_MAX: Final[dict[PauseKind, float]] = {"throttle": 60.0, "quota": 86_400.0}
"""Seconds the service may ask for and be believed."""
JITTER_MAX: Final = 0.25
BARE_REFUSALS: Final = 3
"""Refusals without a word about time, with no success between, that close the gate."""
BARE_PAUSE: Final = 1.0
BARE_PAUSE_MAX: Final = 20.0
PROBE_RETRY_SECONDS: Final = 0.2
"""A probe that brought no answer about the reason of the pause is repeated after it."""
HALT_PROBE_SECONDS: Final = 30.0
LONE_REFUSALS: Final = 3
"""403, 404 and 405 may be one message's fault; three alone with nothing accepted since are the URL's."""


class Permit(Enum):
    """What may start now."""

    ALL = "all"
    PROBE = "probe"
    NOTHING = "nothing"


class Pause(Struct, frozen=True):
    """How long the service asked us to wait, and for what."""

    kind: PauseKind
    seconds: float
    reset_at: float = 0.0
    """Unix seconds at which a quota is filled again."""


class Refusal(Struct, frozen=True):
    """The upstream refuses this token or URL."""

    status: int
    reason: str
    since: float

    @property
    def is_systemic(self) -> bool:
        """Learnt from messages that were refused one by one, not said outright."""
        return 400 <= self.status < 500 and self.status != 401


class Gate:
    """Open, closed until an instant, half-open, or halted."""

    __slots__ = (
        *("_bare", "_bare_pauses", "_lone_refusals", "_outdated", "_probe", "_probe_at", "_started"),
        *("closed_until", "has_accepted", "is_first_contact", "pause", "refusal"),
    )

    def __init__(self) -> None:
        self.has_accepted = False
        self.refusal: Refusal | None = None
        """Set while the token or the URL is refused."""
        self.is_first_contact = False
        """Of that refusal: nothing was ever accepted, so everything fails at once."""
        self.pause: Pause | None = None
        """Set while closed or half-open."""
        self.closed_until = 0.0
        self._probe: int | None = None
        """Number of the batch that is the probe."""
        self._probe_at = 0.0
        self._bare = 0
        self._bare_pauses = 0
        self._lone_refusals = 0
        self._started = 0
        """Number of the batch that started last."""
        self._outdated = 0
        """Batches up to this number carried a token that has been replaced."""

    # --------------------------------------------------------------------------------------- questions

    @property
    def state(self) -> str:
        """open, throttled, quota, halted, or refused (at first contact)."""
        if self.refusal is not None:
            return "refused" if self.is_first_contact else "halted"
        if self.pause is None:
            return "open"
        return "quota" if self.pause.kind == "quota" else "throttled"

    @property
    def probe(self) -> int | None:
        """Number of the batch on whose answer the gate waits."""
        return self._probe

    def permit(self, now: float) -> Permit:
        """What may start."""
        if self.refusal is None and self.pause is None:
            return Permit.ALL
        if self._probe is not None or now < self._reopens_at:
            return Permit.NOTHING
        return Permit.PROBE

    def wake_at(self, now: float) -> float:
        """When the permit changes by itself; `inf` if it does not."""
        if (self.refusal is None and self.pause is None) or self._probe is not None:
            return float("inf")
        return self._reopens_at if self._reopens_at > now else float("inf")

    def is_refusing(self, now: float) -> bool:
        """First contact failed: everything fails at once; past the instant one more try is due."""
        return self.refusal is not None and self.is_first_contact and now < self._probe_at

    def outlasts(self, deadline: float) -> bool:
        """A spent quota is filled again only after this deadline."""
        return self.pause is not None and self.pause.kind == "quota" and deadline < self.closed_until

    @property
    def _reopens_at(self) -> float:
        return max(
            self._probe_at if self.refusal is not None else 0.0,
            self.closed_until if self.pause is not None else 0.0,
        )

    # ------------------------------------------------------------------------------------------- events

    def on_start(self, number: int, permit: Permit) -> None:
        """A batch starts; under `Permit.PROBE` it is the probe."""
        self._started = number
        if permit is Permit.PROBE:
            self._probe = number

    def on_accepted(self, number: int) -> None:
        """The service took something under this URL and token."""
        self.has_accepted = True
        self.is_first_contact = False
        self._lone_refusals = 0
        self._bare = 0
        if self.pause is None and self.refusal is None:
            self._bare_pauses = 0
        elif number == self._probe:
            self._open()

    def on_understood(self, number: int) -> None:
        """The service judged the messages: it neither refused the token nor asked us to wait."""
        if number == self._probe:
            self._open()

    def on_answered(self, number: int, now: float) -> None:
        """A batch ended in any other way; a probe that told nothing is repeated a little later."""
        if number != self._probe:
            return
        self._probe = None
        if self.refusal is not None:
            self._probe_at = now + HALT_PROBE_SECONDS
        else:
            self.closed_until = now + PROBE_RETRY_SECONDS

    def on_pause(self, number: int, pause: Pause, now: float, rng: Rng) -> None:
        """The service asked us to wait."""
        if number <= self._outdated:
            return
        seconds = min(pause.seconds, PAUSE_MAX[pause.kind])
        until = now + seconds + rng.uniform(0.0, min(JITTER_MAX, seconds / 4))
        is_probe = number == self._probe
        if is_probe:
            self._probe = None
        if self.pause is None or is_probe or until > self.closed_until:
            self.pause = pause
            self.closed_until = until

    def on_bare(self, number: int, now: float, rng: Rng) -> None:
        """Too fast, without a word about time: several with no success between close the gate."""
        if number <= self._outdated:
            return
        self._bare += 1
        if self._bare < BARE_REFUSALS and number != self._probe:
            return
        seconds = min(BARE_PAUSE_MAX, BARE_PAUSE * 2.0**self._bare_pauses)
        if number == self._probe or self.pause is None:
            self._bare_pauses = min(self._bare_pauses + 1, 10)
            self.on_pause(number, Pause("throttle", seconds), now, rng)

    def on_refused(self, number: int, status: int, reason: str, now: float) -> None:
        """The service refuses the token or the URL."""
        if number <= self._outdated:
            return
        if number == self._probe:
            self._probe = None
        if self.refusal is None:
            self.is_first_contact = not self.has_accepted
        since = now if self.refusal is None else self.refusal.since
        self.refusal = Refusal(status, reason, since)
        self._probe_at = now + HALT_PROBE_SECONDS

    def on_lone_refusal(self, number: int, status: int, reason: str, now: float) -> bool:
        """A message was refused alone with 403, 404 or 405; true if that has become systemic."""
        if number <= self._outdated:
            return False
        self._lone_refusals += 1
        if self._lone_refusals < LONE_REFUSALS:
            return False
        self.on_refused(number, status, reason, now)
        return True

    def unhalt(self) -> None:
        """The token was replaced: one probe at once, and a new first contact if there was none.

        What the old token was told, or is about to be told, does not bind the new one.
        """
        self._outdated = self._started
        self._probe = None
        self._lone_refusals = self._bare = 0
        self._probe_at = self.closed_until = 0.0
        if self.is_first_contact:
            self.refusal = None
            self.is_first_contact = False

    def _open(self) -> None:
        self.refusal = self.pause = self._probe = None
        self.is_first_contact = False
        self._bare_pauses = 0
