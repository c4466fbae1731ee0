"""The official JavaScript SDK as a client: one changed URL, and everything works as against the service.

`dispatcher serve` as a real process, in front of the local upstream; the SDK under node, as npm has it. What
it says it got is compared with what the upstream has.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.sidecar.daemon_support import DESTINATION, TOKEN
from tests.sidecar.sdk_support import ODD_DESTINATIONS, Site, site

if TYPE_CHECKING:
    from tests.sidecar.javascript_support import Node

pytestmark = pytest.mark.anyio
REQUESTS_MAX = 30
"""For a thousand publishes at once."""


def ids(answers: list[Any]) -> list[str]:
    """The messages' ids, in order."""
    return [answer["messageId"] for answer in answers]


@pytest.mark.parametrize("token", [TOKEN, "callers-own"])
async def test_messages(node: Node, token: str) -> None:
    """Every way to publish, look-up and cancelling right after, ids of one's own, odd destinations.

    With a token that only the sidecar knows all of it too, but for cancelling what has not been named.
    """
    async with site(DISPATCHER_SERVE_TOKENS="callers-own") as where:
        odd = json.dumps(ODD_DESTINATIONS)
        said = await node.run("messages.mjs", where.intake, ODD_DESTINATIONS=odd, QSTASH_TOKEN=token)
        published(where, said)
        batched(where, said)
        rows = where.rows()
        assert {one: rows[answer["messageId"]].destination for one, answer in said["odd"].items()} == {
            one: one for one in ODD_DESTINATIONS
        }
        assert said["found"]["messageId"] == said["text"]["messageId"]
        assert (said["found"]["url"], said["found"]["body"]) == (DESTINATION, "grüße")
        assert (said["cancelled"], said["gone"]) == ({"cancelled": 1}, 404)
        assert said["cancelledMany"] == {"cancelled": 3}
        assert said["cancelledByLabel"] == ({"cancelled": 2} if token == TOKEN else 403)
        cancelled = [said["json"]["messageId"], *ids(said["batchJSON"])]
        cancelled += ids(said["labelled"]) if token == TOKEN else []
        assert [name for name in cancelled if where.upstream.upstream.find(name)] == []
        assert where.upstream.upstream.find(said["text"]["messageId"])


def published(where: Site, said: dict[str, Any]) -> None:
    """Compare the single messages with what the upstream has."""
    rows, bodies = where.rows(), where.bodies()
    named = {name: bodies[said[name]["messageId"]] for name in ("text", "json", "binary", "empty", "options")}
    assert named == {
        "text": "grüße".encode(),
        "json": b'{"a":[1]}',
        "binary": b"\xff\x00",
        "empty": b"",
        "options": b"{}",
    }
    text = {name.lower(): value for name, value in rows[said["text"]["messageId"]].headers}
    assert (text["upstash-forward-x-tenant"], text["upstash-retries"]) == ("42", "2")
    full = {name.lower(): value for name, value in rows[said["options"]["messageId"]].headers}
    expected = {
        "upstash-method": "PUT",
        "content-type": "application/json",
        "upstash-callback": "https://callback.example",
        "upstash-failure-callback": "https://failure.example",
        "upstash-timeout": "30s",
        "upstash-retry-delay": "1000 * (1 + retried)",
        "upstash-flow-control-key": "user",
        "upstash-flow-control-value": "parallelism=5, rate=10, period=1m",
        "upstash-redact-fields": "body,header[Authorization]",
    }
    assert {name: full.get(name) for name in expected} == expected
    enqueued = ids([*said["enqueued"], said["enqueuedJSON"]])
    assert [bodies[name] for name in enqueued] == [b"q0", b"q1", b'{"n":2}']
    assert [row.body for row in where.upstream.accepted() if row.queue == "orders"] == [
        bodies[name] for name in enqueued
    ]
    once = said["once"]["messageId"]
    assert said["twice"] == {"messageId": once, "deduplicated": True}
    assert "deduplicated" not in said["once"]
    assert [row.message_ids for row in where.upstream.accepted() if row.body == b"once"] == [(once,)]


def batched(where: Site, said: dict[str, Any]) -> None:
    """Compare the batches with what the upstream has."""
    bodies = where.bodies()
    assert [bodies[name] for name in ids(said["batch"])] == [
        *(b"b%d" % n for n in range(150)),
        *(b"bq%d" % n for n in range(3)),
    ]
    assert [row.body for row in where.upstream.accepted() if row.queue == "other"] == [b"bq0", b"bq1", b"bq2"]
    assert [bodies[name] for name in ids(said["batchJSON"])] == [b'{"n":%d}' % n for n in range(3)]


