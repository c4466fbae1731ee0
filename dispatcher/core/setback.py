"""What was not delivered this time: recorded on each entry, put back for another attempt, halved.

Called by `core.settlement`, which knows what the answer meant; the delays and the groups that wait them out
are `core.retry`'s.

*What fails together.* A body can make the service answer 500, time out or hang up, and would take its
ninety-nine neighbours to their deadlines with it. Entries that failed together twice like that while
something else was accepted since the first (or four times with nothing else to send) are halved; each half
travels by itself, with a back-off of its own (which begins anew if others were accepted: the service works),
and is halved again when that repeats. Only under deduplication ids. Measured on the model: 1 of 100 fails
instead of 100, and the others have arrived after one second in the median, three at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.core import failures, retry
from dispatcher.core.batch import BACKING_OFF, IN_FLIGHT, ISOLATED, Batch, Entry, Failure, Reply, Trouble
from dispatcher.core.budget import RETRY_COST, THROTTLED_COST
from dispatcher.core.retry import Group, Ruling
from dispatcher.core.stalls import OVERTAKEN
from dispatcher.core.tally import add
from dispatcher.errors import Attempt

if TYPE_CHECKING:
    from dispatcher.core.engine import Engine
    from dispatcher.core.isolation import Isolation
    from dispatcher.errors import DeliveryError

SAFE_SECONDS: Final = 570.0
"""The service knows an id for ten minutes; half a minute of it is for clocks and the way there."""
DRAIN_PAUSE: Final = 0.01
"""Seconds between attempts at least, however little of a drain is left: no busy loop at its end."""
SUSPECT_AFTER: Final = 2
SUSPECT_AFTER_ALONE: Final = 4
"""The same with nothing else to send: there is no evidence that the service works for anything else."""


def note(
    engine: Engine,
    batch: Batch,
    entries: list[Entry],
    ruling: Ruling,
    answer: Reply | Failure | str,
    now: float,
    *,
    is_charged: bool = True,
) -> None:
    """Record a failed attempt on each entry, and cut deadlines to the window in which repeating is safe.

    What the service merely put off is not charged: it counts for no limit of attempts and no back-off.
    """
    text = answer if isinstance(answer, str) else retry.describe(answer)
    for entry in entries:
        trouble = entry.trouble
        if trouble is None:
            trouble = entry.trouble = Trouble(batch.started_at - batch.slept)
        attempt = Attempt(batch.started_at - entry.admitted_at, text, now - batch.started_at)
        trouble.record(attempt, is_charged=is_charged)
        trouble.paid = 0
        trouble.was_overtaken |= answer is OVERTAKEN
        trouble.learn(ruling.certainty)
        if ruling.is_suspicious:
            if not trouble.suspicions:
                trouble.seen_accepted = engine.acceptances
            trouble.suspicions += 1
        _cut_to_window(engine, entry, trouble)


def _cut_to_window(engine: Engine, entry: Entry, trouble: Trouble) -> None:
    if trouble.certainty == "unknown" and engine.config.after_window == "fail":
        window_ends_at = trouble.first_sent_at + SAFE_SECONDS
        if window_ends_at < entry.deadline:
            trouble.window_ends_at = entry.deadline = window_ends_at
            engine.next_expiry = min(engine.next_expiry, window_ends_at)


def age(engine: Engine, seconds: float) -> None:
    """The machine was suspended: its clock stood still, the service's window for repeating did not.

    The age of an attempt is the larger of what both clocks say, so whatever was sent before is older now.
    """
    for batch in engine.out.values():
        batch.slept += seconds
    for entry in engine.held():
        if entry.trouble is not None:
            entry.trouble.first_sent_at -= seconds
            _cut_to_window(engine, entry, entry.trouble)


def put_back(
    engine: Engine,
    entries: list[Entry],
    ruling: Ruling,
    now: float,
    *,
    is_put_off: bool = False,
    isolation: Isolation | None = None,
    is_sealed: bool = False,
) -> None:
    """Let entries of an answered request wait for another attempt; those that cannot have one settle.

    Args:
        is_put_off: The gate makes them wait: they go back at once, without a back-off of their own.
        isolation: They are its probe, which is repeated whole.
        is_sealed: They travel by themselves, also the next time.
    """
    kept = _repeatable(engine, entries, ruling)
    if not kept:
        if isolation is not None:
            isolation.on_void()
        return
    add(engine.tally.retried, ruling.cause, len(kept))
    if ruling.is_suspicious and any(_is_suspect(engine, entry, now) for entry in kept):
        _halve(engine, kept, ruling, now, isolation=isolation)
        return
    shift(engine, kept, IN_FLIGHT, BACKING_OFF)
    groups = [kept] if is_sealed or isolation is not None else _by_failures(kept)
    cost = 0 if is_put_off else _cost(ruling)
    for group in groups:
        due_at = now if is_put_off else _due_at(engine, group, ruling, now)
        engine.backoffs.add(Group(due_at, group, is_sealed, isolation, cost))
        cost = 0  # what failed in one request travels in one again


def _repeatable(engine: Engine, entries: list[Entry], ruling: Ruling) -> list[Entry]:
    """Those that may be tried again; the others settle."""
    max_attempts = engine.config.retry.max_attempts
    kept = []
    for entry in entries:
        if ruling.certainty == "unknown" and not entry.idempotent:
            why = "without a deduplication id it is not repeated"
            settle_failed(engine, entry, failures.unknown(entry, why), "unknown")
        elif max_attempts is not None and entry.trouble and entry.trouble.failures >= max_attempts:
            settle_failed(engine, entry, failures.exhausted(entry), "retries_exhausted")
        else:
            kept.append(entry)
    return kept


def _by_failures(entries: list[Entry]) -> list[list[Entry]]:
    """Apart by how often they have failed: who is new does not wait as long as who is not."""
    groups: dict[int, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.trouble.streak if entry.trouble else 0, []).append(entry)
    return list(groups.values())


def _cost(ruling: Ruling) -> int:
    """Of sending again, in tokens of the budget; an error entry rides in a request that goes anyway."""
    if ruling.cause == "error_entry":
        return 0
    return THROTTLED_COST if ruling.is_throttle else RETRY_COST


def _due_at(engine: Engine, entries: list[Entry], ruling: Ruling, now: float) -> float:
    config = engine.config.retry
    failed = max(entry.trouble.streak if entry.trouble else 0 for entry in entries)
    base = config.throttle_base if ruling.is_throttle else config.base
    due_at = now + retry.backoff(engine.rng, base, config.max_delay, failed)
    if engine.is_draining:
        left = max(0.0, engine.drain_at - now)
        due_at = min(due_at, max(now + DRAIN_PAUSE, engine.drain_at - min(1.0, left / 4)))
    return due_at


# ------------------------------------------------------------------------------------ what fails together


def _is_suspect(engine: Engine, entry: Entry, now: float) -> bool:
    trouble = entry.trouble
    if trouble is None or not entry.idempotent or trouble.suspicions < SUSPECT_AFTER:
        return False
    if engine.acceptances > trouble.seen_accepted:
        return True
    is_next_due = engine.backoffs.due_at <= now  # it waits for the budget
    has_company = bool(engine.out) or engine.lanes.sendable_messages > 0 or is_next_due
    return trouble.suspicions >= SUSPECT_AFTER_ALONE and not has_company


def _halve(
    engine: Engine,
    kept: list[Entry],
    ruling: Ruling,
    now: float,
    *,
    isolation: Isolation | None,
) -> None:
    """Send the suspects' halves apart; who shares an ordered lane with what goes first stays in the lane."""
    if isolation is not None:
        isolation.on_void()
        followers = isolation.extract({id(entry.lane) for entry in kept if entry.queue is not None})
        shift(engine, followers, ISOLATED, IN_FLIGHT)
        kept = kept + followers
    left, right, loose = _halves(engine, kept, now)
    is_parted = len(left) + len(right) > 1
    # The service works for others, so that this is no matter of load: the search is not paid for.
    is_of_message = any(engine.acceptances > entry.trouble.seen_accepted for entry in kept if entry.trouble)
    cost = 0 if is_of_message else _cost(ruling)
    engine.tally.halvings += is_parted
    shift(engine, kept, IN_FLIGHT, BACKING_OFF)
    for half in (left, right):
        for entry in half:
            assert entry.trouble is not None
            entry.trouble.suspicions = 1
            if is_parted and engine.acceptances > entry.trouble.seen_accepted:
                entry.trouble.streak = 1  # the service works: the search need not wait as for an outage
            entry.trouble.seen_accepted = engine.acceptances
        if half:
            due_at = _due_at(engine, half, ruling, now)
            engine.backoffs.add(Group(due_at, half, is_sealed=True, cost=cost))
    for group in _by_failures(loose):
        engine.backoffs.add(Group(_due_at(engine, group, ruling, now), group))


