"""The proxy between raw callers and raw upstreams: what passes, what is replaced, what never leaves."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, Dispatcher, Message
from dispatcher.sidecar.guard import Caller
from dispatcher.sidecar.proxy import Proxy, without_token
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import local_upstream
from tests.sidecar.attacks.reach import FORBIDDEN, UNNAMED
from tests.sidecar.support_proxy import OK, OWN, THEIRS, lines_of, proxied, request
from tests.sidecar.support_raw import FakeUpstream, body_of, canned

if TYPE_CHECKING:
    from tests.sidecar.support_raw import RawClient

pytestmark = pytest.mark.anyio
# -------------------------------------------------------------------------------------------- who may what

ALLOWED = [
    ("GET", "/v2/messages/msg_1"),
    ("GET", "/v2/messages/msg_1?qstash_token=x"),
    ("DELETE", "/v2/messages/msg_26hZCxZCuWyyTWPmSVBrNC1RADwpgWxPcak2rQD51EMjFMuzcW7qYXpPiDyw8Gd"),
    ("DELETE", "/v2/messages/a.b-c_d~e"),
    ("DELETE", "/v2/messages"),
    ("DELETE", "/v2/messages?qstash_token=x"),
]


@pytest.mark.parametrize(("method", "target"), ALLOWED)
def test_messages_are_looked_up_and_cancelled(method: str, target: str) -> None:
    """By every caller, wherever anything is passed on."""
    for setting in ("all", "messages"):
        proxy = Proxy(Config(token=OWN), ServeSettings(proxy=setting))
        assert proxy.refusal(method, target, Caller.CALLER) is None
        assert proxy.refusal(method, target, Caller.OWNER) is None


def test_only_owners_cancel_with_a_query() -> None:
    """Nobody knows what the service would make of one."""
    proxy = Proxy(Config(token=OWN), ServeSettings(proxy="messages"))
    target = "/v2/messages/m?queueName=q"
    assert (proxy.refusal("DELETE", target, Caller.CALLER) or (0, ""))[0] == 403
    assert proxy.refusal("DELETE", target, Caller.OWNER) is None


@pytest.mark.parametrize(("method", "target"), FORBIDDEN)
def test_everything_else_is_for_owners(method: str, target: str) -> None:
    """No spelling of a path gets a caller further than messages; with `messages` nobody."""
    proxy = Proxy(Config(token=OWN), ServeSettings(proxy="all"))
    refused = proxy.refusal(method, target, Caller.CALLER)
    assert refused is not None
    assert refused[0] == 403
    assert proxy.refusal(method, target, Caller.OWNER) is None
    narrow = Proxy(Config(token=OWN), ServeSettings(proxy="messages"))
    for caller in (Caller.CALLER, Caller.OWNER):
        assert (narrow.refusal(method, target, caller) or (0, ""))[0] == 403


def test_strangers_and_closed_doors() -> None:
    """Nobody we know gets nothing; with `none` nobody gets anything."""
    for setting in ("all", "messages", "none"):
        proxy = Proxy(Config(token=OWN), ServeSettings(proxy=setting))
        assert (proxy.refusal("GET", "/v2/messages/m", Caller.NONE) or (0, ""))[0] == 401
    for caller in (Caller.CALLER, Caller.OWNER):
        assert (proxy.refusal("GET", "/v2/messages/m", caller) or (0, ""))[0] == 404


async def test_in_front_of_the_local_upstream() -> None:
    """Messages, queues and groups as the service answers them; callers and owners told apart."""
    async with local_upstream(token=OWN) as upstream, proxied(upstream.url) as sidecar:
        async with Dispatcher(Config(token=OWN, url=upstream.url)) as dispatcher:
            message_id = (await dispatcher.send(Message("https://example.com/hook", body="hi"))).message_id
        answer = await sidecar.call(f"/v2/messages/{message_id}", token=THEIRS)
        assert answer.status == 200
        assert json.loads(answer.body)["messageId"] == message_id
        assert (await sidecar.call(f"/v2/messages/{message_id}", method="DELETE", token=THEIRS)).status == 202
        assert (await sidecar.call(f"/v2/messages/{message_id}", token=THEIRS)).status == 404
        assert (await sidecar.call("/v2/queues", token=THEIRS)).status == 403
        created = await sidecar.call(
            "/v2/queues", "Content-Type: application/json", method="POST", body=b'{"queueName":"q"}'
        )
        assert created.status == 200
        assert [one["name"] for one in json.loads((await sidecar.call("/v2/queues")).body)] == ["q"]
        assert (await sidecar.call("/v2/queues", token="wrong")).status == 401
        asked = len(upstream.requests)
        answer = await sidecar.call("/v2/nothing-here")
        assert (answer.status, len(upstream.requests)) == (404, asked + 1)


# ------------------------------------------------------------------------------------------- what goes there


@pytest.mark.parametrize("prefix", ["", "/base", "/a//b"])
@pytest.mark.parametrize(
    "target",
    [
        "/v2/schedules",
        "/v2/schedules/https://example.com//a/./b/../c?x=1&y=%26",
        "//v2//x/",
        "/v2/%2e%2E/%2f%zz",
        "/v2/events?",
        "/v2/events?cursor=a%20b+c&&=&d",
        '/v2/"<>\\^`{|}',
        "/v2/a#b",
        "/",
    ],
)
async def test_the_target_is_kept_byte_for_byte(prefix: str, target: str) -> None:
    """Behind the base URL's own path."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url + prefix) as sidecar:
        assert (await sidecar.call(target)).body == b"ok"
        assert upstream.head.split("\r\n")[0] == f"GET {prefix}{target} HTTP/1.1"


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/x?qstash_token=s", "/x"),
        ("/x?a=b&qstash_token=s", "/x?a=b"),
        ("/x?qstash_token=s&a=%41&&b", "/x?a=%41&&b"),
        ("/x?a&QSTASH_TOKEN=s&b", "/x?a&b"),
        ("/x?a&%71stash%5Ftoken=s&b", "/x?a&b"),
        ("/x?qstash_token=s&qstash_token=t", "/x"),
        ("/x?qstash_token", "/x"),
        ("/x?a=qstash_token=s", "/x?a=qstash_token=s"),
        ("/x?my_qstash_token=s", "/x?my_qstash_token=s"),
        ("/x?", "/x?"),
        ("/qstash_token=s", "/qstash_token=s"),
    ],
)
def test_a_credential_in_the_query_is_taken_out(target: str, sent: str) -> None:
    """Whatever a server would read as the key; every other byte stays."""
    assert without_token(target) == sent


