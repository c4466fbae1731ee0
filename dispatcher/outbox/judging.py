"""What becomes of a claimed message, by what the dispatcher says of it. Pure; used by `relay`.

Only what the service rejected is dead. A deadline, a spent quota, a halt, an outage, the end of a drain: it
goes back to the store, to be tried again. What may have been sent is marked with the instant since when: the
service remembers its id for ten minutes only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from dispatcher.core.setback import SAFE_SECONDS
from dispatcher.errors import Abandoned, Halted, MessageRejected, OutcomeUnknown, QuotaExhausted
from dispatcher.outbox.codec import unpack
from dispatcher.outbox.store import Dead, Delivered, Returned

if TYPE_CHECKING:
    from dispatcher.core.batch import Rng
    from dispatcher.errors import Attempt, DeliveryError
    from dispatcher.message import Receipt
    from dispatcher.outbox.store import Claim, Found

Policy = Literal["resend", "fail"]

RETURN_SECONDS: Final = 10.0
"""Before what came back is tried again, at most; it doubles with each time."""
RETURN_SECONDS_MAX: Final = 600.0
HALT_SECONDS: Final = 30.0
"""The same while the upstream refuses the token or URL: so often it is asked."""
ATTEMPTS_MAX: Final = 50
"""Attempts that are kept: the first and the last ones."""
WINDOW_WORDS: Final = (
    "its outcome is unknown, and the service may have forgotten its id: sending it again could double it"
)
NO_ID_WORDS: Final = "its outcome is unknown, and without a deduplication id sending it again could double it"


def unsafe_words(claim: Claim, now: float, *, is_idempotent: bool) -> str | None:
    """Why sending it (again) could double it; `None` if it cannot."""
    if claim.sent_since is None:
        return None
    if not is_idempotent:
        return NO_ID_WORDS
    return WINDOW_WORDS if now - claim.sent_since > SAFE_SECONDS else None


def delivered(claim: Claim, receipt: Receipt, now: float, *, is_idempotent: bool) -> Delivered:
    """The service has taken it; the receipt counts what went before, and says if it may be doubled."""
    may_be_doubled = unsafe_words(claim, now, is_idempotent=is_idempotent) is not None
    if claim.attempts or may_be_doubled:
        receipt = replace(
            receipt,
            attempts=receipt.attempts + len(claim.attempts),
            duplicate_possible=receipt.duplicate_possible or may_be_doubled,
        )
    return Delivered(claim.position, receipt, now)


def failed(
    claim: Claim,
    error: DeliveryError,
    began: float,
    now: float,
    *,
    policy: Policy,
    is_idempotent: bool,
    rng: Rng,
) -> Dead | Returned:
    """It was not confirmed: dead, or to be tried again.

    Args:
        began: Unix seconds at which it was handed in.
    """
    attempts = _history(claim, error.attempts, began)
    if isinstance(error, MessageRejected):
        return Dead(claim.position, f"{error.status}: {error.words or error.reason}", attempts, now)
    since = claim.sent_since
    if since is None and error.certainty == "unknown":
        since = began
    again = replace(claim, sent_since=since)
    if policy == "fail" and (words := unsafe_words(again, now, is_idempotent=is_idempotent)):
        return Dead(claim.position, words, attempts, now)
    return Returned(claim.position, now + _pause(claim, error, now, rng), attempts, since)


def _pause(claim: Claim, error: DeliveryError, now: float, rng: Rng) -> float:
    if isinstance(error, Abandoned):
        return 0.0  # our own doing: as soon as somebody sends again
    if isinstance(error, QuotaExhausted):
        return max(0.0, error.reset_at - now)
    if isinstance(error, Halted):
        return HALT_SECONDS
    tries = min(claim.returns, len(claim.attempts), 16)  # it may have come back untried
    return rng.uniform(0.5, 1.0) * min(RETURN_SECONDS_MAX, RETURN_SECONDS * 2.0**tries)


def _history(claim: Claim, latest: tuple[Attempt, ...], began: float) -> tuple[Attempt, ...]:
    """All attempts, told from the message's acceptance on."""
    shift = began - claim.record.accepted_at
    every = (*claim.attempts, *(attempt._replace(after=attempt.after + shift) for attempt in latest))
    half = ATTEMPTS_MAX // 2
    return every if len(every) <= ATTEMPTS_MAX else (*every[:half], *every[-half:])


def outcome_of(found: Found) -> Receipt | DeliveryError | None:
    """What the one who waits for a message is told of it; `None` while it has not settled."""

    if found.receipt is not None:
        return found.receipt
    message = unpack(found.record.data).message
    if found.state == "cancelled":
        return Abandoned("the message was taken back", message=message, certainty="not_sent")
    if found.state != "dead":
        return None
    status, colon, words = found.reason.partition(": ")
    if not colon or not status.isdigit():
        return OutcomeUnknown(found.reason, message=message, certainty="unknown", attempts=found.attempts)
    return MessageRejected(
        f"the message was rejected with {found.reason}",
        status=int(status),
        message=message,
        attempts=found.attempts,
        words=words,
    )
