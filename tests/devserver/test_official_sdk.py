"""The official Python SDK, synchronous and asynchronous, against `dispatcher dev` as a process.

Whatever the SDK sends must be taken and whatever it parses must be there: this is what "speaks the
service's dialect" means.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from qstash import AsyncQStash, QStash
from qstash.chat import openai
from qstash.errors import DailyMessageLimitExceededError, QStashError, RateLimitExceededError

from tests.devserver.support import TOKEN, DevProcess, dev_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    directory: Path = tmp_path_factory.mktemp("sdk")
    with dev_process(directory, "--keep-bodies") as process:
        yield process


@pytest.fixture(params=[QStash, AsyncQStash])
async def client(request: pytest.FixtureRequest, server: DevProcess) -> AsyncIterator[Any]:
    sdk = request.param(TOKEN, retry=False, base_url=server.url)
    await done(sdk.message.cancel_all())
    yield sdk
    http = sdk.http._client
    await done(http.aclose() if hasattr(http, "aclose") else http.close())


async def done(value: Any) -> Any:
    """The result of an SDK call, of the synchronous client or the asynchronous one."""
    return await value if inspect.isawaitable(value) else value


def name(client: Any, word: str) -> str:
    """Names that the two clients do not share."""
    return f"{word}-{type(client).__name__}"


async def test_publish_with_every_option(client: Any) -> None:
    """All options are accepted, and the look-up shows them as they were meant."""
    sent = await done(
        client.message.publish(
            url=URL + "//x?y=1",
            body="bödy",
            content_type="text/plain",
            method="PATCH",
            headers={"X-Own": "1"},
            callback="https://callback.example",
            callback_headers={"X-Back": "2"},
            failure_callback="https://failure.example",
            failure_callback_headers={"X-Fail": "3"},
            retries=7,
            retry_delay="pow(2, retried) * 1000",
            delay="1h30m",
            timeout=30,
            flow_control={"key": "user.1", "parallelism": 5, "rate": 10, "period": "1m"},
            label="billing",
            redact={"body": True, "header": ["Authorization"]},
        )
    )
    assert not sent.deduplicated
    seen = await done(client.message.get(sent.message_id))
    assert (seen.message_id, seen.url, seen.body, seen.method) == (
        sent.message_id,
        URL + "//x?y=1",
        "bödy",
        "PATCH",
    )
    assert seen.headers == {"X-Own": ["1"], "Content-Type": ["text/plain"]}
    assert (seen.callback, seen.callback_headers) == ("https://callback.example", {"X-Back": ["2"]})
    assert (seen.failure_callback, seen.failure_callback_headers) == (
        "https://failure.example",
        {"X-Fail": ["3"]},
    )
    assert (seen.max_retries, seen.retry_delay_expression) == (7, "pow(2, retried) * 1000")
    assert seen.not_before - seen.created_at == 5_400_000
    assert seen.created_at > 1_600_000_000_000
    assert seen.flow_control is not None
    limits = seen.flow_control
    assert (limits.key, limits.parallelism, limits.rate, limits.period) == ("user.1", 5, 10, 60)
    assert (seen.label, seen.url_group, seen.queue, seen.body_base64) == ("billing", None, None, None)


async def test_publish_bytes(client: Any) -> None:
    """A body that is no text comes back in base64."""
    sent = await done(client.message.publish(url=URL, body=b"\xff\xfe", not_before=2_000_000_000))
    seen = await done(client.message.get(sent.message_id))
    assert (seen.body, seen.body_base64, seen.not_before) == (None, "//4=", 2_000_000_000_000)


async def test_publish_json(client: Any) -> None:
    """The body is JSON text with its content type."""
    sent = await done(client.message.publish_json(url=URL, body={"a": [1, None]}))
    seen = await done(client.message.get(sent.message_id))
    assert seen.body == '{"a": [1, null]}'
    assert seen.headers == {"Content-Type": ["application/json"]}


async def test_publish_to_a_provider(client: Any) -> None:
    """The SDK's `api` is a URL of the provider."""
    sent = await done(client.message.publish_json(api={"name": "llm", "provider": openai("key")}, body={}))
    seen = await done(client.message.get(sent.message_id))
    assert seen.url == "https://api.openai.com/v1/chat/completions"
    assert seen.headers["Authorization"] == ["Bearer key"]


