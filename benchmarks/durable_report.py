"""Figures of what an outbox costs, from their rounds: medians with their spread, ratios, targets, texts.

Ratios are made round by round, of what ran in the same round. Knows nothing of how anything was measured.
Used by `durable` and by what writes the READMEs, whose table of promises stands here: what each setting
keeps, beside what it was measured to cost.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from benchmarks.report import Spread  # noqa: TC001 - msgspec reads it when it decodes
from benchmarks.report_files import machine, machine_words
from benchmarks.sidecar_report import markdown, plain, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.loop_watch import Kept

SINGLE, LINES, RATE = PARTS = ("single", "lines", "rate")
PLAIN: Final = "plain"
SETTINGS: Final = (PLAIN, "full", "normal", "off")
RECEIPT, ASYNC = "receipt", "async"
"""Whether a caller waits for the service's id, or prefers `respond-async`."""
WAITS: Final = {RECEIPT: "the service's id", ASYNC: "`respond-async`"}
LABELS: Final = {SINGLE: "single publishes", LINES: "NDJSON", RATE: "at a fixed rate"}
FORMAT: Final = 1
NOT_OURS: Final = ("json", "only", "directory")

OF_PLAIN_MIN: Final = 0.5
LINES_MIN: Final = 40_000.0
KEPT_MS_MAX: Final = 5.0


class Way(NamedTuple):
    """A row."""

    part: str
    synchronous: str
    """Or `plain`."""
    wait: str


class Took(Struct, frozen=True):
    """What one round of a row took."""

    messages: int
    seconds: float
    """Until all were answered."""
    cpu_seconds: float
    """Of the sidecar, until all had settled."""
    commits: int
    p50_ms: float
    p99_ms: float


class Figures(Struct, frozen=True):
    """One row over all counted rounds."""

    part: str
    synchronous: str
    wait: str
    messages_per_second: Spread
    of_plain: Spread | None
    """Of the plain sidecar's rate in the same round."""
    cpu_us: Spread
    """A message, user and system time of the sidecar's process with all its threads."""
    cpu_of_plain: Spread | None
    messages_a_commit: float | None
    p50_ms: float
    p99_ms: float


class Loop(Struct, frozen=True):
    """How long a loop was kept, in milliseconds: of each round's longest the median, and the longest."""

    part: str
    synchronous: str
    late: Spread
    late_p99: float
    paused: Spread
    by_store: Spread
    outbox: Spread
    outbox_name: str


class Judged(Struct, frozen=True):
    """A target."""

    what: str
    value: float
    bound: float
    is_most: bool = False

    @property
    def holds(self) -> bool:
        """It was reached."""
        return self.value <= self.bound if self.is_most else self.value >= self.bound

    def __str__(self) -> str:
        kind = "most" if self.is_most else "least"
        missed = "" if self.holds else " — MISSED"
        return f"{self.what}: {self.value:,.2f}, wanted is at {kind} {self.bound:,g}{missed}"


class Report(Struct, frozen=True):
    """Everything."""

    figures: list[Figures]
    loops: list[Loop]
    judged: list[Judged]
    connections: int = 0
    rate: int = 0


def ways() -> list[Way]:
    """Every row, in its order."""
    found = []
    for part in PARTS:
        found += [Way(part, one, RECEIPT) for one in SETTINGS]
        if part != RATE:
            found += [Way(part, one, ASYNC) for one in SETTINGS if one != PLAIN]
    return found


def report(
    took: Mapping[Way, Sequence[Took]],
    kept: Mapping[Way, Sequence[Kept]],
    connections: int = 0,
    rate: int = 0,
) -> Report:
    """What the rounds come to."""
    figures = [_figures(way, took) for way in ways() if way in took]
    loops = [_loop(way, rounds) for way, rounds in kept.items()]
    judged = [one for row in figures for one in _judged(row)]
    judged += [one for row in loops for one in _judged_loop(row)]
    return Report(figures, loops, judged, connections, rate)


