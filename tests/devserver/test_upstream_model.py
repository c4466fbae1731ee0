"""The upstream's model in virtual time: validation, deduplication, URL groups, queues, order, limits."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest

from dispatcher.devserver.intake import Entry, Item, parse_items
from dispatcher.devserver.ledger import body_digest_of, digest_of
from dispatcher.devserver.options import Refused
from dispatcher.devserver.responder import FaultyUpstream
from dispatcher.devserver.upstream import Upstream
from tests.devserver.support import URL, endpoints, entry, item, post

# -- deduplication --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Upstash-Deduplication-Id", "upstash-deduplication-id", "UPSTASH-DEDUPLICATION-ID"]
)
@pytest.mark.parametrize("as_list", [False, True])
def test_an_id_seen_inside_the_window_is_not_enqueued_again(name: str, as_list: bool) -> None:
    """The existing id comes back, marked, whatever the rest of the message says; then the window ends."""
    upstream = Upstream()
    headers: dict[str, Any] = {name: ["a-1"] if as_list else "a-1"}
    first = upstream.accept_batch([Item(URL, "x", headers)], 0.0)
    again = upstream.accept_batch([Item("https://other.example", "y", headers)], 599.9)
    assert again == [Entry(first[0].message_id, deduplicated=True)]  # type: ignore[union-attr]
    late = upstream.accept_batch([Item(URL, "x", headers)], 600.0)
    assert late != first
    assert len(upstream.ledger) == 2
    assert upstream.ledger.row(0).repeats == 1
    assert upstream.ledger.row(0).deduplication_id == "a-1"


def test_the_window_runs_from_acceptance_and_a_repeat_does_not_extend_it() -> None:
    """A repeat shortly before the end does not keep the id alive."""
    upstream = Upstream(deduplication_window=10.0)
    message = item(Upstash_Deduplication_Id="id")
    assert [entry(upstream, message, now).deduplicated for now in (0.0, 9.0, 10.0, 19.0, 20.0)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_window_of_zero_remembers_nothing() -> None:
    """The control that shows duplicates can be seen: same instant, same batch, accepted twice."""
    upstream = Upstream(deduplication_window=0.0)
    upstream.accept_batch([item(Upstash_Deduplication_Id="id")] * 2, 5.0)
    assert upstream.audit.take() == {"distinct": 1, "accepted_again_by_digest": 1, "accepted_again_by_id": 1}


def test_an_id_repeated_inside_one_batch_is_deduplicated() -> None:
    """The second item of the same id in one array is answered with the first one's message."""
    first, second = Upstream().accept_batch([item(body="a", Upstash_Deduplication_Id="id")] * 2, 0.0)
    assert isinstance(first, Entry)
    assert second == Entry(first.message_id, deduplicated=True)


def test_forgotten_ids_leave_the_memory() -> None:
    """What has left the window is dropped, in any interleaving of ids seen again after it."""
    upstream = Upstream(deduplication_window=10.0)
    for now in range(100):
        upstream.accept_batch([item(Upstash_Deduplication_Id=f"{now % 30}")], float(now))
    assert len(upstream.window) == 10
    assert len(upstream.ledger) == 100


@pytest.mark.parametrize("flag", ["true", "True", "TRUE"])
def test_content_based_deduplication(flag: str) -> None:
    """Destination, body, Content-Type and forwarded headers decide; retries, delays and queues do not."""
    upstream = Upstream()
    same = {
        "Upstash_Content_Based_Deduplication": flag,
        "Content_Type": "text/plain",
        "Upstash_Forward_A": "1",
    }
    first = entry(upstream, item(body="x", **same))
    assert entry(upstream, item(body="x", Upstash_Retries="0", **same)).message_id == first.message_id
    assert entry(upstream, item(body="x", queue="q", **same)).deduplicated
    for other in (
        item(body="y", **same),
        item("https://example.com/other", "x", **same),
        item(body="x", **{**same, "Content_Type": "text/html"}),
        item(body="x", **{**same, "Upstash_Forward_A": "2"}),
        item(body="x", **same, Upstash_Forward_B="1"),
    ):
        assert not entry(upstream, other).deduplicated
    assert upstream.ledger.row(0).deduplication_id is None


def test_content_based_deduplication_can_be_off() -> None:
    """`false` is no deduplication."""
    upstream = Upstream()
    message = item(body="x", Upstash_Content_Based_Deduplication="false")
    assert not entry(upstream, message).deduplicated
    assert not entry(upstream, message).deduplicated


