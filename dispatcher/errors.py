"""Every error this package raises, and what each one promises.

::

    DispatcherError
    ├── ConfigError (ValueError)     a setting is wrong: field, value, allowed
    ├── AdmissionError               never taken, nothing was promised
    │   ├── QueueFull                held, capacity
    │   ├── MessageInvalid (ValueError)   what is wrong, before it could spoil a batch
    │   ├── MessageTooLarge          size, limit
    │   └── DispatcherClosed
    ├── DeliveryError                taken by us, and not confirmed as delivered: message, certainty, attempts
    │   ├── MessageRejected          status, words: the service refused this message
    │   ├── OutcomeUnknown           it may have been accepted; we cannot tell, and repeating is not safe
    │   ├── DeadlineExceeded (TimeoutError)
    │   ├── RetriesExhausted         only where max_attempts is set
    │   ├── QuotaExhausted           reset_at
    │   ├── Halted                   status, reason, since
    │   └── Abandoned                the drain ended, the message was withdrawn, or the dispatcher died
    └── OutboxError                  durability could not be promised
        └── StoreFull                a bound of the store, or its disk, is reached

A text never carries a token, a body or a destination's query string. Whether something is retried is
policy, so it stands in `core.retry`'s table and not on these classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from dispatcher.message import Message

Certainty = Literal["not_sent", "not_accepted", "unknown", "accepted"]
"""What is known about a failed message at the service.

`not_sent`: no byte of it left. `not_accepted`: the service answered, and did not take it.
`unknown`: it may have been taken. `accepted`: it was taken (and something else failed).
"""


class Attempt(NamedTuple):
    """One request that carried a message: when, what came back, how long it took."""

    after: float
    """Seconds between the message's admission and the start of this attempt."""
    outcome: str
    """What came back: a status with the service's words, or the transport's failure."""
    duration: float
    """Seconds the request took."""


class DispatcherError(Exception):
    """The root: `except DispatcherError` catches whatever this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, self.__dict__)


def _revive(kind: type[DispatcherError], args: tuple[Any, ...], state: dict[str, Any]) -> DispatcherError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(DispatcherError, ValueError):
    """A setting is wrong; the text says which, what it was, and what would be right.

    Args:
        field: The setting's dotted name, or the name that was given in its place.
        value: What it was; `None` where there is none, or none to be shown.
        allowed: What would be right.
        problem: What is wrong, where it is not the value: that it is missing, unknown, taken.
    """

    def __init__(self, field: str, value: object, allowed: str, *, problem: str | None = None) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {problem or f'{value!r} is not allowed'}; {allowed}")


class AdmissionError(DispatcherError):
    """The message was never taken: nothing was promised, nothing will be sent."""


class QueueFull(AdmissionError):  # noqa: N818 - the name users know from `queue.Full`
    """No room now; `put` waits where `put_nowait` raises this."""

    def __init__(self, held: int, capacity: int, held_bytes: int = 0, capacity_bytes: int = 0) -> None:
        self.held = held
        self.capacity = capacity
        self.held_bytes = held_bytes
        self.capacity_bytes = capacity_bytes
        super().__init__(
            f"{held} of {capacity} messages and {held_bytes} of {capacity_bytes} bytes are held; "
            "`put` waits for room"
        )


class MessageInvalid(AdmissionError, ValueError):  # noqa: N818
    """The service would refuse this message, and with it the batch it travels in."""


class MessageTooLarge(AdmissionError):  # noqa: N818
    """The message is above the size the configuration allows."""

    def __init__(self, size: int, limit: int, setting: str = "batch.max_message_bytes") -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"the message has {size} bytes, the limit is {limit} (`{setting}`)")


class DispatcherClosed(AdmissionError):  # noqa: N818
    """The dispatcher is not open: not started, draining, closed, or inherited by a forked child."""


class DeliveryError(DispatcherError):
    """Taken by us, and not confirmed as delivered.

    `message` has its deduplication id filled in, so sending it again within ten minutes of its first
    attempt cannot double it. `attempts` lists every request that carried it.
    """

    def __init__(
        self,
        reason: str,
        *,
        message: Message,
        certainty: Certainty,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        self.reason = reason
        self.message = message
        self.certainty: Certainty = certainty
        self.attempts = attempts
        super().__init__(reason)

    def __str__(self) -> str:
        tries = f"{len(self.attempts)} attempt{'' if len(self.attempts) == 1 else 's'}"
        last = f", the last: {self.attempts[-1].outcome}" if self.attempts else ""
        return f"{self.reason} ({self.certainty.replace('_', ' ')}; {tries}{last})"


class MessageRejected(DeliveryError):  # noqa: N818
    """The service refused this message: with this `status`, for a reason in its own `words`."""

    def __init__(
        self,
        reason: str,
        *,
        status: int,
        message: Message,
        certainty: Certainty = "not_accepted",
        attempts: tuple[Attempt, ...] = (),
        words: str = "",
    ) -> None:
        self.status = status
        self.words = words
        super().__init__(reason, message=message, certainty=certainty, attempts=attempts)


class OutcomeUnknown(DeliveryError):  # noqa: N818
    """The service may have accepted it; repeating it was not safe, so we did not."""


class DeadlineExceeded(DeliveryError, TimeoutError):  # noqa: N818
    """The message's delivery deadline passed before the service confirmed it."""


class RetriesExhausted(DeliveryError):  # noqa: N818
    """`retry.max_attempts` requests carried it in vain."""


class QuotaExhausted(DeliveryError):  # noqa: N818
    """The account's daily quota is spent and the message cannot live until `reset_at` (unix seconds)."""

    def __init__(
        self,
        reason: str,
        *,
        reset_at: float,
        message: Message,
        certainty: Certainty = "not_accepted",
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        self.reset_at = reset_at
        super().__init__(reason, message=message, certainty=certainty, attempts=attempts)


class Halted(DeliveryError):  # noqa: N818
    """The upstream refuses this token or URL; `since` is the number of seconds it has done so."""

    def __init__(
        self,
        reason: str,
        *,
        status: int,
        since: float,
        message: Message,
        certainty: Certainty = "not_accepted",
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        self.status = status
        self.since = since
        super().__init__(reason, message=message, certainty=certainty, attempts=attempts)


class Abandoned(DeliveryError):  # noqa: N818
    """The drain ended, the message was withdrawn, or the dispatcher died before it was confirmed."""


class OutboxError(DispatcherError):
    """Durability could not be promised."""


class StoreFull(OutboxError):  # noqa: N818
    """A bound of the store, or its disk, is reached: later there may be room."""
