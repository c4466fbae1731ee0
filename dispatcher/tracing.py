"""OpenTelemetry: a span for each request, linked to the spans in which its messages were handed in.

::

    from dispatcher.tracing import instrument
    instrument(dispatcher)

A request is of many producers, so its span is the root of a trace of its own, and links to each of theirs.
What a message costs is to ask for the current span; nothing is made or ended for it. No token, body,
destination or word of the service is in any attribute. The only module that knows `opentelemetry` (of the
extra `otel`); nothing imports it but users, and the sidecar where it is asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

from msgspec import Struct, UnsetType

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:  # pragma: no cover - tried in an environment of its own
    raise ImportError("tracing needs OpenTelemetry: pip install 'qstash-dispatcher[otel]'") from error

from dispatcher import __version__
from dispatcher.core.annotation import Annotation
from dispatcher.core.batch import Reply
from dispatcher.core.wire import Encoded
from dispatcher.delivery import Delivery, HandedRun, Home

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.trace import Span, TracerProvider

    from dispatcher.blocking import BlockingDispatcher
    from dispatcher.core.batch import Batch, Failure, Run
    from dispatcher.dispatcher import Dispatcher
    from dispatcher.message import Message
    from dispatcher.observing import D, EncodeRun, Post, Prepare

__all__ = ["LINKS_MAX", "instrument", "uninstrument"]

LINKS_MAX: Final = 128
"""Links of a span at most; as many as OpenTelemetry's own limit keeps."""
SYSTEM: Final = "qstash"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
FORWARD: Final = "Upstash-Forward-"
"""What makes the service give a header to the destination."""
FORWARDED: Final = (FORWARD + TRACEPARENT, FORWARD + TRACESTATE)
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_W3C: Final = TraceContextTextMapPropagator()
_NOWHERE: Final = Home(None, None)
_ROOT: Final = Context()


def instrument(
    dispatcher: Dispatcher | BlockingDispatcher,
    tracer_provider: TracerProvider | None = None,
    *,
    forward: bool = False,
) -> None:
    """Trace a dispatcher from now on, and every outbox that stands before it. Again: with other arguments.

    Args:
        dispatcher: Opened or not.
        tracer_provider: Where spans go; by default the global one.
        forward: Give the destination the producer's `traceparent` (and `tracestate`) as headers, so that its
            own spans go on where the producer's are. Not of a content-deduplicated message, of which it would
            make another one, nor over what the message itself forwards.
    """
    tracer = trace.get_tracer("dispatcher", __version__, tracer_provider)
    dispatcher.observe(_Tracing(tracer, dispatcher.name, dispatcher.config.url, is_forwarding=forward,
                                max_bytes=dispatcher.config.queue.max_bytes))  # fmt: skip


def uninstrument(dispatcher: Dispatcher | BlockingDispatcher) -> None:
    """Trace it no more: from now on it costs nothing again."""
    dispatcher.observe(None)


class _Producer(Struct, gc=False, eq=False):
    """The home of messages that were handed in under one span: a `Home` that knows it.

    Like a delivery outside the garbage collector's care: nothing in here refers back to it.
    """

    home: Home
    context: SpanContext
    annotation: Annotation | None = None
    """What its messages forward, made at the first."""

    @property
    def loop(self) -> Any:
        """See `Home`."""
        return self.home.loop

    @property
    def take_back(self) -> Any:
        """See `Home`."""
        return self.home.take_back

    def forwards(self) -> Annotation:
        """What its messages forward."""
        if self.annotation is None:
            headers = {FORWARD + name: value for name, value in _w3c(self.context).items()}
            self.annotation = Annotation.of(headers, FORWARDED)
        return self.annotation


