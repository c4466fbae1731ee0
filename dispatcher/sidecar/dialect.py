"""The upstream's dialect, read: a request's raw target, header lines and body become messages.

Pure, and fast where it is asked often: what is the same from request to request (destination, queue, options)
is worked out once for each target and header set and kept, within bounds. The destination is everything of
the target behind its prefix, byte for byte. What cannot travel in a batch becomes an `Alone`, what the
service would refuse is `Refused` with its status and text. Called by `intake` and `bulk`.
"""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from dispatcher.checks import check_destination, check_queue, says_true
from dispatcher.errors import MessageInvalid, MessageTooLarge
from dispatcher.message import Message
from dispatcher.sidecar.alone import (
    FORWARD_ALL,
    from_item,
    from_request,
    readable,
    speaks_to_service,
)
from dispatcher.sidecar.templates import IDENTITY, OPTION, PREFERENCE, Kinds, Template, Templates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.options import Options
    from dispatcher.sidecar.alone import RawLine, Reason, TextLine

PUBLISH: Final = "/v2/publish/"
ENQUEUE: Final = "/v2/enqueue/"
BATCH: Final = "/v2/batch"
UTF8_BYTES: Final = 4
"""Of one character, at most."""
HEADERS_BYTES_MAX: Final = 262_144
"""Of one item of a batch; four times what a request's may have, whose head is bounded."""
ITEM_DEPTH: Final = 2
PARTS_AN_ITEM: Final = 100
"""Texts and brackets that an item has on average, at most, where their number is in doubt."""
NO_SCHEME: Final = "invalid destination url: endpoint has invalid scheme, add http:// or https://"
NO_DESTINATION: Final = "destination is required"
BAD_QUEUE: Final = "invalid queue name: only letters, digits, '_', '-' and '.' are allowed"

_NONE: Final = msgspec.Raw()
_WAIT: Final = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[;,]|$)', re.IGNORECASE)
"""RFC 7240, section 4.3; what is no number is left unheard, as the RFC wants it."""