async def test_the_callers_credential_never_leaves() -> None:
    """In its place goes the upstream's own, and after a change the new one."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        await sidecar.call(
            f"/v2/messages/m?qstash_token={THEIRS}&a=b", "Connection: authorization", token=THEIRS
        )
        await sidecar.call(f"/v2/messages/m?qstash_token={THEIRS}", token=None)
        await sidecar.call("/v2/messages/m", "Proxy-Authorization: Bearer x", token=THEIRS)
        for head in upstream.heads:
            assert THEIRS.encode() not in head
            assert lines_of(head.decode())["authorization"] == f"Bearer {OWN}"
            assert b"Bearer x" not in head
        assert upstream.heads[0].startswith(b"GET /v2/messages/m?a=b HTTP/1.1\r\n")
        sidecar.proxy.set_token("other")
        await sidecar.call("/v2/messages/m", token=THEIRS)
        assert lines_of(upstream.head)["authorization"] == "Bearer other"


async def test_nothing_is_added_and_the_connections_own_is_left_out() -> None:
    """The headers are the caller's, in its order and spelling; Host is the upstream's."""
    lines = [
        "x-Custom: a, b",
        "Upstash-Forward-X: 1",
        "Cookie: c=d",
        "Prefer: wait=1",
        "Accept-Encoding: br",
        "Connection: keep-alive, X-Named , x-other",
        "X-Named: 1",
        "X-Other: 2",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X",
        "Proxy-Connection: keep-alive",
        "Content-Type: text/x",
    ]
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        await sidecar.call("/v2/keys", *lines)
        expected = ["x-Custom: a, b", "Upstash-Forward-X: 1", "Accept-Encoding: br"]
        expected += ["Content-Type: text/x", f"Authorization: Bearer {OWN}"]
        host = "Host: " + upstream.url.removeprefix("http://")
        assert upstream.head.split("\r\n")[1:-2] == [host, *expected]
        await sidecar.call(
            "/v2/keys", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"
        )
        assert upstream.head.split("\r\n")[1:-2] == [host, f"Authorization: Bearer {OWN}"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
async def test_a_body_keeps_its_framing(method: str) -> None:
    """A length stays a length, chunks stay chunks, and no body is no body; bytes are as they were."""
    bodies: list[bytes] = []

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        bodies.append(await body_of(connection, head))
        connection.send(OK)

    raw = gzip.compress(b"raw") + bytes(range(256))
    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        answer = await sidecar.call("/v2/x", "Content-Encoding: gzip", method=method, body=raw)
        assert (answer.status, bodies[-1]) == (200, raw)
        assert lines_of(upstream.head)["content-length"] == str(len(raw))
        assert "transfer-encoding" not in lines_of(upstream.head)
        chunked = (
            request("/v2/x", "Transfer-Encoding: chunked", method=method)
            + b"3\r\nabc\r\n2;e=f\r\nde\r\n0\r\n\r\n"
        )
        assert (await sidecar.ask(chunked)).status == 200
        assert (bodies[-1], lines_of(upstream.head)["transfer-encoding"]) == (b"abcde", "chunked")
        assert (await sidecar.call("/v2/x", method=method)).status == 200
        assert lines_of(upstream.head).get("content-length", "0") == "0"


async def test_a_header_that_is_no_text_is_refused() -> None:
    """It could not be passed on as it is."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        answer = await sidecar.call("/v2/x", "X-Latin: caf\xe9")
        assert answer.status == 400
        assert "X-Latin" in answer.error
        assert not upstream.heads
        assert (await sidecar.call("/v2/x", "X-Text: caf\xc3\xa9")).status == 200
        assert "X-Text: caf\xc3\xa9" in upstream.head


