"""Who may ask: what a caller presents is compared with the tokens it may be, in constant time.

A caller presents a token as the service's own clients do, `Authorization: Bearer …` or `?qstash_token=…`. It
goes no further than here: `proxy` and the dispatcher present the upstream's own. Knows no socket; `app` asks
it for every request that is not ours. The server that stands before it is made here too.
"""

from __future__ import annotations

import enum
import hmac
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs

from dispatcher.sidecar.server import Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from aiohttp import web
    from multidict import CIMultiDictProxy

    from dispatcher.sidecar.server import Counters, Request
    from dispatcher.sidecar.settings import ServeSettings

TOKEN_KEY: Final = "qstash_token"  # noqa: S105 - the key's name
_SCHEME: Final = "bearer "
_OF_BROWSERS: Final = (hdrs.ORIGIN, "Sec-Fetch-Site")
"""Headers that pages cannot leave out of the requests they make, and no SDK sends."""


class Caller(enum.Enum):
    """What a request's credential makes of its sender."""

    NONE = "none"
    """Nobody we know."""
    CALLER = "caller"
    """One of ours."""
    OWNER = "owner"
    """It presented the upstream's own token."""


class Guard:
    """Tells callers apart.

    Args:
        tokens: What callers may present.
        upstream_token: The upstream's own; whoever presents it may do what it allows.
        authentication: `token`; or `none`, then everyone is a caller who is no page in a browser: one on
            this machine reaches what only this machine reaches, for any site that it shows.
    """

    def __init__(self, tokens: Sequence[str], upstream_token: str, authentication: str = "token") -> None:
        self._is_open = authentication == "none"
        self._stranger = Caller.CALLER if self._is_open else Caller.NONE
        self.set_tokens(tokens, upstream_token)

    def __repr__(self) -> str:
        return f"<Guard {len(self._tokens)} tokens, strangers are {self._stranger.value}>"

    def set_tokens(self, tokens: Sequence[str], upstream_token: str) -> None:
        """Accept these from now on, and those before no more."""
        self._owner = upstream_token.encode()
        self._tokens = tuple(one for token in tokens if (one := token.encode()) != self._owner)

    def check(self, target: str, headers: CIMultiDictProxy[str]) -> Caller:
        """Who sent a request, by its raw target and its headers."""
        found = self._stranger
        if self._is_open and any(name in headers for name in _OF_BROWSERS):
            found = Caller.NONE
        header = headers.get(hdrs.AUTHORIZATION)
        if header is not None and header[:7].lower() == _SCHEME:
            found = self._best(found, header[7:].strip(" ").encode("utf-8", "surrogateescape"))
        if "?" in target:
            for value in _presented(target):
                found = self._best(found, value)
        return found

    def _best(self, found: Caller, value: bytes) -> Caller:
        """As many comparisons for any value, each as long for any value of a length."""
        is_owner = hmac.compare_digest(value, self._owner)
        is_caller = False
        for token in self._tokens:
            is_caller |= hmac.compare_digest(value, token)
        if is_owner:
            return Caller.OWNER
        return Caller.CALLER if is_caller and found is Caller.NONE else found


def is_token_key(part: str) -> bool:
    """Whether a part of a query, `key=value`, presents a token; the key may be escaped."""
    key = part.partition("=")[0]
    if "%" in key:
        key = unquote_to_bytes(key).decode("latin-1")
    return key.lower() == TOKEN_KEY


def _presented(target: str) -> Iterator[bytes]:
    for part in target.partition("?")[2].split("&"):
        if is_token_key(part):
            yield unquote_to_bytes(part.partition("=")[2])


def make_server(
    handler: Callable[[Request], Awaitable[web.StreamResponse]], serve: ServeSettings, counters: Counters
) -> Server:
    """A server for the intake, inside the running loop: hand it to `create_server` or `create_unix_server`.

    Its requests are `server.Request`: `content` and `read()` raise `refusals.Refused` for a body that is too
    long, too slow or broken, and an unhandled one is answered. A handler that streams sets
    `request.is_stream`. `shutdown(timeout)` ends it.
    """
    return Server(handler, serve, counters)
