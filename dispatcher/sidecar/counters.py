"""What the intake counts: requests, what was sent alone, failed messages and the latest of their reasons.

Plain integers, an addition a request: read at a scrape (`families`) and by the status page (`snapshot`). No
key comes from a caller: routes, reasons and outcomes are fixed words, and codes are status codes. What a
failure says is the service's word or ours, cut short, never a token, a body or a query string. Used in the
loop only, by everything in this package that answers requests.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from dispatcher.dispatcher import REFUSAL_WORDS
from dispatcher.errors import (
    Abandoned,
    DeadlineExceeded,
    DeliveryError,
    Halted,
    MessageRejected,
    OutboxError,
    OutcomeUnknown,
    QuotaExhausted,
    RetriesExhausted,
    StoreFull,
)
from dispatcher.settings import MASK, SECRET_MIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dispatcher.errors import DispatcherError

ROUTES: Final = ("publish", "enqueue", "batch", "bulk", "proxy", "own", "refused")
"""Where a request went: a single publish, one into a queue, a batch, a stream of lines, the upstream by the
proxy, `/dispatcher/…`, or nowhere, because it was refused before its route was known."""
ALONE: Final = ("query", "header_forward", "repeated_header", "not_text", "too_large")
"""Why a message is sent alone."""
OTHER: Final = "other"
"""Counted under this word: what is none of the fixed ones."""
FAILURE_WORDS: Final[dict[type, str]] = {
    MessageRejected: "rejected",
    OutcomeUnknown: "unknown",
    DeadlineExceeded: "deadline_exceeded",
    RetriesExhausted: "retries_exhausted",
    QuotaExhausted: "quota_exhausted",
    Halted: "halted",
    Abandoned: "abandoned",
    **REFUSAL_WORDS,
    StoreFull: "store_full",
    OutboxError: "not_durable",
}
"""How a message failed, by its error."""
FAILURES_MAX: Final = 50
"""Recent failures that are remembered; those that differ in numbers only count as one."""
TEXT_MAX: Final = 300
"""Characters of a reason that are kept."""
_USER: Final = re.compile(r"(?<=://)[^/\s@]*@")
_QUERY: Final = re.compile(r"[?#][^\s\"'<>)]+")
_NUMBER: Final = re.compile(r"\d+")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class Failure:
    """Failures of one kind and reason: when it came last, and how often."""

    __slots__ = ("at", "certainty", "last", "number", "outcome", "reason", "status")

    def __init__(self, outcome: str, status: int | None, certainty: str) -> None:
        self.outcome = outcome
        self.status = status
        self.certainty = certainty
        self.number = 0
        self.at = 0.0
        """Unix seconds of the latest one."""
        self.reason = ""
        """Of the latest one."""
        self.last = ""
        """What came back from the last attempt of the latest one."""

    def as_dict(self) -> dict[str, Any]:
        """For the status page."""
        return {name: getattr(self, name) for name in self.__slots__}


class IntakeCounters:
    """Plain counters of one process's intake.

    Args:
        wall: Unix seconds, for the instants of failures.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        """Requests answered, by route and status code."""
        self.sent_alone: dict[str, int] = dict.fromkeys(ALONE, 0)
        """Messages that could not travel in a batch, by reason."""
        self.failures: dict[str, int] = dict.fromkeys(FAILURE_WORDS.values(), 0)
        """Messages whose caller was told that they failed, by how."""
        self.waiting_now = 0
        """Callers that wait for room."""
        self.connections_now = 0
        """Connections of callers that are open."""
        self.hidden: tuple[str, ...] = ()
        """What no text may show, should the service ever quote it."""
        self._recent: OrderedDict[tuple[str, int | None, str, str], Failure] = OrderedDict()
        self._wall = wall

    def hide(self, *secrets: str) -> None:
        """Mask these, and those named before, in every text that is kept from now on."""
        found = {one for one in (*self.hidden, *secrets) if len(one) >= SECRET_MIN}
        self.hidden = tuple(sorted(found, key=len, reverse=True))

    # -------------------------------------------------------------------------------------- what happens

    def request(self, route: str, status: int) -> None:
        """A request was answered."""
        try:
            self.requests[route, status] += 1
        except KeyError:
            key = (route if route in ROUTES else OTHER, status if 100 <= status <= 599 else 0)
            self.requests[key] = self.requests.get(key, 0) + 1

    def alone(self, reason: str) -> None:
        """A message is sent alone."""
        key = reason if reason in self.sent_alone else OTHER
        self.sent_alone[key] = self.sent_alone.get(key, 0) + 1

    def waiting(self, change: int) -> None:
        """A caller begins (+1) or ends (-1) to wait for room."""
        self.waiting_now += change

    def connection(self, change: int) -> None:
        """A caller's connection was opened (+1) or closed (-1)."""
        self.connections_now += change

    def failed(self, error: DispatcherError) -> None:
        """A message failed, and its caller is told so."""
        outcome = _outcome(error)
        self.failures[outcome] = self.failures.get(outcome, 0) + 1
        status = getattr(error, "status", None)
        certainty = error.certainty if isinstance(error, DeliveryError) else "not_sent"
        reason, last = (clean(text, self.hidden) for text in _texts(error))
        key = (outcome, status, _NUMBER.sub("#", reason), _NUMBER.sub("#", last))
        failure = self._recent.pop(key, None) or Failure(outcome, status, certainty)
        self._recent[key] = failure
        failure.number += 1
        failure.at, failure.certainty = self._wall(), certainty
        failure.reason, failure.last = reason, last
        if len(self._recent) > FAILURES_MAX:
            self._recent.popitem(last=False)

    # ---------------------------------------------------------------------------------------- what is read

    def recent_failures(self) -> list[Failure]:
        """The latest first."""
        return list(reversed(self._recent.values()))

    def by_route(self) -> dict[str, dict[str, int]]:
        """Requests by route, then by code; only what there was."""
        found: dict[str, dict[str, int]] = {}
        for route, code in sorted(self.requests, key=_place):
            found.setdefault(route, {})[str(code)] = self.requests[route, code]
        return found

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data, for the status page."""
        return {
            "requests": self.by_route(),
            "sent_alone": dict(self.sent_alone),
            "failures": dict(self.failures),
            "waiting": self.waiting_now,
            "connections": self.connections_now,
            "recent_failures": [one.as_dict() for one in self.recent_failures()],
        }


def _place(key: tuple[str, int]) -> tuple[int, int]:
    route, code = key
    return ROUTES.index(route) if route in ROUTES else len(ROUTES), code


def _outcome(error: DispatcherError) -> str:
    for kind in type(error).__mro__:
        if kind in FAILURE_WORDS:
            return FAILURE_WORDS[kind]
    return OTHER


def _texts(error: DispatcherError) -> tuple[str, str]:
    """Why it failed, and what came back from its last attempt."""
    if not isinstance(error, DeliveryError):
        return str(error), ""
    return error.reason, error.attempts[-1].outcome if error.attempts else ""


def clean(text: str, hidden: Iterable[str] = ()) -> str:
    """A text as it may be shown: no secret, user information, query string, control character, and not long.

    The service's words may quote a destination.
    """
    for secret in hidden:
        text = text.replace(secret, MASK)
    text = _UNPRINTABLE.sub(" ", text[: 2 * TEXT_MAX])
    text = _QUERY.sub("?…", _USER.sub("", text))
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX - 1]}…"


# ----------------------------------------------------------------------------------- what is exported of it


class IntakeFamily(NamedTuple):
    """One metric family of the intake: declared once, exported and documented from here."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    read: Callable[[IntakeCounters], int | Mapping[Any, int]]
    """The present value; by the values of `labels` if there are any."""
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    """Values of the one label, or of the first, that there are; the README names them."""

    def samples(self, counters: IntakeCounters) -> Iterator[tuple[list[str], int]]:
        """Label values and readings."""
        reading = self.read(counters)
        if isinstance(reading, int):
            yield [], reading
            return
        for key, number in reading.items():
            yield [str(one) for one in key] if isinstance(key, tuple) else [key], number