async def test_a_caller_s_headers_are_the_plain_ones() -> None:
    """No header of a caller with a token of its own makes another request of it."""
    lines = ["User-Agent: a", "Accept: b", "Upstash-Telemetry-Sdk: c", "X-HTTP-Method-Override: PUT"]
    lines += ["Accept-Encoding: gzip"]
    lines += ["X-Forwarded-For: d", "X-Original-URL: /v2/keys", "Cookie: e=f", "Range: bytes=0-1"]
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        await sidecar.call("/v2/messages/m", *lines, token=THEIRS)
        assert upstream.head.split("\r\n")[2:-2] == [*lines[:3], f"Authorization: Bearer {OWN}"]


NAMED = [
    ("", b'{"messageIds": ["msg_1", "a.b-c_d~e"]}', "", b'{"messageIds":["msg_1","a.b-c_d~e"]}'),
    ("?", b'{"messageIds":["m"]}', "", b'{"messageIds":["m"]}'),
    (f"?qstash_token={THEIRS}", b' {"messageIds":["m"]} ', "", b'{"messageIds":["m"]}'),
    ("?messageIds=m", b"", "?messageIds=m", b""),
    ("?messageIds=m&messageIds=n,o", b"", "?messageIds=m&messageIds=n,o", b""),
    (f"?qstash_token={THEIRS}&messageIds=m", b"", "?messageIds=m", b""),
]