# -- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "status", "needle"),
    [
        (item(Upstash_Deduplication_Id="a:b"), 400, "':' or white space"),
        (item(Upstash_Deduplication_Id="a b"), 400, "':' or white space"),
        (item(Upstash_Deduplication_Id="a\n"), 400, "':' or white space"),
        (item(upstash_deduplication_id=" a"), 400, "':' or white space"),
        (item(""), 400, "destination is required"),
        (Item(None), 400, "destination is required"),
        (item("no-such-group"), 404, "URL group no-such-group not found"),
        (item("example.com/path"), 400, "invalid scheme"),
        (item("ftp://example.com"), 400, "invalid scheme"),
        (item("https://"), 400, "invalid scheme"),
        (item(body=7), 400, "body must be a string"),
        (item(body={"a": 1}), 400, "body must be a string"),
        (item(queue="q", Upstash_Delay="5s"), 400, "cannot be used with a queue"),
        (item(queue="q", upstash_not_before="1700000000"), 400, "cannot be used with a queue"),
        (item(queue="a b"), 400, "invalid queue name"),
        (item(Upstash_Method="BREW"), 400, "GET, POST"),
        (item(Upstash_Delay="soon"), 400, "10s or 1d10h30m"),
        (item(Upstash_Delay="1.5s"), 400, "10s or 1d10h30m"),
        (item(Upstash_Delay="10"), 400, "10s or 1d10h30m"),
        (item(Upstash_Delay="30s1m"), 400, "10s or 1d10h30m"),
        (item(Upstash_Timeout=""), 400, "10s or 1d10h30m"),
        (item(Upstash_Retries="-1"), 400, "whole number"),
        (item(Upstash_Not_Before="tomorrow"), 400, "whole number"),
        (item(Upstash_Retry_Delay="import os"), 400, "retried"),
        (item(Upstash_Callback="example.com"), 400, "invalid scheme"),
        (item(Upstash_Failure_Callback_Timeout="x"), 400, "10s or 1d10h30m"),
        (item(Upstash_Flow_Control_Key="k"), 400, "need each other"),
        (item(Upstash_Flow_Control_Key="k", Upstash_Flow_Control_Value="period=3s"), 400, "parallelism=10"),
        (item(Upstash_Redact_Fields="footer"), 400, r"header\[NAME\]"),
        (item(Upstash_Content_Based_Deduplication="maybe"), 400, "true or false"),
        (item(Upstash_Cron="* * * * *"), 400, "schedules"),
        (item(body="x" * 1001), 413, "1001 bytes, maxMessageSize is 1000"),
        (item(body="ä" * 501), 413, "1002 bytes"),
    ],
)
def test_one_invalid_item_refuses_the_whole_batch(bad: Item, status: int, needle: str) -> None:
    """Nothing of the batch is accepted, and the text says which message and why, without its values."""
    upstream = Upstream(max_message_bytes=1000)
    with pytest.raises(Refused, match=needle) as caught:
        upstream.accept_batch([item(Upstash_Deduplication_Id="ok"), bad], 0.0)
    assert caught.value.status == status
    assert caught.value.text.startswith("message 1: ")
    assert len(upstream.ledger) == 0
    assert not entry(upstream, item(Upstash_Deduplication_Id="ok")).deduplicated
    assert upstream.queues == {}


@pytest.mark.parametrize(
    "good",
    [
        item("api/llm"),
        item("HTTPS://EXAMPLE.com//a/../b?x=%20#f"),
        item(queue="billing.eu-1_x", Upstash_Retries="0"),
        item(Upstash_Method="patch", Upstash_Delay="1d10h30m", Upstash_Timeout="30s"),
        item(Upstash_Retry_Delay="max(10, pow(2, retried)) * 1000", Upstash_Label="a,b"),
        item(Upstash_Callback="https://cb", Upstash_Callback_X_Mine="anything", Upstash_Callback_Retries="3"),
        item(Upstash_Flow_Control_Key="k", Upstash_Flow_Control_Value="parallelism=10, rate=20, period=60s"),
        item(Upstash_Redact_Fields="body,header[Authorization]", Upstash_Unknown_Thing="kept"),
        item(Upstash_Forward_List=["a", "b"], Content_Type=["text/plain"]),
        item(Upstash_Deduplication_Id=""),
        Item(URL, None, None, ""),
    ],
)
def test_what_the_service_takes(good: Item) -> None:
    """Every documented form is accepted, the empty ones that SDKs send as well."""
    assert entry(Upstream(), good).message_id is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"destination": "https://a"}',
        b'["https://a"]',
        b'[{"destination": 7}]',
        b'[{"destination": "https://a", "headers": {"Upstash-Retries": 3}}]',
        b'[{"destination": "https://a", "queue": 1}]',
        b'[{"destination": "https://a", "body": "\\ud800"}]',
        b'[{"destination": "https://a", "body": "\xff"}]',
        b"[" * 100_000,
    ],
)
def test_what_is_no_batch_is_refused(body: bytes) -> None:
    """Broken JSON, wrong types and lone surrogates are a 400, never a crash."""
    with pytest.raises(Refused) as caught:
        parse_items(body)
    assert caught.value.status == 400


