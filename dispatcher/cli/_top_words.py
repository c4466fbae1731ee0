"""The words and figures of `dispatcher top`: numbers with units, names of states, what deserves a sentence.

Plain text without colours or a terminal; the same words as on the status page. What comes from a listener is
made printable here (`printable`) before anything else sees it: a terminal obeys what it is sent. Called by
the modules that read and draw.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dispatcher.cli._top_report import Outbox, Report

NONE: Final = "–"
STATES: Final = {
    "open": ("Ready", "ok"),
    "throttled": ("Throttled", "warn"),
    "quota": ("Quota spent", "warn"),
    "outage": ("Outage", "warn"),
    "halted": ("Halted", "bad"),
    "refused": ("Refused", "bad"),
    "new": ("Starting", "idle"),
    "draining": ("Stopped", "bad"),
    "closed": ("Stopped", "bad"),
}
"""Of the gate: the word, and how bad it is."""
PHASES: Final = {
    "starting": ("Starting", "idle"),
    "draining": ("Draining", "warn"),
    "closed": ("Closed", "idle"),
}
"""Of the process; they say more than the gate's."""
SPARKS: Final = "▁▂▃▄▅▆▇█"
_OBEYED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]+"
)
"""Control characters, what turns the direction of a line, and what has no width."""
_LONG_AGO: Final = 64_800
"""Seconds after which an instant needs its day."""


class Note(NamedTuple):
    """A sentence about something unusual."""

    tone: str
    head: str
    text: str


