"""What every store has to pass: one suite over the protocol, for the stores of this package and for others.

Subclass `StoreConformance` in a test module and say in `place` where the store lives; a `Place` makes
stores over the same content, so that what was closed or has crashed can be opened again. `machine` is the
same promise as a state machine for hypothesis: arbitrary runs against a model, with crashes where the store
is durable.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from dispatcher.errors import Attempt, OutboxError, StoreFull
from dispatcher.message import Endpoint, Receipt
from dispatcher.outbox.store import Cancelled, Claim, Dead, Delivered, Mark, Record, Returned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dispatcher.outbox.store import Store

NOW = 1_700_000_000.0
PLENTY = 1 << 30
RECEIPT = Receipt("msg_1", deduplication_id="d1", attempts=2)
FAILED = Attempt(0.5, "503: busy", 0.25)


class Place(Protocol):
    """Where one store's content is."""

    is_durable: bool
    """Whether it outlives the store object."""

    def make(self, *, max_messages: int = 1000, max_bytes: int = PLENTY) -> Store:
        """A store over what is here, not open."""
        ...

    async def crash(self, store: Store) -> None:
        """Leave here what a process that held this store would leave, were it killed now."""
        ...


def record(number: int, queue: str | None = None, size: int = 10) -> Record:
    """Message number `number`, accepted at that second."""
    data = str(number).encode().ljust(size, b".")
    return Record(f"out_{number:08}", data, queue, NOW + number)


def records(*numbers: int, queue: str | None = None) -> list[Record]:
    return [record(number, queue) for number in numbers]


def numbers(claims: Sequence[Claim]) -> list[int]:
    """Which messages these are; their data is right."""
    for claim in claims:
        assert claim.record.data == str(int(claim.record.id[4:])).encode().ljust(len(claim.record.data), b".")
    return [int(claim.record.id[4:]) for claim in claims]


def delivered(*claims: Claim) -> list[Delivered]:
    return [Delivered(claim.position, RECEIPT, NOW + 5) for claim in claims]


def returned(*claims: Claim, due: float, sent_since: float | None = None) -> list[Returned]:
    return [Returned(claim.position, due, (*claim.attempts, FAILED), sent_since) for claim in claims]


def dead(*claims: Claim, reason: str = "400: no") -> list[Dead]:
    return [Dead(claim.position, reason, (FAILED,), NOW + 6) for claim in claims]


async def take(store: Store, messages: int = 1000, now: float = NOW) -> list[Claim]:
    return await store.claim(messages, PLENTY, now)


@dataclass
class Waiter:
    """A task in `wait`; whether it has returned is asked after the loop has had its turns."""

    task: asyncio.Task[None]

    async def is_woken(self, within: float = 5.0) -> bool:
        done, _ = await asyncio.wait({self.task}, timeout=within)
        return bool(done)


