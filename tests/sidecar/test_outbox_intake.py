"""Publishes, batches and lines through the outbox: what callers are told, and when."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from dispatcher.errors import OutboxError, StoreFull
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import ScriptedTransport, local_upstream
from tests.sidecar.support_intake import CALLER, TOKEN, Answer, until
from tests.sidecar.support_outbox import Durable, HeldStore, durable

pytestmark = pytest.mark.anyio
HOOK = "https://example.com/hook"
ASYNC = ("Prefer", "respond-async")
NDJSON = ("Content-Type", "application/x-ndjson")


def lines(number: int, queue: str | None = None) -> bytes:
    """So many messages as NDJSON."""
    return b"".join(
        orjson.dumps({"destination": HOOK, "queue": queue, "body": f"{each}"}) + b"\n"
        for each in range(number)
    )


async def test_it_answers_with_the_services_own_id() -> None:
    """While the upstream is there nothing differs for the caller, and the store is empty afterwards."""
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url) as one:
        answer = await one.publish(HOOK, b"hello")
        (accepted,) = upstream.accepted()
        assert (answer.status, answer.json) == (200, {"messageId": accepted.message_ids[0]})
        assert "preference-applied" not in answer.headers
        await until(lambda: one.held == 0)


async def test_without_an_upstream_it_says_202_after_respond_after() -> None:
    """The message is kept; its caller has the outbox's id after the wait, not before it."""
    async with durable(respond_after=0.2) as one:
        began = time.monotonic()
        answer = await one.publish(HOOK, b"hello")
        assert 0.2 <= time.monotonic() - began < 5
        assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async")
        assert answer.json["messageId"].startswith("out_")
        assert one.held == 1


async def test_respond_async_is_answered_at_once() -> None:
    """`Prefer: respond-async`, among other wishes, waits for the commit only; sent all the same."""
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url) as one:
        for wish in ("respond-async", "Respond-Async, wait=7", "handling=lenient, respond-async; x=1"):
            answer = await one.publish(HOOK, b"hello", ("Prefer", wish))
            assert answer.status == 202
            assert answer.json["messageId"].startswith("out_")
        await until(lambda: len(upstream.accepted()) == 3)


async def test_a_caller_may_wait_less() -> None:
    """`Prefer: wait=1` is heard where it is less than `respond_after`."""
    async with durable(respond_after=20) as one:
        began = time.monotonic()
        assert (await one.publish(HOOK, b"x", ("Prefer", "wait=1"))).status == 202
        assert 1.0 <= time.monotonic() - began < 10


@pytest.mark.parametrize("wish", [(), (ASYNC,), (("Prefer", "wait=1"),)])
async def test_nothing_is_said_before_the_commit(wish: tuple[tuple[str, str], ...]) -> None:
    """Whatever the patience, an answer never comes before the store has the message."""
    store = HeldStore()
    store.may.clear()
    async with durable(store=store, respond_after=0.01) as one:
        asked = asyncio.create_task(one.publish(HOOK, b"x", *wish))
        await until(lambda: store.asked == 1)
        done, _ = await asyncio.wait([asked], timeout=1.2 if wish and "wait" in wish[0][1] else 0.3)
        assert not done
        store.may.set()
        assert (await asked).status == 202


@pytest.mark.parametrize("wish", [(), (ASYNC,)])
@pytest.mark.parametrize("error", [StoreFull("/secret/path: full"), OutboxError("/secret/path: broken")])
async def test_what_cannot_be_kept_is_refused(error: OutboxError, wish: tuple[tuple[str, str], ...]) -> None:
    """503 with Retry-After and without the file's name, in every form; nothing is sent."""
    store, transport = HeldStore(), ScriptedTransport()
    store.error = error
    async with durable(transport, store=store) as one:
        answer = await one.publish(HOOK, b"x", *wish)
        assert (answer.status, "retry-after" in answer.headers) == (503, True)
        assert b"secret" not in answer.body
        assert (await one.batch([{"destination": HOOK}], *wish)).status == 503
        bulk = await one.ask("/v2/batch", lines(2), [NDJSON, *wish])
        assert [line["status"] for line in bulk.lines] == [503, 503]
        assert not transport.batches
        word = "store_full" if isinstance(error, StoreFull) else "not_durable"
        assert one.counters.failures[word] == 4


