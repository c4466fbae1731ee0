"""NDJSON: any number of messages in one request, read as a stream and answered line by line in order.

Each line is an item of a JSON batch, each line of the answer the entry that it would have there, with the
status where it failed; blank lines have none. Reading and answering go on at the same time, in bounded
memory: what is read and not answered yet is a window, counted in lines and bytes. A caller that does not read
its answers while it writes is not read from either once that window is full.

Called by `intake`, once the head is in; one object a request.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from dispatcher.errors import AdmissionError, DispatcherError, QueueFull
from dispatcher.ndjson import LineSplitter, LineTooLong, is_blank
from dispatcher.sidecar import answers
from dispatcher.sidecar.alone import Alone
from dispatcher.sidecar.bodies import UNKNOWN_BYTES, broken
from dispatcher.sidecar.dialect import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.message import Message
    from dispatcher.ndjson import Line
    from dispatcher.sidecar.bodies import Bodies
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.dialect import Dialect
    from dispatcher.sidecar.durable import DurableSubmission
    from dispatcher.sidecar.server import Request
    from dispatcher.sidecar.settings import ServeSettings
    from dispatcher.sidecar.submission import Submission

CONTENT_TYPE: Final = "application/x-ndjson"
WINDOW_BYTES: Final = 16 * 1_048_576
"""Bytes of the lines that were read and not answered yet; a single longer line still has its turn."""
LINES_A_TURN: Final = 500
"""Lines that are handed in, or answered, before the loop has its turn."""


class Bulk:
    """One stream of messages, and the stream of their answers."""

    def __init__(
        self,
        dialect: Dialect,
        submission: Submission | DurableSubmission,
        bodies: Bodies,
        counters: IntakeCounters,
        serve: ServeSettings,
    ) -> None:
        self._bodies = bodies
        self._dialect = dialect
        self._counters = counters
        self._max_line_bytes = serve.max_batch_bytes
        self._max_lines = serve.max_items
        self._submission: Any = submission
        self._places: Any = submission.window()
        self._sizes: deque[tuple[int, int]] = deque()
        """Of what was read together and is not all answered: the number of its last line, and its bytes."""
        self._wait: float | None = None
        """The caller's own patience with each message."""
        self._read_lines = 0
        self._answered_lines = 0
        self._window_bytes = 0
        self._is_broken = False
        self._grown = asyncio.Event()
        self._shrunk = asyncio.Event()

    async def run(self, request: Request) -> web.StreamResponse:
        """Answer the request; returns once its last line is answered."""
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        self._wait = self._dialect.wait_of(request.headers.getall("Prefer", ()))
        if self._wait == 0:  # only where there is an outbox
            response.headers.update(answers.ASYNC)
        request.is_stream = True
        await response.prepare(request)
        reader = asyncio.create_task(self._read(request))
        reader.add_done_callback(lambda _: self._grown.set())
        try:
            await self._write(response, reader)
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            self._places.take_back()
        reader.result()
        await response.write_eof()
        if self._is_broken:
            request.protocol.force_close()  # nothing that may still come can be told from the rest of this
        return response

    # --------------------------------------------------------------------------------------------- reading

    async def _read(self, request: Request) -> None:
        splitter, content = LineSplitter(self._max_line_bytes), request.content
        try:
            with self._bodies.lend() as lease:
                while chunk := await content.readany():
                    lines = splitter.feed(chunk)
                    held = splitter.held_bytes if splitter.held_bytes > UNKNOWN_BYTES else 0
                    lease.shrink_to(held)
                    lease.grow_to(held)  # a line without an end is a body like others
                    await self._take_in(lines)
        except QueueFull as full:
            self._break_off(Refused(429, f"no room for so long a line: {full}", answers.ROOM_SECONDS))
        except web.RequestPayloadError as error:
            self._break_off(broken(error))
        else:
            await self._take_in(splitter.finish())

    def _break_off(self, why: Refused) -> None:
        """Nothing more of it can be read, and its caller may have gone: as if it had; that is said last."""
        self._is_broken = True
        self._places.take_back()
        self._refuse(why)

    async def _take_in(self, lines: list[Line]) -> None:
        """Hand in lines, as far as the window has room for them."""
        start = 0
        while start < len(lines):
            free = min(LINES_A_TURN, self._max_lines - self._places.messages)
            if free <= 0 or self._window_bytes > WINDOW_BYTES:
                self._shrunk.clear()
                await self._shrunk.wait()
                continue
            part = [line for line in lines[start : start + free] if not is_blank(line)]
            start += free
            await self._hand_in(part)
            if start < len(lines):
                await asyncio.sleep(0)

    async def _hand_in(self, lines: list[Line]) -> None:
        size = sum(map(len, lines))
        self._read_lines += len(lines)
        self._sizes.append((self._read_lines, size))
        self._window_bytes += size
        run: list[Message] = []
        messages = self._messages(lines)
        hurry(messages, self._wait)
        for message in messages:
            if isinstance(message, Refused):
                await self._put(run)
                run = []
                self._refuse(message)
            else:
                run.append(message)
        await self._put(run)

    def _messages(self, lines: list[Line]) -> list[Message | Refused]:
        if not any(isinstance(line, LineTooLong) for line in lines):
            return self._dialect.read_lines(cast("list[bytes]", lines))
        read = iter(self._dialect.read_lines(line for line in lines if isinstance(line, bytes)))
        return [self._too_long(line) if isinstance(line, LineTooLong) else next(read) for line in lines]

    def _too_long(self, line: LineTooLong) -> Refused:
        text = f"the line has {line.size_bytes} bytes, the limit is {self._max_line_bytes}"
        return Refused(413, text)

    async def _put(self, run: list[Message]) -> None:
        if not run:
            return
        try:
            self._submission.check_halt()
        except Refused as refused:
            for _ in run:
                self._refuse(refused)
            return
        for message in run:
            if type(message) is Alone:
                self._submission.count(message)
        patience = self._submission.patience
        await self._submission.put_many(run, self._places, min(self._wait or patience, patience))
        self._grown.set()

    def _refuse(self, why: Refused) -> None:
        self._places.append(cast("AdmissionError", why))  # as one, it stands for itself
        self._grown.set()

    # --------------------------------------------------------------------------------------------- writing

    async def _write(self, response: web.StreamResponse, reader: asyncio.Task[None]) -> None:
        places = self._places
        while places.messages or not reader.done():
            if not places.messages:
                self._grown.clear()
                await self._grown.wait()
                continue
            await places.wait()
            outcomes = cast("Sequence[answers.Outcome]", places.read(LINES_A_TURN))
            self._note(outcomes)
            await response.write(answers.lines(outcomes, time.time()))

    def _note(self, outcomes: Sequence[answers.Outcome]) -> None:
        """These are about to be answered."""
        for outcome in outcomes:
            if isinstance(outcome, DispatcherError):
                self._counters.failed(outcome)
        self._answered_lines += len(outcomes)
        while self._sizes and self._sizes[0][0] <= self._answered_lines:
            self._window_bytes -= self._sizes.popleft()[1]
        self._shrunk.set()


def hurry(messages: Iterable[Message | Refused], wait: float | None) -> None:
    """Give each message so many seconds; `None`: as many as are usual."""
    if wait is not None:
        for message in messages:
            if not isinstance(message, Refused):
                message.deliver_within = wait
