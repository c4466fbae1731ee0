"""Rough use: wrong types, strange sources, cancelling at bad moments. A clear error, and nothing lost."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import (
    Config,
    ConfigError,
    Dispatcher,
    DispatcherClosed,
    Halted,
    Message,
    MessageInvalid,
    MessageTooLarge,
    Options,
    Receipt,
)
from dispatcher.core.batch import Reply
from dispatcher.testing import ScriptedTransport, local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio
URL = "https://example.com/hook"


def config(**overrides: Any) -> Config:
    return Config.load(env={}, token="t", **overrides)


WRONG: list[Any] = [
    None,
    URL,
    Message(URL, options={"delay": 5}),  # type: ignore[arg-type]
    Message(URL, headers=[("Upstash-Label", "x")]),  # type: ignore[arg-type]
    Message(URL, headers="abc"),  # type: ignore[arg-type]
    Message(5),  # type: ignore[arg-type]
    Message(URL, 5),  # type: ignore[arg-type]
    Message(URL, json=object()),
    Message(URL, queue=5),  # type: ignore[arg-type]
    Message(URL, deduplication_id=5),  # type: ignore[arg-type]
    Message(URL, deliver_within="5"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("way", ["send_many", "stream", "asynchronous stream"])
async def test_a_wrong_message_takes_its_own_place(way: str) -> None:
    """Whatever is among the messages, its neighbours are delivered and the outcomes stay aligned."""
    mixed = [each for wrong in WRONG for each in (Message(URL, body="fine"), wrong)]

    async def slowly() -> AsyncIterator[Any]:
        for each in mixed:
            yield each

    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        if way == "send_many":
            outcomes = await dispatcher.send_many(mixed)
        else:
            source = slowly() if "asynchronous" in way else mixed
            outcomes = [outcome async for outcome in dispatcher.stream(source)]
    assert [type(outcome) for outcome in outcomes] == [Receipt, MessageInvalid] * len(WRONG)


async def test_a_view_that_is_not_contiguous_is_a_body() -> None:
    """A slice with a step, and of another item size."""
    transport = ScriptedTransport()
    async with Dispatcher(config(), transport=transport) as dispatcher:
        await dispatcher.send(Message(URL, memoryview(b"abcdef")[::2]))
    assert transport.batches[0][0]["body"] == "ace"


async def test_a_source_that_cancels_is_no_end() -> None:
    """An asynchronous iterable that raises CancelledError: what came before is read, then it is raised."""

    async def source() -> AsyncIterator[Message]:
        yield Message(URL)
        raise asyncio.CancelledError

    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        stream = dispatcher.stream(source())
        assert isinstance(await anext(stream), Receipt)
        with pytest.raises(asyncio.CancelledError):
            await anext(stream)


@pytest.mark.parametrize("way", ["put", "send"])
async def test_cancelled_and_closed_in_one_turn(way: str) -> None:
    """A caller that waits for room is cancelled as its dispatcher closes: it is cancelled, nothing else."""
    transport = ScriptedTransport()
    transport.hold()
    dispatcher = Dispatcher(config(queue_max_messages=1), transport=transport)
    await dispatcher.start()
    dispatcher.put_nowait(Message(URL))
    call: Callable[[Message], Any] = getattr(dispatcher, way)
    waiting = asyncio.ensure_future(call(Message(URL)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(dispatcher.aclose())
    await asyncio.sleep(0)
    waiting.cancel()
    transport.release()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert (await closing).delivered == 1


async def test_full_is_counted_when_someone_is_refused() -> None:
    """`send_many` and `stream` wait for room: nobody was refused."""
    async with Dispatcher(config(queue_max_messages=10), transport=ScriptedTransport()) as dispatcher:
        await dispatcher.send_many(Message(URL) for _ in range(100))
        assert len([o async for o in dispatcher.stream(Message(URL) for _ in range(100))]) == 100
        assert dispatcher.engine.tally.refused == {}


async def test_a_cancelled_opening_is_closed() -> None:
    """No trace, no second life; a clear error for whoever uses it."""
    transport = ScriptedTransport()
    dispatcher = Dispatcher(config(), transport=transport)
    opening = asyncio.ensure_future(dispatcher.start())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    if opening.cancelled():
        with pytest.raises(DispatcherClosed, match="closed"):
            dispatcher.put_nowait(Message(URL))
        assert not transport.is_open
        assert " closed " in repr(dispatcher)
    await dispatcher.aclose()


async def test_opened_twice_at_once_is_opened_once() -> None:
    """The second caller is told so."""
    dispatcher = Dispatcher(config(), transport=ScriptedTransport())
    first, second = await asyncio.gather(dispatcher.start(), dispatcher.start(), return_exceptions=True)
    assert first is None
    assert isinstance(second, DispatcherClosed)
    await dispatcher.aclose()


async def test_a_transport_that_does_not_open_can_be_tried_again() -> None:
    """What went wrong is raised as it is; nothing has begun."""

    class Late(ScriptedTransport):
        tries = 0

        async def start(self) -> None:
            self.tries += 1
            if self.tries == 1:
                raise OSError("not yet")
            await super().start()

    dispatcher = Dispatcher(config(), transport=Late())
    with pytest.raises(OSError, match="not yet"):
        await dispatcher.start()
    await dispatcher.start()
    assert (await dispatcher.send(Message(URL))).message_id
    await dispatcher.aclose()


async def test_a_transport_that_cancels_itself_kills_nobody() -> None:
    """Its CancelledError is its own: an unknown outcome like any other failure."""
    transport = ScriptedTransport(asyncio.CancelledError())
    async with Dispatcher(config(retry_base=0.001), transport=transport) as dispatcher:
        assert (await dispatcher.send(Message(URL))).attempts == 2


async def test_withdrawn_in_a_drain_is_no_failure() -> None:
    """The report counts it apart and stays clean."""
    transport = ScriptedTransport()
    transport.hold()
    dispatcher = Dispatcher(config(limit_max_in_flight=1, batch_linger=60), transport=transport)
    await dispatcher.start()
    dispatcher.put_nowait(Message(URL))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = dispatcher.put_nowait(Message(URL))
    closing = asyncio.ensure_future(dispatcher.aclose())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.withdraw()
    transport.release()
    drained = await closing
    assert (drained.delivered, drained.withdrawn, drained.not_sent, drained.is_clean) == (1, 1, 0, True)


async def test_the_size_error_names_the_setting_that_bounds() -> None:
    """An encoding above the whole room is not the message bound's doing."""
    settings = config(queue_max_bytes=1_100_000)
    async with Dispatcher(settings, transport=ScriptedTransport()) as dispatcher:
        with pytest.raises(MessageTooLarge, match=r"queue\.max_bytes"):
            await dispatcher.put(Message(URL, '"' * 600_000))


