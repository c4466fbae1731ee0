"""Schedules, as the service's REST interface has them: `/v2/schedules`. Pure: `now` is an argument.

`POST /v2/schedules/{destination}` takes the options of a publish and `Upstash-Cron` in headers, the body as
it is; with an `Upstash-Schedule-Id` that is known it changes that one. A schedule is kept and shown; it never
makes a message, since nothing is delivered here. `service` routes here.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from dispatcher.devserver.changes import ScheduleChanged
from dispatcher.devserver.intake import Item
from dispatcher.devserver.management import Answer, body_view, milliseconds, only, option_views
from dispatcher.devserver.options import (
    Options,
    Refused,
    compile_options,
    is_name,
    only_options,
    parse_duration,
)
from dispatcher.devserver.responder import readable, split_query

if TYPE_CHECKING:
    from dispatcher.devserver.service import Headers
    from dispatcher.devserver.upstream import Upstream

PREFIX: Final = "/v2/schedules/"
CRON: Final = "upstash-cron"
ID: Final = "upstash-schedule-id"
QUEUE: Final = "upstash-queue-name"
_OWN: Final = frozenset((CRON, ID, QUEUE))
_ID_BYTES: Final = 14
_FIELD: Final = r"[0-9A-Za-z*/,#?-]+"
_CRON: Final = re.compile(rf"(?:(?:CRON_TZ|TZ)=[A-Za-z0-9_+/-]+ +)?{_FIELD}(?: +{_FIELD}){{4}}")


def schedules(
    upstream: Upstream, method: str, target: str, path: list[str], headers: Headers, body: bytes, now: float
) -> Answer:
    """`/v2/schedules`, `/v2/schedules/{destination}`, `/v2/schedules/{id}`, its `/pause` and `/resume`."""
    if not path:
        only(method, "GET")
        return 200, [schedule_view(one) for one in upstream.schedules.values()]
    if method == "POST":
        destination, _ = split_query(readable(target.removeprefix(PREFIX)))
        return _create(upstream, destination, headers, body, now)
    schedule = upstream.schedules.get(path[0])
    if schedule is None or path[1:] not in ([], ["pause"], ["resume"]):
        raise Refused(404, "schedule not found")
    if path[1:]:
        only(method, "PATCH")
        upstream.put_schedule(_with(schedule, paused=path[1] == "pause"))
        return 200, None
    only(method, "GET", "DELETE")
    if method == "GET":
        return 200, schedule_view(schedule)
    upstream.put_schedule(ScheduleChanged(schedule.schedule_id))
    return 200, None


def _create(upstream: Upstream, destination: str, headers: Headers, body: bytes, now: float) -> Answer:
    pairs = only_options(tuple((readable(name), readable(value)) for name, value in headers))
    own = {name.lower(): value for name, value in pairs if name.lower() in _OWN}
    rest = tuple(pair for pair in pairs if pair[0].lower() not in _OWN)
    cron, queue = own.get(CRON, ""), own.get(QUEUE)
    if not _CRON.fullmatch(cron.strip()):
        raise Refused(400, "invalid Upstash-Cron: write five fields such as */5 * * * *")
    upstream.validator.prepare(Item(destination, body, dict(rest), queue))
    name = own.get(ID) or _new_id(upstream, destination, now)
    if not is_name(name):
        raise Refused(400, "invalid Upstash-Schedule-Id: only letters, digits, '_', '-' and '.' are allowed")
    known = upstream.schedules.get(name)
    created, paused = (now, False) if known is None else (known.created_at, known.paused)
    upstream.put_schedule(
        ScheduleChanged(name, destination, created, cron.strip(), queue, list(rest), body, paused)
    )
    return 200, {"scheduleId": name}


def _new_id(upstream: Upstream, destination: str, now: float) -> str:
    text = f"{upstream.instance}\0{len(upstream.schedules)}\0{now}\0{destination}"
    return f"scd_{blake2b(text.encode('utf-8', 'replace'), digest_size=_ID_BYTES).hexdigest()}"


def _with(schedule: ScheduleChanged, *, paused: bool) -> ScheduleChanged:
    known = schedule
    return ScheduleChanged(
        *(known.schedule_id, known.destination, known.created_at, known.cron),
        *(known.queue, known.lines, known.body, paused),
    )


def schedule_view(schedule: ScheduleChanged) -> dict[str, Any]:
    """A schedule as the service shows it; what is not set is left out."""
    options: Options = compile_options(tuple(schedule.lines))
    view: dict[str, Any] = {
        "scheduleId": schedule.schedule_id,
        "createdAt": milliseconds(schedule.created_at),
        "cron": schedule.cron,
        "destination": schedule.destination,
        "method": options.method,
        "header": options.delivered() or None,
        "retries": options.retries,
        "delay": parse_duration(options.value("upstash-delay") or ""),
        "queueName": schedule.queue,
        "isPaused": schedule.paused,
        **body_view(schedule.body),
        **option_views(options),
    }
    return {name: value for name, value in view.items() if value is not None}
