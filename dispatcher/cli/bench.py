"""`dispatcher bench`: an open-loop load on the library, a sidecar or any upstream, and what came of it.

Reads what is asked for, refuses the real service unless it is meant and bounded, opens the files before
anything is sent, and writes the report. The load itself is put on in `_bench_load`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Final

from msgspec import Struct

from dispatcher.bench import words
from dispatcher.bench.guard import check_target, is_real_service
from dispatcher.bench.http import BATCH, PUBLISH
from dispatcher.bench.messages import Mix
from dispatcher.bench.page import page
from dispatcher.bench.report import lines
from dispatcher.bench.schedule import bursts, steps
from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED, EXIT_USAGE
from dispatcher.cli._bench_load import Plan, bench
from dispatcher.cli._screen import Screen, library_log_on
from dispatcher.cli.dev import load_plan
from dispatcher.cli.loop import run_in_loop
from dispatcher.config import Config, add_settings_arguments, overrides_from
from dispatcher.errors import ConfigError
from dispatcher.sources import TOKEN_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.bench.result import Report
    from dispatcher.bench.schedule import Schedule

NAME: Final = "dispatcher bench"
LIBRARY: Final = "library"
RATE: Final = 1_000.0
DURATION: Final = "10s"
WINDOW: Final = "5s"
WARM_UP: Final = "1s"
CONNECTIONS: Final = 256
CONNECTIONS_MAX: Final = 10_000
PRECISION: Final = 0.03
TOKEN_BYTES: Final = 8
NO_TOKEN: Final = "none"  # noqa: S105 - what is sent where none is given

DESCRIPTION: Final = (
    "Put an open-loop load on the library, or on any upstream that speaks the service's dialect. Latency is "
    "measured from the instant at which a message was to start, so waiting counts, whoever caused it."
)
EPILOG: Final = """\
targets: without --target and --url the library runs in this process, against `dispatcher dev` in another
one (which keeps about 0.3 KB of each message); with --url or QSTASH_URL against that upstream. --target
http://… posts to an upstream or a sidecar itself, without a retry. The token is read from QSTASH_TOKEN or
--token-file. The real service is refused without --real-service, --max-messages and --destinations of your
own.

stages: lag (intended start to handed over: the generator's own lateness), admission (until it is taken in;
of that room, the wait for it or for a connection), dispatch (until confirmed; of that the queue until its
first request, and the delivery), total. There is a warning if more than 1 % of the messages were more than
5 ms late without being kept waiting for room: then this process was too slow. A message that has no outcome
--drain-within seconds after the last one started stays unfinished, and counts with its age. A --warm-up comes
first and is not counted.

--find p99=50ms raises --rate until it does not keep the latency any more, and then bisects. A rate holds if
two of three windows of --duration do, each with a new dispatcher, and nothing fails in them; the rate it ends
at is measured once more. Latency is taken to grow with the rate, and few messages make long windows.

--html: one file with its plots in it, for any browser. --json: the same figures for programs.

