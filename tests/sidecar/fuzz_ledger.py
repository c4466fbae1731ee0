"""What the upstream accepted, beside what was asked for and what was answered: the fuzzer's oracle.

Nothing that was answered as accepted may be missing or changed, nothing may be there that nobody sent, or
more often than it was sent. Used by `fuzz`.
"""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from tests.sidecar.fuzz_answers import Malformed
from tests.sidecar.fuzz_requests import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.sidecar.fuzz_answers import Reply
    from tests.sidecar.fuzz_requests import Request

OURS = "sane.example"
"""In the destination of every message whose content is known beforehand."""


class Ledger:
    """The upstream's, as far as it was read.

    Args:
        read: The rows behind a place.
    """

    def __init__(self, read: Callable[[int], list[dict[str, Any]]]) -> None:
        self._read = read
        self._last = -1
        self._by_id: dict[str, Wanted] = {}
        self._due: Counter[int] = Counter()
        """How often each message was sent, less the times that it was accepted."""
        self._claims: list[tuple[str, Wanted | None]] = []
        """Ids that were answered, each with the message it must be."""
        self._answered: set[str] = set()
        self.checked = 0

    @property
    def rows(self) -> int:
        """How many were accepted so far."""
        return self._last + 1

    def expect(self, requests: Iterable[Request]) -> None:
        """These are about to be sent."""
        for request in requests:
            self._due.update(map(hash, request.wanted()))

    def answered(self, request: Request, reply: Reply) -> None:
        """This was said to have been accepted; it is looked up by `settle`."""
        wanted = request.wanted()
        if request.route in ("publish", "enqueue"):
            self._entry(reply.json, wanted[0])
        elif request.route in ("batch", "bulk"):
            entries = _lines(reply) if request.route == "bulk" else reply.json
            assert isinstance(entries, list), reply
            assert len(entries) == len(wanted), f"{len(entries)} answers to {len(wanted)} messages: {reply}"
            for entry, one in zip(entries, wanted, strict=True):
                self._entry(entry, one)

    def exists(self, reply: Reply) -> None:
        """Ids of an answer to nobody knows what: they are looked up, too."""
        is_one = reply.headers.get(b"content-type") == b"application/json" and reply.status in (200, 202)
        value = reply.json if is_one and reply.body else None
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and isinstance(entry.get("messageId"), str):
                self._claims.append((entry["messageId"], None))

    def _entry(self, entry: Any, wanted: Wanted) -> None:
        if isinstance(entry, list):
            assert all({"url"} < one.keys() for one in entry), entry
            for one in entry:
                if "messageId" in one:
                    self._entry(one, wanted)
        elif "messageId" in entry:
            self._claims.append((entry["messageId"], None if entry.get("deduplicated") else wanted))
        else:
            assert isinstance(entry.get("error"), str), f"neither an id nor an error: {entry}"
            assert 400 <= entry.get("status", 400) < 600, entry
            assert entry.get("status") != 500, entry

    def settle(self) -> list[str]:
        """Read what was accepted since, and compare."""
        wrong = self._take_in()
        for name, wanted in self._claims:
            found = self._by_id.get(name)
            if found is None:
                wrong.append(f"{name} was answered and is not in the ledger")
            elif wanted is not None and found != wanted:
                wrong.append(f"{name} was answered for {wanted}, and is {found}")
            elif wanted is not None and name in self._answered:
                wrong.append(f"{name} was answered for two messages")
            elif wanted is not None:
                self._answered.add(name)
                self.checked += 1
        self._claims.clear()
        return wrong

    def _take_in(self) -> list[str]:
        unsent = []
        for row in self._read(self._last):
            self._last = row["seq"]
            body = row["body"].encode() if "body" in row else b64decode(row["bodyBase64"])
            one = Wanted(row["destination"], row["queue"] or None, body)
            self._by_id.update(dict.fromkeys(row["messageIds"], one))
            self._due[hash(one)] -= 1
            if OURS in one.destination and self._due[hash(one)] < 0:
                self._due[hash(one)] = 0  # said once: what comes next is judged on its own
                unsent.append(f"{one} was accepted, and not sent, or not so often")
        return unsent


def _lines(reply: Reply) -> list[Any]:
    try:
        return [orjson.loads(line) for line in reply.body.splitlines()]
    except orjson.JSONDecodeError:
        raise Malformed(f"a line is no JSON: {reply}") from None