def printable(value: Any) -> Any:
    """A value decoded from JSON with every text in it, keys too, fit for a terminal.

    Raises:
        ValueError: A number is not finite.
    """
    if isinstance(value, str):
        return _OBEYED.sub(" ", value)
    if isinstance(value, list):
        return [printable(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): printable(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value


# ----------------------------------------------------------------------------------------------- figures


def rate(value: float) -> str:
    """Of something a second: three digits, or whole."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def many(number: int, one: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def span(seconds: float | None) -> str:
    """A duration with the unit that suits it."""
    if seconds is None:
        return NONE
    for least, size, unit in ((172_800, 86_400, "d"), (7_200, 3_600, "h"), (120, 60, "min"), (1, 1, "s")):
        if seconds >= least:
            return f"{rate(seconds / size)} {unit}"
    if seconds <= 0:
        return "0 s"
    return f"{rate(seconds * 1e3)} ms" if seconds >= 0.001 else f"{rate(seconds * 1e6)} µs"


def age(seconds: float) -> str:
    """A time that has passed, in whole units: 3 h 12 min."""
    whole, units = int(seconds), ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    for place, (size, unit) in enumerate(units):
        if whole >= size:
            below, below_unit = units[place + 1] if place + 1 < len(units) else (whole + 1, "")
            rest = whole % size // below
            return f"{whole // size:,} {unit}" + (f" {rest} {below_unit}" if rest else "")
    return "0 s"


def size(number: float) -> str:
    """Bytes."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{rate(number)} {units[0]}"


def instant(at: float, now: float) -> str:
    """A time of this day, by this machine's zone; with its day if it is long ago."""
    try:
        when = datetime.fromtimestamp(at, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return NONE
    return f"{when:%H:%M:%S}" if abs(now - at) < _LONG_AGO else f"{when:%d %b %H:%M:%S}"


def words(name: str) -> str:
    """A name of the code as words."""
    return name.replace("_", " ")


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What there was, the most frequent first."""
    return sorted(((name, number) for name, number in counts.items() if number), key=lambda pair: -pair[1])


def spark(samples: Iterable[tuple[float, float]], now: float, seconds: float, cells: int) -> str:
    """The last seconds as so many characters, between nothing and the highest; a blank where no sample is.

    Args:
        samples: Instants and values.
    """
    found: list[list[float]] = [[] for _ in range(cells)]
    for at, value in samples:
        place = math.ceil((at - now + seconds) / seconds * cells) - 1
        if 0 <= place < cells:
            found[place].append(value)
    means = [sum(values) / len(values) if values else None for values in found]
    for place in range(1, cells - 1):
        # Samples come once a second, but not to the millisecond: between two of them there is no hole.
        if means[place] is None and found[place + 1]:
            means[place] = means[place - 1]
    top = max((mean for mean in means if mean is not None), default=0.0)
    return "".join(" " if mean is None else SPARKS[_step(mean, top)] for mean in means)


def _step(value: float, top: float) -> int:
    return min(len(SPARKS) - 1, max(0, round(value / top * (len(SPARKS) - 1)))) if top > 0 else 0


# ------------------------------------------------------------------------------------------ what is said


def state_of(phase: str, state: str) -> tuple[str, str]:
    """What a process in this phase with this gate is called, and how bad that is."""
    return PHASES.get(phase) or STATES.get(state) or (state, "warn")


def tone_of(code: str) -> str:
    """How bad an answer is, by its status or by what came in its place."""
    return {"2": "ok", "3": "ok", "4": "warn"}.get(code[:1], "bad")


def notes(now: Report) -> list[Note]:
    """What deserves a sentence."""
    found = [*_of_the_phase(now), *_of_the_gate(now), *_of_the_queues(now)]
    if now.outbox is not None and (now.outbox.death or now.outbox.failure):
        then = "Restart the process." if now.outbox.death else "Nothing is accepted until it works again."
        found.append(Note("bad", "Outbox.", f"{now.outbox.death or now.outbox.failure}. {then}"))
    return found


def _of_the_phase(now: Report) -> list[Note]:
    if now.phase == "draining":
        held = many(now.held.messages, "message")
        text = f"Nothing new is taken; it ends when what is held ({held}) is delivered, or its time is up."
        return [Note("warn", "Draining.", text)]
    return [Note("idle", "Closed.", "The drain is over.")] if now.phase == "closed" else []


def _of_the_gate(now: Report) -> list[Note]:
    gate, held = now.gate, many(now.held.messages, "message")
    pause = math.ceil(gate.paused_for)
    wait = f" The next request may try in {span(pause)}." if pause > 0 else ""
    refusal = f"The upstream refuses the token or the URL ({gate.reason})."
    cure = "replace it, and send the process SIGHUP."
    said = {
        "halted": (
            "bad",
            "Halted.",
            f"{refusal} What is held ({held}) waits for another token: {cure}{wait}",
        ),
        "refused": (
            "bad",
            "Refused at first contact.",
            f"{refusal} Messages fail at once until it takes one.{wait}",
        ),
        "throttled": (
            "warn",
            "Throttled.",
            f"The service asked to wait.{wait} Nothing is lost: {held} held.",
        ),
        "quota": (
            "warn",
            "Quota spent.",
            f"The account's daily quota is used up.{wait} What cannot wait so long fails.",
        ),
        "outage": (
            "warn",
            "Outage.",
            f"Nobody answers at the upstream; single requests try again. {held} held.",
        ),
    }
    if gate.state in said:
        return [Note(*said[gate.state])]
    if now.phase == "ready" and gate.state in ("draining", "closed"):
        return [Note("bad", "Stopped.", "The dispatcher has died; restart the process. Its log says why.")]
    return []


def _of_the_queues(now: Report) -> list[Note]:
    total, named = now.gate.stopped_queues_total, now.gate.stopped_queues
    if not total:
        return []
    more = f" and {total - len(named):,} more" if total > len(named) else ""
    return [
        Note("warn", f"{many(total, 'queue')} stopped at a failed message:", f"{', '.join(named)}{more}.")
    ]


def of_outbox(box: Outbox) -> Sequence[str]:
    """What it keeps, in parts."""
    oldest = "" if box.oldest_age is None else f", oldest {span(box.oldest_age)}"
    free = "" if box.free_bytes is None else f", {size(box.free_bytes)} free"
    return (
        f"{box.waiting + box.claimed:,} held{oldest}",
        many(box.dead, "dead letter"),
        f"{size(box.disk_bytes)} on disk{free}",
    )
