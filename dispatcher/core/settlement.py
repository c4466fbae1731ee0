"""What an answer does to the entries of its request: settled, put back, isolated.

One function a verdict; the verdicts themselves stand in `core.retry`. Called by the engine only, which
owns every structure that is changed here.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

from dispatcher.core import failures, retry
from dispatcher.core.batch import IN_FLIGHT, ISOLATED, SETTLED, Entry, Failure, Reply, Run
from dispatcher.core.budget import EARNED
from dispatcher.core.isolation import Isolation, is_named
from dispatcher.core.replies import (
    Accepted,
    AcceptedByGroup,
    NotAccepted,
    Outcome,
    Unclear,
    error_text,
    read_receipts,
    read_reply,
    read_single_reply,
    service_words,
)
from dispatcher.core.retry import Ruling, Verdict
from dispatcher.core.setback import SAFE_SECONDS, note, put_back, resolve, settle_failed, shift
from dispatcher.core.stalls import OVERTAKEN
from dispatcher.core.tally import add
from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.core.batch import Batch
    from dispatcher.core.engine import Engine
    from dispatcher.core.gate import Pause
    from dispatcher.errors import Certainty

RULINGS_OF_ENTRIES: Final[dict[Certainty, Ruling]] = {
    "not_accepted": Ruling(Verdict.RETRY, "not_accepted", "neutral", "error_entry"),
    "unknown": Ruling(Verdict.RETRY, "unknown", "neutral", "error_entry"),
}
"""The verdict on one position of an accepted request: an error entry, or one that says neither."""
_trouble: Final = attrgetter("trouble")
WAKE_SECONDS: Final = 0.5
"""After an outage everything that backs off goes within it."""
NOT_FOUND: Final = 404
FIRST_CONTACT_WORDS: Final = "nothing was ever accepted under this URL and token"


def apply_answer(
    engine: Engine, batch: Batch, answer: Reply | Failure, now: float, *, was_reached: bool
) -> None:
    """Settle, put back or isolate every entry of an answered request."""
    ruling = retry.judge(answer)
    outcomes: Sequence[Outcome] = ()
    receipts: list[Receipt] | None = None
    if isinstance(answer, Reply) and ruling.verdict is Verdict.DELIVERED:
        receipts = _receipts(batch, answer)
        if receipts is None:
            read = _read(batch, answer)
            ruling, outcomes = (retry.UNREADABLE, ()) if read is None else (ruling, read)
    tally = engine.tally
    add(tally.requests, str(answer.status) if isinstance(answer, Reply) else answer.kind)
    tally.request_seconds.observe(now - batch.started_at)
    before = engine.gate.pause
    if receipts is not None:
        _deliver_all(engine, batch, receipts, now)
    else:
        live = batch.entries
        if batch.has_expired:
            live = [entry for entry in live if entry.state == IN_FLIGHT]
            resolve(engine, [entry for entry in batch.entries if entry.state == SETTLED])
        if outcomes:
            _deliver(engine, batch, outcomes, now)
        else:
            _not_delivered(engine, batch, live, ruling, answer, now)
    _adapt(engine, batch, ruling, before, now, was_reached=was_reached)
    if receipts is not None or outcomes:
        engine.stalls.on_success(now - batch.started_at)
        for lost in engine.stalls.overtaken(engine.out, batch, now):
            engine.complete(lost, OVERTAKEN, now)
    pause = engine.gate.pause
    if pause is not None and pause.kind == "quota":
        engine.fail_quota(engine.parked())  # also what this answer has just put back


def _adapt(
    engine: Engine, batch: Batch, ruling: Ruling, before: Pause | None, now: float, *, was_reached: bool
) -> None:
    """The limit learns from answers at an open gate and from its opening; to close it is no cut besides."""
    after = engine.gate.pause
    is_cut = engine.limit.observe(
        ruling.signal if after is None else "neutral",
        started_at=batch.started_at,
        now=now,
        messages=len(batch.members),
        was_reached=was_reached,
    )
    if is_cut:
        add(engine.tally.cuts, ruling.cause)
    if before is None and after is not None and after.kind == "outage":
        add(engine.tally.pauses, after.kind)
    elif before is not None and after is None:
        engine.limit.on_reopened(was_refused=before.kind == "throttle")
        if before.kind == "outage":
            engine.backoffs.wake(now, engine.rng, WAKE_SECONDS)


def _not_delivered(
    engine: Engine, batch: Batch, live: list[Entry], ruling: Ruling, answer: Reply | Failure, now: float
) -> None:
    if isinstance(answer, Reply) and ruling.is_throttle:
        _throttled(engine, batch, live, ruling, answer, now)
    elif isinstance(answer, Reply) and _is_halting(engine, ruling):
        _halt(engine, batch, live, ruling, answer, now)
    elif isinstance(answer, Reply) and ruling.verdict is Verdict.SPLIT:
        note(engine, batch, live, ruling, answer, now)
        engine.gate.on_understood(batch.number)
        _split(engine, batch, live, ruling, answer, now)
    else:
        note(engine, batch, live, ruling, answer, now)
        if now - batch.started_at < ruling.outage_within:
            is_of_load = ruling.certainty != "not_sent"
            engine.gate.on_failed_at_once(
                batch.number, now, engine.rng, oldest=engine.oldest_out(), is_of_load=is_of_load
            )
        else:
            engine.gate.on_answered(batch.number, now)
        put_back(engine, live, ruling, now, isolation=batch.isolation, is_sealed=batch.is_sealed)


def _is_halting(engine: Engine, ruling: Ruling) -> bool:
    """A refused token or URL, or, once halted, the same refusal of whatever is tried."""
    refusal = engine.gate.refusal
    is_known = ruling.may_be_systemic and refusal is not None and refusal.is_systemic
    return ruling.verdict is Verdict.HALT or is_known


def _throttled(
    engine: Engine, batch: Batch, live: list[Entry], ruling: Ruling, reply: Reply, now: float
) -> None:
    """Too fast, or the quota is spent: with a word about time all wait, without one this batch does."""
    pause = retry.pause_of(reply)
    note(engine, batch, live, ruling, reply, now, is_charged=pause is None)
    before = engine.gate.pause
    if pause is None:
        engine.gate.on_bare(batch.number, now, engine.rng, oldest=engine.oldest_out())
    else:
        engine.gate.on_pause(batch.number, pause, now, engine.rng)
    if pause is not None or engine.gate.pause is not before:
        add(engine.tally.pauses, "throttle" if pause is None else pause.kind)
    put_back(
        engine,
        live,
        ruling,
        now,
        is_put_off=pause is not None,
        isolation=batch.isolation,
        is_sealed=batch.is_sealed,
    )


# ------------------------------------------------------------------------------------------- delivered


def _receipts(batch: Batch, reply: Reply) -> list[Receipt] | None:
    """The receipts of a batch of which everything was taken at the first attempt: nearly every one."""
    members = batch.members
    if batch.has_expired or batch.single is not None or len(members) == 1:
        return None
    if isinstance(members, list) and any(map(_trouble, members)):
        return None
    return read_receipts(reply.body, len(members))


def _deliver_all(engine: Engine, batch: Batch, receipts: list[Receipt], now: float) -> None:
    """Settle each message by its own position, in the fewest steps."""
    run = batch.run
    if run is None:
        entries = batch.entries
        for entry, receipt in zip(entries, receipts, strict=True):
            receipt.deduplication_id = entry.deduplication_id
            if receipt.deduplicated and entry.owns_id:
                receipt.deduplicated = False  # as in `_receipt`
            entry.outcome = receipt
            entry.state = SETTLED
        _accepted(engine, batch, entries, now)
    else:
        for identity, receipt in zip(run.deduplication_ids, receipts, strict=True):
            receipt.deduplication_id = identity
            receipt.deduplicated = False
        run.receipts = receipts
        run.state = SETTLED
        _accepted(engine, batch, run, now)
    if batch.isolation is not None:
        batch.isolation.on_accepted()


def _read(batch: Batch, reply: Reply) -> Sequence[Outcome] | None:
    outcomes: tuple[Outcome, ...] | None
    if batch.single is not None:
        outcome = read_single_reply(reply.body)
        outcomes = None if outcome is None else (outcome,)
    else:
        outcomes = read_reply(reply.body, len(batch.entries), is_group=_is_to_group(batch.entries[0]))
    if outcomes is None:
        return None
    return [_fitting(*pair) for pair in zip(batch.entries, outcomes, strict=True)]


def _is_to_group(entry: Entry) -> bool:
    destination = entry.message.destination
    return "://" not in destination and not destination.startswith("api/")


def _fitting(entry: Entry, outcome: Outcome) -> Outcome:
    """Only a URL group is answered with an array; anything else may have been taken, under an unknown id."""
    if type(outcome) is AcceptedByGroup and not _is_to_group(entry):
        return Unclear("the reply's entry is an array, and the destination is no URL group")
    return outcome


def _deliver(engine: Engine, batch: Batch, outcomes: Sequence[Outcome], now: float) -> None:
    """Settle each entry by its own position."""
    delivered: list[Entry] = []
    failed: list[tuple[Entry, Outcome]] = []
    for entry, outcome in zip(batch.entries, outcomes, strict=True):
        if type(outcome) is Accepted or type(outcome) is AcceptedByGroup:
            if entry.state != IN_FLIGHT:
                engine.tally.late += 1
                continue
            entry.outcome = _receipt(entry, outcome, batch.started_at)
            entry.state = SETTLED
            delivered.append(entry)
        elif entry.state == IN_FLIGHT:
            failed.append((entry, outcome))
    if delivered:
        _accepted(engine, batch, delivered, now)
    else:
        engine.gate.on_understood(batch.number)
    if batch.isolation is not None:
        batch.isolation.on_accepted()
    if batch.has_ordered and (failed or any(entry.trouble is not None for entry in batch.entries)):
        _count_violations(engine, batch, outcomes)
    if failed:
        _retry_alone(engine, batch, failed, now)


def _accepted(engine: Engine, batch: Batch, delivered: list[Entry] | Run, now: float) -> None:
    """The service took these of its request."""
    engine.acceptances += 1
    engine.gate.on_accepted(batch.number)
    if engine.ceiling.is_lowered and batch.single is None:
        engine.ceiling.on_accepted(len(batch.members), batch.size_bytes)
        engine.heed_ceiling()
    _settle_delivered(engine, batch, delivered, now)


def _receipt(entry: Entry, outcome: Accepted | AcceptedByGroup, started_at: float) -> Receipt:
    trouble = entry.trouble
    attempts = 1 if trouble is None else trouble.attempts + 1
    doubled = (
        trouble is not None
        and trouble.certainty == "unknown"
        and started_at > trouble.first_sent_at + SAFE_SECONDS
    )
    if isinstance(outcome, Accepted):
        # Our own id can only have been seen in our own earlier attempt: that is a delivery, no duplicate.
        deduplicated = outcome.deduplicated and not entry.owns_id
        return Receipt(outcome.message_id, deduplicated, entry.deduplication_id, attempts, doubled)
    endpoints = outcome.endpoints
    deduplicated = not entry.owns_id and any(endpoint.deduplicated for endpoint in endpoints)
    return Receipt(None, deduplicated, entry.deduplication_id, attempts, doubled, endpoints)


def _settle_delivered(engine: Engine, batch: Batch, delivered: list[Entry] | Run, now: float) -> None:
    size = batch.size_bytes
    if isinstance(delivered, Run):
        engine.flushes.release_run(delivered)
        engine.delivered.append(delivered)
        engine.tally.delivered_run(delivered, batch.started_at, now)
    else:
        if len(delivered) < len(batch.members):
            size = sum(len(entry.data) for entry in delivered)
        engine.flushes.release(delivered)
        engine.settled += delivered
        engine.tally.delivered(delivered, batch.started_at, now)
        if batch.has_ordered:
            resolve(engine, delivered)
    engine.counts[IN_FLIGHT] -= len(delivered)
    engine.room.release(len(delivered), size)
    engine.settled_total += len(delivered)
    if not engine.budget.is_full:
        paid = 0 if isinstance(delivered, Run) else _paid_for(delivered)
        engine.budget.earn(paid or EARNED)


def _paid_for(entries: list[Entry]) -> int:
    """What the retries among them had cost: it is returned."""
    return sum(entry.trouble.paid for entry in entries if entry.trouble is not None)


def _retry_alone(engine: Engine, batch: Batch, failed: list[tuple[Entry, Outcome]], now: float) -> None:
    """Error entries: only they are tried again, a few times, and not their neighbours."""
    again: dict[Certainty, list[Entry]] = {"not_accepted": [], "unknown": []}
    for entry, outcome in failed:
        text = outcome.text if not isinstance(outcome, Accepted | AcceptedByGroup) else ""
        certainty: Certainty = "not_accepted" if isinstance(outcome, NotAccepted) else "unknown"
        note(engine, batch, [entry], RULINGS_OF_ENTRIES[certainty], f"error entry: {text}", now)
        assert entry.trouble is not None
        entry.trouble.error_entries += 1
        if entry.trouble.error_entries < engine.config.retry.error_entry_attempts:
            again[certainty].append(entry)
        elif certainty == "unknown":
            settle_failed(engine, entry, failures.unknown(entry, text), "unknown")
        else:
            settle_failed(engine, entry, failures.rejected(entry, 200, text), "rejected")
    for certainty, entries in again.items():
        if entries:
            _put_back_alone(engine, batch, entries, RULINGS_OF_ENTRIES[certainty], now)


def _put_back_alone(engine: Engine, batch: Batch, entries: list[Entry], ruling: Ruling, now: float) -> None:
    """Put entries back as ordinary ones; what their lanes still have in the isolation must follow them."""
    lanes = {id(entry.lane) for entry in entries if entry.queue is not None}
    if batch.isolation is not None and lanes:
        followers = batch.isolation.extract(lanes)
        shift(engine, followers, ISOLATED, IN_FLIGHT)
        entries = entries + followers
    put_back(engine, entries, ruling, now)


def _count_violations(engine: Engine, batch: Batch, outcomes: Sequence[Outcome]) -> None:
    """The service's own exception to order: it refused one entry and took a later one of the same lane.

    If the answer to that was lost, the next one shows it: the earlier is new to it, the later is not.
    """
    accepted_later: set[int] = set()
    known_later: set[int] = set()
    for entry, outcome in zip(reversed(batch.entries), reversed(outcomes), strict=True):
        if entry.queue is None:
            continue
        lane = id(entry.lane)
        if not isinstance(outcome, Accepted | AcceptedByGroup):
            engine.tally.order_violations += lane in accepted_later
            continue
        accepted_later.add(lane)
        if not _is_repeat(outcome):
            engine.tally.order_violations += lane in known_later
        elif entry.trouble is not None:
            known_later.add(lane)


def _is_repeat(outcome: Accepted | AcceptedByGroup) -> bool:
    if isinstance(outcome, Accepted):
        return outcome.deduplicated
    return any(endpoint.deduplicated for endpoint in outcome.endpoints)


# --------------------------------------------------------------------------------------- not delivered


def _split(engine: Engine, batch: Batch, live: list[Entry], ruling: Ruling, reply: Reply, now: float) -> None:
    """Some item spoils the request: alone it is rejected, in company it is searched for."""
    words = error_text(reply.body)
    isolation = batch.isolation
    if isolation is not None:
        culprit = isolation.on_refused(infers=ruling.infers)
        if culprit is None:
            shift(engine, live, IN_FLIGHT, ISOLATED)
        elif live:
            _reject(engine, batch, culprit, ruling, reply, now)
        return
    if len(batch.entries) == 1:
        for entry in live:
            _reject(engine, batch, entry, ruling, reply, now)
        return
    safe = [entry for entry in live if entry.idempotent]
    for entry in live:
        if not entry.idempotent:
            why = f"its batch was refused with {reply.status} ({words}), and without an id it is not repeated"
            settle_failed(engine, entry, failures.unknown(entry, why), "unknown")
    if safe:
        shift(engine, safe, IN_FLIGHT, ISOLATED)
        engine.tally.isolations += 1
        whole = len(safe) == len(batch.entries)
        engine.isolations.append(
            Isolation(safe, is_whole=whole, infers=ruling.infers, text=words, is_of_size=ruling.is_of_size)
        )


def _reject(engine: Engine, batch: Batch, entry: Entry, ruling: Ruling, reply: Reply, now: float) -> None:
    words = error_text(reply.body)
    settle_failed(engine, entry, failures.rejected(entry, reply.status, words), "rejected")
    if not ruling.may_be_systemic or _is_its_own_fault(engine, entry, reply):
        return
    if engine.gate.on_lone_refusal(batch.number, reply.status, words, now):
        fail_parked(engine, now)


def _is_its_own_fault(engine: Engine, entry: Entry, reply: Reply) -> bool:
    """Something that this message asks for is missing, such as a URL group: that is nobody else's trouble.

    The service itself says so, by name, or by any words of its own once it is known that the URL is right.
    """
    words = service_words(reply.body) if reply.status == NOT_FOUND else None
    return words is not None and (engine.gate.has_accepted or is_named(entry, words))


def _halt(engine: Engine, batch: Batch, live: list[Entry], ruling: Ruling, reply: Reply, now: float) -> None:
    """The token or the URL is refused: on first contact everything fails, later it is held."""
    words = error_text(reply.body) or FIRST_CONTACT_WORDS
    if 300 <= reply.status < 400:
        words = f"it answers with a redirect{_to_host(reply.headers.get('location', ''))}; check the base URL"
    note(engine, batch, live, ruling, reply, now, is_charged=False)
    engine.gate.on_refused(batch.number, reply.status, words, now)
    refusal = engine.gate.refusal
    if not engine.gate.is_first_contact or refusal is None:
        put_back(
            engine,
            live,
            ruling,
            now,
            is_put_off=True,
            isolation=batch.isolation,
            is_sealed=batch.is_sealed,
        )
        return
    for entry in live:
        settle_failed(engine, entry, failures.halted(entry, refusal, now, is_answered=True), "halted")
    if batch.isolation is not None:
        batch.isolation.on_void()
    fail_parked(engine, now)


def _to_host(location: str) -> str:
    """Where a redirect points, without what may be secret: user information, path and query."""
    scheme, separator, rest = location.partition("://")
    authority = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    return f" to {scheme}://{authority}" if separator and scheme.isalpha() and authority else ""


def fail_parked(engine: Engine, now: float) -> None:
    """First contact failed: whatever is held and not in flight fails with its reason."""
    refusal = engine.gate.refusal
    if refusal is None or not engine.gate.is_first_contact:
        return
    for entry in list(engine.parked()):
        engine.settle(entry, failures.halted(entry, refusal, now), "halted")
