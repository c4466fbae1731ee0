"""The official Python SDK as a client: one changed URL, and everything works as against the service.

`dispatcher serve` as a real process, in front of the local upstream. What the SDK says it got is compared
with what the upstream has.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from qstash import AsyncQStash, QStash

from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import DESTINATION, TOKEN, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dispatcher.devserver.server import LocalUpstream

pytestmark = pytest.mark.anyio


class Site(NamedTuple):
    """An upstream, and where the sidecar before it listens."""

    upstream: LocalUpstream
    intake: str

    def bodies(self) -> dict[str, bytes | None]:
        """What the upstream has, by id."""
        return {name: row.body for row in self.upstream.accepted() for name in row.message_ids}


@asynccontextmanager
async def site(faults: str | None = None) -> AsyncIterator[Site]:
    """A sidecar before an upstream."""
    async with local_upstream(faults=faults) as upstream, serving(url=upstream.url) as sidecar:
        yield Site(upstream, sidecar.intake)


async def using(where: Site, work: Callable[[QStash], Any], token: str = TOKEN) -> Any:
    """What the synchronous client does, in a thread: it blocks, and the upstream's loop must go on."""
    client = QStash(token, base_url=where.intake, retry=False)
    with closing(client.http._client):  # it has no way of its own to close
        return await asyncio.to_thread(work, client)


async def test_single_messages() -> None:
    """Publish text, JSON and bytes, enqueue; look up and cancel right after."""

    def work(client: QStash) -> Any:
        message: Any = client.message
        text = message.publish(url=DESTINATION, body="grüße", retries=2, headers={"X-Tenant": "42"})
        json = message.publish_json(url=DESTINATION, body={"a": [1]}, delay=10)
        binary = message.publish(url=DESTINATION, body=b"\xff\x00")
        queued = message.enqueue(queue="q", url=DESTINATION, body="in order")
        found = message.get(text.message_id)
        message.cancel(json.message_id)
        return text, json, binary, queued, found

    async with site() as where:
        text, json, binary, queued, found = await using(where, work)
        bodies = where.bodies()
    assert bodies[text.message_id] == "grüße".encode()
    assert bodies[json.message_id] == b'{"a": [1]}'
    assert bodies[binary.message_id] == b"\xff\x00"
    assert bodies[queued.message_id] == b"in order"
    assert (found.message_id, found.url) == (text.message_id, DESTINATION)


async def test_an_id_of_ones_own_is_deduplicated() -> None:
    """The second answer says so, with the first one's id."""

    def work(client: QStash) -> Any:
        return [
            client.message.publish(url=DESTINATION, body="once", deduplication_id="mine") for _ in range(2)
        ]

    async with site() as where:
        first, second = await using(where, work)
        assert len(where.upstream.accepted()) == 1
    assert first.message_id == second.message_id
    assert (bool(first.deduplicated), bool(second.deduplicated)) == (False, True)


async def test_batches() -> None:
    """Each item has its own response, to URLs and queues, text and JSON."""
    texts: list[Any] = [{"url": DESTINATION, "body": f"b{n}"} for n in range(150)]
    texts += [{"url": DESTINATION, "body": f"q{n}", "queue": "q"} for n in range(20)]
    values: list[Any] = [{"url": DESTINATION, "body": {"n": n}} for n in range(5)]
    async with site() as where:
        answers = await using(where, lambda client: client.message.batch(texts))
        as_json = await using(where, lambda client: client.message.batch_json(values))
        bodies = where.bodies()
        queued = [row.body for row in where.upstream.accepted() if row.queue == "q"]
    assert [bodies[answer.message_id] for answer in answers] == [item["body"].encode() for item in texts]
    assert [bodies[answer.message_id] for answer in as_json] == [b'{"n": %d}' % n for n in range(5)]
    assert queued == [b"q%d" % n for n in range(20)]


async def test_the_rest_goes_through_the_proxy() -> None:
    """URL groups and queues are the upstream's; a publish to a group has an answer for each endpoint."""

    def work(client: QStash) -> Any:
        endpoints: list[Any] = [{"url": "https://a.example/x", "name": "a"}, {"url": "https://b.example/y"}]
        client.url_group.upsert_endpoints(url_group="team", endpoints=endpoints)
        answers = client.message.publish(url_group="team", body="to all")
        client.queue.upsert(queue="orders", parallelism=2)
        return answers, client.url_group.list(), client.queue.get("orders")

    async with site() as where:
        answers, groups, queue = await using(where, work)
        bodies = where.bodies()
    assert {answer.url for answer in answers} == {"https://a.example/x", "https://b.example/y"}
    assert [bodies[answer.message_id] for answer in answers] == [b"to all"] * 2
    assert [group.name for group in groups] == ["team"]
    assert (queue.name, queue.parallelism) == ("orders", 2)


async def test_a_thousand_publishes_at_once_are_a_few_requests() -> None:
    """Of the asynchronous client: each has its own id, and the upstream saw full batches."""
    async with site(faults="latency=30ms") as where, AsyncExitStack() as stack:
        clients: list[Any] = [AsyncQStash(TOKEN, base_url=where.intake) for _ in range(10)]
        for client in clients:
            stack.push_async_callback(client.http._client.aclose)
        answers = await asyncio.gather(
            *(clients[n % 10].message.publish(url=DESTINATION, body=f"m{n}") for n in range(1_000))
        )
        bodies = where.bodies()
        requests = len(where.upstream.requests)
    assert [bodies[answer.message_id] for answer in answers] == [b"m%d" % n for n in range(1_000)]
    assert requests <= 100


async def test_errors_are_the_services_own() -> None:
    """A wrong token, a destination that the service refuses: the SDK raises what it always raises."""
    async with site() as where:
        with pytest.raises(Exception, match="unauthorized"):
            await using(
                where, lambda client: client.message.publish(url=DESTINATION, body="x"), "wrong-token"
            )
        with pytest.raises(Exception, match="destination"):
            await using(where, lambda client: client.message.publish(url="ftp//nowhere", body="x"))
        assert not where.upstream.accepted()
