"""Cancelling many messages at once, for callers with tokens of their own: they have to name each of them.

To the service a request without names means every message of the account, and so does an empty list; filters
mean whatever matches, whoever published it. So of the two ways to name messages, a JSON body and the query,
one is taken, understood completely, and what was understood is written anew: no reading of it that differs
from ours can reach further. Called by `proxy`, and by `kept_messages` for what of them an outbox has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from dispatcher.sidecar.refusals import Refused

if TYPE_CHECKING:
    from dispatcher.sidecar.server import Request

MESSAGES: Final = "/v2/messages"
BODY_BYTES_MAX: Final = 262_144
"""Some 3,500 ids. It is collected before it is sent."""
ID: Final = "[A-Za-z0-9._~-]+"
"""A message's id: without escapes, and without the comma that would make two of it."""
_QUERY: Final = re.compile(f"messageIds={ID}(?:(?:,|&messageIds=){ID})*")
MUST_NAME: Final = (
    "with this token only messages that are named can be cancelled: send a JSON body with nothing but a list "
    "`messageIds` that is not empty, or `messageIds` alone in the query; everything, and filters, need the "
    "upstream's own token"
)


class _Named(Struct, forbid_unknown_fields=True, rename={"message_ids": "messageIds"}):
    message_ids: Annotated[list[Annotated[str, Meta(pattern=rf"\A{ID}\Z")]], Meta(min_length=1)]


class Cancel(NamedTuple):
    """A request that cancels these messages and no others."""

    target: str
    body: bytes | None
    """JSON, if the target does not name them."""


def is_bulk(target: str) -> bool:
    """Whether a raw target stands for many messages."""
    return target.partition("?")[0] == MESSAGES


async def read(request: Request, target: str) -> Cancel:
    """What a request cancels; its target is given without the caller's token.

    Raises:
        Refused: It does not name messages, or not only.
    """
    return understood(Cancel(target, await body_of(request)))


def understood(cancel: Cancel) -> Cancel:
    """The same, of a request that may be anything. Raises as `read` does."""
    ids = named(cancel)
    if ids is None:
        raise Refused(403, MUST_NAME)
    return naming(ids) if cancel.body else Cancel(cancel.target, None)


def named(cancel: Cancel) -> list[str] | None:
    """The ids of a request that does nothing but name messages; `None` of another."""
    query = cancel.target.partition("?")[2]
    if query:
        if cancel.body or _QUERY.fullmatch(query) is None:
            return None
        return query.removeprefix("messageIds=").replace("&messageIds=", ",").split(",")
    try:
        return _decode(cancel.body or b"").message_ids
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def naming(ids: list[str]) -> Cancel:
    """A request that cancels these."""
    return Cancel(MESSAGES, msgspec.json.encode(_Named(ids)))


async def body_of(request: Request) -> bytes:
    """The whole of a list of messages.

    Raises:
        Refused: It is longer than such a list may be, or broken.
    """
    parts, size = list[bytes](), 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise Refused(413, f"a list of messages to cancel may have {BODY_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)


_decode: Final = msgspec.json.Decoder(_Named).decode
