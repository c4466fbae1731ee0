"""`dispatcher serve`: the sidecar. Reads the configuration, and hands over to `dispatcher.sidecar.daemon`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from dispatcher.cli._sidecar import add_sidecar_arguments, load
from dispatcher.cli.loop import run_in_loop, spare_collector
from dispatcher.sidecar.daemon import serve

DESCRIPTION: Final = (
    "Run the sidecar: an SDK of any language whose QSTASH_URL points at it works unchanged, and its single "
    "publishes leave as full batches. The upstream's token is read from QSTASH_TOKEN or --token-file."
)
EPILOG: Final = """\
Callers present the upstream's own token, or one of DISPATCHER_SERVE_TOKENS. Nothing is served on an address
that others reach without a token. `dispatcher check` shows the settings that are in effect.

signals: SIGTERM and SIGINT turn /readyz, take nothing more, deliver what is held within --drain-within, and
end; a second one ends at once. SIGHUP reads the files again (token, callers' tokens, bounds of the intake,
log level) and refuses aloud what needs a restart.

systemd: Type=notify-reload, WatchdogSec= and socket units (FileDescriptorName=intake, admin) are understood.

With --outbox FILE what is accepted survives this process: it is answered once it is in the file, and sent by
the next process if not by this one.

exit code: 0 ended with everything confirmed, or kept in the outbox; 1 with messages that were not confirmed,
or its dispatcher died; 2 wrong usage or configuration, or it could not listen or open its outbox; 128 + the
signal's number after a second signal.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher serve`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_sidecar_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal, and return the exit code. Raises `ConfigError`."""
    config = load(arguments)
    spare_collector()
    return run_in_loop(serve(config, partial(load, arguments)))