def _halves(engine: Engine, kept: list[Entry], now: float) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """The suspects' first half, their second half, and what goes back to its lane.

    Of an ordered lane only what stands together at its front may go apart, and in one half only: the rest
    waits in the lane, which stays muted until that half is settled.
    """
    suspects = [entry for entry in kept if _is_suspect(engine, entry, now)]
    first = {entry.number for entry in suspects[: max(1, len(suspects) // 2)]}
    second = {entry.number for entry in suspects} - first
    left: list[Entry] = []
    right: list[Entry] = []
    loose: list[Entry] = []
    place: dict[int, list[Entry]] = {}
    for entry in kept:
        half = left if entry.number in first else right if entry.number in second else loose
        if entry.queue is not None and place.setdefault(id(entry.lane), half) is not half:
            place[id(entry.lane)] = half = loose
        half.append(entry)
    return left, right, loose


# ---------------------------------------------------------------------------------------------- settling


def settle_failed(engine: Engine, entry: Entry, outcome: DeliveryError, word: str) -> None:
    """Settle an entry of an answered request: unlike one still out, it frees its lane."""
    engine.settle(entry, outcome, word)
    resolve(engine, [entry])


def resolve(engine: Engine, entries: list[Entry]) -> None:
    """These are settled and no longer out: their ordered lanes may go on."""
    for entry in entries:
        if entry.queue is not None and entry.lane is not None:
            engine.lanes.resolve(entry.lane, 1)


def shift(engine: Engine, entries: list[Entry], before: int, after: int) -> None:
    """Move entries from one state to another."""
    for entry in entries:
        entry.state = after
    engine.counts[before] -= len(entries)
    engine.counts[after] += len(entries)