async def test_management(node: Node) -> None:
    """URL groups, queues, schedules, DLQ and logs pass through the proxy as they are."""
    async with site() as where:
        said = await node.run("management.mjs", where.intake, UPSTREAM_URL=where.upstream.url)
        bodies = where.bodies()
    (group,) = said["groups"]
    assert (group["name"], len(group["endpoints"])) == ("team", 2)
    assert {answer["url"] for answer in said["toAll"]} == {"https://a.example/x", "https://b.example/y"}
    assert [bodies[name] for name in ids(said["toAll"])] == [b"to all"] * 2
    to_all, to_one = said["inBatch"]
    assert [bodies[name] for name in ids(to_all)] == [b"batched to all"] * 2
    assert bodies[to_one["messageId"]] == b"to one"
    assert said["group"]["endpoints"] == [{"url": "https://b.example/y"}]
    assert said["noGroup"] == said["noQueue"] == said["noSchedule"] == 404
    assert (said["queue"]["name"], said["queue"]["parallelism"]) == ("orders", 2)
    assert (said["paused"], said["resumed"]) == (True, False)
    assert [queue["name"] for queue in said["queues"]] == ["orders"]
    schedule = said["schedule"]
    assert [one["scheduleId"] for one in said["schedules"]] == [schedule["scheduleId"]]
    assert (schedule["destination"], schedule["cron"]) == (DESTINATION, "*/5 * * * *")
    assert (schedule["body"], schedule["retries"], schedule["isPaused"]) == ('{"every":5}', 1, False)
    assert said["schedulePaused"]
    dead_letters(said, bodies)


def dead_letters(said: dict[str, Any], bodies: dict[str, bytes | None]) -> None:
    """What the SDK found in the DLQ and made of it."""
    assert ids(said["dead"]) == said["sent"]
    assert {(one["responseStatus"], one["responseBody"]) for one in said["dead"]} == {(503, "busy")}
    assert ids(said["deadOfLabel"]) == said["sent"][2:3]
    assert (said["deleted"], said["deletedMany"]) == ({"deleted": 1}, {"deleted": 2})
    (again,) = said["retried"]["responses"]
    assert again["messageId"] not in said["sent"]
    assert bodies[again["messageId"]] == b"d1"
    assert said["left"] == []
    assert [(one["messageId"], one["state"]) for one in said["logs"]] == [(said["sent"][0], "CREATED")]


async def test_errors_are_the_services_own(node: Node) -> None:
    """Refusals have the SDK's classes and the service's texts, a 429 its own; none is tried again.

    A batch with one bad item is answered for each: the SDK passes the entry without an id on as it is.
    """
    batch = [{"url": DESTINATION, "body": "good"}, {"url": "ftp//nowhere", "body": "bad"}]
    calls: dict[str, dict[str, Any]] = {
        "token": {"token": "wrong", "url": DESTINATION},
        "destination": {"token": TOKEN, "url": "ftp//nowhere"},
        "group": {"token": TOKEN, "url": "nobody"},
        "batch": {"token": TOKEN, "batch": batch},
        "allBad": {"token": TOKEN, "batch": batch[1:]},
    }
    async with site() as where:
        said = await node.run("errors.mjs", where.intake, DESTINATIONS=json.dumps(calls))
        bodies = where.bodies()
    assert {name: one["requests"] for name, one in said.items()} == dict.fromkeys(calls, 1)
    refused = {name: (one["kind"], one["status"]) for name, one in said.items() if name != "batch"}
    assert refused == {
        "token": ("QstashError", 401),
        "destination": ("QstashError", 400),
        "group": ("QstashError", 404),
        "allBad": ("QstashError", 400),
    }
    words = {"token": "unauthorized", "destination": "scheme", "group": "nobody", "allBad": "scheme"}
    assert {
        name: one for name, one in words.items() if one not in json.loads(said[name]["text"])["error"]
    } == {}
    good, bad = said["batch"]["answer"]
    assert bodies == {good["messageId"]: b"good"}
    assert ("scheme" in bad["error"], "messageId" in bad) == (True, False)


async def test_a_full_sidecar_is_a_rate_limit(node: Node) -> None:
    """When its patience ends the SDK throws what a 429 of the service makes it throw, after one request."""
    full = {"DISPATCHER_QUEUE_MAX_MESSAGES": "1", "DISPATCHER_SERVE_PATIENCE": "0.2"}
    async with site("latency=60s", **full) as where:
        calls = {
            "first": {"token": TOKEN, "url": DESTINATION},
            "second": {"token": TOKEN, "url": DESTINATION},
        }
        filling = asyncio.create_task(
            node.run("errors.mjs", where.intake, DESTINATIONS=json.dumps({"first": calls["first"]}))
        )
        await where.until(lambda: where.posts() == 1)
        said = await node.run(
            "errors.mjs", where.intake, DESTINATIONS=json.dumps({"second": calls["second"]})
        )
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
    second = said["second"]
    assert (second["kind"], second["status"], second["requests"]) == ("QstashRatelimitError", 429, 1)


async def test_fifteen_hundred_publishes_at_once_are_a_few_requests(node: Node) -> None:
    """Each has its own id, the upstream saw full batches, and who is one connection too many waits."""
    async with site("latency=30ms") as where:
        said = await node.run("burst.mjs", where.intake)
        bodies = where.bodies()
        requests = where.posts()
    assert [bodies[name] for name in said] == [b"m%d" % n for n in range(1_500)]
    assert len(bodies) == 1_500
    assert requests <= REQUESTS_MAX, requests
