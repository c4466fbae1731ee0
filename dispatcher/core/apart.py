"""What does not come from the lanes: probes of isolations, and halves of what failed together.

They go before the lanes, by themselves, and never hold the last slot. Called by `engine` only, whose
structures are changed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.core.batch import ISOLATED, SETTLED, Batch, Entry

if TYPE_CHECKING:
    from dispatcher.core.engine import Engine
    from dispatcher.core.isolation import Isolation


def next_apart(engine: Engine) -> Batch | None:
    """The next probe or half that may start."""
    if engine.apart >= max(1, engine.limit.value - 1):
        return None
    while engine.repeats:
        batch = engine.repeats.popleft()
        live = ready(engine, batch.entries, batch.isolation)
        if live:
            return as_batch(live, batch.isolation)
    for isolation in engine.isolations[: engine.config.limit.isolations]:
        while not isolation.is_probing:
            entries = isolation.next_probe()
            if entries is None:
                _end(engine, isolation)
                return next_apart(engine)
            live = ready(engine, entries, isolation)
            if live:
                return as_batch(live, isolation)
    return None


def ready(engine: Engine, entries: list[Entry], isolation: Isolation | None) -> list[Entry]:
    """Those of a set-apart batch that may go: not settled, and not of a queue that has stopped since."""
    live = [entry for entry in entries if entry.state != SETTLED]
    stopped = [entry for entry in live if entry.lane is not None and entry.lane.is_stopped]
    if stopped:
        if isolation is not None:  # what follows them must not be probed before they have gone
            stopped += isolation.extract({id(entry.lane) for entry in stopped})
        engine.counts[ISOLATED] -= len(stopped)
        engine.lanes.restore(stopped)
        live = [entry for entry in live if entry.state == ISOLATED]
    if isolation is not None:
        if live:
            isolation.shrink(live)
        else:
            isolation.on_void()
    return live


def _end(engine: Engine, isolation: Isolation) -> None:
    engine.isolations.remove(isolation)
    if isolation.is_of_size and not isolation.has_culprit:
        engine.ceiling.on_too_large(*isolation.size, isolation.largest_passed)
        engine.heed_ceiling()


def as_batch(entries: list[Entry], isolation: Isolation | None) -> Batch:
    """A probe, or a half of what failed together."""
    return Batch(
        entries,
        sum(len(entry.data) for entry in entries),
        "halving" if isolation is None else "isolation",
        single=entries[0].single,
        isolation=isolation,
        is_sealed=isolation is None,
        has_ordered=any(entry.queue is not None for entry in entries),
    )
