"""What the service's REST interface has beside messages, groups and queues: schedules, DLQ, events, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.testing import local_upstream
from tests.devserver.support import URL, Connection, connected

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def published(connection: Connection, count: int, **headers: str) -> list[str]:
    """Publish messages with bodies `m0`, …; their ids."""
    asked = [await connection.ask("POST", f"/v2/publish/{URL}", b"m%d" % n, **headers) for n in range(count)]
    return [answer["messageId"] for _, answer in asked]


async def failed(connection: Connection, ids: list[str], **said: Any) -> int:
    """Let their delivery have failed."""
    status, answer = await connection.ask("POST", "/dispatcher-dev/fail", {"messageIds": ids, **said})
    assert status == 200
    return int(answer["failed"])


async def letters(connection: Connection, query: str = "") -> list[dict[str, Any]]:
    """What lies in the DLQ."""
    status, answer = await connection.ask("GET", f"/v2/dlq{query}")
    assert status == 200, answer
    return list(answer["messages"])


async def test_a_schedule_lives() -> None:
    """Created with all its options, shown, paused, changed under its id, deleted; it makes no message."""
    options = {"Upstash_Cron": "CRON_TZ=Europe/Paris 0 4 * * 1-5", "Upstash_Schedule_Id": "nightly"}
    more = {"Upstash_Queue_Name": "q", "Upstash_Forward_A": "1", "Upstash_Retries": "7"}
    async with connected() as (upstream, connection):
        target = f"/v2/schedules/{URL}//x%2Fy?a=1"
        assert await connection.ask("POST", target, b"body", **options, **more) == (
            200,
            {"scheduleId": "nightly"},
        )
        status, seen = await connection.ask("GET", "/v2/schedules/nightly")
        created = seen.pop("createdAt")
        assert (status, created > 1_600_000_000_000) == (200, True)
        assert seen == {
            "scheduleId": "nightly",
            "cron": options["Upstash_Cron"],
            "destination": f"{URL}//x%2Fy?a=1",
            "method": "POST",
            "header": {"A": ["1"]},
            "retries": 7,
            "queueName": "q",
            "isPaused": False,
            "body": "body",
        }
        assert (await connection.ask("PATCH", "/v2/schedules/nightly/pause"))[0] == 200
        await connection.ask("POST", f"/v2/schedules/{URL}", b"new", **options)
        (changed,) = (await connection.ask("GET", "/v2/schedules"))[1]
        assert (changed["body"], changed["isPaused"], changed["createdAt"]) == ("new", True, created)
        assert (await connection.ask("PATCH", "/v2/schedules/nightly/resume"))[0] == 200
        assert not (await connection.ask("GET", "/v2/schedules/nightly"))[1]["isPaused"]
        assert (await connection.ask("DELETE", "/v2/schedules/nightly"))[0] == 200
        assert (await connection.ask("GET", "/v2/schedules")) == (200, [])
        assert upstream.accepted() == []


@pytest.mark.parametrize(
    ("destination", "headers", "text"),
    [
        (URL, {"Upstash_Cron": "* * * *"}, "Upstash-Cron"),
        (URL, {"Upstash_Cron": "* * * * * *"}, "Upstash-Cron"),
        (URL, {"Upstash_Cron": "* * * * *", "Upstash_Schedule_Id": "a b"}, "Upstash-Schedule-Id"),
        (URL, {"Upstash_Cron": "* * * * *", "Upstash_Delay": "soon"}, "Upstash-Delay"),
        ("ftp//nowhere", {"Upstash_Cron": "* * * * *"}, "scheme"),
    ],
)
async def test_a_wrong_schedule_is_refused(destination: str, headers: dict[str, str], text: str) -> None:
    """With the reason, and nothing is kept."""
    async with connected() as (_, connection):
        status, answer = await connection.ask("POST", f"/v2/schedules/{destination}", **headers)
        assert (status, text in answer["error"]) == (400, True)
        assert (await connection.ask("GET", "/v2/schedules")) == (200, [])


async def test_dead_letters() -> None:
    """What failed is gone from messages and queue, is shown and found by filters, deleted, retried."""
    async with connected() as (upstream, connection):
        queued = (await connection.ask("POST", f"/v2/enqueue/q/{URL}", b"queued"))[1]["messageId"]
        ids = [queued, *await published(connection, 3, Upstash_Label="a, b", Upstash_Forward_X="1")]
        assert await failed(connection, [*ids, ids[0], "msg_unknown"], status=503, body="busy") == 4
        assert (await connection.ask("GET", f"/v2/messages/{ids[0]}"))[0] == 404
        assert (await connection.ask("GET", "/v2/queues/q"))[1]["lag"] == 0
        found = await letters(connection)
        assert [one["messageId"] for one in found] == ids
        assert (found[0]["queueName"], found[0]["responseStatus"], found[0]["responseBody"]) == (
            *("q", 503),
            "busy",
        )
        names = [one["dlqId"] for one in found]
        assert (await connection.ask("GET", f"/v2/dlq/{names[1]}")) == (200, found[1])
        assert [one["dlqId"] for one in await letters(connection, "?label=b&responseStatus=503")] == names[1:]
        assert await letters(connection, "?queueName=other") == []
        assert await letters(connection, "?toDate=1000") == []
        assert [one["dlqId"] for one in await letters(connection, f"?dlqIds={names[2]}")] == names[2:3]
        status, answer = await connection.ask("POST", f"/v2/dlq/retry/{names[1]}")
        assert (status, list(answer)) == (200, ["messageId"])
        again = upstream.accepted()[-1]
        assert (again.message_ids, again.body, again.destination) == ((answer["messageId"],), b"m0", URL)
        assert ("Upstash-Forward-X", "1") in again.headers
        assert (await connection.ask("DELETE", f"/v2/dlq/{names[0]}"))[0] == 200
        assert (await connection.ask("DELETE", "/v2/dlq", {"dlqIds": [names[2], names[0]]})) == (
            *(200,),
            {"deleted": 1},
        )
        status, answer = await connection.ask("POST", "/v2/dlq/retry?queueName=other")
        assert (status, answer) == (200, {"responses": []})
        status, answer = await connection.ask("POST", "/v2/dlq/retry?count=100")
        assert (status, len(answer["responses"])) == (200, 1)
        assert await letters(connection) == []


async def test_what_failed_at_one_endpoint_is_retried_there() -> None:
    """Not at the whole URL group again."""
    async with connected() as (upstream, connection):
        endpoints = {"endpoints": [{"url": "https://a.example"}, {"url": "https://b.example"}]}
        await connection.ask("POST", "/v2/topics/g/endpoints", endpoints)
        _, sent = await connection.ask("POST", "/v2/publish/g", b"to all")
        await failed(connection, [sent[1]["messageId"]])
        (letter,) = await letters(connection, "?topicName=g")
        assert (letter["url"], letter["topicName"]) == ("https://b.example", "g")
        assert (await connection.ask("POST", f"/v2/dlq/retry/{letter['dlqId']}"))[0] == 200
        assert upstream.accepted()[-1].destination == "https://b.example"


async def test_pages() -> None:
    """Cursors lead through everything, once; a call on many says whether more is left."""
    async with connected() as (_, connection):
        ids = await published(connection, 5)
        await failed(connection, ids)
        seen: list[str] = []
        cursor: str | None = "0"
        while cursor is not None:
            _, answer = await connection.ask("GET", f"/v2/dlq?count=2&cursor={cursor}")
            seen += [one["messageId"] for one in answer["messages"]]
            cursor = answer.get("cursor")
        assert seen == ids
        latest = await letters(connection, "?order=latestFirst")
        assert [one["messageId"] for one in latest] == ids[::-1]
        assert (await connection.ask("DELETE", "/v2/dlq?count=4"))[1] == {"deleted": 4, "cursor": "0"}
        assert (await connection.ask("DELETE", "/v2/dlq?count=4"))[1] == {"deleted": 1}


async def test_without_bodies_nothing_can_be_retried() -> None:
    """It says what to do, and the letter stays."""
    async with connected(keep_bodies=False) as (_, connection):
        await failed(connection, await published(connection, 1))
        status, answer = await connection.ask("POST", "/v2/dlq/retry")
        assert (status, "--keep-bodies" in answer["error"]) == (409, True)
        assert len(await letters(connection)) == 1


async def test_events() -> None:
    """Created and failed, filtered, without bodies."""
    async with connected() as (_, connection):
        first, second = await published(connection, 2, Upstash_Label="a")
        await failed(connection, [first], status=502)
        _, answer = await connection.ask("GET", "/v2/events")
        assert sorted((one["messageId"], one["state"]) for one in answer["events"]) == sorted(
            [(first, "CREATED"), (second, "CREATED"), (first, "FAILED")]
        )
        assert not any("body" in one for one in answer["events"])
        _, answer = await connection.ask("GET", "/v2/events?state=FAILED&label=a")
        assert [(one["messageId"], "502" in one["error"]) for one in answer["events"]] == [(first, True)]
        _, answer = await connection.ask("GET", f"/v2/events?messageIds={second}&messageIds=other")
        assert [(one["messageId"], one["url"]) for one in answer["events"]] == [(second, URL)]
        _, answer = await connection.ask("GET", "/v2/events?count=1&order=earliestFirst")
        assert (len(answer["events"]), answer["cursor"]) == (1, "1")


async def test_messages_are_cancelled_by_query() -> None:
    """By ids, by a filter; without either all of them."""
    async with connected() as (_, connection):
        ids = await published(connection, 4)
        labelled = await published(connection, 2, Upstash_Label="a")
        query = f"?messageIds={ids[0]}&messageIds={ids[1]}&messageIds=other"
        assert (await connection.ask("DELETE", f"/v2/messages{query}"))[1] == {"cancelled": 2}
        assert (await connection.ask("DELETE", "/v2/messages?label=a&count=100"))[1] == {"cancelled": 2}
        assert (await connection.ask("GET", f"/v2/messages/{labelled[0]}"))[0] == 404
        assert (await connection.ask("GET", f"/v2/messages/{ids[2]}"))[0] == 200
        assert (await connection.ask("DELETE", f"/v2/messages/{ids[2]}")) == (202, {"cancelled": 1})
        assert (await connection.ask("DELETE", "/v2/messages?count=100"))[1] == {"cancelled": 1}


async def test_keys_turn() -> None:
    """The next becomes the current."""
    async with connected() as (_, connection):
        _, before = await connection.ask("GET", "/v2/keys")
        _, after = await connection.ask("POST", "/v2/keys/rotate")
        assert (await connection.ask("GET", "/v2/keys")) == (200, after)
        assert after["current"] == before["next"] != before["current"]
        assert after["next"] not in before.values()


async def test_all_of_it_is_read_back(tmp_path: Path) -> None:
    """Schedules and DLQ are in the state file, as they became."""
    path = tmp_path / "state"
    async with connected(state=path) as (upstream, connection):
        for name in ("kept", "gone"):
            options = {"Upstash_Cron": "0 * * * *", "Upstash_Schedule_Id": name}
            await connection.ask("POST", f"/v2/schedules/{URL}", b"\xff", Upstash_Forward_A="1", **options)
        await connection.ask("PATCH", "/v2/schedules/kept/pause")
        await connection.ask("DELETE", "/v2/schedules/gone")
        await failed(connection, await published(connection, 2), status=599)
        letter, other = await letters(connection)
        await connection.ask("DELETE", f"/v2/dlq/{other['dlqId']}")
        schedules = upstream.upstream.schedules
    async with local_upstream(state=path) as second:
        connection = await Connection.to(second)
        assert second.upstream.schedules == schedules
        assert schedules["kept"].paused
        assert await letters(connection) == [letter]
        await connection.close()
