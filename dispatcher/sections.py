"""The sections of the configuration, one frozen class for each concern; every setting is declared here once.

Used by `config`, which puts them together and offers them as its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from dispatcher.settings import check_fields, setting

MEBIBYTE: Final = 1_048_576


class _Section:
    """Checks its own fields, under its own name."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_fields(self, f"{type(self).__name__.removesuffix('Settings').lower()}.")


@dataclass(frozen=True, slots=True)
class BatchSettings(_Section):
    """When a batch is full, and how long it waits for company."""

    max_messages: int = setting(
        100,
        meaning="Messages in one request at most.",
        unit="messages",
        minimum=1,
        maximum=10_000,
        advice="Hundreds cost the service little; a poison message makes more neighbours wait.",
    )
    max_bytes: int = setting(
        1_000_000,
        meaning="Encoded bytes in one request at most.",
        unit="bytes",
        minimum=1,
        maximum=100_000_000,
        advice="A message above it travels alone.",
    )
    linger: float = setting(
        0.010,
        meaning="How long a message waits for company once two requests are out.",
        unit="s",
        minimum=0,
        maximum=60,
        advice="0 gathers only what is submitted in the same turn of the loop.",
    )
    soft_slots: int = setting(
        2,
        meaning="Requests that start without lingering.",
        unit="requests",
        minimum=0,
        maximum=1_024,
        advice="0 lets every message linger: fewer requests, a later first one.",
    )
    max_message_bytes: int = setting(
        MEBIBYTE,
        meaning="Bytes of one message's body at most.",
        unit="bytes",
        minimum=1,
        maximum=64 * MEBIBYTE,
        advice="1, 10 or 50 MiB by the plan of the account.",
    )
    quantum_bytes: int = setting(
        16_384,
        meaning="Bytes a FIFO queue may put into a batch before the next one has its turn.",
        unit="bytes",
        minimum=1,
        maximum=100_000_000,
    )


@dataclass(frozen=True, slots=True)
class QueueSettings(_Section):
    """How much is held before producers have to wait."""

    max_messages: int = setting(
        10_000,
        meaning="Messages held at most; then `put` waits and `put_nowait` raises `QueueFull`.",
        unit="messages",
        minimum=1,
        maximum=100_000_000,
    )
    max_bytes: int = setting(
        64 * MEBIBYTE,
        meaning="Encoded bytes held at most.",
        unit="bytes",
        minimum=1,
        advice="The memory in use is about twice as much.",
    )
    resume_below: float = setting(
        0.75,
        meaning="Once full, waiting producers go on below this share of either bound.",
        above=0,
        maximum=1,
    )


@dataclass(frozen=True, slots=True)
class RetrySettings(_Section):
    """How what failed and is safe to repeat is sent again."""

    base: float = setting(
        0.050,
        meaning="Scale of the random pause before the first retry; it doubles with each.",
        unit="s",
        above=0,
        maximum=3_600,
    )
    throttle_base: float = setting(
        1.0,
        meaning="The same after a 429 that does not say how long to wait.",
        unit="s",
        above=0,
        maximum=3_600,
    )
    max_delay: float = setting(
        20.0, meaning="The longest pause between two attempts.", unit="s", above=0, maximum=3_600
    )
    max_attempts: int | None = setting(
        None,
        meaning="Attempts at most; a message's deadline bounds them anyway.",
        unit="attempts",
        minimum=1,
        advice="Leave it, unless an attempt costs something.",
    )
    budget: int | None = setting(
        500,
        meaning="A retry takes 14 (5 after a 429), returned if it succeeds; a success at the first try earns "
        "1, each second 5. Where they run out, retries wait.",
        unit="tokens",
        minimum=14,
        maximum=1_000_000,
        advice="`none` lets every retry go as soon as its pause is over.",
    )
    error_entry_attempts: int = setting(
        5,
        meaning="Attempts for a message the service took the batch of, but not itself.",
        unit="attempts",
        minimum=1,
        maximum=1_000,
    )


@dataclass(frozen=True, slots=True)
class LimitSettings(_Section):
    """How many requests are out at once."""

    mode: Literal["adaptive", "fixed"] = setting(
        "adaptive",
        meaning="Find the upstream's capacity by what it refuses, or always allow `limit.max_in_flight`.",
    )
    max_in_flight: int = setting(
        64,
        meaning="Requests in flight at most; an adaptive limit begins with 4 of them.",
        unit="requests",
        minimum=1,
        maximum=1_024,
    )
    latency_trim: bool = setting(
        False,
        meaning="Lower an adaptive limit also where round trips grow.",
        advice="For an upstream that queues silently instead of refusing.",
    )
    isolations: int = setting(
        2,
        meaning="Refused batches whose culprits are sought at once.",
        unit="batches",
        minimum=1,
        maximum=64,
    )


@dataclass(frozen=True, slots=True)
class TransportSettings(_Section):
    """One request and its connection."""

    attempt_timeout: float = setting(
        10.0,
        meaning="How long one request may take; past it the outcome is unknown.",
        unit="s",
        above=0,
        maximum=3_600,
    )
    connect_timeout: float = setting(
        3.0,
        meaning="How long opening a connection may take; past it nothing was sent.",
        unit="s",
        above=0,
        maximum=3_600,
    )
    max_reply_bytes: int = setting(
        64 * MEBIBYTE, meaning="A longer reply is not read to its end.", unit="bytes", minimum=1
    )
    trust_env: bool = setting(
        False, meaning="Take a proxy from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`)."
    )
    ca_file: str | None = setting(
        None,
        meaning="PEM file of the certificate authorities to trust instead of the system's.",
        advice="For a proxy that opens TLS.",
    )


@dataclass(frozen=True, slots=True)
class Queue:
    """How the messages of one upstream FIFO queue are treated."""

    strict: bool = setting(
        False,
        meaning="One message in flight at a time.",
        advice="Then order holds even where the service refuses one message of a batch and takes later ones.",
    )
    on_failure: Literal["continue", "stop"] = setting(
        "continue",
        meaning="What follows a message that failed: the next one, or nothing until `resume(queue)`.",
    )

    def __post_init__(self) -> None:
        check_fields(self, "queues.NAME.")
