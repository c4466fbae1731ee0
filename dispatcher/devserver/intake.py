"""The items of a request, as they are on the wire, and their validation.

Pure. One invalid item refuses the whole request, so everything is judged here before `upstream` accepts
anything. The cost of a header set is paid once: compiled sets and known destinations are kept, bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from dispatcher.devserver.ledger import body_bytes, body_digest_of, content_key
from dispatcher.devserver.options import (
    DEDUPLICATION_ID,
    HeaderValue,
    Options,
    Pairs,
    Refused,
    check_deduplication_id,
    compile_options,
    flatten,
    has_scheme,
    is_name,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

_KNOWN_MAX: Final = 65_536
_COMPILED_MAX: Final = 4096
NO_OPTIONS: Final = Options()


class Item(Struct, gc=False):
    """One item of a batch, as it is on the wire."""

    destination: str | None = None
    body: Any = None
    headers: dict[str, HeaderValue] | None = None
    queue: str | None = None


class Entry(Struct, gc=False, omit_defaults=True, rename="camel"):
    """One entry of a reply, as it is on the wire."""

    message_id: str | None = None
    url: str | None = None
    deduplicated: bool = False
    error: str | None = None


class Prepared(Struct, gc=False):
    """An item found valid."""

    destination: str
    queue: str | None
    key: str | None
    options: Options
    group: dict[str, str | None] | None
    body: bytes
    body_digest: bytes


_ITEMS: Final = msgspec.json.Decoder(list[Item])


def parse_items(body: bytes) -> list[Item]:
    """The items of a batch's body; raises `Refused(400, …)` if it is not an array of items."""
    try:
        return _ITEMS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"invalid batch: {error}") from None


class Group(Struct, gc=False):
    """A URL group: its endpoints' names by their URLs."""

    name: str
    created_at: float
    updated_at: float
    endpoints: dict[str, str | None]


class Validator:
    """Judges items; `groups` and `queues` are the upstream's own, read at every item."""

    def __init__(self, groups: Mapping[str, Group], queues: Container[str], max_message_bytes: int) -> None:
        self._groups = groups
        self._queues = queues
        self._max_message_bytes = max_message_bytes
        self._compiled: dict[Any, Options] = {}
        self._known: dict[str, str] = {}

    def prepare(self, item: Item) -> Prepared:
        """The item, found valid; raises `Refused` with the service's status and text."""
        options, key = self._options(item.headers)
        body = item.body
        if body is not None and not isinstance(body, str | bytes):
            raise Refused(400, "body must be a string")
        raw = body_bytes(body)
        if len(raw) > self._max_message_bytes:
            raise Refused(
                413, f"message too large: {len(raw)} bytes, maxMessageSize is {self._max_message_bytes}"
            )
        destination, group = self._destination(item.destination)
        queue = item.queue or None
        if queue is not None:
            self._check_queue(queue, options)
        digest = body_digest_of(raw)
        if key is None and options.content_based:
            key = content_key(destination, options.content_key, digest)
        return Prepared(destination, queue, key, options, group, raw, digest)

    def _check_queue(self, queue: str, options: Options) -> None:
        if queue not in self._queues and not is_name(queue):
            raise Refused(400, "invalid queue name: only letters, digits, '_', '-' and '.' are allowed")
        if options.scheduled:
            raise Refused(400, "Upstash-Delay and Upstash-Not-Before cannot be used with a queue")

    def _destination(self, destination: str | None) -> tuple[str, dict[str, str | None] | None]:
        if not destination:
            raise Refused(400, "destination is required")
        known = self._known.get(destination)
        if known is not None:
            return known, None
        if destination in self._groups:
            return destination, self._groups[destination].endpoints
        if not has_scheme(destination) and not destination.startswith("api/"):
            if is_name(destination):
                raise Refused(404, f"URL group {destination} not found")
            raise Refused(
                400, "invalid destination url: endpoint has invalid scheme, add http:// or https://"
            )
        return self.interned(destination), None

    def interned(self, destination: str) -> str:
        """The one string that stands for this destination in the ledger."""
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        return self._known.setdefault(destination, destination)

    def _options(self, headers: Mapping[str, HeaderValue] | None) -> tuple[Options, str | None]:
        """The compiled header set, and the deduplication id taken out of it."""
        if not headers:
            return NO_OPTIONS, None
        rest = dict(headers)
        found = rest.pop("Upstash-Deduplication-Id", None)
        try:
            options = self._compiled.get(tuple(rest.items()))
        except TypeError:  # arrays of strings: flattened below
            options = None
        if options is None:
            options, found = self._compile(flatten(rest.items()), found)
        if not found:
            return options, None
        deduplication_id = found if isinstance(found, str) else found[-1]
        if deduplication_id.split() != [deduplication_id] or ":" in deduplication_id:
            check_deduplication_id(deduplication_id)
        return options, deduplication_id

    def _compile(self, pairs: Pairs, found: HeaderValue | None) -> tuple[Options, HeaderValue | None]:
        for name, value in pairs:
            if name.lower() == DEDUPLICATION_ID:
                found = value
        rest = tuple(pair for pair in pairs if pair[0].lower() != DEDUPLICATION_ID)
        return self.compiled(rest), found

    def compiled(self, pairs: Pairs) -> Options:
        """A header set without its deduplication id, compiled at its first sight; raises `Refused`."""
        options = self._compiled.get(pairs)
        if options is None:
            options = compile_options(pairs)
            if len(self._compiled) >= _COMPILED_MAX:
                self._compiled.clear()
            self._compiled[pairs] = options
        return options
