"""A run whose messages a test knows as entries, and how to look at it without opening it.

An opened run asks for its entries one by one and gets the ones the test has: whatever becomes of them, the
test holds them in hand from the start, as a producer holds its delivery. Looking changes neither the run nor
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.core.batch import IN_FLIGHT, SETTLED, Batch, Entry, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.core.engine import Engine


class KnownRun(Run, eq=False):
    """A run that opens into entries made before."""

    known: Sequence[Entry] = ()

    def entry(self, index: int) -> Entry:
        """The entry of that index, without anything that opening it has to give it."""
        entry = self.known[index]
        entry.lane, entry.number, entry.epoch, entry.state = None, -1, -1, SETTLED
        return entry


def known_run(entries: Sequence[Entry]) -> KnownRun:
    """A run of these plain entries, which share their instants."""
    first = entries[0]
    assert {(e.admitted_at, e.deadline, e.queue, e.single) for e in entries} == {
        (first.admitted_at, first.deadline, None, None)
    }, "entries of a run share their instants and are plain"
    return KnownRun(
        messages=[],  # as where each has an entry from the beginning: nothing may need them
        items=[entry.data for entry in entries],
        deduplication_ids=[entry.deduplication_id or "" for entry in entries],
        admitted_at=first.admitted_at,
        deadline=first.deadline,
        size_bytes=sum(len(entry.data) for entry in entries),
        known=entries,
    )


def offer_run(engine: Engine, run: KnownRun) -> None:
    """Offer it, its room being taken; its entries know their numbers from then on."""
    engine.offer_run(run)
    for number, entry in enumerate(run.known, run.number):
        if run.entries is None:
            entry.number, entry.epoch = number, run.epoch
        assert entry.number == number, "an opened run numbers its messages otherwise than it was numbered"


def carried(batch: Batch) -> list[Entry]:
    """What a batch carries, one by one; a run stays closed."""
    run = batch.run
    if run is None:
        return batch.entries
    assert isinstance(run, KnownRun), "a run that nobody knows"
    assert run.entries is None, "a batch has a run that is open and does not know it"
    return list(run.known)


def is_out(batch: Batch, entry: Entry) -> bool:
    """This one of what it carries is in flight; the entry does not know that while its run is closed."""
    return (entry.state if batch.run is None else batch.run.state) == IN_FLIGHT


def delivered(run: Run) -> list[Entry]:
    """Tell the entries of a run that was delivered as a whole what became of each."""
    assert isinstance(run, KnownRun), "a run that nobody knows"
    assert run.entries is None, "an opened run is delivered as a whole"
    assert run.receipts is not None, "a run leaves without receipts"
    assert run.state == SETTLED, "a run leaves that is not settled"
    for entry, receipt in zip(run.known, run.receipts, strict=True):
        entry.outcome, entry.state = receipt, SETTLED
    return list(run.known)
