"""The management calls: messages, URL groups, queues, as the service's REST interface has them.

Pure: `now` is an argument. `service` routes here after it has checked the token; every function returns the
status and the value of the JSON reply (`None`: no body) or raises `Refused`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from dispatcher.devserver.options import (
    Options,
    Refused,
    callback_headers,
    has_scheme,
    is_name,
    parse_duration,
)
from dispatcher.devserver.queries import Query

if TYPE_CHECKING:
    from dispatcher.devserver.intake import Group
    from dispatcher.devserver.upstream import Queue, Upstream

Answer = tuple[int, Any]
IDS: Final = "messageIds"


class _Endpoint(Struct):
    url: str | None = None
    name: str | None = None


class _Endpoints(Struct):
    endpoints: list[_Endpoint] = []


class _QueueUpsert(Struct, rename="camel"):
    queue_name: str
    parallelism: int = 1
    paused: bool = False


class _MessageIds(Struct, rename="camel", forbid_unknown_fields=True):
    message_ids: list[str] | None = None


def decode(body: bytes, kind: type[Any]) -> Any:
    """The body's JSON; raises `Refused(400, …)`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"invalid body: {error}") from None


def milliseconds(seconds: float) -> int:
    """Unix milliseconds, as the service dates everything."""
    return int(seconds * 1000)


# -- messages -------------------------------------------------------------------------------------


def messages(upstream: Upstream, method: str, path: list[str], query: str, body: bytes) -> Answer:
    """`GET` and `DELETE /v2/messages/{id}`; `DELETE /v2/messages` for some or all."""
    if not path:
        only(method, "DELETE")
        ids = _wanted(upstream, Query(query, IDS), body)
        return 200, {"cancelled": upstream.cancel_all() if ids is None else upstream.cancel(ids)}
    only(method, "GET", "DELETE")
    place = upstream.find(path[0]) if len(path) == 1 else None
    if place is None:
        raise Refused(404, "message not found")
    if method == "GET":
        return 200, message_view(upstream, *place)
    upstream.drop([place])
    return 202, {"cancelled": 1}


def _wanted(upstream: Upstream, query: Query, body: bytes) -> list[str] | None:
    """The ids in the body or the query, those that a filter finds; `None` for every message."""
    ids = decode(body, _MessageIds).message_ids if body.strip() else None
    if ids is not None or query.values(IDS):
        return ids or query.values(IDS)
    if not query.is_filtered:
        return None
    ledger = upstream.ledger
    rows = range(upstream.cancelled_before, len(ledger))
    return [
        message_id
        for seq in rows
        for message_id in ledger.message_ids(seq)
        if (place := upstream.find(message_id)) is not None
        and query.matches(message_view(upstream, *place), milliseconds(ledger.at[seq]))
    ]


def message_view(upstream: Upstream, seq: int, ordinal: int) -> dict[str, Any]:
    """A message as `GET /v2/messages/{id}` shows it; what is not set is left out."""
    ledger = upstream.ledger
    options, group = ledger.options[seq], ledger.groups[seq]
    destination, created = ledger.destinations[seq], ledger.at[seq]
    url = destination if group is None else group[ordinal].url
    view: dict[str, Any] = {
        "messageId": ledger.message_id(seq, ordinal),
        "url": f"https://qstash.upstash.io/{url}" if url.startswith("api/") else url,
        "topicName": None if group is None else destination,
        "endpointName": None if group is None else group[ordinal].name,
        "queueName": ledger.queues[seq],
        "method": options.method,
        "maxRetries": options.retries,
        "notBefore": options.not_before * 1000
        if options.not_before
        else milliseconds(created + options.delay),
        "createdAt": milliseconds(created),
        "header": options.delivered() or None,
        **body_view(None if ledger.bodies is None else ledger.bodies[seq]),
        **option_views(options),
    }
    return {name: value for name, value in view.items() if value is not None}


def body_view(body: bytes | None) -> dict[str, str]:
    """A body as text, or as Base64 where it is none."""
    if not body:
        return {}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"bodyBase64": base64.b64encode(body).decode()}


def option_views(options: Options) -> dict[str, Any]:
    """Options of a message as they are shown; `None` for what is not set."""
    return {
        "callback": options.value("upstash-callback"),
        "callbackHeader": callback_headers(options, "upstash-callback-") or None,
        "failureCallback": options.value("upstash-failure-callback"),
        "failureCallbackHeader": callback_headers(options, "upstash-failure-callback-") or None,
        "retryDelayExpression": options.value("upstash-retry-delay"),
        "timeout": parse_duration(options.value("upstash-timeout") or ""),
        "label": options.value("upstash-label"),
        "flowControlKey": options.value("upstash-flow-control-key"),
        **flow_limits(options.value("upstash-flow-control-value")),
    }


