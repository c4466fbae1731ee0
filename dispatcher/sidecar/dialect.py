"""The upstream's dialect, read: a request's raw target, header lines and body become messages.

Pure, and fast where it is asked often: what is the same from request to request (destination, queue, options)
is worked out once for each target and header set and kept, within bounds. The destination is everything of
the target behind its prefix, byte for byte. What cannot travel in a batch becomes an `Alone`, what the
service would refuse is `Refused` with its status and text. Called by `intake` and `bulk`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
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
from dispatcher.sidecar.templates import IDENTITY, OPTION, Kinds, Template, Templates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.options import Options
    from dispatcher.sidecar.alone import RawLine, Reason, TextLine

PUBLISH: Final = "/v2/publish/"
ENQUEUE: Final = "/v2/enqueue/"
BATCH: Final = "/v2/batch"
UTF8_BYTES: Final = 4
"""Of one character, at most."""
NO_SCHEME: Final = "invalid destination url: endpoint has invalid scheme, add http:// or https://"
NO_DESTINATION: Final = "destination is required"
BAD_QUEUE: Final = "invalid queue name: only letters, digits, '_', '-' and '.' are allowed"

_NONE: Final = msgspec.Raw()


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
    body: Any = None
    headers: msgspec.Raw = _NONE
    """An object of texts or arrays of texts, or `null`; most of them have been seen before."""
    queue: str | None = None


class Dialect:
    """Reads requests.

    Args:
        max_text_bytes: A body above it is sent alone: the service may take what no batch of ours will carry.
    """

    def __init__(self, max_text_bytes: int) -> None:
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
        identity = None
        template = self._published.known.get((target, *options))
        if template is None:
            options, ids = self._parted(options)
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
                )
        reason = alone or "too_large"
        return from_request(reason, target, lines, body, template.destination, template.queue)

    def _parted(self, options: Iterable[RawLine]) -> tuple[list[RawLine], list[str]]:
        """The options, and the ids, which differ from message to message; an empty one is none."""
        kinds = self._raw_kinds
        parted = [(kinds[line[0]], line) for line in options]
        ids = [readable(value) for kind, (_, value) in parted if kind == IDENTITY and value]
        return [line for kind, line in parted if kind == OPTION], ids

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
        try:
            items = _ITEMS.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"invalid batch: {error}") from None
        if len(items) > max_items:
            raise Refused(412, f"too many messages in a batch: {len(items)}, the limit is {max_items}")
        return self._messages(items)

    def read_lines(self, lines: Iterable[bytes]) -> list[Message | Refused]:
        """The messages of lines of NDJSON, each as in a batch."""
        decode, items = _ITEM.decode, list[Item | Refused]()
        for line in lines:
            try:
                items.append(decode(line))
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
        if text is not None and type(text) is not str:
            raise Refused(400, "body must be a string")
        lines = [line for line in _lines_of(item.headers) if kinds[line[0]]]
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
    try:
        found = _HEADERS.decode(headers) if headers else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"invalid headers: {error}") from None
    return [
        (name, one)
        for name, value in (found or {}).items()
        for one in ([value] if isinstance(value, str) else value)
    ]


_ITEMS: Final = msgspec.json.Decoder(list[Item])
_ITEM: Final = msgspec.json.Decoder(Item)
_HEADERS: Final = msgspec.json.Decoder(dict[str, str | list[str]] | None)
