"""A store's promise as a state machine: arbitrary runs against a model, for hypothesis. See `conformance`.

The model knows of each message where it is, and checks what the store gives: nothing lost, nothing given
twice, the order of each queue, and after a crash what was claimed waiting again. It does not say which of
several allowed messages comes first, but all that may be claimed must be given when there is room.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.outbox.store import Cancelled, Dead, Delivered, Returned
from tests.outbox.conformance import FAILED, NOW, PLENTY, RECEIPT, record

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from dispatcher.errors import Attempt
    from dispatcher.outbox.store import Claim, Record, Settlement, Store
    from tests.outbox.conformance import Place

QUEUES = st.sampled_from([None, None, "a", "b", "c"])
PICKS = st.lists(st.integers(0, 20), max_size=4)


@dataclass
class Known:
    """What the model knows of one message."""

    record: Record
    state: str = "waiting"
    due: float = 0.0
    returns: int = 0
    attempts: tuple[Attempt, ...] = ()
    sent_since: float | None = None
    claimed_at: float = 0.0
    position: int | None = None


@dataclass
class Model:
    """Every message, in the order of acceptance."""

    known: list[Known] = field(default_factory=list)

    def in_state(self, *states: str) -> list[Known]:
        return [one for one in self.known if one.state in states]

    def claimable(self, now: float) -> list[Known]:
        """All that may be given, queue by queue in order."""
        found, blocked = [], set[str]()
        for one in self.in_state("waiting"):
            queue = one.record.queue
            if queue in blocked:
                continue
            if one.due <= now:
                found.append(one)
            elif queue is not None:
                blocked.add(queue)
        return found


class StoreMachine(RuleBasedStateMachine):
    """Rules over a store and its model; a subclass gives `new_place`."""

    def new_place(self) -> Place:
        """Somewhere empty."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.place = self.new_place()
        self.model = Model()
        self.now = NOW
        self.count = 0
        self.store: Store = self.place.make()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 30))

    @initialize()
    def begin(self) -> None:
        self.run(self.store.open())

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self.loop.close()

    @rule(queues=st.lists(QUEUES, min_size=1, max_size=6), size=st.sampled_from([8, 30, 9000]))
    def append(self, queues: list[str | None], size: int) -> None:
        new = []
        for queue in queues:
            self.count += 1
            new.append(record(self.count, queue, size))
        self.run(self.store.append(new))
        self.model.known += [Known(one) for one in new]

    @rule(messages=st.integers(0, 8), size_bytes=st.sampled_from([1, 100, PLENTY]))
    def claim(self, messages: int, size_bytes: int) -> None:
        claims = self.run(self.store.claim(messages, size_bytes, self.now))
        self.check_claims(claims, messages, size_bytes)

    def check_claims(self, claims: list[Claim], messages: int, size_bytes: int) -> None:
        allowed = self.model.claimable(self.now)
        by_id = {one.record.id: one for one in allowed}
        given = [by_id[claim.record.id] for claim in claims]
        assert len(set(map(id, given))) == len(given) <= messages
        assert [one.position for one in claims] == sorted(one.position for one in claims)
        for queue in {one.record.queue for one in given} - {None}:
            of_queue = [one for one in allowed if one.record.queue == queue]
            mine = [one for one in given if one.record.queue == queue]
            assert mine == of_queue[: len(mine)]
        if len(given) < min(messages, len(allowed)):
            assert given
            taken = sum(len(one.record.data) for one in given)
            assert taken + max(len(one.record.data) for one in allowed if one not in given) > size_bytes
        for one, claim in zip(given, claims, strict=True):
            self.check_claim(one, claim)
            one.state, one.claimed_at, one.position = "claimed", self.now, claim.position

    def check_claim(self, one: Known, claim: Claim) -> None:
        assert claim.record == one.record
        assert one.position in (None, claim.position)
        assert (claim.attempts, claim.returns) == (one.attempts, one.returns)
        assert claim.sent_since == one.sent_since

    @rule(picks=PICKS, data=st.data())
    def settle(self, picks: list[int], data: st.DataObject) -> None:
        claimed = self.model.in_state("claimed")
        chosen = {pick % len(claimed) for pick in picks} if claimed else set()
        said = [self.said(claimed[at], data.draw(st.integers(0, 5))) for at in sorted(chosen)]
        self.run(self.store.settle(said))
        self.run(self.store.settle(said[:1]))  # it is repeated, and changes nothing

    def said(self, one: Known, how: int) -> Settlement:
        """Something that became of it, in the model as well."""
        assert one.position is not None
        match how:
            case 0 | 1:
                one.state = "delivered"
                return Delivered(one.position, RECEIPT, self.now)
            case 2:
                one.state, one.attempts = "dead", (*one.attempts, FAILED)
                return Dead(one.position, "no", one.attempts, self.now)
            case 3:
                one.state = "gone"
                return Cancelled(one.position)
            case _:
                one.state, one.returns, one.attempts = "waiting", one.returns + 1, (*one.attempts, FAILED)
                one.due = self.now + (10 if how == 4 else -1)
                one.sent_since = self.now - 1 if how == 4 else None
                return Returned(one.position, one.due, one.attempts, one.sent_since)

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.model.known)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        one = self.model.known[pick % len(self.model.known)]
        assert self.run(self.store.cancel(one.record.id)) == (one.state == "waiting")
        if one.state == "waiting":
            one.state = "gone"

    @rule(picks=st.none() | PICKS, again=st.booleans())
    def decide_on_the_dead(self, picks: list[int] | None, again: bool) -> None:
        dead = self.model.in_state("dead")
        if picks is not None:
            dead = [dead[at] for at in sorted({pick % len(dead) for pick in picks})] if dead else []
        ids = None if picks is None else [one.record.id for one in dead]
        done = self.run(self.store.retry(ids) if again else self.store.delete(ids))
        assert done == len(dead)
        for one in dead:
            one.state, one.due, one.sent_since = ("waiting" if again else "gone"), 0.0, None

    @precondition(lambda self: self.place.is_durable)
    @rule(is_crash=st.booleans())
    def end_the_process(self, is_crash: bool) -> None:
        if is_crash:
            self.run(self.place.crash(self.store))
        self.run(self.store.aclose())
        self.store = self.place.make()
        status = self.run(self.store.open())
        assert status.recovered == len(self.model.in_state("waiting", "claimed"))
        assert status.damaged == 0
        for one in self.model.in_state("claimed"):
            one.state, one.due = "waiting", 0.0
            one.sent_since = one.claimed_at if one.sent_since is None else one.sent_since

    @invariant()
    def the_numbers_agree(self) -> None:
        status = self.store.status()
        held = self.model.in_state("waiting", "claimed")
        assert status.waiting == len(self.model.in_state("waiting"))
        assert status.claimed == len(self.model.in_state("claimed"))
        assert status.dead == len(self.model.in_state("dead"))
        assert status.held_bytes == sum(len(one.record.data) for one in held)
        assert status.oldest_at == (held[0].record.accepted_at if held else None)

    @precondition(lambda self: self.model.known)
    @rule(pick=st.integers(0, 100))
    def find(self, pick: int) -> None:
        one = self.model.known[pick % len(self.model.known)]
        found = self.run(self.store.find(one.record.id))
        if one.state == "gone":
            assert found is None or found.state == "cancelled"
        else:
            assert found is not None
            assert found.state == one.state
            assert one.state == "delivered" or (found.record, found.attempts) == (one.record, one.attempts)

    @rule()
    def wait(self) -> None:
        """It returns if something may be claimed; and the dead letters are those of the model."""
        if self.model.claimable(self.now):
            self.run(self.store.wait(self.now))
        letters = self.run(self.store.dead_letters())
        assert [one.record for one in letters] == [one.record for one in self.model.in_state("dead")]