def flow_limits(value: str | None) -> dict[str, int]:
    """`parallelism`, `rate` and `period` (seconds) of an `Upstash-Flow-Control-Value`."""
    limits: dict[str, int] = {}
    for part in value.split(",") if value else ():
        name, _, number = (word.strip() for word in part.partition("="))
        seconds = int(number) if number.isdigit() else parse_duration(number)
        if seconds is not None:
            limits[name] = seconds
    return limits


# -- URL groups -----------------------------------------------------------------------------------


def groups(upstream: Upstream, method: str, path: list[str], body: bytes, now: float) -> Answer:
    """`/v2/topics`, `/v2/topics/{name}` and `/v2/topics/{name}/endpoints`."""
    if not path:
        only(method, "GET")
        return 200, [group_view(group) for group in upstream.groups.values()]
    name = path[0]
    if path[1:] == ["endpoints"]:
        only(method, "POST", "PUT", "DELETE")
        wanted = decode(body, _Endpoints).endpoints
        (_remove if method == "DELETE" else _upsert)(upstream, name, wanted, now)
        return 200, None
    only(method, "GET", "DELETE")
    group = upstream.groups.get(name) if len(path) == 1 else None
    if group is None:
        raise Refused(404, f"URL group {name} not found")
    if method == "GET":
        return 200, group_view(group)
    upstream.put_group(name, None, group.created_at, now)
    return 200, None


def group_view(group: Group) -> dict[str, Any]:
    """A URL group as the service shows it."""
    return {
        "name": group.name,
        "createdAt": milliseconds(group.created_at),
        "updatedAt": milliseconds(group.updated_at),
        "endpoints": [
            {"url": url, **({"name": name} if name else {})} for url, name in group.endpoints.items()
        ],
    }


def _upsert(upstream: Upstream, name: str, wanted: list[_Endpoint], now: float) -> None:
    if not is_name(name):
        raise Refused(400, "invalid URL group name: only letters, digits, '_', '-' and '.' are allowed")
    group = upstream.groups.get(name)
    endpoints = dict(group.endpoints) if group is not None else {}
    for endpoint in wanted:
        if endpoint.url is None or not has_scheme(endpoint.url):
            raise Refused(400, "endpoint has invalid scheme, add http:// or https://")
        for url in [url for url, known in endpoints.items() if known is not None and known == endpoint.name]:
            del endpoints[url]  # a name stands for one endpoint: it moves to the new URL
        endpoints[endpoint.url] = endpoint.name
    upstream.put_group(name, endpoints, group.created_at if group is not None else now, now)


def _remove(upstream: Upstream, name: str, wanted: list[_Endpoint], now: float) -> None:
    group = upstream.groups.get(name)
    if group is None:
        raise Refused(404, f"URL group {name} not found")
    urls = {endpoint.url for endpoint in wanted if endpoint.url is not None}
    names = {endpoint.name for endpoint in wanted if endpoint.name is not None}
    rest = {url: known for url, known in group.endpoints.items() if url not in urls and known not in names}
    upstream.put_group(name, rest or None, group.created_at, now)


# -- queues ---------------------------------------------------------------------------------------


def queues(upstream: Upstream, method: str, path: list[str], body: bytes, now: float) -> Answer:
    """`/v2/queues`, `/v2/queues/{name}`, and its `/pause` and `/resume`."""
    if not path:
        only(method, "GET", "POST")
        if method == "GET":
            return 200, [queue_view(queue) for queue in upstream.queues.values()]
        return _upsert_queue(upstream, decode(body, _QueueUpsert), now)
    queue = upstream.queues.get(path[0])
    if queue is None or path[1:] not in ([], ["pause"], ["resume"]):
        raise Refused(404, "queue not found")
    if path[1:]:
        only(method, "POST")
        upstream.put_queue(queue.name, queue.parallelism, queue.created_at, now, paused=path[1] == "pause")
        return 200, None
    only(method, "GET", "DELETE")
    if method == "GET":
        return 200, queue_view(queue)
    upstream.delete_queue(queue.name, now)
    return 200, None


def _upsert_queue(upstream: Upstream, wanted: _QueueUpsert, now: float) -> Answer:
    if not is_name(wanted.queue_name) or wanted.parallelism < 1:
        raise Refused(
            400, "a queue needs a name of letters, digits, '_', '-', '.' and a parallelism of at least 1"
        )
    known = upstream.queues.get(wanted.queue_name)
    created = known.created_at if known is not None else now
    upstream.put_queue(wanted.queue_name, wanted.parallelism, created, now, paused=wanted.paused)
    return 200, None


def queue_view(queue: Queue) -> dict[str, Any]:
    """A queue as the service shows it."""
    return {
        "name": queue.name,
        "parallelism": queue.parallelism,
        "createdAt": milliseconds(queue.created_at),
        "updatedAt": milliseconds(queue.updated_at),
        "lag": queue.lag,
        "paused": queue.paused,
    }


def only(method: str, *allowed: str) -> None:
    """Raises `Refused(405, …)` for every other method."""
    if method not in allowed:
        raise Refused(405, f"method not allowed, use {' or '.join(allowed)}")
