"""The front of the outbox: a message is accepted once it is durable; a relay sees to the rest.

`put` decides everything that must not change later: the message's id, its deduplication id, its bytes. What
is handed in within one turn of the loop is committed together. Nothing here knows how a store keeps things,
and nothing that is accepted waits for the service.
"""

from __future__ import annotations

import asyncio
import time
from copy import copy
from typing import TYPE_CHECKING, Literal, Self

from dispatcher.core.wire import Encoded, Encoder
from dispatcher.errors import (
    ConfigError,
    DispatcherError,
    MessageInvalid,
    MessageTooLarge,
    OutboxError,
    StoreFull,
)
from dispatcher.identity import id_source, unwatch, watch
from dispatcher.message import Message
from dispatcher.outbox.codec import pack
from dispatcher.outbox.instants import fixed
from dispatcher.outbox.relay import Relay
from dispatcher.outbox.store import Record
from dispatcher.outbox.stored import Stored
from dispatcher.outbox.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.message import Receipt
    from dispatcher.outbox.store import Found, Mark, Store, StoreStatus

Place = Stored | MessageInvalid | MessageTooLarge
"""What became of one of several messages."""
NOT_OPEN = "the outbox is not open: use `async with Outbox(…)` or `await start()`"
CLOSED = "the outbox is closed"
FORKED = "this process was forked after the outbox was opened; open one in the child, over another store"