def _figures(way: Way, took: Mapping[Way, Sequence[Took]]) -> Figures:
    mine, beside = took[way], took.get(Way(way.part, PLAIN, RECEIPT))
    pairs = None if beside is None or way.part == RATE else list(zip(mine, beside, strict=True))
    commits = sum(one.commits for one in mine)
    return Figures(
        part=way.part,
        synchronous=way.synchronous,
        wait=way.wait,
        messages_per_second=spread(map(_rate, mine)),
        of_plain=None if pairs is None else spread(_rate(one) / _rate(other) for one, other in pairs),
        cpu_us=spread(map(_cpu_us, mine)),
        cpu_of_plain=None if pairs is None else spread(_cpu_us(one) / _cpu_us(other) for one, other in pairs),
        messages_a_commit=sum(one.messages for one in mine) / commits if commits else None,
        p50_ms=median(one.p50_ms for one in mine),
        p99_ms=median(one.p99_ms for one in mine),
    )


def _rate(one: Took) -> float:
    return one.messages / one.seconds


def _cpu_us(one: Took) -> float:
    return one.cpu_seconds / one.messages * 1e6


def _loop(way: Way, rounds: Sequence[Kept]) -> Loop:
    longest = max(rounds, key=lambda one: one.outbox)
    return Loop(
        part=way.part,
        synchronous=way.synchronous,
        late=spread(one.late for one in rounds),
        late_p99=median(one.late_p99 for one in rounds),
        paused=spread(one.paused for one in rounds),
        by_store=spread(one.by_store for one in rounds),
        outbox=spread(one.outbox for one in rounds),
        outbox_name=longest.outbox_name,
    )


def _judged(one: Figures) -> Iterable[Judged]:
    if one.synchronous != "full" or one.wait != RECEIPT:
        return
    if one.part == SINGLE and one.of_plain is not None:
        yield Judged("durable single publishes, of the plain sidecar's", one.of_plain.median, OF_PLAIN_MIN)
    elif one.part == LINES:
        yield Judged("durable NDJSON, messages a second", one.messages_per_second.median, LINES_MIN)


def _judged_loop(one: Loop) -> Iterable[Judged]:
    """What an outbox can do to the loop: run in its place, or have a long callback in it. The worst."""
    if one.synchronous != PLAIN:
        value = max(one.by_store.max, one.outbox.max)
        what = f"{LABELS[one.part]}, {one.synchronous}: ms that the store kept the loop at most"
        yield Judged(what, value, KEPT_MS_MAX, is_most=True)


# ------------------------------------------------------------------------------------------------- tables


def text(found: Report) -> str:
    """For a terminal."""
    parts = [plain(speed_rows(found.figures))] if found.figures else []
    parts += [plain(loop_rows(found.loops))] if found.loops else []
    return "\n\n".join([*parts, *map(str, found.judged)])


