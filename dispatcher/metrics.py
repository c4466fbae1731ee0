"""Prometheus metrics: one collector for a registry, which reads its dispatchers' plain counters at a scrape.

::

    from dispatcher.metrics import register
    register(dispatcher)

Dispatchers are held weakly: one that was dropped is gone from the next scrape. Each has its own samples
under the label `dispatcher`, its name. What is exported stands in `families`. Nothing here changes a
dispatcher or keeps it alive, and a scrape may come from another thread. The only module that knows
`prometheus_client`; called by users.
"""

from __future__ import annotations

import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, WeakSet

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dispatcher import __version__
from dispatcher.core.tally import Histogram
from dispatcher.errors import ConfigError
from dispatcher.families import FAMILIES, INFO_HELP, INFO_NAME, metrics_table
from dispatcher.outbox_families import OUTBOX_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry

    from dispatcher.families import Family, Readable, Reading
    from dispatcher.outbox import Outbox
    from dispatcher.outbox_families import OutboxFamily

__all__ = ["metrics_table", "register", "register_outbox"]


def register(dispatcher: Readable, registry: CollectorRegistry = REGISTRY) -> None:
    """Export a dispatcher's metrics from a registry, until the dispatcher is dropped.

    A `BlockingDispatcher` may be registered before its first use; a forked process exports its own.
    Registering it again is harmless. A closed one keeps its last values, until another one of its name is
    registered.

    Raises:
        ConfigError: Another dispatcher of the same name is registered and not closed.
    """
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector()
            registry.register(collector)
            _collectors[registry] = collector
        collector.add(dispatcher)


def register_outbox(outbox: Outbox, registry: CollectorRegistry = REGISTRY) -> None:
    """Export an outbox's metrics from a registry, until the outbox is dropped; its dispatcher has its own.

    They carry the dispatcher's name. Registering it again is harmless.

    Raises:
        ConfigError: Another outbox whose dispatcher has the same name is registered and open.
    """
    with _lock:
        collector = _outbox_collectors.get(registry)
        if collector is None:
            collector = _OutboxCollector()
            registry.register(collector)
            _outbox_collectors[registry] = collector
        collector.add(outbox)


class _Collector(Collector):
    """What a registry asks at a scrape, for all dispatchers registered there."""

    def __init__(self) -> None:
        self._dispatchers: WeakSet[Readable] = WeakSet()

    def add(self, dispatcher: Readable) -> None:
        """Export one more; raises `ConfigError` if its name is taken."""
        for other in tuple(self._dispatchers):
            if other is dispatcher or other.name != dispatcher.name:
                continue
            if other.statistics().state != "closed":
                raise ConfigError(
                    "name",
                    dispatcher.name,
                    "an open dispatcher of this name is registered in the same registry, and their metrics "
                    "would mix: give each its own, `Dispatcher(…, name=…)`",
                )
            self._dispatchers.discard(other)
        self._dispatchers.add(dispatcher)

    def collect(self) -> Iterator[Metric]:
        """Every family with the present samples."""
        with _lock:
            dispatchers = sorted(self._dispatchers, key=lambda dispatcher: dispatcher.name)
        for family in FAMILIES:
            yield _metric(family, dispatchers)
        info = InfoMetricFamily(INFO_NAME.removesuffix("_info"), INFO_HELP)
        info.add_metric([], {"version": __version__})
        yield info

    def describe(self) -> Iterator[Metric]:
        """The families without samples: a registry asks for their names only, no dispatcher is read."""
        for family in FAMILIES:
            yield _metric(family, ())
        yield InfoMetricFamily(INFO_NAME.removesuffix("_info"), INFO_HELP)


class _OutboxCollector(Collector):
    """The same for all outboxes registered there."""

    def __init__(self) -> None:
        self._outboxes: WeakSet[Outbox] = WeakSet()

    def add(self, outbox: Outbox) -> None:
        """Export one more; raises `ConfigError` if its name is taken."""
        for other in tuple(self._outboxes):
            if other is outbox or other.name != outbox.name:
                continue
            if other.is_open:
                wanted = "an open outbox of this name is registered: give each dispatcher its own name"
                raise ConfigError("name", outbox.name, wanted)
            self._outboxes.discard(other)
        self._outboxes.add(outbox)

    def collect(self) -> Iterator[Metric]:
        """Every family with the present samples."""
        with _lock:
            outboxes = sorted(self._outboxes, key=lambda outbox: outbox.name)
        for family in OUTBOX_FAMILIES:
            yield _outbox_metric(family, outboxes)

    def describe(self) -> Iterator[Metric]:
        """The families without samples."""
        for family in OUTBOX_FAMILIES:
            yield _outbox_metric(family, ())


def _outbox_metric(family: OutboxFamily, outboxes: Iterable[Outbox]) -> Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for outbox in outboxes:
        for labels, value in family.samples(outbox):
            metric.add_metric(labels, value)
    return metric


_lock: Final = threading.Lock()
_outbox_collectors: Final[WeakKeyDictionary[CollectorRegistry, _OutboxCollector]] = WeakKeyDictionary()
_collectors: Final[WeakKeyDictionary[CollectorRegistry, _Collector]] = WeakKeyDictionary()
"""A registry holds its collector, the collector not its registry: dropped together."""


def _metric(family: Family, dispatchers: Iterable[Readable]) -> Metric:
    samples = [sample for dispatcher in dispatchers for sample in family.samples(dispatcher)]
    if family.kind == "histogram":
        return _histograms(family, samples)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, value in samples:
        assert not isinstance(value, Histogram), f"{family.name} is declared as a {family.kind}"
        metric.add_metric(labels, float(value))
    return metric


def _histograms(family: Family, samples: list[tuple[list[str], Reading]]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, histogram in samples:
        assert isinstance(histogram, Histogram), f"{family.name} is declared as a histogram"
        bounds = [*map(repr, histogram.bounds), "+Inf"]
        # One copy: the buckets are cumulative, and the last of them is also the count.
        cumulative = accumulate(list(histogram.counts))
        metric.add_metric(labels, list(zip(bounds, cumulative, strict=True)), histogram.total)
    return metric
