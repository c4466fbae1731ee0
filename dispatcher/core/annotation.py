"""More header lines for a message that is encoded already, as long as they change nothing else about it.

The item is not encoded again where it carries an id: the lines are put in behind that, its last header. Used
by `tracing`; knows nothing of what the lines say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson
from msgspec import Struct

from dispatcher.checks import CONTENT_BASED_DEDUPLICATION, DEDUPLICATION_ID, says_true
from dispatcher.core.batch import SingleRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dispatcher.message import Message

_ID_KEY: Final = orjson.dumps(DEDUPLICATION_ID) + b":"
_CONTENT: Final = CONTENT_BASED_DEDUPLICATION.lower()


class Annotation(Struct, gc=False, frozen=True):
    """Header lines to add together, or none of them."""

    lines: tuple[tuple[str, str], ...]
    barred_by: frozenset[str]
    """Names in lower case: whatever has one of these headers is left as it is."""
    members: bytes
    """As further members of a JSON object: `,"name":"value"`."""

    @classmethod
    def of(cls, headers: Mapping[str, str], barred_by: Iterable[str]) -> Annotation:
        """Of names and values that are in order."""
        members = b"," + orjson.dumps(headers)[1:-1]
        return cls(tuple(headers.items()), frozenset(name.lower() for name in barred_by), members)

    def fits(self, message: Message, single: SingleRequest | None) -> bool:
        """Whether a message may have them: it has nothing that bars them, and is not known by its content.

        Of a message that is in order. The service makes a content-deduplicated one's id of its headers, too.
        """
        if message.options is None and message.headers is None and single is None:
            return True
        for name, value in _headers(message, single):
            lower = name.lower()
            if lower in self.barred_by or (lower == _CONTENT and says_true(value)):
                return False
        return True

    def on_item(self, data: bytes, identity: str | None) -> bytes:
        """An item of a batch with them; `identity` is the deduplication id it carries."""
        if identity is not None:
            # Quotation marks inside of strings are escaped, so this cannot stand in any value before it.
            behind = _ID_KEY + orjson.dumps(identity)
            at = data.find(behind + b"}")
            if at >= 0:
                at += len(behind)
                return b"".join((data[:at], self.members, data[at:]))
        item = orjson.loads(data)
        item["headers"] = {**item.get("headers", {}), **dict(self.lines)}
        return orjson.dumps(item)

    def on_single(self, single: SingleRequest) -> SingleRequest:
        """A request of its own with them."""
        return SingleRequest(single.target, (*single.headers, *self.lines))


def _headers(message: Message, single: SingleRequest | None) -> Iterator[tuple[str, str]]:
    parts: list[Iterable[tuple[str, str]]] = []
    if message.options is not None:
        parts.append(message.options.compiled.items())
    if message.headers is not None:
        parts.append(message.headers.items())
    if single is not None:
        parts.append(single.headers)
    for part in parts:
        yield from part
