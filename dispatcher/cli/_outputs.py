"""The files that `dispatcher send` writes: receipts and failures.

Opened, and so found to be writable, before anything is sent. What is written is with the operating system
when `write` returns: a process that is killed has lost no receipt that it had written.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

STANDARD_OUTPUT: Final = "-"


class Outputs:
    """Receipts and failures, each a path, `-` for standard output, or `None` for nowhere.

    Raises:
        OSError: One of them cannot be opened for writing; `filename` says which.
        ValueError: Both are the same file.
    """

    def __init__(self, receipts: str | None, failures: str | None) -> None:
        self._files: list[IO[bytes]] = []
        self._receipts = self._open(receipts)
        try:
            if receipts is not None and failures is not None and _is_same(receipts, failures):
                raise ValueError(f"receipts and failures are wanted in two files, not both in {failures}")
            self._failures = self._open(failures)
        except BaseException:
            self.close()
            raise

    @property
    def wants_receipts(self) -> bool:
        """Receipts are written somewhere."""
        return self._receipts is not None

    @property
    def wants_failures(self) -> bool:
        """Failures are written somewhere."""
        return self._failures is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both."""
        for file in self._files:
            with suppress(OSError):  # what could not be written has been told by `write`
                file.close()

    def write(self, receipts: bytes, failures: bytes) -> None:
        """Blocks until the operating system has them. Raises `OSError`."""
        for file, data in ((self._receipts, receipts), (self._failures, failures)):
            if file is not None and data:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]

    def _open(self, name: str | None) -> IO[bytes] | None:
        if name is None:
            return None
        if name == STANDARD_OUTPUT:
            if sys.stdout is None:  # it was closed when the process was started
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            file: IO[bytes] = os.fdopen(os.dup(1), "wb", buffering=0)
        else:
            file = open(name, "wb", buffering=0)  # noqa: SIM115, PTH123 - closed in `close`; `-` is no path
        self._files.append(file)
        return file


def _is_same(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return STANDARD_OUTPUT not in (one, other) and Path(one).samefile(other)
    except OSError:
        return False
