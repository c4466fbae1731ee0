"""The sidecar's configuration: the sections `serve` and `outbox`, the library's settings, and their origins.

`[serve] port` in TOML, `DISPATCHER_SERVE_PORT`, `--serve-port` (and `--port`) are one setting. Everything
that would be unsafe or cannot work is refused here, before anything listens. No secret is in a `repr` or an
error.
Read by the commands `serve` and `check`; `ServeSettings` by every module of the sidecar.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Literal

from dispatcher import config as library
from dispatcher import settings as _settings
from dispatcher import sources
from dispatcher.config import Config
from dispatcher.errors import ConfigError
from dispatcher.sections import MEBIBYTE
from dispatcher.settings import MASK, check_fields, setting, settings_of
from dispatcher.sidecar.outbox_settings import OutboxSettings, outbox_settings, text_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dispatcher.settings import Setting

_PORT_MAX: Final = 65_535
_DAY: Final = 86_400
SHORT_FLAGS: Final[Mapping[str, str]] = {
    f"serve.{name}": "--" + name.replace("_", "-")
    for name in ("host", "port", "admin_host", "admin_port", "socket", "patience", "proxy", "workers")
} | {"outbox.file": "--outbox"}
"""Settings that are given often: they have a flag without `serve` too."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Where the sidecar listens, whom it lets in, and how much of anything it accepts."""

    host: str = setting("127.0.0.1", meaning="Address that the intake listens on.")
    port: int = setting(
        8090,
        meaning="Port of the intake.",
        minimum=0,
        maximum=_PORT_MAX,
        advice="0 takes a free one, which the log names.",
        label=True,
    )
    socket: str | None = setting(
        None,
        meaning="Path of a Unix socket that the intake listens on.",
        advice="Then there is no TCP, unless `serve.port` or `serve.host` is given too.",
    )
    admin_host: str = setting(
        "127.0.0.1",
        meaning="Address of the admin listener: health, metrics, status page; it asks for no token.",
    )
    admin_port: int = setting(
        8091,
        meaning="Port of the admin listener; 0 takes a free one.",
        minimum=0,
        maximum=_PORT_MAX,
        label=True,
    )
    authentication: Literal["token", "none"] = setting(
        "token",
        meaning="Whether callers have to present a token.",
        advice="`none` only on loopback or a Unix socket.",
    )
    tokens: str | None = setting(
        None,
        meaning="Tokens of callers, separated by commas, instead of the upstream's own.",
        advice="With them an application needs no upstream token; that one still is accepted.",
        secret=True,
    )
    tokens_file: str | None = setting(
        None, meaning="File with such tokens, one a line; lines that begin with `#` are left out."
    )
    proxy: Literal["all", "messages", "none"] = setting(
        "all",
        meaning="What else is passed on to the upstream: all, look-up and cancelling of messages, nothing.",
        advice="`all` is for callers with the upstream's own token; others get `messages`.",
    )
    patience: float = setting(
        30.0,
        meaning="How long a publish waits for room before it is answered 429.",
        unit="s",
        minimum=0,
        maximum=_DAY,
        advice="Below the callers' own timeout.",
    )
    max_connections: int = setting(
        1_024,
        meaning="Connections to the intake at once; as many more wait, those above are told 503.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
        advice="They wait for `serve.patience` at most. Each needs a descriptor: see `ulimit -n`.",
    )
    max_head_bytes: int = setting(
        65_536,
        meaning="Bytes of a request's line and headers together at most.",
        unit="bytes",
        minimum=1_024,
        maximum=16 * MEBIBYTE,
    )
    max_body_bytes: int = setting(
        16 * MEBIBYTE,
        meaning="Bytes of a published body at most.",
        unit="bytes",
        minimum=1,
        maximum=1_024 * MEBIBYTE,
    )
    max_batch_bytes: int = setting(
        100_000_000,
        meaning="Bytes of a JSON batch at most, and of one line of NDJSON.",
        unit="bytes",
        minimum=1,
        maximum=1_024 * MEBIBYTE,
    )
    max_items: int = setting(
        10_000,
        meaning="Messages in one JSON batch at most; NDJSON has no such bound.",
        unit="messages",
        minimum=1,
        maximum=1_000_000,
    )
    head_timeout: float = setting(
        10.0,
        meaning="From the first byte of a request to the end of its head.",
        unit="s",
        above=0,
        maximum=_DAY,
    )
    body_timeout: float = setting(
        30.0, meaning="How long no byte of an expected body may come.", unit="s", above=0, maximum=_DAY
    )
    request_timeout: float = setting(
        300.0,
        meaning="From the first byte of a request to the end of its answer; streams have no such bound.",
        unit="s",
        above=0,
        maximum=_DAY,
    )
    idle_timeout: float = setting(
        75.0,
        meaning="How long a connection without a request is kept.",
        unit="s",
        above=0,
        maximum=_DAY,
        advice="Above the clients' own keep-alive (SDKs: 5 s).",
    )
    workers: int = setting(
        1,
        meaning="Processes; only 1 is allowed: two would mix up the order of a queue.",
        minimum=1,
        advice="For more than one process can do, run several daemons and give each queue to one of them.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", meaning="The least that is logged."
    )
    log_format: Literal["text", "json"] = setting(
        "text", meaning="Lines for people, or one JSON object a line.", advice="Both go to standard error."
    )

    tracing: Literal["off", "on", "forward"] = setting(
        "off",
        meaning="OpenTelemetry spans of requests to the service, linked to their callers' (`traceparent`); "
        "`forward` gives that to the destinations, too.",
        advice="Needs the extra `otel`, and a provider: `opentelemetry-instrument dispatcher serve`.",
    )

    def __post_init__(self) -> None:
        check_fields(self, "serve.")
        if self.workers > 1:
            cure = (
                "allowed is 1: a queue keeps its order only inside one process; "
                "run several daemons on ports of their own and give each queue to one of them"
            )
            raise ConfigError("serve.workers", self.workers, cure)


