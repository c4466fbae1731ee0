"""The migration page: both sides of each pair send the same messages, and what it says of the SDK is so."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from qstash import QStash
from qstash.errors import DailyMessageLimitExceededError, QStashError, RateLimitExceededError
from qstash.http import DEFAULT_RETRY, DEFAULT_TIMEOUT
from qstash.message import BatchRequest, MessageApi

from dispatcher import (
    BlockingDispatcher,
    Config,
    Dispatcher,
    Message,
    MessageRejected,
    Options,
    Receipt,
    RetrySettings,
)
from dispatcher.sdk import SDK_OPTION_KEYS
from dispatcher.testing import local_upstream
from tests.readme import DOCS, blocks, run_block, titled

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.testing import AcceptedMessage, LocalUpstream

pytestmark = pytest.mark.anyio
PAGE = DOCS / "migration.md"
TEXT = PAGE.read_text(encoding="utf-8")
PAIRS = {"synchronous": 3, "asynchronous": 50, "batch": 250, "errors": 1}
"""By name: how many messages both sides send."""
HOOK = "https://example.com/hook"


def same(row: AcceptedMessage) -> tuple[Any, ...]:
    """What has to be the same on both sides; JSON by its value, header names in any spelling."""
    headers = {name.lower(): value for name, value in row.headers}
    body: Any = row.body
    if headers.get("content-type") == "application/json":
        body = json.dumps(json.loads(row.body or b""))
    return row.destination, row.queue or "", str(body), sorted(headers.items())


async def run_side(name: str, side: str, folder: Path, upstream: LocalUpstream) -> None:
    """One program against its upstream; the SDK's has no way to close its connections, so it may warn."""
    flags = () if side == "before" else ("-W", "error")
    code, errors = await run_block(titled(PAGE, f"{name}, {side}"), folder, upstream, flags)
    assert (code, errors) == (0, ""), f"{name}, {side}:\n{errors}"


@pytest.mark.parametrize("name", PAIRS)
async def test_both_sides_send_the_same(name: str, tmp_path: Path) -> None:
    """The upstream has the same messages from either; ours carry ids, in no more requests."""
    async with local_upstream() as before, local_upstream() as after, anyio.create_task_group() as group:
        group.start_soon(run_side, name, "before", tmp_path, before)
        await run_side(name, "after", tmp_path, after)
    old, new = before.accepted(), after.accepted()
    assert len(old) == PAIRS[name]
    assert sorted(map(same, old)) == sorted(map(same, new))
    assert not any(row.deduplication_id for row in old)
    assert all(row.deduplication_id for row in new)
    if name == "asynchronous":  # fifty on the left, a few on the right
        assert len(before.requests) == 50
        assert len(after.requests) <= 10


def test_every_block_is_one_side_of_a_pair() -> None:
    """None is left out, and before and after stand side by side."""
    titles = [one.title for one in blocks(TEXT)]
    assert titles == [f"{name}, {side}" for name in PAIRS for side in ("before", "after")]


def test_every_method_and_every_option_is_named() -> None:
    """What the SDK's message API can do, and what a batch request may have, stands in the tables."""
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    methods = {name for name in dir(MessageApi) if not name.startswith("_")}
    assert {name for name in methods if not re.search(rf"`{name}\b", rows)} == set()
    options = set(BatchRequest.__annotations__) - {"url", "url_group", "queue", "api", "body"}
    assert {name for name in options if not re.search(rf"`{name}\b", rows)} == set()
    assert options - {"deduplication_id"} <= set(SDK_OPTION_KEYS)
    ours = {"headers": "forward"}
    for name in options:
        assert ours.get(name, name) in Options.__init__.__annotations__, name
    for kind in (Dispatcher, BlockingDispatcher):
        for name in re.findall(r"\| `(send|send_many|put|stream)\b", rows):
            assert hasattr(kind, name)


# ------------------------------------------------------------------------------- what is said of the SDK


async def publish(upstream: LocalUpstream, faults: str, **retry: Any) -> tuple[BaseException | None, int]:
    """What one publish of the SDK raises, and how many messages the upstream has then."""
    upstream.set_faults(faults)
    client = QStash(upstream.token, base_url=upstream.url, **retry)

    def call() -> BaseException | None:
        try:
            client.message.publish(url=HOOK, body="x")
        except Exception as error:
            return error
        finally:
            client.http._client.close()
        return None

    before = len(upstream.accepted())
    raised = await anyio.to_thread.run_sync(call)
    return raised, len(upstream.accepted()) - before


async def test_the_sdk_repeats_what_may_have_arrived() -> None:
    """Five times, without an id: six messages of one; ours is one."""
    assert DEFAULT_RETRY["retries"] == 5
    assert DEFAULT_TIMEOUT.read == 600
    async with local_upstream() as upstream:
        at_once = {"retry": {"retries": DEFAULT_RETRY["retries"], "backoff": lambda _: 0}}
        raised, accepted = await publish(upstream, "disconnect_after=1", **at_once)
        assert raised is not None
        assert accepted == 6


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ("throttle_burst=1", RateLimitExceededError),
        ("throttle_daily=1", DailyMessageLimitExceededError),
        ("error_before=1", QStashError),
        ("unavailable=1", QStashError),
    ],
)
async def test_the_sdk_raises_what_was_answered(faults: str, kind: type[Exception]) -> None:
    """A 429 or a 5xx at the first time."""
    async with local_upstream() as upstream:
        raised, _ = await publish(upstream, faults)
        assert type(raised) is kind
        assert len(upstream.requests) == 1


async def test_bytes_and_spaces() -> None:
    """The SDK's batch cannot carry bytes, ours sends them alone; its JSON has spaces, ours has none."""
    async with local_upstream() as upstream:
        client = QStash(upstream.token, base_url=upstream.url)
        with pytest.raises(TypeError):
            client.message.batch([{"url": HOOK, "body": b"\xff"}])
        await anyio.to_thread.run_sync(lambda: client.message.batch_json([{"url": HOOK, "body": {"a": 1}}]))
        client.http._client.close()
        async with Dispatcher(Config(token=upstream.token, url=upstream.url)) as dispatcher:
            await dispatcher.send(Message(HOOK, b"\xff"))
            await dispatcher.send(Message.from_sdk({"url": HOOK, "body": {"a": 1}}))
        assert [row.body for row in upstream.accepted()] == [b'{"a": 1}', b"\xff", b'{"a":1}']


async def test_an_error_entry_spoils_the_sdks_batch() -> None:
    """It raises `KeyError` for all of them; here one is rejected, and the other has its receipt."""
    requests: list[Any] = [{"url": HOOK, "body": "1"}, {"url": HOOK, "body": "2", "queue": "q"}]
    async with local_upstream(faults="error_unqueued=1") as upstream:
        client = QStash(upstream.token, base_url=upstream.url)
        with pytest.raises(KeyError):
            await anyio.to_thread.run_sync(client.message.batch, requests)
        client.http._client.close()
        config = Config(token=upstream.token, url=upstream.url, retry=RetrySettings(base=0.001))
        async with Dispatcher(config) as dispatcher:
            bad, good = await dispatcher.send_many(map(Message.from_sdk, requests))
        assert isinstance(bad, MessageRejected)
        assert len(bad.attempts) == config.retry.error_entry_attempts == 5
        assert isinstance(good, Receipt)
