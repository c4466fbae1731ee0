"""The terminal that `dispatcher top` draws on: its second screen, and keys without Enter.

Everything is as it was at the end, also where that is an error, and while the program is suspended.

Draws what it is given; knows neither listeners nor figures. Used by `top`.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console
from rich.control import Control

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.text import Text

SMALLEST: Final = (20, 5)
"""Columns and lines that are drawn on at least; a smaller terminal shows a part of them."""
USUAL: Final = (80, 24)
KEY_BYTES: Final = 1_024


def make_console() -> Console:
    """For standard output: colours on a terminal, unless `NO_COLOR` is set; no text is markup."""
    return Console(
        markup=False, emoji=False, highlight=False, force_terminal=is_terminal(), legacy_windows=False
    )


def is_terminal() -> bool:
    """Whether standard output is one that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def show(console: Console, lines: Sequence[Text]) -> None:
    """Print lines as they are, however long."""
    for one in lines:
        console.print(one, soft_wrap=True)


class Terminal:
    """Standard output while something is drawn on it; standard input, if it is a terminal, for keys."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._output = sys.stdout.fileno()
        self.keys: int | None = None
        """A descriptor to read keys from; there may be none."""
        if sys.stdin is not None and sys.stdin.isatty():
            self.keys = sys.stdin.fileno()
        self._modes: list[Any] | None = None

    def __enter__(self) -> Self:
        if self.keys is not None:
            self._modes = termios.tcgetattr(self.keys)
            tty.setcbreak(self.keys, termios.TCSANOW)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._console.set_alt_screen(False)
            self._console.show_cursor(True)
        finally:
            if self.keys is not None and self._modes is not None:
                termios.tcflush(self.keys, termios.TCIFLUSH)
                termios.tcsetattr(self.keys, termios.TCSANOW, self._modes)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines to make now."""
        columns, lines = self._real_size
        return max(SMALLEST[0], columns), max(SMALLEST[1], lines)

    @property
    def _real_size(self) -> tuple[int, int]:
        # Not that of the environment, which is of the past; a line without a size says 0.
        now = os.get_terminal_size(self._output)
        return now.columns or USUAL[0], now.lines or USUAL[1]

    def draw(self, lines: Sequence[Text]) -> None:
        """Put lines that fill the screen on it, in one write; of more than it has, the first and the last."""
        self._console.size = self._real_size
        height = self._console.height
        shown = [*lines[: height - 1], *lines[-1:]] if len(lines) > height else lines
        with self._console:
            self._console.control(Control.home())
            for place, one in enumerate(shown):
                self._console.print(one, end="\n" if place < len(shown) - 1 else "", no_wrap=True, crop=True)

    def pressed(self) -> bytes:
        """The keys that were pressed; nothing: there will be no more."""
        assert self.keys is not None
        try:
            return os.read(self.keys, KEY_BYTES)
        except BlockingIOError:
            return b" "
        except OSError:
            return b""

    def suspend(self) -> None:
        """Stop as Ctrl-Z does, with the terminal as it was, and go on when told to."""
        self.__exit__(None, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()