class Outbox:
    """Accepts messages durably in front of a dispatcher.

    Args:
        store: Where they are kept; opened and closed by the outbox.
        dispatcher: What sends them; opened before the outbox and closed after it. Its `deliver_within` bounds
            one try of a message, not its life.
        after_window: What to do with a message that may have been sent longer ago than the service remembers
            its id (9.5 minutes): `resend` it, its receipt marked `duplicate_possible`, or have it `fail` as a
            dead letter. The same for one without an id.
        delays_from_acceptance: Turn `Upstash-Delay` into the instant that it means when the message is
            accepted, so that an outage does not add to it.

    ::

        async with Dispatcher() as dispatcher, Outbox(SQLiteStore("outbox.db"), dispatcher) as outbox:
            stored = await outbox.put(Message("https://example.com/hook", body="hello"))
            print(stored.id, "is durable")
            print(await stored)  # the receipt, once the service has it
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        *,
        after_window: Literal["resend", "fail"] = "resend",
        delays_from_acceptance: bool = True,
    ) -> None:
        if after_window not in ("resend", "fail"):
            raise ConfigError("after_window", after_window, "allowed are `resend` and `fail`")
        self.store = store
        self._dispatcher = dispatcher
        self._fixes_delays = delays_from_acceptance
        self._watching = Watching(store)
        self._relay = Relay(store, dispatcher, after_window, self._watching)
        self._pending: list[tuple[Record, Stored]] = []
        """Of this turn of the loop."""
        self._committed: asyncio.Future[None]
        """Done once these are."""
        self._appending: set[asyncio.Task[None]] = set()
        self._refusal: str | None = NOT_OPEN

    # --------------------------------------------------------------------------------------- life cycle

    async def start(self) -> StoreStatus:
        """Open the store, and begin to send what it holds; returns how the store was found.

        Raises:
            OutboxError: It cannot be opened; another process may have it.
        """
        if self._refusal != NOT_OPEN:
            raise OutboxError("an outbox is opened once; make another one")
        found = await self.store.open()
        config = self._dispatcher.config
        self._draw = id_source("out_")
        self._encoder = Encoder(
            self._draw,
            draws_ids=config.deduplication == "auto",
            max_message_bytes=config.batch.max_message_bytes,
        )
        self._loop = asyncio.get_running_loop()
        self._relay.start()
        self._refusal = None
        watch(self)
        return found

    async def aclose(self) -> None:
        """Accept nothing more, take back what has not left, settle what is answered within `drain_within`.

        The rest stays in the store, for the next one who opens it.
        """
        if self._refusal is not None:
            self._refusal = CLOSED
            return
        self._refusal = CLOSED
        unwatch(self)
        self._commit()
        try:
            if self._appending:
                await asyncio.wait(self._appending)
            await self._relay.drain(self._dispatcher.config.drain_within)
        finally:  # cancelled, too
            self._relay.stop()
            await self.store.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork(self) -> None:
        """In a forked child: whoever uses it is told so (called by `identity`)."""
        self._refusal = FORKED

    # ----------------------------------------------------------------------------------------- accepting

    async def put(self, message: Message) -> Stored:
        """Accept one message; returns when it is durable.

        Cancelled before, it may or may not have been accepted.

        Raises:
            MessageInvalid, MessageTooLarge: The service would refuse it.
            StoreFull: A bound of the store, or its disk, is reached.
            OutboxError: It could not be made durable, or the outbox is not open.
        """
        stored = self.accept(message)
        await asyncio.shield(stored.committed)
        if stored.refusal is not None:
            raise stored.refusal
        return stored

    async def put_many(self, messages: Iterable[Message]) -> list[Stored | DispatcherError]:
        """Accept many, together; in the place of one that is refused, why."""
        places: list[Stored | DispatcherError] = []
        for message in messages:
            try:
                places.append(self.accept(message))
            except DispatcherError as error:
                places.append(error)
        if self._pending:
            await asyncio.shield(self._committed)
        return [
            place.refusal if isinstance(place, Stored) and place.refusal is not None else place
            for place in places
        ]

    async def put_marked(
        self, messages: Iterable[Message], mark: Callable[[Sequence[Place]], Mark]
    ) -> list[Place]:
        """Accept these and a mark, together or not at all; in the place of one that is wrong, why.

        For who reads a source and wants to read on, after a crash, exactly behind what was accepted:
        `store.mark(name)` says where that is.

        Args:
            mark: Makes the mark of what is to be accepted, and what is wrong.

        Raises:
            StoreFull: There is no room for all of them; nothing was accepted.
            OutboxError: It could not be made durable.
        """
        if self._refusal is not None:
            raise OutboxError(self._refusal)
        committed = self._loop.create_future()
        places: list[Place] = []
        records = []
        for message in messages:
            try:
                record, stored = self._kept(message, committed)
            except (MessageInvalid, MessageTooLarge) as error:
                places.append(error)
            else:
                records.append(record)
                places.append(stored)
        await self.store.append(records, mark(places))
        committed.set_result(None)
        return places

    async def send(self, message: Message) -> Receipt:
        """Accept one message, and wait for its receipt.

        Raises:
            OutboxError: As `put` does.
            MessageRejected: The service refused it: it is a dead letter.
        """
        stored = self.accept(message)
        self._watching.add(stored)
        try:
            await asyncio.shield(stored.committed)
            if stored.refusal is not None:
                raise stored.refusal
            return await stored
        finally:
            self._watching.drop(stored)

    def accept(self, message: Message) -> Stored:
        """Check and encode one message; it is committed with this turn's, and `committed` tells when.

        Whoever waits for that shields it, for it is everybody's, and looks at `refusal` then.

        Raises:
            MessageInvalid, MessageTooLarge: The service would refuse it.
            OutboxError: The outbox is not open.
        """
        if self._refusal is not None:
            raise OutboxError(self._refusal)
        if not self._pending:
            self._committed = self._loop.create_future()
        record, stored = self._kept(message, self._committed)
        if not self._pending:
            self._loop.call_soon(self._commit)
        self._pending.append((record, stored))
        return stored

    def _kept(self, message: Message, committed: asyncio.Future[None]) -> tuple[Record, Stored]:
        """A message as it will be kept, and as its caller will have it."""
        if not isinstance(message, Message):
            raise MessageInvalid(f"expected a Message, not {type(message).__name__}")
        now = time.time()
        if self._fixes_delays:
            message = fixed(message, now)
        encoded, identity = self._encode(message)
        observer, noted = self._dispatcher.observer, ""
        if observer is not None:
            encoded, noted = observer.keep(message, encoded)
        stored = Stored(identity, encoded.deduplication_id, committed, self._watching)
        return Record(identity, pack(message, encoded, noted), message.queue or None, now), stored

    def _encode(self, message: Message) -> tuple[Encoded, str]:
        """What will travel, and the id; where we draw the deduplication id, it is the same."""
        plain = self._encoder.encode_plain(message)
        if plain is not None:
            return Encoded(*plain, idempotent=True, owns_id=True), plain[1]
        encoded = self._encoder.encode(message)
        identity = encoded.deduplication_id
        return encoded, identity if encoded.owns_id and identity is not None else self._draw()

    def _commit(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            task = self._loop.create_task(self._append_all(pending, self._committed))
            self._appending.add(task)
            task.add_done_callback(self._appending.discard)

    async def _append_all(
        self, pending: Sequence[tuple[Record, Stored]], committed: asyncio.Future[None]
    ) -> None:
        try:
            await self._append(pending)
        except BaseException as error:
            words = f"the outbox was ended by {type(error).__name__}; the message may have been kept"
            self._refuse(pending, OutboxError(words))
            raise
        finally:
            committed.set_result(None)

    async def _append(self, pending: Sequence[tuple[Record, Stored]]) -> None:
        """Commit these together; where they are too many for the store, as many as fit."""
        try:
            await self.store.append([record for record, _ in pending])
        except StoreFull as error:
            if len(pending) == 1:
                self._refuse(pending, error)
                return
            middle = len(pending) // 2
            await self._append(pending[:middle])
            await self._append(pending[middle:])
        except OutboxError as error:
            self._refuse(pending, error)

    def _refuse(self, pending: Sequence[tuple[Record, Stored]], error: OutboxError) -> None:
        """Tell each, with an error of its own."""
        for _, stored in pending:
            self._watching.drop(stored)
            stored.refusal = copy(error)

    # -------------------------------------------------------------------------------------- looking, deciding

    async def find(self, message_id: str) -> Found | None:
        """What is known of an accepted message; `None` if nothing is (any more)."""
        return await self.store.find(message_id)

    async def cancel(self, message_id: str) -> bool:
        """Take a message back that has not left; false if it may have left, or is not known.

        True once that is durable: a crash does not send it. Raises `OutboxError` if it is not (yet).
        """
        return await self._relay.cancel(message_id)

    def resume(self, queue: str) -> bool:
        """Let a queue go on whose rules (`Queue(on_failure="stop")`) stopped it at a dead letter.

        The outbox's queues are resumed here, not at the dispatcher; it goes on within 5 seconds. Returns
        false if it had not stopped. A restart lets every queue go on, too.
        """
        return self._relay.resume(queue)

    def status(self) -> StoreStatus:
        """How the store does."""
        return self.store.status()

    def watch(self, stored: Stored) -> None:
        """Have `stored.outcome` set as it comes, without a look into the store; until `forget`."""
        self._watching.add(stored)

    def forget(self, stored: Stored) -> None:
        """Nobody looks at it any more."""
        self._watching.drop(stored)

    @property
    def name(self) -> str:
        """The dispatcher's."""
        return self._dispatcher.name

    @property
    def is_open(self) -> bool:
        """It accepts, as far as its store does."""
        return self._refusal is None

    @property
    def death(self) -> str | None:
        """Why nothing is sent any more, although it is open: a fault of ours. What is accepted stays kept."""
        return self._relay.death

    @property
    def returned(self) -> int:
        """How often a message was given back to the store for another try."""
        return self._relay.returned

    @property
    def duplicates_possible(self) -> int:
        """Delivered messages that may have been taken twice: sent again after the service's window."""
        return self._relay.duplicates_possible
