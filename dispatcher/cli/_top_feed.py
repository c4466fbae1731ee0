"""Listens to admin listeners for `dispatcher top`: `GET /status/stream`, and again when it breaks.

It asks with HTTP/1.0: the answer then is plain lines until its end. It sends no credential and changes
nothing. What comes back is bounded, checked and made printable (`_top_report`) before it is kept. Used by
`top`.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from dispatcher.cli._top_report import History, Report, Sample, read
from dispatcher.cli._top_words import printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

SPAN_SECONDS: Final = 60
"""Of samples that are kept."""
SILENCE_SECONDS: Final = 5.0
"""Without a byte: then it is taken for gone; an event comes every second."""
RETRY_SECONDS: Final = 1.0
EVENT_BYTES: Final = 4 * 1_048_576
HEAD_LINES: Final = 100
WORDS_BYTES: Final = 300
"""Of an answer that is no stream."""
WANTED: Final = "wanted is http://HOST:PORT of an admin listener, without user, query or fragment"
HINT: Final = "is it an admin listener (serve.admin_port)?"
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})\b")


class NotHeard(Exception):  # noqa: N818 - it is no error of the command
    """A listener says nothing, or nothing that can be understood; why."""


class Place(NamedTuple):
    """Where a listener is."""

    host: str
    port: int
    path: str
    is_secure: bool

    @property
    def authority(self) -> str:
        """Host and port, as in an address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Place:
        """Of a URL. Raises `ValueError`, which does not repeat it: it may hold a secret."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # it repeats what it was given
            raise ValueError(WANTED) from None
        is_odd = "@" in parts.netloc or "?" in url or "#" in url or not re.fullmatch(r"[!-~]*", url)
        if parts.scheme not in ("http", "https") or not parts.hostname or is_odd:
            raise ValueError(WANTED)
        is_secure = parts.scheme == "https"
        port = port if port is not None else 443 if is_secure else 80
        return cls(parts.hostname, port, parts.path.rstrip("/"), is_secure)


class Listener:
    """One admin listener as it was heard last.

    Args:
        url: Its address.

    Raises:
        ValueError: It is none; the text says what would be.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.place = Place.parse(url)
        self.report: Report | None = None
        self.samples: deque[Sample] = deque(maxlen=SPAN_SECONDS + 1)
        self.is_live = False
        self.trouble = ""
        """Why it is not heard; empty while it is, and before the first try has ended."""

    async def hear(self) -> None:
        """Take in one report; without one there is `trouble`."""
        try:
            async with aclosing(events(self.place)) as heard:
                async for name, data in heard:
                    self._take(name, data)
                    if self.report is not None:
                        return
        except NotHeard as error:
            self.trouble = str(error)

    async def follow(self, tell: Callable[[bool], None]) -> None:
        """Listen until cancelled; for each event `tell` is called, with whether the link has changed."""
        while True:
            try:
                async with aclosing(events(self.place)) as heard:
                    async for name, data in heard:
                        self._take(name, data)
                        was_live, self.is_live, self.trouble = self.is_live, self.report is not None, ""
                        tell(was_live != self.is_live)
            except NotHeard as error:
                self.is_live, self.trouble = False, str(error)
                tell(True)
            await asyncio.sleep(RETRY_SECONDS)

    def _take(self, name: str, data: bytes) -> None:
        try:
            if name == "history":
                self.samples.clear()
                self.samples.extend(read(data, History).samples())
            elif name == "status":
                self.report = read(data, Report)
                sample = self.report.sample
                if sample is not None and (not self.samples or sample.at > self.samples[-1].at):
                    self.samples.append(sample)
        except ValueError as error:
            raise NotHeard(f"what it says is not understood ({printable(str(error))}); {HINT}") from None
        if name == "end":
            raise NotHeard("the sidecar has ended")


async def events(place: Place) -> AsyncGenerator[tuple[str, bytes], None]:
    """Server-sent events: their names and data.

    Raises:
        NotHeard: There is nobody, it is no such stream, it is silent, or it has ended.
    """
    writer = None
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            reader, writer = await asyncio.open_connection(
                place.host, place.port, ssl=True if place.is_secure else None, limit=EVENT_BYTES
            )
            target = f"GET {place.path}/status/stream HTTP/1.0\r\nHost: {place.authority}\r\n"
            writer.write(f"{target}Accept: text/event-stream\r\n\r\n".encode())
            await _check_head(reader)
        name, data = "", b""
        while True:
            line = await _line(reader)
            field, _, value = line.partition(b": ")
            if field == b"event":
                name = value.decode("ascii", "replace")
            elif field == b"data":
                data = value
            elif not line and name:
                yield name, data
                name, data = "", b""
    except NotHeard:
        raise
    except TimeoutError:
        raise NotHeard(f"it has said nothing for {SILENCE_SECONDS:g} s") from None
    except (OSError, ValueError) as error:
        raise NotHeard(_why(error)) from None
    finally:
        if writer is not None:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


async def _line(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(SILENCE_SECONDS):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise NotHeard("the connection was closed")
    return line.rstrip(b"\r\n")


async def _check_head(reader: asyncio.StreamReader) -> None:
    first = await _line(reader)
    status = _STATUS.match(first)
    if status is None:
        raise NotHeard(f"its answer is not HTTP; {HINT}")
    headers = []
    while line := await _line(reader):
        headers.append(line.lower())
        if len(headers) > HEAD_LINES:
            raise NotHeard(f"its answer has no end of headers; {HINT}")
    if status[1] != b"200":
        said = (await reader.read(WORDS_BYTES)).decode("utf-8", "replace").partition("\n")[0]
        hint = "" if status[1] == b"503" else f"; {HINT}"
        raise NotHeard(f"it answers {status[1].decode()}: {printable(said)}{hint}")
    if not any(line.startswith(b"content-type: text/event-stream") for line in headers):
        raise NotHeard(f"its answer is no stream of events; {HINT}")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, ConnectionError):
        return "the connection was broken"
    if isinstance(error, socket.gaierror):
        return f"its name is not found ({error.strerror})"
    if isinstance(error, ValueError):
        return f"its answer has lines without an end; {HINT}"
    return printable(error.strerror or str(error))  # type: ignore[no-any-return]