INTAKE_FAMILIES: Final = (
    IntakeFamily(
        "dispatcher_intake_requests_total",
        "counter",
        "Requests of callers that were answered, by where they went and with which status code.",
        lambda counters: counters.requests,
        ("route", "code"),
        ROUTES,
    ),
    IntakeFamily(
        "dispatcher_intake_alone_total",
        "counter",
        "Messages that could not travel in a batch and were sent alone, by why.",
        lambda counters: counters.sent_alone,
        ("reason",),
        ALONE,
    ),
    IntakeFamily(
        "dispatcher_intake_failed_messages_total",
        "counter",
        "Messages whose caller was told that they failed, by how.",
        lambda counters: counters.failures,
        ("outcome",),
        tuple(FAILURE_WORDS.values()),
    ),
    IntakeFamily(
        "dispatcher_intake_waiting",
        "gauge",
        "Callers that wait for room.",
        lambda counters: counters.waiting_now,
    ),
    IntakeFamily(
        "dispatcher_intake_connections",
        "gauge",
        "Connections of callers that are open.",
        lambda counters: counters.connections_now,
    ),
)


def families() -> tuple[IntakeFamily, ...]:
    """What is exported of the intake."""
    return INTAKE_FAMILIES


def intake_table() -> str:
    """The families as the README's Markdown table."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [f"| `{one.name}` | {one.kind} | {_labels(one)} | {one.help} |" for one in INTAKE_FAMILIES]
    return "\n".join(rows) + "\n"


def _labels(family: IntakeFamily) -> str:
    if not family.labels:
        return ""
    first, *others = family.labels
    return "; ".join([f"`{first}`: {', '.join(family.values)}", *(f"`{one}`" for one in others)])