class _Tracing:
    """What stands around a dispatcher's steps: see `observing`."""

    def __init__(
        self, tracer: trace.Tracer, name: str, url: str, *, is_forwarding: bool, max_bytes: int
    ) -> None:
        address = urlsplit(url)
        self._tracer = tracer
        self._is_forwarding = is_forwarding
        self._max_bytes = max_bytes
        self._last: _Producer | None = None
        """Most messages have the span of the one before: they share this."""
        self._recalled: tuple[str, _Producer] | None = None
        port = address.port or DEFAULT_PORTS.get(address.scheme, 0)
        self._place = f"{address.hostname}:{port}"
        self._common: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.type": "send",
            "server.address": address.hostname or "",
            "server.port": port,
            "dispatcher.name": name,
        }

    # -------------------------------------------------------------------------------------- handing in

    def around_prepare(self, prepare: Prepare) -> Prepare:
        """One message, in its producer's own task or thread."""
        is_forwarding = self._is_forwarding

        def traced(message: Message, kind: type[D], home: Home, now: float, is_claimed: bool, /) -> D:
            producer = self._producer(home)
            if producer is None:
                return prepare(message, kind, home, now, is_claimed)
            delivery = prepare(message, kind, cast("Home", producer), now, is_claimed)
            if is_forwarding:
                self._annotate(delivery, producer.forwards())
            return delivery

        return traced

    def around_run(self, encode_run: EncodeRun) -> EncodeRun:
        """A run is handed in under one span."""

        def traced(messages: Iterable[Message], run: Run, most: int, most_bytes: int) -> Message | UnsetType:
            producer = self._producer(cast("Home", run.home))
            if producer is None:
                return encode_run(messages, run, most, most_bytes)
            run.home = producer
            if not self._is_forwarding:
                return encode_run(messages, run, most, most_bytes)
            annotation = producer.forwards()
            try:
                return encode_run(messages, run, most, most_bytes - most * len(annotation.members))
            finally:  # also if the iterable breaks off: the run goes on
                _annotate_run(run, annotation)

        return traced

    def _producer(self, home: Home) -> _Producer | None:
        """For what is handed in now; `None` outside of any span."""
        context = trace.get_current_span().get_span_context()
        last = self._last
        if last is not None and last.context is context and last.home is home:
            return last
        if not context.is_valid:
            return None
        self._last = producer = _Producer(home, context)
        return producer

    def _annotate(self, delivery: Delivery, annotation: Annotation) -> None:
        encoded = Encoded(
            delivery.data, delivery.deduplication_id, delivery.idempotent, delivery.owns_id, delivery.single
        )
        encoded = self._annotated(delivery.message, encoded, annotation)
        delivery.data, delivery.single = encoded.data, encoded.single

    def _annotated(self, message: Message, encoded: Encoded, annotation: Annotation) -> Encoded:
        """With what it forwards, if that may be."""
        identity, single = encoded.deduplication_id, encoded.single
        if identity is None and encoded.idempotent:
            return encoded  # it is known by its content
        if not annotation.fits(message, single):
            return encoded
        if single is not None:
            return _replaced(encoded, encoded.data, annotation.on_single(single))
        data = annotation.on_item(encoded.data, identity)
        return encoded if len(data) > self._max_bytes else _replaced(encoded, data, None)

    # ------------------------------------------------------------------------------------ in an outbox

    def keep(self, message: Message, encoded: Encoded) -> tuple[Encoded, str]:
        """The span of who hands it in is kept with it, in the form of the headers."""
        producer = self._producer(_NOWHERE)
        if producer is None:
            return encoded, ""
        if self._is_forwarding:
            encoded = self._annotated(message, encoded, producer.forwards())
        headers = _w3c(producer.context)
        return encoded, " ".join(headers.values())

    def recall(self, delivery: Delivery, kept: str) -> None:
        """It is its producer's again."""
        recalled = self._recalled
        if recalled is None or recalled[0] != kept or recalled[1].home is not delivery.home:
            traceparent, _, tracestate = kept.partition(" ")
            found = _W3C.extract({TRACEPARENT: traceparent, TRACESTATE: tracestate}, _ROOT)
            context = trace.get_current_span(found).get_span_context()
            self._recalled = recalled = kept, _Producer(delivery.home, context)
        if recalled[1].context.is_valid:
            delivery.home = recalled[1]

    # ---------------------------------------------------------------------------------------- requests

    def around_post(self, post: Post) -> Post:
        """One request, one span: current meanwhile, so that what traces HTTP stands below it."""

        async def traced(batch: Batch) -> Reply | Failure:
            span = self._begun(batch)
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                try:
                    answer = await post(batch)
                except BaseException as error:
                    _set_error(span, type(error).__name__)
                    raise
                else:
                    _tell(span, answer)
                    return answer
                finally:
                    span.end()

        return traced

    def _begun(self, batch: Batch) -> Span:
        producers = _producers(batch)
        operation = "batch"
        attributes: dict[str, str | int] = {
            **self._common,
            "dispatcher.batch.reason": batch.reason,
            "dispatcher.batch.bytes": batch.size_bytes,
            "dispatcher.batch.producers": len(producers),
        }
        if batch.single is None:
            attributes["messaging.batch.message_count"] = len(batch.members)
        else:
            operation = "enqueue" if batch.entries[0].queue is not None else "publish"
        attributes["messaging.operation.name"] = operation
        links = [Link(context) for context in producers[:LINKS_MAX]]
        name = f"{operation} {self._place}"
        return self._tracer.start_span(name, _ROOT, SpanKind.PRODUCER, attributes, links)


def _producers(batch: Batch) -> list[SpanContext]:
    """The spans under which the messages of a batch were handed in, each once."""
    run = batch.run
    homes: set[Any]
    if run is None:
        homes = {entry.home for entry in batch.entries}
    elif isinstance(run, HandedRun):
        homes = {delivery.home for delivery in run.handles}
    else:
        homes = {run.home}
    found = [home.context for home in homes if type(home) is _Producer]
    return list({(context.trace_id, context.span_id): context for context in found}.values())


def _annotate_run(run: Run, annotation: Annotation) -> None:
    """Have the messages of a run forward these."""
    items, identities = run.items, run.deduplication_ids
    for index, message in enumerate(run.messages):
        if annotation.fits(message, None):
            items[index] = annotation.on_item(items[index], identities[index])
    run.size_bytes = sum(map(len, items))


def _replaced(encoded: Encoded, data: bytes, single: Any) -> Encoded:
    return Encoded(data, encoded.deduplication_id, encoded.idempotent, encoded.owns_id, single)


def _tell(span: Span, answer: Reply | Failure) -> None:
    """What became of a request, in numbers and words of ours."""
    if isinstance(answer, Reply):
        span.set_attribute("http.response.status_code", answer.status)
        if not 200 <= answer.status < 300:
            _set_error(span, str(answer.status))
    else:
        span.set_attribute("dispatcher.certainty", answer.certainty)
        _set_error(span, answer.kind)


def _set_error(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _w3c(context: SpanContext) -> dict[str, str]:
    """A span's context as headers."""
    headers: dict[str, str] = {}
    _W3C.inject(headers, trace.set_span_in_context(trace.NonRecordingSpan(context), _ROOT))
    return headers
