"""A tracer whose spans are kept in memory, and what stands in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from dispatcher.testing import AcceptedMessage

URL = "https://example.com/hook"
REQUESTS = ("batch", "publish", "enqueue")


class Spans:
    """A provider of tracers, and the spans that have ended."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def all(self) -> Sequence[ReadableSpan]:
        """Those of producers, too."""
        return self.exporter.get_finished_spans()

    @property
    def requests(self) -> list[ReadableSpan]:
        """One for each request of a dispatcher, in the order in which they ended."""
        return [span for span in self.all if span.name.split()[0] in REQUESTS]


def attributes(span: ReadableSpan) -> dict[str, object]:
    """What stands in a span."""
    assert span.attributes is not None
    return dict(span.attributes)


def identity(context: SpanContext | None) -> tuple[int, int]:
    """What tells spans apart."""
    assert context is not None
    return context.trace_id, context.span_id


def links(span: ReadableSpan) -> set[tuple[int, int]]:
    """The spans that one is linked to."""
    found = [identity(link.context) for link in span.links]
    assert len(found) == len(set(found)), "a span is linked to once"
    return set(found)


def traceparent(context: SpanContext) -> str:
    """As a header, written by the standard and not by what is tested."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def header(row: AcceptedMessage, name: str) -> str | None:
    """A header's value of an accepted message."""
    found = [value for key, value in row.headers if key.lower() == name.lower()]
    assert len(found) <= 1, found
    return found[0] if found else None
