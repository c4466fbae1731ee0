"""Messages that are ambiguous, broken or of another protocol: each is refused before anyone looks at it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.sidecar.attacks.stage import CALLER, PUBLISH, came
from tests.sidecar.support_raw import CHUNKED, GET, HOST, POST, SECRET

if TYPE_CHECKING:
    from tests.sidecar.attacks.stage import Stage

REFUSED: dict[str, tuple[bytes, int]] = {
    "both lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both lengths, the other way": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", 400),
    "the same length twice": (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400),
    "a list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\nabcde", 400),
    "a signed length": (POST + b"Content-Length: +5\r\n\r\nabcde", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\nabcde", 400),
    "a hexadecimal length": (POST + b"Content-Length: 0x5\r\n\r\nabcde", 400),
    "an empty length": (POST + b"Content-Length: \r\n\r\nabcde", 400),
    "a length beyond 64 bits": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    "a coding before chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "a coding after chunked": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "two codings in two lines": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "an empty coding": (POST + b"Transfer-Encoding:\r\n\r\n", 501),
    "a coding behind a control character": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "a blank before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked in HTTP/1.0": (b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk size with 0x": (CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n", 400),
    "a signed chunk size": (CHUNKED + b"+5\r\nabcde\r\n0\r\n\r\n", 400),
    "a chunk size with a blank": (CHUNKED + b"5 \r\nabcde\r\n0\r\n\r\n", 400),
    "a chunk size with an underscore": (CHUNKED + b"5_0\r\nabcde\r\n0\r\n\r\n", 400),
    "no chunk size": (CHUNKED + b"\r\nabcde\r\n0\r\n\r\n", 400),
    "a chunk size beyond 64 bits": (CHUNKED + b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n", 400),
    "a chunk longer than its size": (CHUNKED + b"5\r\nabcdefgh\r\n0\r\n\r\n", 400),
    "bare line feeds between chunks": (CHUNKED + b"5\nabcde\n0\n\n", 400),
    "a line feed in a chunk extension": (CHUNKED + b"5;\nxx\r\nabcde\r\n0\r\n\r\n", 400),
    "NUL in a chunk extension": (CHUNKED + b"5;a\x00=b\r\nabcde\r\n0\r\n\r\n", 400),
    "a length among trailers": (CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", 400),
    "a second Host among trailers": (CHUNKED + b"0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a folded header": (GET + b"X: " + SECRET + b"\r\n b\r\n\r\n", 400),
    "NUL in a header": (GET + b"X: " + SECRET + b"\x00b\r\n\r\n", 400),
    "CR in a header": (GET + b"X: " + SECRET + b"\rY: b\r\n\r\n", 400),
    "a control character in a header": (GET + b"X: " + SECRET + b"\x01\r\n\r\n", 400),
    "bare line feeds": (b"GET /x HTTP/1.1\nHost: a\nX: " + SECRET + b"\n\n", 400),
    "a header without a colon": (GET + SECRET + b"\r\n\r\n", 400),
    "a header without a name": (GET + b": " + SECRET + b"\r\n\r\n", 400),
    "a blank in a header's name": (GET + b"X Y: " + SECRET + b"\r\n\r\n", 400),
    "a first header that is indented": (b"GET /x HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "no Host": (b"GET /x HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "two credentials": (
        GET + b"Authorization: Bearer " + SECRET + b"\r\nAuthorization: Bearer b\r\n\r\n",
        400,
    ),
    "absolute-form": (b"GET http://evil.example/" + SECRET + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute-form without an authority": (b"GET foo:bar HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "authority-form": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "CONNECT with a path": (b"CONNECT /x HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "TRACE": (b"TRACE /x HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "asterisk-form": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "asterisk-form of GET": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a target without a slash": (b"GET x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a blank in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a tab in the target": (b"GET /a\tb HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "NUL in the target": (b"GET /a\x00b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a target that is not ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "an unknown method": (b"FOO /x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a method in lower case": (b"get /x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "HTTP/0.9, said": (b"GET /x HTTP/0.9\r\n\r\n", 505),
    "HTTP/2.0": (b"GET /x HTTP/2.0\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /x HTTP/1.2\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), 400),
    "a web socket": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n", 501),
    "an unknown expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\nab", 417),
    "too many headers": (GET + b"X: y\r\n" * 300 + b"\r\n", 431),
}
"""What is sent, and the status that it gets; the connection ends behind it."""


async def attack(stage: Stage) -> None:
    """Each of them, with a good token and a good target."""
    before = len(stage.upstream.heads)
    await asyncio.gather(*(_refused(stage, name) for name in REFUSED))
    stage.report.add(
        "message", "none of them went on", f"{len(stage.upstream.heads) - before} requests at the upstream",
        len(stage.upstream.heads) == before,
    )  # fmt: skip


async def _refused(stage: Stage, name: str) -> None:
    data, status = REFUSED[name]
    if not data.startswith(b"CONNECT"):
        data = data.replace(b" /x ", f" {PUBLISH} ".encode(), 1)
    if name != "two credentials":
        data = data.replace(HOST, HOST + f"Authorization: Bearer {CALLER}\r\n".encode(), 1)
    client = await stage.connect()
    client.send(data)
    answer = await stage.hear(client)
    rest = await client.ended()
    client.close()
    is_right = answer is not None and answer.status == status and len(answer.error) > 10 and rest == b""
    is_right = is_right and answer is not None and SECRET not in answer.body
    stage.report.add("message", name, came(answer), is_right)
