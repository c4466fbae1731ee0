"""`dispatcher send`: messages from a file or a pipe, one JSON object a line, any number of them.

Reads the arguments, opens everything before anything is sent, and tells how it went; the work is done in
`_pipeline`. The token comes from the environment or a file: an argument would be in everyone's process list.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED, EXIT_USAGE
from dispatcher.cli._input import Input
from dispatcher.cli._outputs import Outputs
from dispatcher.cli._pipeline import Pipeline, Stop, Totals
from dispatcher.cli._records import BAD_LINE
from dispatcher.cli._screen import Screen, library_log_on, show_progress, tell_silence
from dispatcher.cli.loop import run_in_loop, spare_collector
from dispatcher.config import Config, add_settings_arguments, overrides_from
from dispatcher.dispatcher import Dispatcher
from dispatcher.sources import TOKEN_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.statistics import Statistics

NAME: Final = "dispatcher send"
BAD_LINES: Final = (BAD_LINE, "MessageInvalid", "MessageTooLarge")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

DESCRIPTION: Final = (
    "Send messages from a file or a pipe. The token is read from QSTASH_TOKEN or --token-file."
)
EPILOG: Final = """\
input: one JSON object a line, UTF-8, in any number. A line with `destination` is an item as the service's own
/v2/batch takes it: destination, headers, body, queue. A line with `url`, `url_group` or `api` is a batch
request of the official SDK. `body_base64` carries bytes in either. A bad line is reported and stops nothing;
blank lines are skipped. Queues keep the order of the lines.

--receipts: one JSON object for each line of the input, in its order:
  {"line": 1, "messageId": "msg_…", "deduplicationId": "…", "attempts": 1}
      with "deduplicated": true if the service knew the line's own id; a URL group's messageId is null, and
      "endpoints" has url, messageId, deduplicated and error for each of its endpoints
  {"line": 2, "error": "MessageRejected", "reason": "…", "certainty": "not_accepted", "attempts": 2}
      error is BadLine, Stopped, or the name of the library's error; certainty is not_sent, not_accepted,
      unknown or accepted; with "status" if the service gave one, and "lastAttempt" if there was one
  {"line": 3, "skipped": "blank"}

--failures: the lines that were not delivered, ready for another `dispatcher send`: the object of the line,
its deduplication id filled in, and beside it "_failure" (line, error, reason, certainty, attempts), which is
ignored when it is read. Within ten minutes of its first attempt such a line cannot be delivered twice; after
that, one whose certainty is "unknown" can. A line that is not a JSON object has its text in "_raw" (or
"_raw_base64"): put the corrected text in its place; till then it is refused. Of a line above 128 MiB nothing
is kept.

Both files are written anew. A file that is read cannot be written.

--outbox: lines are accepted in the file, an SQLite database, and sent from there. Killed or stopped, the same
command goes on behind the last line that was accepted: none is lost, and none is accepted twice; within ten
minutes of its first attempt none is delivered twice. An input is known by its path, or by --run, and has to
begin with the lines that were accepted before; more may have been added. What the service rejected stays in
the file: see `dispatcher outbox`. One process at a time may have the file open. It ends when all that the
file holds has settled; there are neither --receipts nor --failures.

