"""The way of the lines through `dispatcher send --outbox`: each is durable before it is sent, and once.

Lines are accepted in blocks, each in one transaction with a mark: how many lines of the input were accepted,
and a digest of them. Who is killed and started again reads on behind the mark, after he has seen that the
lines before it are the same; so no line is accepted twice, and none is left out. What was accepted is sent by
the outbox's relay, whoever accepted it. Made by `send`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED, EXIT_USAGE
from dispatcher.cli._blocks import read_line, refused
from dispatcher.cli._pipeline import Stop
from dispatcher.cli._records import Problem
from dispatcher.dispatcher import Dispatcher
from dispatcher.errors import AdmissionError, OutboxError, StoreFull
from dispatcher.message import Message
from dispatcher.ndjson import LineSplitter
from dispatcher.outbox import Outbox, Stored
from dispatcher.outbox.store import Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from dispatcher.cli._input import Input
    from dispatcher.cli._screen import Screen
    from dispatcher.config import Config
    from dispatcher.ndjson import Line
    from dispatcher.outbox import SQLiteStore
    from dispatcher.outbox.outbox import Place
    from dispatcher.statistics import Statistics

    Signals = Callable[[Stop, Screen, Dispatcher], AbstractContextManager[None]]

BLOCK_LINES: Final = 1_000
"""Of one transaction."""
LOOK_SECONDS: Final = 0.05
"""Between looks at whether there is room, whether all has settled, and whether the service refuses us."""


class Progress(Struct, gc=False):
    """How far an input was accepted; kept as the value of a mark."""

    lines: int = 0
    accepted: int = 0
    blank: int = 0
    bad: int = 0
    digest: bytes = b""
    """Of all these lines."""
    dead_before: int = 0
    """Dead letters that the file held when this input was begun."""


def run_name(file: str, is_standard: bool, given: str | None) -> str:
    """Under which name an input's progress is kept. Raises `ValueError` if it needs one and has none."""
    if given:
        return given
    if is_standard:
        raise ValueError("standard input has no name by which it is known again: give it one with --run")
    return str(Path(file).resolve())


class OtherInputError(Exception):
    """The input does not begin with the lines that were accepted under its name."""


class DurableSending:
    """Accepts one input into an open outbox, and waits until the file holds nothing that has not settled."""

    def __init__(
        self, dispatcher: Dispatcher, outbox: Outbox, source: Input, run: str, stop: Stop, screen: Screen
    ) -> None:
        self.progress = Progress()
        self.before = Progress()
        """What an earlier process had accepted."""
        self.is_input_read = False
        self._dispatcher = dispatcher
        self._outbox = outbox
        self._source = source
        self._mark = f"send {run}"
        self._stop = stop
        self._screen = screen
        self._has_told_full = False
        self._digest = blake2b(digest_size=32)
        self._seen = 0
        """Lines that were read, of those that had been accepted before."""

    async def run(self) -> None:
        """Until all has settled, or the sending is stopped.

        Raises:
            OtherInputError: Nothing was accepted.
        """
        value = await self._outbox.store.mark(self._mark)
        if value is None:
            self.progress.dead_before = self._outbox.status().dead
        else:
            self.before = msgspec.msgpack.decode(value, type=Progress)
            self.progress = msgspec.structs.replace(self.before)
        watching = asyncio.create_task(self._watch())
        try:
            await self._read_all()
            await self._wait_until_settled()
        finally:
            watching.cancel()

    # ------------------------------------------------------------------------------------------- reading

    async def _read_all(self) -> None:
        splitter = LineSplitter()
        try:
            while chunk := await self._stop.unless_asked(self._source.read):
                await self._accept_all(splitter.feed(chunk))
        except OSError as error:
            self._stop.ask(f"{self._source.name} cannot be read: {error.strerror}")
        if self._stop.why is None:
            await self._accept_all(splitter.finish())
            if self._seen < self.before.lines:
                raise OtherInputError(f"it has {self._seen:,} lines, and {self.before.lines:,} were accepted")
            self.is_input_read = self._stop.why is None

    async def _accept_all(self, lines: list[Line]) -> None:
        lines = self._behind_the_mark(lines)
        for start in range(0, len(lines), BLOCK_LINES):
            await self._accept(lines[start : start + BLOCK_LINES])

    def _behind_the_mark(self, lines: list[Line]) -> list[Line]:
        """Those that were not accepted before; the others are compared with what was."""
        left = self.before.lines - self._seen
        if left <= 0:
            return lines
        known = lines[:left]
        self._seen += len(known)
        add_to(self._digest, known)
        if self._seen == self.before.lines and self._digest.digest() != self.before.digest:
            raise OtherInputError(f"its first {self._seen:,} lines are not those that were accepted")
        return lines[left:]

    async def _accept(self, lines: list[Line]) -> None:
        """One transaction; where there is no room for it, several, as there is."""
        while self._stop.why is None:
            try:
                await self._accept_together(lines)
            except StoreFull as error:
                if len(lines) > 1:
                    middle = len(lines) // 2
                    await self._accept(lines[:middle])
                    await self._accept(lines[middle:])
                    return
                self._tell_full(error)
                await asyncio.sleep(LOOK_SECONDS)
            except OutboxError as error:
                self._stop.ask(str(error))
            else:
                return

    def _tell_full(self, error: StoreFull) -> None:
        if not self._has_told_full:
            self._has_told_full = True
            self._screen.say(f"reading waits for room: {error}")

    async def _accept_together(self, lines: list[Line]) -> None:
        found = [read_line(line) for line in lines]
        digest = self._digest.copy()
        add_to(digest, lines)
        before = self.progress
        after = msgspec.structs.replace(before, lines=before.lines + len(lines), digest=digest.digest())
        after.blank += found.count(None)

        def mark(places: Sequence[Place]) -> Mark:
            good = sum(isinstance(one, Stored) for one in places)
            after.accepted += good
            after.bad += len(found) - found.count(None) - good
            return Mark(self._mark, msgspec.msgpack.encode(after))

        messages = [one for one in found if isinstance(one, Message)]
        places = iter(await self._outbox.put_marked(messages, mark))
        self.progress, self._digest = after, digest
        for number, one in enumerate(found, before.lines + 1):
            self._report(number, next(places) if isinstance(one, Message) else one)

    def _report(self, number: int, place: Place | Problem | None) -> None:
        if isinstance(place, Problem):
            self._screen.problem(number, place)
        elif isinstance(place, AdmissionError):
            self._screen.problem(number, refused(place))

    # ------------------------------------------------------------------------------------------- settling

    async def _wait_until_settled(self) -> None:
        while self._stop.why is None and self.left:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stop.asked.wait()

    @property
    def left(self) -> int:
        """Messages in the file that have not settled."""
        status = self._outbox.status()
        return status.waiting + status.claimed

    @property
    def dead(self) -> int:
        """Dead letters since this input was begun."""
        return max(0, self._outbox.status().dead - self.progress.dead_before)

    async def _watch(self) -> None:
        """Ask for the end where nothing more can be delivered: it is refused for good, or the relay died."""
        loop, since = asyncio.get_running_loop(), None
        while True:
            if self._outbox.death is not None:
                self._stop.ask(self._outbox.death)
            statistics = self._dispatcher.statistics()
            if statistics.state not in ("halted", "refused"):
                since = None
            elif statistics.state == "refused":
                self._stop.ask(statistics.reason, is_refused=not statistics.delivered)
            elif since is None:
                since = loop.time()
            elif loop.time() - since > self._dispatcher.config.deliver_within:
                self._stop.ask(statistics.reason)
            await asyncio.sleep(LOOK_SECONDS)