@pytest.mark.anyio
class StoreConformance:
    """The protocol's promises, one by one."""

    @pytest.fixture
    def place(self, tmp_path: Any) -> Place:
        raise NotImplementedError("a subclass says where its store lives")

    @pytest.fixture
    async def store(self, place: Place) -> AsyncIterator[Store]:
        store = place.make()
        await store.open()
        yield store
        await store.aclose()

    async def test_what_was_appended_is_claimed_once_in_order(self, store: Store) -> None:
        """Positions grow, every field comes back, and nothing is given twice."""
        await store.append(records(1, 2, 3))
        await store.append([record(4, "q", size=5000)])
        claims = await take(store)
        assert numbers(claims) == [1, 2, 3, 4]
        assert [claim.record for claim in claims] == [*records(1, 2, 3), record(4, "q", size=5000)]
        positions = [claim.position for claim in claims]
        assert positions == sorted(set(positions))
        assert all((claim.attempts, claim.returns, claim.sent_since) == ((), 0, None) for claim in claims)
        assert await take(store) == []
        status = store.status()
        assert (status.waiting, status.claimed, status.dead) == (0, 4, 0)
        assert (status.held_bytes, status.oldest_at) == (5030, NOW + 1)

    async def test_an_empty_append_is_nothing(self, store: Store) -> None:
        """It returns, and nothing waits."""
        await store.append([])
        assert store.status().waiting == 0

    async def test_a_claim_is_bounded_by_messages(self, store: Store) -> None:
        """At most so many at once; the rest comes with the next."""
        await store.append(records(*range(10)))
        assert await take(store, 0) == []
        assert numbers(await take(store, 4)) == [0, 1, 2, 3]
        assert numbers(await take(store, 100)) == [4, 5, 6, 7, 8, 9]

    async def test_a_claim_is_bounded_by_bytes_but_gives_one(self, store: Store) -> None:
        """About so many bytes; a message larger than that is given alone."""
        await store.append([record(1, size=100), record(2, size=100), record(3, size=100)])
        assert numbers(await store.claim(10, 1, NOW)) == [1]
        assert numbers(await store.claim(10, 200, NOW)) == [2, 3]

    async def test_a_delivered_message_keeps_its_receipt(self, store: Store) -> None:
        """Found by its id, without its data; it counts no more."""
        await store.append(records(1))
        endpoints = (
            Endpoint("https://a.example", "msg_a"),
            Endpoint("https://b.example", None, error="gone"),
        )
        receipt = Receipt(None, True, "d", 3, True, endpoints)
        (claim,) = await take(store)
        await store.settle([Delivered(claim.position, receipt, NOW + 9)])
        found = await store.find("out_00000001")
        assert found is not None
        assert (found.state, found.receipt, found.settled_at) == ("delivered", receipt, NOW + 9)
        assert (found.record.id, found.record.data) == ("out_00000001", b"")
        status = store.status()
        assert (status.waiting, status.claimed, status.held_bytes, status.oldest_at) == (0, 0, 0, None)

    async def test_a_returned_message_waits_until_it_is_due(self, store: Store) -> None:
        """With its attempts, how often it came back, and since when it may have been sent."""
        await store.append(records(1, 2))
        first, second = await take(store)
        await store.settle(returned(first, due=NOW + 10, sent_since=NOW + 1))
        await store.settle(delivered(second))
        assert await take(store, now=NOW + 9.9) == []
        (again,) = await take(store, now=NOW + 10)
        assert (again.position, again.record, again.attempts) == (first.position, first.record, (FAILED,))
        assert (again.returns, again.sent_since) == (1, NOW + 1)
        await store.settle(returned(again, due=NOW))
        (third,) = await take(store)
        assert (third.attempts, third.returns, third.sent_since) == ((FAILED, FAILED), 2, None)

    async def test_later_messages_of_a_queue_wait_with_an_earlier_one(self, store: Store) -> None:
        """Also those that are appended afterwards; other queues and those in none go on."""
        await store.append(records(1, 2, queue="q"))
        first, second = await take(store)
        await store.settle([*returned(first, due=NOW + 10), *delivered(second)])
        await store.append(
            [*records(3, queue="q"), *records(4), *records(5, queue="r"), *records(6, queue="q")]
        )
        assert numbers(await take(store)) == [4, 5]
        assert await take(store) == []
        assert numbers(await take(store, now=NOW + 10)) == [1, 3, 6]

    async def test_a_queue_that_waits_is_read_in_order_however_little_is_claimed(self, store: Store) -> None:
        """One by one behind a message that came back, with others appended meanwhile."""
        await store.append(records(1, 2, 3, queue="q"))
        claims = await take(store)
        await store.settle([*returned(claims[0], claims[2], due=NOW + 10), *delivered(claims[1])])
        await store.append(records(4, 5, queue="q"))
        assert await take(store) == []
        assert numbers(await take(store, 1, NOW + 10)) == [1]
        await store.append(records(6, 7, queue="q"))
        assert numbers(await take(store, 1, NOW + 10)) == [3]
        assert numbers(await take(store, 2, NOW + 10)) == [4, 5]
        assert numbers(await take(store, 9, NOW + 10)) == [6, 7]

    async def test_a_second_delay_of_a_queue_holds_what_is_behind_it(self, store: Store) -> None:
        """The first is due, the second is not: only the first is given."""
        await store.append(records(1, 2, 3, queue="q"))
        one, two, three = await take(store)
        await store.settle(
            [*returned(one, due=NOW + 1), *returned(two, due=NOW + 20), *returned(three, due=NOW)]
        )
        assert numbers(await take(store, now=NOW + 5)) == [1]
        assert numbers(await take(store, now=NOW + 20)) == [2, 3]

    async def test_what_comes_back_at_once_goes_before_what_is_behind_it(self, store: Store) -> None:
        """Settled and claimed by calls of the same moment, the order of the queue holds."""
        await store.append(records(1, 2, 3, queue="q"))
        (one,) = await take(store, 1)
        settling = asyncio.ensure_future(store.settle(returned(one, due=NOW)))
        await asyncio.sleep(0)
        claims = await take(store)
        await settling
        assert numbers(claims) == [1, 2, 3]

    async def test_a_dead_letter_is_kept_with_its_reason(self, store: Store) -> None:
        """Never claimed; listed with its data, its attempts and why."""
        await store.append(records(1, 2))
        first, second = await take(store)
        await store.settle([*dead(first, reason="400: bad"), *delivered(second)])
        assert await take(store, now=NOW + 1e6) == []
        (letter,) = await store.dead_letters()
        assert (letter.state, letter.record, letter.reason) == ("dead", first.record, "400: bad")
        assert (letter.attempts, letter.settled_at) == ((FAILED,), NOW + 6)
        assert await store.find("out_00000001") == letter
        status = store.status()
        assert (status.dead, status.held_bytes, status.oldest_at) == (1, 0, None)
        assert status.dead_bytes == len(first.record.data)

    async def test_dead_letters_come_by_pages(self, store: Store) -> None:
        """In the order of acceptance, behind an id, at most so many."""
        await store.append(records(*range(7)))
        await store.settle(dead(*reversed(await take(store))))
        pages: list[list[int]] = []
        after = None
        while page := await store.dead_letters(after, limit=3):
            pages.append([int(letter.record.id[4:]) for letter in page])
            after = page[-1].record.id
        assert pages == [[0, 1, 2], [3, 4, 5], [6]]

    async def test_a_retried_dead_letter_waits_in_its_old_place(self, store: Store) -> None:
        """Before what was accepted after it; those that are not dead are not counted."""
        await store.append(records(1, 2, queue="q"))
        one, two = await take(store)
        await store.append(records(3, queue="q"))
        await store.settle([*dead(one), *dead(two)])
        assert await store.retry(["out_00000001", "out_00000003", "unknown"]) == 1
        claims = await take(store)
        assert numbers(claims) == [1, 3]
        assert (claims[0].position, claims[0].sent_since) == (one.position, None)
        assert store.status().oldest_at == NOW + 1
        await store.settle(delivered(*claims))
        assert store.status().oldest_at is None
        assert await store.retry() == 1
        assert store.status().oldest_at == NOW + 2
        assert numbers(await take(store)) == [2]
        assert await store.retry() == 0

    async def test_a_deleted_dead_letter_is_forgotten(self, store: Store) -> None:
        """These, or all; what is not dead stays."""
        await store.append(records(1, 2, 3, 4))
        await store.settle(dead(*(await take(store))[:3]))
        assert await store.delete(["out_00000002", "out_00000004"]) == 1
        assert await store.find("out_00000002") is None
        assert await store.delete() == 2
        assert (await store.dead_letters(), store.status().dead) == ([], 0)
        assert store.status().claimed == 1

    async def test_a_message_that_waits_can_be_cancelled(self, store: Store) -> None:
        """Whether it is fresh or came back; not when it is claimed, settled or unknown."""
        await store.append(records(1, 2, 3))
        (claim,) = await take(store, 1)
        assert await store.cancel("out_00000002") is True
        assert await store.cancel("out_00000002") is False
        assert await store.cancel("out_00000001") is False
        assert await store.cancel("unknown") is False
        await store.settle(returned(claim, due=NOW + 9))
        assert await store.cancel("out_00000001") is True
        found = await store.find("out_00000001")
        assert found is None or found.state == "cancelled"
        assert numbers(await take(store, now=NOW + 9)) == [3]
        assert (store.status().waiting, store.status().held_bytes) == (0, 10)

    async def test_a_cancelled_message_holds_its_queue_no_longer(self, store: Store) -> None:
        """What waited behind it can be claimed at once."""
        await store.append(records(1, 2, queue="q"))
        (claim,) = await take(store, 1)
        await store.settle(returned(claim, due=NOW + 9))
        assert await take(store) == []
        assert await store.cancel("out_00000001")
        assert numbers(await take(store)) == [2]

    async def test_a_claimed_message_can_be_settled_as_cancelled(self, store: Store) -> None:
        """It was taken back before it left: it waits no more, and counts no more."""
        await store.append(records(1))
        (claim,) = await take(store)
        await store.settle([Cancelled(claim.position)])
        found = await store.find("out_00000001")
        assert found is None or found.state == "cancelled"
        assert (store.status().claimed, store.status().held_bytes) == (0, 0)

    async def test_a_settlement_repeated_changes_nothing(self, store: Store) -> None:
        """Nor does one of a message that nobody has claimed."""
        await store.append(records(1, 2))
        (claim,) = await take(store, 1)
        await store.settle(delivered(claim))
        await store.settle(returned(claim, due=NOW))
        await store.settle([*delivered(claim), *dead(claim), Cancelled(claim.position + 1), Cancelled(10**9)])
        found = await store.find("out_00000001")
        assert found is not None
        assert found.state == "delivered"
        assert numbers(await take(store)) == [2]

    async def test_find_tells_each_state(self, store: Store) -> None:
        """Waiting now, claimed, waiting for an instant; `None` for what was never there."""
        assert await store.find("out_00000001") is None
        await store.append(records(1))
        states = [await store.find("out_00000001")]
        (claim,) = await take(store)
        states.append(await store.find("out_00000001"))
        await store.settle(returned(claim, due=NOW + 3))
        states.append(await store.find("out_00000001"))
        assert [found and (found.state, found.due) for found in states] == [
            ("waiting", 0.0),
            ("claimed", 0.0),
            ("waiting", NOW + 3),
        ]
        assert states[2] is not None
        assert (states[2].record, states[2].attempts) == (record(1), (FAILED,))

    async def test_an_id_twice_is_refused_and_spoils_nothing(self, store: Store) -> None:
        """All of that append, none of the others, also of the same moment."""
        await store.append(records(1))
        calls = [
            store.append(records(2)),
            store.append(records(3, 1)),
            store.append(records(4, 4)),
            store.append(records(5)),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [type(None), OutboxError, OutboxError, type(None)]
        assert sorted(numbers(await take(store))) == [1, 2, 5]

    async def test_the_bound_of_messages_holds(self, place: Place) -> None:
        """One too many refuses the whole append; a settled one makes room, a dead one does not."""
        store = place.make(max_messages=3)
        await store.open()
        await store.append(records(1, 2))
        with pytest.raises(StoreFull, match="2 of 3 messages"):
            await store.append(records(3, 4))
        await store.append(records(3))
        with pytest.raises(StoreFull):
            await store.append(records(4))
        claims = await take(store)
        await store.settle(dead(claims[0]))
        with pytest.raises(StoreFull):
            await store.append(records(4))
        await store.settle(delivered(claims[1]))
        await store.append(records(4))
        await store.aclose()

    async def test_the_bound_of_bytes_holds(self, place: Place) -> None:
        """The same for their data; concurrent appends are counted before they are kept."""
        store = place.make(max_bytes=25)
        await store.open()
        calls = [store.append(records(number)) for number in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [type(None), type(None), StoreFull, StoreFull]
        await store.settle(delivered(*(await take(store))))
        await store.append(records(8, 9))
        await store.aclose()

    async def test_many_callers_at_once(self, store: Store) -> None:
        """Fifty that append, five that claim and settle: everything once, nothing left."""
        seen: list[int] = []

        async def consume() -> None:
            while len(seen) < 500:
                claims = await take(store, 7)
                seen.extend(numbers(claims))
                await store.settle(delivered(*claims))
                await asyncio.sleep(0)

        appends = [store.append(records(*range(at, at + 10))) for at in range(0, 500, 10)]
        await asyncio.gather(*appends, *(consume() for _ in range(5)))
        assert sorted(seen) == list(range(500))
        assert (store.status().waiting, store.status().claimed) == (0, 0)

    async def test_wait_returns_when_something_is_appended(self, store: Store) -> None:
        """Not before, and at once if something is there."""
        waiter = Waiter(asyncio.ensure_future(store.wait(NOW)))
        assert not await waiter.is_woken(0.02)
        await store.append(records(1))
        assert await waiter.is_woken()
        await asyncio.wait_for(store.wait(NOW), 5)

    async def test_wait_returns_when_something_is_due(self, store: Store) -> None:
        """By the caller's clock; what comes back earlier shortens it."""
        await store.append(records(1, 2))
        one, two = await take(store)
        await store.settle(returned(one, due=NOW + 3600))
        waiter = Waiter(asyncio.ensure_future(store.wait(NOW)))
        assert not await waiter.is_woken(0.02)
        await asyncio.wait_for(store.wait(NOW + 3600), 5)
        await store.settle(returned(two, due=NOW + 0.01))
        assert await waiter.is_woken()

    async def test_wait_waits_while_a_queue_is_held(self, store: Store) -> None:
        """Fresh messages behind one that is delayed are nothing to wake for; retrying it is."""
        await store.append(records(1, queue="q"))
        await store.settle(returned(*(await take(store)), due=NOW + 3600))
        await store.append(records(2, queue="q"))
        assert await take(store) == []
        waiter = Waiter(asyncio.ensure_future(store.wait(NOW)))
        assert not await waiter.is_woken(0.02)
        assert await store.cancel("out_00000001")
        assert await waiter.is_woken()

    async def test_a_cancelled_claim_gives_nothing_away(self, store: Store) -> None:
        """Whoever stops waiting for his claim leaves its messages to the next."""
        await store.append(records(1, 2, 3))
        for turns in range(3):
            claim = asyncio.ensure_future(take(store))
            for _ in range(turns):
                await asyncio.sleep(0)
            if claim.cancel():
                await asyncio.gather(claim, return_exceptions=True)
            if not claim.cancelled():
                await store.settle(returned(*claim.result(), due=NOW))
        found: list[Claim] = []
        while len(found) < 3:
            await asyncio.wait_for(store.wait(NOW), 5)
            found += await take(store)
        assert sorted(numbers(found)) == [1, 2, 3]

    async def test_a_closed_store_refuses(self, place: Place) -> None:
        """Before it is open as well, with an error that says so; closing twice is closing once."""
        store = place.make()
        with pytest.raises(OutboxError, match="open"):
            await store.append(records(1))
        await store.open()
        waiter = asyncio.ensure_future(store.wait(NOW))
        await asyncio.sleep(0)
        await store.aclose()
        await store.aclose()
        for call in (
            store.append(records(1)),
            store.settle(()),
            take(store),
            store.find("x"),
            store.wait(NOW),
        ):
            with pytest.raises(OutboxError):
                await call
        await asyncio.wait_for(waiter, 5)

    async def test_what_was_closed_is_there_again(self, place: Place) -> None:
        """States, order, receipts, dead letters; what was claimed waits, with the instant of its claim."""
        if not place.is_durable:
            pytest.skip("this store keeps nothing beyond its object")
        store = place.make()
        await store.open()
        await self._fill(store)
        await store.aclose()
        await self._check_filled(place)

    async def test_what_crashed_is_there_again(self, place: Place) -> None:
        """The same without closing it."""
        if not place.is_durable:
            pytest.skip("this store keeps nothing beyond its object")
        store = place.make()
        await store.open()
        await self._fill(store)
        await place.crash(store)
        await store.aclose()
        await self._check_filled(place)

    async def test_a_mark_is_kept_with_what_came_from_it(self, place: Place) -> None:
        """The last of its name, also without messages; not where the messages are refused; it outlives."""
        store = place.make(max_messages=3)
        await store.open()
        assert await store.mark("one") is None
        await store.append(records(1), Mark("one", b"1"))
        await store.append(records(2), Mark("two", b"2"))
        await store.append([], Mark("one", b"\x00\xff"))
        with pytest.raises(OutboxError):
            await store.append(records(3, 1), Mark("one", b"an id is there already"))
        with pytest.raises(StoreFull):
            await store.append(records(4, 5), Mark("two", b"too many"))
        assert (await store.mark("one"), await store.mark("two")) == (b"\x00\xff", b"2")
        if place.is_durable:
            await place.crash(store)
            await store.aclose()
            store = place.make()
            await store.open()
        assert (await store.mark("one"), await store.mark("two")) == (b"\x00\xff", b"2")
        assert numbers(await take(store)) == [1, 2]
        await store.aclose()

    async def _fill(self, store: Store) -> None:
        await store.append([*records(1, 2, 3), *records(4, 5, queue="q"), *records(6, 7)])
        one, two, three, four, *_ = await take(store, 6)
        await store.settle([*delivered(one), *dead(two), *returned(three, due=NOW + 10, sent_since=NOW - 50)])
        await store.settle(returned(four, due=NOW + 20))
        (again,) = await take(store, 1, NOW + 12)
        assert numbers([again]) == [3]

    async def _check_filled(self, place: Place) -> None:
        store = place.make()
        status = await store.open()
        assert (status.waiting, status.claimed, status.dead, status.recovered) == (5, 0, 1, 5)
        assert (status.held_bytes, status.oldest_at) == (50, NOW + 3)
        claims = await take(store)
        assert sorted(numbers(claims)) == [3, 6, 7]
        by_number = dict(zip(numbers(claims), claims, strict=True))
        assert (by_number[3].sent_since, by_number[3].returns, by_number[3].attempts) == (
            NOW - 50,
            1,
            (FAILED,),
        )
        assert (by_number[6].sent_since, by_number[6].returns) == (NOW, 0)
        assert by_number[7].sent_since is None
        later = await take(store, now=NOW + 20)
        assert numbers(later) == [4, 5]
        assert [claim.sent_since for claim in later] == [None, NOW]
        found = await store.find("out_00000001")
        assert found is not None
        assert (found.state, found.receipt) == ("delivered", RECEIPT)
        assert [letter.record for letter in await store.dead_letters()] == [record(2)]
        await store.append(records(8))
        (last,) = await take(store)
        assert last.position > max(claim.position for claim in claims)
        await store.aclose()