exit code: 0 all delivered, or a rate was found; 1 something failed or stayed unfinished, or none was found;
2 wrong usage or configuration, or the token or the URL was refused. Ctrl-C and SIGTERM end the load, wait for
what is out, and report; the second one reports at once.
"""


class Request(Struct, frozen=True):
    """What was asked for."""

    plan: Plan
    json: str | None
    html: str | None
    is_quiet: bool
    has_progress: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher bench`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    _add_load_arguments(parser)
    _add_target_arguments(parser)
    add = parser.add_argument
    add("--find", metavar="QUANTILE=TIME", help="find the highest rate that keeps it: p99=50ms, max=1s")
    add(
        "--precision", type=float, default=PRECISION, metavar="SHARE", help="of --find (default: %(default)s)"
    )
    add("--json", metavar="FILE", help="write the figures, their method and the settings here")
    add("--html", metavar="FILE", help="write a page with plots here")
    add("--config", metavar="FILE", help="TOML file with settings, instead of DISPATCHER_CONFIG's")
    add("--no-progress", action="store_true", help="no live line (there is none without a terminal)")
    add("--quiet", action="store_true", help="no report on standard output, only what goes wrong")
    add_settings_arguments(parser)


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("load").add_argument
    add("--rate", metavar="N", help=f"messages a second (default: {RATE:g}); where --find begins")
    add("--poisson", action="store_true", help="independent arrivals at that mean rate")
    add("--steps", metavar="N,N,…", help="rates one after the other, for equal parts of the duration")
    add("--bursts", metavar="N@TIME", help="so many messages at once, every so many seconds: 500@2s")
    add(
        "--duration",
        metavar="TIME",
        help=f"30s, 250ms, 5m (default: {DURATION}; of --find's windows {WINDOW})",
    )
    add("--warm-up", default=WARM_UP, metavar="TIME", help="before it, not counted; 0 for none (%(default)s)")
    add("--body", default="200", metavar="BYTES", help="or a range: 100-2000 (default: %(default)s)")
    add("--queues", type=int, default=0, metavar="N", help="FIFO queues that take turns (default: none)")
    add("--queue-share", type=float, default=1.0, metavar="SHARE", help="of the messages that go to queues")
    add("--destinations", metavar="N|URL,URL", help="how many invented ones, or your own, taking turns")
    add("--seed", type=int, default=1, metavar="N", help="the same load for the same N (default: 1)")
    add("--max-messages", type=int, metavar="N", help="send no more than this, warm-up and windows included")


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("target").add_argument
    add("--target", default=LIBRARY, metavar="library|URL", help="what to load (default: the library)")
    add("--api", choices=(PUBLISH, BATCH), help=f"of a URL: one message a request, or what waits ({PUBLISH})")
    add("--connections", type=int, default=CONNECTIONS, metavar="N", help="of a URL (default: %(default)s)")
    add("--faults", metavar="PLAN", help="of the local upstream, as for `dispatcher dev`")
    add("--token-file", metavar="FILE", help="file that holds the token, instead of QSTASH_TOKEN")
    add("--real-service", action="store_true", help="the service itself is meant; needs --max-messages")


def run(arguments: argparse.Namespace) -> int:
    """Put the load on; returns the exit code. Raises `ConfigError`."""
    request = _request(arguments)
    screen = Screen(sys.stderr, NAME, is_quiet=request.is_quiet)
    with ExitStack() as files:
        try:
            outputs = [
                None if name is None else files.enter_context(open(name, "wb"))  # noqa: PTH123 - /dev/stdout
                for name in (request.json, request.html)
            ]
        except OSError as error:
            screen.fail(f"{error.filename} cannot be written: {error.strerror}")
            return EXIT_USAGE
        with library_log_on(screen):
            has_progress = request.has_progress and screen.is_terminal and not request.is_quiet
            report = run_in_loop(bench(request.plan, screen, has_progress=has_progress))
        if not request.is_quiet:
            print("\n".join(lines(report)))
        return max(_exit_code(report), _write(report, outputs, screen))


def _write(report: Report, outputs: Sequence[IO[bytes] | None], screen: Screen) -> int:
    json, html = outputs
    try:
        if json is not None:
            json.write(report.to_json())
            json.flush()
        if html is not None:
            html.write(page(report).encode())
            html.flush()
    except OSError as error:
        screen.fail(f"the results could not be written: {error.strerror}")
        return EXIT_UNDELIVERED
    return EXIT_DONE


def _exit_code(report: Report) -> int:
    if report.is_refused:
        return EXIT_USAGE
    if report.finding is not None:
        return EXIT_DONE if report.finding.rate is not None else EXIT_UNDELIVERED
    is_clean = report.result is not None and report.result.is_clean
    return EXIT_DONE if is_clean else EXIT_UNDELIVERED


# ------------------------------------------------------------------------------------- what is asked for


def _request(arguments: argparse.Namespace) -> Request:
    goal = None if arguments.find is None else words.goal("find", arguments.find)
    duration = words.duration("duration", arguments.duration or (DURATION if goal is None else WINDOW))
    mix = _mix(arguments)
    is_local, config = _config(arguments)
    is_http = arguments.target != LIBRARY
    if not is_local:
        check_target(
            config.url,
            is_meant=arguments.real_service,
            max_messages=arguments.max_messages,
            has_destinations=words.are_own(arguments.destinations),
        )
    plan = Plan(
        config=config,
        schedule=_schedule(arguments, duration),
        mix=mix,
        goal=goal,
        precision=_between("precision", arguments.precision, 0.001, 1.0),
        warm_up=_warm_up(arguments.warm_up),
        max_messages=_bound(arguments.max_messages),
        api=_api(arguments) if is_http else None,
        connections=int(_between("connections", arguments.connections, 1, CONNECTIONS_MAX)),
        is_local=is_local,
        faults=_faults(arguments.faults, is_local=is_local),
        options=_options(arguments, duration),
    )
    return Request(plan, arguments.json, arguments.html, arguments.quiet, not arguments.no_progress)


def _schedule(arguments: argparse.Namespace, duration: float) -> Schedule:
    given = [name for name in ("rate", "steps", "bursts") if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise ConfigError(given[1], getattr(arguments, given[1]), f"leave it or --{given[0]}")
    if arguments.find is not None and given not in ([], ["rate"]):
        raise ConfigError(given[0], getattr(arguments, given[0]), "--find raises a --rate of its own")
    if arguments.bursts is not None:
        if arguments.poisson:
            raise ConfigError("poisson", "on", "bursts have their instants: leave one of the two")
        burst = words.burst("bursts", arguments.bursts)
        return bursts(burst.messages, burst.every, duration)
    if arguments.steps is not None:
        rates = words.rates("steps", arguments.steps)
    else:
        rates = [RATE if arguments.rate is None else words.rate("rate", arguments.rate)]
    return steps(rates, duration, is_poisson=arguments.poisson, seed=arguments.seed)


def _mix(arguments: argparse.Namespace) -> Mix:
    least, most = words.sizes("body", arguments.body)
    return Mix(
        body_least=least,
        body_most=most,
        queues=int(_between("queues", arguments.queues, 0, 1_000_000)),
        queue_share=_between("queue-share", arguments.queue_share, 0.0, 1.0),
        destinations=words.destinations("destinations", arguments.destinations),
        seed=arguments.seed,
    )


def _config(arguments: argparse.Namespace) -> tuple[bool, Config]:
    """Whether the upstream is to be one of ours, and the settings."""
    environment = dict(os.environ)
    if arguments.token_file is not None:
        environment[TOKEN_FILE] = arguments.token_file
    overrides: dict[str, Any] = overrides_from(arguments)
    if arguments.target != LIBRARY:
        if "url" in overrides:
            raise ConfigError("url", overrides["url"], "with --target URL it is not used: leave it")
        if "://" not in arguments.target:
            allowed = "allowed is `library`, or an upstream's http:// or https:// URL"
            raise ConfigError("target", arguments.target, allowed)
        if not (environment.get("QSTASH_TOKEN") or environment.get(TOKEN_FILE)):
            overrides["token"] = NO_TOKEN
        overrides["url"] = arguments.target
        return False, Config.load(env=environment, file=arguments.config, **overrides)
    is_named = "url" in overrides or bool(environment.get("QSTASH_URL")) or arguments.real_service
    if not is_named:
        environment.pop(TOKEN_FILE, None)
        environment["QSTASH_TOKEN"] = secrets.token_hex(TOKEN_BYTES)
    config = Config.load(env=environment, file=arguments.config, **overrides)
    # A file may name an upstream of its own, but the service that is the default has to be asked for.
    return not is_named and is_real_service(config.url), config


def _api(arguments: argparse.Namespace) -> str:
    return arguments.api or PUBLISH


def _faults(text: str | None, *, is_local: bool) -> str:
    if text is None:
        return ""
    if not is_local:
        raise ConfigError("faults", text, "they are the local upstream's: leave it, or the other upstream")
    load_plan(text)
    return text


def _warm_up(text: str) -> float:
    return 0.0 if text.strip().rstrip("ms") == "0" else words.duration("warm-up", text)


def _bound(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError("max-messages", value, "allowed is a number above 0")
    return value


def _between(name: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise ConfigError(name, value, f"allowed is {least:g} to {most:g}")
    return value


def _options(arguments: argparse.Namespace, duration: float) -> dict[str, Any]:
    """What was asked for, for the report; destinations may be secret and are only counted."""
    names = (
        *("rate", "poisson", "steps", "bursts", "warm_up", "body", "queues", "queue_share", "seed"),
        *("max_messages", "target", "api", "connections", "faults", "find", "precision"),
    )
    return {"duration": duration, **{name: getattr(arguments, name) for name in names}}
