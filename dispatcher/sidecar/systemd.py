"""The service manager's side: sockets handed over at start, and notes to it about what the process does.

Follows `sd_listen_fds(3)`, `sd_notify(3)` and `sd_watchdog_enabled(3)`; without their variables in the
environment it does nothing, so it needs no setting. A note never fails and never waits. Used by `daemon`.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

FIRST_DESCRIPTOR: Final = 3
"""Where the handed-over sockets begin, by the manager's convention."""
NAMES: Final = ("intake", "admin")
"""What a socket may be called (`FileDescriptorName=`); those without a name are taken in this order."""
_UNNAMED: Final = ("", "unknown", "stored")
_LISTEN: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_WATCHDOG: Final = ("WATCHDOG_PID", "WATCHDOG_USEC")


class Inherited(NamedTuple):
    """Listening sockets that were there before the process."""

    intake: list[socket.socket]
    admin: list[socket.socket]


def inherited_sockets(environment: MutableMapping[str, str]) -> Inherited:
    """The sockets handed over; their variables are taken out, so that no child takes them for its own.

    Raises:
        ConfigError: A socket has another name, or is none that a server listens on.
    """
    count, names = _announced(environment)
    found = Inherited([], [])
    for place in range(count):
        descriptor = FIRST_DESCRIPTOR + place
        name = names[place] if place < len(names) else ""
        if name in _UNNAMED or name.endswith(".socket"):  # without a name of its own it has its unit's
            name = NAMES[min(place, 1)]
        if name not in NAMES:
            problem = f"the name {name!r} is unknown"
            allowed = f"allowed are {' and '.join(NAMES)} (`FileDescriptorName=` of the socket's unit)"
            raise ConfigError("LISTEN_FDNAMES", name, allowed, problem=problem)
        found[NAMES.index(name)].append(_adopted(descriptor))
    return found


def _announced(environment: MutableMapping[str, str]) -> tuple[int, list[str]]:
    """How many descriptors are meant for this process, and their names."""
    pid, count, names = (environment.pop(name, "") for name in _LISTEN)
    if pid != str(os.getpid()) or not count:
        return 0, []
    if not count.isascii() or not count.isdigit():
        raise ConfigError("LISTEN_FDS", count, "wanted is a number of descriptors")
    return int(count), names.split(":") if names else []


def _adopted(descriptor: int) -> socket.socket:
    """The socket behind a descriptor, not to be inherited further."""
    try:
        os.set_inheritable(descriptor, False)
        one = socket.socket(fileno=descriptor)
        listens = one.type == socket.SOCK_STREAM and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        problem = f"descriptor {descriptor} is no socket: {error.strerror}"
        raise ConfigError("LISTEN_FDS", None, "wanted are listening sockets", problem=problem) from None
    if not listens:
        one.detach()
        problem = f"descriptor {descriptor} does not listen for connections"
        raise ConfigError(
            "LISTEN_FDS", None, "wanted are `ListenStream=` sockets with `Accept=no`", problem=problem
        )
    one.setblocking(False)
    return one


class Notifier:
    """Tells the service manager what the process does.

    Args:
        environment: `NOTIFY_SOCKET` says where to, `WATCHDOG_USEC` how often to be heard of.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog_seconds(environment)
        """How often to call `alive`; 0 for never."""
        self._socket: socket.socket | None = None
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._address = "\0" + address[1:] if address[0] == "@" else address

    def ready(self, status: str) -> None:
        """It serves."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It reads its configuration again; `ready` ends this."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self, status: str) -> None:
        """It takes nothing more."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """It is not stuck: without this note for `WATCHDOG_USEC` the manager ends it."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Nothing more is told."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        text = "\n".join(line.replace("\n", " ") for line in lines)
        with suppress(OSError):  # nobody listens, or its buffer is full: our work goes on without
            self._socket.sendto(text.encode(), self._address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Half of what the manager waits: one note may be late."""
    pid, text = (environment.get(name, "") for name in _WATCHDOG)
    if pid not in ("", str(os.getpid())) or not (text.isascii() and text.isdigit()):
        return 0.0
    return int(text) / 2_000_000
