"""A delay that counts from acceptance: `Upstash-Delay` becomes `Upstash-Not-Before`.

The service counts a delay from when it gets the message; one that lay in an outbox for an hour would be late
by that hour. An instant says what was meant. Never for a content-deduplicated message, whose headers make its
id. Used by `outbox`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from dispatcher.checks import CONTENT_BASED_DEDUPLICATION, says_true
from dispatcher.core.batch import SingleRequest
from dispatcher.core.wire import AloneMessage
from dispatcher.options import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.message import Message

DELAY: Final = "upstash-delay"
NOT_BEFORE: Final = "Upstash-Not-Before"
_CONTENT: Final = CONTENT_BASED_DEDUPLICATION.lower()


def fixed(message: Message, now: float) -> Message:
    """The message with its delay as an instant, if it has one; else the same object.

    Args:
        now: Unix seconds of its acceptance.
    """
    if isinstance(message, AloneMessage):
        lines = _fixed(message.request.headers, now)
        if lines is None:
            return message
        return replace(message, request=SingleRequest(message.request.target, tuple(lines)))
    options = message.options
    if message.headers is None and (options is None or not options.is_delayed):
        return message
    headers = {} if options is None else dict(options.compiled)
    own = message.headers or {}
    taken = {name.lower() for name in own if isinstance(name, str)}
    lines = _fixed([*((n, v) for n, v in headers.items() if n.lower() not in taken), *own.items()], now)
    return message if lines is None else replace(message, options=None, headers=dict(lines))


def _fixed(lines: Iterable[tuple[str, str]], now: float) -> list[tuple[str, str]] | None:
    """The header lines with an instant instead of the delay; `None` if they stay as they are."""
    lines = list(lines)
    try:
        lowered = {name.lower(): value for name, value in lines}
        seconds = seconds_of(lowered[DELAY]) if DELAY in lowered else None
        is_untouchable = says_true(lowered.get(_CONTENT, ""))
        at = 0 if seconds is None else math.ceil(now + seconds)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None  # no headers at all, or no instant: whoever encodes or gets it says what is wrong
    if seconds is None or is_untouchable:
        return None
    kept = [line for line in lines if line[0].lower() != DELAY]
    if NOT_BEFORE.lower() in lowered:
        return kept  # it wins over the delay
    return [*kept, (NOT_BEFORE, str(at))]
