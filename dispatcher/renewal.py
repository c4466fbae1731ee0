"""Asks a provider for a token while the service refuses the one in use. Used by `pump` only.

A provider's exception may hold the secret in its text, so only its kind is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dispatcher.errors import ConfigError
from dispatcher.repeats import Repeats

if TYPE_CHECKING:
    from dispatcher.config import Config

logger: Final = logging.getLogger("dispatcher")

TokenProvider = Callable[[], str | Awaitable[str]]
"""Gives the token to use: a function, or a coroutine function."""
SECONDS: Final = 5.0
"""Between two calls of a provider, while the token is refused."""
FAILURES: Final = "failures of the token provider"


class Renewal:
    """One dispatcher's search for a token that is not refused.

    Args:
        is_refused: Whether the service refuses the token in use.
        set_token: Called with each token that is another one.
    """

    def __init__(
        self,
        provider: TokenProvider,
        config: Config,
        name: str,
        *,
        is_refused: Callable[[], bool],
        set_token: Callable[[str], None],
    ) -> None:
        self._provider = provider
        self._config = config
        self._repeats = Repeats(logger, f"dispatcher {name}: ")
        self._is_refused = is_refused
        self._set_token = set_token
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Ask now, and again every few seconds, unless that is going on already."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._ask())

    def cancel(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self) -> None:
        while self._is_refused():
            token = await self._given()
            if token is not None and token != self._config.token:
                self._config = replace(self._config, token=token)
                self._set_token(token)
            await asyncio.sleep(SECONDS)

    async def _given(self) -> str | None:
        """What the provider gives, if it is a usable token."""
        try:
            answer = self._provider()
            given = answer if isinstance(answer, str) else await answer
            token = replace(self._config, token=given.strip()).token
            self._repeats.ended(
                FAILURES, "the token provider gives a token", asyncio.get_running_loop().time()
            )
            return token
        except ConfigError as error:  # its text never holds a token
            self._failed(f"the token provider's token: {error}")
        except Exception as error:
            self._failed(f"the token provider failed with {type(error).__name__}")
        return None

    def _failed(self, words: str) -> None:
        """Tell it, in few lines: it is asked again and again."""
        now = asyncio.get_running_loop().time()
        self._repeats.failed(FAILURES, words, now, level=logging.ERROR, is_lasting=True)
