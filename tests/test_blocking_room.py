"""Room for threads: the hand-over's invariants, who waits in which order, what timeouts give back."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import DispatcherClosed, Message, QueueFull, Receipt
from dispatcher.blocking.handover import BlockingDelivery, Handover
from dispatcher.core.wire import CACHED_PREFIXES, Encoder
from dispatcher.identity import id_source
from tests.blocking_support import URL, Call, Scripted, message, wait_until

if TYPE_CHECKING:
    from dispatcher import BlockingDispatcher
    from dispatcher.core.batch import Entry
    from dispatcher.core.room import Ticket

# ------------------------------------------------------------------------------- the hand-over by itself


class Model:
    """A hand-over driven step by step from one thread, and what must be true of it after each step."""

    def __init__(self) -> None:
        self.handover = Handover(5, 100, 0.75)
        self.handover.loop_thread = 0
        self.handover.wake_loop = self.on_wake
        self.wakes = self.takes = 0
        self.line: list[tuple[BlockingDelivery, Ticket[Entry]]] = []
        self.reserved: list[BlockingDelivery] = []
        self.taken: list[BlockingDelivery] = []
        self.unsettled: list[BlockingDelivery] = []

    def on_wake(self) -> None:
        self.wakes += 1

    def admit(self, size: int) -> None:
        """A thread submits one, or gets into the line."""
        delivery = BlockingDelivery(
            Message(URL), b"x" * size, None, None, True, True, 0.0, 1.0, handover=self.handover
        )
        if self.handover.admit(delivery):
            self.reserved.append(delivery)
            return
        lock = threading.Lock()
        lock.acquire()
        delivery.waiters = [lock]
        with self.handover.lock:
            self.line.append((delivery, self.handover.wait(delivery, size)))
            self.handover._wake()

    def leave(self, place: int) -> None:
        """A thread that waits gives up."""
        if self.line:
            delivery, ticket = self.line.pop(place % len(self.line))
            self.handover._leave_line(delivery, ticket)
            assert delivery.waiters is None

    def take(self) -> None:
        """The loop takes everything."""
        got = self.handover.take()
        self.takes += 1
        self.taken += got
        self.unsettled += got

    def settle(self, number: int) -> None:
        """The loop settles some of what it took, and grants what there is room for then."""
        for _ in range(min(number, len(self.unsettled))):
            self.handover.release(1, len(self.unsettled.pop(0).data))
        assert self.handover.grants() == []
        while self.line and self.line[0][0].is_admitted:
            delivery, _ = self.line.pop(0)
            assert delivery.waiters is None, "it was woken"
            self.reserved.append(delivery)

    def check(self) -> None:
        """The invariants of the module's docstring."""
        handover = self.handover
        assert self.reserved == self.taken + handover.submitted, "taken in the order of reservation"
        assert not handover.submitted or handover.is_woken, "what was submitted is on its way"
        assert self.wakes <= self.takes + 1, "one wake-up for any number of submissions"
        held = self.unsettled + handover.submitted
        assert handover.held_messages == len(held) <= 5
        assert handover.held_bytes == sum(len(one.data) for one in held)
        assert handover.waiting == len(self.line)
        assert not any(one.is_admitted for one, _ in self.line), "first come, first served"
        assert held or handover.is_woken or not self.line, "nobody waits while there is nothing to wait for"


STEPS = st.one_of(
    st.tuples(st.just("admit"), st.integers(1, 120)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("take"), st.none()),
    st.tuples(st.just("settle"), st.integers(0, 5)),
)


@given(st.lists(STEPS, max_size=60))
def test_the_invariants_hold_after_every_step(steps: list[tuple[str, int | None]]) -> None:
    """Whatever threads and loop do, in any order; at the end all who wait are dismissed, nobody comes in."""
    model = Model()
    for name, argument in steps:
        step = getattr(model, name)
        step() if argument is None else step(argument)
        model.check()
    assert [*model.handover.dismiss()] == [delivery for delivery, _ in model.line]
    assert model.handover.waiting == 0
    with pytest.raises(DispatcherClosed):
        model.admit(1)
    model.take()
    assert model.reserved == model.taken


def test_nobody_waits_in_a_forked_child_or_in_the_loops_thread() -> None:
    """Both would hang: an error says why."""
    handover = Handover(5, 100, 0.75)
    handover.loop_thread = threading.get_ident()
    with pytest.raises(DispatcherClosed, match="own thread"):
        handover.check_may_wait()
    handover.is_forked = True
    with pytest.raises(DispatcherClosed, match="forked"):
        handover.check_may_wait()


def test_what_reaches_the_loop_does_so_before_it_ends() -> None:
    """The loop's end takes the same lock, so nothing is called into a loop that does not run it any more."""
    handover = Handover(5, 100, 0.75)
    with pytest.raises(DispatcherClosed):
        handover.reach_loop(handover.lock.locked)
    handover.loop_thread = 0
    assert handover.reach_loop(handover.lock.locked)


