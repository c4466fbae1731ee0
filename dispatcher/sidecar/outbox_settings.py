"""The section `outbox`: whether what the sidecar accepts outlives it, where, and how much of it.

`[outbox] file` in TOML, `DISPATCHER_OUTBOX_FILE`, `--outbox-file` (and `--outbox`) are one setting. Pure
data; what stands here is checked as it is made. Held by `settings.SidecarConfig`, read by `daemon` and
`generation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from dispatcher.sections import MEBIBYTE
from dispatcher.settings import check_fields, setting, settings_of, table

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
        meaning="SQLite file that keeps what is accepted until the service has it; none: no outbox.",
        advice="On a local disk; its directory must be there. One process at a time has it.",
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
        meaning="What has to stay free on the disk; below it nothing is accepted, 503.",
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
        advice="With these two a loss of power may take the last ones, with `off` the file itself.",
    )

    def __post_init__(self) -> None:
        check_fields(self, f"{SECTION}.")


def outbox_settings() -> tuple[Setting, ...]:
    """Every setting of the section, in the order of the README's table."""
    return settings_of(OutboxSettings, f"{SECTION}.")


def outbox_settings_table() -> str:
    """The table in the README."""
    return table(outbox_settings())
