"""Listening sockets: TCP, a Unix socket, or those the service manager handed over; bound first, served later.

A `Listener` binds everything before anything is served, so that a port that is taken ends the start before a
message was admitted. Who answers a connection is asked of it at that moment: a reload puts another one there.
Knows nothing of HTTP. Used by `daemon`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatcher.errors import ConfigError
from dispatcher.sidecar.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BACKLOG: Final = 1_024
PROBE_SECONDS: Final = 1.0
"""How long someone behind a Unix socket may take to answer that it is in use."""


class Listener:
    """The sockets of one door.

    Args:
        name: For errors: the section's names are `serve.host` and `serve.port`, or with a prefix.
        answer: Makes the protocol of each new connection; may be replaced.
    """

    def __init__(self, name: str, answer: Callable[[], asyncio.BaseProtocol]) -> None:
        self.name = name
        self.answer = answer
        self.addresses: list[str] = []
        """As URLs, or `unix:PATH`."""
        self._servers: list[asyncio.AbstractServer] = []
        self._handed_over: list[asyncio.AbstractServer] = []
        self._files: list[tuple[str, int, int]] = []

    def __repr__(self) -> str:
        return f"<Listener {self.name} {' '.join(self.addresses)}>"

    async def bind_tcp(self, host: str, port: int, prefix: str = "serve.") -> None:
        """Take a port; `prefix` is that of its settings' names. Raises `ConfigError`."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                self._make, host, port, backlog=BACKLOG, start_serving=False, reuse_address=True
            )
        except OSError as error:
            raise _not_bound(prefix, host, port, error) from None
        self._servers.append(server)
        self.addresses += dict.fromkeys(_address(one) for one in server.sockets)

    async def bind_unix(self, path: str) -> None:
        """Take a path, also one that a dead process left behind. Raises `ConfigError`."""
        one, facts = await asyncio.to_thread(_bound_unix, path)
        self._files.append((path, facts.st_dev, facts.st_ino))
        self._servers.append(await _unix_server(self._make, one))
        self.addresses.append(f"unix:{path}")

    async def adopt(self, sockets: Sequence[socket.socket], *, only_here: bool) -> None:
        """Serve sockets that were handed over.

        Raises:
            ConfigError: `only_here`, and other machines reach one of them.
        """
        loop = asyncio.get_running_loop()
        for one in sockets:
            address = _address(one)
            if one.family == socket.AF_UNIX:
                server = await _unix_server(self._make, one)
            elif only_here and not is_loopback(one.getsockname()[0]):
                problem = f"'none' would let everyone who reaches {address} publish"
                raise ConfigError("serve.authentication", "none", "allowed is `token`", problem=problem)
            else:
                server = await loop.create_server(self._make, sock=one, backlog=BACKLOG, start_serving=False)
            self._servers.append(server)
            self._handed_over.append(server)
            self.addresses.append(address)

    async def serve(self) -> None:
        """Accept connections from now on."""
        for server in self._servers:
            await server.start_serving()

    def leave_to_successor(self) -> None:
        """Accept nothing more on sockets that outlive us: what connects now waits for the next process."""
        for server in self._handed_over:
            server.close()
            self._servers.remove(server)
        self._handed_over.clear()

    def close(self) -> None:
        """Accept nothing more; connections that are open stay so."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._handed_over.clear()
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the Unix sockets that are still ours; synchronous: also when there is no time for more."""
        for path, device, inode in self._files:
            with suppress(OSError):
                facts = Path(path).stat()
                if (facts.st_dev, facts.st_ino) == (device, inode):
                    Path(path).unlink()
        self._files.clear()

    def _make(self) -> asyncio.BaseProtocol:
        return self.answer()


async def _unix_server(
    make: Callable[[], asyncio.BaseProtocol], one: socket.socket
) -> asyncio.AbstractServer:
    """A server on a bound Unix socket, which never removes its file: it may be the service manager's."""
    create: Any = asyncio.get_running_loop().create_unix_server
    words: dict[str, Any] = {"sock": one, "backlog": BACKLOG, "start_serving": False}
    try:
        server = await create(make, **words, cleanup_socket=False)
    except TypeError:  # before Python 3.13 the file is left alone anyway
        server = await create(make, **words)
    return server  # type: ignore[no-any-return]


def _bound_unix(path: str) -> tuple[socket.socket, os.stat_result]:
    """A socket bound to a path, and what the file is. Blocks for a moment if there is another one."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    one.setblocking(False)
    try:
        _clear_way(path)
        one.bind(path)
        return one, Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        one.close()
        problem = f"{path!r} cannot be listened on: {getattr(error, 'strerror', None) or error}"
        wanted = "wanted is a path in a folder that is there, of at most 107 bytes"
        raise ConfigError("serve.socket", path, wanted, problem=problem) from None
    except ConfigError:
        one.close()
        raise


def _clear_way(path: str) -> None:
    """Remove a socket that nobody listens on any more.

    Raises:
        ConfigError: Someone does, or it is no socket.
    """
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("serve.socket", path, "wanted is a path of its own", problem=f"{path!r} is a file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PROBE_SECONDS)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except TimeoutError:  # its backlog is full: it is very much in use
            pass
    problem = f"another process listens on {path!r}"
    raise ConfigError("serve.socket", path, "wanted is a path of its own", problem=problem)


def _not_bound(prefix: str, host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        problem = f"{host}:{port} is taken"
        return ConfigError(f"{prefix}port", port, "use another, or 0 for a free one", problem=problem)
    if error.errno in (errno.EACCES, errno.EPERM):
        problem = f"{host}:{port} may not be listened on by this user"
        return ConfigError(f"{prefix}port", port, "use one above 1023", problem=problem)
    why = error.strerror or os.strerror(error.errno or 0)
    problem = f"cannot listen on {host}:{port}: {why}"
    return ConfigError(f"{prefix}host", host, "wanted is an address of this machine", problem=problem)


def _address(one: Any) -> str:
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        return f"unix:{text.replace(chr(0), '@')}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"
