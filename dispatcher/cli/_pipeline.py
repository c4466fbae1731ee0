"""The way of the lines through `dispatcher send`: read, submitted, settled, written, in bounded memory.

One task reads and submits, one writes, in the order of the input; each block in between has a task that waits
for it. What is read and not yet written is bounded by `WINDOW_LINES` and `WINDOW_BYTES`: past either, reading
stops until the oldest block is written. Whatever ends the sending early (a signal, a refused token, a full
disk) asks `Stop`; then nothing more is read, what was taken is drained, and every line that was read still
gets its record. Knows neither arguments nor terminals.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import anyio
import anyio.to_thread

from dispatcher.cli._blocks import Block, read_line, refused
from dispatcher.cli._records import STOPPED
from dispatcher.delivery import Delivery
from dispatcher.errors import AdmissionError, DeadlineExceeded, Halted, QueueFull
from dispatcher.ndjson import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.cli._blocks import Place
    from dispatcher.cli._input import Input
    from dispatcher.cli._outputs import Outputs
    from dispatcher.cli._records import Problem
    from dispatcher.dispatcher import Dispatcher
    from dispatcher.ndjson import Line

WINDOW_LINES: Final = 100_000
WINDOW_BYTES: Final = 33_554_432
"""Of the input; decoded and encoded, each of its messages is held twice more."""
BLOCK_LINES: Final = 500
WRITE_BYTES: Final = 1_048_576
"""Written at once at most, for a slow reader of the receipts must not make them pile up elsewhere."""
T = TypeVar("T")


class Reporter(Protocol):
    """Who is told about lines that were not delivered, in the order of the input."""

    def problem(self, number: int, problem: Problem) -> None:
        """One line's; of very many, the first of each block."""
        ...


class Stop:
    """Why reading ends before the input does; the first one who asks says why."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.is_refused = False
        """The upstream refused the token or the URL at first contact."""
        self.asked = anyio.Event()
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
        self._lines_held = 0
        self._bytes_held = 0
        self._has_changed = anyio.Event()

    async def run(self) -> Totals:
        """Until every line that was read is written. Raises `OSError` if the input cannot be read."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._close_when_asked)
            async with anyio.create_task_group() as ends:
                ends.start_soon(self._write_all)
                try:
                    await self._read_all()
                finally:
                    self.is_reading = False
                    self._change()
            self._tasks.cancel_scope.cancel()
        return self.totals

    is_reading = True

    async def _close_when_asked(self) -> None:
        """Draining settles what is held, and refuses whatever is still on its way in."""
        await self._stop.asked.wait()
        await self._dispatcher.aclose()

    # ------------------------------------------------------------------------------------------- reading

    async def _read_all(self) -> None:
        splitter = LineSplitter()
        while chunk := await self._stop.unless_asked(self._source.read):
            await self._submit(splitter.feed(chunk))
        if self._stop.why is None:
            await self._submit(splitter.finish())
            self.totals.is_input_read = self._stop.why is None

    async def _submit(self, lines: list[Line]) -> None:
        for start in range(0, len(lines), BLOCK_LINES):
            block = Block(self.totals.read + 1, lines[start : start + BLOCK_LINES])
            await self._stop.unless_asked(lambda block=block: self._room_for(block))
            self.totals.read += block.length
            self._lines_held += block.length
            self._bytes_held += block.size_bytes
            self._blocks.append(block)
            await self._take(block)
            self._tasks.start_soon(self._settle, block)

    async def _room_for(self, block: Block) -> None:
        while self._lines_held and (
            self._lines_held + block.length > WINDOW_LINES
            or self._bytes_held + block.size_bytes > WINDOW_BYTES
        ):
            await self._change_wait()
        await anyio.lowlevel.checkpoint()

    async def _take(self, block: Block) -> None:
        for line in block.lines:
            place = self._take_now(line)
            block.places.append(await self._wait_to_take(line) if place is _FULL else place)

    def _take_now(self, line: Line) -> Place:
        message = read_line(line)
