"""What `/metrics` answers: the dispatcher's families, the intake's, and the process's own, at this instant.

In a registry of its own, so that nothing else of the process is shown and two sidecars in one process do not
meet. With `dispatcher.metrics` the only module that knows `prometheus_client`. Used by `admin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dispatcher.metrics import register, register_outbox
from dispatcher.sidecar.counters import IntakeFamily, families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.outbox import Outbox
    from dispatcher.sidecar.counters import IntakeCounters


class Exposition:
    """The metrics of one sidecar, in the format that is asked for."""

    def __init__(
        self, dispatcher: Dispatcher, counters: IntakeCounters, outbox: Outbox | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        register(dispatcher, self.registry)
        if outbox is not None:
            register_outbox(outbox, self.registry)
        self.registry.register(IntakeCollector(counters))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type; OpenMetrics for whom `Accept` says so."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class IntakeCollector(Collector):
    """What the registry asks at a scrape."""

    def __init__(self, counters: IntakeCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        """Every family with the present samples."""
        for family in families():
            metric = _metric(family)
            for labels, number in family.samples(self._counters):
                metric.add_metric(labels, number)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """The families without samples."""
        return map(_metric, families())


def _metric(family: IntakeFamily) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return kind(family.name, family.help, labels=family.labels)
