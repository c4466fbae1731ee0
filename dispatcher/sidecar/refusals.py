"""What a request is refused for before anyone looks at what it asks, and the answers that say so.

The parser refuses most of what is wrong with a message; `screen` refuses what it lets through and a gateway
must not: targets that name another server, codings nobody undoes, two credentials. `reading` turns the
parser's complaints into a status and a sentence. No text here carries a byte that the caller sent: what
stands in a broken head may be a token. Used by `server` and `proxy`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMethod, InvalidURLError, LineTooLong

if TYPE_CHECKING:
    from aiohttp.http import RawRequestMessage

JSON: Final = "application/json"
CLEARTEXT_UPGRADES: Final = ("h2c",)
"""What Java's client and `curl --http2` offer with any request, and do not mind being ignored."""
_UNSERVED: Final = frozenset({"CONNECT", "TRACE"})
_REASONS: Final = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
_REASONS[503] = "Service Unavailable"
_PARSER_WORDS: Final = re.compile(r"(?:Bad status line:\n +)?([A-Za-z0-9 ,./`'-]+):\n\n")
"""llhttp's reason, a constant of its own; what follows it quotes the request."""
_TOO_MANY: Final = "Too many headers"
_HOST_WORDS: Final = re.compile(r"Missing 'Host' header|Duplicate '[A-Za-z-]+' header found")
_ORIGIN_FORM: Final = "the request target must begin with `/`: this is not a forward proxy"


class Refused(web.RequestPayloadError):
    """The request under way ends with this answer. Raised also by reading its body, like aiohttp's own."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


class Refusal(web.Response):
    """The last answer on its connection: `{"error": "…"}`, and then the connection ends."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status=status, body=error_body(text), content_type=JSON)
        self.force_close()


class Size(NamedTuple):
    """What a head may have; the second is told by the parser only."""

    head_bytes: int
    fields: int


def error_body(text: str) -> bytes:
    """The service's form of an error."""
    return orjson.dumps({"error": text})


def raw_refusal(status: int, text: str) -> bytes:
    """A refusal for where there is no request to answer: head and body."""
    body = error_body(text)
    lines = (
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {JSON}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*lines, *(("Retry-After: 1",) if status == 503 else ()), "", "")).encode() + body


def screen(message: RawRequestMessage) -> tuple[int, str] | None:
    """Status and text for a message that the parser accepts and this server does not."""
    if message.path[0] != "/" or message.method in _UNSERVED:
        return _unserved(message)
    headers = message.headers
    if message.chunked or hdrs.TRANSFER_ENCODING in headers:
        if headers.get(hdrs.TRANSFER_ENCODING, "").lower() != "chunked":
            return 501, "the only transfer coding that is understood is `chunked`"
        if message.version != HttpVersion11:
            return 400, "a chunked body needs HTTP/1.1"
    if message.version != HttpVersion11 and message.version != HttpVersion10:
        return 505, "this server speaks HTTP/1.1 and HTTP/1.0"
    if message.upgrade and headers.get("Upgrade", "").lower() not in CLEARTEXT_UPGRADES:
        return 501, "this server switches to no other protocol"
    if len(headers.getall(hdrs.AUTHORIZATION, ())) > 1:
        return 400, "two Authorization headers: which of them counts would be a guess"
    return None


def _unserved(message: RawRequestMessage) -> tuple[int, str]:
    if message.method in _UNSERVED:
        return 405, f"the method {message.method} is not served"
    return 400, _ORIGIN_FORM


def head_bytes(message: RawRequestMessage) -> int:
    """The size of a head: its lines without the blanks and breaks that the parser has taken off."""
    line = len(message.method) + len(message.path) + len(" HTTP/1.1\r\n")
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in message.raw_headers)


def reading(error: BaseException | None, size: Size) -> tuple[int, str]:
    """Status and text for what the parser complains of."""
    text: str = getattr(error, "message", "")
    if isinstance(error, LineTooLong):
        return too_long(size)
    if text.startswith(_TOO_MANY):
        return 431, f"the request has more than {size.fields} headers"
    if isinstance(error, InvalidURLError) and not _PARSER_WORDS.match(text):
        return 400, _ORIGIN_FORM
    if isinstance(error, BadHttpMethod) and "HTTPS" in text:
        return 400, "TLS on a port that speaks plain HTTP"
    known = _PARSER_WORDS.match(text)
    words = known[1] if known else _match(_HOST_WORDS, text) or "a header is not allowed"
    return 400, f"not an HTTP request this server reads: {words}"


def too_long(size: Size) -> tuple[int, str]:
    """Status and text for a head that is too long."""
    return 431, f"request line and headers have more than {size.head_bytes} bytes"


def _match(pattern: re.Pattern[str], text: str) -> str | None:
    found: Any = pattern.match(text)
    return None if found is None else str(found[0])
