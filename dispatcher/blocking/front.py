"""The front for synchronous code: Django, Flask, scripts; safe from any thread and across forks.

The same calls and errors as `Dispatcher`. A thread with an event loop is started at first use, once in each
process (`worker`); messages are checked and encoded in the caller's thread and handed over (`handover`). This
file must never touch the loop, and never hold a lock while it waits.
"""

from __future__ import annotations

import inspect
import random
import time
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Final, Self

from dispatcher.blocking.handover import CLOSED, BlockingDelivery, Handover
from dispatcher.blocking.served import Served
from dispatcher.blocking.streams import Intake, send_many, stream
from dispatcher.blocking.worker import Worker
from dispatcher.config import Config
from dispatcher.core.engine import Engine
from dispatcher.errors import ConfigError, DispatcherClosed, QueueFull
from dispatcher.identity import watch
from dispatcher.statistics import DrainReport, Statistics, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from dispatcher.errors import DeliveryError, DispatcherError
    from dispatcher.message import Message, Receipt
    from dispatcher.observing import Observer
    from dispatcher.renewal import TokenProvider
    from dispatcher.transport import Transport

AGE_TRIES: Final = 20
"""Walks over what is held that may have to begin again because the loop changed it meanwhile."""
NO_ROOM: Final = "there was no room within {} s; the message was not taken"
TAKEN_BACK: Final = "not confirmed within {} s; the message had not left, and was taken back"
GOES_ON: Final = "not confirmed within {} s; the message may have left, and goes on without this call"


