"""The configuration: frozen, nested by concern, checked when it is made; each setting declared once.

`Config(token="…")` reads nothing. `Config.load()` reads, nearest first: its keywords, the environment, a TOML
file, the defaults. A setting has one name in four spellings: `config.retry.max_attempts`,
`DISPATCHER_RETRY_MAX_ATTEMPTS`, `[retry] max_attempts` in TOML, `--retry-max-attempts`. Unknown names are
errors that name the nearest right one. The token is in no text, no `repr` and no flag. Read by everything
above it; the mechanics are in `settings` (one setting) and `sources` (where values come from).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

from dispatcher import settings as _settings
from dispatcher import sources
from dispatcher.checks import check_queue
from dispatcher.errors import ConfigError, MessageInvalid
from dispatcher.sections import (
    BatchSettings,
    LimitSettings,
    Queue,
    QueueSettings,
    RetrySettings,
    TransportSettings,
)
from dispatcher.settings import MASK, Setting, check_fields, setting, settings_of

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

__all__ = [
    "BatchSettings",
    "Config",
    "LimitSettings",
    "Queue",
    "QueueSettings",
    "RetrySettings",
    "TransportSettings",
    "add_settings_arguments",
    "overrides_from",
    "settings",
    "settings_table",
]

_WEEK: Final = 604_800.0


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """Everything a dispatcher can be told. Frozen, comparable, picklable.

    Raises:
        ConfigError: A value is wrong; `field` has its dotted name, `allowed` says what would be right.
    """

    token: str = setting(meaning="The QStash token.", secret=True)
    url: str = setting(
        "https://qstash.upstash.io",
        meaning="Base URL of the service, without `/v2`.",
        advice="Regions and the local development server have their own.",
    )
    deduplication: Literal["auto", "off"] = setting(
        "auto",
        meaning="Give each message without a deduplication id one, which makes retries safe.",
        advice="With `off` nothing is repeated whose outcome is unknown.",
    )
    after_window: Literal["fail", "resend"] = setting(
        "fail",
        meaning="What to do with an unknown outcome when the service may have forgotten the id (9.5 min).",
        advice="`resend` may deliver twice, and marks the receipt.",
    )
    deliver_within: float = setting(
        120.0,
        meaning="How long after its admission a message must be confirmed; then it fails.",
        unit="s",
        above=0,
        maximum=_WEEK,
    )
    drain_within: float = setting(
        25.0,
        meaning="How long closing waits for what is held.",
        unit="s",
        minimum=0,
        maximum=_WEEK,
        advice="Below the grace period of whatever stops the process (Kubernetes: 30 s).",
    )
    batch: BatchSettings = field(default_factory=BatchSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    limit: LimitSettings = field(default_factory=LimitSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    queues: Mapping[str, Queue] = field(default_factory=dict, hash=False)
    """By the upstream queue's name; a queue without an entry has the defaults."""

    def __post_init__(self) -> None:
        check_fields(self, "")
        for name, kind in _SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                got = type(getattr(self, name)).__name__
                raise ConfigError(name, got, f"allowed is a {kind.__name__} (`Config.load` takes mappings)")
        object.__setattr__(self, "queues", _checked_queues(self.queues))
        _check_token(self.token)
        object.__setattr__(self, "url", _checked_url(self.url))
        if self.batch.max_message_bytes > self.queue.max_bytes:
            bound = f"at most queue.max_bytes ({self.queue.max_bytes:,}): a larger one could never find room"
            raise ConfigError("batch.max_message_bytes", self.batch.max_message_bytes, f"allowed is {bound}")

    def __repr__(self) -> str:
        """One line: the settings that are not at their default, the token masked."""
        shown = [
            f"{one.path}={one.show(value)}"
            for one in settings()
            if (value := _value(self, one.path)) != one.default
        ]
        shown += [f"queues.{name}={queue}" for name, queue in self.queues.items()]
        return f"<Config {' '.join(shown)}>"

    @classmethod
    def load(
        cls, *, env: Mapping[str, str] | None = None, file: str | Path | None = None, **overrides: Any
    ) -> Config:
        """Read the configuration: keywords before the environment, before the file, before the defaults.

        Args:
            env: Instead of `os.environ`. Known are `QSTASH_TOKEN`, `QSTASH_URL`, `DISPATCHER_TOKEN_FILE` (a
                file that holds the token, and wins over `QSTASH_TOKEN`), `DISPATCHER_CONFIG` and
                `DISPATCHER_<SECTION>_<FIELD>`; an empty one counts as absent.
            file: A TOML file, instead of the one that `DISPATCHER_CONFIG` names.
            overrides: `retry_max_attempts=3` or `retry={"max_attempts": 3}`; `None` counts as absent where a
                setting cannot be `None`.

        Raises:
            ConfigError: A name is unknown, a value wrong, a file unreadable, or there is no token.
        """
        environment = os.environ if env is None else env
        return cls.of(sources.read(settings(), environment, file, overrides).values)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """Put it together from values by dotted name; those of sections that are not its own are left out.

        Raises:
            ConfigError: Values that do not go together.
        """
        nested = {name: kind(**sources.within(values, name)) for name, kind in _SECTIONS.items()}
        return cls(**sources.within(values), **nested)