class Refused(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request or a message is refused: `status` and `text` in the service's form.

    Args:
        retry_after: Seconds after which it may be tried again, for `Retry-After`.
    """

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        self.status = status
        self.text = text
        self.retry_after = retry_after
        super().__init__(f"{status}: {text}")


class Item(Struct, gc=False):
    """One message of a JSON batch, as it is on the wire."""

    destination: str | None = None
    body: str | None = None
    headers: msgspec.Raw = _NONE
    """An object of texts or arrays of texts, or `null`; most of them have been seen before."""
    queue: str | None = None


class _LooseItem(Struct, gc=False):
    """The same, where the body of one of them is no text: what it is instead is not looked at."""

    destination: str | None = None
    body: msgspec.Raw = _NONE
    headers: msgspec.Raw = _NONE
    queue: str | None = None

    def item(self) -> Item | Refused:
        """As an item."""
        try:
            body = _BODY.decode(self.body) if self.body else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Refused(400, "body must be a string")
        return Item(self.destination, body, self.headers, self.queue)


class Dialect:
    """Reads requests.

    Args:
        max_text_bytes: A body above it is sent alone: the service may take what no batch of ours will carry.
        deliver_within: Seconds that a message has; its caller may give it less.
    """

    def __init__(self, max_text_bytes: int, deliver_within: float = inf) -> None:
        self._deliver_within = deliver_within
        self._max_text_bytes = max_text_bytes
        self._raw_kinds: Kinds[bytes] = Kinds()
        self._kinds: Kinds[str] = Kinds()
        self._published = Templates()
        self._batched = Templates()

    # ------------------------------------------------------------------------------- publish and enqueue

    def read_publish(self, target: str, lines: Sequence[RawLine], body: bytes) -> Message:
        """The message of a request to `/v2/publish/…` or `/v2/enqueue/…`.

        Raises:
            Refused: As the service would refuse it.
        """
        said_nothing = self._raw_kinds.nothing
        options = [line for line in lines if line[0] not in said_nothing]
        identity = wait = None
        template = self._published.known.get((target, *options))
        if template is None:
            options, ids, wait = self._parted(options)
            identity = ids[0] if len(ids) == 1 else None
            template = self._published.known.get((target, *options)) if len(ids) <= 1 else None
            if template is None:
                template = self._template(target, options, is_repeated=len(ids) > 1)
        alone = template.alone
        if alone is None and len(body) <= self._max_text_bytes:
            try:
                text = body.decode()
            except UnicodeDecodeError:
                alone = "not_text"
            else:
                return Message(
                    template.destination,
                    text,
                    options=template.options,
                    queue=template.queue,
                    deduplication_id=identity,
                    deliver_within=wait,
                )
        reason = alone or "too_large"
        message = from_request(reason, target, lines, body, template.destination, template.queue)
        message.deliver_within = wait
        return message

    def _parted(self, options: Iterable[RawLine]) -> tuple[list[RawLine], list[str], float | None]:
        """The options; the ids, which differ from message to message (an empty one is none); the wait."""
        kinds = self._raw_kinds
        parted = [(kinds[line[0]], line) for line in options]
        ids = [readable(value) for kind, (_, value) in parted if kind == IDENTITY and value]
        wishes = [readable(value) for kind, (_, value) in parted if kind == PREFERENCE]
        wait = self.wait_of(wishes) if wishes else None
        return [line for kind, line in parted if kind == OPTION], ids, wait

    def wait_of(self, preferences: Iterable[str]) -> float | None:
        """How long the caller waits, by its `Prefer` lines; `None` if no less than is usual."""
        found = _WAIT.search(",".join(preferences))
        seconds = 0.0 if found is None else float(found[1])
        return seconds if 0 < seconds < self._deliver_within else None

    def _template(self, target: str, options: Sequence[RawLine], *, is_repeated: bool) -> Template:
        queue, raw = _place(target)
        path, _, query = raw.partition("?")
        texts = tuple((readable(name), readable(value)) for name, value in options)
        reason: Reason | None = None
        if speaks_to_service(query):
            reason = "query"
        elif any(name.lower() == FORWARD_ALL and says_true(value) for name, value in texts):
            reason = "header_forward"
        elif is_repeated or _repeats(texts):
            reason = "repeated_header"
        destination = _checked(path if reason == "query" else raw, queue)
        if reason is not None:
            return Template(destination, queue, alone=reason)
        template = Template(destination, queue, self._options(self._published, texts))
        size = len(target) + sum(len(name) + len(value) for name, value in texts)
        self._published.keep((target, *options), template, size)
        return template

    @staticmethod
    def _options(templates: Templates, lines: tuple[TextLine, ...]) -> Options | None:
        try:
            return templates.options(lines)
        except MessageInvalid as error:
            raise Refused(400, str(error)) from None

    # --------------------------------------------------------------------------------------------- batches

    def read_batch(self, body: bytes, max_items: int) -> list[Message | Refused]:
        """The messages of a JSON batch; in the place of one that is refused, why.

        Raises:
            Refused: It is no array of messages, or one of too many.
        """
        if body.count(b"{") > max_items and _has_more(body, max_items):  # before each takes memory
            raise Refused(412, f"too many messages in a batch: more than {max_items}, the limit")
        items: list[Item | Refused]
        try:
            items = _ITEMS.decode(body)  # type: ignore[assignment] # a list of some of these
        except msgspec.ValidationError:
            items = self._loose(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"invalid batch: {error}") from None
        if len(items) > max_items:
            raise Refused(412, f"too many messages in a batch: {len(items)}, the limit is {max_items}")
        return self._messages(items)

    @staticmethod
    def _loose(body: bytes) -> list[Item | Refused]:
        try:
            return [one.item() for one in _LOOSE_ITEMS.decode(body)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"invalid batch: {error}") from None

    def read_lines(self, lines: Iterable[bytes]) -> list[Message | Refused]:
        """The messages of lines of NDJSON, each as in a batch."""
        decode, items = _ITEM.decode, list[Item | Refused]()
        for line in lines:
            try:
                items.append(decode(line))
            except msgspec.ValidationError as error:
                items.append(_loose_line(line, error))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                items.append(Refused(400, f"invalid message: {error}"))
        return self._messages(items)

    def _messages(self, items: Iterable[Item | Refused]) -> list[Message | Refused]:
        """One by one; what is like one before in all but its body, in the fewest steps."""
        known, most = self._batched.known, self._max_text_bytes // UTF8_BYTES
        messages: list[Message | Refused] = []
        for item in items:
            if isinstance(item, Refused):
                messages.append(item)
                continue
            text = item.body
            template = known.get((item.destination, item.queue, bytes(item.headers)))
            if template is None or type(text) is not str or len(text) > most:
                messages.append(self._read(item))
                continue
            messages.append(
                Message(template.destination, text, options=template.options, queue=template.queue)
            )
        return messages

    def _read(self, item: Item) -> Message | Refused:
        try:
            return self._read_item(item)
        except Refused as refused:
            return refused
        except MessageInvalid as error:
            return Refused(400, str(error))
        except MessageTooLarge as error:
            return Refused(413, str(error))

    def _read_item(self, item: Item) -> Message:
        destination, queue, text, kinds = item.destination or "", item.queue or None, item.body, self._kinds
        lines = [line for line in _lines_of(item.headers) if kinds[line[0]] in (OPTION, IDENTITY)]
        ids = [value for name, value in lines if kinds[name] == IDENTITY and value]
        options = tuple(line for line in lines if kinds[line[0]] != IDENTITY)
        if len(ids) > 1 or _repeats(options):
            return self._alone("repeated_header", lines, text, destination, queue)
        template = self._batched.known.get((destination, queue, options))
        if template is None:
            template = Template(_checked(destination, queue), queue, self._options(self._batched, options))
            self._batched.keep((destination, queue, options), template, len(destination) + len(item.headers))
        if not ids:
            key = (item.destination, item.queue, bytes(item.headers))
            self._batched.keep(key, template, len(destination) + len(key[2]))
        if text is not None and UTF8_BYTES * len(text) > self._max_text_bytes:
            size = len(text.encode("utf-8", "surrogatepass"))
            if size > self._max_text_bytes:
                return self._too_large(lines, text, size, template)
        return Message(
            template.destination,
            text,
            options=template.options,
            queue=queue,
            deduplication_id=ids[0] if ids else None,
        )

    def _too_large(self, lines: Sequence[TextLine], text: str, size: int, template: Template) -> Message:
        destination = template.destination
        if speaks_to_service(destination.partition("?")[2]):
            raise MessageTooLarge(size, self._max_text_bytes)  # alone, its query would not reach it
        return self._alone("too_large", lines, text, destination, template.queue)

    @staticmethod
    def _alone(
        reason: Reason, lines: Sequence[TextLine], text: str | None, destination: str, queue: str | None
    ) -> Message:
        _checked(destination, queue)
        if speaks_to_service(destination.partition("?")[2]):
            raise Refused(400, "a message with repeated headers cannot be sent to a query with upstash- keys")
        return from_item(reason, lines, text, destination, queue)


def _place(target: str) -> tuple[str | None, str]:
    """The queue, and all that stands behind it or behind `/v2/publish/`."""
    if not target.startswith(ENQUEUE):
        return None, target[len(PUBLISH) :]
    queue, _, rest = target[len(ENQUEUE) :].partition("/")
    queue = unquote(queue)
    if not queue or "?" in queue:
        raise Refused(400, BAD_QUEUE)
    return queue, rest


def _checked(destination: str, queue: str | None) -> str:
    """The destination as text, found good; said in the service's words where they are known."""
    if not destination:
        raise Refused(400, NO_DESTINATION)
    if not destination.isascii():  # bytes that are not UTF-8 come as lone surrogates
        destination = readable(destination.encode("utf-8", "surrogateescape"))
    try:
        check_destination(destination)
        if queue is not None:
            check_queue(queue)
    except MessageInvalid as error:
        is_url = destination.partition("://")[0].lower() in ("http", "https")
        lacks_scheme = "/" in destination and not is_url and not destination.startswith("api/")
        raise Refused(400, NO_SCHEME if lacks_scheme else str(error)) from None
    return destination


def _repeats(lines: Sequence[TextLine]) -> bool:
    return len({name.lower() for name, _ in lines}) < len(lines)


def _lines_of(headers: msgspec.Raw) -> list[TextLine]:
    """An item's headers as lines: an array is as many of the same name."""
    if len(headers) > HEADERS_BYTES_MAX:
        raise Refused(400, f"invalid headers: more than {HEADERS_BYTES_MAX} bytes")
    try:
        found = _HEADERS.decode(headers) if headers else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"invalid headers: {error}") from None
    return [
        (name, one)
        for name, value in (found or {}).items()
        for one in ([value] if isinstance(value, str) else value)
    ]