class BlockingDispatcher:
    """A `Dispatcher` for code without an event loop: the same calls, which block their thread.

    Nothing happens before the first use; a module may hold one, and every process forked afterwards starts
    its own, empty and with its own ids. What is held when the interpreter exits is delivered, for at most
    `drain_within` seconds. One that is dropped without `close()` keeps its thread until then.

    Args:
        config: The settings; by default `Config.load()`, from the environment and a TOML file.
        name: Tells dispatchers of one process apart in logs and metrics.
        transport: Makes something else than HTTP; called in the dispatcher's own loop, once for each process.
        on_failure: Called once a batch, in the dispatcher's own thread, with the errors nobody waited for.
            It must not block; of this dispatcher it may call `put_nowait`.
        token_provider: A function or coroutine function that gives the token to use; asked when the service
            refuses the one in use, every few seconds until it gives another.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        name: str = "default",
        transport: Callable[[], Transport] | None = None,
        on_failure: Callable[[list[DeliveryError]], None] | None = None,
        token_provider: TokenProvider | None = None,
    ) -> None:
        way: object = transport
        if way is not None and not callable(way):
            allowed = "allowed is a function that makes one: a transport belongs to the loop it is used in"
            raise ConfigError("transport", transport, allowed)
        if inspect.iscoroutinefunction(on_failure):
            raise ConfigError("on_failure", on_failure.__name__, "allowed is a plain function")
        self.config = Config.load() if config is None else config
        self.name = name
        self._transport = transport
        self._on_failure = on_failure
        self._token_provider = token_provider
        self._observer: Observer | None = None
        self._token: str | None = None
        """A token that replaced the configuration's."""
        self._worker: Worker | None = None
        self._idle: Engine | None = None
        self._lock = Lock()
        """Opens and closes; never waited for by the worker's thread."""
        self._is_closed = False
        watch(self)

    def __repr__(self) -> str:
        room, engine = self.engine.room, self.engine
        return (
            f"<BlockingDispatcher {self.name!r} {self._state} held={room.held_messages} "
            f"in_flight={len(engine.out)}/{engine.limit.value}>"
        )

    # --------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Start the thread now, not at first use; harmless if it runs.

        Raises:
            DispatcherClosed: It is closed, or the interpreter is exiting.
            Exception: Whatever keeps the transport from opening.
        """
        self._open()

    def close(self) -> DrainReport:
        """Admit nothing more, deliver what is held within `drain_within` seconds, and end the thread.

        A second call gives the same report. Threads that wait for room are sent away.

        Raises:
            DispatcherClosed: This is the dispatcher's own thread.
        """
        with self._lock:
            worker = self._worker
            if worker is not None:
                worker.handover.check_may_wait()
            self._is_closed = True
        return DrainReport() if worker is None else worker.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork(self) -> None:
        """In a forked child: begin anew, with a lock that no lost thread holds (called by `identity`)."""
        self._lock = Lock()
        self._worker = None
        watch(self)

    def _open(self) -> Worker:
        with self._lock:
            if self._is_closed:
                raise DispatcherClosed(CLOSED)
            if self._worker is None:
                worker = Worker(self.name, self.config, self._serve)
                worker.open()
                self._worker = worker
            return self._worker

    def _serve(self, handover: Handover) -> Served:
        """The dispatcher behind this front; called in its own loop."""
        transport = None if self._transport is None else self._transport()
        if transport is not None and self._token is not None:
            transport.set_token(self._token)
        served = Served(
            handover,
            self.config,
            name=self.name,
            transport=transport,
            on_failure=self._on_failure,
            token_provider=self._token_provider,
        )
        served.observe(self._observer)
        return served

    # ----------------------------------------------------------------------------------------- admission

    def send(self, message: Message, *, timeout: float | None = None) -> Receipt:
        """Hand in one message and wait until the service has accepted it.

        At the timeout, or when the wait is interrupted (Ctrl-C), a message that has not left is taken back;
        one that has goes on without you.

        Args:
            message: What to send.
            timeout: Seconds to wait at most, for room and confirmation together. The message's own deadline
                is `deliver_within`.

        Raises:
            AdmissionError: It was never taken.
            DeliveryError: It was taken and not confirmed; `certainty` says what is known.
            TimeoutError: It was not confirmed in time.
        """
        worker = self._worker or self._open()
        worker.handover.check_may_wait()
        left = _Left(timeout)
        delivery = worker.served.prepare(message)
        delivery.is_claimed = True
        try:
            _admit(worker, delivery, timeout)
            is_settled = delivery.settles_within(left())
        except BaseException:
            if delivery.is_admitted:
                worker.let_go(delivery)
            raise
        if not is_settled:
            words = TAKEN_BACK if worker.let_go(delivery) else GOES_ON
            if delivery.is_withdrawn or delivery.outcome is None:
                raise TimeoutError(words.format(timeout))
        return delivery.result()

    def put(self, message: Message, *, timeout: float | None = None) -> BlockingDelivery:
        """Hand in one message, waiting for room; `result()` of what it returns waits for the receipt.

        Raises:
            MessageInvalid: The service would refuse it.
            MessageTooLarge: It is above `batch.max_message_bytes`.
            DispatcherClosed: It is closed, or closes while this waits; or this waits in its own thread.
            TimeoutError: There was no room for `timeout` seconds.
        """
        worker = self._worker or self._open()
        delivery = worker.served.prepare(message)
        try:
            _admit(worker, delivery, timeout)
        except BaseException:
            if delivery.is_admitted:  # interrupted in the instant in which there was room
                worker.let_go(delivery)
            raise
        return delivery

    def put_nowait(self, message: Message) -> BlockingDelivery:
        """The same at once.

        Raises:
            MessageInvalid, MessageTooLarge, DispatcherClosed: See `put`.
            QueueFull: There is no room, or others wait for it already.
        """
        worker = self._worker or self._open()
        delivery = worker.served.prepare(message)
        if not _admitted(worker, delivery):
            room = worker.handover
            raise worker.served.refused(
                QueueFull(room.held_messages, room.max_messages, room.held_bytes, room.max_bytes)
            )
        return delivery

    def send_many(self, messages: Iterable[Message]) -> list[Receipt | DispatcherError]:
        """Send all of them; what became of each, in their order.

        Raises:
            DispatcherClosed: It was closed before its first use, or this is its own thread.
            Exception: What the iterable raises; what came before goes on.
        """
        return send_many(self._intake(), messages)

    def stream(
        self, messages: Iterable[Message], *, window: int = 10_000
    ) -> Iterator[Receipt | DispatcherError]:
        """The same for any number in bounded memory: outcomes in order, at most `window` unread ones.

        Raises:
            ValueError: `window` is below 1.
            DispatcherClosed: See `send_many`.
            Exception: What the iterable raises, after the outcomes of what came before.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least 1 outcome must fit")
        return stream(self._intake(), messages, window)

    def flush(self, timeout: float | None = None) -> None:
        """Send what was handed in so far without waiting for company; returns when all of it has settled.

        Raises:
            DispatcherClosed: It is closed, or this is its own thread.
            TimeoutError: Not all of it has settled within `timeout` seconds; it goes on.
        """
        worker = self._open()
        try:
            worker.run(worker.served.flush, timeout)
        except TimeoutError:
            raise TimeoutError(
                f"not all of it has settled within {timeout} s, and goes on: {self!r}"
            ) from None

    def set_token(self, token: str) -> None:
        """Use another token from the next request on, here and in processes forked later.

        Everything that the old one halted is tried at once. Starts nothing.

        Raises:
            ConfigError: It is empty, or has white space in it.
            DispatcherClosed: It is closed.
        """
        config = replace(self.config, token=token)
        with self._lock:
            if self._is_closed:
                raise DispatcherClosed(CLOSED)
            self.config = config
            self._token = config.token
            worker = self._worker
        if worker is not None:
            worker.call(worker.served.set_token, config.token)

    def resume(self, queue: str) -> bool:
        """Let a queue go on that stopped at a failed message (`Queue(on_failure="stop")`).

        Returns false if it is not stopped.

        Raises:
            DispatcherClosed: It is closed.
        """
        worker = self._open()
        return worker.call(worker.served.resume, queue)

    def observe(self, observer: Observer | None) -> None:
        """See `Dispatcher.observe`; here and in processes forked later."""
        self._observer = observer
        worker = self._worker
        if worker is not None:
            worker.call(worker.served.observe, observer)

    def _intake(self) -> Intake:
        worker = self._worker or self._open()
        worker.handover.check_may_wait()
        return Intake(
            worker.served.prepare,
            lambda delivery: _admitted(worker, delivery),
            lambda delivery: _wait_for_room(worker, delivery, None),
        )

    # ------------------------------------------------------------------------------------------- looking

    def statistics(self) -> Statistics:
        """A frozen snapshot of this process's dispatcher; it is read while that goes on."""
        worker = self._worker
        if worker is None:
            return snapshot(self.engine, self._state, 0.0)
        return worker.served.statistics()

    @property
    def engine(self) -> Engine:
        """What decides and counts, for metrics to read: this process's, an empty one before the first use."""
        worker = self._worker
        if worker is not None:
            return worker.served.engine
        idle = self._idle
        if idle is None:
            idle = self._idle = Engine(self.config, random.Random())
        return idle

    def oldest_age(self) -> float:
        """Seconds since the loop took the oldest held message, else 0 (a walk over all: for a scrape)."""
        worker = self._worker
        for _ in range(AGE_TRIES):
            try:
                return 0.0 if worker is None else worker.served.oldest_age()
            except RuntimeError:  # the loop changed a container under this walk over it
                continue
        return float("nan")

    @property
    def _state(self) -> str:
        worker = self._worker
        if worker is not None:
            return worker.served.state
        return "closed" if self._is_closed else "new"


class _Left:
    """The rest of a timeout that several waits share."""

    __slots__ = ("_until",)

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout

    def __call__(self) -> float | None:
        return None if self._until is None else self._until - time.monotonic()


def _admit(worker: Worker, delivery: BlockingDelivery, timeout: float | None) -> None:
    """Take it in, waiting for room."""
    if not _admitted(worker, delivery) and not _wait_for_room(worker, delivery, timeout):
        raise TimeoutError(NO_ROOM.format(timeout))


def _admitted(worker: Worker, delivery: BlockingDelivery) -> bool:
    try:
        return worker.handover.admit(delivery)
    except DispatcherClosed as error:
        raise worker.served.refused(error) from None


def _wait_for_room(worker: Worker, delivery: BlockingDelivery, timeout: float | None) -> bool:
    try:
        return worker.handover.wait_for_room(delivery, timeout)
    except DispatcherClosed as error:
        raise worker.served.refused(error) from None
