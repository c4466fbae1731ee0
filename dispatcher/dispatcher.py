"""The front of the library: opening and closing, admitting messages, many of them at once.

What runs behind it is `pump`; what leaves and what an answer means is decided in `core`. The block may be
left in another task than it was entered in (fixtures, dependency containers): opening and closing only talk
to the pump's own supervisor task.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from dispatcher.config import Config
from dispatcher.core.wire import Encoder
from dispatcher.delivery import Delivery, Home
from dispatcher.errors import (
    AdmissionError,
    ConfigError,
    DeliveryError,
    DispatcherClosed,
    DispatcherError,
    MessageInvalid,
    MessageTooLarge,
    QueueFull,
)
from dispatcher.identity import id_source, unwatch, watch
from dispatcher.message import Message, Receipt
from dispatcher.pump import Pump
from dispatcher.statistics import DrainReport, Statistics, snapshot
from dispatcher.streams import Intake, send_many, stream
from dispatcher.submission import Submission
from dispatcher.transport import HTTPTransport, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
    from types import TracebackType

    from dispatcher.core.batch import Entry
    from dispatcher.core.engine import Engine
    from dispatcher.core.room import Ticket
    from dispatcher.core.wire import Encoded
    from dispatcher.observing import Observer, Prepare
    from dispatcher.renewal import TokenProvider

D = TypeVar("D", bound=Delivery)

REFUSAL_WORDS: Final[dict[type[AdmissionError], str]] = {
    QueueFull: "full",
    MessageInvalid: "invalid",
    MessageTooLarge: "too_large",
    DispatcherClosed: "closed",
}
_NOT_STARTED: Final = "the dispatcher is not started: use `async with Dispatcher(…)` or `await start()`"
_STARTING: Final = "the dispatcher is being opened"
_CLOSED: Final = "the dispatcher is closed"
_FORKED: Final = (
    "this process was forked after the dispatcher was opened; open one in the child "
    "(both would draw the same deduplication ids)"
)


class Dispatcher:
    """Takes single messages, sends them in batches, gives each its own receipt or its own error.

    Args:
        config: The settings; by default `Config.load()`, from the environment and a TOML file.
        name: Tells dispatchers of one process apart in logs and metrics.
        transport: Something else than HTTP, such as a `dispatcher.testing.ScriptedTransport`.
        on_failure: Called once a batch, in the loop, with the errors nobody awaited. Must not block.
        token_provider: A function or coroutine function that gives the token to use; asked when the service
            refuses the one in use, every few seconds until it gives another.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        name: str = "default",
        transport: Transport | None = None,
        on_failure: Callable[[list[DeliveryError]], None] | None = None,
        token_provider: TokenProvider | None = None,
    ) -> None:
        if inspect.iscoroutinefunction(on_failure):
            allowed = "allowed is a plain function; it may create a task"
            raise ConfigError("on_failure", on_failure.__name__, allowed)
        self.config = Config.load() if config is None else config
        self.name = name
        way: Transport = HTTPTransport(self.config) if transport is None else transport
        self._pump = Pump(self.config, way, name, on_failure, token_provider)
        self._engine = self._pump.engine
        self._prepare: Prepare = self._check_and_encode
        self.observer: Observer | None = None
        """See `observe`."""
        self._submission = Submission(
            self._pump,
            self.config.deliver_within,
            self._check_open,
            self._prepare,
            self._admit,
            self._refused,
        )
        self.intake = Intake(
            self._make,
            self._admit,
            self._submission.submit,
            self._wait_for_room,
            self.config.batch.max_messages,
        )
        """The steps of `put`, taken apart, for programs that hand in many messages in a way of their own."""
        # Looked up once, not for each message:
        self._keep = self._pump.admission.admitted.append
        self._deliver_within = self.config.deliver_within
        self._max_bytes = self.config.queue.max_bytes
        self._refusal: str | None = _NOT_STARTED
        """Why messages are not admitted now."""
        self._is_started = False

    def __repr__(self) -> str:
        room, engine = self._engine.room, self._engine
        return (
            f"<Dispatcher {self.name!r} {self._state} held={room.held_messages} "
            f"in_flight={len(engine.out)}/{engine.limit.value}>"
        )

    # --------------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Open it in the running loop.

        Raises:
            DispatcherClosed: It was opened before: a dispatcher is opened once.
        """
        if self._refusal != _NOT_STARTED:
            raise DispatcherClosed("a dispatcher is opened once; make another one")
        self._refusal = _STARTING
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._refusal = _NOT_STARTED
            raise DispatcherClosed("the dispatcher needs a running asyncio loop (trio has none)") from None
        self._encoder = Encoder(
            id_source(),
            draws_ids=self.config.deduplication == "auto",
            max_message_bytes=self.config.batch.max_message_bytes,
        )
        self._submission.encoder = self._encoder
        self._encode_plain, self._try_take = self._encoder.encode_plain, self._engine.room.try_take
        try:
            await self._pump.start()
        except BaseException as error:
            # A transport that could not be opened may be tried again; a cancelled opening was ended half-way.
            self._refusal = _NOT_STARTED if isinstance(error, Exception) else _CLOSED
            raise
        self._is_started = True
        self._refusal = None
        watch(self)

    async def aclose(self) -> DrainReport:
        """Admit nothing more, deliver what is held within `drain_within` seconds, and close.

        Waits for the end even if the caller is cancelled meanwhile. A second call gives the same report.
        """
        if self._refusal == _FORKED:
            raise DispatcherClosed(_FORKED)
        if not self._is_started:
            self._refusal = _CLOSED
            return DrainReport()
        self._pump.check_place()
        self._refusal = _CLOSED
        self._pump.thread = 0
        drained = await self._pump.drain()
        unwatch(self)
        return drained

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork(self) -> None:
        """In a forked child: whoever uses it is told so (called by `identity`)."""
        self._refusal = _FORKED
        self._pump.thread = 0

    # ----------------------------------------------------------------------------------------- admission

    async def send(self, message: Message) -> Receipt:
        """Hand in one message and wait until the service has accepted it.

        Cancelled before the message left, it is taken back; after, the sending goes on without you.

        Raises:
            AdmissionError: It was never taken.
            DeliveryError: It was taken and not confirmed; `certainty` says what is known.
        """
        delivery = self._make(message, is_claimed=True)
        if self._try_take(len(delivery.data)):
            self._keep(delivery)
        else:
            await self._wait_for_room(delivery)
        if delivery.outcome is None:
            try:
                await delivery.wait()
            except asyncio.CancelledError:
                if not delivery.withdraw():
                    delivery.is_claimed = False  # it goes on without its caller: a failure is reported
                raise
        outcome = delivery.outcome
        return outcome if type(outcome) is Receipt else delivery.result()

    async def put(self, message: Message) -> Delivery:
        """Hand in one message, waiting for room; await what it returns for the receipt.

        Raises:
            MessageInvalid: The service would refuse it.
            MessageTooLarge: It is above `batch.max_message_bytes`.
            DispatcherClosed: The dispatcher is not open, or closes while this waits.
        """
        delivery = self._make(message)
        if self._try_take(len(delivery.data)):
            self._keep(delivery)
        else:
            await self._wait_for_room(delivery)
        return delivery

    def put_nowait(self, message: Message) -> Delivery:
        """The same at once.

        Raises:
            QueueFull: There is no room, or others wait for it already.
        """
        delivery = self._make(message)
        if self._try_take(len(delivery.data)):
            self._keep(delivery)
            return delivery
        room = self._engine.room
        raise self._refused(QueueFull(room.held_messages, room.max_messages, room.held_bytes, room.max_bytes))

    def put_encoded(
        self, message: Message, encoded: Encoded, within: float, kind: type[D], waiters: object = None
    ) -> D | None:
        """As `put_nowait`, of a message that was checked and encoded before; `None` if there is no room.

        For a program that keeps encoded messages. Of the message only its destination is looked at.

        Args:
            within: Seconds until it must be confirmed.
            kind: What is made of it.
            waiters: What its kind wakes once it has settled.

        Raises:
            DispatcherClosed: The dispatcher is not open.
        """
        pump = self._pump
        if get_ident() != pump.thread or not pump.is_scheduled:
            self._check_open()
            pump.schedule()
        if not self._try_take(len(encoded.data)):
            return None
        now, queue = pump.turn_at, message.queue or None
        delivery = kind(
            message,
            encoded.data,
            queue,
            encoded.deduplication_id,
            encoded.idempotent,
            encoded.owns_id,
            now,
            now + within,
            encoded.single,
            pump.home,
            is_claimed=True,
            waiters=waiters,
        )
        self._keep(delivery)
        return delivery

    async def send_many(
        self, messages: Iterable[Message] | AsyncIterable[Message]
    ) -> list[Receipt | DispatcherError]:
        """Send all of them; what became of each, in their order. Raises only what the iterable raises."""
        return await send_many(self.intake, messages)

    def stream(
        self, messages: Iterable[Message] | AsyncIterable[Message], *, window: int = 10_000
    ) -> AsyncIterator[Receipt | DispatcherError]:
        """The same for any number in bounded memory: outcomes in order, at most `window` unread ones."""
        return stream(self.intake, messages, window)

    async def flush(self) -> None:
        """Send what was handed in so far without waiting for company; returns when all of it has settled."""
        self._check_open()
        await self._pump.flush()

    def set_token(self, token: str) -> None:
        """Use another token from the next request on; everything that the old one halted is tried at once.

        Raises:
            ConfigError: It is empty, or has white space in it.
            DispatcherClosed: The dispatcher is not open.
        """
        self._check_open()
        self._pump.set_token(replace(self.config, token=token).token)

    def set_limits(
        self,
        *,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        """Change `queue.max_messages`, `queue.max_bytes` or `limit.max_in_flight` of an open dispatcher.

        What is held or in flight above a lower bound stays so; nothing more is taken or started meanwhile.

        Raises:
            ConfigError: A value is not allowed; nothing is changed.
            DispatcherClosed: The dispatcher is not open.
        """
        self._check_open()
        bounds = {"max_messages": max_messages, "max_bytes": max_bytes}
        queue = replace(self.config.queue, **{name: n for name, n in bounds.items() if n is not None})
        limit = self.config.limit
        if max_in_flight is not None:
            limit = replace(limit, max_in_flight=max_in_flight)
        self.config = replace(self.config, queue=queue, limit=limit)
        self._max_bytes = queue.max_bytes
        self._engine.room.resize(queue.max_messages, queue.max_bytes)
        self._engine.limit.set_maximum(limit.max_in_flight)
        self._pump.schedule()

    def resume(self, queue: str) -> bool:
        """Let a queue go on that stopped at a failed message (`Queue(on_failure="stop")`).

        Returns false if it is not stopped.
        """
        self._check_open()
        self._pump.admission.tell()
        resumed = self._engine.resume(queue)
        if resumed:
            self._pump.schedule()
        return resumed

    def statistics(self) -> Statistics:
        """A frozen snapshot."""
        if self._pump.thread == get_ident():
            self._pump.admission.tell()
        return snapshot(self._engine, self._state, self._pump.now() if self._is_started else 0.0)

    def observe(self, observer: Observer | None) -> None:
        """Have this stand around what is handed in and around each request from now on; `None`: nothing more.

        For `tracing`, before or after it is opened. There is one at a time.
        """
        prepare = self._check_and_encode
        self.observer = self._submission.observer = observer
        self._prepare = prepare if observer is None else observer.around_prepare(prepare)
        self._submission.prepare = self._prepare
        self._pump.observe(observer)

    @property
    def engine(self) -> Engine:
        """What decides and counts, for metrics to read; what changes it goes through the other methods."""
        return self._engine

    def oldest_age(self) -> float:
        """Seconds since the oldest held message was admitted, else 0 (a walk over all: for a scrape)."""
        oldest_at = self._engine.oldest_at()
        return 0.0 if oldest_at is None else max(0.0, self._pump.now() - oldest_at)

    @property
    def _state(self) -> str:
        if self._why_not() is None:
            return self._engine.gate.state
        if not self._is_started:
            return "new" if self._refusal in {_NOT_STARTED, _STARTING} else "closed"
        return "closed" if self._refusal == _FORKED or self._pump.has_ended else "draining"

    def _why_not(self) -> str | None:
        """Why messages are not admitted now, if they are not."""
        return self._refusal or self._pump.death

    def _check_open(self) -> None:
        if self._refusal is not None or self._pump.death is not None:
            raise DispatcherClosed(self._why_not() or _CLOSED)
        self._pump.check_place()

    def _admit(self, delivery: Delivery) -> bool:
        """Take it in; false if there is no room."""
        if not self._try_take(len(delivery.data)):
            return False
        self._keep(delivery)
        return True

    def _make(self, message: Message, *, is_claimed: bool = False) -> Delivery:
        """Check and encode one message: a delivery that is not admitted yet."""
        pump = self._pump
        try:
            # The thread is looked at each time, the loop once a turn: to ask for it costs a system call.
            if get_ident() != pump.thread or not pump.is_scheduled:
                self._check_open()
                pump.schedule()
            return self._prepare(message, Delivery, pump.home, pump.turn_at, is_claimed)
        except AdmissionError as error:
            raise self._refused(error) from None

    def _check_and_encode(
        self, message: Message, kind: type[D], home: Home, now: float, is_claimed: bool
    ) -> D:
        """The same, of a dispatcher that is open. Any thread may ask."""
        plain = self._encode_plain(message)
        if plain is not None and len(plain[0]) <= self._max_bytes:
            data, identity = plain
            queue, until = message.queue or None, now + self._deliver_within
            return kind(message, data, queue, identity, True, True, now, until, None, home, is_claimed)
        encoded, within = self._encode(message)
        return kind(
            message,
            encoded.data,
            message.queue or None,
            encoded.deduplication_id,
            encoded.idempotent,
            encoded.owns_id,
            now,
            now + within,
            encoded.single,
            home,
            is_claimed,
        )

    def _encode(self, message: Message) -> tuple[Encoded, float]:
        """Check one message; how it will travel, and the seconds it has for it."""
        if not isinstance(message, Message):
            raise MessageInvalid(f"expected a Message, not {type(message).__name__}")
        encoded = self._encoder.encode(message)
        within = message.deliver_within
        within = self._deliver_within if within is None else _checked_duration(within)
        if len(encoded.data) > self._max_bytes:
            raise MessageTooLarge(len(encoded.data), self._max_bytes, "queue.max_bytes")
        return encoded, within

    def _refused(self, error: AdmissionError) -> AdmissionError:
        refused = self._engine.tally.refused
        word = REFUSAL_WORDS[type(error)]
        refused[word] = refused.get(word, 0) + 1
        return error

    async def _wait_for_room(self, delivery: Delivery) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delivery.waiters = granted
        ticket = self._engine.room.wait(delivery, len(delivery.data))
        self._pump.schedule()
        try:
            await granted
        except asyncio.CancelledError:
            if delivery.lane is not None:
                delivery.withdraw()  # admitted in the same turn in which its caller was cancelled
            else:
                self._leave_line(ticket, delivery)
            raise
        if delivery.lane is None:
            raise self._refused(DispatcherClosed(self._why_not() or _CLOSED))

    def _leave_line(self, ticket: Ticket[Entry], delivery: Delivery) -> None:
        delivery.waiters = None
        self._engine.room.cancel(ticket)
        self._pump.schedule()


def _checked_duration(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise MessageInvalid(f"`deliver_within` is {seconds!r}; allowed are seconds above 0")
    return float(seconds)
