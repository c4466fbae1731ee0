"""What `/status` and `/status/stream` say, as far as `dispatcher top` shows it, checked when it is read.

What is not of this form is refused, so that whoever draws it meets no surprise. Unknown fields are left out:
a listener may be of a later version. Read by `_top_feed`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import orjson

from dispatcher.cli._top_words import printable

Shape = TypeVar("Shape")


class Gate(msgspec.Struct):
    """Whether requests may leave."""

    state: str
    reason: str
    paused_for: float
    stopped_queues: list[str]
    stopped_queues_total: int


class Rates(msgspec.Struct):
    """A second, over the last ten."""

    taken: float
    delivered: float
    failed: float
    requests: float
    intake: float
    messages_per_request: float | None


class Quantiles(msgspec.Struct):
    """Seconds."""

    p50: float | None
    p99: float | None


class Latency(msgspec.Struct):
    """Of the last ten seconds."""

    message: Quantiles
    request: Quantiles


class Held(msgspec.Struct):
    """What waits or is on its way."""

    messages: int
    messages_limit: int
    bytes: int
    bytes_limit: int
    oldest_age: float
    waiting_for_room: int


class InFlight(msgspec.Struct):
    """Requests to the upstream."""

    requests: int
    limit: int
    limit_max: int


class Messages(msgspec.Struct):
    """Since the process began."""

    taken: int
    delivered: int
    failed: int
    refused: dict[str, int]
    finished: dict[str, int]
    retried: dict[str, int]


class Requests(msgspec.Struct):
    """To the upstream, since the process began."""

    by_code: dict[str, int]


class Failure(msgspec.Struct):
    """Failed messages of one kind and reason."""

    at: float
    number: int
    outcome: str
    status: int | None
    certainty: str
    reason: str
    last: str


class Intake(msgspec.Struct):
    """Callers' requests since the process began, and the callers there are."""

    requests: dict[str, dict[str, int]]
    sent_alone: dict[str, int]
    waiting: int
    connections: int
    recent_failures: list[Failure]


class Letter(msgspec.Struct, rename="camel"):
    """A dead letter."""

    message_id: str
    accepted_at: float
    reason: str
    destination: str
    attempts: list[dict[str, Any]]


class Outbox(msgspec.Struct):
    """What is kept in the file."""

    waiting: int
    claimed: int
    dead: int
    oldest_age: float | None
    disk_bytes: int
    free_bytes: int | None
    failure: str
    death: str
    dead_letters: list[Letter]


class Event(msgspec.Struct):
    """A change of state."""

    at: float
    phase: str
    state: str
    reason: str
    stopped_queues: int


class Sample(msgspec.Struct):
    """One second."""

    at: float
    taken: float
    delivered: float
    failed: float


class Report(msgspec.Struct):
    """Everything now."""

    version: str
    name: str
    at: float
    uptime: float
    phase: str
    gate: Gate
    rates: Rates
    latency: Latency
    held: Held
    in_flight: InFlight
    messages: Messages
    requests: Requests
    intake: Intake
    outbox: Outbox | None
    events: list[Event]
    sample: Sample | None


class History(msgspec.Struct):
    """Samples by column, the oldest first."""

    at: list[float]
    taken: list[float]
    delivered: list[float]
    failed: list[float]

    def samples(self) -> list[Sample]:
        """One by one. Raises `ValueError` for columns that are not of one length."""
        return [Sample(*row) for row in zip(self.at, self.taken, self.delivered, self.failed, strict=True)]


def read(data: bytes, shape: type[Shape]) -> Shape:
    """Decode a document; every text in it is fit for a terminal.

    Raises:
        ValueError: It is not JSON, or not of this shape.
    """
    return msgspec.convert(printable(orjson.loads(data)), shape)
