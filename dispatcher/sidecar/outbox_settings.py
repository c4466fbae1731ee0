"""The section `outbox`: whether what the sidecar accepts outlives it, where, and how much of it.

`[outbox] file` in TOML, `DISPATCHER_OUTBOX_FILE`, `--outbox-file` (and `--outbox`) are one setting. Pure
data; what stands here is checked as it is made, and a password that a URL has is put where none is
shown. Held by `settings.SidecarConfig`, read by `daemon` and `generation`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from dispatcher.errors import ConfigError
from dispatcher.outbox.leases import LEASE_MARGIN
from dispatcher.sections import MEBIBYTE
from dispatcher.settings import MASK, check_fields, setting, settings_of, table
from dispatcher.sidecar.redis_url import is_url, take_apart

if TYPE_CHECKING:
    from dispatcher.settings import Setting

SECTION: Final = "outbox"
GIBIBYTE: Final = 1_024 * MEBIBYTE
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """The sidecar's outbox; without a file there is none."""

    file: str | None = setting(
        None,
        meaning="SQLite file that keeps what is accepted until the service has it, or the URL of a Redis "
        "that a fleet shares (`redis://`, `rediss://`, `unix://`); none: no outbox.",
        advice="A file on a local disk, its directory must be there; one process at a time has it. Redis "
        "needs the extra `redis`.",
    )
    password: str | None = setting(
        None, meaning="Password for the URL, which then needs to have none.", secret=True
    )
    password_file: str | None = setting(None, meaning="File with that password, and nothing else.")
    fleet: str = setting(
        "default",
        meaning="Name of the outbox in Redis: sidecars with one name share it; an account has its own.",
        advice="Printable, without braces and spaces.",
    )
    lease: float = setting(
        60.0,
        meaning="After how long others take over what a sidecar held that died or lost Redis.",
        unit="s",
        minimum=1,
        maximum=_DAY,
        advice="Half of it has to be longer than `transport.attempt_timeout`, by a second.",
    )
    wait_replicas: int = setting(
        0,
        meaning="Replicas of Redis that must have a message before it is acknowledged.",
        unit="replicas",
        minimum=0,
        maximum=100,
    )
    max_messages: int = setting(
        1_000_000,
        meaning="Messages kept at most, dead letters included; then 503.",
        unit="messages",
        minimum=1,
        maximum=100_000_000,
    )
    max_bytes: int = setting(
        2 * GIBIBYTE,
        meaning="Bytes of them at most; then 503.",
        unit="bytes",
        minimum=1,
        advice="The file may take about twice as much.",
    )
    min_free_bytes: int = setting(
        64 * MEBIBYTE,
        meaning="What has to stay free on the disk; below it nothing is accepted, 503. Of a file.",
        unit="bytes",
        minimum=0,
    )
    respond_after: float = setting(
        10.0,
        meaning="How long a caller waits for the service's own id; then 202 with an id of the outbox.",
        unit="s",
        minimum=0,
        maximum=_DAY,
        advice="0 answers as soon as the message is durable. Below the callers' own timeout.",
    )
    after_window: Literal["resend", "fail"] = setting(
        "resend",
        meaning="What to do with a message that may have been sent longer ago than the service remembers its "
        "id (9.5 min): send it again, or make it a dead letter.",
    )
    delays_from_acceptance: bool = setting(
        True, meaning="Count `Upstash-Delay` from when the sidecar accepted the message, not the service."
    )
    keep_receipts: float = setting(
        3_600.0,
        meaning="How long the outbox knows what became of a delivered message.",
        unit="s",
        minimum=0,
        maximum=30 * _DAY,
    )
    max_receipts: int = setting(
        100_000,
        meaning="Of how many delivered messages, at most.",
        unit="messages",
        minimum=0,
        maximum=100_000_000,
    )
    synchronous: Literal["full", "normal", "off"] = setting(
        "full",
        meaning="What acknowledged messages survive: `full` also a loss of power; `normal` and `off` the end "
        "of the process.",
        advice="With these two a loss of power may take the last ones, with `off` the file. Of a file.",
    )

    def __post_init__(self) -> None:
        check_fields(self, f"{SECTION}.")
        if not self.fleet.isprintable() or set(self.fleet) & set("{} "):
            raise ConfigError(f"{SECTION}.fleet", self.fleet, "allowed is no brace, space, control character")
        if self.file is not None and is_url(self.file):
            parts = take_apart(self.file, f"{SECTION}.file")
            object.__setattr__(self, "file", parts.shown)
            if parts.password is not None and self.password is not None:
                raise _given_twice(f"{SECTION}.password")
            object.__setattr__(self, "password", parts.password or self.password)

    @property
    def is_shared(self) -> bool:
        """It is a Redis, and `file` its URL without the password."""
        return self.file is not None and is_url(self.file)

    def with_password(self) -> OutboxSettings:
        """The same with the password that stands in the file, if there is one.

        Raises:
            ConfigError: The file cannot be read, is empty, or the password is given otherwise, too.
        """
        if self.password_file is None:
            return self
        text = text_of(
            self.password_file, f"{SECTION}.password_file", "wanted is a text file with a password"
        )
        if not (password := text.rstrip("\r\n")):
            raise ConfigError(f"{SECTION}.password_file", self.password_file, "wanted is a password in it",
                              problem="it is empty")  # fmt: skip
        if self.password is not None:
            raise _given_twice(f"{SECTION}.password_file")
        return replace(self, password=password)

    def check_lease(self, attempt_timeout: float) -> None:
        """What is cut off from Redis must have stopped sending before others begin.

        Raises:
            ConfigError: The lease is too short for the longest request.
        """
        least = 2 * (attempt_timeout + LEASE_MARGIN)
        if self.is_shared and self.lease < least:
            allowed = (
                f"allowed is {least:g} s or more: twice transport.attempt_timeout and {LEASE_MARGIN:g} s"
            )
            problem = f"{self.lease:g} s are too short for requests of {attempt_timeout:g} s"
            raise ConfigError(f"{SECTION}.lease", self.lease, allowed, problem=problem)


def _given_twice(name: str) -> ConfigError:
    wanted = "wanted is one of the URL, outbox.password and outbox.password_file"
    return ConfigError(name, MASK, wanted, problem="the password is given twice")


def text_of(file: str, name: str, wanted: str) -> str:
    """What stands in a file that a setting names.

    Raises:
        ConfigError: It cannot be read, or is no text.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        problem = f"{file!r} cannot be read: {error.strerror}"
    except ValueError:
        problem = f"{file!r} is no text"
    raise ConfigError(name, file, wanted, problem=problem)


def outbox_settings() -> tuple[Setting, ...]:
    """Every setting of the section, in the order of the README's table."""
    return settings_of(OutboxSettings, f"{SECTION}.")


def outbox_settings_table() -> str:
    """The table in the README."""
    return table(outbox_settings())