async def test_a_rejection_reaches_the_caller_and_becomes_a_dead_letter() -> None:
    """The service's own status and words, while somebody waits; kept with them."""
    async with durable(ScriptedTransport(400)) as one:
        answer = await one.publish(HOOK)
        assert answer.status == 400
        await until(lambda: one.outbox.status().dead == 1)
        (letter,) = await one.outbox.store.dead_letters()
        assert letter.reason.startswith("400: ")


async def test_a_halt_does_not_keep_anything_from_being_accepted() -> None:
    """The upstream refuses the token: messages are kept, and 202 says so."""
    async with durable(ScriptedTransport(*[401] * 50), respond_after=0.05) as one:
        for _ in range(3):
            assert (await one.publish(HOOK)).status == 202
        await until(lambda: one.dispatcher.statistics().state in ("refused", "halted"))
        assert (await one.publish(HOOK)).status == 202
        assert one.held == 4


async def test_a_caller_that_hangs_up_changes_nothing() -> None:
    """What was handed in is delivered although nobody waits."""
    transport = ScriptedTransport()
    transport.hold()
    async with durable(transport) as one:
        connection = await one.connect()
        await connection.send("POST", f"/v2/publish/{HOOK}", b"kept")
        await until(lambda: one.held == 1)
        connection.close()
        await until(lambda: one.counters.connections_now == 0)
        transport.release()
        await until(lambda: one.held == 0)
        assert [item["body"] for batch in transport.batches for item in batch] == ["kept"]


async def test_who_waits_as_the_outbox_closes_is_told_that_it_is_kept() -> None:
    """202 with the outbox's id: the next process sends it. Newcomers are refused."""
    async with durable() as one:
        asked = asyncio.create_task(one.publish(HOOK))
        await until(lambda: one.held == 1)
        await one.outbox.aclose()
        answer = await asked
        assert (answer.status, answer.json["messageId"][:4]) == (202, "out_")
        assert (await one.publish(HOOK)).status == 503


async def test_a_batch_is_one_commit_and_has_an_entry_each() -> None:
    """The service's ids while it is there, the outbox's and 202 when asked for or it is not."""
    items = [{"destination": HOOK, "body": f"{each}"} for each in range(50)]
    store = HeldStore()
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url, store=store) as one:
        answer = await one.batch([*items, {"destination": "nowhere/"}])
        *ids, bad = answer.json
        assert (answer.status, bad["status"], store.appends) == (200, 400, 1)
        assert [entry["messageId"] for entry in ids] == [one.message_ids[0] for one in upstream.accepted()]
        answer = await one.batch(items, ASYNC)
        assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async")
        assert len({entry["messageId"] for entry in answer.json}) == 50
        await until(lambda: len(upstream.accepted()) == 100)
    async with durable(respond_after=0.1) as one:
        answer = await one.batch(items)
        assert answer.status == 202
        assert all(entry["messageId"].startswith("out_") for entry in answer.json)


async def test_lines_are_kept_by_the_slice() -> None:
    """5,000 lines, `respond-async`: a few commits, ids of the outbox in order, delivered in queue order."""
    store = HeldStore()
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url, store=store) as one:
        answer = await one.ask("/v2/batch", lines(5_000, "q"), [NDJSON, ASYNC])
        assert (answer.status, answer.headers["preference-applied"]) == (200, "respond-async")
        ids = [line["messageId"] for line in answer.lines]
        assert len(set(ids)) == 5_000
        assert all(each.startswith("out_") for each in ids)
        assert store.appends < 100
        await until(lambda: len(upstream.accepted()) == 5_000)
        assert [int(each.body or "") for each in upstream.accepted()] == list(range(5_000))


