"""How far a caller gets: paths that are not for it, other places, injected lines, other headers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from tests.sidecar.attacks.stage import CALLER, HOOK, OWNER, PUBLISH, came, http

if TYPE_CHECKING:
    from tests.sidecar.attacks.stage import Stage

FORBIDDEN = [
    ("GET", "/v2/messages"),
    ("DELETE", "/v2/messages#"),
    ("DELETE", "/v2/messages/"),
    ("GET", "/v2/messages/"),
    ("POST", "/v2/messages/msg_1"),
    ("PUT", "/v2/messages/msg_1"),
    ("HEAD", "/v2/messages/msg_1"),
    ("GET", "/v2/messages/.."),
    ("GET", "/v2/messages/."),
    ("GET", "/v2/messages/..?x"),
    ("GET", "/v2/messages/../keys"),
    ("GET", "/v2/messages/msg_1/../../keys"),
    ("GET", "/v2/messages/%2e%2e"),
    ("GET", "/v2/messages/%2e%2e%2fkeys"),
    ("GET", "/v2/messages/..%2fkeys"),
    ("GET", "/v2/messages/msg_1%00"),
    ("GET", "/v2/messages/..\\keys"),
    ("GET", "/v2/messages/..;/keys"),
    ("GET", "/v2/messages//"),
    ("GET", "/v2//messages/msg_1"),
    ("GET", "//v2/messages/msg_1"),
    ("GET", "/v2/messages/msg_1#/../keys"),
    ("GET", "/V2/messages/msg_1"),
    ("GET", "/v2/messagesx/msg_1"),
    ("GET", "/v2/keys"),
    ("POST", "/v2/keys/rotate"),
    ("GET", "/v2/queues"),
    ("POST", "/v2/publish/https://example.com"),
    ("GET", "/v2/dlq"),
    ("GET", "/"),
]
"""What only an owner may ask for."""
UNNAMED = [
    ("", b""),
    ("", b"null"),
    ("", b"{}"),
    ("", b"[]"),
    ("", b'["m"]'),
    ("", b'{"messageIds":[]}'),
    ("", b'{"messageIds":null}'),
    ("", b'{"messageIds":"m"}'),
    ("", b'{"messageIds":[""]}'),
    ("", b'{"messageIds":["m",null]}'),
    ("", b'{"messageIds":["m,n"]}'),
    ("", b'{"messageIds":["m\\n"]}'),
    ("", b'{"messageIds":["*"]}'),
    ("", b'{"messageIds":["m"],"queueName":"q"}'),
    ("", b'{"messageIds":["m"],"messageIds":[]}'),
    ("", b'{"messageIds":[],"messageIds":["m"]}'),
    ("", b'{"queueName":"q"}'),
    ("", b'{"url":"https://example.com"}'),
    ("", b'{"messageIds":["m"]'),
    ("", b"messageIds=m"),
    ("", b"\xff"),
    ("?messageIds=m", b'{"messageIds":["m"]}'),
    ("?messageIds=m", b"{}"),
    ("?messageIds=", b""),
    ("?messageIds", b""),
    ("?messageIds=m,", b""),
    ("?messageIds=m&", b""),
    ("?messageIds=%6d", b""),
    ("?messageIds=m&queueName=q", b""),
    ("?messageIds=m&count=5", b""),
    ("?queueName=q", b""),
    ("?queueName=q", b'{"messageIds":["m"]}'),
    ("?url=https://example.com", b""),
    ("?all=true", b""),
    ("?messageids=m", b""),
]
"""Bulk cancels that name no messages, or not only: query and body."""

ELSEWHERE = [
    "//evil.example/x",
    "///evil.example/x",
    "/..//evil.example",
    "/../../evil.example/",
    "/@evil.example/",
    "/:80@evil.example/",
    "/http://evil.example/",
    "/\\evil.example",
    "/%2f%2fevil.example",
    "/.evil.example",
    "/?http://evil.example/",
    "/#@evil.example/",
]
"""Targets that would be another server's, read wrongly."""
CLIMBING = [
    "/v2/publish/..",
    "/v2/enqueue/../keys",
    "/v2/enqueue/%2e%2e/keys",
    "/v2/publish/api/../../keys/rotate",
    "/v2/publish/api/%2e%2e/%2e%2e%2fkeys/rotate",
    "/v2/publish/api/..\\..\\keys/rotate",
    "/v2/publish/https://e.x/../../../keys",
    "/v2/enqueue/q/../../../keys",
]
"""Destinations of messages that go alone, which would be another request to a server that resolves dots."""
EVIL = ("\r\nX-Evil: 1", "\nX-Evil: 1", "\rX-Evil: 1", "\0X-Evil: 1")