async def test_deduplication(client: Any) -> None:
    """By id and by content (the SDK writes `True`), the second one is marked and has the first one's id."""
    for options in ({"deduplication_id": name(client, "id")}, {"content_based_deduplication": True}):
        body = name(client, "same")
        first = await done(client.message.publish(url=URL, body=body, **options))
        second = await done(client.message.publish(url=URL, body=body, **options))
        assert (first.deduplicated, second.deduplicated) == (False, True)
        assert first.message_id == second.message_id


async def test_enqueue(client: Any) -> None:
    """A queue comes to be with its first message, plain or JSON, and counts them."""
    queue = name(client, "orders")
    first = await done(client.message.enqueue(queue=queue, url=URL, body="1"))
    second = await done(client.message.enqueue_json(queue=queue, url=URL, body={"n": 2}))
    assert first.message_id != second.message_id
    seen = await done(client.message.get(second.message_id))
    assert (seen.queue, seen.body) == (queue, '{"n": 2}')
    assert (await done(client.queue.get(queue))).lag == 2
    await done(client.queue.delete(queue))


async def test_batch(client: Any) -> None:
    """URLs, a URL group, a queue and a provider in one request, each with its own entry."""
    group = name(client, "batch-group")
    endpoints = [{"url": "https://a.example"}, {"url": "https://b.example", "name": "b"}]
    await done(client.url_group.upsert_endpoints(group, endpoints))
    queue = name(client, "batch-queue")
    result = await done(
        client.message.batch(
            [
                {"url": URL, "body": "one", "delay": 7, "headers": {"X-Own": "1"}},
                {"url_group": group, "body": "two"},
                {"url": URL, "queue": queue},
                {"api": {"name": "llm", "provider": openai("key")}, "body": "{}"},
            ]
        )
    )
    single, fanned, queued, provider = result
    assert [one.url for one in fanned] == ["https://a.example", "https://b.example"]
    assert (
        len({single.message_id, queued.message_id, provider.message_id, *(one.message_id for one in fanned)})
        == 5
    )
    seen = await done(client.message.get(fanned[1].message_id))
    assert (seen.url_group, seen.endpoint, seen.url, seen.body) == (group, "b", "https://b.example", "two")
    assert (await done(client.message.get(queued.message_id))).queue == queue
    seen = await done(client.message.get(single.message_id))
    assert seen.headers == {"X-Own": ["1"]}
    assert seen.not_before - seen.created_at == 7000


async def test_batch_json(client: Any) -> None:
    """Bodies are JSON text, in order."""
    result = await done(client.message.batch_json([{"url": URL, "body": {"n": n}} for n in range(3)]))
    seen = [await done(client.message.get(one.message_id)) for one in result]
    assert [one.body for one in seen] == ['{"n": 0}', '{"n": 1}', '{"n": 2}']
    assert {tuple(one.headers["Content-Type"]) for one in seen} == {("application/json",)}