@pytest.mark.parametrize(("query", "body", "sent_query", "sent_body"), NAMED)
async def test_a_caller_cancels_what_it_names(
    query: str, body: bytes, sent_query: str, sent_body: bytes
) -> None:
    """By both ways of the official SDKs; what leaves is written anew from what was understood."""
    bodies: list[bytes] = []

    async def reply(_: FakeUpstream, connection: RawClient, head: bytes) -> None:
        bodies.append(await body_of(connection, head))
        connection.send(OK)

    async with FakeUpstream(reply) as upstream, proxied(upstream.url) as sidecar:
        lines = ["Content-Type: application/x-www-form-urlencoded", "Content-Encoding: x"]
        call = request("/v2/messages" + query, *lines, method="DELETE", token=THEIRS, body=body)
        chunked = request(
            "/v2/messages" + query, *lines, "Transfer-Encoding: chunked", method="DELETE", token=THEIRS
        )
        chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        for data in (call, chunked):
            assert (await sidecar.ask(data)).status == 200
            assert bodies[-1] == sent_body
            assert upstream.head.startswith(f"DELETE /v2/messages{sent_query} HTTP/1.1\r\n")
            assert lines_of(upstream.head).get("content-type") == ("application/json" if sent_body else None)
            assert "content-encoding" not in lines_of(upstream.head)


async def test_a_caller_cancels_nothing_unnamed() -> None:
    """Neither everything nor by a filter, in no spelling; an owner may."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        for query, body in UNNAMED:
            call = {"method": "DELETE", "body": body}
            answer = await sidecar.call("/v2/messages" + query, token=THEIRS, **call)
            assert (answer.status, "only messages that are named" in answer.error) == (403, True), (
                query,
                body,
            )
            assert not upstream.heads
        answer = await sidecar.call("/v2/messages", method="DELETE", token=THEIRS)
        assert answer.status == 403
        assert (await sidecar.call("/v2/messages", method="DELETE")).status == 200
        assert (await sidecar.call("/v2/messages?queueName=q", method="DELETE", body=b"")).status == 200


async def test_a_caller_s_list_has_a_bound() -> None:
    """It is collected before it is sent."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url) as sidecar:
        ids = ",".join(['"m"'] * 100_000).encode()
        answer = await sidecar.call("/v2/messages", method="DELETE", token=THEIRS, body=b"[" + ids + b"]")
        assert answer.status == 413
        assert "262144 bytes" in answer.error
        assert not upstream.heads


async def test_a_callers_body_has_the_publishs_bound() -> None:
    """An owner's streams without one."""
    target = "/v2/messages/m"
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url, max_body_bytes=1_000) as sidecar:
        for token, status in ((THEIRS, 413), (OWN, 200)):
            answer = await sidecar.call(target, method="DELETE", body=bytes(1_001), token=token)
            assert answer.status == status
        long = request(target, "Transfer-Encoding: chunked", method="DELETE", token=THEIRS)
        assert (await sidecar.ask(long + b"7d0\r\n" + bytes(2_000) + b"\r\n0\r\n\r\n")).status == 413


async def test_a_callers_broken_body_is_the_callers_fault() -> None:
    """400 or 408, not 502; and the upstream's connection goes with it."""
    async with FakeUpstream(canned(OK)) as upstream, proxied(upstream.url, body_timeout=0.2) as sidecar:
        client = await sidecar.connect()
        client.send(request("/v2/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
        await sidecar.until(lambda: bool(upstream.heads))
        client.send(b"zz\r\n")
        assert (await client.answer()).status == 400
        client = await sidecar.connect()
        client.send(request("/v2/x", method="POST", body=b"abc")[:-1])
        assert (await client.answer()).status == 408
        await sidecar.until(lambda: upstream.lost == 2)