_SECTIONS: Final[Mapping[str, type]] = {
    "batch": BatchSettings,
    "queue": QueueSettings,
    "retry": RetrySettings,
    "limit": LimitSettings,
    "transport": TransportSettings,
}
_QUEUE_FIELDS: Final = frozenset({"strict", "on_failure"})
_BASE_URL_MISTAKE: Final = re.compile(r"/v2(/(publish|batch|enqueue)(/.*)?)?$")


def settings() -> list[Setting]:
    """Every setting, in the order of the README's table."""
    return list(settings_of(Config))


def settings_table() -> str:
    """The table in the README."""
    return _settings.table([*settings(), *settings_of(Queue, "queues.NAME.")])


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command a flag for each setting but the token."""
    _settings.add_arguments(parser, settings())


def overrides_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """What those flags said, as keywords for `Config.load`."""
    return _settings.given(arguments)


def _checked_queues(queues: Any) -> dict[str, Queue]:
    """Each queue's settings, from a `Queue` or a mapping of its fields.

    Raises:
        ConfigError: A queue's name or a setting of it is wrong.
    """
    if not isinstance(queues, Mapping):
        raise ConfigError(sources.QUEUES, type(queues).__name__, "allowed is a mapping from a queue's name")
    checked = {}
    for name, value in queues.items():
        where = f"{sources.QUEUES}.{name}"
        try:
            check_queue(name)
        except MessageInvalid as error:
            raise ConfigError(sources.QUEUES, name, str(error)) from None
        if isinstance(value, Queue):
            checked[name] = value
        elif isinstance(value, Mapping) and set(value) <= _QUEUE_FIELDS:
            try:
                checked[name] = Queue(**value)
            except ConfigError as error:
                raise ConfigError(error.field.replace("NAME", name), error.value, error.allowed) from None
        else:
            given = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise ConfigError(where, given, f"allowed are {', '.join(sorted(_QUEUE_FIELDS))}")
    return checked


def _check_token(token: str) -> None:
    if re.search(r"[^\x21-\x7e]", token):
        allowed = (
            "allowed are visible ASCII characters, without white space and without `Bearer ` before them"
        )
        raise ConfigError("token", MASK, allowed)


def _checked_url(url: str) -> str:
    """The base URL without its trailing slash."""
    bare = url.rstrip("/")
    try:
        parts = urlsplit(bare)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port or an IPv6 address that is none
        _refuse_url(url, "an http:// or https:// URL with a host, and a port that is a number")
    if not right or re.search(r"[^\x21-\x7e]", bare):
        _refuse_url(url, "an http:// or https:// URL with a host")
    if parts.username is not None or parts.password is not None or "?" in bare or "#" in bare:
        _refuse_url(url, "a URL without user information, query and fragment")
    if mistake := _BASE_URL_MISTAKE.search(bare):
        _refuse_url(url, f"the base URL, {bare[: mistake.start()]}; the paths are added to it")
    return bare


def _refuse_url(url: str, wanted: str) -> NoReturn:
    scheme, separator, rest = re.split(r"[?#]", url, maxsplit=1)[0].rpartition("://")
    shown = scheme.rpartition("@")[2] + separator + rest.rpartition("@")[2]
    # Without a scheme it may be anything, a token in the wrong variable even.
    raise ConfigError("url", shown if separator else MASK, f"wanted is {wanted}")


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
