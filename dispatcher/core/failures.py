"""The errors with which entries settle: one function a kind, all numbers from the entry itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from dispatcher.core.batch import IN_FLIGHT
from dispatcher.errors import (
    Abandoned,
    Certainty,
    DeadlineExceeded,
    DeliveryError,
    Halted,
    MessageRejected,
    OutcomeUnknown,
    QuotaExhausted,
    RetriesExhausted,
)
from dispatcher.message import Message, public_destination

if TYPE_CHECKING:
    from dispatcher.core.batch import Entry
    from dispatcher.core.gate import Pause, Refusal


def certainty_of(entry: Entry) -> Certainty:
    """What is known now; while its request is out, nothing is."""
    return "unknown" if entry.state == IN_FLIGHT else known(entry)


def known(entry: Entry) -> Certainty:
    """What its answered attempts tell."""
    return "not_sent" if entry.trouble is None else entry.trouble.certainty


def rejected(entry: Entry, status: int, words: str) -> MessageRejected:
    """The service refused this message; an earlier attempt of unknown outcome may have been taken."""
    return MessageRejected(
        f"{_to(entry)} was rejected with {status}: {words}",
        status=status,
        message=_again(entry),
        certainty=known(entry),
        attempts=entry.attempts,
        words=words,
    )


def unknown(entry: Entry, why: str) -> OutcomeUnknown:
    """It may have been taken, and repeating it is not safe."""
    return OutcomeUnknown(
        f"{_to(entry)} may have been accepted; {why}",
        message=_again(entry),
        certainty="unknown",
        attempts=entry.attempts,
    )


def expired(entry: Entry, now: float) -> DeliveryError:
    """Its deadline, or the window in which repeating it is safe, has passed."""
    trouble = entry.trouble
    if trouble is not None and trouble.window_ends_at is not None and now >= trouble.window_ends_at:
        return unknown(entry, "its deduplication window ends and repeating it is no longer safe")
    return DeadlineExceeded(
        f"{_to(entry)} was not confirmed within {entry.deadline - entry.admitted_at:g} s",
        message=_again(entry),
        certainty=certainty_of(entry),
        attempts=entry.attempts,
    )


def exhausted(entry: Entry) -> RetriesExhausted:
    """`retry.max_attempts` requests carried it in vain."""
    return RetriesExhausted(
        f"{_to(entry)} was not confirmed by as many attempts as are allowed",
        message=_again(entry),
        certainty=known(entry),
        attempts=entry.attempts,
    )


def quota_exhausted(entry: Entry, pause: Pause) -> QuotaExhausted:
    """It cannot live until the daily quota is filled again."""
    return QuotaExhausted(
        f"{_to(entry)} cannot wait: the daily quota is spent for another {pause.seconds:,.0f} s",
        reset_at=pause.reset_at,
        message=_again(entry),
        certainty=certainty_of(entry),
        attempts=entry.attempts,
    )


def halted(entry: Entry, refusal: Refusal, now: float, *, is_answered: bool = False) -> Halted:
    """The upstream refuses the token or the URL; `is_answered`: with that refusal this one came back."""
    return Halted(
        f"the upstream refuses this token or URL with {refusal.status}: {refusal.reason}",
        status=refusal.status,
        since=now - refusal.since,
        message=_again(entry),
        certainty=known(entry) if is_answered else certainty_of(entry),
        attempts=entry.attempts,
    )


def abandoned(entry: Entry, why: str) -> Abandoned:
    """We gave it up."""
    return Abandoned(
        f"{_to(entry)} was given up: {why}",
        message=_again(entry),
        certainty=certainty_of(entry),
        attempts=entry.attempts,
    )


def _to(entry: Entry) -> str:
    return f"the message to {public_destination(entry.message.destination)}"


def _again(entry: Entry) -> Message:
    """The message with its deduplication id, so that sending it again inside the window is safe."""
    if entry.deduplication_id is None or entry.message.deduplication_id == entry.deduplication_id:
        return entry.message
    return replace(entry.message, deduplication_id=entry.deduplication_id)
