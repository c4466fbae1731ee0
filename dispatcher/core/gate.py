"""The gate: may anything start at all?

One machine with four states. *Open*. *Closed* until an instant, because the service asked us to wait (too
fast, or the daily quota is spent), or because nobody is there: several failures in a row, each at once.
*Half-open* after it: exactly one batch, the probe, goes out; accepted it opens, refused it closes again.
*Halted*: the service refuses the token or the URL; what is held stays held, and a probe goes out every
`HALT_PROBE_SECONDS` and at once when the token is replaced. If nothing was ever accepted under a URL and
token (first contact), everything fails at once instead.

Answers to attempts that began before the gate closed neither open it nor shorten its pause; those that began
before the token was replaced do not close it. An outage is another matter: any success ends it. The gate is
global to the token: no lane passes it.

Slow failures close nothing: where attempts hang until they time out, the limit alone holds back, and a probe
would hang as well and delay the recovery.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from dispatcher.core.batch import Rng

GATE_STATES: Final = ("open", "throttled", "quota", "outage", "halted", "refused")
"""What `Gate.state` may say."""
PauseKind = Literal["throttle", "quota", "outage"]
PAUSE_MAX: Final[dict[PauseKind, float]] = {"throttle": 60.0, "quota": 86_400.0, "outage": 2.0}
"""Seconds the service may ask for and be believed; between two probes of an outage at most."""
JITTER_MAX: Final = 0.25
BARE_REFUSALS: Final = 3
"""Refusals without a word about time that close the gate, with no success between. Each is of an attempt that
began after the one before it was refused, and nothing older is out: part of a flight refused is the limit's
business, everything refused is the gate's."""
BARE_PAUSE: Final = 1.0
BARE_PAUSE_MAX: Final = 5.0
"""The longest of the doubling pauses. Of two dispatchers on one small upstream the one that waits finds all
slots taken, again and again, with pauses of up to 20 s until it starves."""
OUTAGE_FAILURES: Final = 3
"""Failures at once, with no success between, that mean an outage."""
OUTAGE_PAUSE: Final = 0.1
"""Before the first probe at most; it doubles with each. Measured in an outage of 20 s: 16 attempts, and
drained 3.3 s after it (with pauses of up to 5 s instead of 2 not within 5 s, for one seed in six)."""
PROBE_RETRY_SECONDS: Final = 0.2
"""A probe that brought no answer about the reason of the pause is repeated after it."""
HALT_PROBE_SECONDS: Final = 30.0
LONE_REFUSALS: Final = 3
"""403, 404 and 405 may be one message's fault; three alone with nothing accepted since are the URL's. (A 404
that surely is a message's own does not come here.)"""


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


class Streak:
    """Refusals or failures with no success between, of which what was out together counts as one."""

    __slots__ = ("_first", "_last", "count")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Something succeeded, or there is another token."""
        self.count = 0
        self._first = 0
        """What was out at the first of them, by the number of the batch that had started last."""
        self._last = 0
        """The same at the latest of them."""

    def add(self, number: int, started: int, *, is_of_load: bool) -> bool:
        """One more, of this batch; false if it does not count."""
        if is_of_load and number <= self._last:
            return False
        if not self.count:
            self._first = started
        self._last = started
        self.count += 1
        return True

    def is_alone(self, oldest: int) -> bool:
        """Nothing that was out at the first of them can still succeed."""
        return oldest > self._first


class Gate:
    """Open, closed until an instant, half-open, or halted."""

    __slots__ = (
        *("_bare", "_bare_pauses", "_failed", "_lone_refusals", "_outage_probes", "_outdated", "_probe"),
        *("_probe_at", "_started"),
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
        self._bare = Streak()
        self._bare_pauses = 0
        self._failed = Streak()
        """Failures as fast as where nobody is there."""
        self._outage_probes = 0
        self._lone_refusals = 0
        self._started = 0
        """Number of the batch that started last."""
        self._outdated = 0
        """Batches up to this number carried a token that has been replaced."""

    # --------------------------------------------------------------------------------------- questions

    @property
    def state(self) -> str:
        """open, throttled, quota, outage, halted, or refused (at first contact)."""
        if self.refusal is not None:
            return "refused" if self.is_first_contact else "halted"
        if self.pause is None:
            return "open"
        return "throttled" if self.pause.kind == "throttle" else self.pause.kind

    @property
    def is_outage(self) -> bool:
        """Closed, or half-open, because nobody is there."""
        return self.pause is not None and self.pause.kind == "outage" and self.refusal is None

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
        self._bare.clear()
        self._failed.clear()
        if self.pause is None and self.refusal is None:
            self._bare_pauses = 0
        elif number == self._probe or self.is_outage:
            self._open()

    def on_understood(self, number: int) -> None:
        """The service judged the messages: it neither refused the token nor asked us to wait."""
        self._failed.clear()
        if number == self._probe or self.is_outage:
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

    def on_failed_at_once(self, number: int, now: float, rng: Rng, *, oldest: int, is_of_load: bool) -> None:
        """A batch failed as fast as where nobody is there; several with no success between are an outage.

        Args:
            oldest: The number of the oldest batch that is out, or of the next one.
            is_of_load: It may also be too much at once: `BARE_REFUSALS` says what counts then.
        """
        if number == self._probe:
            if not self.is_outage:
                self.on_answered(number, now)
                return
        elif self.pause is not None or self.refusal is not None:
            return
        else:
            counts = self._failed.add(number, self._started, is_of_load=is_of_load)
            is_enough = self._failed.count >= OUTAGE_FAILURES
            if not (counts and is_enough and (not is_of_load or self._failed.is_alone(oldest))):
                return
            self._outage_probes = 0
        self._probe = None
        seconds = min(PAUSE_MAX["outage"], OUTAGE_PAUSE * 2.0**self._outage_probes)
        self._outage_probes = min(self._outage_probes + 1, 10)
        self.pause = Pause("outage", seconds)
        self.closed_until = now + rng.uniform(0.5, 1.0) * seconds

    def on_pause(self, number: int, pause: Pause, now: float, rng: Rng) -> None:
        """The service asked us to wait."""
        if number <= self._outdated:
            return
        self._failed.clear()
        seconds = min(pause.seconds, PAUSE_MAX[pause.kind])
        until = now + seconds + rng.uniform(0.0, min(JITTER_MAX, seconds / 4))
        is_probe = number == self._probe
        if is_probe:
            self._probe = None
        if self.pause is None or is_probe or self.pause.kind == "outage" or until > self.closed_until:
            self.pause = pause
            self.closed_until = until

    def on_bare(self, number: int, now: float, rng: Rng, *, oldest: int) -> None:
        """Too fast, without a word about time: several with no success between close the gate.

        `oldest` is the number of the oldest batch that is out, or of the next one.
        """
        if number <= self._outdated:
            return
        self._failed.clear()
        counts = self._bare.add(number, self._started, is_of_load=True)
        is_enough = self._bare.count >= BARE_REFUSALS and self._bare.is_alone(oldest)
        if number == self._probe or (self.pause is None and counts and is_enough):
            seconds = min(BARE_PAUSE_MAX, BARE_PAUSE * 2.0**self._bare_pauses)
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
        self._lone_refusals = 0
        self._bare.clear()
        self._failed.clear()
        self._probe_at = self.closed_until = 0.0
        if self.is_first_contact:
            self.refusal = None
            self.is_first_contact = False

    def _open(self) -> None:
        self.refusal = self.pause = self._probe = None
        self.is_first_contact = False
        self._bare_pauses = 0