def test_the_encoder_may_be_used_by_any_thread() -> None:
    """Eight threads, more destinations than it remembers: no id twice, every item as one thread writes it."""
    encoder = Encoder(id_source(), draws_ids=True, max_message_bytes=1_000)
    plain = Encoder(id_source(), draws_ids=False, max_message_bytes=1_000)

    def work(number: int) -> list[str]:
        ids = []
        for n in range(CACHED_PREFIXES // 4):
            one = Message(
                f"{URL}/{(n * (number % 3 + 1)) % (CACHED_PREFIXES + 500)}/{number % 2}", f"{number}"
            )
            encoded = encoder.encode(one)
            assert encoded.deduplication_id is not None
            own = f'"headers":{{"Upstash-Deduplication-Id":"{encoded.deduplication_id}"}},"body"'.encode()
            assert encoded.data == plain.encode(one).data.replace(b'"body"', own)
            ids.append(encoded.deduplication_id)
        return ids

    calls = [Call(work, number) for number in range(8)]
    ids = [one for call in calls for one in call.outcome()]
    assert len(set(ids)) == len(ids) == 8 * (CACHED_PREFIXES // 4)


# ---------------------------------------------------------------------------------------- with a dispatcher


def in_line(scripted: Scripted, texts: list[str]) -> list[Call]:
    """One thread after the other gets into the line for room."""
    dispatcher = scripted.dispatcher
    calls = []
    waiting = dispatcher.statistics().waiting_for_room
    for number, text in enumerate(texts, waiting + 1):
        calls.append(Call(dispatcher.put, message(text)))
        wait_until(partial(is_waiting, dispatcher, number))
    return calls


def is_waiting(dispatcher: BlockingDispatcher, number: int) -> bool:
    """So many threads wait for room."""
    return dispatcher.statistics().waiting_for_room == number


def test_room_is_given_first_come_first_served() -> None:
    """Twenty threads, room for two: they leave in the order in which they came; nobody passes them."""
    scripted = Scripted(holds=True, queue_max_messages=2)
    with scripted as dispatcher:
        first = [dispatcher.put(message(f"first {n}")) for n in range(2)]
        texts = [f"{n}" for n in range(20)]
        calls = in_line(scripted, texts)
        with pytest.raises(QueueFull):
            dispatcher.put_nowait(message("passes"))
        scripted.release()
        assert all(isinstance(call.outcome().result(), Receipt) for call in calls)
        assert all(one.result() for one in first)
    assert scripted.bodies == ["first 0", "first 1", *texts]


def test_who_waits_in_vain_leaves_the_line() -> None:
    """At its timeout, with nothing taken; those behind it are served as if it had never been there."""
    scripted = Scripted(holds=True, queue_max_messages=1)
    with scripted as dispatcher:
        dispatcher.put(message("first"))
        with pytest.raises(TimeoutError, match=r"no room within 0\.01 s"):
            dispatcher.put(message("late"), timeout=0.01)
        with pytest.raises(TimeoutError, match="no room within 0 s"):
            dispatcher.send(message("late"), timeout=0)
        assert dispatcher.statistics().waiting_for_room == 0
        late = Call(dispatcher.put, message("late"), timeout=0.2)
        wait_until(lambda: dispatcher.statistics().waiting_for_room == 1)
        (behind,) = in_line(scripted, ["behind"])
        assert isinstance(late.outcome(), TimeoutError)
        scripted.release()
        assert behind.outcome().result()
    assert scripted.bodies == ["first", "behind"]
    assert dispatcher.statistics().finished == {"delivered": 2}


def test_a_large_one_that_gives_up_lets_small_ones_in() -> None:
    """Room is there for those behind it, and they get it without anything else happening."""
    scripted = Scripted(holds=True, queue_max_bytes=2_000, batch_max_message_bytes=2_000)
    with scripted as dispatcher:
        dispatcher.put(message("x" * 1_000))
        large = Call(dispatcher.put, message("x" * 1_500), timeout=0.3)
        wait_until(lambda: dispatcher.statistics().waiting_for_room == 1)
        (small,) = in_line(scripted, ["small"])
        assert isinstance(large.outcome(), TimeoutError)
        small.outcome()
        assert dispatcher.statistics().held == 2


def test_waiting_for_room_sends_what_lingers() -> None:
    """With a linger of a minute and no room for company: someone waits, so what is held leaves."""
    scripted = Scripted(queue_max_messages=2, batch_linger=60, batch_soft_slots=0)
    with scripted as dispatcher:
        for n in range(2):
            dispatcher.put(message(n))
        worker = dispatcher._worker
        assert worker is not None
        for _ in range(3):
            worker.call(int)  # the loop has taken them, and is at rest
        assert scripted.bodies == []
        dispatcher.put(message(2))
        assert scripted.bodies == ["0", "1"]


def test_many_threads_through_a_tiny_room() -> None:
    """Forty threads with fifty messages each, room for three: all delivered, each once."""
    scripted = Scripted(queue_max_messages=3)
    with scripted as dispatcher:

        def work(number: int) -> list[str | None]:
            deliveries = [dispatcher.put(message(f"{number}:{n}")) for n in range(50)]
            return [delivery.result().message_id for delivery in deliveries]

        calls = [Call(work, number) for number in range(40)]
        ids = [one for call in calls for one in call.outcome()]
    assert len(set(ids)) == 2_000
    assert sorted(scripted.bodies) == sorted(f"{number}:{n}" for number in range(40) for n in range(50))
    for number in range(40):
        mine = [text for text in scripted.bodies if text.startswith(f"{number}:")]
        assert mine == [f"{number}:{n}" for n in range(50)], "in its order: one batch is out at a time"
