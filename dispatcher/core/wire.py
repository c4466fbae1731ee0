"""Messages to bytes: what an item of a batch looks like.

A message is encoded once, at admission; batches join these bytes and retries reuse them. What does not
change between messages (destination, queue, headers) is a cached prefix, so a message costs one
`orjson.dumps` of its body.

Facts: the service's batch endpoint, an item is `{"destination", "headers"?, "body"?, "queue"?}`; bytes that
are not UTF-8 cannot travel in JSON and leave alone, as the body of a publish or enqueue request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson
from msgspec import UNSET, Struct

from dispatcher.checks import (
    CONTENT_BASED_DEDUPLICATION,
    DEDUPLICATION_ID,
    check_deduplication_id,
    check_destination,
    check_header,
    check_queue,
    says_true,
)
from dispatcher.core.batch import SingleRequest
from dispatcher.errors import MessageInvalid, MessageTooLarge
from dispatcher.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.message import Message

BATCH_PATH: Final = "/v2/batch"
CACHED_PREFIXES: Final = 16_384
"""Distinct (destination, queue) pairs remembered for one `Options`; past it the cache starts anew."""
_ID_KEY: Final = b'"Upstash-Deduplication-Id":'
_RAW_TARGET_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F))


class Encoded(Struct, gc=False):
    """One message as it will travel."""

    data: bytes
    deduplication_id: str | None
    idempotent: bool
    owns_id: bool
    single: SingleRequest | None = None


class Prefix(Struct, gc=False):
    """What is the same for every message with this destination, queue and these headers."""

    plain: bytes
    """The item's JSON up to its body, with the deduplication id that headers or options brought, if any."""
    reopened: bytes
    """The same up to the value of an `Upstash-Deduplication-Id` that the message itself will carry."""
    headers: dict[str, str]
    """The item's headers without any deduplication id."""
    given_id: str | None
    """The deduplication id that headers or options brought."""
    is_content_deduplicated: bool
    draws_id: bool
    """A message without an id of its own gets one from us."""


class Encoder:
    """Validates and encodes messages; one for each dispatcher.

    Args:
        draw_id: Gives a fresh deduplication id at each call, of letters, digits and `-`.
        draws_ids: False with `deduplication = "off"`.
        max_message_bytes: Bound on a body, in bytes as the service counts it.
    """

    __slots__ = ("_cache", "_draw_id", "_draws_ids", "_max_message_bytes")

    def __init__(self, draw_id: Callable[[], str], *, draws_ids: bool, max_message_bytes: int) -> None:
        self._draw_id = draw_id
        self._draws_ids = draws_ids
        self._max_message_bytes = max_message_bytes
        self._cache: dict[object, object] = {}

    def encode(self, message: Message) -> Encoded:
        """The bytes of one message.

        Raises:
            MessageInvalid: It would be refused by the service, or spoil its batch.
            MessageTooLarge: Its body is above the configured bound.
        """
        text = message.body
        if type(text) is str and text and message.deduplication_id is None and message.json is UNSET:
            # What nearly every message is, in the fewest steps; `_encode_any` is for the rest.
            prefix = self._prefix(message)
            body = _quoted(text) if prefix.draws_id else None
            if body is not None and len(body) <= self._max_message_bytes:
                identity = self._draw_id()
                data = b"".join((prefix.reopened, b'"', identity.encode(), b'"},"body":', body, b"}"))
                return Encoded(data, identity, True, True)
        return self._encode_any(message)

    def _encode_any(self, message: Message) -> Encoded:
        prefix = self._prefix(message)
        identity, owns_id = message.deduplication_id, False
        if identity is not None:
            check_deduplication_id(identity)
        elif prefix.draws_id:
            identity, owns_id = self._draw_id(), True
        body = _text_of(message)
        if body is None:
            return self._encode_single(message, prefix, identity, owns_id)
        if len(body) > self._max_message_bytes:
            self._check_size(len(orjson.loads(body).encode()))
        if identity is None:
            identity, opening = prefix.given_id, prefix.plain
        else:
            opening = prefix.reopened + orjson.dumps(identity) + b"}"
        data = opening + b',"body":' + body + b"}" if body else opening + b"}"
        return Encoded(data, identity, identity is not None or prefix.is_content_deduplicated, owns_id)

    def _encode_single(
        self, message: Message, prefix: Prefix, identity: str | None, owns_id: bool
    ) -> Encoded:
        body = bytes(message.body)  # type: ignore[arg-type]  # not text: bytes that are not UTF-8
        self._check_size(len(body))
        _check_query(message.destination)
        headers = dict(prefix.headers)
        identity = identity or prefix.given_id
        if identity is not None:
            headers[DEDUPLICATION_ID] = identity
        destination = quote(message.destination, safe=_RAW_TARGET_SAFE)
        queue = quote(message.queue, safe="") if message.queue else None  # `?` would end the path
        target = f"/v2/enqueue/{queue}/{destination}" if queue else f"/v2/publish/{destination}"
        single = SingleRequest(target, headers)
        return Encoded(
            body, identity, identity is not None or prefix.is_content_deduplicated, owns_id, single
        )

    def _check_size(self, size: int) -> None:
        if size > self._max_message_bytes:
            raise MessageTooLarge(size, self._max_message_bytes)

    def _prefix(self, message: Message) -> Prefix:
        options = message.options
        if options is not None and not isinstance(options, Options):
            raise MessageInvalid(f"`options` is {type(options).__name__}; allowed is `Options(…)`")
        if message.headers is not None:
            return self._make_prefix(message)
        cache = self._cache if options is None else options.cache
        key: object = message.destination
        if message.queue is not None or message.json is not UNSET or options is not None:
            key = (key, message.queue, message.json is UNSET, self._draws_ids)
        try:
            found = cache.get(key)
        except TypeError:
            found = None  # an unhashable destination: `_make_prefix` says so
        if type(found) is Prefix:
            return found
        prefix = self._make_prefix(message)
        if len(cache) >= CACHED_PREFIXES:
            cache.clear()
        cache[key] = prefix
        return prefix

    def _make_prefix(self, message: Message) -> Prefix:
        check_destination(message.destination)
        if message.queue is not None and message.queue != "":
            check_queue(message.queue)
        headers = _merged_headers(message)
        _check_together(message, headers)
        given_id = _pop_header(headers, DEDUPLICATION_ID)
        content = says_true(_find_header(headers, CONTENT_BASED_DEDUPLICATION) or "")
        plain = headers if given_id is None else {**headers, DEDUPLICATION_ID: given_id}
        reopened = _opening(message, headers or {"": ""})[:-1]
        return Prefix(
            plain=_opening(message, plain),
            reopened=(reopened[: -len(b'"":""')] if not headers else reopened + b",") + _ID_KEY,
            headers=headers,
            given_id=given_id,
            is_content_deduplicated=content,
            draws_id=self._draws_ids and given_id is None and not content,
        )


