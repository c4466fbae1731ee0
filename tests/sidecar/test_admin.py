"""The admin listener on real sockets: probes, metrics, status, files, the stream; who is refused, and how."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from dispatcher import Config, Dispatcher, Message, MessageRejected, QueueFull
from dispatcher.core.batch import Reply
from dispatcher.sidecar.admin import BOUNDS, SECURITY_HEADERS, Admin
from dispatcher.sidecar.assets import FILES
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.state import State
from dispatcher.testing import ScriptedTransport, local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

TOKEN = "a-secret-token"
ACCEPTED = b'[{"messageId":"m-1"}]'
PATHS = ("/", "/page.js", "/livez", "/readyz", "/metrics", "/status", "/status/stream", "/nowhere")


class Running:
    """An admin listener on a free port."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.counters = IntakeCounters()
        self.state = State()
        self.admin = Admin(dispatcher, self.counters, self.state)
        self.admin.feed._period = 3_600.0  # the tests tick by hand
        self.port = 0
        self.session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, Mapping[str, str]]:
        """Status, text and headers of an answer."""
        async with self.session.request(method, self.url + path, headers=headers) as response:
            return response.status, await response.text(), response.headers

    async def raw(self, request: bytes) -> bytes:
        """What comes back for these bytes until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()


@asynccontextmanager
async def running(dispatcher: Dispatcher) -> AsyncIterator[Running]:
    """Listening while the context lasts; at its end everything is closed."""
    made = Running(dispatcher)
    server = made.admin.make_server()
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as made.session:
            yield made
            listener.close()
            await asyncio.wait_for(server.shutdown(5.0), 4.0)
    finally:
        listener.close()
        await server.shutdown(0)


@asynccontextmanager
async def idle(transport: ScriptedTransport | None = None) -> AsyncIterator[Running]:
    """The same, beside an open dispatcher on a scripted transport."""
    config = Config.load(env={}, token=TOKEN)
    opened = Dispatcher(config, name="sidecar", transport=transport or ScriptedTransport())
    async with opened as dispatcher, running(dispatcher) as made:
        yield made


class Stream:
    """A listener."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def event(self) -> tuple[str, Any]:
        """The next event's name and data."""
        name = ""
        async with asyncio.timeout(10):
            async for line in self._response.content:
                kind, _, rest = line.decode().rstrip("\n").partition(": ")
                if kind == "event":
                    name = rest
                elif kind == "data":
                    return name, orjson.loads(rest)
        return "", None


# ------------------------------------------------------------------------------------------------ probes


@pytest.mark.anyio
async def test_the_probes_follow_the_phases() -> None:
    """It lives all the time; it is ready between the start and the drain."""
    async with idle() as one:
        seen = [(await one.get("/readyz"))[:2]]
        for move in (one.state.set_ready, one.state.set_draining, one.state.set_closed):
            move()
            seen.append((await one.get("/readyz"))[:2])
            assert (await one.get("/livez"))[:2] == (200, "alive\n")
    assert seen == [(503, "starting\n"), (200, "ready\n"), (503, "draining\n"), (503, "closed\n")]


@pytest.mark.anyio
async def test_a_halt_is_not_ready_and_alive() -> None:
    """A refused token is no reason to restart; replaced, it is ready again."""
    async with local_upstream(token="first-token") as upstream:
        config = Config.load(env={}, token="first-token", url=upstream.url)
        async with Dispatcher(config) as dispatcher, running(dispatcher) as one:
            one.state.set_ready()
            await dispatcher.send(Message("https://example.com/"))
            upstream.set_token("second-token")
            delivery = await dispatcher.put(Message("https://example.com/"))
            async with asyncio.timeout(10):
                while (await one.get("/readyz"))[0] == 200:
                    await asyncio.sleep(0.005)
            assert (await one.get("/readyz"))[1] == "halted: the upstream refuses the token or URL\n"
            assert (await one.get("/livez"))[0] == 200
            dispatcher.set_token("second-token")
            await delivery
            assert (await one.get("/readyz"))[0] == 200


@pytest.mark.anyio
async def test_a_dead_dispatcher_is_not_alive() -> None:
    """Only another process helps, and the probe that restarts it says so."""
    async with idle() as one:
        one.state.set_ready()
        one.dispatcher._pump.fail(RuntimeError("planted"))
        assert (await one.get("/livez"))[:2] == (503, "the dispatcher has stopped\n")
        assert (await one.get("/readyz"))[0] == 503


# ----------------------------------------------------------------------------------- metrics and status


@pytest.mark.anyio
async def test_metrics_are_scraped() -> None:
    """In both formats, the intake's beside the dispatcher's."""
    async with idle() as one:
        await one.dispatcher.send(Message("https://example.com/"))
        one.counters.request("publish", 200)
        status, text, headers = await one.get("/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=")
        assert 'dispatcher_intake_requests_total{code="200",route="publish"} 1.0' in text
        delivered = 'dispatcher_messages_finished_total{dispatcher="sidecar",outcome="delivered"} 1.0'
        assert delivered in text
        _, text, headers = await one.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")


