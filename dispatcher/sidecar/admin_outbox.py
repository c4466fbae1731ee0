"""The outbox on the admin listener: how it does, its dead letters, and the two things one may do with them.

`GET /outbox` and `GET /outbox/dead-letters` read. `POST /outbox/retry` and `POST /outbox/delete` change
something, on a listener that asks for no credential: they want a header that no form can send and no page of
another origin may, and refuse whatever a browser has marked as its own. No body, token or query string is
shown, but by `GET /outbox/export`, which wants the key that stands in the lock beside the outbox's file: who
can read that can read the file. Called by `admin`.
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec

from dispatcher.errors import OutboxError
from dispatcher.outbox.export import exported
from dispatcher.sidecar.kept_messages import letter_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dispatcher.outbox import Found, Outbox
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.server import Request

PREFIX: Final = "/outbox"
CHANGES: Final = ("/outbox/retry", "/outbox/delete")
EXPORT: Final = "/outbox/export"
HEADER: Final = "X-Dispatcher"
KEY_HEADER: Final = "X-Dispatcher-Key"
EXPORT_BYTES: Final = 4 * 1_048_576
"""Of one answer, about: more stands behind `after`."""
LIMIT: Final = 100
LIMIT_MAX: Final = 1_000
SHOWN_MAX: Final = 20
"""Dead letters on the status page."""
NO_OUTBOX: Final = "this sidecar has no outbox (its setting outbox.file)"
WANTED: Final = 'the body has to be {"ids": ["out_…"]} or {"all": true}'
NOT_MEANT: Final = (
    "this changes the outbox: send the header `X-Dispatcher: outbox`, and not from a page (no Origin, no "
    "Sec-Fetch-Site)"
)
NO_KEY: Final = (
    f"this shows bodies: send the header `{KEY_HEADER}` with the key in FILE.lock, as `dispatcher outbox "
    "export FILE` does"
)
Said = tuple[int, dict[str, Any] | bytes]
"""Status and value of an answer; bytes are lines of JSON."""


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters."""

    ids: list[str] | None = None
    all: bool = False


class OutboxAdmin:
    """Answers for one outbox, or that there is none."""

    def __init__(self, outbox: Outbox | None, counters: IntakeCounters, key: str = "") -> None:
        self._outbox = outbox
        self._key = key.encode()
        self._counters = counters
        self._letters: list[dict[str, Any]] = []
        """The first dead letters, as they were read last."""
        self._seen: tuple[int, int] | None = None

    async def handle(self, request: Request, path: str) -> Said:
        """Answer a request to `/outbox…`."""
        outbox = self._outbox
        if outbox is None:
            return 404, {"error": NO_OUTBOX}
        if path in CHANGES:
            store = outbox.store
            return await self._change(request, store.retry if path == CHANGES[0] else store.delete)
        try:
            if path == PREFIX:
                return 200, self.status() or {}
            if path == f"{PREFIX}/dead-letters":
                return await self._dead_letters(outbox, request.raw_path.partition("?")[2])
            if path == EXPORT:
                return await self._export(outbox, request)
        except OutboxError as error:
            return 503, {"error": str(error)}
        return 404, {"error": f"there are {PREFIX}, {PREFIX}/dead-letters, {EXPORT}, {' and '.join(CHANGES)}"}

    def status(self) -> dict[str, Any] | None:
        """How it does; `None` without an outbox."""
        if self._outbox is None:
            return None
        outbox, status = self._outbox, self._outbox.status()
        oldest = status.oldest_at
        return {
            **msgspec.to_builtins(status),
            "oldest_age": None if oldest is None else round(max(0.0, time.time() - oldest), 3),
            "returned": outbox.returned,
            "duplicates_possible": outbox.duplicates_possible,
            "death": outbox.death or "",
            "dead_letters": self._letters,
        }

    async def look(self) -> None:
        """Read the first dead letters anew, if they may have changed; for the status page."""
        if self._outbox is None:
            return
        status = self._outbox.status()
        seen = (status.dead, status.commits if status.dead else 0)
        if seen != self._seen:
            letters = await self._outbox.store.dead_letters(None, SHOWN_MAX) if status.dead else []
            self._letters, self._seen = [self._letter(one) for one in letters], seen

    def _letter(self, found: Found) -> dict[str, Any]:
        return letter_of(found, self._counters.hidden)

    async def _dead_letters(self, outbox: Outbox, query: str) -> Said:
        asked = dict(parse_qsl(query))
        text = asked.get("limit", str(LIMIT))
        if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= LIMIT_MAX:
            return 400, {"error": f"limit: allowed is 1 to {LIMIT_MAX}"}
        letters = await outbox.store.dead_letters(asked.get("after"), int(text))
        return 200, {
            "deadLetters": [self._letter(one) for one in letters],
            "after": letters[-1].record.id if len(letters) == int(text) else None,
        }

    async def _export(self, outbox: Outbox, request: Request) -> Said:
        """Some dead letters, whole; nothing: there are no more behind this one."""
        shown = request.headers.get(KEY_HEADER, "").encode("utf-8", "surrogateescape")
        if not self._key or not hmac.compare_digest(shown, self._key):
            return 403, {"error": NO_KEY}
        asked = dict(parse_qsl(request.raw_path.partition("?")[2]))
        lines, size = list[bytes](), 0
        for found in await outbox.store.dead_letters(asked.get("after"), LIMIT):
            line = exported(found)
            lines.append(line)
            size += len(line)
            if size > EXPORT_BYTES:
                break
        return 200, b"".join(lines)

    async def _change(
        self, request: Request, change: Callable[[Sequence[str] | None], Awaitable[int]]
    ) -> Said:
        headers = request.headers
        if headers.get(HEADER, "").lower() != "outbox" or "Origin" in headers or "Sec-Fetch-Site" in headers:
            return 403, {"error": NOT_MEANT}
        try:
            wish = _decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return 400, {"error": WANTED}
        if wish.all == (wish.ids is not None):
            return 400, {"error": WANTED}
        try:
            return 200, {"messages": await change(wish.ids)}
        except OutboxError as error:
            return 503, {"error": str(error)}


_decode = msgspec.json.Decoder(Wish).decode