def _quoted(text: str) -> bytes | None:
    try:
        return orjson.dumps(text)
    except (TypeError, orjson.JSONEncodeError):
        return None


def _text_of(message: Message) -> bytes | None:
    """The body as a JSON string, `b""` if there is none, `None` if it is bytes that are not text."""
    body = message.body
    if message.json is not UNSET:
        if body is not None:
            raise MessageInvalid("`body` and `json` are both given; a message has one body")
        try:
            return orjson.dumps(orjson.dumps(message.json).decode())
        except (TypeError, orjson.JSONEncodeError) as error:
            raise MessageInvalid(f"`json` cannot be written: {error}") from None
    if body is None:
        return b""
    if isinstance(body, str):
        if body == "":
            return b""
        try:
            return orjson.dumps(body)
        except (TypeError, orjson.JSONEncodeError):
            raise MessageInvalid("`body` holds a lone surrogate; a batch carries only Unicode text") from None
    if not isinstance(body, bytes | bytearray | memoryview):
        raise MessageInvalid(
            f"`body` is {type(body).__name__}; allowed are str and bytes, other values as `json=`"
        )
    if isinstance(body, memoryview):
        body = bytes(body)  # it need not be contiguous
    try:
        return orjson.dumps(str(body, "utf-8")) if len(body) else b""
    except UnicodeDecodeError:
        return None


def _check_query(destination: str) -> None:
    """In a request of its own the service would take these keys of the destination's query for its own."""
    query = destination.partition("#")[0].partition("?")[2]
    for part in query.split("&"):
        name = part.partition("=")[0].lower()
        if name == "qstash_token" or name.startswith("upstash-"):
            raise MessageInvalid(
                f"the destination's query has `{name}`, which the service keeps for itself where bytes that "
                "are not UTF-8 travel; send such a body as text (base64), or to another query"
            )


def _merged_headers(message: Message) -> dict[str, str]:
    headers = {} if message.options is None else dict(message.options.compiled)
    own: Mapping[str, str] = {} if message.headers is None else message.headers
    if not isinstance(own, Mapping):
        raise MessageInvalid(f"`headers` is {type(own).__name__}; allowed is a mapping of names to values")
    seen: set[str] = set()
    for name, value in own.items():
        check_header(name, value)
        folded = name.lower()
        if folded in seen:
            raise MessageInvalid(f"`{name}` is given twice in `headers`; names are case-insensitive")
        seen.add(folded)
        _pop_header(headers, name)
        headers[name] = value
    if message.json is not UNSET and _find_header(headers, "Content-Type") is None:
        headers["Content-Type"] = "application/json"
    return headers


def _check_together(message: Message, headers: dict[str, str]) -> None:
    if not message.queue:
        return
    for name in ("Upstash-Delay", "Upstash-Not-Before"):
        if _find_header(headers, name) is not None:
            raise MessageInvalid(
                f"`{name}` together with a queue is refused by the service; leave one of them out"
            )


def _find_header(headers: dict[str, str], name: str) -> str | None:
    folded = name.lower()
    return next((value for key, value in headers.items() if key.lower() == folded), None)


def _pop_header(headers: dict[str, str], name: str) -> str | None:
    folded = name.lower()
    found = next((key for key in headers if key.lower() == folded), None)
    return None if found is None else headers.pop(found)


def _opening(message: Message, headers: dict[str, str]) -> bytes:
    """The item's JSON without its body and its closing brace."""
    item: dict[str, Any] = {"destination": message.destination}
    if message.queue:
        item["queue"] = message.queue
    if headers:
        item["headers"] = headers
    try:
        return orjson.dumps(item)[:-1]
    except (TypeError, orjson.JSONEncodeError) as error:
        raise MessageInvalid(f"the item cannot be written as JSON: {error}") from None
