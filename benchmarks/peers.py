"""What the dispatcher is compared with: the ceiling, and what people would take instead, in Python.

The ceiling is the least that any client in Python with aiohttp must do: a dict for each message, one
`orjson.dumps` of a batch, one request, one `orjson.loads` of the reply; no ids, no bounds, no deadlines, no
receipts. The others are used as their documentation shows, and with as many requests at once as the ceiling.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import orjson

from benchmarks.rows import AT_ONCE, DESTINATION, Driver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from benchmarks.rows import Job

GATHERED: Final = 100


async def _by_workers(
    count: int, batch: int, post: Callable[[int], Awaitable[int]], workers: int = AT_ONCE
) -> int:
    """Some tasks that take batches from one supply until it is used up."""
    sizes = itertools.chain(itertools.repeat(batch, count // batch), [count % batch] * (count % batch > 0))

    async def work() -> int:
        return sum([await post(size) for size in sizes])

    return sum(await asyncio.gather(*(work() for _ in range(workers))))


@asynccontextmanager
async def ceiling(job: Job) -> AsyncIterator[Driver]:
    """Nothing but the wire."""
    import aiohttp

    headers = {"Authorization": f"Bearer {job.token}", "Content-Type": "application/json"}
    url, body = f"{job.url}/v2/batch", job.body
    async with aiohttp.ClientSession(headers=headers) as session:

        async def post(size: int) -> int:
            items = [{"destination": DESTINATION, "body": body} for _ in range(size)]
            async with session.post(url, data=orjson.dumps(items)) as response:
                return len(orjson.loads(await response.read()))

        yield Driver(lambda count: _by_workers(count, job.configuration.batch, post))


@asynccontextmanager
async def sdk_batch(job: Job) -> AsyncIterator[Driver]:
    """The official SDK's `message.batch`, with batches made by hand."""
    from qstash import AsyncQStash
    from qstash.message import BatchResponse

    client, body = AsyncQStash(job.token, base_url=job.url), job.body

    async def post(size: int) -> int:
        answers = await client.message.batch([{"url": DESTINATION, "body": body} for _ in range(size)])
        return sum([isinstance(answer, BatchResponse) and bool(answer.message_id) for answer in answers])

    yield Driver(lambda count: _by_workers(count, job.configuration.batch, post))


def sdk_single(job: Job) -> AbstractAsyncContextManager[Driver]:
    """The official SDK's `message.publish`, one request a message: eight at once suit it best when near."""
    return _sdk_single(job, AT_ONCE)


def sdk_gather(job: Job) -> AbstractAsyncContextManager[Driver]:
    """The same with as many at once as its HTTP client allows: more than it keeps connections for."""
    return _sdk_single(job, GATHERED)


@asynccontextmanager
async def _sdk_single(job: Job, at_once: int) -> AsyncIterator[Driver]:
    from qstash import AsyncQStash
    from qstash.message import PublishResponse

    client, body = AsyncQStash(job.token, base_url=job.url), job.body

    async def post(_: int) -> int:
        answer = await client.message.publish(url=DESTINATION, body=body)
        return int(isinstance(answer, PublishResponse) and bool(answer.message_id))

    yield Driver(lambda count: _by_workers(count, 1, post, at_once))


@asynccontextmanager
async def elasticsearch(job: Job) -> AsyncIterator[Driver]:
    """Elasticsearch's bulk helper, the batcher with results in order that most people know."""
    from elasticsearch import AsyncElasticsearch
    from elasticsearch.helpers import async_streaming_bulk

    body, batch = job.body, job.configuration.batch

    def actions(count: int) -> Iterator[dict[str, Any]]:
        return ({"_index": "messages", "destination": DESTINATION, "body": body} for _ in range(count))

    trust: dict[str, Any] = {} if job.ca_file is None else {"ca_certs": job.ca_file}
    async with AsyncElasticsearch(
        job.url, bearer_auth=job.token, connections_per_node=AT_ONCE, **trust
    ) as client:

        async def post(size: int) -> int:
            confirmed = 0
            async for is_indexed, _ in async_streaming_bulk(client, actions(size), chunk_size=batch):
                confirmed += is_indexed
            return confirmed

        async def run(count: int) -> int:
            part = max(batch, count // AT_ONCE // batch * batch)
            return await _by_workers(count, part, post)

        yield Driver(run)
