"""The sidecar's outbox where a fleet shares it: its store made from the settings, and Redis waited for.

A Redis that is not there yet is no mistake of the configuration, as after a boot: it is waited for, and the
process is not ready meanwhile. One that refuses the password is. The password is in no error and no line of
the log. Used by `outbox_service` and the command `check`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from dispatcher.errors import ConfigError, OutboxError
from dispatcher.settings import MASK
from dispatcher.sidecar.redis_url import put_together

if TYPE_CHECKING:
    from dispatcher.outbox import RedisStore
    from dispatcher.sidecar.outbox_settings import OutboxSettings

AGAIN_SECONDS: Final = 0.5
"""Between looks whether Redis is there."""

logger: Final = logging.getLogger("dispatcher.sidecar")


def redis_store(settings: OutboxSettings) -> RedisStore:
    """The store, not open.

    Raises:
        ConfigError: The package `redis` is not installed, or knows no such URL.
    """
    from dispatcher.outbox import RedisStore

    shown = settings.file or ""
    try:
        return RedisStore(
            put_together(shown, settings.password),
            name=settings.fleet,
            max_messages=settings.max_messages,
            max_bytes=settings.max_bytes,
            max_receipts=settings.max_receipts,
            keep_receipts=settings.keep_receipts,
            lease_seconds=settings.lease,
            wait_replicas=settings.wait_replicas,
        )
    except ConfigError as error:
        raise ConfigError("outbox.file", shown, f"wanted is {error.allowed}", problem=str(error)) from None


async def reached(store: RedisStore, settings: OutboxSettings, stop: asyncio.Event) -> bool:
    """Wait until Redis answers; false if the process is asked to end before.

    Raises:
        ConfigError: It refuses the user or the password, or what is asked.
    """
    said = ""
    while not stop.is_set():
        try:
            await knock(store, settings)
        except OutboxError as error:
            if str(error) != said:
                said = str(error)
                logger.warning("outbox %s: %s; it is waited for", settings.file, said)
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS):
                    await stop.wait()
        else:
            return True
    return False


async def knock(store: RedisStore, settings: OutboxSettings) -> None:
    """Ask Redis whether it is there.

    Raises:
        ConfigError: It refuses the user or the password.
        OutboxError: It is not there, or not yet.
    """
    from dispatcher.outbox.redis_link import DeniedError

    try:
        await store.knock()
    except DeniedError as error:
        where = f"the password for {settings.file}, in outbox.password_file, outbox.password or the URL"
        raise ConfigError("outbox.password", MASK, f"wanted is {where}", problem=str(error)) from None


async def look(settings: OutboxSettings) -> str:
    """Ask once, for `check`: empty if Redis is there and lets us in, else why not."""
    try:
        store = redis_store(settings)
        try:
            await knock(store, settings)
        finally:
            await store.abort()
    except (ConfigError, OutboxError) as error:
        return str(error)
    return ""