def test_limits_of_a_batch() -> None:
    """Too many messages are 412, too many bytes 413; at the limit both pass."""
    faulty = FaultyUpstream(Upstream(max_items=2, max_batch_bytes=200))
    message = {"destination": URL}
    assert [post(faulty, [message] * n).status for n in (2, 3)] == [200, 412]
    body = orjson.dumps([message]).ljust(200)
    assert [faulty.respond("/v2/batch", padded).status for padded in (body, body + b" ")] == [200, 413]


def test_an_empty_batch_is_an_empty_reply() -> None:
    """An empty array is answered with one."""
    assert post(FaultyUpstream(Upstream()), []).body == b"[]"


# -- URL groups, queues, order ----------------------------------------------------------------------


def test_a_url_group_answers_with_one_entry_an_endpoint() -> None:
    """The entry is an array of ids and URLs; repeated inside the window it is the same array, marked."""
    upstream = Upstream()
    upstream.put_group("g", {"https://a.example": None, "https://b.example": "b"}, 0.0, 0.0)
    message = item("g", "x", Upstash_Deduplication_Id="id")
    first = endpoints(upstream, message)
    assert [one.url for one in first] == ["https://a.example", "https://b.example"]
    assert len({one.message_id for one in first}) == 2
    again = endpoints(upstream, message, 1.0)
    assert [(one.message_id, one.deduplicated) for one in again] == [(one.message_id, True) for one in first]
    assert len(upstream.ledger) == 1
    assert upstream.ledger.row(0).digest == digest_of("g", None, "x")
    assert entry(upstream, item(URL, Upstash_Deduplication_Id="id")).message_id == first[0].message_id


def test_an_id_of_a_url_repeated_for_a_group() -> None:
    """The id decides, and the entry keeps the shape that its destination has."""
    upstream = Upstream()
    upstream.put_group("g", {"https://a.example": None}, 0.0, 0.0)
    first = entry(upstream, item(Upstash_Deduplication_Id="id"))
    assert endpoints(upstream, item("g", Upstash_Deduplication_Id="id")) == [
        Entry(first.message_id, URL, True)
    ]
    assert len(upstream.ledger) == 1


def test_a_group_without_endpoints_answers_with_an_empty_array() -> None:
    """The message is accepted, for nobody."""
    upstream = Upstream()
    upstream.put_group("empty", {}, 0.0, 0.0)
    assert endpoints(upstream, item("empty")) == []
    assert len(upstream.ledger) == 1


def test_a_group_made_later_than_a_refusal_is_found() -> None:
    """That a name was unknown is not remembered."""
    upstream = Upstream()
    with pytest.raises(Refused):
        upstream.accept_batch([item("g")], 0.0)
    upstream.put_group("g", {"https://a.example": None}, 0.0, 0.0)
    assert len(endpoints(upstream, item("g"))) == 1


def test_the_ledger_keeps_the_order_of_acceptance() -> None:
    """Rows come in the order of acceptance, also within one queue, with what is needed to recognise them."""
    upstream = Upstream(keep_bodies=True)
    for n in range(5):
        upstream.accept_batch(
            [item(body=f"{n}-a", queue="q"), item(body=f"{n}-b"), item(body=f"{n}-ü", queue="q")], n
        )
    rows = list(upstream.ledger.rows())
    assert [row.seq for row in rows] == list(range(15))
    assert [row.body for row in rows if row.queue == "q"] == [
        f"{n}-{x}".encode() for n in range(5) for x in "aü"
    ]
    assert rows[2].digest == digest_of(URL, "q", "0-ü")
    assert rows[2].body_digest == body_digest_of("0-ü".encode())
    assert [row.seq for row in upstream.ledger.rows(after=3, limit=2)] == [4, 5]
    assert upstream.queues["q"].accepted == upstream.queues["q"].lag == 10


