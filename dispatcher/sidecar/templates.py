"""What requests with the same target and header set have in common, worked out once and kept within bounds.

Headers' names, too, are looked at once: what a name says does not change. Callers choose both, so each kind
of memory here has its bound; past it the memory starts anew. Used by `dialect` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from msgspec import Struct

from dispatcher.options import Options
from dispatcher.sidecar.alone import SERVICE_PREFIX, readable

if TYPE_CHECKING:
    from dispatcher.sidecar.alone import Reason, TextLine

TEMPLATES_MAX: Final = 8_192
TEMPLATES_BYTES_MAX: Final = 16 * 1_048_576
"""Of the targets and header sets that templates were made of."""
NAMES_MAX: Final = 1_024
"""Names, and characters of each, that are kept."""
NOTHING: Final = 0
OPTION: Final = 1
IDENTITY: Final = 2
PREFERENCE: Final = 3
"""It says how long the caller waits."""
_ID_NAME: Final = "upstash-deduplication-id"
_KINDS: Final = {_ID_NAME: IDENTITY, "content-type": OPTION, "prefer": PREFERENCE}

T = TypeVar("T", str, bytes)


class Template(Struct):
    """What requests with the same target and header set have in common."""

    destination: str
    queue: str | None
    options: Options | None = None
    alone: Reason | None = None


class Kinds(dict[Any, int], Generic[T]):
    """Headers' names, as they come, to what they say: nothing of the message, an option, its id, a wish."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing: set[T] = set()
        """Those that say nothing, as far as they were asked for."""

    def __missing__(self, name: T) -> int:
        lower = (readable(name) if isinstance(name, bytes) else name).lower()
        kind = _KINDS.get(lower, OPTION if lower.startswith(SERVICE_PREFIX) else NOTHING)
        if len(self) < NAMES_MAX and len(name) < NAMES_MAX:
            self[name] = kind
            if kind == NOTHING:
                self.nothing.add(name)
        return kind


class Templates:
    """Templates by what they were made of, in bounded memory."""

    def __init__(self) -> None:
        self.known: dict[object, Template] = {}
        self._options: dict[tuple[TextLine, ...], Options] = {}
        self._bytes = 0

    def keep(self, key: object, template: Template, size: int) -> None:
        """Remember one, made of so many bytes."""
        if len(self.known) >= TEMPLATES_MAX or self._bytes + size > TEMPLATES_BYTES_MAX:
            self.known.clear()
            self._options.clear()
            self._bytes = 0
        self.known[key] = template
        self._bytes += size

    def options(self, lines: tuple[TextLine, ...]) -> Options | None:
        """One object for each header set: encoded headers are kept in it."""
        if not lines:
            return None
        options = self._options.get(lines)
        if options is None:
            options = self._options[lines] = Options(headers=dict(lines))
        return options