async def test_url_groups(client: Any) -> None:
    """Created, changed, published and enqueued to, listed, emptied, deleted."""
    group = name(client, "group")
    await done(client.url_group.upsert_endpoints(group, [{"url": "https://a.example"}]))
    await done(client.url_group.upsert_endpoints(group, [{"url": "https://b.example", "name": "b"}]))
    await done(client.url_group.upsert_endpoints(group, [{"url": "https://c.example", "name": "b"}]))
    seen = await done(client.url_group.get(group))
    assert seen.name == group
    assert [(one.url, one.name) for one in seen.endpoints] == [
        ("https://a.example", None),
        ("https://c.example", "b"),
    ]
    assert 1_600_000_000_000 < seen.created_at <= seen.updated_at
    assert group in [one.name for one in await done(client.url_group.list())]
    sent = await done(client.message.publish_json(url_group=group, body={}))
    assert [(one.url, one.deduplicated) for one in sent] == [
        ("https://a.example", False),
        ("https://c.example", False),
    ]
    sent = await done(client.message.enqueue(url_group=group, queue=name(client, "group-queue")))
    assert len({one.message_id for one in sent}) == 2
    await done(client.url_group.remove_endpoints(group, [{"name": "b"}]))
    assert [one.url for one in (await done(client.url_group.get(group))).endpoints] == ["https://a.example"]
    await done(client.url_group.remove_endpoints(group, [{"url": "https://a.example"}]))
    with pytest.raises(QStashError, match="404"):
        await done(client.url_group.get(group))
    await done(client.url_group.upsert_endpoints(group, [{"url": "https://a.example"}]))
    await done(client.url_group.delete(group))
    with pytest.raises(QStashError, match=f"URL group {group} not found"):
        await done(client.message.publish(url_group=group))


async def test_queues(client: Any) -> None:
    """Made, changed, listed, paused, resumed, deleted."""
    queue = name(client, "queue")
    await done(client.queue.upsert(queue, parallelism=3))
    seen = await done(client.queue.get(queue))
    assert (seen.name, seen.parallelism, seen.paused, seen.lag) == (queue, 3, False, 0)
    await done(client.queue.pause(queue))
    assert (await done(client.queue.get(queue))).paused
    await done(client.queue.resume(queue))
    await done(client.queue.upsert(queue, parallelism=5, paused=True))
    listed = {one.name: one for one in await done(client.queue.list())}
    assert (listed[queue].parallelism, listed[queue].paused) == (5, True)
    assert 1_600_000_000_000 < listed[queue].created_at <= listed[queue].updated_at
    await done(client.queue.delete(queue))
    with pytest.raises(QStashError, match="404"):
        await done(client.queue.get(queue))


async def test_cancelling(client: Any) -> None:
    """One, several, all; what is cancelled is gone, and its queue's lag with it."""
    queue = name(client, "cancel")
    ids = [(await done(client.message.enqueue(queue=queue, url=URL))).message_id for _ in range(5)]
    await done(client.message.cancel(ids[0]))
    for call in (client.message.get, client.message.cancel):
        with pytest.raises(QStashError, match="404"):
            await done(call(ids[0]))
    assert await done(client.message.cancel_many(ids[:3])) == 2
    assert (await done(client.queue.get(queue))).lag == 2
    assert await done(client.message.cancel_all()) == 2
    assert (await done(client.queue.get(queue))).lag == 0
    assert await done(client.message.cancel_all()) == 0


async def test_errors_are_the_sdk_s_own(client: Any, tmp_path: Path) -> None:
    """Refusals carry their text; throttles raise the SDK's two errors with limit and reset."""
    with pytest.raises(QStashError, match=r"400.*must not contain ':'"):
        await done(client.message.publish(url=URL, deduplication_id="a:b"))
    with pytest.raises(QStashError, match=r"400.*message 1: Upstash-Delay"):
        await done(client.message.batch([{"url": URL}, {"url": URL, "queue": "q", "delay": "5s"}]))
    throttles: list[tuple[str, type[Any]]] = [
        ("burst", RateLimitExceededError),
        ("daily", DailyMessageLimitExceededError),
    ]
    for fault, error in throttles:
        with dev_process(tmp_path, "--faults", f"throttle_{fault}=1") as throttled:
            sdk = type(client)(TOKEN, retry=False, base_url=throttled.url)
            with pytest.raises(error) as caught:
                await done(sdk.message.publish(url=URL))
            assert caught.value.limit is not None
            assert int(caught.value.reset) > 1_600_000_000
            http = sdk.http._client
            await done(http.aclose() if hasattr(http, "aclose") else http.close())
