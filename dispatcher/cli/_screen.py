"""What `dispatcher send` says while it runs: lines on standard error, and one that is redrawn on a terminal.

Everything goes through one `Screen`, so that no warning lands in the middle of the progress line. Without a
terminal there is no progress at all: a log needs no rate. A standard error that nobody reads any more ends
nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TextIO

from dispatcher.cli._records import STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.cli._input import Input
    from dispatcher.cli._records import Likeness, Problem
    from dispatcher.dispatcher import Dispatcher

PROBLEMS_TOLD: Final = 20
UNTOLD: Final = ("Halted", STOPPED)
"""Not told line by line: what ends the sending early is told once."""
REDRAW_SECONDS: Final = 0.25
RATE_DRAWS: Final = 8
"""The rate is that of the last two seconds."""
SILENCE_SECONDS: Final = 2.0
REPEAT_SECONDS: Final = 10.0
"""For so long the library's log does not say the same thing again, with other numbers."""
_TOLD_AT_THE_END: Final = ("closed with undelivered messages", "at first contact")
"""What the library says of what ends the sending: the last lines say it."""
_CLEAR: Final = "\r\x1b[K"


class Screen:
    """Standard error: whole lines, and below them the progress line.

    Args:
        stream: Where it goes; `None` where the process was started without.
        name: Of the command, before each line.
        is_quiet: Only `fail` is heard.
    """

    def __init__(self, stream: TextIO | None, name: str, *, is_quiet: bool = False) -> None:
        self._stream = stream
        self.name = name
        self._is_quiet = is_quiet
        self._line = ""
        self._alike: dict[Likeness, tuple[int, int]] = {}
        """Of each problem that was told: the line it was told of, and how many lines more have it."""
        self._has_untold = False

    @property
    def is_terminal(self) -> bool:
        """Someone is looking."""
        return self._stream is not None and self._stream.isatty()

    def say(self, text: str) -> None:
        """A line that `--quiet` leaves out."""
        if not self._is_quiet:
            self.fail(text)

    def fail(self, text: str) -> None:
        """A line that must be seen."""
        self._write(f"{_CLEAR if self._line else ''}{self.name}: {text}\n{self._line}")

    def draw(self, line: str) -> None:
        """Set the progress line, `""` for none."""
        if line or self._line:
            self._line = line
            self._write(_CLEAR + line)

    def problem(self, number: int, problem: Problem, lines: int = 1) -> None:
        """Lines of the input that were not delivered for the same reason, `number` the first of them.

        Each reason is told once, its other lines are counted; after the first few reasons all are.
        """
        if problem.kind in UNTOLD:
            return
        if problem.likeness in self._alike:
            first, more = self._alike[problem.likeness]
            self._alike[problem.likeness] = (first, more + lines)
        elif len(self._alike) < PROBLEMS_TOLD:
            self._alike[problem.likeness] = (number, lines - 1)
            self.say(f"line {number:,}: {problem}")
        elif not self._has_untold:
            self._has_untold = True
            self.say(
                "further lines that are not delivered are only counted; --receipts and --failures list all"
            )

    def tell_alike(self) -> None:
        """How many lines had the reasons that were told."""
        for first, more in self._alike.values():
            if more:
                self.say(f"as line {first:,}: {more:,} more line{'' if more == 1 else 's'}")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
            self._stream.flush()


class _Handler(logging.Handler):
    """The library's own log on the screen, without its repetitions."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.INFO)
        self._screen = screen
        self._told_at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).removeprefix(f"{self._screen.name}: ")
        if any(words in text for words in _TOLD_AT_THE_END):
            return
        if record.created - self._told_at.get(record.msg, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._told_at[record.msg] = record.created
            self._screen.say(text)


@contextmanager
def library_log_on(screen: Screen) -> Iterator[None]:
    """Show what the library logs."""
    logger = logging.getLogger("dispatcher")
    handler, level = _Handler(screen), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


async def tell_silence(screen: Screen, dispatcher: Dispatcher) -> None:
    """Say so if the upstream has not answered at all after `SILENCE_SECONDS`; a name server may be slow."""
    await asyncio.sleep(SILENCE_SECONDS)
    statistics = dispatcher.statistics()
    if statistics.held and not statistics.requests:
        screen.say(f"no answer from {dispatcher.config.url} yet; still trying")


async def show_progress(screen: Screen, dispatcher: Dispatcher, source: Input) -> None:
    """Redraw the progress line until cancelled."""
    loop = asyncio.get_running_loop()
    draws: deque[tuple[float, int]] = deque([(loop.time(), 0)], maxlen=RATE_DRAWS + 1)
    try:
        while True:
            await asyncio.sleep(REDRAW_SECONDS)
            statistics = dispatcher.statistics()
            draws.append((loop.time(), statistics.delivered))
            (then, before), (now, after) = draws[0], draws[-1]
            parts = [
                f"{statistics.delivered:,} delivered",
                f"{statistics.failed:,} failed",
                f"{statistics.held:,} held",
                f"{statistics.batches_in_flight} requests in flight",
                f"{(after - before) / (now - then):,.0f}/s",
            ]
            if source.size_bytes:
                parts.append(f"{min(1.0, source.read_bytes / source.size_bytes):.0%} read")
            screen.draw(" · ".join(parts)[: _columns() - 1])
    finally:
        screen.draw("")


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
