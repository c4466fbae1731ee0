"""What is exported of a dispatcher, as data: each metric family declared once, with how to read it.

`metrics` exports `FAMILIES` and the README's table is made of them. No label ever carries user data
(destinations, queues, the service's words), so the number of series is fixed but for the status codes.
Reading changes nothing and may happen in another thread than the dispatcher's. Knows no Prometheus client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from dispatcher.core.batch import SETTLED, STATES
from dispatcher.core.gate import GATE_STATES
from dispatcher.core.retry import FAILURES
from dispatcher.core.tally import CAUSES, CUTS, OUTCOMES, PAUSES, REASONS, REFUSALS, STAGES, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dispatcher.core.engine import Engine
    from dispatcher.statistics import Statistics

Kind = Literal["counter", "gauge", "histogram"]
Reading = float | Histogram
OLDEST_TRIES: Final = 20
"""Walks over what is held that a scrape from another thread may have to begin again."""


class Readable(Protocol):
    """What can be exported: a `Dispatcher`; a `BlockingDispatcher`, whose engine is another one in a fork."""

    name: str

    @property
    def engine(self) -> Engine:
        """What counts."""
        ...

    def oldest_age(self) -> float:
        """Seconds since the oldest held message was admitted."""
        ...

    def statistics(self) -> Statistics:
        """Whose `state` tells a closed one."""
        ...


class Family(NamedTuple):
    """One metric family: declared once, exported and documented from here."""

    name: str
    """As exported: a counter's ends in `_total`."""
    kind: Kind
    help: str
    read: Callable[[Readable], Reading | Mapping[str, Reading]]
    """The present value; by the value of `label` if there is one."""
    label: str = ""
    """The label beside `dispatcher`; none if empty."""
    values: tuple[str, ...] = ()
    """Values of `label` that are exported from the start."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all its labels."""
        return ("dispatcher", self.label) if self.label else ("dispatcher",)

    def samples(self, dispatcher: Readable) -> Iterator[tuple[list[str], Reading]]:
        """Label values and readings of one dispatcher."""
        reading = self.read(dispatcher)
        if isinstance(reading, float | int | Histogram):
            yield [dispatcher.name], reading
            return
        # A copy made in one step: the loop's thread may add a key while this one reads.
        found = dict(reading)
        for value in dict.fromkeys((*self.values, *found)):
            yield [dispatcher.name, value], found.get(value, 0)


def _populations(dispatcher: Readable) -> Mapping[str, int]:
    return dispatcher.engine.populations()


def _oldest_age(dispatcher: Readable) -> float:
    for _ in range(OLDEST_TRIES):
        try:
            return dispatcher.oldest_age()
        except RuntimeError:  # the loop's thread changed a container under this walk over it
            continue
    return float("nan")


