"""The hand-over: how messages come from any thread into a dispatcher's loop, and outcomes back.

A `Handover` takes the place of the engine's `Room`, with a lock around it, and keeps in one list what threads
have submitted and the loop has not yet taken. A `BlockingDelivery` is a `Delivery` that threads wait for.
Nothing here runs in the loop but what the loop calls; nothing holds the lock while it waits or calls out.
Used by `worker` and `served` (the loop's side) and `front` (the threads' side).

Invariants:
    1. What has room is either in `submitted` or was taken by the loop; it is taken in the order in which room
       was reserved, granted or not. So the messages of one thread keep their order.
    2. `submitted` is not empty ⇒ the loop was woken and has not taken yet, or it has ended.
    3. Once closed nothing is added: what the loop takes after that is all there will ever be.
"""

from __future__ import annotations

import threading
import time
from copy import copy
from threading import TIMEOUT_MAX, Lock, get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from dispatcher.core.batch import Entry
from dispatcher.core.room import Room, Ticket
from dispatcher.delivery import Delivery, Home
from dispatcher.errors import DeliveryError, DispatcherClosed
from dispatcher.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")

SLICE_SECONDS: Final = 1.0
"""So long an interrupt of the main thread may go unnoticed."""

CLOSED: Final = "the dispatcher is closed"
FORKED: Final = (
    "this process was forked after the message was handed in, and only the parent knows what becomes of it"
)
OWN_THREAD: Final = (
    "this is the dispatcher's own thread, which would wait for itself; use `put_nowait` here, "
    "or hand the work to another thread"
)
AWAITED: Final = (
    "a BlockingDelivery is waited for with `result()`, which blocks its thread; "
    "code with an event loop uses `Dispatcher`"
)


