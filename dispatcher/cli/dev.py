"""`dispatcher dev`: a local upstream on a port of this machine. It records messages and delivers none."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import secrets
import signal
from pathlib import Path
from typing import Final, TypeVar

from dispatcher.cli.loop import run_in_loop, spare_collector
from dispatcher.devserver.faults import KINDS, NAMES, FaultPlan
from dispatcher.devserver.kinds import DURATIONS, ITEM_RATES, LIMITS
from dispatcher.devserver.latency import ALLOWED as LATENCY_FORMS
from dispatcher.devserver.server import LocalUpstream
from dispatcher.devserver.upstream import BATCH_BYTES, MIB
from dispatcher.errors import ConfigError

Number = TypeVar("Number", int, float)
PORT: Final = 8089
TOKEN_BYTES: Final = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher dev`."""
    parser.epilog = fault_help()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=PORT, help="port to listen on, 0 for a free one (default: %(default)s)")
    add("--token", help="token clients must send (default: QSTASH_TOKEN, or a new one, printed)")
    add("--state", type=Path, metavar="FILE", help="keep what was accepted here, also across kill -9")
    add("--keep-bodies", action="store_true", help="keep every body in memory, to look it up")
    add("--faults", metavar="PLAN|FILE", default="", help="what goes wrong: NAME=RATE …, or a TOML file")
    add("--seed", type=int, default=0, metavar="N", help="the same faults for the same N (default: 0)")
    add(
        "--deduplication-window",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long a deduplication id is remembered (default: %(default)s)",
    )
    add("--max-items", type=int, metavar="N", help="messages a batch may carry (default: any number)")
    add("--max-message-bytes", type=int, default=MIB, metavar="N", help="default: %(default)s")
    add("--max-batch-bytes", type=int, default=BATCH_BYTES, metavar="N", help="default: %(default)s")
    add("--port-file", type=Path, metavar="FILE", help="write the port here once it is listening")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; returns 0. Raises `ConfigError`."""
    token = arguments.token or os.environ.get("QSTASH_TOKEN") or secrets.token_hex(TOKEN_BYTES)
    upstream = LocalUpstream(
        token=token,
        faults=load_plan(arguments.faults),
        seed=arguments.seed,
        deduplication_window=_at_least("deduplication-window", arguments.deduplication_window, 0),
        max_items=None if arguments.max_items is None else _at_least("max-items", arguments.max_items, 1),
        max_message_bytes=_at_least("max-message-bytes", arguments.max_message_bytes, 1),
        max_batch_bytes=_at_least("max-batch-bytes", arguments.max_batch_bytes, 1),
        keep_bodies=arguments.keep_bodies,
        host=arguments.host,
        port=_port(arguments.port),
        state=arguments.state,
    )
    run_in_loop(_serve(upstream, arguments.port_file))
    return 0


def load_plan(text: str) -> FaultPlan:
    """A fault plan from `--faults`: the name of a TOML file, or the plan itself."""
    path = Path(text)
    if text.endswith(".toml") or (text and "=" not in text):
        try:
            return FaultPlan.parse_toml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            problem = f"{text!r} cannot be read: {getattr(error, 'strerror', None) or error}"
            raise ConfigError(
                "faults", text, "wanted is NAME=RATE …, or a TOML file", problem=problem
            ) from None
    return FaultPlan.parse(text)


def fault_help() -> str:
    """What `--faults` understands, from the table of kinds."""
    lines = [f"  {kind.value:<18} {row.meaning}" for kind, row in KINDS.items() if kind.value in NAMES]
    lines += [f"  {name:<18} {meaning}" for name, meaning in ITEM_RATES.items()]
    lines += [f"  {name:<18} seconds, default {seconds:g}" for name, seconds in DURATIONS.items()]
    lines += [f"  {name:<18} {meaning}" for name, meaning in LIMITS.items()]
    return (
        "what goes wrong (--faults), each with a rate per request, the error_entry and error_endpoint per\n"
        "message, the poison ones with a marker, and the service's hidden capacity; several separated by\n"
        "blanks, or names and values in a TOML file, where [[phase]] tables with start and end (seconds)\n"
        "hold their own:\n"
        f"  {'latency':<18} {LATENCY_FORMS}\n" + "\n".join(lines)
    )


async def _serve(upstream: LocalUpstream, port_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with upstream:
        spare_collector()
        if port_file is not None:
            _write_port(port_file, upstream.port)
        print(f"local upstream at {upstream.url} (records messages, delivers none; Ctrl-C stops it)")
        print(f"export QSTASH_URL={upstream.url}\nexport QSTASH_TOKEN={upstream.token}", flush=True)
        await stop.wait()


def _write_port(path: Path, port: int) -> None:
    # Whoever waits for the file must never see half a number.
    try:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(f"{port}\n", encoding="ascii")
        partial.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        problem = f"{str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(
            "port-file", str(path), "wanted is a file in a folder that is there", problem=problem
        ) from None


def _at_least(name: str, value: Number, least: int) -> Number:
    if not least <= value < math.inf:  # so no NaN either
        raise ConfigError(name, value, f"it must be a number, at least {least}")
    return value


def _port(value: int) -> int:
    if not 0 <= value <= 65_535:
        raise ConfigError("port", value, "a port lies between 0 and 65535")
    return value
