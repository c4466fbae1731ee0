"""The command `dispatcher`: one module a sub-command, imported only when it is called.

Each command module has `add_arguments(parser)` and `run(arguments) -> int`, its exit code:
0 done, 1 something was not delivered (or a check failed), 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = {
    "demo": "send 20,000 mixed messages through a faulty local upstream and check every one",
    "dev": "run a local upstream that behaves like the service, faults included",
    "send": "send messages from a file or a pipe, NDJSON, any size",
}
EXIT_DONE: Final = 0
EXIT_UNDELIVERED: Final = 1
EXIT_USAGE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="dispatcher", description="Batching dispatcher for QStash (unofficial).", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if words[:1] == [name]:
            importlib.import_module(f"dispatcher.cli.{name}").add_arguments(command)
    arguments = parser.parse_args(words)
    from dispatcher.errors import ConfigError

    try:
        return int(importlib.import_module(f"dispatcher.cli.{arguments.command}").run(arguments))
    except ConfigError as error:
        print(f"dispatcher {arguments.command}: {error}", file=sys.stderr)
        return EXIT_USAGE
