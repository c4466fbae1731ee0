"""The way of the lines through `dispatcher send`: read, submitted, settled, written, in bounded memory.

One task reads and submits, one writes, in the order of the input; each block in between has a task that waits
for it. What is read and not yet written is bounded by `WINDOW_LINES` and `WINDOW_BYTES`: past either, reading
stops until the oldest block is written; if it is the writing that is slow, it stops at `BACKLOG_BYTES`.
Whatever ends the sending early (a signal, a refused token, a full disk) asks `Stop`; then nothing more is
read, what was taken is drained, and every line that was read still gets its record. Knows neither arguments
nor terminals.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import anyio
import anyio.to_thread

from dispatcher.cli._blocks import NOT_SENT, Block, read_line, refused
from dispatcher.errors import AdmissionError, DeadlineExceeded, DispatcherClosed, Halted, QueueFull
from dispatcher.message import Message
from dispatcher.ndjson import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.cli._blocks import Place
    from dispatcher.cli._input import Input
    from dispatcher.cli._outputs import Outputs
    from dispatcher.cli._records import Problem
    from dispatcher.dispatcher import Dispatcher
    from dispatcher.errors import DeliveryError
    from dispatcher.ndjson import Line

WINDOW_LINES: Final = 100_000
WINDOW_BYTES: Final = 33_554_432
"""Of the input; decoded and encoded, each of its messages is held twice more."""
BLOCK_LINES: Final = 250
WRITE_BYTES: Final = 1_048_576
"""Written at once, about: one joined copy of the records of several blocks."""
BACKLOG_BYTES: Final = 2 * WRITE_BYTES
"""Records that may wait for a slow disk before reading waits for it too."""
T = TypeVar("T")


class Reporter(Protocol):
    """Who is told about lines that were not delivered, in the order of the input."""

    def problem(self, number: int, problem: Problem, lines: int = 1) -> None:
        """That of so many lines of a block, `number` the first; of very many kinds, the first of each."""
        ...


class Stop:
    """Why reading ends before the input does; the first one who asks says why."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.is_refused = False
        """The upstream refused the token or the URL at first contact."""
        self.signals = 0
        self.asked = asyncio.Event()
        self._scope: anyio.CancelScope | None = None

    def ask(self, why: str, *, is_refused: bool = False) -> None:
        """Read nothing more."""
        if self.why is not None:
            return
        self.why, self.is_refused = why, is_refused
        self.asked.set()
        if self._scope is not None:
            self._scope.cancel()

    async def unless_asked(self, wait: Callable[[], Awaitable[T]]) -> T | None:
        """What `wait` gives, or `None` as soon as reading is to stop."""
        if self.why is None:
            with anyio.CancelScope() as self._scope:
                return await wait()
        return None


class Totals:
    """What became of the lines so far."""

    def __init__(self) -> None:
        self.read = 0
        self.delivered = 0
        self.deduplicated = 0
        self.skipped = 0
        self.failed: Counter[str] = Counter()
        self.is_input_read = False
        """To its end."""
        self.output_error: OSError | None = None

    def add(self, block: Block) -> None:
        """A block was written."""
        self.delivered += block.delivered
        self.deduplicated += block.deduplicated
        self.skipped += block.skipped
        self.failed += block.failed


