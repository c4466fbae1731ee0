"""One connection to Redis for one role: scripts and commands in, answers out, one exchange at a time.

An exchange that has begun is never cancelled: it goes on in a task of its own, whoever waits for it. One that
fails or lasts too long ends the connection, so that no answer is ever taken for another's; the next exchange
makes a new one. Nothing is repeated here but a script that the server did not know, which had done nothing.
No password is in any error: what is told of the place is host and port. Used by the other `redis_*`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from dispatcher.errors import ConfigError, OutboxError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from dispatcher.outbox.redis_lua import Script

Word = str | bytes | int | float
INSTALL: Final = "RedisStore needs the package redis: pip install 'qstash-dispatcher[redis]'"


class LinkLostError(OutboxError):
    """The connection broke or was not there: what was asked may have been done, or not."""


class DeniedError(LinkLostError):
    """The server refuses the user or the password."""


class UnfitError(OutboxError):
    """What was given is nothing that can be sent; nothing was."""


class Place:
    """Where Redis is, and how it is spoken to.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`.
        timeout: Seconds for one exchange, and for connecting.

    Raises:
        ConfigError: The URL cannot be read, or the package is not installed.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            from redis.asyncio import ConnectionPool
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigError("url", "", "a Redis that can be spoken to", problem=INSTALL) from None
        try:
            self._pool: ConnectionPool = ConnectionPool.from_url(
                url,
                protocol=2,
                socket_timeout=None,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
            )
        except (ValueError, TypeError):  # its words may hold the password
            wanted = "redis://[USER[:PASSWORD]@]HOST[:PORT][/DB], rediss://… or unix://PATH"
            raise ConfigError("url", "(not shown)", wanted) from None
        self.timeout = timeout
        self.pack = _packer()
        """One command as it travels."""
        found = self._pool.connection_kwargs
        self.name: str = found.get("path") or f"{found.get('host', 'localhost')}:{found.get('port', 6379)}"
        """For errors; no user and no password."""

    def connection(self) -> AbstractConnection:
        """A new one, not connected."""
        made: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # it has no types
        return made


def _packer() -> Callable[[tuple[Word, ...]], bytes]:
    """The one of hiredis is written in C; redis' own one is slower than the one below."""
    try:
        from hiredis import pack_command
    except ImportError:
        return as_sent
    return cast("Callable[[tuple[Word, ...]], bytes]", pack_command)  # its own types know one word only


def as_sent(words: tuple[Word, ...]) -> bytes:
    """One command as it travels."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        said = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(said), said))
    return b"".join(parts)


class Link:
    """One role's connection.

    Args:
        prefix: `{dispatcher:NAME}`, what every key begins with.
    """

    def __init__(self, place: Place, prefix: str) -> None:
        self.prefix = prefix
        self.commands = 0
        """Sent so far."""
        self.breaks = 0
        """How often a connection was lost; whoever keeps what Redis said looks whether it has changed."""
        self.timeout = place.timeout
        self._place = place
        self._connection: AbstractConnection | None = None
        self._is_closed = False
        self._turn = asyncio.Lock()

    async def run(self, script: Script, *words: Word) -> Any:
        """Run one script.

        Raises:
            LinkLostError: It may have run, or not.
            StoreFull: Redis has no memory left for it; it has not run.
            OutboxError: The server refused it.
        """
        (answer,) = await self.run_all([(script, words)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run_all(self, calls: Sequence[tuple[Script, Sequence[Word]]]) -> list[Any]:
        """Run scripts in one exchange; in the place of one that the server refused, its error."""
        answers = await self.ask_all(
            [("EVALSHA", script.digest, 1, self.prefix, *words) for script, words in calls]
        )
        for at, (script, words) in enumerate(calls):
            if isinstance(answers[at], _NoScriptError):
                asked = ("EVAL", script.text, 1, self.prefix, *words)
                (answers[at],) = await self.ask_all([asked])
        return answers

    async def ask(self, *words: Word) -> Any:
        """One command; errors as of `run`."""
        (answer,) = await self.ask_all([words])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask_all(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Commands in one exchange. In the place of one that the server refused, its error."""
        exchange = asyncio.ensure_future(self._exchange(commands))
        exchange.add_done_callback(_heard)  # whoever waited may have gone
        return await asyncio.shield(exchange)

    async def _exchange(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        packed = self._packed(commands)
        async with self._turn:
            try:
                async with asyncio.timeout(self._place.timeout):
                    connection = await self.connected()
                    self.commands += len(commands)
                    await connection.send_packed_command(packed, check_health=False)
                    answers = [await _answer(connection) for _ in commands]
            except BaseException as error:
                await self.drop()
                raise self._lost(error) from None
        for answer in answers:
            if isinstance(answer, _StaleError):
                await self.drop()  # a replica: whoever is primary now is found by connecting anew
        return answers

    def _packed(self, commands: Sequence[Sequence[Word]]) -> list[bytes]:
        try:
            return [self._place.pack(tuple(words)) for words in commands]
        except (UnicodeError, TypeError, ValueError) as error:
            problem = type(error).__name__
            raise UnfitError(
                f"this cannot be kept or asked ({problem}): ids and queues are text, data is bytes"
            ) from None

    def _lost(self, error: BaseException) -> BaseException:
        from redis.exceptions import RedisError

        if isinstance(error, OutboxError):
            return error
        if isinstance(error, TimeoutError):
            return LinkLostError(f"redis at {self._place.name}: no answer in {self._place.timeout:g} seconds")
        if isinstance(error, RedisError) and _is_denial(str(error)):
            return DeniedError(f"redis at {self._place.name}: it refuses the user or the password")
        if isinstance(error, OSError | EOFError | RedisError):
            return LinkLostError(f"redis at {self._place.name}: {_reason(error)}")
        return error

    async def connected(self) -> AbstractConnection:
        """The connection, made if there is none."""
        if self._is_closed:
            raise LinkLostError(f"redis at {self._place.name}: the store is closed")
        if self._connection is None:
            connection = self._place.connection()
            self._connection = connection
            await connection.connect()  # type: ignore[no-untyped-call]  # it has no types
        return self._connection

    async def drop(self) -> None:
        """End the connection, whatever was under way; the next exchange makes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.breaks += 1
            with suppress(Exception):  # it is broken already
                await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """End it for good, once what is under way has been answered."""
        self._is_closed = True
        async with self._turn:
            await self.drop()


class _NoScriptError(OutboxError):
    """The server does not know the script."""


class _StaleError(OutboxError):
    """The server takes no writes (any more)."""


def _heard(exchange: asyncio.Future[Any]) -> None:
    if not exchange.cancelled():
        exchange.exception()


async def _answer(connection: AbstractConnection) -> Any:
    """One answer; a refusal is returned as an error of ours."""
    from redis.exceptions import ResponseError

    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return _refusal(type(error).__name__, str(error))


def _refusal(kind: str, words: str) -> OutboxError:
    if kind == "NoScriptError":
        return _NoScriptError(words)
    if kind == "ReadOnlyError" or words.startswith(("MASTERDOWN", "READONLY")):
        return _StaleError(f"redis: {words}")
    if kind == "OutOfMemoryError" or words.startswith("OOM") or "-OOM" in words:
        return StoreFull("redis has no memory left (maxmemory); it goes on when there is some")
    return OutboxError(f"redis: {words}")


def _is_denial(words: str) -> bool:
    """By the words: while connecting the client makes its own error of the server's."""
    return "password" in words or "Authentication" in words


def _reason(error: BaseException) -> str:
    return "the connection is refused or broken" if isinstance(error, OSError | EOFError) else str(error)