exit code: 0 all delivered, 1 some not, or not all was read; 2 wrong usage or configuration, or the token or
the URL was refused before anything was delivered. Ctrl-C and SIGTERM stop the reading and wait for what is
held, --drain-within at most; the second one stops at once, with 128 + the signal's number.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher send`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("file", metavar="FILE|-", help="NDJSON file, or - for standard input")
    add("--receipts", metavar="FILE", help="write one line for each line of the input; - for standard output")
    add("--failures", metavar="FILE", help="write what was not delivered, as lines to send again")
    add(
        "--outbox", metavar="FILE", help="accept each line durably in this file first; resumes where it ended"
    )
    add("--run", metavar="NAME", help="with --outbox: what this input is known by (default: its path)")
    add("--token-file", metavar="FILE", help="file that holds the token, instead of QSTASH_TOKEN")
    add("--config", metavar="FILE", help="TOML file with settings, instead of DISPATCHER_CONFIG's")
    add("--no-progress", action="store_true", help="no progress line (there is none without a terminal)")
    add("--quiet", action="store_true", help="say only what ends the sending early")
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send, and return the exit code. Raises `ConfigError`."""
    environment = dict(os.environ)
    if arguments.token_file is not None:
        environment[TOKEN_FILE] = arguments.token_file
    config = Config.load(env=environment, file=arguments.config, **overrides_from(arguments))
    screen = Screen(sys.stderr, NAME, is_quiet=arguments.quiet)
    try:
        source = Input(arguments.file)
    except OSError as error:
        screen.fail(f"{arguments.file} cannot be read: {error.strerror}")
        return EXIT_USAGE
    with source:
        if arguments.outbox is not None or arguments.run is not None:
            return _run_durably(arguments, config, source, screen)
        try:
            outputs = _open_outputs(arguments, source)
        except (OSError, ValueError) as error:
            screen.fail(_why_unwritable(error))
            return EXIT_USAGE
        with outputs, library_log_on(screen):
            spare_collector()
            has_progress = not (arguments.quiet or arguments.no_progress) and screen.is_terminal
            return run_in_loop(_send(config, source, outputs, screen, has_progress=has_progress))


def _run_durably(arguments: argparse.Namespace, config: Config, source: Input, screen: Screen) -> int:
    from dispatcher.cli._durable import run_name, send_durably
    from dispatcher.outbox import SQLiteStore
    from dispatcher.sidecar.redis_url import is_url

    try:
        if arguments.outbox is None:
            raise ValueError("--run goes with --outbox")
        if is_url(arguments.outbox):
            raise ValueError("--outbox wants a file here; an outbox in Redis belongs to `dispatcher serve`")
        if arguments.receipts is not None or arguments.failures is not None:
            raise ValueError(
                "with --outbox there are no --receipts and --failures: `dispatcher outbox` tells"
            )
        run = run_name(arguments.file, source.is_standard, arguments.run)
    except ValueError as error:
        screen.fail(str(error))
        return EXIT_USAGE
    store = SQLiteStore(arguments.outbox)
    with library_log_on(screen):
        spare_collector()
        return run_in_loop(send_durably(config, store, source, run, screen, _signals_ask))


def _open_outputs(arguments: argparse.Namespace, source: Input) -> Outputs:
    for name in (arguments.receipts, arguments.failures):
        if name is not None and source.is_same_file(name):
            raise ValueError(f"{name} is read; writing it would destroy it")
    return Outputs(arguments.receipts, arguments.failures)


def _why_unwritable(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'standard output'} cannot be written: {error.strerror}"
    return str(error)


async def _send(
    config: Config, source: Input, outputs: Outputs, screen: Screen, *, has_progress: bool
) -> int:
    stop = Stop()
    began = asyncio.get_running_loop().time()
    async with Dispatcher(config, name="send") as dispatcher, anyio.create_task_group() as tasks:
        with _signals_ask(stop, screen, dispatcher):
            tasks.start_soon(tell_silence, screen, dispatcher)
            if has_progress:
                tasks.start_soon(show_progress, screen, dispatcher, source)
            totals = await Pipeline(dispatcher, source, outputs, stop, screen).run()
            tasks.cancel_scope.cancel()
    seconds = asyncio.get_running_loop().time() - began
    return _conclude(totals, stop, dispatcher.statistics(), seconds, screen)


@contextmanager
def _signals_ask(stop: Stop, screen: Screen, dispatcher: Dispatcher) -> Iterator[None]:
    """The first signal stops the reading, the second one everything."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        held = dispatcher.statistics().held
        if stop.signals:
            screen.fail(f"{number.name} again: stopped at once, with {held:,} messages unconfirmed")
            os._exit(128 + number)
        stop.signals += 1
        stop.ask(f"{number.name} was received")
        within = dispatcher.config.drain_within
        screen.say(
            f"{number.name}: reading stops, {held:,} messages are still held and get {within:g} s; "
            "once more to stop at once"
        )

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _conclude(totals: Totals, stop: Stop, statistics: Statistics, seconds: float, screen: Screen) -> int:
    failed = sum(totals.failed.values())
    if stop.why is not None:
        rest = "it is the last one" if totals.is_input_read else "nothing after it was read"
        screen.fail(f"stopped at line {totals.read:,}: {stop.why}; {rest}")
    screen.tell_alike()
    for line in _summary(totals, failed, statistics, seconds):
        screen.say(line)
    if stop.is_refused:
        return EXIT_USAGE
    is_complete = totals.is_input_read and totals.output_error is None
    return EXIT_DONE if is_complete and not failed else EXIT_UNDELIVERED


def _summary(totals: Totals, failed: int, statistics: Statistics, seconds: float) -> Iterator[str]:
    requests = sum(statistics.requests.values())
    rate = totals.delivered / seconds if seconds > 0 else 0.0
    known = f" ({totals.deduplicated:,} known to the service before)" if totals.deduplicated else ""
    blank = f", {totals.skipped:,} blank" if totals.skipped else ""
    yield (
        f"{totals.read:,} lines: {totals.delivered:,} delivered{known}, {failed:,} failed{blank}; "
        f"{seconds:,.1f} s, {rate:,.0f} msg/s, {requests:,} requests"
    )
    if failed:
        bad = sum(totals.failed[kind] for kind in BAD_LINES)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in totals.failed.most_common())
        yield f"failed: {kinds}" + (f" ({bad:,} bad lines)" if bad else "")
