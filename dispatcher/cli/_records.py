"""What `dispatcher send` writes: one receipt for each line of the input, and lines to send again.

Pure: facts in, bytes out. The forms are those of `dispatcher send --help`. A failed line goes out with its
deduplication id filled in, so that sending it again cannot double it; a line that cannot be read goes out as
it came, under `_raw`. Never invents an id and never drops a byte of a line it was given.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from dispatcher.checks import DEDUPLICATION_ID
from dispatcher.ndjson import LineTooLong
from dispatcher.sdk import FAILURE_KEY, RAW_BASE64_KEY, RAW_KEY

if TYPE_CHECKING:
    from dispatcher.errors import Attempt, Certainty, DeliveryError
    from dispatcher.message import Receipt
    from dispatcher.ndjson import Line

BAD_LINE: Final = "BadLine"
STOPPED: Final = "Stopped"
_SECONDS: Final = re.compile(r"\d+\.\d+ s\b")
Likeness = tuple[str, str, str, str]
"""Kind, reason, certainty and last outcome of a problem; not how often and how long it was tried."""
_FOLDED_ID: Final = DEDUPLICATION_ID.lower()


class Problem(NamedTuple):
    """Why a line was not delivered."""

    kind: str
    """The error's class, or `BadLine`, or `Stopped`."""
    reason: str
    certainty: Certainty = "not_sent"
    attempts: tuple[Attempt, ...] = ()
    status: int | None = None
    deduplication_id: str | None = None

    @property
    def likeness(self) -> Likeness:
        """Equal for lines that failed for the same reason."""
        last = _SECONDS.sub("", self.attempts[-1].outcome) if self.attempts else ""
        return self.kind, self.reason, self.certainty, last

    def __str__(self) -> str:
        if not self.attempts:
            return f"{self.kind}: {self.reason}"
        tries = f"{len(self.attempts)} attempt{'' if len(self.attempts) == 1 else 's'}"
        certainty = self.certainty.replace("_", " ")
        return f"{self.kind}: {self.reason} ({certainty}; {tries}, the last: {self.attempts[-1].outcome})"


def problem_of(error: DeliveryError) -> Problem:
    """An admitted message that was not confirmed."""
    return Problem(
        type(error).__name__,
        error.reason,
        error.certainty,
        error.attempts,
        getattr(error, "status", None),
        error.message.deduplication_id,
    )


def receipt_line(number: int, receipt: Receipt) -> bytes:
    """A delivered line: `{"line", "messageId", "deduplicationId", "attempts", …}`."""
    facts: dict[str, Any] = {
        "line": number,
        "messageId": receipt.message_id,
        "deduplicationId": receipt.deduplication_id,
        "attempts": receipt.attempts,
    }
    if receipt.deduplicated:
        facts["deduplicated"] = True
    if receipt.duplicate_possible:
        facts["duplicatePossible"] = True
    if receipt.message_id is None:
        facts["endpoints"] = [
            {
                "url": one.url,
                "messageId": one.message_id,
                "deduplicated": one.deduplicated,
                "error": one.error,
            }
            for one in receipt.endpoints
        ]
    return orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE)


def blank_line(number: int) -> bytes:
    """A line with nothing on it."""
    return b'{"line":%d,"skipped":"blank"}\n' % number


def problem_line(number: int, problem: Problem) -> bytes:
    """A line that was not delivered: `{"line", "error", "reason", "certainty", "attempts", …}`."""
    facts = _facts(number, problem)
    facts["attempts"] = len(problem.attempts)
    if problem.attempts:
        facts["lastAttempt"] = problem.attempts[-1].outcome
    return orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE)


def failed_line(number: int, line: Line, problem: Problem) -> bytes:
    """The line as it can be sent again, with the facts of its failure beside it."""
    again = _object(line, problem.deduplication_id)
    again.pop(FAILURE_KEY, None)  # of an earlier sending: what is said last is what counts
    again[FAILURE_KEY] = {
        **_facts(number, problem),
        "attempts": [attempt._asdict() for attempt in problem.attempts],
    }
    return orjson.dumps(again, option=orjson.OPT_APPEND_NEWLINE)


def _facts(number: int, problem: Problem) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "line": number,
        "error": problem.kind,
        "reason": problem.reason,
        "certainty": problem.certainty,
    }
    if problem.status is not None:
        facts["status"] = problem.status
    return facts


def _object(line: Line, deduplication_id: str | None) -> dict[str, Any]:
    if isinstance(line, LineTooLong):
        return {RAW_KEY: None}
    try:
        given = orjson.loads(line)
    except orjson.JSONDecodeError:
        given = None
    if isinstance(given, dict):
        return given if deduplication_id is None else _identified(given, deduplication_id)
    try:
        return {RAW_KEY: line.decode()}
    except UnicodeDecodeError:
        return {RAW_BASE64_KEY: base64.b64encode(line).decode()}


def _identified(given: dict[str, Any], deduplication_id: str) -> dict[str, Any]:
    """The same with its deduplication id where its own form has it."""
    if given.get("destination") is None:
        if given.get("deduplication_id") is None:
            given["deduplication_id"] = deduplication_id
        return given
    headers = given.get("headers") or {}
    if not any(name.lower() == _FOLDED_ID for name in headers):
        given["headers"] = {**headers, DEDUPLICATION_ID: deduplication_id}
    return given
