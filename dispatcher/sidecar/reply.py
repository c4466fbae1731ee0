"""A whole reply with a JSON body, as cheap as it can be: head and body in one write.

aiohttp's own response builds a header map and serialises it again for every reply; a publish's reply has the
same few lines each time, so here the head is text that is put together once a second (it carries the date).
It is used where nothing is streamed. Made by `intake` and `app`.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp.abc import AbstractStreamWriter

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class _Heads:
    """The lines that are the same for a status, put together once a second."""

    __slots__ = ("_heads", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._heads: dict[int, bytes] = {}

    def of(self, status: int) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            lines = f"Content-Type: application/json\r\nDate: {formatdate(second, usegmt=True)}\r\n".encode()
            self._heads = {status: line + lines for status, line in _STATUS_LINES.items()}
        return self._heads[status]


_head_of: Final = _Heads().of


class Reply(web.StreamResponse):
    """Status, JSON body and whatever header lines it needs beside the usual ones.

    Its headers are ours alone: no name and no value of them comes from anybody else.
    """

    def __init__(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        # Not the parent's: of what that sets up nothing is used, and it costs as much as all of this.
        self._status = status
        self._bytes = body
        self._lines = headers
        self._keep_alive: bool | None = None
        self._request: web.BaseRequest | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Called by aiohttp's server, before `write_eof`."""
        self._request = request
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        return None

    async def write_eof(self, data: Any = b"") -> None:
        """Write all of it."""
        request, self._request = self._request, None
        if request is None:
            return
        head, body = _head_of(self._status), self._bytes
        rest = b"" if self._is_usual(request) else self._other_lines(request)
        if request.method == "HEAD":
            whole = b"%bContent-Length: %d\r\n%b\r\n" % (head, len(body), rest)
        else:
            whole = b"%bContent-Length: %d\r\n%b\r\n%b" % (head, len(body), rest, body)
        writer = request.writer
        await writer.write(whole)
        await writer.drain()

    def _is_usual(self, request: web.BaseRequest) -> bool:
        return not self._lines and self._keep_alive is True and request.version >= (1, 1)

    def _other_lines(self, request: web.BaseRequest) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in self._lines]
        if not self._keep_alive:
            lines.append("Connection: close\r\n")
        elif request.version < (1, 1):
            lines.append("Connection: keep-alive\r\n")
        return "".join(lines).encode()
