"""The official Python SDK as a client: one changed URL, and everything works as against the service.

`dispatcher serve` as a real process, in front of the local upstream; the synchronous client and the
asynchronous one. What the SDK says it got is compared with what the upstream has.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest
from qstash import AsyncQStash, QStash
from qstash.errors import QStashError, RateLimitExceededError

from tests.sidecar.daemon_support import DESTINATION, TOKEN
from tests.sidecar.sdk_support import ODD_DESTINATIONS, site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.sidecar.sdk_support import Site

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("kind", [QStash, AsyncQStash])]
Kind = type[Any]
REQUESTS_MAX = 30
"""For a thousand publishes at once."""


class Client:
    """One of the SDK's clients; the synchronous one works in threads: it blocks, and the loop must go on."""

    def __init__(self, kind: Kind, where: Site, token: str = TOKEN) -> None:
        self.sdk = kind(token, base_url=where.intake, retry=False)

    async def __call__(self, name: str, *words: Any, **named: Any) -> Any:
        """The result of a call by its name, such as `message.publish`."""
        method = attrgetter(name)(self.sdk)
        if isinstance(self.sdk, AsyncQStash):
            return await method(*words, **named)
        return await asyncio.to_thread(method, *words, **named)

    async def aclose(self) -> None:
        """Close its connections; it has no way of its own."""
        http = self.sdk.http._client
        await http.aclose() if isinstance(self.sdk, AsyncQStash) else http.close()


@asynccontextmanager
async def client_of(kind: Kind, where: Site, token: str = TOKEN) -> AsyncIterator[Client]:
    """A client, closed at the end."""
    client = Client(kind, where, token)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def connected(kind: Kind) -> AsyncIterator[tuple[Site, Client]]:
    """A site and a client of it."""
    async with site() as where, client_of(kind, where) as client:
        yield where, client


async def test_single_messages(kind: Kind) -> None:
    """Publish text, JSON and bytes, enqueue; look up and cancel right after."""
    async with connected(kind) as (where, call):
        headers = {"X-Tenant": "42"}
        text = await call("message.publish", url=DESTINATION, body="grüße", retries=2, headers=headers)
        found = await call("message.get", text.message_id)
        json = await call("message.publish_json", url=DESTINATION, body={"a": [1]}, delay=10)
        await call("message.cancel", json.message_id)
        with pytest.raises(QStashError, match="404"):
            await call("message.get", json.message_id)
        binary = await call("message.publish", url=DESTINATION, body=b"\xff\x00")
        queued = [await call("message.enqueue", queue="q", url=DESTINATION, body=f"q{n}") for n in range(2)]
        queued.append(await call("message.enqueue_json", queue="q", url=DESTINATION, body={"n": 2}))
        rows, bodies = where.rows(), where.bodies()
        in_order = [row.body for row in where.upstream.accepted() if row.queue == "q"]
    assert bodies[text.message_id] == "grüße".encode()
    assert {("Upstash-Forward-X-Tenant", "42"), ("Upstash-Retries", "2")} <= {
        (name.title(), value) for name, value in rows[text.message_id].headers
    }
    assert bodies[json.message_id] == b'{"a": [1]}'
    assert bodies[binary.message_id] == b"\xff\x00"
    assert [bodies[one.message_id] for one in queued] == in_order == [b"q0", b"q1", b'{"n": 2}']
    assert (found.message_id, found.url, found.body) == (text.message_id, DESTINATION, "grüße")


async def test_destinations_arrive_as_they_were_written(kind: Kind) -> None:
    """Double slashes, kept escapes, queries, credentials and ports."""
    async with connected(kind) as (where, call):
        sent = {one: await call("message.publish", url=one, body="x") for one in ODD_DESTINATIONS}
        rows = where.rows()
    assert {one: rows[answer.message_id].destination for one, answer in sent.items()} == {
        one: one for one in ODD_DESTINATIONS
    }


async def test_an_id_of_ones_own_is_deduplicated(kind: Kind) -> None:
    """The second answer says so, with the first one's id."""
    async with connected(kind) as (where, call):
        words = {"url": DESTINATION, "body": "once", "deduplication_id": "mine"}
        first, second = [await call("message.publish", **words) for _ in range(2)]
        assert len(where.upstream.accepted()) == 1
    assert first.message_id == second.message_id
    assert (bool(first.deduplicated), bool(second.deduplicated)) == (False, True)


async def test_batches(kind: Kind) -> None:
    """Each item has its own response, to URLs and queues, text and JSON."""
    texts: list[Any] = [{"url": DESTINATION, "body": f"b{n}"} for n in range(150)]
    texts += [{"url": DESTINATION, "body": f"q{n}", "queue": "q"} for n in range(20)]
    values: list[Any] = [{"url": DESTINATION, "body": {"n": n}} for n in range(5)]
    async with connected(kind) as (where, call):
        answers = await call("message.batch", texts)
        as_json = await call("message.batch_json", values)
        bodies = where.bodies()
        queued = [row.body for row in where.upstream.accepted() if row.queue == "q"]
    assert [bodies[answer.message_id] for answer in answers] == [item["body"].encode() for item in texts]
    assert [bodies[answer.message_id] for answer in as_json] == [b'{"n": %d}' % n for n in range(5)]
    assert queued == [b"q%d" % n for n in range(20)]


