"""One process for one file: an operating system's lock beside it, which says who holds it and where to ask.

Taken before the file is touched, and let go of after it has been closed; a process that dies lets go by
dying. The lock stands on a file of its own, `FILE.lock`: SQLite's own locks are on the file, and closing
any other descriptor of that would give them up. Used by the store's thread, and by commands that look for
the holder.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dispatcher.errors import OutboxError
from dispatcher.identity import unwatch, watch

LOCK_BYTES_MAX: Final = 4096
TRIES: Final = 5
TRY_PAUSE: Final = 0.02
"""Seconds."""


class Holder(Struct, frozen=True):
    """Who has a store's file open. Whoever may read the lock may read the file, and so may have the key."""

    pid: int
    admin: str | None = None
    """URL of its admin listener, where it has one."""
    started: float = 0.0
    """Unix seconds."""
    key: str | None = None
    """What the admin listener wants to see before it gives bodies away."""

    def __repr__(self) -> str:
        return f"Holder(pid={self.pid}, admin={self.admin!r}, started={self.started})"


class FileLock:
    """The lock of one file, held from construction to `release`.

    Raises:
        OutboxError: Another process, or another store of this one, has it; or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = lock_path(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutboxError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self._acquire(path)
        except BaseException:
            os.close(self._fd)
            raise
        self.has_been_held = _read(self._fd) is not None
        """Whether a store has been kept under this lock before."""
        watch(self)

    def _acquire(self, path: Path) -> None:
        for remaining in reversed(range(TRIES)):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not remaining:
                    raise OutboxError(_taken(path, _read(self._fd))) from None
                time.sleep(TRY_PAUSE)  # a command may just be looking who holds it
            except OSError as error:
                raise OutboxError(f"{self.path}: cannot be locked: {error.strerror}") from None

    def announce(self, admin: str | None = None, key: str | None = None) -> None:
        """Say who holds it, where they can be asked, and with which key."""
        data = msgspec.json.encode(Holder(os.getpid(), admin, time.time(), key)) + b"\n"
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))

    def release(self) -> None:
        """Let go of it."""
        unwatch(self)
        os.close(self._fd)

    def after_fork(self) -> None:
        """In a forked child: it would hold the lock for as long as it lives (called by `identity`)."""
        os.close(self._fd)


def lock_path(path: Path) -> Path:
    """The lock's own file."""
    return path.with_name(f"{path.name}.lock")


def holder_of(path: str | os.PathLike[str]) -> Holder | None:
    """Who has the store at `path` open now; `None` if nobody has."""
    try:
        fd = os.open(lock_path(Path(path)), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(fd) or Holder(0)
    finally:
        os.close(fd)
    return None


def _read(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, LOCK_BYTES_MAX, 0), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None


def _taken(path: Path, holder: Holder | None) -> str:
    who = "another process" if holder is None else f"process {holder.pid}"
    if holder is not None and holder.pid == os.getpid():
        who = "this process already"
    cure = "one process at a time may: end it, or give each its own file"
    if holder is not None and holder.admin:
        cure = f"ask it at {holder.admin}, or end it first"
    return f"{path}: {who} has this outbox open; {cure}"
