"""Counts, from what went over the wire, the messages whose answer was lost.

Stands between the dispatcher and its transport, alters nothing, and judges answers by the service's
documentation and not by the library's table: with deduplication off, exactly these messages must be reported
as unknown. Made by `demo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from dispatcher.core.batch import Failure, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.transport import Transport

SAYS_NOTHING: Final = frozenset({408, 500, 502, 504})
"""Statuses after which the messages may have been accepted; and 503, unless it says when to come again."""


class Witness:
    """A transport that watches another one."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.lost = 0
        """Messages of requests that had no answer about them, each as often as that happened."""

    async def start(self) -> None:
        """Open what is needed."""
        await self._transport.start()

    async def post_batch(self, body: bytes, *, timeout: float) -> Reply | Failure:
        """Pass it on, and count its messages if their answer is lost."""
        answer = await self._transport.post_batch(body, timeout=timeout)
        number = len(orjson.loads(body))
        if is_lost(answer, lambda entries: fits_batch(entries, number)):
            self.lost += number
        return answer

    async def post_single(
        self, target: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> Reply | Failure:
        """The same for one message."""
        answer = await self._transport.post_single(target, headers, body, timeout=timeout)
        self.lost += is_lost(answer, lambda entry: fits_single(entry, target))
        return answer

    def set_token(self, token: str) -> None:
        """Use another token from the next request on."""
        self._transport.set_token(token)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


def is_lost(answer: Reply | Failure, fits: Callable[[object], bool]) -> bool:
    """Whether this answer leaves the request's messages unknown; `fits` judges the value of a 2xx reply."""
    if isinstance(answer, Failure):
        return answer.certainty == "unknown"
    if answer.status == 503:
        return "retry-after" not in answer.headers
    if not 200 <= answer.status < 300:
        return answer.status in SAYS_NOTHING
    try:
        return not fits(orjson.loads(answer.body))
    except orjson.JSONDecodeError:
        return True


def fits_batch(entries: object, number: int) -> bool:
    """An entry for each message; a single one may come unwrapped."""
    if isinstance(entries, dict):
        return number == 1
    return isinstance(entries, list) and len(entries) == number


def fits_single(entry: object, target: str) -> bool:
    """An object; only a URL group, whose name has no scheme, is answered with an array."""
    return isinstance(entry, dict) or (isinstance(entry, list) and "://" not in target)
