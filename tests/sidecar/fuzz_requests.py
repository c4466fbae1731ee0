"""What the fuzzer says to the intake, and what it asks for: requests, connections, messages.

A script is a few connections that are used at once, each with a few requests behind one another. A sane
connection keeps to HTTP, whatever it says in it: its answers can be counted and their meaning is known. A mad
one has bytes changed at random and tells nothing beforehand. What a sane request means is worked out here a
second time, from the bytes and from nothing of the sidecar's. Made by `fuzz_grammar`, used by `fuzz`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

OWNER = b"fuzz-upstream-secret"
CALLER = b"fuzz-callers-secret"
GROUP = "fuzz-group"
SANE = "https://sane.example"
MAX_BODY = 20_000
MAX_BATCH = 40_000
MAX_HEAD = 8_192
MAX_ITEMS = 40
NDJSON = b"application/x-ndjson"
PREFIXES = (b"/v2/publish/", b"/v2/enqueue/")

READABLE = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
_TARGET = re.compile(rb"/[\x21-\x7e]*")

Lines = tuple[tuple[bytes, bytes], ...]


class Wanted(NamedTuple):
    """A message that a request asks to be delivered."""

    destination: str
    queue: str | None
    body: bytes


@dataclass(frozen=True)
class Request:
    """One request, framed as it should be."""

    method: bytes
    target: bytes
    lines: Lines
    body: bytes
    chunks: tuple[int, ...] = ()
    """Sizes of its chunks; none: it has a length."""
    version: bytes = b"HTTP/1.1"
    expects: bool = False

    @property
    def wire(self) -> bytes:
        """Its bytes."""
        lines = [(b"Host", b"sidecar"), *self.lines]
        if self.expects:
            lines.append((b"Expect", b"100-continue"))
        if self.chunks:
            lines.append((b"Transfer-Encoding", b"chunked"))
        elif self.body or self.method not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
            lines.append((b"Content-Length", b"%d" % len(self.body)))
        head = b"%s %s %s\r\n" % (self.method, self.target, self.version)
        fields = b"".join([b"%s: %s\r\n" % line for line in lines])
        return head + fields + b"\r\n" + (self._chunked() if self.chunks else self.body)

    def _chunked(self) -> bytes:
        parts, rest, turn = [], self.body, 0
        while rest:
            size = self.chunks[turn % len(self.chunks)]
            parts.append(b"%x\r\n%s\r\n" % (len(rest[:size]), rest[:size]))
            rest, turn = rest[size:], turn + 1
        return b"".join([*parts, b"0\r\n\r\n"])

    @property
    def is_unreadable(self) -> bool:
        """Whether its head is refused as soon as it is parsed, and with it what was piped before it."""
        head = self.wire.partition(b"\r\n\r\n")[0]
        types = sum(name.lower() == b"content-type" for name, _ in self.lines)
        is_odd = _TARGET.fullmatch(self.target) is None or self.method not in READABLE
        return len(head) > MAX_HEAD - 2 or is_odd or types > 1

    @property
    def route(self) -> str:
        """Where it should go."""
        for route, prefix in zip(("publish", "enqueue"), PREFIXES, strict=True):
            if self.target.startswith(prefix):
                return route
        if self.target.partition(b"?")[0] != b"/v2/batch":
            return "own" if self.target.startswith(b"/dispatcher/") else "proxy"
        types = [value for name, value in self.lines if name.lower() == b"content-type"]
        return "bulk" if types and types[0].partition(b";")[0].strip().lower() == NDJSON else "batch"

    def wanted(self) -> list[Wanted]:
        """The messages in it, in their order; entries that name no destination count as well."""
        if self.method != b"POST":
            return []
        if self.route in ("publish", "enqueue"):
            return [_published(self.target.decode("latin-1"), self.body)]
        if self.route == "bulk":
            lines = [line for line in self.body.split(b"\n") if line.strip()]
            return [_item(_loaded(line)) for line in lines]
        items = _loaded(self.body) if self.route == "batch" else None
        return [_item(item) for item in items] if isinstance(items, list) else []


@dataclass(frozen=True)
class Talk:
    """One connection."""

    requests: tuple[Request, ...]
    cuts: tuple[int, ...] = ()
    """Sizes of the pieces in which its bytes leave, over and over; none: at once."""
    half_closes: bool = False
    leaves: bool = False
    """It goes without waiting for an answer."""
    mutations: tuple[tuple[int, int, bytes], ...] = ()
    """Where (in thousandths), how many bytes are taken out, and what is put there."""

    @property
    def is_mad(self) -> bool:
        """Whether what it says can no longer be told beforehand."""
        return bool(self.mutations)

    @property
    def wire(self) -> bytes:
        """All its bytes."""
        data = b"".join([request.wire for request in self.requests])
        for place, taken, put in self.mutations:
            at = len(data) * place // 1000
            data = data[:at] + put + data[at + taken :]
        return data


Script = tuple[Talk, ...]

# ---------------------------------------------------------------------------------------------- what it means


def _loaded(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        return None


def _item(item: Any) -> Wanted:
    """What is of a wrong kind is not going to be delivered; it only has its place."""
    fields = item if isinstance(item, dict) else {}
    body, destination, queue = (fields.get(name) for name in ("body", "destination", "queue"))
    text = body if isinstance(body, str) else ""
    return Wanted(str(destination), str(queue) if queue else None, text.encode("utf-8", "replace"))


def _published(target: str, body: bytes) -> Wanted:
    queue, rest = None, target.removeprefix("/v2/publish/")
    if target.startswith("/v2/enqueue/"):
        name, _, rest = target.removeprefix("/v2/enqueue/").partition("/")
        queue = unquote(name)
    path, mark, query = rest.partition("?")
    parts = query.split("&") if mark else []
    own = [part for part in parts if not _is_services(part)]
    keeps_query = own or (mark and len(own) == len(parts))
    return Wanted(f"{path}?{'&'.join(own)}" if keeps_query else path, queue, body)


def _is_services(part: str) -> bool:
    name = part.partition("=")[0]
    return unquote(name).lower() == "qstash_token" or name.lower().startswith("upstash-")