@dataclass(frozen=True, slots=True)
class SidecarConfig:
    """All that the daemon needs to know.

    Raises:
        ConfigError: Settings that do not go together.
    """

    dispatcher: Config
    serve: ServeSettings
    tokens: tuple[str, ...] = field(repr=False)
    """What callers may present; the upstream's own token where no others are given."""
    origins: Mapping[str, str] = field(repr=False, hash=False, default_factory=dict)
    """Of each setting by dotted name: `flag`, `environment NAME`, `file PATH` or `default`."""
    outbox: OutboxSettings = field(default_factory=OutboxSettings)

    def __post_init__(self) -> None:
        serve = self.serve
        if serve.authentication == "none" and self.has_tcp and not is_loopback(serve.host):
            allowed = "allowed is `token`, or `none` with a serve.host of this machine alone (127.0.0.1, ::1)"
            problem = f"'none' would let everyone who reaches {serve.host} publish"
            raise ConfigError("serve.authentication", "none", allowed, problem=problem)
        self.outbox.check_lease(self.dispatcher.transport.attempt_timeout)

    @property
    def has_tcp(self) -> bool:
        """The intake listens on a port: always without a Unix socket, else where it is asked for."""
        asked = {self.origins.get(f"serve.{name}", sources.DEFAULT) for name in ("host", "port")}
        return self.serve.socket is None or asked != {sources.DEFAULT}

    @classmethod
    def load(
        cls, *, env: Mapping[str, str] | None = None, file: str | Path | None = None, **overrides: Any
    ) -> SidecarConfig:
        """Read it all: flags before the environment, before the file, before the defaults.

        The arguments are those of `Config.load`; `overrides` may name settings of both.

        Raises:
            ConfigError: A name is unknown, a value wrong, a file unreadable, or there is no token.
        """
        environment = os.environ if env is None else env
        known = every_setting()
        given = sources.read(known, environment, file, overrides)
        dispatcher = Config.of(given.values)
        serve = ServeSettings(**sources.within(given.values, sources.SERVE))
        outbox = OutboxSettings(**sources.within(given.values, sources.OUTBOX)).with_password()
        paths = [*(one.path for one in known), *([sources.QUEUES] if dispatcher.queues else [])]
        origins = {path: given.origins.get(path, sources.DEFAULT) for path in paths}
        return cls(dispatcher, serve, _tokens(serve) or (dispatcher.token,), origins, outbox)

    def value(self, path: str) -> Any:
        """The value of a setting by its dotted name."""
        section, _, name = path.partition(".")
        owner = self if section in (sources.SERVE, sources.OUTBOX) else self.dispatcher
        value: Any = getattr(owner, section)
        return getattr(value, name) if name else value

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Each setting: its dotted name, its value for people (secrets masked), its origin."""
        for one in every_setting():
            value = self.value(one.path)
            shown = "none" if value is None else f"{one.show(value)} {one.unit}".strip()
            yield one.path, shown, self.origins.get(one.path, sources.DEFAULT)
        for name, queue in self.dispatcher.queues.items():
            origin = self.origins.get(sources.QUEUES, sources.DEFAULT)
            for part in fields(queue):
                yield f"{sources.QUEUES}.{name}.{part.name}", str(getattr(queue, part.name)).lower(), origin


def serve_settings() -> tuple[Setting, ...]:
    """Every setting of the section `serve`, in the order of the README's table."""
    return settings_of(ServeSettings, f"{sources.SERVE}.")


def every_setting() -> list[Setting]:
    """The library's settings, then the sidecar's own."""
    return [*library.settings(), *serve_settings(), *outbox_settings()]


def serve_settings_table() -> str:
    """The table in the README."""
    return _settings.table(serve_settings())


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command a flag for each setting that is no secret, short ones for those given often."""
    _settings.add_arguments(parser, every_setting(), SHORT_FLAGS)


def is_loopback(host: str) -> bool:
    """Only this machine can reach the address."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _tokens(serve: ServeSettings) -> tuple[str, ...]:
    """The callers' own tokens, if there are any.

    Raises:
        ConfigError: Both ways to give them are used, the file cannot be read, or one of them is none.
    """
    name, text, separator = "serve.tokens", serve.tokens, ","
    if serve.tokens_file is not None:
        if text is not None:
            problem = f"{name} is given too"
            raise ConfigError(
                "serve.tokens_file", serve.tokens_file, "wanted is one of them", problem=problem
            )
        wanted = "wanted is a text file with a token a line"
        name, separator = "serve.tokens_file", "\n"
        text = text_of(serve.tokens_file, name, wanted)
    if text is None:
        return ()
    found = [part.strip() for part in text.split(separator)]
    found = [part for part in found if part and not (separator == "\n" and part.startswith("#"))]
    if not found:
        raise ConfigError(name, MASK, "wanted is at least one", problem="there is no token in it")
    if any(re.search(r"[^\x21-\x7e]", one) for one in found):
        allowed = "allowed are visible ASCII characters without white space"
        raise ConfigError(name, MASK, allowed, problem="a token has other characters")
    return tuple(dict.fromkeys(found))