FAMILIES: Final = (
    Family(
        "dispatcher_messages_admitted_total",
        "counter",
        "Messages taken from producers.",
        lambda d: d.engine.tally.admitted,
    ),
    Family(
        "dispatcher_messages_refused_total",
        "counter",
        "Messages not taken from producers, by why.",
        lambda d: d.engine.tally.refused,
        "reason",
        REFUSALS,
    ),
    Family(
        "dispatcher_messages_finished_total",
        "counter",
        "Messages settled, by what became of them.",
        lambda d: d.engine.tally.finished,
        "outcome",
        OUTCOMES,
    ),
    Family(
        "dispatcher_messages_retried_total",
        "counter",
        "Messages put back for another attempt, by why.",
        lambda d: d.engine.tally.retried,
        "cause",
        CAUSES,
    ),
    Family(
        "dispatcher_batches_total",
        "counter",
        "Requests started, by why the batch left.",
        lambda d: d.engine.tally.batches,
        "reason",
        REASONS,
    ),
    Family(
        "dispatcher_requests_total",
        "counter",
        "Requests ended, by status code, or by how they failed without one.",
        lambda d: d.engine.tally.requests,
        "code",
        ("200", *FAILURES),
    ),
    Family(
        "dispatcher_isolations_total",
        "counter",
        "Refused batches in which a culprit was sought.",
        lambda d: d.engine.tally.isolations,
    ),
    Family(
        "dispatcher_halvings_total",
        "counter",
        "Times that messages which failed together again and again were sent apart.",
        lambda d: d.engine.tally.halvings,
    ),
    Family(
        "dispatcher_pauses_total",
        "counter",
        "Why nothing was sent for a while: replies that asked to wait, because it was too fast (throttle) or "
        "for the daily quota (quota), and outages.",
        lambda d: d.engine.tally.pauses,
        "kind",
        PAUSES,
    ),
    Family(
        "dispatcher_limit_cuts_total",
        "counter",
        "Times that the limit of requests in flight was lowered, by why.",
        lambda d: d.engine.tally.cuts,
        "cause",
        CUTS,
    ),
    Family(
        "dispatcher_order_violations_total",
        "counter",
        "Messages of a FIFO queue that the service refused while it took later ones of the same batch.",
        lambda d: d.engine.tally.order_violations,
    ),
    Family(
        "dispatcher_late_acceptances_total",
        "counter",
        "Messages the service accepted after they had been settled as failed.",
        lambda d: d.engine.tally.late,
    ),
    Family(
        "dispatcher_unawaited_failures_total",
        "counter",
        "Failed messages whose outcome nobody awaited.",
        lambda d: d.engine.tally.unawaited_failures,
    ),
    Family(
        "dispatcher_held_messages",
        "gauge",
        "Messages taken and not settled, by state.",
        _populations,
        "state",
        STATES[:SETTLED],
    ),
    Family(
        "dispatcher_held_messages_limit",
        "gauge",
        "Messages that may be held.",
        lambda d: d.engine.room.max_messages,
    ),
    Family(
        "dispatcher_held_bytes",
        "gauge",
        "Encoded bytes of the held messages.",
        lambda d: d.engine.room.held_bytes,
    ),
    Family(
        "dispatcher_held_bytes_limit",
        "gauge",
        "Encoded bytes that may be held.",
        lambda d: d.engine.room.max_bytes,
    ),
    Family(
        "dispatcher_waiting_for_room",
        "gauge",
        "Callers of send and put that wait for room.",
        lambda d: d.engine.room.waiting,
    ),
    Family(
        "dispatcher_oldest_message_age_seconds",
        "gauge",
        "Age of the oldest held message, 0 if none is held.",
        _oldest_age,
    ),
    Family(
        "dispatcher_requests_in_flight",
        "gauge",
        "Requests started and not answered.",
        lambda d: len(d.engine.out),
    ),
    Family(
        "dispatcher_requests_in_flight_limit",
        "gauge",
        "Requests that may be in flight now.",
        lambda d: d.engine.limit.value,
    ),
    Family(
        "dispatcher_retry_budget_tokens",
        "gauge",
        "Tokens left for retries; where there are too few, retries wait.",
        lambda d: d.statistics().retry_budget,
    ),
    Family(
        "dispatcher_gate",
        "gauge",
        "1 for the gate's state, 0 for the others: open; throttled or quota while the service asked to wait; "
        "outage while nobody is there; halted while it refuses the token or URL; refused if it did so at "
        "first contact.",
        lambda d: {d.engine.gate.state: 1},
        "state",
        GATE_STATES,
    ),
    Family(
        "dispatcher_stopped_queues",
        "gauge",
        "Queues that stopped at a failed message and wait to be resumed.",
        lambda d: len(d.engine.lanes.stopped),
    ),
    Family(
        "dispatcher_request_duration_seconds",
        "histogram",
        "Time from the start of a request to its answer or failure.",
        lambda d: d.engine.tally.request_seconds,
    ),
    Family(
        "dispatcher_message_latency_seconds",
        "histogram",
        "Time of delivered messages: from admission to the first request (queue), from there to the receipt, "
        "retries included (delivery), and both (total).",
        lambda d: d.engine.tally.stage_seconds,
        "stage",
        STAGES,
    ),
    Family(
        "dispatcher_batch_messages",
        "histogram",
        "Messages in a request.",
        lambda d: d.engine.tally.batch_messages,
    ),
    Family(
        "dispatcher_batch_bytes",
        "histogram",
        "Encoded bytes of the messages in a request.",
        lambda d: d.engine.tally.batch_bytes,
    ),
)
INFO_NAME: Final = "dispatcher_build_info"
INFO_HELP: Final = "The version of this package; always 1."


def metrics_table() -> str:
    """The families as the README's Markdown table."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [_row(one.name, one.kind, _labels_text(one), one.help) for one in FAMILIES]
    rows.append(_row(INFO_NAME, "gauge", "`version`", INFO_HELP))
    return "\n".join(rows) + "\n"


def _labels_text(family: Family) -> str:
    if not family.label:
        return "`dispatcher`"
    more = ", …" if family.label == "code" else ""
    return f"`dispatcher`, `{family.label}`: {', '.join(family.values)}{more}"


def _row(*cells: str) -> str:
    name, *rest = cells
    return f"| {' | '.join((f'`{name}`', *rest))} |"
