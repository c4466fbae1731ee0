"""Messages to bytes: what an item of a batch looks like.

A message is encoded once, at admission; batches join these bytes and retries reuse them. What does not
change between messages (destination, queue, headers) is a cached prefix, so a message costs one
`orjson.dumps` of its body.

Facts: the service's batch endpoint, an item is `{"destination", "headers"?, "body"?, "queue"?}`; bytes that
are not UTF-8 cannot travel in JSON and leave alone, as the body of a publish or enqueue request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import orjson
from msgspec import UNSET, Struct, UnsetType

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
from dispatcher.message import Message
from dispatcher.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dispatcher.core.batch import Run

BATCH_PATH: Final = "/v2/batch"
CACHED_PREFIXES: Final = 16_384
"""Distinct (destination, queue) pairs remembered for one `Options`; past it the cache starts anew."""
_ID_KEY: Final = b'"Upstash-Deduplication-Id":'
_RAW_TARGET_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F))


class AloneMessage(Message, kw_only=True, gc=False, eq=False):
    """A message that leaves by itself, as the request that a caller made it: target, header lines, bytes.

    For a program that takes such requests from others, and may pass on what no batch can carry. `destination`
    and `queue` say where it goes; the body is bytes, of any size; an id, its own or drawn, is one more line.
    """

    request: SingleRequest
    is_idempotent: bool = False
    """Its lines or its query make repeating it safe: they bring an id, or have one made of its content."""


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
    opening: bytes
    """The same, with that value's first quotation mark."""
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
        self._cache: dict[object, Prefix] = {}

    def encode_plain(self, message: Message) -> tuple[bytes, str] | None:
        """The bytes and the id of what nearly every message is, in the fewest steps.

        That is a text, with any destination, options and queue. `None` of any other message, and of one that
        may not be in order: `encode` is for these.

        Raises:
            MessageInvalid: As `encode` does.
        """
        if type(message) is not Message:
            return None
        body = message.body
        if (
            type(body) is not str
            or not body
            or message.deduplication_id is not None
            or message.headers is not None
            or message.json is not UNSET
            or message.deliver_within is not None
        ):
            return None
        try:
            is_bare = message.options is None and message.queue is None
            prefix = self._cache.get(message.destination) if is_bare else None
            if prefix is None:
                prefix = self._prefix(message)
            text = orjson.dumps(body)
        except (TypeError, orjson.JSONEncodeError):
            return None  # `encode` says what is wrong
        if not prefix.draws_id or len(text) > self._max_message_bytes:
            return None
        identity = self._draw_id()
        return b"".join((prefix.opening, identity.encode(), b'"},"body":', text, b"}")), identity

    def encode_run(
        self, messages: Iterable[Message], run: Run, max_messages: int, max_bytes: int
    ) -> Message | UnsetType:
        """Add messages to a run while they are plain and without queue and deadline, and fit.

        As `encode_plain` and `encode` do it, without a call for each message: that halves what it costs.
        Returns the first message that is none of these, or has no place in `max_bytes`: it is not in the run.
        `UNSET` if there is none.
        """
        cache, draw_id, dumps = self._cache, self._draw_id, orjson.dumps
        max_message_bytes = self._max_message_bytes
        keep_message, keep_item = run.messages.append, run.items.append
        keep_id = run.deduplication_ids.append
        size, left = run.size_bytes, max_messages
        try:
            for message in messages:
                if type(message) is not Message:
                    return message
                body = message.body
                if (
                    type(body) is not str
                    or not body
                    or message.deduplication_id is not None
                    or message.queue is not None
                    or message.headers is not None
                    or message.json is not UNSET
                    or message.deliver_within is not None
                ):
                    return message
                try:
                    prefix = cache.get(message.destination) if message.options is None else None
                    if prefix is None:
                        prefix = self._prefix(message)
                    text = dumps(body)
                except (TypeError, MessageInvalid, orjson.JSONEncodeError):
                    return message
                if not prefix.draws_id or len(text) > max_message_bytes:
                    return message
                identity = draw_id()
                item = b"".join((prefix.opening, identity.encode(), b'"},"body":', text, b"}"))
                after = size + len(item)
                if after > max_bytes:
                    return message
                size = after
                keep_message(message)
                keep_item(item)
                keep_id(identity)
                left -= 1
                if not left:
                    break
        finally:
            run.size_bytes = size
        return UNSET

    def encode(self, message: Message) -> Encoded:
        """The bytes of one message.

        Raises:
            MessageInvalid: It would be refused by the service, or spoil its batch.
            MessageTooLarge: Its body is above the configured bound.
        """
        if isinstance(message, AloneMessage):
            return self._encode_alone(message)
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
        identity = identity or prefix.given_id
        target = single_target(message.destination, message.queue)
        single = _with_id(SingleRequest(target, tuple(prefix.headers.items())), identity)
        return Encoded(
            body, identity, identity is not None or prefix.is_content_deduplicated, owns_id, single
        )

    def _encode_alone(self, message: AloneMessage) -> Encoded:
        """A message whose request is there already: nothing of it is judged here."""
        identity, owns_id = message.deduplication_id, False
        if identity is not None:
            check_deduplication_id(identity)
        elif self._draws_ids and not message.is_idempotent:
            identity, owns_id = self._draw_id(), True
        assert isinstance(message.body, bytes)
        is_safe = identity is not None or message.is_idempotent
        return Encoded(message.body, identity, is_safe, owns_id, _with_id(message.request, identity))

    def _check_size(self, size: int) -> None:
        if size > self._max_message_bytes:
            raise MessageTooLarge(size, self._max_message_bytes)

    def _prefix(self, message: Message) -> Prefix:
        options = message.options
        if options is not None and not isinstance(options, Options):
            raise MessageInvalid(f"`options` is {type(options).__name__}; allowed is `Options(…)`")
        if message.headers is not None:
            return self._make_prefix(message)
        cache = cast("dict[object, Prefix]", self._cache if options is None else options.cache)
        key: object = message.destination
        if message.queue is not None or message.json is not UNSET or options is not None:
            key = (key, message.queue, message.json is UNSET, self._draws_ids)
        try:
            found = cache.get(key)
        except TypeError:
            found = None  # an unhashable destination: `_make_prefix` says so
        if found is not None:
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
        reopened = (reopened[: -len(b'"":""')] if not headers else reopened + b",") + _ID_KEY
        return Prefix(
            plain=_opening(message, plain),
            reopened=reopened,
            opening=reopened + b'"',
            headers=headers,
            given_id=given_id,
            is_content_deduplicated=content,
            draws_id=self._draws_ids and given_id is None and not content,
        )


def single_target(destination: str, queue: str | None) -> str:
    """The path of a message's own request, the destination pasted raw."""
    destination = quote(destination, safe=_RAW_TARGET_SAFE)
    if not queue:
        return f"/v2/publish/{destination}"
    return f"/v2/enqueue/{quote(queue, safe='')}/{destination}"  # a `?` would end the path


def _with_id(request: SingleRequest, identity: str | None) -> SingleRequest:
    if identity is None:
        return request
    return SingleRequest(request.target, (*request.headers, (DEDUPLICATION_ID, identity)))


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
