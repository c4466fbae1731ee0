"""A scenario: who sends what, and what goes wrong. Read from `scenarios/*.toml`, made messages by a seed.

Knows nothing of the core but its `Message`; called by `world` and the command.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, structs

from dispatcher.config import Config
from dispatcher.devserver.kinds import REQUEST_RATES
from dispatcher.message import Message
from dispatcher.options import Options

if TYPE_CHECKING:
    from random import Random

FOLDER: Final = Path(__file__).parent / "scenarios"
POISON: Final = "POISON"
GROUP: Final = "subscribers"
CONTENT: Final = Options(content_based_deduplication=True)
SHARED: Final = Options(retries=2, forward={"X-Tenant": "42"})


class Mix(Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of the messages, each from 0 to 1."""

    queued: float = 0.0
    queues: int = 3
    group: float = 0.0
    binary: float = 0.0
    empty: float = 0.0
    own_id: float = 0.0
    content: float = 0.0
    poison: float = 0.0
    """The service refuses it, and every batch it is in, with 400."""
    missing: float = 0.0
    """To a URL group that does not exist: 404, with its name in the text."""
    large: float = 0.0
    """Above the service's size, and not above ours: 413."""


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """What one file says."""

    about: str
    messages: tuple[int, int] = (50, 300)
    bytes: tuple[int, int] = (10, 400)
    seconds: float = 5.0
    """Over which the messages are produced."""
    burst: tuple[int, int] = (1, 20)
    runs: float = 0.5
    """Share of the instants at which what is plain is handed in as runs, not one by one."""
    deadlines: list[tuple[float, float]] = []
    """(seconds, share); the rest has the configuration's."""
    withdrawn: float = 0.0
    withdrawn_within: float = 0.5
    impatient: float = 0.0
    """Share of those waiting for room that give up after a while."""
    flushes: int = 0
    drain_after: tuple[float, float] | None = None
    uplink: float = 0.0
    """Seconds at most until a request arrives at the service."""
    skew: float = 7200.0
    """Seconds at most between the service's clock and ours."""
    tokens: list[float] = []
    """Instants, in seconds from the start, at which the token is replaced."""
    resumed_after: tuple[float, float] = (0.1, 2.0)
    """Seconds after which a queue that stopped at a failed message is resumed."""
    outages: list[tuple[float, float]] = []
    """Spans, in seconds from the start, in which no connection is made."""
    all_delivered: bool = False
    """Everything but culprits and withdrawn ones must have its receipt."""
    every_reply_is_seen: bool = False
    """No fault here loses a reply, so that every exception to a queue's order must have been counted."""
    culprit_within: float | None = None
    """The deadline of culprits, where it is theirs to fail and their neighbours' to outlive them."""
    is_drawn: bool = False
    """Its faults, and some of its settings, are drawn by the seed."""
    upstream: dict[str, Any] = {}
    config: dict[str, Any] = {}
    faults: dict[str, Any] = {}
    mix: Mix = Mix()

    def settings(self) -> Config:
        """The dispatcher's configuration."""
        return Config.load(env={}, token="simulated", **self.config)


class Draft(Struct):
    """One message that a producer will hand in."""

    number: int
    at: float
    message: Message
    is_culprit: bool
    withdraw_at: float | None = None


