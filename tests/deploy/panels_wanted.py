"""What the dashboard shows, as data: rows of panels, each with its queries, units and words.

`dashboard` makes Grafana's JSON of it, the tests and `panels` read that JSON only. Expressions use the
dashboard's own variables, so that one dashboard serves any number of dispatchers.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

D: Final = 'job=~"$job", instance=~"$instance", dispatcher=~"$dispatcher"'
"""Selects by the variables what is exported of a dispatcher."""
I: Final = 'job=~"$job", instance=~"$instance"'  # noqa: E741 - I for instance
"""The same for what is exported of a process."""
W: Final = "[$__rate_interval]"
BAD: Final = 'outcome!~"delivered|withdrawn"'
NO_ROOM: Final = 'outcome=~"full|store_full|not_durable"'
THRESHOLD: Final = "alert threshold"


class Query(NamedTuple):
    """One query of a panel."""

    expr: str
    legend: str


class Wanted(NamedTuple):
    """One panel."""

    title: str
    description: str
    unit: str
    """Grafana's id of it."""
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    is_stacked: bool = False
    width: int = 8
    """Of 24 columns."""


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Wanted, ...]


def series(title: str, description: str, unit: str, *pairs: str, stacked: bool = False) -> Wanted:
    """A chart of expressions and legends, alternating."""
    queries = tuple(Query(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True))
    return Wanted(title, description, unit, queries, is_stacked=stacked)


def number(title: str, description: str, unit: str, expr: str) -> Wanted:
    """One large figure."""
    return Wanted(title, description, unit, (Query(expr, ""),), kind="stat", width=4)


def quantile(share: float, name: str, more: str = "") -> str:
    """Of a histogram, over everything selected."""
    return f"histogram_quantile({share}, sum by (le) (rate({name}_bucket{{{D}{more}}}{W})))"


