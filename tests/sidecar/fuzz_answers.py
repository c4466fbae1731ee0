"""HTTP answers as the fuzzer reads them: strictly, off a blocking socket, and never for longer than allowed.

An answer is an answer only if every byte of it is as RFC 9112 has it: status line, header lines, one framing,
a body of just that length. Anything else is `Malformed`, nothing in time is `Hangs`. Used by `fuzz`.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    import socket

READ_BYTES = 262_144
NO_BODY = (204, 304)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) [\t\x20-\x7e]*")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


class Malformed(Exception):  # noqa: N818 - a finding, not an error of ours
    """What came is no HTTP answer."""


class Hangs(Exception):  # noqa: N818 - likewise
    """Nothing came in time."""


class Reply(NamedTuple):
    """One final answer."""

    status: int
    is_http_11: bool
    headers: dict[bytes, bytes]
    """Names in lower case; repeated ones joined by a comma."""
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the connection ends behind it."""
        said = self.headers.get(b"connection", b"").lower()
        return said == b"close" or (not self.is_http_11 and said != b"keep-alive")

    @property
    def json(self) -> Any:
        """Its body's value; `Malformed` if it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise Malformed(f"the body is no JSON ({error}): {self.body[:200]!r}") from None


class Replies:
    """The answers of one connection, in their order.

    Args:
        ends_at: Monotonic seconds until which all of them have to be there.
    """

    def __init__(self, sock: socket.socket, ends_at: float) -> None:
        self._sock = sock
        self._ends_at = ends_at
        self._held = bytearray()
        self._is_ended = False

    def next(self, method: bytes = b"POST") -> Reply | None:
        """The next final answer; `None` where the connection ends instead.

        Raises:
            Malformed: It is none.
            Hangs: It does not come.
        """
        while True:
            head = self._until(b"\r\n\r\n")
            if head is None:
                return None
            reply = _head(bytes(head))
            if reply.status == 101 or (reply.status < 200 and not reply.is_http_11):
                raise Malformed(f"nobody asked for this interim answer: {reply}")
            if reply.status >= 200:
                return reply._replace(body=self._body(reply, method))

    def surplus(self) -> bytes:
        """What has come and belongs to no answer."""
        return bytes(self._held)

    # ------------------------------------------------------------------------------------------------ bytes

    def _more(self) -> bool:
        """Read on; false at the connection's end."""
        if self._is_ended:
            return False
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise Hangs(f"no end of an answer in time; so far {bytes(self._held[:200])!r}")
        self._sock.settimeout(left)
        try:
            data = self._sock.recv(READ_BYTES)
        except TimeoutError:
            return self._more()
        except ConnectionError:
            data = b""
        self._is_ended = not data
        self._held += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes | None:
        start = 0
        while (at := self._held.find(mark, start)) < 0:
            start = max(0, len(self._held) - len(mark))
            if not self._more():
                if self._held:
                    raise Malformed(f"the connection ends within an answer: {bytes(self._held[:200])!r}")
                return None
        return self._take(at + len(mark))[: -len(mark)]

    def _exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            if not self._more():
                raise Malformed(f"the body has {len(self._held)} of {size} bytes")
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def _body(self, reply: Reply, method: bytes) -> bytes:
        length = reply.headers.get(b"content-length")
        coding = reply.headers.get(b"transfer-encoding")
        if length is not None and (coding is not None or not length.isdigit()):
            raise Malformed(f"no one length: {reply.headers}")
        if method == b"HEAD" or reply.status in NO_BODY:
            return b""
        if length is not None:
            return self._exactly(int(length))
        if coding is not None:
            if coding != b"chunked" or not reply.is_http_11:
                raise Malformed(f"no coding for this answer: {coding!r}")
            return self._chunks()
        if not reply.closes:
            raise Malformed(f"an answer without a length on a connection that goes on: {reply.headers}")
        while self._more():
            pass
        return self._take(len(self._held))

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while True:
            line = self._until(b"\r\n")
            if line is None or not _SIZE.fullmatch(line):
                raise Malformed(f"no chunk's size: {line!r}")
            size = int(line, 16)
            part = self._exactly(size + 2)
            if part[-2:] != b"\r\n":
                raise Malformed(f"a chunk is longer than its size: {part[-20:]!r}")
            if not size:
                return b"".join(parts)
            parts.append(part[:-2])


def _head(head: bytes) -> Reply:
    line, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(line)
    if status is None:
        raise Malformed(f"no status line: {line[:200]!r}")
    headers: dict[bytes, bytes] = {}
    for one in lines:
        field = _FIELD.fullmatch(one)
        if field is None:
            raise Malformed(f"no header line: {one[:200]!r}")
        name = field[1].lower()
        headers[name] = (
            f"{headers[name].decode('latin-1')}, ".encode("latin-1") + field[2]
            if name in headers
            else field[2]
        )
    return Reply(int(status[2]), status[1] == b"1", headers, b"")
