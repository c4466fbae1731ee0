"""`dispatcher check`: what the sidecar would run with, where it comes from, and what the upstream says to it.

Changes nothing, listens nowhere, shows no secret.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED
from dispatcher.cli._sidecar import add_sidecar_arguments, load
from dispatcher.cli.loop import run_in_loop
from dispatcher.sidecar.outbox_redis import look
from dispatcher.sidecar.probe import probe

if TYPE_CHECKING:
    from dispatcher.sidecar.settings import SidecarConfig

DESCRIPTION: Final = (
    "Print every setting of `dispatcher serve` with its origin, and ask the upstream one harmless question "
    "(GET /v2/queues), and a Redis that is the outbox another (PING)."
)
EPILOG: Final = """\
It takes the same flags, environment and TOML file as `serve`. Secrets are masked.

exit code: 0 the upstream is reachable and takes the token; 1 it is not there, refuses the token, or is not
the service, or the outbox's Redis is not there or refuses the password; 2 wrong usage or configuration.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher check`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--offline", action="store_true", help="do not ask the upstream")
    add_sidecar_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print, ask, and return the exit code. Raises `ConfigError`."""
    config = load(arguments)
    print("\n".join(lines(config)), flush=True)
    if arguments.offline:
        return EXIT_DONE
    finding = run_in_loop(probe(config.dispatcher))
    print(f"upstream {config.dispatcher.url}: {finding.verdict} ({finding.detail})")
    is_good = finding.is_good
    if config.outbox.is_shared:
        problem = run_in_loop(look(config.outbox))
        print(f"outbox {config.outbox.file}: {problem or 'reachable'}")
        is_good = is_good and not problem
    return EXIT_DONE if is_good else EXIT_UNDELIVERED


def lines(config: SidecarConfig) -> list[str]:
    """Each setting, its value and its origin, one under the other."""
    rows = list(config.rows())
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{path:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for path, value, origin in rows]