async def test_lines_are_answered_with_receipts_in_order() -> None:
    """While the upstream is there each line has the service's id; a bad one its error, in its place."""
    text = lines(300) + b"no json\n" + lines(300)
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url) as one:
        found = (await one.bulk(text)).lines
        assert found[300]["status"] == 400
        ids = [line["messageId"] for line in (*found[:300], *found[301:])]
        by_id = {each.message_ids[0]: each.body for each in upstream.accepted()}
        assert [int(by_id[each] or b"") for each in ids] == [*range(300), *range(300)]


async def test_lines_without_an_upstream_are_answered_after_respond_after() -> None:
    """Each with the outbox's id; none is lost."""
    async with durable(respond_after=0.2) as one:
        found = (await one.bulk(lines(1_500))).lines
        assert len({line["messageId"] for line in found}) == 1_500
        assert one.held == 1_500


async def test_what_is_on_its_way_to_the_disk_is_bounded() -> None:
    """A disk that hangs: no more than the room is taken in, others wait and are refused with 503."""
    store = HeldStore()
    store.may.clear()
    bounds = ServeSettings(admin_port=8091, patience=0.2)
    async with durable(store=store, respond_after=0.1, serve=bounds, queue_max_messages=10) as one:
        asked = [asyncio.create_task(one.publish(HOOK)) for _ in range(15)]
        await until(lambda: sum(each.done() for each in asked) == 5)
        assert store.asked == 10
        assert [(await each).status for each in asked if each.done()] == [503] * 5
        store.may.set()
        assert sorted([(await each).status for each in asked]) == [202] * 10 + [503] * 5
        assert (await one.publish(HOOK)).status == 202


async def test_a_message_is_told_by_its_id() -> None:
    """GET and DELETE of an outbox's id while it waits; the state of it; gone for DELETE afterwards."""
    async with durable() as one:
        message_id = (await one.publish(f"{HOOK}?a=1", b"x", ASYNC)).json["messageId"]
        answer = await one.ask(f"/v2/messages/{message_id}", method="GET")
        assert answer.status == 200
        assert answer.json["messageId"] == message_id
        assert answer.json["url"] == f"{HOOK}?a=1"
        assert answer.json["state"] in ("waiting", "claimed")
        assert abs(answer.json["createdAt"] / 1000 - time.time()) < 20
        state = await one.ask(f"/dispatcher/outbox/{message_id}", method="GET")
        assert (state.status, state.json["messageIds"]) == (200, [])
        await until(lambda: one.outbox.status().claimed == 0 or one.dispatcher.statistics().held == 1)
        deleted = await one.ask(f"/v2/messages/{message_id}", method="DELETE")
        assert deleted.status in (202, 409)
        assert (await one.ask("/v2/messages/out_nothing", method="GET")).status == 404
        assert (await one.ask("/dispatcher/outbox/out_nothing", method="GET")).status == 404


async def test_a_waiting_message_is_cancelled() -> None:
    """Behind another one of its queue it has not left: it is taken back for good."""
    async with durable(ScriptedTransport(*[401] * 50)) as one:
        await one.publish(HOOK, b"x", ASYNC)
        await until(lambda: one.dispatcher.statistics().state in ("refused", "halted"))
        message_id = (await one.publish(HOOK, b"x", ASYNC)).json["messageId"]
        assert (await one.ask(f"/v2/messages/{message_id}?all=1", method="DELETE")).status == 403
        answer = await one.ask(f"/v2/messages/{message_id}", method="DELETE")
        assert (answer.status, answer.json) == (202, {"cancelled": 1})
        assert (await one.ask(f"/v2/messages/{message_id}", method="DELETE")).status == 404


