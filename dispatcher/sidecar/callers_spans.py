"""Tracing in the sidecar: a caller's own span is the producer of what it publishes.

The span is known from the caller's `traceparent`; every request of its messages to the service links to it,
also from an outbox and after a restart. Where spans go is not decided here: the process's global provider is
used, which `opentelemetry-instrument dispatcher serve` sets up from `OTEL_…`. Nothing of it is imported where
it is not asked for. Used by `daemon` and `generation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.sidecar.server import Request

    Handle = Callable[[Request], Awaitable[web.StreamResponse]]

Mode = Literal["off", "on", "forward"]


def begin(dispatcher: Dispatcher, mode: Mode, provider: Any = None) -> None:
    """Trace a dispatcher's requests, if that is wanted.

    Raises:
        ConfigError: OpenTelemetry is not there.
    """
    if mode == "off":
        return
    try:
        from dispatcher.tracing import instrument
    except ImportError as error:
        wanted = "wanted is `off`, or the extra: pip install 'qstash-dispatcher[otel]'"
        raise ConfigError("serve.tracing", mode, wanted, problem=str(error)) from None
    instrument(dispatcher, provider, forward=mode == "forward")


def under_callers(handle: Handle, mode: Mode) -> Handle:
    """Have requests answered under the span that their caller names, if it names one."""
    if mode == "off":
        return handle
    from opentelemetry.context import Context, attach, detach
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    extract = TraceContextTextMapPropagator().extract

    async def answered(request: Request) -> web.StreamResponse:
        token = attach(extract(request.headers, Context()))
        try:
            return await handle(request)
        finally:
            detach(token)

    return answered
