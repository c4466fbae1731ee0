"""What was accepted, on disk before the reply goes out, so that `kill -9` of the server forgets nothing.

One line of JSON a change, one `write` a request, straight to the operating system (a machine that loses power
may forget; this is a development server). Blocking, and called from the event loop: the write is a copy into
the page cache, and nothing may be answered before it is done. `server` is the only caller.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from dispatcher.devserver.changes import Change, restore
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dispatcher.devserver.upstream import Upstream

FORMAT: Final = "dispatcher-dev-state"
VERSION: Final = 1


class _Head(Struct):
    format: str
    version: int
    instance: str


_encode: Final = msgspec.json.Encoder().encode
_HEAD: Final = msgspec.json.Decoder(_Head)
_CHANGE: Final = msgspec.json.Decoder(Change)


class Journal:
    """An append-only file of changes, locked for one server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            problem = f"{str(path)!r} cannot be opened: {error.strerror}"
            raise ConfigError("state", str(path), "wanted is a file to append to", problem=problem) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            problem = f"another server uses {str(path)!r}"
            raise ConfigError("state", str(path), "give each its own", problem=problem) from None

    def load(self, upstream: Upstream) -> int:
        """Bring `upstream` to the state on disk; returns the number of changes. A torn end is cut off."""
        recording, upstream.changes = upstream.changes, None
        count = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # the server was killed amid this write: it was never answered
                self._read(upstream, number, line)
                self._size += len(line)
                count += number > 1
        os.ftruncate(self._fd, self._size)
        upstream.changes = recording
        if self._size == 0:
            self._write(_encode(_Head(FORMAT, VERSION, upstream.instance)) + b"\n")
        return count

    def _read(self, upstream: Upstream, number: int, line: bytes) -> None:
        try:
            if number > 1:
                restore(upstream, _CHANGE.decode(line))
                return
            head = _HEAD.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError("state", str(self.path), f"line {number} is damaged: {error}") from None
        if (head.format, head.version) != (FORMAT, VERSION):
            raise ConfigError("state", str(self.path), f"it is not a {FORMAT} file of version {VERSION}")
        upstream.instance = head.instance
        upstream.clear()

    def append(self, changes: Iterable[Change]) -> None:
        """Write changes in one go; raises `OSError` after taking back what was written by half."""
        self._write(b"".join([_encode(change) + b"\n" for change in changes]))

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def reset(self, instance: str) -> None:
        """Forget everything; message ids from now on carry `instance`."""
        os.ftruncate(self._fd, 0)
        self._size = 0
        self._write(_encode(_Head(FORMAT, VERSION, instance)) + b"\n")

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._fd)
