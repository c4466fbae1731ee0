"""What is exported of an outbox, as data: each metric family declared once, with how to read it.

`metrics.register_outbox` exports these and the README's table is made of them. No label carries user data.
Reading costs nothing, changes nothing and may happen in another thread. Knows no Prometheus client.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dispatcher.outbox import Outbox
    from dispatcher.outbox.store import StoreStatus

OPERATIONS: Final = ("open", "append", "claim", "settle", "find", "cancel", "dead_letters", "retry", "delete")


class OutboxFamily(NamedTuple):
    """One metric family of an outbox: declared once, exported and documented from here."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    read: Callable[[Outbox, StoreStatus], float | Mapping[str, float]]
    """The present value; by the value of `label` if there is one."""
    label: str = ""
    values: tuple[str, ...] = ()
    """Values of `label` that are exported from the start."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all its labels."""
        return ("dispatcher", self.label) if self.label else ("dispatcher",)

    def samples(self, outbox: Outbox) -> Iterator[tuple[list[str], float]]:
        """Label values and readings of one outbox."""
        reading = self.read(outbox, outbox.status())
        if isinstance(reading, float | int):
            yield [outbox.name], float(reading)
            return
        for value in dict.fromkeys((*self.values, *reading)):
            yield [outbox.name, value], float(reading.get(value, 0))


def _oldest_age(status: StoreStatus) -> float:
    return 0.0 if status.oldest_at is None else max(0.0, time.time() - status.oldest_at)


def _bound(outbox: Outbox, name: str) -> float:
    """One of a store's bounds; NaN if it has no such bound."""
    return float(getattr(outbox.store, name, "nan"))


def _is_failing(outbox: Outbox, status: StoreStatus) -> float:
    return float(outbox.is_open and bool(status.failure or outbox.death))


OUTBOX_FAMILIES: Final = (
    OutboxFamily(
        "dispatcher_outbox_commits_total",
        "counter",
        "Transactions that were made durable; each has messages and outcomes of many callers.",
        lambda _, status: status.commits,
    ),
    OutboxFamily(
        "dispatcher_outbox_held_messages",
        "gauge",
        "Messages accepted and not settled: waiting in the store, or claimed to be sent.",
        lambda _, status: {"waiting": status.waiting, "claimed": status.claimed},
        "state",
        ("waiting", "claimed"),
    ),
    OutboxFamily(
        "dispatcher_outbox_held_bytes",
        "gauge",
        "Bytes of the messages that are not settled.",
        lambda _, status: status.held_bytes,
    ),
    OutboxFamily(
        "dispatcher_outbox_messages_limit",
        "gauge",
        "Messages that may be kept, dead letters included; NaN for a store without this bound.",
        lambda outbox, _: _bound(outbox, "max_messages"),
    ),
    OutboxFamily(
        "dispatcher_outbox_bytes_limit",
        "gauge",
        "Bytes of messages that may be kept, dead letters included; NaN for a store without this bound.",
        lambda outbox, _: _bound(outbox, "max_bytes"),
    ),
    OutboxFamily(
        "dispatcher_outbox_oldest_message_age_seconds",
        "gauge",
        "Age of the oldest message that is not settled, 0 if there is none.",
        lambda _, status: _oldest_age(status),
    ),
    OutboxFamily(
        "dispatcher_outbox_dead_letters",
        "gauge",
        "Messages that the service refused for good, and nobody has decided about.",
        lambda _, status: status.dead,
    ),
    OutboxFamily(
        "dispatcher_outbox_disk_bytes",
        "gauge",
        "What the store takes on its disk.",
        lambda _, status: status.disk_bytes,
    ),
    OutboxFamily(
        "dispatcher_outbox_disk_free_bytes",
        "gauge",
        "What its disk has left; NaN where that is not known.",
        lambda _, status: float("nan") if status.free_bytes is None else status.free_bytes,
    ),
    OutboxFamily(
        "dispatcher_outbox_disk_free_bytes_limit",
        "gauge",
        "What has to stay free there, below which nothing is accepted; NaN for a store without this bound.",
        lambda outbox, _: _bound(outbox, "min_free_bytes"),
    ),
    OutboxFamily(
        "dispatcher_outbox_recovered_messages",
        "gauge",
        "Messages that were not settled when the store was opened.",
        lambda _, status: status.recovered,
    ),
    OutboxFamily(
        "dispatcher_outbox_damaged_records",
        "gauge",
        "Records that could not be read when the store was opened, and were put aside.",
        lambda _, status: status.damaged,
    ),
    OutboxFamily(
        "dispatcher_outbox_failing",
        "gauge",
        "1 while nothing can be kept, or nothing is sent any more; else 0.",
        _is_failing,
    ),
    OutboxFamily(
        "dispatcher_outbox_errors_total",
        "counter",
        "Operations of the store that failed.",
        lambda _, status: dict(status.errors),
        "operation",
        OPERATIONS,
    ),
    OutboxFamily(
        "dispatcher_outbox_returned_total",
        "counter",
        "Times that a message came back to the store for another try.",
        lambda outbox, _: outbox.returned,
    ),
    OutboxFamily(
        "dispatcher_outbox_duplicates_possible_total",
        "counter",
        "Delivered messages that may be doubled: sent again after the service's deduplication window.",
        lambda outbox, _: outbox.duplicates_possible,
    ),
)


def outbox_table() -> str:
    """The families as the README's Markdown table."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for one in OUTBOX_FAMILIES:
        labels = f"`dispatcher`, `{one.label}`: {', '.join(one.values)}" if one.label else "`dispatcher`"
        rows.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(rows) + "\n"
