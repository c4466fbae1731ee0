"""Dispatchers to scrape, and a scrape read back by the client's own parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher import Config, Dispatcher
from dispatcher.testing import LocalUpstream, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

URL = "https://example.com/hook"
Labels = frozenset[tuple[str, str]]


def config(upstream: LocalUpstream, **overrides: Any) -> Config:
    """Settings for a local upstream, with quick retries."""
    return Config.load(env={}, token=upstream.token, url=upstream.url, retry_base=0.001, **overrides)


def idle(name: str = "default", **overrides: Any) -> Dispatcher:
    """A dispatcher that was not opened."""
    return Dispatcher(Config.load(env={}, token="t", **overrides), name=name, transport=ScriptedTransport())


def exposition(registry: CollectorRegistry) -> str:
    """What a scrape of this registry answers."""
    return str(generate_latest(registry), "utf-8")


class Scrape:
    """One scrape, read back by the client's own parser."""

    def __init__(self, registry: CollectorRegistry) -> None:
        families: Iterable[Metric] = text_string_to_metric_families(exposition(registry))
        self.values: dict[str, dict[Labels, float]] = {}
        for family in families:
            for sample in family.samples:
                series = self.values.setdefault(sample.name, {})
                labels = frozenset(sample.labels.items())
                assert labels not in series, f"{sample.name} has a series twice"
                series[labels] = sample.value

    def __call__(self, name: str, dispatcher: str = "default", **labels: str) -> float:
        return self.values[name][frozenset({"dispatcher": dispatcher, **labels}.items())]

    def by(self, name: str, label: str, dispatcher: str = "default") -> dict[str, float]:
        """The series of one dispatcher that are not zero, by the value of a label."""
        found = {}
        for labels, value in self.values[name].items():
            one = dict(labels)
            if one["dispatcher"] == dispatcher and value:
                found[one[label]] = value
        return found