async def test_a_delivered_message_is_asked_for_upstream() -> None:
    """GET goes on under the service's id, the caller's rights as for any; DELETE cancels it there."""
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url) as one:
        message_id = (await one.publish(HOOK, b"x", ASYNC)).json["messageId"]
        await until(lambda: bool(upstream.accepted()) and one.held == 0)
        theirs = upstream.accepted()[0].message_ids[0]
        answer = await one.ask(f"/v2/messages/{message_id}", method="GET")
        assert (answer.status, answer.json["messageId"]) == (200, theirs)
        state = (await one.ask(f"/dispatcher/outbox/{message_id}", method="GET")).json
        assert (state["state"], state["messageIds"]) == ("delivered", [theirs])
        assert (await one.ask(f"/v2/messages/{message_id}", method="DELETE")).status == 202
        assert (await one.ask(f"/v2/messages/{theirs}", method="GET")).status == 404


@pytest.mark.parametrize("way", ["body", "query"])
async def test_many_are_cancelled_wherever_they_are(way: str) -> None:
    """What waits here is taken back here, a delivered one under the service's id, in one answer."""

    async def cancel(one: Durable, *ids: str, token: str = TOKEN) -> Answer:
        presented = [("Authorization", f"Bearer {token}"), ("Content-Type", "application/json")]
        if way == "query":
            target = f"/v2/messages?messageIds={','.join(ids)}"
            return await one.ask(target, headers=presented, method="DELETE")
        body = orjson.dumps({"messageIds": ids})
        return await one.ask("/v2/messages", body, presented, method="DELETE")

    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url) as one:
        delivered = [(await one.publish(HOOK, b"x", ASYNC)).json["messageId"] for _ in range(2)]
        await until(lambda: len(upstream.accepted()) == 2 and one.held == 0)
        theirs = upstream.accepted()[1].message_ids[0]
        upstream.set_faults("refuse_token=1.0")
        await one.publish(HOOK, b"x", ASYNC)
        await until(lambda: one.dispatcher.statistics().state in ("refused", "halted"))
        waiting = [(await one.publish(HOOK, b"x", ASYNC)).json["messageId"] for _ in range(2)]
        upstream.set_faults(None)
        answer = await cancel(one, waiting[0], delivered[0], theirs, "out_nothing", token=CALLER)
        assert (answer.status, answer.json) == (200, {"cancelled": 3})
        assert (await cancel(one, waiting[1])).json == {"cancelled": 1}
        assert (await cancel(one, *waiting)).json == {"cancelled": 0}
        assert (await cancel(one, "nobody", token="wrong")).status == 401


async def test_many_that_are_not_named_are_the_services() -> None:
    """Callers have to name them, outbox or not; an owner's filters pass on, and a long list has its bound."""
    async with local_upstream(token=TOKEN) as upstream, durable(url=upstream.url) as one:
        await one.publish(HOOK, b"x")
        owner = [("Authorization", f"Bearer {TOKEN}")]
        for target, body in (
            ("/v2/messages", b""),
            ("/v2/messages?queueName=q", b""),
            ("/v2/messages", b"[]"),
        ):
            assert (await one.ask(target, body, method="DELETE")).status == 403
        long = b"[" + b'"m",' * 100_000 + b'"m"]'
        assert (await one.ask("/v2/messages", long, method="DELETE")).status == 413
        assert (await one.ask("/v2/messages", b"", owner, method="DELETE")).json == {"cancelled": 1}


async def test_who_presents_no_token_is_told_nothing() -> None:
    """401 on every path of the outbox; and `serve.proxy = none` answers no look-up."""
    stranger = [("Authorization", "Bearer nobody")]
    async with durable(serve=ServeSettings(admin_port=8091, proxy="none")) as one:
        message_id = (await one.publish(HOOK, b"x", ASYNC)).json["messageId"]
        for path in (f"/v2/messages/{message_id}", f"/dispatcher/outbox/{message_id}"):
            assert (await one.ask(path, headers=stranger, method="GET")).status == 401
        assert (await one.ask(f"/v2/messages/{message_id}", method="GET")).status == 404