def speed_rows(rows: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A heading, and a line for each row."""
    head = (
        *("", "`synchronous`", "answered with", "messages/s", "(min–max)", "of the plain one", "(min–max)"),
        *("CPU µs a message", "of the plain one's", "messages a commit", "p50 / p99 ms"),
    )
    return [head, *map(_speed_cells, rows)]


def _speed_cells(one: Figures) -> tuple[str, ...]:
    rate, ratio, cpu = one.messages_per_second, one.of_plain, one.cpu_of_plain
    is_rate = one.part == RATE
    return (
        LABELS[one.part],
        "no outbox" if one.synchronous == PLAIN else one.synchronous,
        WAITS[one.wait],
        f"{rate.median:,.0f}",
        f"{rate.min:,.0f}–{rate.max:,.0f}",
        "–" if ratio is None else f"{ratio.median:.2f}",
        "–" if ratio is None else f"{ratio.min:.2f}–{ratio.max:.2f}",
        "–" if is_rate else f"{one.cpu_us.median:.1f}",
        "–" if cpu is None else f"{cpu.median:.2f}",
        "–" if one.messages_a_commit is None else f"{one.messages_a_commit:,.0f}",
        f"{one.p50_ms:.1f} / {one.p99_ms:.1f}" if one.p50_ms else "–",
    )


def loop_rows(rows: Sequence[Loop]) -> list[tuple[str, ...]]:
    """Likewise."""
    head = (
        *("the loop at", "`synchronous`", "late ms, at most", "(min–max)", "p99", "paused ms, at most"),
        *("(min–max)", "of it by the store", "(min–max)", "longest callback of the outbox, CPU ms"),
    )
    return [head, *map(_loop_cells, rows)]


def _loop_cells(one: Loop) -> tuple[str, ...]:
    late, paused, by_store = one.late, one.paused, one.by_store
    is_plain = one.synchronous == PLAIN
    return (
        LABELS[one.part],
        "no outbox" if is_plain else one.synchronous,
        f"{late.median:.1f}",
        f"{late.min:.1f}–{late.max:.1f}",
        f"{one.late_p99:.1f}",
        f"{paused.median:.1f}",
        f"{paused.min:.1f}–{paused.max:.1f}",
        "–" if is_plain else f"{by_store.median:.1f}",
        "–" if is_plain else f"{by_store.min:.1f}–{by_store.max:.1f}",
        "–" if is_plain else f"{one.outbox.max:.1f}",
    )


# ------------------------------------------------------------------------------------------------- files


def document(
    found: Report,
    took: Mapping[Way, Sequence[Took]],
    kept: Mapping[Way, Sequence[Kept]],
    asked: Mapping[str, Any],
) -> bytes:
    """The whole report as JSON: figures, every round, method, machine."""
    content = {
        "format": FORMAT,
        "method": {
            **{name: value for name, value in asked.items() if name not in NOT_OURS},
            "order": "interleaved; the first round is not counted",
            "cores": "the sidecar with its threads on one, callers and upstream on the other",
            "cpu": "user and system time of the sidecar's process until all had settled",
            "ratios": "of each round, their median",
            "loop": "daemons of their own, in which every callback is timed",
        },
        "machine": machine(),
        "report": found,
        "rounds": {"took": _written(took), "kept": _written(kept)},
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _written(rounds: Mapping[Way, Sequence[Any]]) -> list[dict[str, Any]]:
    return [{**way._asdict(), "rounds": list(some)} for way, some in rounds.items()]


def read(path: Path) -> tuple[str, Report]:
    """A report that was written: the machine in a few words, and the figures."""
    content = msgspec.json.decode(path.read_bytes())
    return machine_words(content["machine"]), msgspec.convert(content["report"], Report)


def details(path: Path) -> str:
    """The tables of the benchmarks' own README."""
    words, found = read(path)
    parts = [markdown(speed_rows(found.figures), texts=3), markdown(loop_rows(found.loops), texts=2)]
    return "\n\n".join([*parts, f"{words}."])


# ----------------------------------------------------------------------------------------------- promises


def promises(path: Path) -> str:
    """The table of the project's README: what an acknowledged message survives, and what that costs."""
    words, found = read(path)
    rows = {Way(one.part, one.synchronous, one.wait): one for one in found.figures}
    survives = {
        "off": "the process's end, `kill -9`; a loss of power may take the last messages or the file",
        "normal": "the same; a loss of power may take the last messages, not the file",
        "full": "also a loss of power, as far as the disk tells the truth",
    }
    asynchronous = _speed(rows, "full", ASYNC)
    names = {"full": '`synchronous = "full"` (default)'}
    syncs = {"off": "no sync", "normal": "a sync now and then", "full": "a sync for each commit, shared"}
    table = [
        ("", "an acknowledged message survives", "what it costs"),
        ("no outbox", "nothing: 200 means that the service has it", f"nothing: {_speed(rows, PLAIN)}"),
        (
            "`respond-async`, or `respond_after = 0`",
            "as the line below that applies; 202 says that the file has it, not the service",
            f"a rejection is learnt only by asking, or from the dead letters; {asynchronous} (`full`)",
        ),
    ]
    for name, what in survives.items():
        table.append(
            (names.get(name, f'`synchronous = "{name}"`'), what, f"{syncs[name]}; {_speed(rows, name)}")
        )
    return (
        f"{markdown(table, texts=3)}\n\n"
        "Measured together, on one core of sidecar: publishes a second over "
        f"{found.connections} connections, and their share of those without an outbox; messages a second as "
        f"NDJSON; median latency (p99) at {found.rate:,} publishes a second. uvloop; {words}. "
        "[How, and all of it](benchmarks/README.md#the-outbox): `python -m benchmarks.durable`."
    )


def _speed(rows: Mapping[Way, Figures], synchronous: str, wait: str = RECEIPT) -> str:
    single, many = rows[Way(SINGLE, synchronous, wait)], rows[Way(LINES, synchronous, wait)]
    words = f"{single.messages_per_second.median:,.0f} publishes/s"
    if single.of_plain is not None and synchronous != PLAIN:
        words += f" ({single.of_plain.median:.2f})"
    words += f", {many.messages_per_second.median:,.0f} as NDJSON"
    calm = rows.get(Way(RATE, synchronous, wait))
    return words if calm is None else f"{words}, {calm.p50_ms:.1f} ms ({calm.p99_ms:.1f})"
