"""A block: some hundred lines that are submitted, settled and written together.

Work is done per block, never per line: one task waits for its deliveries, one pass turns them into bytes, one
write takes them away. Once settled it holds bytes and counts only, so that a block that waits behind a slow
one costs little. Made and moved by `_pipeline`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Final

from dispatcher.cli._records import (
    BAD_LINE,
    STOPPED,
    Problem,
    blank_line,
    failed_line,
    problem_line,
    problem_of,
    receipt_line,
)
from dispatcher.delivery import Delivery
from dispatcher.errors import DispatcherClosed, MessageInvalid
from dispatcher.message import Receipt
from dispatcher.ndjson import LineError, decode, is_blank
from dispatcher.sdk import SDK_OPTION_KEYS, line_to_message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.cli._outputs import Outputs
    from dispatcher.cli._records import Likeness
    from dispatcher.errors import AdmissionError, DeliveryError
    from dispatcher.message import Message
    from dispatcher.ndjson import Line

NOT_SENT: Final = Problem(STOPPED, "it was read, and not sent before the sending was stopped")
REPORTED_PROBLEMS: Final = 20
"""Different problems of a block that are kept to be told; the rest is only counted."""

Place = Delivery | Problem | None
"""What became of a line on submission: taken, refused, or (`None`) nothing on it."""


class Block:
    """Lines `first` to `first + len(lines) - 1`."""

    __slots__ = (
        *("deduplicated", "delivered", "errors", "failed", "failures", "first", "is_settled", "lines"),
        *("places", "problems", "receipts", "size_bytes", "skipped", "length"),
    )

    def __init__(self, first: int, lines: list[Line]) -> None:
        self.first = first
        self.length = len(lines)
        self.size_bytes = sum([len(line) for line in lines if isinstance(line, bytes)])
        self.lines = lines
        self.places: list[Place] = []
        self.is_settled = asyncio.Event()
        self.delivered = 0
        self.deduplicated = 0
        self.skipped = 0
        self.failed: Counter[str] = Counter()
        self.problems: dict[Likeness, tuple[int, Problem, int]] = {}
        """The first few reasons, to be told: the first line that has it, its problem, how many have it."""
        self.errors: list[DeliveryError] = []
        """One of each kind, to be looked at."""
        self.receipts = b""
        self.failures = b""

    @property
    def record_bytes(self) -> int:
        """What is to be written of it, once it has settled."""
        return len(self.receipts) + len(self.failures)

    async def settle(self, outputs: Outputs) -> None:
        """Wait until every line has its outcome, and turn them into bytes and counts."""
        for place in self.places:
            if isinstance(place, Delivery) and place.outcome is None:
                await place.wait()
        self._write_up(outputs)
        self.lines, self.places = [], []

    def _write_up(self, outputs: Outputs) -> None:
        receipts: list[bytes] = []
        failures: list[bytes] = []
        wants_receipts = outputs.wants_receipts
        for number, place in zip(count(self.first), self.places, strict=False):
            outcome = place.outcome if isinstance(place, Delivery) else place
            if isinstance(outcome, Receipt):
                self.delivered += 1
                self.deduplicated += outcome.deduplicated
                if wants_receipts:
                    receipts.append(receipt_line(number, outcome))
            elif outcome is None:
                self.skipped += 1
                receipts.append(blank_line(number))
            else:
                problem = self._fail(number, outcome)
                receipts.append(problem_line(number, problem))
                if outputs.wants_failures:
                    failures.append(failed_line(number, self.lines[number - self.first], problem))
        if wants_receipts:
            self.receipts = b"".join(receipts)
        self.failures = b"".join(failures)

    def _fail(self, number: int, outcome: Problem | DeliveryError) -> Problem:
        problem = outcome if isinstance(outcome, Problem) else problem_of(outcome)
        if not isinstance(outcome, Problem) and problem.kind not in self.failed:
            self.errors.append(outcome)
        self.failed[problem.kind] += 1
        self._report(number, problem)
        return problem

    def _report(self, number: int, problem: Problem) -> None:
        likeness = problem.likeness
        if known := self.problems.get(likeness):
            first, told, lines = known
            self.problems[likeness] = (first, told, lines + 1)
        elif len(self.problems) < REPORTED_PROBLEMS:
            self.problems[likeness] = (number, problem, 1)


def read_line(line: Line) -> Message | Problem | None:
    """The message on a line; `None` if there is nothing on it."""
    given: object = None
    try:
        given = decode(line)
        return line_to_message(given)
    except LineError as error:
        return None if is_blank(line) else Problem(BAD_LINE, str(error))
    except MessageInvalid as error:
        return Problem(type(error).__name__, _misplaced_key(given, str(error)) or str(error))


def refused(error: AdmissionError, headers: Mapping[str, str] | None = None) -> Problem:
    """The dispatcher did not take a message that has these headers of its own."""
    if isinstance(error, DispatcherClosed):
        return NOT_SENT
    reason = str(error)
    for name in headers or ():
        start = f"`{name}` would not be forwarded"
        if reason.startswith(start):  # the library's cure is Python, and here is a line of JSON
            reason = f"{start}; in a line's `headers` it is written `Upstash-Forward-{name}`"
    return Problem(type(error).__name__, reason)


def _misplaced_key(given: object, reason: str) -> str | None:
    """The cure for a key of an SDK request beside `destination`, if that is what was refused."""
    if not isinstance(given, dict) or given.get("destination") is None:
        return None
    key = next((key for key in SDK_OPTION_KEYS if reason.startswith(f"the key {key!r} is unknown")), None)
    if reason.startswith("the key 'deduplication_id' is unknown"):
        return (
            "`deduplication_id` stands beside `url`; "
            "beside `destination`, put `Upstash-Deduplication-Id` into `headers`"
        )
    if key is not None:
        return f"`{key}` stands beside `url`; beside `destination` it is one of the `headers`, `Upstash-…`"
    return None