@pytest.mark.anyio
async def test_the_status_is_json() -> None:
    """What the monitor says, and failures with their reasons."""
    async with idle() as one:
        one.counters.failed(QueueFull(1, 1))
        status, text, headers = await one.get("/status?pretty")
        found = orjson.loads(text)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert found["intake"]["recent_failures"][0]["outcome"] == "full"
    assert found.keys() == one.admin.monitor.report().keys()


@pytest.mark.anyio
async def test_no_answer_has_the_token() -> None:
    """Not even where the service quotes it in its refusal, and not the body or the query either."""
    quoted = f'{{"error":"bad token {TOKEN} for https://example.com/?quoted-query=1"}}'.encode()
    transport = ScriptedTransport(Reply(200, ACCEPTED), Reply(401, quoted))
    async with idle(transport) as one:
        await one.dispatcher.send(Message("https://example.com/"))
        delivery = await one.dispatcher.put(Message("https://example.com/?signature=1", body="personal"))
        while one.dispatcher.statistics().state != "halted":
            await asyncio.sleep(0.001)
        one.counters.failed(MessageRejected(f"{TOKEN}?", status=400, message=delivery.message))
        one.admin.feed.tick()
        texts = [str(await one.get(path)) for path in PATHS if path != "/status/stream"]
        async with one.session.get(f"{one.url}/status/stream") as response:
            texts += [str(await Stream(response).event()) for _ in range(2)]
        delivery.withdraw()
    assert sum("bad token *** for https://example.com/?…" in text for text in texts) == 2
    for secret in (TOKEN, "quoted-query", "signature", "personal"):
        assert not [text for text in texts if secret in text]


# --------------------------------------------------------------------------------------- files and refusals


@pytest.mark.anyio
async def test_every_answer_has_the_security_headers() -> None:
    """The policy above all; and what is of the moment is not stored."""
    async with idle() as one:
        for path in PATHS:
            async with one.session.get(one.url + path) as response:
                for name, value in SECURITY_HEADERS.items():
                    assert response.headers[name] == value, path
                kept = "no-cache" if path in FILES else "no-store"
                assert response.headers["Cache-Control"] == kept, path
                assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.anyio
async def test_the_files_are_served_with_their_tags() -> None:
    """Each with its type; one that has not changed is not sent again."""
    async with idle() as one:
        for path, (_, content_type) in FILES.items():
            status, text, headers = await one.get(path)
            assert (status, headers["Content-Type"]) == (200, content_type)
            assert len(text) > 500
            again, nothing, _ = await one.get(path, **{"If-None-Match": headers["ETag"]})
            assert (again, nothing) == (304, "")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target",
    [
        "/../admin.py",
        "/page/index.html",
        "/%2e%2e/admin.py",
        "//page.js",
        "/page.js/",
        "/PAGE.JS",
        "/index.html",
        "http://127.0.0.1/status",
        "/status/stream/",
        "/dispatcher/",
        "*",
    ],
)
async def test_other_targets_are_nowhere(target: str) -> None:
    """No part of a target becomes a path; what there is, is said."""
    async with idle() as one:
        answer = await one.raw(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"import" not in answer


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed(method: str) -> None:
    """Other methods are refused, and what may be used is said."""
    async with idle() as one:
        for path in ("/", "/status", "/livez", "/status/stream"):
            status, _, headers = await one.get(path, method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.anyio
async def test_heads_have_no_body() -> None:
    """`HEAD` answers as `GET` does, the stream too, and the connection stays usable."""
    async with idle() as one:
        one.state.set_ready()
        for path in PATHS:
            status, text, _ = await one.get(path, "HEAD")
            assert (status, text) == (404 if path == "/nowhere" else 200, "")
        assert one.admin.feed.listeners == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("localhost", True),
        ("LOCALHOST:8091", True),
        ("127.0.0.1:8091", True),
        ("[::1]:8091", True),
        ("10.1.2.3", True),
        ("evil.example", False),
        ("evil.example:8091", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::1].evil.example", False),
        ("a:b:c", False),
    ],
)
async def test_on_loopback_only_its_own_names_are_answered(host: str, is_answered: bool) -> None:
    """A web page whose name was made to resolve to this machine learns nothing; the probes tell nothing."""
    async with idle() as one:
        for path in ("/", "/status", "/metrics", "/nowhere"):
            status, _, _ = await one.get(path, Host=host)
            assert (status != 421) is is_answered, path
        assert (await one.get("/livez", Host=host))[0] == 200


