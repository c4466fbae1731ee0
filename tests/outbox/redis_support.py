"""A real Redis for tests: a process of its own, its socket in a directory, ended by its id; and stores there.

It writes its log of commands with every one, as those should who count on it. Where there is no redis-server
the tests skip, and say so. The kill programs use it as well.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import redis

from dispatcher.outbox.redis import RedisStore
from tests.outbox.conformance import PLENTY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatcher.outbox.store import Store

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
START_SECONDS = 20.0


class Server:
    """One redis-server."""

    def __init__(self, directory: Path, *options: str, fsync: str = "always") -> None:
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._words = [
            *(str(SERVER), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(directory)),
            *("--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--loglevel", "warning"),
            *("--logfile", str(directory / "redis.log"), *options),
        ]
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it (again, with what it had)."""
        self.process = subprocess.Popen(self._words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_at = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                assert self.process.poll() is None, "redis-server has ended"
                assert time.monotonic() < ends_at, "redis-server does not answer"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End it without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.client.connection_pool.disconnect()

    def keys(self, name: str) -> set[str]:
        """What stands there of an outbox, without the prefix of all keys."""
        found: list[Any] = list(self.client.scan_iter(f"{{dispatcher:{name}}}:*"))
        return {key.decode().partition("}:")[2] for key in found}

    def end_leases(self, name: str) -> None:
        """What time would do to the leases and memberships of an outbox."""
        for key in self.client.scan_iter(f"{{dispatcher:{name}}}:lease:*"):
            self.client.delete(key)
        self.client.delete(f"{{dispatcher:{name}}}:members")


@contextmanager
def running(directory: Path, *options: str, fsync: str = "always") -> Iterator[Server]:
    """A server for a while; skips where there is none."""
    if SERVER is None:
        pytest.skip("no redis-server here; Debian has it in the package redis-server")
    server = Server(directory, *options, fsync=fsync)
    try:
        yield server
    finally:
        server.kill()
        server.client.close()


class OrderlyStore(RedisStore):
    """One whose runs can be repeated: it always begins at the same shard."""

    def _first_turn(self) -> int:
        return 0


class RedisPlace:
    """An outbox of its own in a server; a crash leaves it as its leases' end would."""

    is_durable = True
    numbers = count()

    def __init__(self, server: Server, **settings: Any) -> None:
        self.server = server
        self.name = f"place-{next(self.numbers)}"
        self.settings = settings

    def make(self, *, max_messages: int = 1000, max_bytes: int = PLENTY) -> RedisStore:
        return OrderlyStore(
            self.server.url, name=self.name, max_messages=max_messages, max_bytes=max_bytes, **self.settings
        )

    async def crash(self, store: Store) -> None:
        assert isinstance(store, RedisStore)
        await store.abort()
        self.server.end_leases(self.name)
