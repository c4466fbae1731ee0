"""An overload scenario: how many dispatchers, who hands in how much, and what the service can bear.

Read from `overload/*.toml`; knows nothing of how it is played (`fleet`) or judged (`overload_figures`).
Instants are seconds from the start.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from dispatcher.config import Config
from dispatcher.devserver.capacity import Capacity

FOLDER: Final = Path(__file__).parent / "overload"
FOREVER: Final = float("inf")


class Saturating(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="saturating"):
    """Room is kept full: more producers wait than it can take."""

    start: float = 0.0
    end: float = FOREVER


class Steady(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="steady"):
    """Messages at a rate, whether or not there is room."""

    rate: float
    """Messages a second for each dispatcher."""
    poisson: bool = False
    together: int = 1
    """Messages handed in at one instant."""
    start: float = 0.0
    end: float = FOREVER


class Burst(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="burst"):
    """Many messages at one instant."""

    at: float
    messages: int


Traffic = Saturating | Steady | Burst


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """Half of the delay lies before the request's arrival, half after it."""

    round_trip: float = 0.030
    sigma: float = 0.0
    """Of a lognormal spread about the median, each way drawn for itself; 0: constant."""


class Upstream(Struct, frozen=True, forbid_unknown_fields=True):
    """What the service can bear, from `start` on until the next one."""

    start: float = 0.0
    capacity: int | None = None
    """Requests at once, above which one more is refused."""
    workers: int | None = None
    """Requests worked on at once; others wait, silently."""
    work: float = 0.030
    work_per_item: float = 0.0005
    sigma: float = 0.0
    """Of a lognormal spread of the work about its median; 0: constant."""
    refusal: Literal["429", "429 reset", "503"] = "429"
    """How it refuses: bare, or with a Reset."""
    reset: float = 1.0
    """Seconds that a Reset asks to wait."""

    def bounds(self, factor: float = 1.0) -> Capacity:
        """The limits in force, for a request that takes `factor` of the usual work."""
        return Capacity(self.capacity, self.workers, self.work * factor, self.work_per_item * factor)

    def busy_seconds(self, items: int) -> float:
        """Work of one request with so many messages."""
        return self.work + self.work_per_item * items


class Outage(Struct, frozen=True, forbid_unknown_fields=True):
    """A span in which the service cannot be reached."""

    start: float
    end: float
    kind: Literal["refused", "black_hole", "unreachable"]
    """refused: no connection is made, and those that were are cut; black_hole: requests are taken, and none
    is answered; unreachable: the same for those on their way, and new connections come to nothing, slowly."""


class Targets(Struct, frozen=True, forbid_unknown_fields=True):
    """What has to hold. Ratios are to the same scenario under a fixed limit."""

    against: int | None = None
    """That fixed limit."""
    is_best: bool = False
    """It is claimed to be the best one: the command sweeps all of them."""
    throughput_min: float | None = None
    latency_p99_max: float | None = None
    """Of messages, from admission to the receipt."""
    latency_from: float = 0.0
    """Instant from which latency is judged."""
    round_trip_p50_max: float | None = None
    rate_within: float | None = None
    """Round trips after which 90 % of the fixed limit's rate is reached."""
    recovered_within: float | None = None
    """Round trips after a change of the upstream until 80 % of the rate of its capacity is reached."""
    refused_max: float | None = None
    """Share of the requests."""
    attempts_max: int | None = None
    """Requests begun in an outage."""
    drained_within: float | None = None
    """Seconds after an outage's end until everything admitted before that end has settled."""
    jain_min: float | None = None
    share_min: float | None = None
    """Least of a dispatcher's deliveries, as a share of the mean."""
    fair_from: float = 0.0
    """Instant from which fairness is judged."""
    all_delivered: bool = False
    """Nothing is held at the end, and nothing has failed."""


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """What one file says."""

    about: str
    traffic: list[Traffic]
    upstream: list[Upstream]
    seconds: float = 60.0
    seconds_in_suite: float | None = None
    """The same for the test suite, if it plays less of it."""
    dispatchers: int = 1
    stagger: float = 0.0
    """Seconds over which their starts are drawn."""
    late: list[float] = []
    """Instants at which one more dispatcher starts."""
    network: Network = Network()
    outages: list[Outage] = []
    config: dict[str, Any] = {}
    targets: Targets = Targets()

    def settings(self) -> Config:
        """The dispatchers' configuration."""
        return Config.load(env={}, token="simulated", **self.config)

    @property
    def batch_messages(self) -> int:
        """Messages in a full batch."""
        return self.settings().batch.max_messages

    @property
    def round_trip(self) -> float:
        """Seconds that a full batch takes while nothing queues, by the first upstream."""
        return self.network.round_trip + self.upstream[0].busy_seconds(self.batch_messages)

    def rate(self, requests: int) -> float:
        """Messages a second of so many full batches always out, while nothing queues."""
        return requests * self.batch_messages / self.round_trip


def names() -> list[str]:
    """Every overload scenario there is."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Scenario:
    """One scenario by its name."""
    content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return msgspec.convert(content, Scenario, strict=False)