def _loose_line(line: bytes, error: msgspec.ValidationError) -> Item | Refused:
    try:
        return _LOOSE_ITEM.decode(line).item()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refused(400, f"invalid message: {error}")


def _has_more(body: bytes, max_items: int) -> bool:
    """Whether an array has more items, or they more parts altogether, than a batch of so many may have."""
    depth = count = 0
    for parts, found in enumerate(_PARTS.finditer(body), 1):
        mark = body[found.start()]
        if mark in b"{[":
            depth += 1
            count += depth == ITEM_DEPTH
        elif mark in b"}]":
            depth -= 1
        if count > max_items or parts > PARTS_AN_ITEM * max_items:
            return True
    return False


_PARTS: Final = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)|[{}\[\]]', re.DOTALL)
"""Texts of JSON as wholes, and brackets. Possessive: whatever it is given, each byte is looked at once."""
_ITEMS: Final = msgspec.json.Decoder(list[Item])
_ITEM: Final = msgspec.json.Decoder(Item)
_LOOSE_ITEMS: Final = msgspec.json.Decoder(list[_LooseItem])
_LOOSE_ITEM: Final = msgspec.json.Decoder(_LooseItem)
_BODY: Final = msgspec.json.Decoder(str | None)
_HEADERS: Final = msgspec.json.Decoder(dict[str, str | list[str]] | None)
