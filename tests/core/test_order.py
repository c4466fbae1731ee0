"""The core's contract: a queue keeps its order, whatever happens to its messages."""

from __future__ import annotations

import pytest

from dispatcher.core.batch import Reply
from dispatcher.message import Receipt
from tests.core.rig import Extremes, Rig, numbers


def test_a_queue_has_one_unresolved_batch() -> None:
    """Many of its messages in it; what is newer waits, what is of other lanes does not."""
    rig = Rig()
    rig.put(3, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    rig.put(1, queue="r")
    rig.poll()
    assert rig.numbers == [[0, 1, 2], [5]]
    rig.ok(rig.out[0])
    assert rig.numbers[2] == [3, 4]


@pytest.mark.parametrize("how", ["disconnect", "timeout", "connect", "429", "500"])
def test_order_under_retries(how: str) -> None:
    """What failed goes before anything newer of its queue, in its order."""
    rig = Rig(batch_max_messages=3)
    rig.put(5, queue="q")
    (batch,) = rig.poll()
    if how.isdigit():
        rig.refuse(batch, int(how))
    else:
        rig.fail(batch, how)
    rig.put(2, queue="q")
    rig.put(1)
    rig.advance(3.0)
    queued = [[e.number for e in batch.entries if e.queue] for batch in rig.started]
    assert [numbers for numbers in queued if numbers] == [[0, 1, 2], [0, 1, 2]]


def test_order_under_isolation() -> None:
    """The search goes through a queue from left to right, and nothing newer passes it."""
    rig = Rig()
    rig.put(16, queue="q")
    rig.poll()
    rig.put(3, queue="q")
    rig.serve(lambda entry: entry.number in (5, 11))
    accepted = [entry.number for entry in rig.settled if isinstance(entry.outcome, Receipt)]
    assert accepted == [number for number in range(19) if number not in (5, 11)]


def test_order_under_error_entries() -> None:
    """An error entry is retried before anything newer; that later ones passed it is counted."""
    rig = Rig()
    rig.put(4, queue="q")
    rig.poll()
    rig.put(2, queue="q")
    rig.errors(rig.out[0], 1)
    assert rig.engine.tally.order_violations == 1
    assert rig.out == []
    rig.advance(1.0)
    assert rig.numbers[1] == [1, 4, 5]


def test_error_entries_at_the_end_violate_nothing() -> None:
    """Nothing later was accepted."""
    rig = Rig()
    rig.put(4, queue="q")
    rig.errors(rig.poll()[0], 2, 3)
    assert rig.engine.tally.order_violations == 0
    rig.advance(1.0)
    assert rig.numbers[1] == [2, 3]


def test_an_exception_shown_by_a_later_answer_is_counted() -> None:
    """The reply was lost; the repeat shows the later message known and the earlier one new."""
    rig = Rig()
    rig.put(2, queue="q")
    rig.fail(rig.poll()[0])
    (batch,) = rig.advance(1.0)
    rig.answer(batch, Reply(200, b'[{"messageId":"a"},{"messageId":"b","deduplicated":true}]'))
    assert rig.engine.tally.order_violations == 1


def test_an_error_entry_in_a_probe_keeps_the_order() -> None:
    """What its queue still has in the search follows it, instead of passing it."""
    rig = Rig()
    rig.put(8, queue="q")
    rig.refuse(rig.poll()[0], 400)
    probe = rig.out[0]
    assert numbers(probe.entries) == [0, 1, 2, 3]
    rig.errors(probe, 3)
    rig.advance(1.0)
    assert numbers(rig.started[-1].entries) == [3, 4, 5, 6, 7]
    rig.serve(lambda entry: entry.number == 6)
    assert [e.number for e in rig.settled if isinstance(e.outcome, Receipt)] == [0, 1, 2, 3, 4, 5, 7]


def test_an_expired_message_in_flight_keeps_its_queue_muted() -> None:
    """It may still arrive: nothing newer passes until its request is answered."""
    rig = Rig()
    rig.put(1, queue="q", within=1.0)
    (batch,) = rig.poll()
    rig.put(1, queue="q")
    rig.advance(1.1)
    assert len(rig.settled) == 1
    assert rig.started == [batch]
    rig.fail(batch, "timeout")
    assert rig.numbers == [[0], [1]]


def test_a_queue_that_fails_blocks_nothing_else() -> None:
    """Other queues and messages without one go on."""
    rig = Rig(rng=Extremes(), retry_base=50)
    rig.put(2, queue="stuck")
    rig.fail(rig.poll()[0])
    rig.put(2, queue="stuck")
    rig.put(1, queue="free")
    rig.put(1)
    (batch,) = rig.poll()
    assert sorted(entry.queue or "" for entry in batch.entries) == ["", "free"]


def test_violations_are_counted_queue_by_queue() -> None:
    """Each refused entry with a later accepted one of its own queue; others say nothing."""
    rig = Rig(batch_quantum_bytes=10)
    for queue in ("a", "b", None, "a", "b", "c"):
        rig.put(1, queue=queue)
    (batch,) = rig.poll()
    place = {(entry.queue, n): n for n, entry in enumerate(batch.entries)}
    first = {queue: min(n for name, n in place if name == queue) for queue in ("a", "b", "c", None)}
    rig.errors(batch, first["a"], first["b"], first["c"], first[None])
    assert rig.engine.tally.order_violations == 2


def test_violations_add_up() -> None:
    """Over entries of one reply, and over replies."""
    rig = Rig()
    rig.put(5, queue="q")
    rig.errors(rig.poll()[0], 0, 1, 3)
    assert rig.engine.tally.order_violations == 3
    rig.errors(rig.next(), 0)
    assert rig.engine.tally.order_violations == 4


def test_repeats_of_a_group_show_an_exception_too() -> None:
    """An endpoint that knows the message has it from our earlier attempt."""
    rig = Rig()
    rig.put(1, queue="q")
    rig.put(1, queue="q", destination="subscribers")
    rig.fail(rig.poll()[0])
    body = b'[{"messageId":"a"},[{"messageId":"b","url":"u","deduplicated":true}]]'
    rig.answer(rig.next(), Reply(200, body))
    assert rig.engine.tally.order_violations == 1


def test_first_attempts_show_no_exception() -> None:
    """A later message that was known without having been sent is the caller's own repeat."""
    rig = Rig()
    rig.put(2, queue="q")
    rig.errors(rig.poll()[0], 0)
    assert rig.engine.tally.order_violations == 1
    rig.put(1, queue="q")
    (batch,) = rig.advance(1.0)
    rig.answer(batch, Reply(200, b'[{"messageId":"a"},{"messageId":"b","deduplicated":true}]'))
    assert rig.engine.tally.order_violations == 1