def test_digests_tell_destination_queue_and_body_apart() -> None:
    """No two of these are the same message."""
    messages = [
        (URL, None, "x"),
        (URL, "x", None),
        (URL, "q", "x"),
        (URL, None, None),
        (URL + "x", None, ""),
        ("g", None, "x"),
    ]
    assert len({digest_of(*message) for message in messages}) == 6
    assert digest_of(URL, None, None) == digest_of(URL, "", b"")


def test_a_million_messages_fit() -> None:
    """A row without its body costs at most 300 bytes, so that millions fit into a load test."""
    upstream = Upstream()
    count = 20_000
    tracemalloc.start()
    for first in range(0, count, 100):
        batch = [numbered(n) for n in range(first, first + 100)]
        upstream.accept_batch(parse_items(orjson.dumps(batch)), 0.0)
        del batch
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / count <= 300


def numbered(n: int) -> dict[str, Any]:
    """A message of 200 bytes, with an id as a dispatcher draws them."""
    return {
        "destination": URL,
        "body": f"{n:0200d}",
        "headers": {"Upstash-Deduplication-Id": f"{n:032x}-{n:x}"},
    }


def test_known_sets_are_bounded() -> None:
    """Header sets and destinations that differ in every message do not pile up in the caches."""
    upstream = Upstream()
    for n in range(10_000):
        upstream.validator.prepare(item(f"https://example.com/{n}", Upstash_Forward_N=str(n)))
    assert len(upstream.validator._compiled) <= 4096


# -- error entries --------------------------------------------------------------------------------


def test_error_entries_refuse_one_item_and_accept_the_others() -> None:
    """The failing item leaves no trace: sent again under its id it is accepted, not deduplicated."""
    upstream = Upstream()
    messages = [item(body=str(n), Upstash_Deduplication_Id=str(n)) for n in range(3)]
    answers = upstream.accept_batch(messages, 0.0, failing=(1,))
    assert [isinstance(one, Entry) and one.error is not None for one in answers] == [False, True, False]
    assert upstream.ledger.keys == ["0", "2"]
    assert not entry(upstream, messages[1]).deduplicated


def test_one_endpoint_of_a_group_can_fail() -> None:
    """The last endpoint has the error instead of an id; a repeat says the same again."""
    upstream = Upstream()
    upstream.put_group("g", {"https://a.example": None, "https://b.example": None}, 0.0, 0.0)
    message = item("g", Upstash_Deduplication_Id="id")
    answer = upstream.accept_batch([message, item()], 0.0, failing_endpoints=(0, 1))
    assert isinstance(answer[0], list)
    assert isinstance(answer[1], Entry)
    assert [(one.message_id is None, one.error is None) for one in answer[0]] == [
        (False, True),
        (True, False),
    ]
    assert answer[1].error is None
    assert [one.message_id for one in endpoints(upstream, message)] == [one.message_id for one in answer[0]]
    assert len(upstream.ledger.message_ids(0)) == 1


# -- looking messages up -----------------------------------------------------------------------------


def test_ids_find_their_messages_until_cancelled() -> None:
    """Ids are unique and lead back to their row; what was never given out leads nowhere."""
    upstream = Upstream()
    upstream.put_group("g", {"https://a.example": None, "https://b.example": None}, 0.0, 0.0)
    single = entry(upstream, item(queue="q")).message_id
    both = [one.message_id for one in endpoints(upstream, item("g"))]
    assert single is not None
    assert [upstream.find(i) for i in (single, *both) if i] == [(0, 0), (1, 0), (1, 1)]
    for wrong in (
        "",
        "msg_",
        "msg_other",
        single + "0",
        single[:-1] + "1",
        single.upper(),
        f"msg_local0{'f' * 16}",
    ):
        assert upstream.find(wrong) is None
    assert upstream.cancel([single, single, "msg_x"]) == 1
    assert upstream.find(single) is None
    assert upstream.queues["q"].lag == 0
    assert upstream.cancel_all() == 2
    assert upstream.cancel_all() == 0
    entry(upstream, item(queue="q"))
    assert upstream.cancel_all() == 1


def test_a_deleted_queue_takes_its_messages_along() -> None:
    """They are not found any more, those of other queues are, and a new queue of the name starts empty."""
    upstream = Upstream()
    ids = [entry(upstream, item(queue=queue)).message_id or "" for queue in ("q", "p", "q")]
    upstream.delete_queue("q", 1.0)
    assert [upstream.find(one) is None for one in ids] == [True, False, True]
    entry(upstream, item(queue="q"))
    assert (upstream.queues["q"].lag, upstream.queues["p"].lag) == (1, 1)
    assert upstream.cancel(ids) == 1
    assert (upstream.queues["q"].lag, upstream.queues["p"].lag) == (1, 0)
