"""Where a command reads its lines: a file, or standard input.

A regular file is read in a worker thread, for its disk may be slow. Anything else (a pipe, a terminal, a
socket) is read once the loop says that it is readable, so that no thread hangs in a read that nothing will
end, and a command that is told to stop stops.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import anyio.to_thread

if TYPE_CHECKING:
    from types import TracebackType

CHUNK_BYTES: Final = 262_144
STANDARD_INPUT: Final = "-"


class Input:
    """A file opened for reading in chunks.

    Args:
        name: A path, or `-` for standard input.

    Raises:
        OSError: It cannot be opened, is a directory, or the process was started without a standard input.
    """

    def __init__(self, name: str) -> None:
        self.is_standard = name == STANDARD_INPUT
        self.name = "standard input" if self.is_standard else name
        if self.is_standard and sys.stdin is None:  # it was closed when the process was started
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._fd = 0 if self.is_standard else os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        facts = os.fstat(self._fd)
        if stat.S_ISDIR(facts.st_mode):
            self.close()
            raise IsADirectoryError(21, "it is a directory", name)
        self._is_regular = stat.S_ISREG(facts.st_mode)
        self.size_bytes = facts.st_size if self._is_regular else None
        """Of a regular file, else `None`."""
        self.read_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; standard input is not ours to close."""
        if not self.is_standard:
            os.close(self._fd)

    @property
    def is_read(self) -> bool:
        """A regular file was read to its end; of anything else only an empty chunk tells."""
        return self.size_bytes is not None and self.read_bytes >= self.size_bytes

    def is_same_file(self, path: str) -> bool:
        """Is `path` the file that is read here?"""
        try:
            return self._is_regular and os.path.samestat(os.fstat(self._fd), Path(path).stat())
        except OSError:
            return False

    async def read(self) -> bytes:
        """The next chunk, `b""` at the end. Raises `OSError`."""
        if self._is_regular or not await self._is_watchable():
            chunk = await anyio.to_thread.run_sync(os.read, self._fd, CHUNK_BYTES)
        else:
            chunk = os.read(self._fd, CHUNK_BYTES)
        self.read_bytes += len(chunk)
        return chunk

    async def _is_watchable(self) -> bool:
        """Wait until there is something to read; false if the loop cannot watch such a file."""
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        try:
            loop.add_reader(self._fd, _set, readable)
        except (OSError, NotImplementedError):  # /dev/null, for one
            return False
        try:
            await readable
        finally:
            loop.remove_reader(self._fd)
        return True


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