def test_an_asynchronous_on_failure_is_refused() -> None:
    """It would never be awaited."""

    async def report(errors: list[Any]) -> None:
        raise AssertionError("never called")

    with pytest.raises(ConfigError, match="on_failure"):
        Dispatcher(config(), on_failure=report)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["fresh\n", " fresh "])
async def test_a_provided_token_is_trimmed(given: str) -> None:
    """A token file read as it is ends in a line feed."""
    async with local_upstream() as upstream:
        settings = Config.load(env={}, token=upstream.token, url=upstream.url)
        async with Dispatcher(settings, token_provider=lambda: given) as dispatcher:
            await dispatcher.send(Message(URL, body="1"))
            upstream.set_token("fresh")
            assert (await dispatcher.send(Message(URL, body="2"))).message_id


async def test_an_unusable_provided_token_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """In one line, without its value."""
    transport = ScriptedTransport(200, *[401] * 10)
    settings = config(drain_within=0)
    async with Dispatcher(settings, transport=transport, token_provider=lambda: "se cret") as dispatcher:
        await dispatcher.send(Message(URL))
        with pytest.raises(Halted):
            await dispatcher.send(Message(URL, deliver_within=0.1))
    lines = [record.getMessage() for record in caplog.records if "provider" in record.getMessage()]
    assert len(lines) == 1
    assert "token" in lines[0]
    assert "cret" not in caplog.text
    assert transport.tokens == []