class BlockingDelivery(Delivery, eq=False, gc=True):
    """One admitted message; `result()` waits for its receipt, in any thread and any number of them.

    It costs nothing but itself until someone waits: each wait makes a lock of its own.
    """

    handover: Handover | None = None
    is_admitted: bool = False
    """It has room: it is on its way to the loop, or there."""

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the receipt, for at most `timeout` seconds.

        Raises:
            DeliveryError: The message was not confirmed; the class says why, `certainty` what is known.
            TimeoutError: It has not settled yet, and goes on.
            DispatcherClosed: It belongs to the process that this one was forked from, or this is the
                dispatcher's own thread.
        """
        outcome = self._outcome(timeout)
        if isinstance(outcome, Receipt):
            return outcome
        raise copy(outcome)

    def exception(self, timeout: float | None = None) -> DeliveryError | None:
        """The same wait; the error of a message that failed, `None` of one that is delivered.

        Raises:
            TimeoutError: It has not settled yet, and goes on.
            DispatcherClosed: See `result`.
        """
        outcome = self._outcome(timeout)
        return None if isinstance(outcome, Receipt) else outcome

    def __await__(self) -> Generator[Any, None, Receipt]:
        raise TypeError(AWAITED)

    def wait(self) -> NoReturn:
        """Not here: that is for event loops.

        Raises:
            TypeError: Always.
        """
        raise TypeError(AWAITED)

    def settles_within(self, timeout: float | None) -> bool:
        """Wait; false if it has not settled after `timeout` seconds.

        Raises:
            DispatcherClosed: See `result`.
        """
        if self.outcome is not None:
            return True
        handover = self.handover
        assert handover is not None
        handover.check_may_wait()
        # Settling sets `outcome` and looks at `waiters` then; a waiter stores itself in `waiters` and looks
        # at `outcome` then. Whichever comes first, one of the two sees the other: nobody is missed.
        lock = self.join()
        if self.outcome is None:
            try:
                acquire(lock, timeout)
            finally:
                self.leave(lock)
        return self.outcome is not None

    def join(self) -> Lock:
        """A held lock that `wake` releases."""
        lock = Lock()
        lock.acquire()
        assert self.handover is not None
        with self.handover.lock:
            self.waiters = [lock] if self.waiters is None else [*self.waiters, lock]
        return lock

    def leave(self, lock: Lock) -> None:
        """Wait no more: a failure is not taken for awaited because of this one."""
        if self.waiters is None:
            return
        assert self.handover is not None
        with self.handover.lock:
            left = [other for other in self.waiters or () if other is not lock]
            self.waiters = left or None

    def wake(self) -> bool:
        """Wake every thread that waits; false if none did. Called in the loop."""
        if self.waiters is None:
            return False
        assert self.handover is not None
        with self.handover.lock:
            waiters, self.waiters = self.waiters, None
        for lock in waiters or ():
            lock.release()
        return bool(waiters)

    def _outcome(self, timeout: float | None) -> Receipt | DeliveryError:
        if self.outcome is None:
            self.is_claimed = True  # someone is here to see it, between the settling and the report too
            try:
                self.settles_within(timeout)
            finally:
                if self.outcome is None:
                    self.is_claimed = False
        if self.outcome is None:
            raise TimeoutError(f"not settled within {timeout} s, and goes on: {self!r}")
        return self.outcome


class Handover(Room[Entry]):
    """Room for messages and the way into the loop, for any number of threads."""

    __slots__ = ("explain", "home", "is_closed", "is_forked", "is_woken", "lock", "loop_thread", "submitted",
                 "wake_loop")  # fmt: skip

    def __init__(self, max_messages: int, max_bytes: int, resume_below: float) -> None:
        super().__init__(max_messages, max_bytes, resume_below)
        self.lock = Lock()
        self.submitted: list[BlockingDelivery] = []
        self.is_woken = False
        self.is_closed = False
        self.is_forked = False
        self.home = Home(None, None)
        self.loop_thread: int | None = None
        """The loop's thread, while calls reach it."""
        self.wake_loop: Callable[[], object] = _nothing
        """Has what was submitted taken, soon; callable from any thread."""
        self.explain: Callable[[], str | None] = _nothing
        """Why nothing is admitted any more, if the dispatcher knows."""

    # ------------------------------------------------------------------------------------ in any thread

    def admit(self, delivery: BlockingDelivery) -> bool:
        """Take it in; false if there is no room, or others wait for it already.

        Raises:
            DispatcherClosed: Nothing is admitted any more.
        """
        with self.lock:
            if self.is_closed:
                raise self._closed()
            if not self.try_take(len(delivery.data)):
                return False
            self._submit(delivery)
        return True

    def wait_for_room(self, delivery: BlockingDelivery, timeout: float | None) -> bool:
        """Wait in line; false if there was no room within `timeout` seconds.

        Raises:
            DispatcherClosed: Nothing is admitted any more.
        """
        self.check_may_wait()
        with self.lock:
            if self.is_closed:
                raise self._closed()
            if self.try_take(len(delivery.data)):
                self._submit(delivery)
                return True
            lock = Lock()
            lock.acquire()
            delivery.waiters = [lock]
            ticket = self.wait(delivery, len(delivery.data))
            self._wake()
        try:
            acquire(lock, timeout)
        finally:
            if not delivery.is_admitted:
                self._leave_line(delivery, ticket)
        if delivery.is_admitted:
            return True
        if self.is_closed:
            raise self._closed()
        return False

    def reach_loop(self, call: Callable[[], T]) -> T:
        """Do `call`, which has something called in the loop; as long as this works, that will be done.

        Raises:
            DispatcherClosed: The loop has ended.
        """
        with self.lock:
            if self.loop_thread is None:
                raise self._closed()
            return call()

    def check_may_wait(self) -> None:
        """Refuse to wait where that would never end.

        Raises:
            DispatcherClosed: With the cure.
        """
        if self.is_forked:
            raise DispatcherClosed(FORKED)
        if self.is_own_thread:
            raise DispatcherClosed(OWN_THREAD)

    @property
    def is_own_thread(self) -> bool:
        """This is the loop's thread."""
        return self.loop_thread == get_ident()

    def close(self) -> None:
        """Admit nothing more."""
        with self.lock:
            self.is_closed = True

    # --------------------------------------------------------------------------------------- in the loop

    def take(self) -> list[BlockingDelivery]:
        """All that was submitted, in order; who submits after this wakes the loop again."""
        with self.lock:
            taken, self.submitted = self.submitted, []
            self.is_woken = False
        return taken

    def release(self, messages: int, size_bytes: int) -> None:
        """See `Room`; called by the engine."""
        with self.lock:
            super().release(messages, size_bytes)

    def grants(self) -> list[Entry]:
        """Grant what there is room for; it comes with what the loop takes next, behind what was there before.

        So nothing is left for the caller to admit: a thread's earlier messages may not have been taken yet.
        """
        with self.lock:
            for delivery in super().grants():
                assert isinstance(delivery, BlockingDelivery)
                self._submit(delivery)
                (lock,) = delivery.waiters
                delivery.waiters = None  # from now on they wait for its outcome
                lock.release()
        return []

    def dismiss(self) -> list[Entry]:
        """Send everyone away who waits, and let nobody else in."""
        with self.lock:
            self.is_closed = True
            return super().dismiss()

    # ------------------------------------------------------------------------------- with the lock held

    def _submit(self, delivery: BlockingDelivery) -> None:
        delivery.is_admitted = True
        self.submitted.append(delivery)
        if not self.is_woken:
            self._wake()

    def _wake(self) -> None:
        # In this order: an interrupt between the two costs a call too many, the other way it would cost
        # every later message its call.
        if not self.is_woken and self.loop_thread is not None:
            self.wake_loop()
            self.is_woken = True

    def _leave_line(self, delivery: BlockingDelivery, ticket: Ticket[Entry]) -> None:
        with self.lock:
            if not delivery.is_admitted:
                delivery.waiters = None
                self.cancel(ticket)
                self._wake()  # those behind it may fit

    def _closed(self) -> DispatcherClosed:
        return DispatcherClosed(self.explain() or CLOSED)


def acquire(lock: threading.Lock, timeout: float | None) -> bool:
    """Wait for a lock that someone else releases; `None` waits without end.

    The main thread waits in slices: an interrupt that arrives as it is about to sleep does not wake it, and
    its KeyboardInterrupt would wait as long as the lock.
    """
    ends_at = float("inf") if timeout is None else time.monotonic() + timeout
    slice_max = SLICE_SECONDS if threading.current_thread() is threading.main_thread() else TIMEOUT_MAX
    while True:
        left = max(0.0, ends_at - time.monotonic())
        if lock.acquire(timeout=min(left, slice_max)):
            return True
        if left <= slice_max:
            return False


def _nothing() -> None:
    """Until there is a loop."""