async def attack(stage: Stage) -> None:
    """All of it; then look at everything that has reached the upstream."""
    before = len(stage.upstream.heads)
    await asyncio.gather(*(_forbidden(stage, *one) for one in FORBIDDEN))
    await asyncio.gather(*(_unnamed(stage, *one) for one in UNNAMED))
    for target in CLIMBING:
        await stage.expect("reach", f"alone to {target}", http(target, body=b"\xff"), 400)
    count = len(stage.upstream.heads) - before
    stage.report.add("reach", "nothing of that went on", f"{count} requests at the upstream", not count)
    await _injected(stage)
    for target in ELSEWHERE:
        await _elsewhere(stage, target)
    await _hosts(stage)
    for status in (301, 302, 303, 307, 308):
        data = http(f"/v2/moved-{status}", method="GET", token=OWNER)
        await stage.expect("elsewhere", f"the upstream redirects with {status}", data, status)
    await _headers(stage)
    _inspect(stage)


async def _forbidden(stage: Stage, method: str, target: str) -> None:
    if target.startswith("/v2/publish/"):
        return  # that one is taken in before it comes to the proxy
    answer = await stage.ask(http(target, method=method, body=b""), method)
    is_right = answer is not None and answer.status == 403
    stage.report.add("reach", f"a caller: {method} {target}", came(answer), is_right)


async def _unnamed(stage: Stage, query: str, body: bytes) -> None:
    answer = await stage.ask(http("/v2/messages" + query, method="DELETE", body=body), "DELETE")
    tried = f"a caller: DELETE /v2/messages{query} {body.decode('latin-1')}"
    stage.report.add("reach", tried, came(answer), answer is not None and answer.status == 403)


# ------------------------------------------------------------------------------------------------- injection


def _items(evil: str) -> dict[str, dict[str, Any]]:
    """Items of a batch with it in every place."""
    good = {"destination": HOOK, "body": "x"}
    return {
        "a header's value": {**good, "headers": {"Upstash-Forward-X": f"a{evil}"}},
        "a header's name": {**good, "headers": {f"Upstash-Forward-X{evil}": "a"}},
        "Content-Type": {**good, "headers": {"Content-Type": f"text/x{evil}"}},
        "an id": {**good, "headers": {"Upstash-Deduplication-Id": f"a{evil}"}},
        "one of several values": {**good, "headers": {"Upstash-Label": ["a", f"b{evil}"]}},
        "one of several ids": {**good, "headers": {"Upstash-Deduplication-Id": ["a", f"b{evil}"]}},
        "the destination": {**good, "destination": HOOK + evil},
        "a group's name": {**good, "destination": f"group{evil}"},
        "the queue": {**good, "queue": f"q{evil}"},
    }


async def _injected(stage: Stage) -> None:
    before = len(stage.upstream.heads)
    for evil in EVIL:
        for place, item in _items(evil).items():
            tried = f"{evil[:2]!r} in {place} of an item"
            await stage.expect("injection", tried, http("/v2/batch", body=json.dumps([item]).encode()), 400)
            line = json.dumps(item).encode() + b"\n"
            answer = await stage.ask(http("/v2/batch", "Content-Type: application/x-ndjson", body=line))
            is_right = answer is not None and json.loads(answer.body).get("status") == 400
            stage.report.add("injection", f"{evil[:2]!r} in {place} of a line", came(answer), is_right)
    for queue in ("a%0d%0aX-Evil:1", "a%00", "a%2fb", "a%20b", ""):
        data = http(f"/v2/enqueue/{queue}/{HOOK}", body=b"x")
        await stage.expect("injection", f"the queue {queue!r}", data, 400)
    count = len(stage.upstream.heads) - before
    stage.report.add("injection", "nothing of that went on", f"{count} requests at the upstream", not count)
    escaped = f"{HOOK}/%0d%0aX-Evil:%201"
    for body in (b"in a batch", b"alone \xff\r\n\r\nGET /v2/keys HTTP/1.1\r\nX-Evil: 1\r\n\r\n"):
        await stage.expect(
            "injection", f"an escaped one, {body[:10]!r}", http(f"/v2/publish/{escaped}", body=body), 200
        )
    kept = [one["destination"] for one in stage.upstream.items()][-1]
    stage.report.add("injection", "an escaped one is kept as it is", kept, kept == escaped)
    alone = stage.upstream.heads[-1].split(b"\r\n")[0].decode()
    is_right = alone == f"POST /v2/publish/{escaped} HTTP/1.1" and stage.upstream.bodies[-1] == body
    stage.report.add("injection", "a request in a body stays a body", alone, is_right)


# --------------------------------------------------------------------------------------------- other places