@pytest.mark.anyio
async def test_connections_are_bounded() -> None:
    """One too many is told so and closed; when another has gone, there is room again."""
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with idle() as one:
        one.admin._server._crowd.serve = replace(BOUNDS, max_connections=2, patience=0.1)
        kept = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(request)
            assert (await reader.readuntil(b"alive\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"GET")  # it is not idle, so it has to make no place
            await writer.drain()
            kept.append(writer)
        await asyncio.sleep(0)
        answer = await one.raw(request)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"there are 2 connections already" in answer
        kept[0].close()
        async with asyncio.timeout(10):
            while not (await one.raw(request[:-2] + b"Connection: close\r\n\r\n")).startswith(
                b"HTTP/1.1 200"
            ):
                await asyncio.sleep(0.005)
        kept[1].close()


# ------------------------------------------------------------------------------------------------ stream


@pytest.mark.anyio
async def test_the_stream_begins_with_the_history() -> None:
    """Then the status at once, then one with each sample, the same for all listeners."""
    async with idle() as one:
        one.admin.feed.tick()
        async with one.session.get(f"{one.url}/status/stream") as first:
            assert first.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            stream = Stream(first)
            name, history = await stream.event()
            assert (name, len(history["at"])) == ("history", 1)
            name, status = await stream.event()
            assert (name, status["phase"]) == ("status", "starting")
            async with one.session.get(f"{one.url}/status/stream") as second:
                other = Stream(second)
                assert [(await other.event())[0] for _ in range(2)] == ["history", "status"]
                one.state.set_ready()
                one.admin.feed.tick()
                events = [await each.event() for each in (stream, other)]
            assert events[0] == events[1]
            assert events[0][1]["phase"] == "ready"
            assert events[0][1]["sample"]["at"] > history["at"][0]


@pytest.mark.anyio
async def test_samples_are_taken_by_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    """Once a period, listened to or not; a sample that fails is logged once and the next one is taken."""
    async with idle() as one:
        feed, seen = one.admin.feed, asyncio.Event()
        await feed.aclose()
        feed._is_closed, feed._period = False, 0.001
        calls = []

        def sample() -> None:
            calls.append(1)
            if len(calls) == 5:
                seen.set()
            if len(calls) < 4:
                raise ValueError("planted")

        one.admin.monitor.sample = sample  # type: ignore[assignment, method-assign]
        feed.start()
        feed.start()
        await asyncio.wait_for(seen.wait(), 10)
        await feed.aclose()
        assert len([one for one in caplog.records if one.name == "dispatcher"]) == 1


@pytest.mark.anyio
async def test_listeners_are_bounded_and_forgotten() -> None:
    """One too many is refused with when to come again; one that went makes room."""
    async with idle() as one:
        one.admin.feed._listeners_max = 1
        async with one.session.get(f"{one.url}/status/stream") as response:
            await Stream(response).event()
            status, text, headers = await one.get("/status/stream")
            assert (status, text, headers["Retry-After"]) == (503, "1 listen already\n", "5")
            response.close()
        async with asyncio.timeout(10):
            while one.admin.feed.listeners:
                one.admin.feed.tick()
                await asyncio.sleep(0.005)
        async with one.session.get(f"{one.url}/status/stream") as response:
            assert (await Stream(response).event())[0] == "history"


@pytest.mark.anyio
async def test_a_listener_that_does_not_read_is_dropped() -> None:
    """With its buffers full and nothing read it is cut off; the one beside it misses nothing."""
    async with idle() as one:
        one.admin.feed._stall = 0.2
        for number in range(50):
            one.counters.failed(ValueError(chr(0x4E00 + number) * 400))  # type: ignore[arg-type]
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", one.port))
        await loop.sock_sendall(slow, b"GET /status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with one.session.get(f"{one.url}/status/stream") as response:
            stream = Stream(response)
            assert [(await stream.event())[0] for _ in range(2)] == ["history", "status"]
            async with asyncio.timeout(30):
                while not one.admin.feed.dropped:
                    one.admin.feed.tick()
                    assert (await stream.event())[0] == "status"
            assert one.admin.feed.listeners == 1
        slow.close()


@pytest.mark.anyio
async def test_streams_end_with_the_listener() -> None:
    """At a shutdown each has its last event and the end, at once; a new one is refused."""
    async with idle() as one:
        async with one.session.get(f"{one.url}/status/stream") as response:
            stream = Stream(response)
            assert [(await stream.event())[0] for _ in range(2)] == ["history", "status"]
            await one.admin.aclose()
            assert [await stream.event() for _ in range(2)] == [("end", {}), ("", None)]
        assert one.admin.feed.listeners == 0
        assert (await one.get("/status/stream"))[:2] == (503, "it is shutting down\n")


@pytest.mark.anyio
async def test_a_shutdown_ends_the_streams_by_itself() -> None:
    """The server waits for no stream: whoever listens is told, long before the grace is over."""
    async with idle() as one:
        response = await one.session.get(f"{one.url}/status/stream")
        stream = Stream(response)
        assert [(await stream.event())[0] for _ in range(2)] == ["history", "status"]
        begun = asyncio.get_running_loop().time()
        await one.admin._server.shutdown(60.0)
        assert asyncio.get_running_loop().time() - begun < 5.0
        assert (await stream.event())[0] == "end"
