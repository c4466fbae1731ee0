"""The command `dispatcher`: one module a sub-command, imported only when it is called.

Each command module has `add_arguments(parser)` and `run(arguments) -> int`, its exit code:
0 done, 1 something was not delivered (or a check failed), 2 wrong usage or configuration.
What is wrong is told in a line or two, never as a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = {
    "bench": "put an open-loop load on the library or any upstream, and measure it",
    "check": "print the settings of `serve` with their origin, and ask the upstream for its opinion",
    "demo": "send 20,000 mixed messages through a faulty local upstream and check every one",
    "dev": "run a local upstream that behaves like the service, faults included",
    "outbox": "look at the file of an outbox, and decide about its dead letters",
    "send": "send messages from a file or a pipe, NDJSON, any size",
    "serve": "run the sidecar: any SDK publishes to it, and full batches leave it",
    "top": "show in a terminal what a running sidecar's status page shows",
}
EXIT_DONE: Final = 0
EXIT_UNDELIVERED: Final = 1
EXIT_USAGE: Final = 2


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in two lines: pages of usage would hide it."""

    def error(self, message: str) -> NoReturn:
        """Exit 2 with a short usage and what is wrong."""
        positional = [str(action.metavar) for action in self._get_positional_actions()]
        usage = " ".join(["usage:", self.prog, *positional, "[options] (--help tells all)"])
        self.exit(EXIT_USAGE, f"{usage}\n{self.prog}: error: {message}\n")

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Exit 2 for words that no option takes; what follows a misspelt one may be a secret."""
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = [name for flag in flags for name in get_close_matches(flag, self._option_string_actions, n=1)]
        hint = f"; did you mean {' '.join(near)}?" if near else ""
        self.error(f"unrecognized arguments: {' '.join(flags or words)}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    _repair_standard_streams()
    try:
        code = _run(_parse(list(sys.argv[1:] if argv is None else argv)))
    except BrokenPipeError:
        code = EXIT_UNDELIVERED
    except KeyboardInterrupt:  # before a command has its own handlers
        code = 128 + signal.SIGINT
    finally:
        has_reader = _flush_output()
    return code if has_reader else code or EXIT_UNDELIVERED


def _parse(words: list[str]) -> argparse.Namespace:
    wanted = next((word for word in words if not word.startswith("-")), None)
    parser = _Parser(
        prog="dispatcher", description="Batching dispatcher for QStash (unofficial).", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str, _Parser] = {}
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if wanted == name:
            importlib.import_module(f"dispatcher.cli.{name}").add_arguments(command)
        parsers[name] = command
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        parsers[arguments.command].refuse(unknown)
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    from dispatcher.errors import ConfigError, DispatcherError

    try:
        return int(importlib.import_module(f"dispatcher.cli.{arguments.command}").run(arguments))
    except DispatcherError as error:
        print(f"dispatcher {arguments.command}: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_UNDELIVERED


def _flush_output() -> bool:
    """Whether someone took it; what nobody takes goes to the null device: no traceback at the exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        return False
    return True


def _repair_standard_streams() -> None:
    """Open what was closed on the null device: else the next socket becomes a standard stream.

    `sys.stdin` and `sys.stdout` stay `None`, so that a command can refuse to read or write there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - lasts as long as the process
