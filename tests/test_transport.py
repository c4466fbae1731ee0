"""The transport on real sockets: what came back, and above all what is known when nothing did."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import orjson
import pytest

from dispatcher import Config, ConfigError, Dispatcher, HTTPTransport, Message
from dispatcher.core.batch import Failure, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
ITEM = b'[{"destination":"https://example.com/hook","body":"x"}]'


@asynccontextmanager
async def opened(url: str, **overrides: Any) -> AsyncIterator[HTTPTransport]:
    transport = HTTPTransport(Config.load(env={}, token="t", url=url, **overrides))
    await transport.start()
    try:
        yield transport
    finally:
        await transport.aclose()


class RawServer:
    """A server of one canned behaviour; remembers the requests it read."""

    def __init__(self, reply: bytes | None, *, close: bool = True) -> None:
        self.reply = reply
        self.close = close
        self.requests: list[bytes] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                self.requests.append(head + await reader.readexactly(length))
                if self.reply is None:
                    await reader.read()  # say nothing until the client gives up
                    break
                writer.write(self.reply)
                await writer.drain()
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(status: str, body: bytes = b"{}", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_a_batch_is_posted_as_documented() -> None:
    """Path, method, token and content type as the service wants them."""
    async with RawServer(reply("200 OK", b'[{"messageId":"m"}]')) as server, opened(server.url) as transport:
        answer = await transport.post_batch(ITEM, timeout=5)
    assert answer == Reply(200, b'[{"messageId":"m"}]')
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/batch HTTP/1.1\r\n")
    assert b"Authorization: Bearer t\r\n" in head
    assert b"Content-Type: application/json" in head
    assert body == ITEM


async def test_a_base_url_with_a_path_keeps_it() -> None:
    """`{base}` may carry a path prefix."""
    async with RawServer(OK, close=False) as server, opened(server.url + "/proxy/q/") as transport:
        await transport.post_batch(ITEM, timeout=5)
        await transport.post_single("/v2/publish/https://e.x", (), b"\xff", timeout=5)
    assert [request.split(b" ")[1] for request in server.requests] == [
        b"/proxy/q/v2/batch",
        b"/proxy/q/v2/publish/https://e.x",
    ]


@pytest.mark.parametrize("end", ["//a/../b/%2e?x=%2F&y=a+b&z=%c3%bc", "?", "/a?", "/#part", "/a#b?c=d#e"])
async def test_a_single_keeps_its_raw_target(end: str) -> None:
    """Nothing of a destination is decoded, collapsed, re-encoded or left out on the way."""
    target = f"/v2/publish/https://example.com{end}"
    async with RawServer(reply("200 OK", b'{"messageId":"m"}')) as server, opened(server.url) as transport:
        await transport.post_single(target, [("Upstash-Label", "l")], b"\xff\x00", timeout=5)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST {target} HTTP/1.1\r\n".encode())
    assert b"Upstash-Label: l\r\n" in head
    assert b"content-type" not in head.lower()  # the message brought none, and its hash may depend on it
    assert body == b"\xff\x00"


async def test_a_single_keeps_its_repeated_header_lines() -> None:
    """Each line arrives, in their order, and none of them can take the place of the token."""
    lines = [("Upstash-Label", "a"), ("Authorization", "Bearer theirs"), ("upstash-label", "b")]
    async with RawServer(reply("200 OK", b'{"messageId":"m"}')) as server, opened(server.url) as transport:
        await transport.post_single("/v2/publish/https://e.x", lines, b"x", timeout=5)
    head = server.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [line for line in head if line.lower().startswith(b"upstash")] == [
        b"Upstash-Label: a",
        b"Upstash-Label: b",
    ]
    assert [line for line in head if b"authorization" in line.lower()] == [b"Authorization: Bearer t"]


async def test_redirects_are_reported_and_not_followed() -> None:
    """A 3xx is a wrong base URL; following it could hand the token to somebody else."""
    async with (
        RawServer(reply("307 Temporary Redirect", b"", "Location: http://127.0.0.1:1/elsewhere")) as server,
        opened(server.url) as transport,
    ):
        answer = await transport.post_batch(ITEM, timeout=5)
    assert isinstance(answer, Reply)
    assert answer.status == 307
    assert answer.headers["location"] == "http://127.0.0.1:1/elsewhere"
    assert len(server.requests) == 1


async def test_cookies_are_not_kept() -> None:
    """What a reply sets never comes back."""
    async with (
        RawServer(reply("200 OK", b"[]", "Set-Cookie: a=b; Path=/"), close=False) as server,
        opened(server.url) as transport,
    ):
        await transport.post_batch(ITEM, timeout=5)
        await transport.post_batch(ITEM, timeout=5)
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


async def test_proxies_are_not_read_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HTTP_PROXY` is ignored, and obeyed once `trust_env` says so."""
    async with RawServer(reply("200 OK", b"[]")) as proxy, RawServer(reply("200 OK", b"[]")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with opened(server.url) as transport:
            await transport.post_batch(ITEM, timeout=5)
        assert (len(proxy.requests), len(server.requests)) == (0, 1)
        async with opened(server.url, transport_trust_env=True) as transport:
            await transport.post_batch(ITEM, timeout=5)
        assert (len(proxy.requests), len(server.requests)) == (1, 1)


async def test_a_netrc_does_not_break_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trust_env` is about proxies: an entry for the host beside our token must not stop the request."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password pass\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with RawServer(OK) as server, opened(server.url, transport_trust_env=True) as transport:
        assert await transport.post_batch(ITEM, timeout=5) == Reply(200, b"[]")
    assert b"Authorization: Bearer t\r\n" in server.requests[0]


async def test_nothing_was_sent_to_a_closed_port() -> None:
    """A refused connection is certain."""
    async with RawServer(None) as server:
        url = server.url
    async with opened(url) as transport:
        answer = await transport.post_batch(ITEM, timeout=5)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.certainty) == ("connect", "not_sent")
    assert url in answer.text


async def test_nothing_was_sent_to_an_unknown_host() -> None:
    """So is a name that does not resolve."""
    async with opened("http://no-such-host.invalid") as transport:
        answer = await transport.post_batch(ITEM, timeout=5)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.certainty) == ("connect", "not_sent")


@pytest.mark.parametrize(("connect", "attempt"), [(0.2, 5.0), (3.0, 0.2), (3.0, 0.001)])
async def test_nothing_was_sent_when_connecting_times_out(connect: float, attempt: float) -> None:
    """A listener whose backlog is full never answers: not sent, told apart from a slow reply."""
    import socket

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    fillers = []
    try:
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        async with opened(f"http://127.0.0.1:{address[1]}", transport_connect_timeout=connect) as transport:
            answer = await transport.post_batch(ITEM, timeout=attempt)
    finally:
        for each in (*fillers, listener):
            each.close()
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.certainty) == ("connect", "not_sent")


async def test_a_certificate_nobody_signed_is_certain_too(tmp_path: Path) -> None:
    """TLS that cannot be trusted: nothing was sent; trusted through `ca_file` it works."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    raw = RawServer(reply("200 OK", b"[]"))
    server = await asyncio.start_server(raw._serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        async with opened(url) as transport:
            refused = await transport.post_batch(ITEM, timeout=5)
        async with opened(url, transport_ca_file=str(certificate)) as transport:
            trusted = await transport.post_batch(ITEM, timeout=5)
    finally:
        server.close()
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.certainty) == ("connect", "not_sent")
    assert trusted == Reply(200, b"[]")
    assert len(raw.requests) == 1


async def test_what_cannot_be_parsed_is_told_without_the_target() -> None:
    """A message that travels alone has its destination in the request's own path, query and all."""
    async with RawServer(b"HTP/banana 200\r\nfoo\r\n\r\n") as server, opened(server.url) as transport:
        target = "/v2/publish/https://example.com/hook?key=QUERY"
        failure = await transport.post_single(target, (), b"\xff", timeout=5)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.certainty) == ("disconnect", "unknown")
    assert failure.text.startswith("the connection was lost: Bad status line")
    assert "QUERY" not in failure.text
    assert "example.com" not in failure.text


async def test_an_unreadable_ca_file_is_a_configuration_error(tmp_path: Path) -> None:
    """It says which setting and why."""
    config = Config.load(env={}, token="t", transport_ca_file=str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match=r"transport\.ca_file"):
        await HTTPTransport(config).start()


@pytest.mark.parametrize(
    ("canned", "kind"),
    [
        (None, "timeout"),
        (b"", "disconnect"),
        (b"HTTP/1.1 200 OK\r\nContent-", "disconnect"),
        (b"nonsense\r\n\r\n", "disconnect"),
        (reply("200 OK", b'[{"messageId"', length=100), "reply"),
    ],
)
async def test_after_sending_the_outcome_is_unknown(canned: bytes | None, kind: str) -> None:
    """Silence, hang-up, half a head, nonsense, half a body: it may have been taken."""
    async with RawServer(canned) as server, opened(server.url) as transport:
        answer = await transport.post_batch(ITEM, timeout=0.3)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.certainty) == (kind, "unknown")


async def test_a_reply_above_the_bound_is_not_read() -> None:
    """With and without a declared length."""
    big = b"x" * 5_000
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + big + b"\r\n0\r\n\r\n"
    for canned in (reply("200 OK", big), chunked):
        async with (
            RawServer(canned) as server,
            opened(server.url, transport_max_reply_bytes=1_000) as transport,
        ):
            answer = await transport.post_batch(ITEM, timeout=5)
        assert isinstance(answer, Failure)
        assert (answer.kind, answer.certainty) == ("reply", "unknown")


async def test_a_body_above_one_mebibyte_is_sent_without_a_warning() -> None:
    """aiohttp warns about large plain bytes; warnings are errors here."""
    async with RawServer(reply("200 OK", b"[]")) as server, opened(server.url) as transport:
        answer = await transport.post_batch(b"[" + b" " * 3_000_000 + b"]", timeout=5)
    assert answer == Reply(200, b"[]")
    assert len(server.requests[0]) > 3_000_000


async def test_headers_the_core_may_read_are_kept() -> None:
    """Lower-case, and nothing else."""
    canned = reply("429 Too Many", b"{}", "Retry-After: 3", "Burst-RateLimit-Reset: 9", "X-Other: 1")
    async with RawServer(canned) as server, opened(server.url) as transport:
        answer = await transport.post_batch(ITEM, timeout=5)
    assert isinstance(answer, Reply)
    assert answer.headers == {"retry-after": "3", "burst-ratelimit-reset": "9"}


async def test_a_dropped_keep_alive_connection_costs_a_retry_and_no_message() -> None:
    """A server that hangs up after each reply without saying so: aiohttp does not repeat a POST, we do."""
    one = b'[{"messageId":"m"}]'
    async with RawServer(reply("200 OK", one)) as server:
        config = Config.load(env={}, token="t", url=server.url, retry_base=0.001)
        async with Dispatcher(config) as dispatcher:
            for number in range(20):
                receipt = await dispatcher.send(Message("https://example.com/hook", body=str(number)))
                assert receipt.message_id == "m"
    items = [orjson.loads(request.partition(b"\r\n\r\n")[2])[0] for request in server.requests]
    ids = {(item["body"], item["headers"]["Upstash-Deduplication-Id"]) for item in items}
    assert len(ids) == 20


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "401 Unauthorized"])
async def test_a_reply_that_quotes_the_token_is_masked(status: str) -> None:
    """Its words come to errors, logs and callers; the token that was presented is in none of them."""
    token = "a-token-of-some-length"
    canned = reply(status, b'{"error":"no good: Bearer a-token-of-some-length, a-token-of-some-length"}')
    body = canned.partition(b"\r\n\r\n")[2]
    bodies = []
    for presented, is_alone in ((token, False), (token, True), ("another-token-of-that-kind", False)):
        async with RawServer(canned) as server, opened(server.url) as transport:
            transport.set_token(presented)
            way = transport.post_single("/v2/publish/a", [], b"", timeout=5) if is_alone else None
            answer = await (way or transport.post_batch(ITEM, timeout=5))
            assert isinstance(answer, Reply)
            bodies.append(answer.body)
    masked = b'{"error":"no good: Bearer ***, ***"}'
    assert bodies == [masked, masked, body]
