"""Which part answers what; and whom nobody answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from dispatcher.sidecar.app import route_of
from dispatcher.sidecar.connection import Connection
from dispatcher.testing import ScriptedTransport, local_upstream
from tests.sidecar.support_intake import CALLER, TOKEN, sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"
OWNER = ("Authorization", f"Bearer {TOKEN}")
STRANGER = ("Authorization", "Bearer nobody")


@pytest.mark.parametrize(
    ("target", "content_type", "route"),
    [
        ("/v2/enqueue/q/https://e.x", "", "enqueue"),
        ("/v2/batch", "application/json", "batch"),
        ("/v2/batch?qstash_token=t", "", "batch"),
        ("/v2/batch", "application/x-ndjson", "bulk"),
        ("/v2/batch/", "", "proxy"),
        ("/v2/batches", "", "proxy"),
        ("/v2/publish", "", "proxy"),
        ("/v2/messages/msg_1", "application/x-ndjson", "proxy"),
        ("/v2/publishes/https://e.x", "", "proxy"),
        ("/dispatcher/", "", "own"),
        ("/dispatcher/anything?x", "", "own"),
        ("/dispatcher", "", "proxy"),
        ("/", "", "proxy"),
        ("/?/v2/batch", "", "proxy"),
    ],
)
async def test_routes(target: str, content_type: str, route: str) -> None:
    """By the raw path alone."""
    assert route_of(target, content_type) == route


class Counting:
    """A transport that counts what is written to it."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        """Note it, and pass it on."""
        self._writes.append(bytes(data))
        self._transport.write(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        """One system call, or none."""
        self.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def test_head_and_body_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is answered whole: two would be two packets, and wait for each other."""
    writes: list[bytes] = []
    enter = Connection.enter
    monkeypatch.setattr(
        Connection,
        "enter",
        lambda self, transport, early=b"": enter(self, cast("Any", Counting(transport, writes)), early),
    )
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        for target, body, headers, status in (
            (f"/v2/publish/{URL}", b"x", [], 200),
            (f"/v2/publish/{URL}", b"\xff", [], 200),
            (f"/v2/enqueue/q/{URL}", b"x", [], 200),
            ("/v2/publish/nowhere/at/all", b"x", [], 400),
            ("/v2/batch", b'[{"destination":"https://example.com/hook"}]', [], 200),
            (f"/v2/publish/{URL}", b"x", [STRANGER], 401),
            (f"/v2/publish/{URL}", b"x", [("Expect", "miracles")], 417),
            ("/v2/messages/msg_1", b"", [], 404),
        ):
            writes.clear()
            method = "GET" if "messages" in target else "POST"
            answer = await one.ask(target, body, headers, method)
            assert answer.status == status, (target, answer)
            assert len(writes) == 1, (target, writes)


async def test_nobody_publishes_without_a_token() -> None:
    """401 before anything is read or sent; a token in the query is one."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        for target in (f"/v2/publish/{URL}", f"/v2/enqueue/q/{URL}", "/v2/batch", "/dispatcher/"):
            answer = await one.ask(target, b"[]", [STRANGER])
            assert answer.status == 401
            assert answer.json == {"error": "unauthorized: the token is missing or wrong"}
        assert not transport.batches
        assert not transport.singles
        answer = await one.ask(f"/v2/publish/{URL}?qstash_token={CALLER}", b"x", [STRANGER])
        assert answer.status == 200
        assert one.counters.requests["publish", 401] == 1
    assert transport.singles[0].target == f"/v2/publish/{URL}"
    assert CALLER not in repr(transport.singles)


async def test_a_callers_token_never_reaches_the_upstream() -> None:
    """Not even where all headers are forwarded: the upstream's own takes its place."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        await one.publish(URL, b"x", ("Upstash-Header-Forward", "true"))
        await one.publish(URL, b"x", ("Upstash-Forward-X", "y"))
    assert CALLER not in repr(transport.singles) + repr(transport.batches)


async def test_a_message_can_be_looked_up_and_cancelled_at_once() -> None:
    """Its id is the service's own, and every other path is passed on."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        message_id = (await one.publish(URL)).json["messageId"]
        found = await one.ask(f"/v2/messages/{message_id}", method="GET")
        assert (found.status, found.json["messageId"]) == (200, message_id)
        assert (await one.ask(f"/v2/messages/{message_id}", method="DELETE")).status < 300
        assert (await one.ask(f"/v2/messages/{message_id}", method="GET")).status == 404
        assert (await one.ask("/v2/queues", method="GET")).status == 403
        assert (await one.ask("/v2/queues", headers=[OWNER], method="GET")).status == 200
        assert one.counters.requests["proxy", 403] == 1
        assert one.counters.requests["proxy", 200] >= 2


async def test_what_is_ours_is_not_passed_on() -> None:
    """A word about the dispatcher's state; of everything else, where to find it."""
    async with local_upstream(token=TOKEN) as upstream, sidecar(url=upstream.url) as one:
        assert (await one.ask("/dispatcher/", method="GET")).json == {"state": "open"}
        answer = await one.ask("/dispatcher/metrics", method="GET")
        assert answer.status == 404
        assert answer.json["error"].endswith("at the admin listener (serve.admin_port)")
        assert "127.0.0.1" not in answer.json["error"]
        assert list(upstream.requests) == []
        assert one.counters.requests["own", 404] == 1
