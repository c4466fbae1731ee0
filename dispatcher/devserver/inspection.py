"""What a test asks the local upstream: what was accepted, how often, in which order. Pure.

Below `/dispatcher-dev/`: `GET summary`, `GET accepted?after=SEQ&limit=N` (NDJSON in the order of acceptance),
`POST faults` (inline text, or JSON `{"plan": text or table, "seed": 0}`), `POST fail` (JSON
`{"messageIds": […], "status": 500, "body": ""}`: their delivery has failed, they go to the DLQ), `POST
reset`, which `app` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from dispatcher.devserver.deadletters import fail
from dispatcher.devserver.faults import FaultPlan
from dispatcher.devserver.management import decode, milliseconds
from dispatcher.devserver.options import Refused
from dispatcher.devserver.responder import SimulatedReply, answer
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from dispatcher.devserver.ledger import AcceptedMessage
    from dispatcher.devserver.service import Headers, Service

PREFIX: Final = "/dispatcher-dev/"
LIMIT_DEFAULT: Final = 1000
LIMIT_MAX: Final = 100_000
_encode_lines: Final = msgspec.json.Encoder().encode_lines


class _Failed(Struct, rename="camel", forbid_unknown_fields=True):
    message_ids: list[str]
    status: int = 500
    body: str = ""


def answer_inspection(
    service: Service, method: str, target: str, headers: Headers, body: bytes, now: float
) -> SimulatedReply:
    """Answer one request below the prefix; raises `Refused`."""
    path, _, query = target.removeprefix(PREFIX).partition("?")
    wanted = {"summary": "GET", "accepted": "GET", "faults": "POST", "fail": "POST"}.get(path)
    if wanted is None:
        raise Refused(404, "not found: there are summary, accepted, faults, fail and reset")
    if method != wanted:
        raise Refused(405, f"method not allowed, use {wanted}")
    if path == "summary":
        return answer(200, summary(service, now))
    if path == "accepted":
        return _accepted(service, query)
    if path == "fail":
        failed = decode(body, _Failed)
        count = fail(service.upstream, failed.message_ids, now, status=failed.status, answer=failed.body)
        return answer(200, {"failed": count})
    plan, seed = _plan(body)
    service.set_faults(plan, seed, now)
    return answer(200, {})


def summary(service: Service, now: float) -> dict[str, Any]:
    """What was accepted and how often, the requests, how many at once, the faults injected."""
    upstream, traffic = service.upstream, service.traffic
    requests: dict[str, dict[str, int]] = {}
    for (kind, status), count in sorted(traffic.requests.items(), key=str):
        requests.setdefault(kind, {})["no reply" if status is None else str(status)] = count
    return {
        "accepted": len(upstream.ledger),
        **upstream.audit.take(),
        "deduplicated": upstream.deduplicated,
        "requests": requests,
        "refused": traffic.refused,
        "busy": service.faulty.load.at(now),
        "busy_max": service.faulty.load.busy_max,
        "batch_sizes": {str(size): count for size, count in sorted(traffic.batch_sizes.items())},
        "queues": {
            queue.name: {"accepted": queue.accepted, "lag": queue.lag, "paused": queue.paused}
            for queue in upstream.queues.values()
        },
        "url_groups": {group.name: len(group.endpoints) for group in upstream.groups.values()},
        "schedules": len(upstream.schedules),
        "dlq": len(upstream.letters),
        "faults": dict(sorted(service.faulty.faults.items())),
    }


def _accepted(service: Service, query: str) -> SimulatedReply:
    asked = parse_qs(query)
    try:
        after = int(asked.get("after", ["-1"])[0])
        limit = int(asked.get("limit", [str(LIMIT_DEFAULT)])[0])
    except ValueError:
        raise Refused(400, "after and limit are whole numbers") from None
    if after < -1 or not 0 < limit <= LIMIT_MAX:
        raise Refused(400, f"after is a sequence number (or -1), limit between 1 and {LIMIT_MAX}")
    body = _encode_lines(map(accepted_view, service.upstream.ledger.rows(after, limit)))
    return SimulatedReply(200, body, (("Content-Type", "application/x-ndjson"),), declared_bytes=len(body))


def accepted_view(row: AcceptedMessage) -> dict[str, Any]:
    """One accepted message as a line of JSON."""
    view: dict[str, Any] = {
        "seq": row.seq,
        "messageIds": row.message_ids,
        "destination": row.destination,
        "queue": row.queue,
        "deduplicationId": row.deduplication_id,
        "digest": row.digest.hex(),
        "bodyDigest": row.body_digest.hex(),
        "createdAt": milliseconds(row.at),
        "repeats": row.repeats,
        "headers": row.headers,
    }
    if row.body is not None:
        try:
            view["body"] = row.body.decode()
        except UnicodeDecodeError:
            view["bodyBase64"] = row.body
    return view


def _plan(body: bytes) -> tuple[FaultPlan, int]:
    try:
        if not body.lstrip().startswith(b"{"):
            return FaultPlan.parse(body.decode()), 0
        asked = msgspec.json.decode(body, type=dict[str, Any])
        plan, seed = asked.get("plan", ""), asked.get("seed", 0)
        parsed = FaultPlan.parse(plan) if isinstance(plan, str) else FaultPlan.from_mapping(plan)
        return parsed, int(seed)
    except (ConfigError, msgspec.DecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise Refused(400, f"invalid fault plan: {error}") from None