def add_to(digest: blake2b, lines: list[Line]) -> None:
    """Take lines in; of one that is too long only its length is known."""
    for line in lines:
        digest.update((line if isinstance(line, bytes) else b"%d bytes" % line.size_bytes) + b"\n")


async def send_durably(
    config: Config, store: SQLiteStore, source: Input, run: str, screen: Screen, signals: Signals
) -> int:
    """Accept the input, wait until all has settled, tell how it went; the exit code.

    Raises:
        OutboxError: The file cannot be opened.
    """
    stop = Stop()
    async with Dispatcher(config, name="send") as dispatcher:
        outbox = Outbox(store, dispatcher)
        found = await outbox.start()
        if found.recovered:
            screen.say(f"{store.path} holds {found.recovered:,} messages from before; they are sent as well")
        sending = DurableSending(dispatcher, outbox, source, run, stop, screen)
        with signals(stop, screen, dispatcher):
            try:
                await sending.run()
            except OtherInputError as error:
                screen.fail(
                    f"{source.name} is not the input of {run!r}: {error}; give this one another --run"
                )
                return EXIT_USAGE
            finally:
                await outbox.aclose()
        return conclude(sending, stop, dispatcher.statistics(), screen, store)


def conclude(
    sending: DurableSending, stop: Stop, statistics: Statistics, screen: Screen, store: SQLiteStore
) -> int:
    """The last lines, and the exit code."""
    done, before, left, dead = sending.progress, sending.before, sending.left, sending.dead
    if stop.why is not None:
        screen.fail(f"stopped at line {done.lines:,}: {stop.why}")
    screen.tell_alike()
    accepted = f"{done.accepted:,} accepted" + (f" ({before.accepted:,} before)" if before.lines else "")
    blank = f", {done.blank:,} blank" if done.blank else ""
    requests = sum(statistics.requests.values())
    screen.say(
        f"{done.lines:,} lines: {accepted}, {done.bad:,} bad{blank}; "
        f"{statistics.delivered:,} messages delivered now, {requests:,} requests"
    )
    if left:
        screen.fail(f"{left:,} messages are not settled and stay in {store.path}; the same command goes on")
    if dead:
        screen.fail(f"{dead:,} dead letters: dispatcher outbox dead-letters {store.path}")
    if stop.is_refused:
        return EXIT_USAGE
    is_done = sending.is_input_read and not (left or dead or done.bad)
    return EXIT_DONE if is_done else EXIT_UNDELIVERED
