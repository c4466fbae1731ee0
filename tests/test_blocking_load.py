"""`BlockingDispatcher` under load: fifty threads over real sockets, and races at a tiny switch interval."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from dispatcher import (
    BlockingDelivery,
    BlockingDispatcher,
    Config,
    DeliveryError,
    Message,
    QueueFull,
    Receipt,
)
from dispatcher.core.invariants import check
from dispatcher.metrics import register
from dispatcher.testing import ScriptedTransport
from tests.blocking_support import URL, Scripted, accepted, message
from tests.devserver.support import TOKEN, dev_process
from tests.metrics_support import Scrape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

THREADS, MESSAGES = 50, 2_000


def test_every_receipt_is_its_own_messages(tmp_path: Path) -> None:
    """Fifty threads, 100,000 messages, a tenth of them in ten queues: ids, bodies and orders all match."""

    def work(number: int) -> list[tuple[str, str | None]]:
        texts = [f"{number}:{n}" for n in range(MESSAGES)]
        deliveries = [
            dispatcher.put(Message(URL, text, queue=None if n % 10 else f"q{number % 10}"))
            for n, text in enumerate(texts)
        ]
        receipts = [delivery.result() for delivery in deliveries]
        return [(receipt.message_id or "", text) for receipt, text in zip(receipts, texts, strict=True)]

    with dev_process(tmp_path, "--keep-bodies") as upstream:
        with (
            BlockingDispatcher(Config(token=TOKEN, url=upstream.url)) as dispatcher,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            text_of = dict(pair for pairs in pool.map(work, range(THREADS)) for pair in pairs)
        rows = accepted(upstream.url)
    assert len(text_of) == THREADS * MESSAGES, "no id twice"
    assert {row["messageIds"][0]: row["body"] for row in rows} == text_of
    assert len(rows) == THREADS * MESSAGES, "nothing accepted twice"
    orders: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        if row["queue"]:
            number, _, n = row["body"].partition(":")
            orders[row["queue"], number].append(int(n))
    assert len(orders) == THREADS
    assert all(order == list(range(0, MESSAGES, 10)) for order in orders.values())


@pytest.fixture
def tiny_switch_interval() -> Iterator[None]:
    """Threads take turns every ten microseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def one_of_everything(dispatcher: BlockingDispatcher, random_: random.Random, tally: dict[str, int]) -> None:
    """One call, drawn at random; counts what it handed in, and what came of it."""

    def count(word: str) -> None:
        tally[word] += 1

    choice = random_.randrange(7)
    try:
        if choice == 0:
            dispatcher.send(message(), timeout=random_.choice([None, 0.0, 0.0005, 0.005]))
            count("delivered")
        elif choice == 1:
            first, second = dispatcher.put(message()), dispatcher.put(message(queue="q"))
            with ThreadPoolExecutor(2) as pool:
                for outcome in pool.map(BlockingDelivery.result, [first, second, first]):
                    assert isinstance(outcome, Receipt)
            tally["delivered"] += 2
        elif choice == 2:
            delivery = dispatcher.put_nowait(message())
            count("withdrawn" if delivery.withdraw() else "delivered")
        elif choice == 3:
            for one in dispatcher.send_many(message() for _ in range(5)):
                assert isinstance(one, Receipt)
                count("delivered")
        elif choice == 4:
            dispatcher.flush()
        elif choice == 5:
            assert dispatcher.statistics().held <= 20
        else:
            for _ in dispatcher.stream((message() for _ in range(30)), window=8):
                count("delivered")
    except QueueFull:
        pass
    except TimeoutError as error:
        if "no room" not in str(error):
            count("withdrawn" if "taken back" in str(error) else "delivered")


@pytest.mark.usefixtures("tiny_switch_interval")
def test_races_lose_nothing() -> None:
    """Sixteen threads do everything at once in a small room: each message ends once, the books balance."""
    scripted = Scripted(queue_max_messages=20)
    tallies: list[dict[str, int]] = []
    with scripted as dispatcher:

        def work(seed: int) -> None:
            tally: defaultdict[str, int] = defaultdict(int)
            random_ = random.Random(seed)
            for _ in range(60):
                one_of_everything(dispatcher, random_, tally)
            tallies.append(tally)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        dispatcher.flush()
        worker = dispatcher._worker
        assert worker is not None
        worker.call(check, dispatcher.engine)
        statistics = dispatcher.statistics()
    sums = {word: sum(tally.get(word, 0) for tally in tallies) for word in ("delivered", "withdrawn")}
    assert statistics.finished == {word: count for word, count in sums.items() if count}
    assert (statistics.held, statistics.held_bytes, statistics.waiting_for_room) == (0, 0, 0)
    assert len(scripted.bodies) == sums["delivered"]
    assert statistics.unawaited_failures == 0


@pytest.mark.usefixtures("tiny_switch_interval")
def test_threads_that_all_begin_at_once_share_one_thread() -> None:
    """The first use happens in twenty threads: one transport is made, and everything goes through it."""
    made: list[ScriptedTransport] = []

    def make() -> ScriptedTransport:
        made.append(ScriptedTransport())
        return made[-1]

    dispatcher = BlockingDispatcher(Config(token="t"), transport=make)
    with ThreadPoolExecutor(20) as pool:
        receipts = list(pool.map(lambda n: dispatcher.send(message(n)), range(200)))
    dispatcher.close()
    assert len(made) == 1
    assert len({receipt.message_id for receipt in receipts}) == 200


@pytest.mark.usefixtures("tiny_switch_interval")
def test_closing_in_the_middle_of_it_leaves_nobody_behind() -> None:
    """Threads hand in while others close: every call ends, and what was taken is settled."""
    for _ in range(20):
        scripted = Scripted(queue_max_messages=5)
        dispatcher = scripted.dispatcher
        dispatcher.start()

        def work(_: int, dispatcher: BlockingDispatcher = dispatcher) -> list[Any]:
            return dispatcher.send_many(message() for _ in range(30))

        with ThreadPoolExecutor(8) as pool:
            outcomes = [pool.submit(work, n) for n in range(6)]
            reports = [pool.submit(dispatcher.close) for _ in range(2)]
        assert reports[0].result() is reports[1].result()
        receipts = [one for part in outcomes for one in part.result() if isinstance(one, Receipt)]
        assert not [one for part in outcomes for one in part.result() if isinstance(one, DeliveryError)]
        assert len(receipts) == len(scripted.bodies) == dispatcher.statistics().delivered


def test_metrics_of_a_blocking_dispatcher() -> None:
    """Registered before its first use it has zeros; then its own counts, room and waiting threads."""
    registry = CollectorRegistry()
    scripted = Scripted(400, name="web", queue_max_messages=7)
    dispatcher = scripted.dispatcher
    register(dispatcher, registry)
    assert Scrape(registry)("dispatcher_messages_admitted_total", "web") == 0
    assert Scrape(registry)("dispatcher_held_messages_limit", "web") == 7
    with scripted:
        with pytest.raises(DeliveryError):
            dispatcher.send(message())
        dispatcher.send(message())
        scrape = Scrape(registry)
        assert scrape("dispatcher_messages_admitted_total", "web") == 2
        assert scrape.by("dispatcher_messages_finished_total", "outcome", "web") == {
            "delivered": 1,
            "rejected": 1,
        }
        assert scrape("dispatcher_held_messages", "web", state="waiting") == 0
        assert scrape("dispatcher_oldest_message_age_seconds", "web") == 0
        register(dispatcher, registry)
    assert Scrape(registry)("dispatcher_messages_admitted_total", "web") == 2