def names() -> list[str]:
    """Every scenario there is."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Scenario:
    """One scenario by its name."""
    content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return msgspec.convert(content, Scenario, strict=False)


def drawn(scenario: Scenario, rng: Random) -> Scenario:
    """The scenario with faults and settings of this seed's own, if it asks for that."""
    if not scenario.is_drawn:
        return scenario
    faults: dict[str, Any] = {**scenario.faults, **_rates(rng)}
    start = rng.uniform(0.5, 4.0)
    faults["phase"] = [{"start": start, "end": start + rng.uniform(0.5, 8.0), **_rates(rng)}]
    if rng.random() < 0.3:
        del faults["poison_400"]
        faults["poison_500"] = POISON
    config = {
        **scenario.config,
        "deduplication": rng.choice(["auto", "auto", "off"]),
        "limit": {
            "max_in_flight": rng.choice([1, 2, 4, 64]),
            "mode": rng.choice(["adaptive", "adaptive", "fixed"]),
            "latency_trim": rng.random() < 0.2,
        },
        "queue": {"max_messages": rng.choice([20, 150, 10_000])},
        "batch": {"max_messages": rng.choice([5, 30, 100])},
        "drain_within": rng.choice([0.5, 5.0]),
    }
    drain_after = rng.choice([None, (0.5, 12.0)])
    return structs.replace(scenario, faults=faults, config=config, drain_after=drain_after)


def _rates(rng: Random) -> dict[str, float]:
    """Some kinds of faults with rates of at most a half in all, now and then of one kind and always."""
    chosen = rng.sample(REQUEST_RATES, rng.randrange(6))
    if len(chosen) == 1 and rng.random() < 0.3:
        return {chosen[0]: 1.0}
    rates = {name: rng.uniform(0.0, 0.5 / len(chosen)) for name in chosen}
    return rates | {name: rng.choice([0.0, 0.05]) for name in ("error_entry", "error_endpoint")}


def draft(scenario: Scenario, rng: Random) -> list[Draft]:
    """Every message of a run, by the instant at which it is handed in; the first one is harmless."""
    count = rng.randint(*scenario.messages)
    drafts = [Draft(0, 0.0, Message("https://first.example/", "first"), False)]
    while len(drafts) < count:
        at = 0.5 + rng.uniform(0.0, scenario.seconds)
        for _ in range(min(rng.randint(*scenario.burst), count - len(drafts))):
            drafts.append(_one(scenario, rng, len(drafts), at))
    return sorted(drafts, key=lambda one: (one.at, one.number))


def _one(scenario: Scenario, rng: Random, number: int, at: float) -> Draft:
    mix = scenario.mix
    kind = _kind(mix, rng)
    size = rng.randint(*scenario.bytes)
    destination, body = (
        f"https://d{number % 5}.example/hook",
        f"{number} ".ljust(size, "é" if size % 2 else "x"),
    )
    if kind == "missing":
        destination = f"nobody-{number}"
    elif kind == "poison":
        body += POISON
    elif kind == "large":
        body = body.ljust(int(scenario.upstream["max_message_bytes"]) + 1, "L")
    elif kind == "group":
        destination = GROUP
    if kind == "empty":
        message = Message(f"https://empty.example/{number}?token=secret")
    elif kind == "binary":
        message = Message(destination, b"\xff" + body.encode())
    else:
        message = Message(destination, body, options=SHARED if number % 3 == 0 else None)
    _decorate(message, mix, rng, number)
    is_culprit = kind in ("missing", "poison", "large")
    message.deliver_within = (is_culprit and scenario.culprit_within) or _deadline(scenario, rng)
    withdraw_at = None
    if rng.random() < scenario.withdrawn:
        withdraw_at = at + rng.uniform(0.0, scenario.withdrawn_within)
    return Draft(number, at, message, is_culprit, withdraw_at)


def _kind(mix: Mix, rng: Random) -> str:
    place = rng.random()
    for name in ("missing", "poison", "large", "group", "binary", "empty"):
        share: float = getattr(mix, name)
        if place < share:
            return name
        place -= share
    return "plain"


def _decorate(message: Message, mix: Mix, rng: Random, number: int) -> None:
    if rng.random() < mix.queued:
        message.queue = f"q{rng.randrange(mix.queues)}"
    place = rng.random()
    if place < mix.own_id:
        message.deduplication_id = f"own-{number}"
    elif place < mix.own_id + mix.content:
        message.options = CONTENT


def _deadline(scenario: Scenario, rng: Random) -> float | None:
    place = rng.random()
    for seconds, share in scenario.deadlines:
        if place < share:
            return seconds
        place -= share
    return None