async def test_a_redirect_tells_its_host_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """A redirect of a message's own request repeats its destination, query and all."""
    target = {"location": "https://user:PASSWORD@other.example/v2/publish/https://e.x/h?key=QUERY"}
    transport = ScriptedTransport(Reply(301, b"", target))
    async with Dispatcher(config(), transport=transport) as dispatcher:
        with pytest.raises(Halted, match=r"redirect to https://other\.example; check the base URL") as caught:
            await dispatcher.send(Message("https://e.x/h?key=QUERY", b"\xff"))
    text = caplog.text + str(caught.value) + repr(dispatcher.statistics())
    assert "QUERY" not in text
    assert "PASSWORD" not in text


@pytest.mark.parametrize("typo", ["https:/u:PASS@x.de/y", "HTTP//u:PASS@x/y", "//u:PASS@h", "a/b:PASS@h/x"])
async def test_a_mistyped_url_shows_no_password(typo: str) -> None:
    """Neither the error nor the message's repr."""
    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        with pytest.raises(MessageInvalid) as caught:
            dispatcher.put_nowait(Message(typo))
    assert "PASS" not in str(caught.value) + repr(Message(typo))


def test_a_token_in_the_urls_place_is_not_shown() -> None:
    """Swapped variables."""
    with pytest.raises(ConfigError) as caught:
        Config.load(env={"QSTASH_URL": "SECRETTOKEN", "QSTASH_TOKEN": "https://qstash.upstash.io"})
    assert "SECRETTOKEN" not in str(caught.value)


async def test_content_deduplicated_messages_are_not_touched() -> None:
    """However the header is written: no id of ours, and no Content-Type that the message did not bring."""
    options = Options(headers={"upstash-content-based-deduplication": "True"})
    async with local_upstream() as upstream:
        async with Dispatcher(Config(upstream.token, upstream.url)) as dispatcher:
            for body in ("text", b"\xff"):
                first = await dispatcher.send(Message(URL, body, options=options))
                again = await dispatcher.send(Message(URL, body, options=options))
                assert first.deduplication_id is None
                assert again.deduplicated
        rows = upstream.accepted()
    assert [name for row in rows for name, _ in row.headers] == ["Upstash-Content-Based-Deduplication"] * 2


@pytest.mark.parametrize("query", ["qstash_token=x", "a=1&Upstash-Method=GET"])
async def test_bytes_to_a_query_the_service_would_take(query: str) -> None:
    """In a request of its own the service would read these keys; as text the same message is fine."""
    async with local_upstream() as upstream:
        async with Dispatcher(Config(upstream.token, upstream.url)) as dispatcher:
            with pytest.raises(MessageInvalid, match="base64"):
                await dispatcher.send(Message(f"{URL}?{query}", b"\xff"))
            await dispatcher.send(Message(f"{URL}?{query}", "text"))
        assert [row.destination for row in upstream.accepted()] == [f"{URL}?{query}"]


@pytest.mark.parametrize("bad", ["a\x01b", "a\x7fb", "a\nb"])
async def test_control_characters_in_a_header_are_refused(bad: str) -> None:
    """In a request of its own they could not be sent at all."""
    async with Dispatcher(config(), transport=ScriptedTransport()) as dispatcher:
        with pytest.raises(MessageInvalid, match="Upstash-Forward-X"):
            await dispatcher.send(Message(URL, b"\xff", headers={"Upstash-Forward-X": bad}))


async def test_the_loud_line_of_a_first_contact_comes_first(caplog: pytest.LogCaptureFixture) -> None:
    """Why, before what it cost."""
    caplog.set_level(logging.WARNING, "dispatcher")
    async with Dispatcher(config(), transport=ScriptedTransport(401)) as dispatcher:
        dispatcher.put_nowait(Message(URL))
        await dispatcher.flush()
    first, second = (record.getMessage() for record in caplog.records)
    assert "refuses this token or URL with 401" in first
    assert "nobody awaited" in second