async def test_one_bad_item_of_a_batch_spoils_the_sdks_answer_only(kind: Kind) -> None:
    """The service's form for an item that failed has no id, which the SDK does not read: its own `KeyError`.

    The good ones were sent all the same.
    """
    items = [{"url": DESTINATION, "body": "good"}, {"url": "ftp//nowhere", "body": "bad"}]
    async with connected(kind) as (where, call):
        with pytest.raises(KeyError, match="messageId"):
            await call("message.batch", items)
        assert list(where.bodies().values()) == [b"good"]
        with pytest.raises(QStashError, match=r"400.*scheme"):
            await call("message.batch", items[1:])
        assert list(where.bodies().values()) == [b"good"]


async def test_url_groups(kind: Kind) -> None:
    """A publish to a group has an answer for each endpoint, alone, enqueued and in a batch."""
    endpoints = [{"url": "https://a.example/x", "name": "a"}, {"url": "https://b.example/y"}]
    async with connected(kind) as (where, call):
        await call("url_group.upsert_endpoints", url_group="team", endpoints=endpoints)
        published = await call("message.publish", url_group="team", body="to all")
        enqueued = await call("message.enqueue", queue="q", url_group="team", body="in order")
        items = [{"url_group": "team", "body": "batched"}, {"url": DESTINATION, "body": "to one"}]
        batched, single = await call("message.batch", items)
        groups = await call("url_group.list")
        await call("url_group.delete", "team")
        with pytest.raises(QStashError, match="404"):
            await call("message.publish", url_group="team", body="to nobody")
        bodies = where.bodies()
    for answers, body in ((published, b"to all"), (enqueued, b"in order"), (batched, b"batched")):
        assert {answer.url for answer in answers} == {one["url"] for one in endpoints}
        assert [bodies[answer.message_id] for answer in answers] == [body] * 2
    assert bodies[single.message_id] == b"to one"
    assert [(group.name, len(group.endpoints)) for group in groups] == [("team", 2)]


async def test_queues(kind: Kind) -> None:
    """Made, shown, paused, resumed, listed, deleted."""
    async with connected(kind) as (_, call):
        await call("queue.upsert", queue="orders", parallelism=2)
        await call("queue.pause", "orders")
        paused = await call("queue.get", "orders")
        await call("queue.resume", "orders")
        (listed,) = await call("queue.list")
        await call("queue.delete", "orders")
        with pytest.raises(QStashError, match="404"):
            await call("queue.get", "orders")
    assert (paused.name, paused.parallelism, paused.paused) == ("orders", 2, True)
    assert (listed.name, listed.paused) == ("orders", False)


async def test_cancelling_many(kind: Kind) -> None:
    """By ids right after they came, and all that are left."""
    async with connected(kind) as (where, call):
        items = [{"url": DESTINATION, "body": f"b{n}"} for n in range(5)]
        sent = [one.message_id for one in await call("message.batch", items)]
        assert await call("message.cancel_many", sent[:2]) == 2
        assert [name for name in sent if where.upstream.upstream.find(name)] == sent[2:]
        assert await call("message.cancel_all") == 3


async def test_schedules(kind: Kind) -> None:
    """Created with text and JSON, listed, shown, paused, resumed, deleted."""
    async with connected(kind) as (_, call):
        words = {"destination": DESTINATION + "//x%2Fy", "cron": "*/5 * * * *", "headers": {"X-Tenant": "42"}}
        name = await call("schedule.create", body="grüße", retries=1, **words)
        other = await call("schedule.create_json", body={"a": 1}, schedule_id="mine", **words)
        await call("schedule.pause", name)
        paused = await call("schedule.get", name)
        await call("schedule.resume", name)
        listed = {one.schedule_id: one for one in await call("schedule.list")}
        await call("schedule.delete", name)
        with pytest.raises(QStashError, match="404"):
            await call("schedule.get", name)
    assert (paused.destination, paused.cron, paused.body) == (words["destination"], words["cron"], "grüße")
    assert (paused.paused, paused.retries, paused.headers["X-Tenant"]) == (True, 1, ["42"])
    assert listed.keys() == {name, other} == {name, "mine"}
    assert (listed[name].paused, listed[other].body) == (False, '{"a": 1}')


