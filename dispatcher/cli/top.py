"""`dispatcher top`: the sidecar's status page in a terminal.

Reads `/status/stream` of admin listeners, changes nothing, presents no token. What it draws with (rich) is an
extra: this module is imported without it, and says what to install.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED, EXIT_USAGE
from dispatcher.cli._top_feed import Listener
from dispatcher.cli.loop import run_in_loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text

    from dispatcher.cli._top_terminal import Terminal

NAME: Final = "dispatcher top"
URL: Final = "http://127.0.0.1:8091"
INTERVAL: Final = (0.1, 3_600.0)
LATE_SECONDS: Final = 1.0
"""After which a drawing that is due is made without news."""
QUIT_KEYS: Final = b"qQ\x03\x04"
MISSING: Final = (
    "it draws with rich, which is not installed: pip install 'qstash-dispatcher[top]', or 'rich>=13'"
)

DESCRIPTION: Final = "Show in a terminal what a sidecar's status page shows, live."
EPILOG: Final = f"""\
URL is the admin listener of a running `dispatcher serve` (default: {URL}); with several there is a row
for each, and their sum. It only reads, and needs no token.

q or Ctrl-C ends it. A listener that is not there, or goes, is tried again every second. Where standard output
is no terminal it does what --once does. NO_COLOR is understood.

exit code: 0 ended by q or Ctrl-C, or printed; 1 --once, and a listener was not heard; 2 wrong usage, or rich
is not installed; 128 + the signal's number after SIGTERM or SIGHUP.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher top`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("urls", metavar="URL", nargs="*", help="admin listeners")
    add("--interval", type=_interval, default=1.0, metavar="S", help="seconds between drawings (default: 1)")
    add("--once", action="store_true", help="print everything once, whole, and end")


def run(arguments: argparse.Namespace) -> int:
    """Show it until told to end, and return the exit code."""
    try:
        listeners = [Listener(url) for url in arguments.urls or [URL]]
        if sys.stdout is None:
            raise ValueError("there is no standard output to draw on")
        from dispatcher.cli._top_terminal import Terminal, is_terminal, make_console
    except (ValueError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "rich":
            raise
        print(f"{NAME}: {error if isinstance(error, ValueError) else MISSING}", file=sys.stderr)
        return EXIT_USAGE
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = make_console()
    if arguments.once or not is_terminal():
        return run_in_loop(_once(listeners, console))
    return run_in_loop(_Watch(listeners, console, Terminal(console), arguments.interval).run())


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not INTERVAL[0] <= value <= INTERVAL[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed is 0.1 to 3,600 s")
    return value


async def _once(listeners: Sequence[Listener], console: Console) -> int:
    """Print everything of those that are there; the others are told on standard error."""
    from dispatcher.cli._top_terminal import show

    await asyncio.gather(*(one.hear() for one in listeners))
    heard = [one for one in listeners if one.report is not None]
    if heard:
        show(console, _page(listeners, console, console.width, None))
    for one in listeners:
        if one.trouble:
            print(f"{NAME}: {one.url}: {one.trouble}", file=sys.stderr)
    return EXIT_DONE if len(heard) == len(listeners) else EXIT_UNDELIVERED


def _page(listeners: Sequence[Listener], console: Console, width: int, height: int | None) -> list[Text]:
    from dispatcher.cli._top_fleet import draw_fleet
    from dispatcher.cli._top_layout import Frame
    from dispatcher.cli._top_view import draw

    frame = Frame(console, width, height)
    return draw(listeners[0], frame) if len(listeners) == 1 else draw_fleet(listeners, frame)


class _Watch:
    """Draws what the listeners say, until a key or a signal.

    A drawing is made every `interval`, with the next news there are; at once when the terminal or a link to a
    listener changes.
    """

    def __init__(
        self, listeners: Sequence[Listener], console: Console, terminal: Terminal, interval: float
    ) -> None:
        self._listeners = listeners
        self._console = console
        self._terminal = terminal
        self._interval = interval
        self._urgent, self._news = asyncio.Event(), asyncio.Event()
        self._code: int | None = None

    async def run(self) -> int:
        """The exit code, when it has ended."""
        with self._terminal:
            self._attend()
            following = [asyncio.create_task(one.follow(self._tell)) for one in self._listeners]
            try:
                await self._draw_on()
            except OSError:  # the terminal has gone
                self._code = 128 + signal.SIGHUP
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)
        return EXIT_DONE if self._code is None else self._code

    async def _draw_on(self) -> None:
        while self._code is None:
            self._urgent.clear()
            self._news.clear()
            width, height = self._terminal.size
            self._terminal.draw(_page(self._listeners, self._console, width, height))
            await _first(self._urgent, self._interval)
            if not self._urgent.is_set():
                await _first(self._news, LATE_SECONDS)

    def _tell(self, has_changed: bool) -> None:
        self._news.set()
        if has_changed:
            self._urgent.set()

    def _attend(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._end, EXIT_DONE)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end, 128 + number)
        loop.add_signal_handler(signal.SIGWINCH, self._tell, True)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        if self._terminal.keys is not None:
            loop.add_reader(self._terminal.keys, self._press)

    def _press(self) -> None:
        keys = self._terminal.pressed()
        if not keys:
            self._end(128 + signal.SIGHUP)
        elif any(key in QUIT_KEYS for key in keys):
            self._end(EXIT_DONE)

    def _end(self, code: int) -> None:
        self._code = code
        self._tell(True)

    def _suspend(self) -> None:
        self._terminal.suspend()
        self._tell(True)


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
