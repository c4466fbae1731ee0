"""What no batch can carry leaves alone, as the request that its caller made: here it is made ready for that.

Pure. The target keeps every byte but the caller's credential; header lines keep their order and repeats, less
what belongs to the caller's connection. A message of a JSON batch that has to go alone gets the request that
a single publish of it would have been. Called by `dialect`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote, unquote

from dispatcher.checks import CONTENT_BASED_DEDUPLICATION, DEDUPLICATION_ID, check_header, says_true
from dispatcher.core.batch import SingleRequest
from dispatcher.core.wire import AloneMessage, single_target
from dispatcher.errors import MessageInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Reason = Literal["query", "header_forward", "repeated_header", "not_text", "too_large"]
RawLine = tuple[bytes, bytes]
"""A header line as it came."""
TextLine = tuple[str, str]

TOKEN_KEY: Final = "qstash_token"  # noqa: S105 - the name of a query's key
SERVICE_PREFIX: Final = "upstash-"
FORWARD_ALL: Final = "upstash-header-forward"
CLIMBS: Final = "destination: its `..` would lead out of the path of a message that has to be sent alone"
_SLASHES: Final = re.compile(r"[/\\]")
_ID: Final = DEDUPLICATION_ID.lower()
_CONTENT_BASED: Final = CONTENT_BASED_DEDUPLICATION.lower()
_VISIBLE: Final = "".join(chr(code) for code in range(0x21, 0x7F))
NOT_PASSED_ON: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("authorization", "proxy-authorization", "host", "content-length", "expect", "accept-encoding"),
        "prefer",
    }
)
"""Headers of the caller's connection, and its credential; the encoding of the reply is ours to choose."""


class Alone(AloneMessage, kw_only=True, gc=False, eq=False):
    """A message that is sent alone, and why."""

    reason: Reason


def readable(raw: bytes) -> str:
    """Text of a head; bytes that are not UTF-8 are taken for Latin-1."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def service_keys(query: str) -> Iterator[TextLine]:
    """Of a query, what speaks to the service and not to the destination: keys in lower case, and values."""
    for part in query.split("&"):
        name = _key_of(part)
        if name == TOKEN_KEY or name.startswith(SERVICE_PREFIX):
            yield name, unquote(part.partition("=")[2])


def speaks_to_service(query: str) -> bool:
    """Whether the service would take something of this query for its own."""
    return next(service_keys(query), None) is not None


def without_token(target: str) -> str:
    """The target without the caller's credential, every other byte as it was."""
    path, mark, query = target.partition("?")
    parts = query.split("&")
    kept = [part for part in parts if _key_of(part) != TOKEN_KEY]
    if not mark or len(kept) == len(parts):
        return target
    return f"{path}?{'&'.join(kept)}" if kept else path


def from_request(
    reason: Reason, target: str, lines: Sequence[RawLine], body: bytes, destination: str, queue: str | None
) -> Alone:
    """A caller's request as the one that we make.

    Raises:
        MessageInvalid: Its path may stand for another one.
    """
    texts = [(readable(name), readable(value)) for name, value in lines]
    nominated = {
        part.strip().lower()
        for name, value in texts
        if name.lower() == "connection"
        for part in value.split(",")
    }
    passed = [line for line in texts if line[0].lower() not in NOT_PASSED_ON | nominated]
    keys = dict(service_keys(target.partition("?")[2]))
    has_own_id = bool(keys.get(_ID)) or says_true(keys.get(_CONTENT_BASED, ""))
    return _alone(reason, _ascii(without_token(target)), passed, body, destination, queue, has_own_id)


def from_item(
    reason: Reason, lines: Sequence[TextLine], text: str | None, destination: str, queue: str | None
) -> Alone:
    """A message of a JSON batch as a request of its own.

    Raises:
        MessageInvalid: One of its headers cannot stand in a head, or its path may stand for another one.
    """
    for name, value in lines:
        check_header(name, value)
    target = single_target(destination, queue)
    return _alone(reason, target, lines, (text or "").encode(), destination, queue, has_own_id=False)


def _alone(
    reason: Reason,
    target: str,
    lines: Sequence[TextLine],
    body: bytes,
    destination: str,
    queue: str | None,
    has_own_id: bool,
) -> Alone:
    """With the one id that the lines bring taken out of them: it is put back when the message is encoded."""
    if _climbs(target):
        raise MessageInvalid(CLIMBS)
    ids = [value for value in _values(lines, _ID) if value]
    if len(ids) <= 1:
        lines = [line for line in lines if line[0].lower() != _ID]
    return Alone(
        destination,
        body,
        queue=queue,
        deduplication_id=ids[0] if len(ids) == 1 else None,
        request=SingleRequest(target, tuple(lines)),
        is_idempotent=has_own_id or len(ids) > 1 or any(map(says_true, _values(lines, _CONTENT_BASED))),
        reason=reason,
    )


def _climbs(target: str) -> bool:
    """Whether `..` would lead out of `/v2/publish/` or `/v2/enqueue/`, whatever a server takes for a `/`.

    The service reads the path raw; what stands before it may not, and then a message would be a request of
    another kind with the upstream's token.
    """
    path, depth = unquote(target.partition("?")[0]), -2
    if ".." not in path:
        return False
    for part in _SLASHES.split(path):
        name = part.partition(";")[0]
        depth += -1 if name == ".." else name not in ("", ".")
        if name == ".." and depth < 0:
            return True
    return False


def _values(lines: Iterable[TextLine], lower: str) -> list[str]:
    return [value for name, value in lines if name.lower() == lower]


def _key_of(part: str) -> str:
    """A query part's key; an escaped spelling of it would be read by the service all the same."""
    name = part.partition("=")[0]
    return (unquote(name) if "%" in name else name).lower()


def _ascii(target: str) -> str:
    """The target as the bytes that came; those beyond ASCII escaped, which means the same."""
    if target.isascii():
        return target
    return quote(target.encode("utf-8", "surrogateescape"), safe=_VISIBLE)