class Pipeline:
    """Sends one input through an open dispatcher."""

    def __init__(
        self, dispatcher: Dispatcher, source: Input, outputs: Outputs, stop: Stop, reporter: Reporter
    ) -> None:
        self.totals = Totals()
        self._dispatcher = dispatcher
        self._source = source
        self._outputs = outputs
        self._stop = stop
        self._reporter = reporter
        self._blocks: deque[Block] = deque()
        """Submitted and not yet written, in the order of the input."""
        self._held_lines = 0
        self._held_bytes = 0
        self._settled_bytes = 0
        """Of records that are not yet written."""
        self._is_writing = False
        self._is_reading = True
        self._has_news = asyncio.Event()
        """For the writer: another block, or the end of the input."""
        self._has_room = asyncio.Event()
        """For the reader: blocks were written."""

    async def run(self) -> Totals:
        """Until every line that was read is written."""
        async with anyio.create_task_group() as outer:
            outer.start_soon(self._close_when_asked)
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._write_all)
                await self._read_all()
                self._is_reading = False
                self._has_news.set()
            outer.cancel_scope.cancel()
        return self.totals

    async def _close_when_asked(self) -> None:
        """Draining settles what is held, and refuses whatever is still on its way in."""
        await self._stop.asked.wait()
        await self._dispatcher.aclose()

    # ------------------------------------------------------------------------------------------- reading

    async def _read_all(self) -> None:
        splitter = LineSplitter()
        try:
            while chunk := await self._stop.unless_asked(self._source.read):
                await self._submit(splitter.feed(chunk))
        except OSError as error:
            self._stop.ask(f"{self._source.name} cannot be read: {error.strerror}")
        if self._stop.why is None or self._source.is_read:
            await self._submit(splitter.finish())
            self.totals.is_input_read = True

    async def _submit(self, lines: list[Line]) -> None:
        for start in range(0, len(lines), BLOCK_LINES):
            block = Block(self.totals.read + 1, lines[start : start + BLOCK_LINES])
            await self._stop.unless_asked(partial(self._wait_for_window, block))
            self.totals.read += block.length
            self._held_lines += block.length
            self._held_bytes += block.size_bytes
            await self._take(block)
            if not self._outputs.wants_failures:
                block.lines = []  # what is held of a message is enough to send it
            self._blocks.append(block)
            self._has_news.set()
            self._tasks.start_soon(self._settle, block)

    async def _wait_for_window(self, block: Block) -> None:
        """A block alone always fits, however large; the loop gets its turn between blocks."""
        while self._held_lines and self._has_no_room(block):
            self._has_room.clear()
            await self._has_room.wait()
        await asyncio.sleep(0)

    def _has_no_room(self, block: Block) -> bool:
        return (
            self._held_lines + block.length > WINDOW_LINES
            or self._held_bytes + block.size_bytes > WINDOW_BYTES
            or (self._is_writing and self._settled_bytes > BACKLOG_BYTES)
        )

    async def _take(self, block: Block) -> None:
        """Hand in the lines of a block, one after the other: queues keep their order."""
        put_nowait, places = self._dispatcher.put_nowait, block.places
        for line in block.lines:
            found = NOT_SENT if self._stop.why is not None else read_line(line)
            if not isinstance(found, Message):
                places.append(found)
                continue
            try:
                delivery = put_nowait(found)
            except QueueFull:
                places.append(await self._put(found))
            except AdmissionError as error:
                places.append(self._refused(error, found))
            else:
                delivery.is_claimed = True
                places.append(delivery)

    async def _put(self, message: Message) -> Place:
        try:
            delivery = await self._dispatcher.put(message)
        except AdmissionError as error:
            return self._refused(error, message)
        delivery.is_claimed = True
        return delivery

    def _refused(self, error: AdmissionError, message: Message) -> Problem:
        if isinstance(error, DispatcherClosed):
            self._stop.ask(str(error))
        return refused(error, message.headers)

    # ------------------------------------------------------------------------------------------- settling

    async def _settle(self, block: Block) -> None:
        await block.settle(self._outputs)
        self._settled_bytes += block.record_bytes
        for error in block.errors:
            self._consider(error)
        block.is_settled.set()

    def _consider(self, error: DeliveryError) -> None:
        """Would every further line meet the same end?"""
        statistics = self._dispatcher.statistics()
        if isinstance(error, Halted):
            self._stop.ask(error.reason, is_refused=not statistics.delivered)
        answered = any(outcome.isdigit() for outcome in statistics.requests)
        if isinstance(error, DeadlineExceeded) and not answered:
            config = self._dispatcher.config
            what = "was not reached" if error.certainty == "not_sent" else "did not answer"
            self._stop.ask(f"{config.url} {what} within {config.deliver_within:g} s")

    # ------------------------------------------------------------------------------------------- writing

    async def _write_all(self) -> None:
        while self._blocks or self._is_reading:
            if not self._blocks:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            await self._blocks[0].is_settled.wait()
            blocks = self._take_settled()
            self._is_writing = True
            await self._write(blocks)
            self._is_writing = False
            for block in blocks:
                self._settled_bytes -= block.record_bytes
                self.totals.add(block)
                self._held_lines -= block.length
                self._held_bytes -= block.size_bytes
                for alike in block.problems.values():
                    self._reporter.problem(*alike)
            self._has_room.set()

    def _take_settled(self) -> list[Block]:
        """The settled blocks at the head, as many as are written at once."""
        blocks: list[Block] = []
        size = 0
        while self._blocks and self._blocks[0].is_settled.is_set() and size < WRITE_BYTES:
            block = self._blocks.popleft()
            size += block.record_bytes
            blocks.append(block)
        return blocks

    async def _write(self, blocks: list[Block]) -> None:
        receipts = b"".join([block.receipts for block in blocks])
        failures = b"".join([block.failures for block in blocks])
        if not (receipts or failures) or self.totals.output_error is not None:
            return
        try:
            await anyio.to_thread.run_sync(self._outputs.write, receipts, failures)
        except OSError as error:
            self.totals.output_error = error
            self._stop.ask(f"receipts or failures cannot be written: {error.strerror}")
