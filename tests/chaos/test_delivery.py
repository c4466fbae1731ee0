"""The whole library against chaos: a local upstream as a process behind the proxy, killed and restarted.

What counts is the upstream's own ledger. `dispatcher demo --chaos` is the same at its full size.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, Dispatcher, DispatcherError, Message, Receipt
from dispatcher.cli._demo_messages import GROUP, POISON, SUBSCRIBERS, build
from dispatcher.cli._demo_upstream import Upstream
from dispatcher.cli._demo_witness import Witness, fits_batch, fits_single, is_lost
from dispatcher.cli.audit import Audit, Sent, audit
from dispatcher.config import RetrySettings, TransportSettings
from dispatcher.core.batch import Failure, Reply
from dispatcher.devserver.chaos import ChaosProxy
from dispatcher.devserver.chaosplan import CHAOS
from dispatcher.devserver.client import UpstreamClient
from dispatcher.transport import HTTPTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Literal

pytestmark = pytest.mark.anyio

FAULTS = f"latency=exponential(2ms) poison_400={POISON}"
MATRIX_MESSAGES = 400
KILLED_MESSAGES = 10_000
KILLS = 5


@asynccontextmanager
async def scene(
    plan: str,
    *,
    faults: str = FAULTS,
    state: Path | None = None,
    deduplication: Literal["auto", "off"] = "auto",
    timeout: float = 0.3,
) -> AsyncIterator[tuple[Upstream, ChaosProxy, Witness, Dispatcher]]:
    """An upstream process, a proxy in this loop, a dispatcher that reaches the one by the other."""
    upstream = Upstream(secrets.token_hex(8), faults, seed=1, window=600, state=state)
    async with AsyncExitStack() as stack:
        await upstream.start()
        stack.push_async_callback(upstream.stop)
        async with UpstreamClient(upstream.url, upstream.token) as client:
            await client.create_group(GROUP, SUBSCRIBERS)
        host, _, port = upstream.url.removeprefix("http://").rpartition(":")
        proxy = await stack.enter_async_context(ChaosProxy((host, int(port)), plan, seed=1))
        config = Config(
            token=upstream.token,
            url=proxy.url,
            deduplication=deduplication,
            retry=RetrySettings(max_delay=0.5),
            transport=TransportSettings(attempt_timeout=timeout),
        )
        witness = Witness(HTTPTransport(config))
        dispatcher = await stack.enter_async_context(Dispatcher(config, transport=witness))
        yield upstream, proxy, witness, dispatcher


async def judge(upstream: Upstream, proxy: ChaosProxy, sent: list[Sent], *, answers_lost: int = 0) -> Audit:
    """Audit the run, once nothing can arrive any more."""
    await proxy.stop()
    async with UpstreamClient(upstream.url, upstream.token) as client:
        rows = await client.accepted()
    return audit(sent, rows, answers_lost=answers_lost)


async def send_all(dispatcher: Dispatcher, sent: list[Sent]) -> None:
    outcomes = await dispatcher.send_many([each.message for each in sent])
    for each, outcome in zip(sent, outcomes, strict=True):
        each.outcome = outcome


async def reached(dispatcher: Dispatcher, delivered: float) -> None:
    """So many are delivered, and requests are out."""
    async with asyncio.timeout(60):
        while True:
            now = dispatcher.statistics()
            if now.delivered >= delivered and now.batches_in_flight:
                return
            await asyncio.sleep(0.001)


def struck(kind: str, proxy: ChaosProxy) -> bool:
    return proxy.counts[kind] > 0


@pytest.mark.parametrize("kind", list(CHAOS))
async def test_each_fault_alone_loses_and_doubles_nothing(kind: str) -> None:
    """A third of all exchanges are struck with it: queues keep their order, poison is found, all settle."""
    async with scene(f"{kind}=0.3 stall_for=400ms drip_over=50ms", timeout=0.2) as (
        upstream,
        proxy,
        _,
        dispatcher,
    ):
        sent = build(MATRIX_MESSAGES)
        # In four goes, so that connections are used again.
        for start in range(0, MATRIX_MESSAGES, MATRIX_MESSAGES // 4):
            await send_all(dispatcher, sent[start : start + MATRIX_MESSAGES // 4])
        found = await judge(upstream, proxy, sent)
    assert struck(kind, proxy), "the run met no fault"
    assert found.holds, found
    assert found.delivered == MATRIX_MESSAGES


async def test_killed_and_restarted_again_and_again(tmp_path: Path) -> None:
    """Each fifth of the messages a `kill -9` of the upstream amid its work: nothing lost, nothing doubled."""
    sent = build(KILLED_MESSAGES)
    plan = "reset=0.02 truncate=0.02 reuse_reset_after=0.02 latency=exponential(1ms)"
    async with scene(plan, state=tmp_path / "state", timeout=1.0) as (upstream, proxy, _, dispatcher):
        sending = asyncio.create_task(send_all(dispatcher, sent))
        for life in range(KILLS):
            first = upstream.pid
            await reached(dispatcher, (life + 0.3) * KILLED_MESSAGES / KILLS)
            await upstream.kill()
            await upstream.start()
            assert upstream.pid != first
        await sending
        found = await judge(upstream, proxy, sent)
    assert found.holds, found
    assert found.delivered == sum(not each.is_poisoned for each in sent)
    assert found.rejected == {"400: invalid request": sum(each.is_poisoned for each in sent)}


async def test_without_deduplication_every_lost_answer_is_an_unknown_message(tmp_path: Path) -> None:
    """Nothing is repeated whose outcome is unknown: as many unknown as answers were lost, none twice."""
    sent = build(2_000, poison=False)
    faults = f"{FAULTS} error_after=0.1 truncate=0.1 throttle_bare=0.05 wrong_length=0.05"
    async with scene(
        "reset=0.1 reuse_reset=0.05 reuse_reset_after=0.05", faults=faults, deduplication="off"
    ) as (upstream, proxy, witness, dispatcher):
        for start in range(0, 2_000, 200):
            await send_all(dispatcher, sent[start : start + 200])
        found = await judge(upstream, proxy, sent, answers_lost=witness.lost)
    assert found.holds, found
    assert 0 < found.unknown_accepted < found.unknown == witness.lost < 2_000
    assert found.delivered == 2_000 - found.unknown
    assert audit(sent, [], answers_lost=witness.lost).lost == found.delivered


@pytest.mark.parametrize(
    ("answer", "number", "lost"),
    [
        (Failure("connect", "refused", "not_sent"), 2, False),
        (Failure("timeout", "no answer", "unknown"), 2, True),
        (Reply(200, b'[{"messageId":"1"},{"error":"no"}]'), 2, False),
        (Reply(200, b'[{"messageId":"1"}]'), 2, True),
        (Reply(200, b'[{"mess'), 2, True),
        (Reply(200, b'{"messageId":"1"}'), 1, False),
        (Reply(200, b'{"messageId":"1"}'), 2, True),
        (Reply(400, b'{"error":"no"}'), 2, False),
        (Reply(429, b""), 2, False),
        (Reply(500, b""), 2, True),
        (Reply(504, b""), 1, True),
        (Reply(503, b"", {"retry-after": "1"}), 2, False),
        (Reply(503, b""), 2, True),
    ],
)
def test_the_witness_knows_a_lost_answer(answer: Reply | Failure, number: int, lost: bool) -> None:
    """By the protocol's table: what says nothing about its messages leaves them unknown."""
    assert is_lost(answer, lambda entries: fits_batch(entries, number)) is lost


def test_the_witness_knows_the_replies_of_single_messages() -> None:
    """An object for a URL; for a URL group an array as well."""
    values: list[object] = [{"messageId": "1"}, [], "?"]
    assert [fits_single(each, "/v2/publish/https://x") for each in values] == [True, False, False]
    assert [fits_single(each, "/v2/publish/group") for each in values] == [True, True, False]


def test_the_audit_finds_a_wrong_number_of_unknowns() -> None:
    """One more or one less than answers were lost is a finding, and so is poison that was delivered."""
    message = Message("https://example.com/x", "body")
    outcome: Receipt | DispatcherError = Receipt("m")
    delivered = [Sent(message, 0, outcome)]
    row = {"digest": delivered[0].digest, "seq": 0, "messageIds": ["m"]}
    assert audit(delivered, [row]).holds
    assert not audit(delivered, [row], answers_lost=1).holds
    assert audit([Sent(message, 0, outcome, is_poisoned=True)], [row]).cured == 1
