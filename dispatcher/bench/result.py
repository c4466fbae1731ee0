"""What a run came to, as plain records: for the report, the page, and as JSON for other programs.

Made from a `Recorder` and what the target counted. No token, no body and no destination is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from dispatcher.bench.machine import peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.bench.find import Finding
    from dispatcher.bench.histogram import LogHistogram
    from dispatcher.bench.machine import Effort
    from dispatcher.bench.recorder import Recorder, Row

SCHEMA: Final = "dispatcher-bench/1"
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
LATE_SHARE: Final = 0.01
BUSY_SHARE: Final = 0.95
CURVE_POINTS: Final = 400
STAGES: Final = {
    "lag": "intended start → handed over, the generator's own lateness",
    "admission": "handed over → taken in",
    "room": "of that, the wait for room or for a connection",
    "dispatch": "taken in → confirmed, retries included",
    "queue": "of that, until its first request",
    "delivery": "of that, from its first request on",
    "request": "one request and its answer",
    "total": "intended start → confirmed",
}
"""What a run's latencies are divided into; only a dispatcher has a queue and a delivery."""
COARSE: Final = frozenset({"queue", "delivery"})
"""By the dispatcher's own clock, which with uvloop counts whole milliseconds."""


class Quantiles(Struct, frozen=True):
    """One stage, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float = msgspec.field(name="p99.9")
    max: float = 0.0

    @classmethod
    def of(cls, stage: LogHistogram) -> Quantiles:
        """Its quantiles."""
        p50, p90, p99, p999 = (stage.quantile(share) for share in SHARES.values())
        return cls(stage.count, stage.mean, p50, p90, p99, p999, stage.greatest)


class Counts(Struct, frozen=True):
    """What the target counted during the run."""

    requests: Mapping[str, int]
    """By status, or kind of failure."""
    carried: int
    """Messages in them, each as often as it was sent."""
    retried: Mapping[str, int] = {}
    """Messages put back for another attempt, by cause."""
    pauses: Mapping[str, int] = {}
    """Times that the gate closed, by why."""
    cuts: Mapping[str, int] = {}
    """Times that the limit was lowered, by why."""
    batches: Mapping[str, int] = {}
    """Requests by why the batch left."""
    stages: Mapping[str, LogHistogram] = {}
    """Latencies that only the target knows."""


class Result(Struct, frozen=True, kw_only=True):
    """One run."""

    seconds: float
    """From the schedule's beginning to its end, or to the last outcome after it."""
    asked: int
    delivered: int
    failed: int
    unfinished: int
    """Had neither been confirmed nor failed when the waiting ended; they count in `total` with their age."""
    asked_rate: float
    achieved_rate: float
    """Delivered messages a second."""
    errors: Mapping[str, int]
    requests: int
    request_rate: float
    fill: float
    """Messages a request."""
    by_status: Mapping[str, int]
    retried: Mapping[str, int]
    pauses: Mapping[str, int]
    cuts: Mapping[str, int]
    batches: Mapping[str, int]
    stages: Mapping[str, Quantiles]
    late_share: float
    """Of the messages, taken in more than 5 ms late, not counting the time without room: our own doing."""
    cpu_us: float
    """Processor time of this process a message, the generator included."""
    cpu_share: float
    """Of one processor."""
    upstream_cpu_share: float | None
    """The local upstream's; `None` for another one."""
    peak_memory_bytes: int | None
    stopped: str
    """Why it ended early, else empty."""
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    """Of each stage: share of the messages, and the seconds that it does not exceed."""

    @property
    def is_clean(self) -> bool:
        """Everything asked for was delivered."""
        return not (self.failed or self.unfinished) and self.delivered > 0


class Report(Struct, frozen=True, kw_only=True):
    """Everything there is to tell."""

    schema: str = SCHEMA
    version: str
    at: str
    """When it ended, ISO 8601."""
    target: str
    """In words, with its URL."""
    load: str
    """In words."""
    method: tuple[str, ...]
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    """What the load was asked for."""
    settings: Mapping[str, Any]
    """Of the dispatcher; secrets are not among them."""
    result: Result | None = None
    """Of a run."""
    finding: Finding | None = None
    """Of a search."""
    is_refused: bool = False
    """The upstream refuses the token or the URL, and accepted nothing."""
    stopped: str = ""
    """Why it ended early, else empty."""

    def to_json(self) -> bytes:
        """Indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def sum_up(
    recorder: Recorder,
    counts: Counts,
    duration: float,
    effort: tuple[Effort, Effort],
    stopped: str,
) -> Result:
    """The result of a run that has ended."""
    ended = recorder.ended_at - recorder.began
    seconds = max(ended, recorder.rows[-1].at if stopped and recorder.rows else duration)
    requests = sum(counts.requests.values())
    stages = {
        "lag": recorder.lag,
        "admission": recorder.admission,
        "room": recorder.room,
        "dispatch": recorder.dispatch,
        "total": recorder.total,
        **counts.stages,
    }
    stages = {name: stages[name] for name in STAGES if name in stages and stages[name].count}
    before, after = effort
    wall = max(after.at - before.at, 1e-9)
    cpu_share = (after.own - before.own) / wall
    upstream_share = _share(before.upstream, after.upstream, wall)
    late_share = recorder.late / max(1, recorder.taken)
    return Result(
        seconds=seconds,
        asked=recorder.due,
        delivered=recorder.delivered,
        failed=recorder.failed,
        unfinished=recorder.unfinished,
        asked_rate=recorder.due / (seconds if stopped else duration),
        achieved_rate=recorder.delivered / seconds,
        errors=dict(recorder.errors.most_common()),
        requests=requests,
        request_rate=requests / seconds,
        fill=counts.carried / max(1, requests),
        by_status=counts.requests,
        retried=counts.retried,
        pauses=counts.pauses,
        cuts=counts.cuts,
        batches=counts.batches,
        stages={name: Quantiles.of(stage) for name, stage in stages.items()},
        late_share=late_share,
        cpu_us=(after.own - before.own) / recorder.delivered * 1e6 if recorder.delivered else 0.0,
        cpu_share=cpu_share,
        upstream_cpu_share=upstream_share,
        peak_memory_bytes=peak_memory_bytes(),
        stopped=stopped,
        warnings=_warnings(late_share, cpu_share, upstream_share) if recorder.due else (),
        rows=tuple(recorder.rows),
        curves={name: _thinned(stage) for name, stage in stages.items()},
    )


def _share(before: float | None, after: float | None, wall: float) -> float | None:
    return None if before is None or after is None else (after - before) / wall


def _warnings(late_share: float, cpu_share: float, upstream_share: float | None) -> tuple[str, ...]:
    found = []
    if late_share > LATE_SHARE:
        found.append(
            f"{late_share:.1%} of the messages were taken in more than 5 ms late because this process was "
            "busy, and not for want of room: its processor is part of what was measured"
        )
    if cpu_share > BUSY_SHARE:
        found.append(
            f"this process used {cpu_share:.0%} of a processor, the generator included: it may be the limit"
        )
    if upstream_share is not None and upstream_share > BUSY_SHARE:
        found.append(f"the local upstream used {upstream_share:.0%} of a processor: it may be the limit")
    return tuple(found)


def _thinned(stage: LogHistogram) -> tuple[tuple[float, float], ...]:
    """The curve with a bounded number of points, its end kept."""
    points = list(stage.curve())
    step = -(-len(points) // CURVE_POINTS)
    return (*points[:-1:step], points[-1])