ROWS: Final = (
    Row(
        "Overview",
        (
            number(
                "Dispatchers up",
                "Processes that are scraped and answer.",
                "none",
                f"count(up{{{I}}} == 1 and on (job, instance) dispatcher_build_info)",
            ),
            number(
                "Alerts firing",
                "Of those in dispatcher.alerts.yml.",
                "none",
                f'count(ALERTS{{alertname=~"Dispatcher.*", alertstate="firing", {I}}}) or vector(0)',
            ),
            number(
                "Delivered",
                "Messages a second that the service has taken.",
                "mps",
                f'sum(rate(dispatcher_messages_finished_total{{{D}, outcome="delivered"}}{W}))',
            ),
            number(
                "Not delivered",
                "Share of the finished messages that failed, rejected ones, too; not what was taken back.",
                "percentunit",
                f"sum(rate(dispatcher_messages_finished_total{{{D}, {BAD}}}{W}))"
                f' / sum(rate(dispatcher_messages_finished_total{{{D}, outcome!="withdrawn"}}{W}) > 0)'
                " or vector(0)",
            ),
            number(
                "Latency p99",
                "From the producer's call to its receipt, of delivered messages.",
                "s",
                quantile(0.99, "dispatcher_message_latency_seconds", ', stage="total"'),
            ),
            number(
                "Gates not open",
                "Dispatchers that send nothing now: halted, throttled, out of quota, or nobody is there.",
                "none",
                f'sum(dispatcher_gate{{{D}, state!="open"}})',
            ),
        ),
    ),
    Row(
        "Rate, errors, duration",
        (
            series(
                "Messages",
                "Taken from producers and delivered; the two are apart while something piles up.",
                "mps",
                *(f"sum(rate(dispatcher_messages_admitted_total{{{D}}}{W}))", "taken"),
                *(
                    f'sum(rate(dispatcher_messages_finished_total{{{D}, outcome="delivered"}}{W}))',
                    "delivered",
                ),
            ),
            series(
                "Messages not delivered, by outcome",
                "What became of the others. `rejected` is the message's own fault.",
                "mps",
                f"sum by (outcome) (rate(dispatcher_messages_finished_total{{{D}, {BAD}}}{W}))",
                "{{outcome}}",
                stacked=True,
            ),
            series(
                "Message latency",
                "queue: until its first request leaves; delivery: from there to its receipt, with retries.",
                "s",
                *(quantile(0.5, "dispatcher_message_latency_seconds", ', stage="total"'), "p50 total"),
                *(quantile(0.99, "dispatcher_message_latency_seconds", ', stage="total"'), "p99 total"),
                *(quantile(0.99, "dispatcher_message_latency_seconds", ', stage="queue"'), "p99 queue"),
                *(quantile(0.99, "dispatcher_message_latency_seconds", ', stage="delivery"'), "p99 delivery"),
            ),
            series(
                "Requests to the service, by answer",
                "Status codes, or how they ended without one: connect, disconnect, timeout, reply.",
                "reqps",
                f"sum by (code) (rate(dispatcher_requests_total{{{D}}}{W})) > 0",
                "{{code}}",
                stacked=True,
            ),
            series(
                "Request duration",
                "Of requests to the service, until the answer or failure.",
                "s",
                *(quantile(0.5, "dispatcher_request_duration_seconds"), "p50"),
                *(quantile(0.99, "dispatcher_request_duration_seconds"), "p99"),
            ),
            series(
                "Messages a request",
                "What batching gains. Few mean that little is published, or that `batch.linger` is short.",
                "none",
                f"sum(rate(dispatcher_batch_messages_sum{{{D}}}{W}))"
                f" / sum(rate(dispatcher_batch_messages_count{{{D}}}{W}))",
                "mean",
            ),
            series(
                "Callers' requests, by answer",
                "What a sidecar answers; empty for dispatchers inside an application.",
                "reqps",
                f"sum by (code) (rate(dispatcher_intake_requests_total{{{I}}}{W})) > 0",
                "{{code}}",
                stacked=True,
            ),
            series(
                "Messages put back, by cause",
                "Each is another attempt of one message.",
                "mps",
                f"sum by (cause) (rate(dispatcher_messages_retried_total{{{D}}}{W})) > 0",
                "{{cause}}",
                stacked=True,
            ),
            series(
                "Requests, by why they left",
                "messages, bytes: full. idle, linger: what was there. isolation, halving: for a culprit.",
                "reqps",
                f"sum by (reason) (rate(dispatcher_batches_total{{{D}}}{W})) > 0",
                "{{reason}}",
                stacked=True,
            ),
        ),
    ),
    Row(
        "Held and age",
        (
            series(
                "Held messages, by state",
                "Taken and not settled; how near the bound that is, shows beside it.",
                "short",
                f"sum by (state) (dispatcher_held_messages{{{D}}})",
                "{{state}}",
                stacked=True,
            ),
            series(
                "Fill",
                "The fuller of the two bounds, messages and bytes, by dispatcher.",
                "percentunit",
                *(f"dispatcher:held:ratio{{{D}}}", "{{instance}} {{dispatcher}}"),
                *("dispatcher:threshold:held_ratio", THRESHOLD),
            ),
            series(
                "Age of the oldest held message",
                "Past `deliver_within` it fails.",
                "s",
                *(f"dispatcher_oldest_message_age_seconds{{{D}}}", "{{instance}} {{dispatcher}}"),
                *("dispatcher:threshold:message_age_seconds", THRESHOLD),
            ),
            series(
                "Held bytes",
                "Encoded; the memory in use is about twice as much.",
                "bytes",
                f"dispatcher_held_bytes{{{D}}}",
                "{{instance}} {{dispatcher}}",
            ),
            series(
                "Waiting for room",
                "Producers inside the process, and callers of a sidecar, which is one way to count the same.",
                "none",
                *(f"sum(dispatcher_waiting_for_room{{{D}}})", "producers"),
                *(f"sum(dispatcher_intake_waiting{{{I}}})", "callers of sidecars"),
            ),
            series(
                "Messages refused, by why",
                "Never taken, of producers inside the process; and callers of a sidecar that found no room.",
                "mps",
                *(f"sum by (reason) (rate(dispatcher_messages_refused_total{{{D}}}{W}))", "{{reason}}"),
                *(
                    f"sum by (outcome) (rate(dispatcher_intake_failed_messages_total{{{I}, {NO_ROOM}}}{W}))",
                    "callers: {{outcome}}",
                ),
                stacked=True,
            ),
        ),
    ),
    Row(
        "Limit and gate",
        (
            series(
                "Requests in flight, and their limit",
                "The limit is found by what the service refuses.",
                "none",
                *(f"sum(dispatcher_requests_in_flight{{{D}}})", "in flight"),
                *(f"sum(dispatcher_requests_in_flight_limit{{{D}}})", "limit"),
            ),
            series(
                "Gate, share of the dispatchers by state",
                "throttled, quota: asked to wait; outage: nobody is there; halted, refused: the token is.",
                "percentunit",
                f"avg by (state) (dispatcher_gate{{{D}}})",
                "{{state}}",
                stacked=True,
            ),
            series(
                "Retry budget",
                "Tokens left; where they run out, retries wait.",
                "none",
                *(f"dispatcher_retry_budget_tokens{{{D}}} < +Inf", "{{instance}} {{dispatcher}}"),
                *("dispatcher:threshold:retry_budget_tokens", THRESHOLD),
            ),
            series(
                "Cuts of the limit and pauses",
                "A minute, by cause.",
                "none",
                *(
                    f"60 * sum by (cause) (rate(dispatcher_limit_cuts_total{{{D}}}{W}))",
                    "limit cut: {{cause}}",
                ),
                *(f"60 * sum by (kind) (rate(dispatcher_pauses_total{{{D}}}{W}))", "pause: {{kind}}"),
            ),
            series(
                "Searches for a culprit",
                "A minute: batches refused whole (isolations), what kept failing together (halvings).",
                "none",
                *(f"60 * sum(rate(dispatcher_isolations_total{{{D}}}{W}))", "isolations"),
                *(f"60 * sum(rate(dispatcher_halvings_total{{{D}}}{W}))", "halvings"),
            ),
            series(
                "What should not happen",
                "A minute, and queues that stand still.",
                "none",
                *(f"60 * sum(rate(dispatcher_order_violations_total{{{D}}}{W}))", "order violations"),
                *(f"60 * sum(rate(dispatcher_late_acceptances_total{{{D}}}{W}))", "accepted after failing"),
                *(f"60 * sum(rate(dispatcher_unawaited_failures_total{{{D}}}{W}))", "unawaited failures"),
                *(f"sum(dispatcher_stopped_queues{{{D}}})", "stopped queues"),
            ),
        ),
    ),
    Row(
        "Outbox",
        (
            series(
                "Kept messages",
                "Accepted and not settled, and dead letters.",
                "short",
                *(f"sum by (state) (dispatcher_outbox_held_messages{{{D}}})", "{{state}}"),
                *(f"sum(dispatcher_outbox_dead_letters{{{D}}})", "dead letters"),
                stacked=True,
            ),
            series(
                "Fill",
                "The fuller of its bounds; dead letters count.",
                "percentunit",
                *(f"dispatcher:outbox_kept:ratio{{{D}}}", "{{instance}} {{dispatcher}}"),
                *("dispatcher:threshold:outbox_kept_ratio", THRESHOLD),
            ),
            series(
                "Age of its oldest message",
                "Past 9.5 minutes after a try of unknown outcome a resend may deliver twice.",
                "s",
                *(f"dispatcher_outbox_oldest_message_age_seconds{{{D}}}", "{{instance}} {{dispatcher}}"),
                *("dispatcher:threshold:outbox_age_seconds", THRESHOLD),
            ),
            series(
                "Disk",
                "What the file takes, and what may still be written before nothing is accepted.",
                "bytes",
                *(f"dispatcher_outbox_disk_bytes{{{D}}}", "file {{instance}} {{dispatcher}}"),
                *(f"dispatcher:outbox_disk_headroom:bytes{{{D}}}", "headroom {{instance}} {{dispatcher}}"),
                *("dispatcher:threshold:disk_headroom_bytes", THRESHOLD),
            ),
            series(
                "Commits and returns",
                "A commit has messages and outcomes of many callers; a return is another try later.",
                "ops",
                *(f"sum(rate(dispatcher_outbox_commits_total{{{D}}}{W}))", "commits"),
                *(f"sum(rate(dispatcher_outbox_returned_total{{{D}}}{W}))", "returned"),
            ),
            series(
                "Trouble",
                "Failed operations and possible duplicates a minute; stores that fail now; damaged records.",
                "none",
                *(
                    f"60 * sum by (operation) (rate(dispatcher_outbox_errors_total{{{D}}}{W})) > 0",
                    "failed: {{operation}}",
                ),
                *(
                    f"60 * sum(rate(dispatcher_outbox_duplicates_possible_total{{{D}}}{W}))",
                    "duplicates possible",
                ),
                *(f"sum(dispatcher_outbox_failing{{{D}}})", "failing"),
                *(f"sum(dispatcher_outbox_damaged_records{{{D}}})", "damaged"),
            ),
        ),
    ),
    Row(
        "Process",
        (
            series(
                "CPU",
                "Cores in use; an event loop has one.",
                "none",
                *(f"rate(process_cpu_seconds_total{{{I}}}{W})", "{{instance}}"),
                *("dispatcher:threshold:cpu_cores", THRESHOLD),
            ),
            series(
                "Memory",
                "Resident.",
                "bytes",
                f"process_resident_memory_bytes{{{I}}}",
                "{{instance}}",
            ),
            series(
                "File descriptors",
                "Share of those allowed that are open.",
                "percentunit",
                *(f"process_open_fds{{{I}}} / process_max_fds{{{I}}}", "{{instance}}"),
                *("dispatcher:threshold:open_fds_ratio", THRESHOLD),
            ),
            series(
                "Connections of callers",
                "Open at a sidecar's intake.",
                "none",
                f"dispatcher_intake_connections{{{I}}}",
                "{{instance}}",
            ),
            series(
                "Uptime",
                "A saw-tooth is a process that keeps starting again.",
                "s",
                f"time() - process_start_time_seconds{{{I}}}",
                "{{instance}}",
            ),
            series(
                "Duration of a scrape",
                "As Prometheus sees it; it grows where the event loop is busy.",
                "s",
                f"scrape_duration_seconds{{{I}}} and on (job, instance) dispatcher_build_info",
                "{{instance}}",
            ),
        ),
    ),
)
