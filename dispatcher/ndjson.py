"""NDJSON in chunks of bytes: lines cut out of whatever a file or a pipe gives, and lines decoded.

`LineSplitter` takes chunks and gives lines; it holds at most one unfinished line, and never more than
`MAX_LINE_BYTES` of it: what is longer is counted, not kept. `decode` says what is wrong with a line in words
for whoever wrote it, and never shows the line. Nothing here reads, waits or knows what a message is. Called
by the commands that take messages from files.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

MAX_LINE_BYTES: Final = 128 * 1_048_576
"""Twice the largest message that may be configured: room for its JSON escapes."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


class LineTooLong(NamedTuple):
    """Stands in the place of a line whose bytes were not kept."""

    size_bytes: int


Line = bytes | LineTooLong
"""A line without its line feed; a carriage return before it is white space to JSON."""


class LineError(ValueError):
    """A line is not one JSON value; the text says why and where, in columns counted from 1."""


class LineSplitter:
    """Cuts chunks into lines.

    Args:
        max_line_bytes: A longer line is given as `LineTooLong`.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._is_first = True

    @property
    def held_bytes(self) -> int:
        """Of a line whose end has not come."""
        return self._size if self._size <= self._max_line_bytes else 0

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that end within this chunk."""
        head, *rest = chunk.split(b"\n")
        self._keep(head)
        if not rest:
            return []
        tail = rest.pop()
        lines: list[Line] = [self._take(), *rest]
        if self._max_line_bytes < len(chunk):
            lines[1:] = [self._checked(line) for line in rest]
        self._keep(tail)
        return lines

    def finish(self) -> list[Line]:
        """The last line, if the input ended without a line feed."""
        return [self._take()] if self._size else []

    def _keep(self, part: bytes) -> None:
        if not part:
            return
        self._size += len(part)
        if self._size <= self._max_line_bytes:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _take(self) -> Line:
        line: Line
        if self._size > self._max_line_bytes:
            line = LineTooLong(self._size)
        else:
            line = b"".join(self._parts).removeprefix(_BYTE_ORDER_MARK if self._is_first else b"")
        self._is_first = False
        self._parts.clear()
        self._size = 0
        return line

    def _checked(self, line: bytes) -> Line:
        return line if len(line) <= self._max_line_bytes else LineTooLong(len(line))


def is_blank(line: Line) -> bool:
    """Nothing but white space."""
    return isinstance(line, bytes) and not line.strip()


def decode(line: Line) -> object:
    """The JSON value of one line.

    Raises:
        LineError: It is too long, not UTF-8, or not JSON.
    """
    if isinstance(line, LineTooLong):
        raise LineError(f"the line has {line.size_bytes:,} bytes, which is more than is read")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LineError(_what_is_wrong(line, error)) from None


def _what_is_wrong(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        if line.startswith(_WIDE_MARKS) or b"\0" in line:
            return "not UTF-8; it looks like UTF-16: convert the file to UTF-8"
        return f"not UTF-8: byte 0x{line[wrong.start]:02x} at byte {wrong.start + 1} of the line"
    if b"\0" in line:
        return "not JSON: it holds NUL bytes; if the file is UTF-16, convert it to UTF-8"
    return f"not JSON: {error.msg} at column {error.colno}"