async def test_dead_letters_and_logs(kind: Kind) -> None:
    """Listed, filtered, shown, deleted; the logs tell of them."""
    async with connected(kind) as (where, call):
        sent = [
            (await call("message.publish", url=DESTINATION, body=f"d{n}", label=f"l{n}")).message_id
            for n in range(4)
        ]
        assert where.fail(sent, status=503, answer="busy") == 4
        dead = (await call("dlq.list")).messages
        (of_label,) = (await call("dlq.list", filter={"label": "l2"})).messages
        one = await call("dlq.get", dead[0].dlq_id)
        await call("dlq.delete", dead[0].dlq_id)
        assert await call("dlq.delete_many", [letter.dlq_id for letter in dead[1:3]]) == 2
        left = (await call("dlq.list", count=1)).messages
        logs = (await call("log.list", filter={"message_ids": [sent[0], sent[3]]})).logs
    assert [letter.message_id for letter in dead] == sent
    assert (one.message_id, one.body, one.response_status, one.response_body) == (sent[0], "d0", 503, "busy")
    assert of_label.message_id == sent[2]
    assert [letter.message_id for letter in left] == [sent[3]]
    assert sorted((log.message_id, log.state.name) for log in logs) == sorted(
        [(sent[0], "CREATED"), (sent[3], "CREATED"), (sent[3], "FAILED")]
    )


async def test_signing_keys(kind: Kind) -> None:
    """Shown, and turned."""
    async with connected(kind) as (_, call):
        before, after = await call("signing_key.get"), await call("signing_key.rotate")
    assert before.current != before.next == after.current != after.next


async def test_a_thousand_publishes_at_once_are_a_few_requests(kind: Kind) -> None:
    """Each has its own id, and the upstream saw full batches."""
    async with site("latency=30ms") as where, AsyncExitStack() as stack:
        if kind is AsyncQStash:
            answers = await from_tasks(where, stack)
        else:
            answers = await from_threads(where, stack)
        bodies, requests = where.bodies(), where.posts()
    assert [bodies[answer.message_id] for answer in answers] == [b"m%d" % n for n in range(1_000)]
    assert len(bodies) == 1_000
    assert requests <= REQUESTS_MAX, requests


async def from_tasks(where: Site, stack: AsyncExitStack) -> list[Any]:
    """A thousand publishes of the asynchronous client; ten of it, since its pool is slow with many."""
    calls = [await stack.enter_async_context(client_of(AsyncQStash, where)) for _ in range(10)]
    return await asyncio.gather(
        *(calls[n % 10]("message.publish", url=DESTINATION, body=f"m{n}") for n in range(1_000))
    )


async def from_threads(where: Site, stack: AsyncExitStack) -> list[Any]:
    """A thousand publishes of the synchronous client, each in a thread of its own, over ten of it."""
    calls = [await stack.enter_async_context(client_of(QStash, where)) for _ in range(10)]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1_000) as threads:
        publish = [call.sdk.message.publish for call in calls]
        jobs = [partial(publish[n % 10], url=DESTINATION, body=f"m{n}") for n in range(1_000)]
        return await asyncio.gather(*(loop.run_in_executor(threads, job) for job in jobs))


async def test_errors_are_the_services_own(kind: Kind) -> None:
    """A wrong token, a destination or a group that the service refuses: raised as always."""
    async with connected(kind) as (where, call):
        async with client_of(kind, where, "wrong-token") as stranger:
            with pytest.raises(QStashError, match=r"401.*unauthorized"):
                await stranger("message.publish", url=DESTINATION, body="x")
            with pytest.raises(QStashError, match=r"401.*unauthorized"):
                await stranger("schedule.list")
        with pytest.raises(QStashError, match=r"400.*scheme"):
            await call("message.publish", url="ftp//nowhere", body="x")
        with pytest.raises(QStashError, match=r"404.*nobody"):
            await call("message.publish", url_group="nobody", body="x")
        assert not where.upstream.accepted()


async def test_a_callers_own_token_is_for_messages(kind: Kind) -> None:
    """It publishes, looks up and cancels; what is the account's, such as schedules, is refused."""
    async with (
        site(DISPATCHER_SERVE_TOKENS="callers-own, another") as where,
        client_of(kind, where, "callers-own") as call,
    ):
        sent = [(await call("message.publish", url=DESTINATION, body=f"m{n}")).message_id for n in range(3)]
        assert [(await call("message.get", name)).body for name in sent] == ["m0", "m1", "m2"]
        await call("message.cancel", sent[0])
        assert await call("message.cancel_many", sent) == 2
        for name in ("schedule.list", "url_group.list", "queue.list", "dlq.list", "signing_key.get"):
            with pytest.raises(QStashError, match=r"403.*upstream's own token"):
                await call(name)


async def test_a_full_sidecar_is_a_rate_limit(kind: Kind) -> None:
    """When its patience ends the SDK raises what a 429 of the service makes it raise; nothing left."""
    full = {"DISPATCHER_QUEUE_MAX_MESSAGES": "1", "DISPATCHER_SERVE_PATIENCE": "0.2"}
    async with site("latency=1s", **full) as where, client_of(kind, where) as call:
        filling = asyncio.create_task(call("message.publish", url=DESTINATION, body="first"))
        await where.until(lambda: where.posts() == 1)
        with pytest.raises(RateLimitExceededError):
            await call("message.publish", url=DESTINATION, body="second")
        assert where.bodies()[(await filling).message_id] == b"first"
        assert where.posts() == 1
