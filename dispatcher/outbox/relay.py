"""The relay: claims from the store what the dispatcher has room for, hands it in, and settles what came back.

A claim is committed before the first request with the message can leave, and a message stays claimed until
its settlement is committed; so after a crash everything that may have been sent is known, and is sent again
under the same id. What an outcome means is said by `judging`.

Order in queues: a failed message stops its queue in the dispatcher (`Relayed.stops_queue`); what stands
behind it is taken back and given back with it, then the queue goes on. The store gives nothing of a queue out
of its order, and what it gave before it knew is given back as well. Made by `outbox`, its only caller.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import DispatcherClosed, OutboxError
from dispatcher.message import Receipt
from dispatcher.outbox.codec import unpack
from dispatcher.outbox.judging import delivered, failed, unsafe_words
from dispatcher.outbox.leases import take_back, watch_leases
from dispatcher.outbox.relayed import Relayed, Sink
from dispatcher.outbox.store import Cancelled, Dead, Returned
from dispatcher.outbox.store_news import StoreNews

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.outbox.judging import Policy
    from dispatcher.outbox.store import Claim, Settlement, Store
    from dispatcher.outbox.watching import Watching

CLAIMED_AT_ONCE: Final = 1_000
"""Messages of one claim at most."""
CLAIMED_BYTES: Final = 8 * 1_048_576
SLICE: Final = 250
"""Messages handed in before the loop has its turn."""
CLEAR_SECONDS: Final = 0.02
"""Between looks at what is left of a queue that has to come back."""
STOPPED_SECONDS: Final = 5.0
"""After which what stands in a stopped queue is looked at again; it waits in the store, not here."""
LOOK_AGAIN: Final = 0.5
"""Seconds after which what failed in the store is tried again, and room that others gave back is found."""

logger: Final = logging.getLogger("dispatcher.outbox")


class Relay:
    """One outbox's messages on their way."""

    def __init__(self, store: Store, dispatcher: Dispatcher, policy: Policy, watching: Watching) -> None:
        self.death: str | None = None
        """Why nothing is sent any more; what is accepted stays in the store."""
        self.returned = self.duplicates_possible = 0
        """Messages given back for another try; delivered ones that may be doubled."""
        self._store = store
        self._dispatcher = dispatcher
        self._policy: Policy = policy
        self._watching = watching
        self._rng = random.Random()
        self._out: dict[str, Relayed] = {}
        """What is in the dispatcher, by id."""
        self._of_queue: dict[str, set[Relayed]] = {}
        """Of it, what stands in queues."""
        self._due: dict[str, float] = {}
        """Queues of which something came back since the last claim was asked for, and how long they wait."""
        self._leaving: set[str] = set()
        """Those of which something is here that has to come back first; they are stopped."""
        self._halted: set[str] = set()
        """Those that their own rules stopped at a dead letter, until `resume`."""
        self._returning = 0
        """Messages that came back, and of which the store does not know it yet."""
        self._has_returned = asyncio.Event()
        """Set while there are none."""
        self._has_returned.set()
        self._news = StoreNews()
        self._unsettled: list[Settlement] = []
        self._has_unsettled = asyncio.Event()
        self._is_over = False
        """Nothing more will come to be settled."""
        self._cancels: dict[int, asyncio.Future[OutboxError | None]] = {}
        """By position: who waits until the store knows that a message was taken back."""
        self._has_room = asyncio.Event()

    # --------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Begin, in the running loop."""
        loop = asyncio.get_running_loop()
        self._sink = Sink(loop, self._look)
        self._settling = loop.create_task(self._settle())
        self._claiming = loop.create_task(self._claim())
        self._leases = loop.create_task(watch_leases(self._store, self._out))
        for task in (self._settling, self._claiming, self._leases):
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.death = f"the outbox's relay died of {type(error).__name__}"
            logger.critical("%s: nothing is sent any more", self.death, exc_info=error)
            self._claiming.cancel()  # what cannot be settled would be sent again
            self._end(f"{self.death}; the message stays in its store")

    def _end(self, words: str) -> None:
        """Nobody is told anything more."""
        error = OutboxError(words)
        self._watching.close(error)
        self._answer([Cancelled(position) for position in self._cancels], error)

    async def drain(self, within: float) -> None:
        """Take back what has not left, wait for answers that are due, have it all settled; then `stop`."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + within
        self._claiming.cancel()
        await asyncio.wait([self._claiming])
        take_back(self._out)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends_at):
                while self._out:
                    await self._changed()
        self._leave()
        self._is_over = True
        self._has_unsettled.set()
        await asyncio.wait([self._settling], timeout=max(LOOK_AGAIN, ends_at - loop.time()))

    def stop(self) -> None:
        """End, drained or not; who opens the store next sends what is not settled."""
        self._claiming.cancel()
        self._leases.cancel()
        if self._settling.cancel():
            logger.error("%d settlements could not be kept; these are sent again", len(self._unsettled))
        self._news.close()
        self._end("the outbox was closed; the message stays in its store")

    def _leave(self) -> None:
        """What left and was not answered may have been taken: who opens the store next sends it again."""
        now, at = time.time(), asyncio.get_running_loop().time()
        for relayed in self._out.values():
            claim, began = relayed.claim, now - (at - relayed.admitted_at)
            since = began if claim.sent_since is None else claim.sent_since
            self._tell([Returned(claim.position, 0.0, claim.attempts, since)])
        self._out.clear()
        self._of_queue.clear()

    async def _changed(self) -> None:
        """Something has settled."""
        self._has_room.clear()
        await self._has_room.wait()

    # ------------------------------------------------------------------------------------------ claiming

    async def _claim(self) -> None:
        """Claim and hand in, as the dispatcher has room; ends with the dispatcher."""
        gate, loop = self._dispatcher.engine.gate, asyncio.get_running_loop()
        while True:
            messages, size = self._room()
            try:
                if gate.is_refusing(loop.time()):
                    await asyncio.sleep(LOOK_AGAIN)  # it would all come back at once
                elif messages <= 0:
                    await self._look_again()
                else:
                    claims = await self._claimed(messages, size)
                    self._news.claimed()
                    await self._hand_in(claims)
                    if not claims:
                        await self._store.wait(time.time())
            except OutboxError as error:
                self._news.claim_failed(error)
                await asyncio.sleep(LOOK_AGAIN)
            except DispatcherClosed as error:
                logger.info("the outbox sends no more: %s", error)
                return

    def _room(self) -> tuple[int, int]:
        """Messages and bytes that may be claimed now."""
        room = self._dispatcher.engine.room
        free = 0 if room.waiting else room.max_messages - room.held_messages
        return min(CLAIMED_AT_ONCE, free), max(1, min(CLAIMED_BYTES, room.max_bytes - room.held_bytes))

    async def _look_again(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN):
                await self._changed()

    async def _claimed(self, messages: int, size_bytes: int) -> list[Claim]:
        """A claim, which is not lost if this is cancelled meanwhile."""
        while self._returning:  # else the store would give what stands behind what came back
            await self._has_returned.wait()
        self._due = {queue: due for queue, due in self._due.items() if queue in self._leaving}
        claim = asyncio.ensure_future(self._store.claim(messages, size_bytes, time.time()))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            with suppress(OutboxError):
                self._give_back(await claim)
            raise

    async def _hand_in(self, claims: Sequence[Claim]) -> None:
        """Give them to the dispatcher in their order; it may have less room than it had."""
        left, handed_in = deque(claims), 0
        try:
            while left:
                if not self._put(left[0]):
                    await self._look_again()
                    continue
                left.popleft()
                handed_in += 1
                if handed_in % SLICE == 0:
                    await asyncio.sleep(0)
        finally:
            self._give_back(left)

    def _put(self, claim: Claim) -> bool:
        """Hand one in; false if there is no room."""
        now = time.time()
        try:
            kept = unpack(claim.record.data)
        except OutboxError as error:
            self._tell([Dead(claim.position, str(error), claim.attempts, now)])
            return True
        if kept.queue in self._due:
            self._give_back((claim,), max(self._due[kept.queue], now + CLEAR_SECONDS))
            return True
        if kept.queue in self._halted:
            self._give_back((claim,), now + STOPPED_SECONDS)
            return True
        if self._policy == "fail" and (words := unsafe_words(claim, now, is_idempotent=kept.idempotent)):
            self._tell([Dead(claim.position, words, claim.attempts, now)])
            return True
        within = self._dispatcher.config.deliver_within
        relayed = self._dispatcher.put_encoded(kept.message, kept.encoded, within, Relayed, self._sink)
        if relayed is None:
            return False
        relayed.claim = claim
        if kept.noted and self._dispatcher.observer is not None:
            self._dispatcher.observer.recall(relayed, kept.noted)
        self._out[claim.record.id] = relayed
        if relayed.queue is not None:
            self._of_queue.setdefault(relayed.queue, set()).add(relayed)
        return True

    def _drop(self, relayed: Relayed) -> bool:
        """It has settled; false if it was left behind as the outbox was closed."""
        if self._out.pop(relayed.claim.record.id, None) is None:
            return False
        if relayed.queue is not None:
            behind = self._of_queue[relayed.queue]
            behind.discard(relayed)
            if not behind:
                del self._of_queue[relayed.queue]
        return True

    def _give_back(self, claims: Iterable[Claim], due: float = 0.0) -> None:
        """What was claimed and not handed in."""
        self._tell([Returned(each.position, due, each.attempts, each.sent_since) for each in claims])

    # ------------------------------------------------------------------------------------------ settling

    def _look(self, settled: list[Relayed]) -> None:
        """What became of these; told to who waits, and to the store."""
        now, ago = time.time(), asyncio.get_running_loop().time()
        settlements: list[Settlement] = []
        for relayed in settled:
            claim, outcome = relayed.claim, relayed.outcome
            if not self._drop(relayed):
                continue
            if isinstance(outcome, Receipt):
                settlement = delivered(claim, outcome, now, is_idempotent=relayed.idempotent)
                self.duplicates_possible += settlement.receipt.duplicate_possible
                settlements.append(settlement)
                self._watching.tell(claim.record.id, settlement.receipt)
            else:
                assert outcome is not None
                settlements.append(self._failed(relayed, outcome, now, now - (ago - relayed.admitted_at)))
        self._tell(settlements)
        self._has_room.set()

    def _failed(self, relayed: Relayed, error: Any, now: float, began: float) -> Cancelled | Dead | Returned:
        claim, queue = relayed.claim, relayed.queue
        if relayed.is_cancelled:
            self._watching.tell(claim.record.id, error)
            return Cancelled(claim.position)
        settlement = failed(
            claim, error, began, now, policy=self._policy, is_idempotent=relayed.idempotent, rng=self._rng
        )
        if isinstance(settlement, Dead):
            self._watching.tell(claim.record.id, error)
            if queue is not None:
                self._pass_over(queue)
            return settlement
        self.returned += 1
        if queue is not None:
            settlement.due = self._hold_back(queue, settlement.due)
        return settlement

    def _pass_over(self, queue: str) -> None:
        """Behind a dead letter a queue goes on, unless its own rules stop it, or it is held back."""
        rules = self._dispatcher.config.queues.get(queue)
        if rules is not None and rules.on_failure == "stop":
            self._halted.add(queue)
            self._hold_back(queue, time.time() + STOPPED_SECONDS)  # it would fill the dispatcher
        elif queue not in self._leaving:
            self._let_go(queue)

    def _hold_back(self, queue: str, due: float) -> float:
        """Something of a queue came back: all that stands behind it waits as long, and comes back, too."""
        if queue not in self._due:
            self._due[queue] = due
            self._leaving.add(queue)
            self._clear(queue)
        return self._due[queue]

    def _clear(self, queue: str) -> None:
        """Take back what is left of a queue, again if some of it is on its way; then the queue goes on."""
        for behind in list(self._of_queue.get(queue, ())):
            behind.withdraw()
        if queue in self._of_queue:
            asyncio.get_running_loop().call_later(CLEAR_SECONDS, self._clear, queue)
        else:
            self._leaving.discard(queue)
            if queue not in self._halted:
                self._let_go(queue)

    def resume(self, queue: str) -> bool:
        """Let a queue go on that stopped at a dead letter; false if it had not."""
        if queue not in self._halted:
            return False
        self._halted.discard(queue)
        if queue not in self._leaving:  # else it goes on by itself, once all of it has come back
            self._let_go(queue)
        return True

    def _let_go(self, queue: str) -> None:
        with suppress(DispatcherClosed):
            self._dispatcher.resume(queue)

    def _tell(self, settlements: Sequence[Settlement]) -> None:
        if settlements:
            self._unsettled += settlements
            self._has_unsettled.set()
            self._count(settlements, 1)

    def _count(self, settlements: Sequence[Settlement], sign: int) -> None:
        self._returning += sign * sum(type(one) is Returned for one in settlements)
        if self._returning:
            self._has_returned.clear()
        else:
            self._has_returned.set()

    async def _settle(self) -> None:
        """Have the store know it, again and again until it does."""
        while not self._is_over or self._unsettled:
            await self._has_unsettled.wait()
            self._has_unsettled.clear()
            told, self._unsettled = self._unsettled, []
            unread = self._watching.unread()
            if not told:
                continue
            try:
                await self._store.settle(told)
            except OutboxError as error:
                self._news.settling_failed(len(told), error)
                self._unsettled = [*told, *self._unsettled]
                self._has_unsettled.set()
                self._answer(told, error)
                await asyncio.sleep(LOOK_AGAIN)
            else:
                self._news.settled()
                self._count(told, -1)
                self._watching.forget(unread)
                self._answer(told, None)

    async def cancel(self, message_id: str) -> bool:
        """Take a message back that has not left; true once the store knows it. Raises `OutboxError`."""
        relayed = self._out.get(message_id)
        if relayed is None:
            return await self._store.cancel(message_id)
        if self._settling.done() or self._settling.cancelling():
            raise OutboxError(self.death or "the outbox is closed")
        if relayed.outcome is not None or not relayed.withdraw():
            return False
        relayed.is_cancelled = True
        known = self._cancels[relayed.claim.position] = asyncio.get_running_loop().create_future()
        if error := await asyncio.shield(known):
            raise error
        return True

    def _answer(self, told: Sequence[Settlement], error: OutboxError | None) -> None:
        """Tell who took some of these back that the store knows it, or why not."""
        if self._cancels:
            for one in told:
                if type(one) is Cancelled and (known := self._cancels.pop(one.position, None)) is not None:
                    known.set_result(error)