async def _elsewhere(stage: Stage, target: str) -> None:
    answer = await stage.ask(http(target, method="GET", token=OWNER), "GET")
    line = stage.upstream.heads[-1].split(b"\r\n")[0].decode()
    is_right = answer is not None and answer.status == 200 and line == f"GET {target} HTTP/1.1"
    stage.report.add("elsewhere", f"an owner: GET {target}", line, is_right)


async def _hosts(stage: Stage) -> None:
    own = stage.upstream.url.removeprefix("http://")
    evil = stage.elsewhere.url.removeprefix("http://")
    for lines in (
        [f"Host: {evil}"],
        ["Host: "],
        [f"Host: {own}@{evil}"],
        ["Host: sidecar.example", f"X-Forwarded-Host: {evil}", f"Forwarded: host={evil}"],
        ["Host: sidecar.example", f"X-Original-URL: {stage.elsewhere.url}/"],
    ):
        data = http("/v2/x", *lines, method="GET", token=OWNER).replace(b"Host: sidecar.example\r\n", b"", 1)
        answer = await stage.ask(data, "GET")
        arrived = _values(stage.upstream.heads[-1], "host")
        tried = " and ".join(lines).replace(evil, "elsewhere").replace(own, "upstream")
        is_right = answer is not None and answer.status == 200 and arrived == [own]
        stage.report.add("elsewhere", tried, f"the upstream has Host {' '.join(arrived)}", is_right)


async def _headers(stage: Stage) -> None:
    """Of one connection, of one site, or in the way of our own."""
    lines = ["Cookie: a=b", "Proxy-Authorization: Bearer x", "TE: trailers", "Trailer: X", "Keep-Alive: 5"]
    lines += ["Connection: authorization, host, content-length, x-own", "X-Own: 1", "Upgrade: h2c"]
    lines += ["HTTP2-Settings: AAMAAABk", "Proxy-Connection: close", "Prefer: wait=1"]
    answer = await stage.ask(http("/v2/x", *lines, token=OWNER, body=b"abc"))
    head = stage.upstream.heads[-1]
    gone = ("cookie", "proxy-authorization", "te", "trailer", "keep-alive", "connection", "x-own", "upgrade")
    left = [name for name in (*gone, "http2-settings", "proxy-connection", "prefer") if _values(head, name)]
    kept = (_values(head, "authorization"), _values(head, "content-length"), stage.upstream.bodies[-1])
    is_right = not left and kept == ([f"Bearer {OWNER}"], ["3"], b"abc")
    stage.report.add("headers", "hop-by-hop, cookies, named in Connection", f"passed on: {left}", is_right)
    is_clean = answer is not None and answer.header("set-cookie") is None
    stage.report.add("headers", "the upstream's cookies", came(answer), is_clean)
    mine = ["X-HTTP-Method-Override: DELETE", "X-Original-URL: /v2/keys", "Range: bytes=0-", "Cookie: a=b"]
    await stage.ask(http("/v2/messages/m", *mine, method="GET"), "GET")
    names = [line.partition(":")[0] for line in stage.upstream.head.split("\r\n")[1:-2]]
    stage.report.add(
        "headers", "a caller's overrides", f"passed on: {names}", names == ["Host", "Authorization"]
    )


async def attack_redirected_batch(stage: Stage) -> None:
    """The last: the dispatcher takes a redirect for a wrong URL, and halts."""
    answer = await stage.ask(http(PUBLISH, body=b"moved-307"), seconds=3)
    heard = len(stage.elsewhere.heads)
    is_right = (answer is None or answer.status >= 500) and not heard
    stage.report.add("elsewhere", "the upstream redirects a batch", came(answer), is_right)
    stage.report.add("elsewhere", "what another place heard of all this", f"{heard} requests", not heard)


# ------------------------------------------------------------------------------------------------------ after


def _inspect(stage: Stage) -> None:
    """No request that reached the upstream is ambiguous, or has a line of a caller's making."""
    own = stage.upstream.url.removeprefix("http://")
    bad = [head for head in stage.upstream.heads if not _is_sound(head, own)]
    said = (
        bad[0].decode("latin-1").replace(OWNER, "…") if bad else f"all of {len(stage.upstream.heads)} sound"
    )
    stage.report.add("injection", "every request at the upstream", said, not bad)


def _is_sound(head: bytes, own: str) -> bool:
    framing = len(_values(head, "content-length")) + len(_values(head, "transfer-encoding"))
    return (
        _values(head, "host") == [own]
        and _values(head, "authorization") == [f"Bearer {OWNER}"]
        and framing <= 1
        and not _values(head, "x-evil")
        and CALLER.encode() not in head
        and head.count(b"\n") == head.count(b"\r\n") == head.count(b"\r")
    )


def _values(head: bytes, name: str) -> list[str]:
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    return [value.strip() for one, _, value in pairs if one.lower() == name]
