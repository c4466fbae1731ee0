"""What requests say: destinations byte for byte, options as they are, and what has to travel alone."""

from __future__ import annotations

import tracemalloc
from itertools import count
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.wire import Encoder
from dispatcher.errors import MessageInvalid
from dispatcher.message import Message
from dispatcher.sidecar.alone import Alone, service_keys, without_token
from dispatcher.sidecar.dialect import (
    BAD_QUEUE,
    NO_DESTINATION,
    NO_SCHEME,
    Dialect,
    Refused,
)
from dispatcher.sidecar.templates import NAMES_MAX, TEMPLATES_BYTES_MAX, TEMPLATES_MAX

URL = "https://example.com/hook"
MAX_BYTES = 1_000


def dialect() -> Dialect:
    return Dialect(MAX_BYTES)


def lines(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in pairs]


def publish(destination: str, *pairs: tuple[str, str], body: bytes = b"x") -> Message:
    return dialect().read_publish(f"/v2/publish/{destination}", lines(*pairs), body)


def alone(message: Message | Refused) -> Alone:
    assert isinstance(message, Alone)
    return message


def plain(message: Message | Refused) -> Message:
    assert type(message) is Message, message
    return message


def wire(message: Message) -> dict[str, Any]:
    """The item of a batch that it becomes; ids are counted."""
    ids = count()
    encoder = Encoder(lambda: f"id{next(ids)}", draws_ids=True, max_message_bytes=MAX_BYTES)
    found = encoder.encode_plain(message)
    data = found[0] if found else encoder.encode(message).data
    item: dict[str, Any] = orjson.loads(data)
    return item


# ------------------------------------------------------------------------------------------ publish, enqueue


@pytest.mark.parametrize(
    "destination",
    [
        "https://example.com",
        "https://example.com//a//b",
        "https://example.com/a/../b/./c",
        "https://example.com/%2e%2E/a%2Fb%20c%zz",
        "https://example.com/a?x=1&y=%20&&z=a+b?c",
        "https://example.com/?",
        "https://user:secret@example.com/",
        "https://example.com/qstash_token?upstashes=1",
        "api/llm",
        "my-group",
    ],
)
def test_the_destination_is_the_rest_of_the_target_byte_for_byte(destination: str) -> None:
    """Nothing is decoded, collapsed or cut; a query of its own goes with it."""
    assert plain(publish(destination)).destination == destination


def test_options_and_body_are_the_items() -> None:
    """Every option verbatim, known or not; what is no option is not; names in the documented spelling."""
    message = publish(
        URL,
        ("host", "sidecar"),
        ("content-type", "text/plain; charset=utf-8"),
        ("UPSTASH-RETRIES", "3"),
        ("Upstash-Unheard-Of", "ü"),
        ("upstash-forward-x-tenant", "42"),
        ("Authorization", "Bearer secret"),
        ("Accept", "*/*"),
        body="zwölf".encode(),
    )
    assert wire(message) == {
        "destination": URL,
        "headers": {
            "Content-Type": "text/plain; charset=utf-8",
            "Upstash-Retries": "3",
            "Upstash-Unheard-Of": "ü",
            "Upstash-Forward-x-tenant": "42",
            "Upstash-Deduplication-Id": "id0",
        },
        "body": "zwölf",
    }


def test_a_publish_takes_the_encoders_fast_way() -> None:
    """Also with options and in a queue: what is the same was made once, and is one object."""
    one = dialect()
    pairs = lines(("Upstash-Retries", "3"), ("Content-Type", "text/plain"))
    messages = [
        one.read_publish(target, list(pairs), body)
        for target in (f"/v2/enqueue/billing/{URL}", f"/v2/publish/{URL}?a=1")
        for body in (b"first", b"second")
    ]
    assert {message.queue for message in messages} == {"billing", None}
    assert len({id(message.options) for message in messages}) == 1
    encoder = Encoder(lambda: "id", draws_ids=True, max_message_bytes=MAX_BYTES)
    assert all(encoder.encode_plain(message) is not None for message in messages)


def test_an_id_of_the_callers_own_is_the_messages() -> None:
    """In any spelling, without spoiling what is kept of the header set; an empty one is none."""
    one = dialect()
    names = ("Upstash-Deduplication-Id", "upstash-deduplication-id", "UPSTASH-DEDUPLICATION-ID")
    for number, name in enumerate(names):
        message = one.read_publish(
            f"/v2/publish/{URL}", lines(("Upstash-Retries", "1"), (name, f"{number}")), b""
        )
        assert plain(message).deduplication_id == str(number)
        assert message.options is not None
        assert dict(message.options.compiled) == {"Upstash-Retries": "1"}
    for pairs in ((), ((names[0], ""),)):
        message = one.read_publish(f"/v2/publish/{URL}", lines(("Upstash-Retries", "1"), *pairs), b"")
        assert message.deduplication_id is None


def test_an_escaped_queue_is_named_by_what_it_means() -> None:
    """The queue stands decoded in the item; the destination behind it does not."""
    message = dialect().read_publish("/v2/enqueue/a%2Db/https://e.x/%2D", [], b"")
    assert (message.queue, message.destination) == ("a-b", "https://e.x/%2D")


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("/v2/publish/", 400, NO_DESTINATION),
        ("/v2/enqueue/billing", 400, NO_DESTINATION),
        ("/v2/enqueue/billing/", 400, NO_DESTINATION),
        ("/v2/publish/example.com/hook", 400, NO_SCHEME),
        ("/v2/publish/ftp://example.com/hook", 400, NO_SCHEME),
        ("/v2/enqueue//https://example.com", 400, BAD_QUEUE),
        ("/v2/enqueue/a?b/https://example.com", 400, BAD_QUEUE),
        ("/v2/enqueue/a%2Fb/https://example.com", 400, "queue: '/'"),
        ("/v2/publish/https://", 400, "the URL has no host"),
    ],
)
def test_what_names_no_destination_is_refused(target: str, status: int, text: str) -> None:
    """In the service's words where they are known, before it could spoil a batch."""
    with pytest.raises(Refused) as caught:
        dialect().read_publish(target, [], b"")
    assert caught.value.status == status
    assert text in caught.value.text


def test_options_that_no_batch_takes_are_refused() -> None:
    """A schedule is none of a message's options."""
    with pytest.raises(Refused, match="400: `Upstash-Cron`: a batch carries no schedules"):
        publish(URL, ("Upstash-Cron", "* * * * *"))


# --------------------------------------------------------------------------------------------------- alone


@pytest.mark.parametrize(
    ("query", "passed"),
    [
        ("upstash-delay=10s", "?upstash-delay=10s"),
        ("a=1&UPSTASH-Delay=10s&b", "?a=1&UPSTASH-Delay=10s&b"),
        ("%75pstash-delay=10s", "?%75pstash-delay=10s"),
        ("qstash_token=secret", ""),
        ("a=%20&QSTASH_TOKEN=secret&&b=1", "?a=%20&&b=1"),
        ("qstash%5Ftoken=secret&upstash-retries=1", "?upstash-retries=1"),
    ],
)
def test_a_query_for_the_service_goes_alone_without_the_credential(query: str, passed: str) -> None:
    """The target keeps every byte but the caller's token, which is not the upstream's to see."""
    message = alone(publish(f"{URL}?{query}"))
    assert message.reason == "query"
    assert message.request.target == f"/v2/publish/{URL}{passed}"
    assert (message.destination, message.body) == (URL, b"x")
    assert "secret" not in repr(message)


def test_a_query_may_bring_the_id() -> None:
    """Then none is drawn; any other key leaves that to us."""
    queries = {"upstash-deduplication-id=a": True, "upstash-content-based-deduplication=true": True}
    queries |= {"upstash-deduplication-id=": False, "upstash-delay=1s": False}
    for query, has_id in queries.items():
        message = alone(publish(f"{URL}?{query}"))
        assert (message.is_idempotent, message.deduplication_id) == (has_id, None)


def test_forwarding_all_headers_keeps_them_all_but_the_connections() -> None:
    """The connection's own business stays here, with whatever `Connection` names, and the credential."""
    message = alone(
        publish(
            URL,
            ("Upstash-Header-Forward", "true"),
            ("Authorization", "Bearer secret"),
            ("Host", "sidecar"),
            ("Content-Length", "1"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Expect", "100-continue"),
            ("X-Tenant", "a"),
            ("x-tenant", "b"),
            ("Content-Encoding", "gzip"),
        )
    )
    assert message.reason == "header_forward"
    assert message.request.headers == (
        ("Upstash-Header-Forward", "true"),
        ("X-Tenant", "a"),
        ("x-tenant", "b"),
        ("Content-Encoding", "gzip"),
    )
    assert type(publish(URL, ("Upstash-Header-Forward", "false"))) is Message


def test_repeated_lines_go_alone_as_they_came() -> None:
    """In any capitalisation; and two ids are not ours to choose from."""
    twice = alone(publish(URL, ("Upstash-Label", "a"), ("upstash-label", "b"), ("X", "1"), ("X", "2")))
    assert twice.reason == "repeated_header"
    assert twice.request.headers == (("Upstash-Label", "a"), ("upstash-label", "b"), ("X", "1"), ("X", "2"))
    name = "Upstash-Deduplication-Id"
    ids = alone(publish(URL, (name, "a"), (name, "b")))
    assert ids.request.headers == ((name, "a"), (name, "b"))
    assert (ids.is_idempotent, ids.deduplication_id) == (True, None)
    assert type(publish(URL, ("X", "1"), ("X", "2"))) is Message


def test_bytes_that_are_no_text_go_alone() -> None:
    """Raw, into their queue, with the caller's own id where an id is put."""
    one = dialect()
    pairs = lines(("Upstash-Deduplication-Id", "mine"), ("Content-Type", "image/png"))
    message = alone(one.read_publish("/v2/enqueue/q%2D1/https://e.x//a?b=1", pairs, b"\xff\x00"))
    assert (message.reason, message.body, message.queue) == ("not_text", b"\xff\x00", "q-1")
    assert message.request.target == "/v2/enqueue/q%2D1/https://e.x//a?b=1"
    assert message.request.headers == (("Content-Type", "image/png"),)
    assert (message.deduplication_id, message.is_idempotent) == ("mine", False)


def test_what_is_above_the_bound_goes_alone() -> None:
    """In bytes, not in characters."""
    assert type(publish(URL, body=b"x" * MAX_BYTES)) is Message
    message = alone(publish(URL, body=("ü" * (MAX_BYTES // 2 + 1)).encode()))
    assert (message.reason, len(message.body or b"")) == ("too_large", MAX_BYTES + 2)


def test_content_based_ids_are_not_ours() -> None:
    """Alone as in a batch: nothing is added to what the service hashes."""
    pairs = (("Upstash-Content-Based-Deduplication", "True"),)
    assert alone(publish(URL, *pairs, body=b"\xff")).is_idempotent
    assert "Upstash-Deduplication-Id" not in wire(publish(URL, *pairs))["headers"]


def test_bytes_of_a_head_that_are_no_utf8_are_read_as_latin_1() -> None:
    """No lone surrogate reaches an encoder, in a target or in a value, in the batch or alone."""
    target = b"/v2/publish/https://e.x/\xfc?\xc3\xbc".decode("utf-8", "surrogateescape")
    value = (b"Upstash-Forward-X", b"\xfc")
    message = plain(dialect().read_publish(target, [value], b"x"))
    assert wire(message)["headers"]["Upstash-Forward-X"] == "ü"
    assert wire(message)["destination"].encode()
    single = alone(dialect().read_publish(target, [value], b"\xff"))
    assert single.request.target == "/v2/publish/https://e.x/%FC?%C3%BC"
    assert single.request.headers == (("Upstash-Forward-X", "ü"),)


@given(st.lists(st.tuples(st.text("abqstash_token%5F", max_size=14), st.text("a=&?%", max_size=3))))
def test_taking_the_token_out_leaves_every_other_byte(parts: list[tuple[str, str]]) -> None:
    """Of any query: what is left is the other parts in their order, and no key speaks of a token."""
    query = "&".join("=".join(part) for part in parts)
    target = f"/v2/publish/{URL}?{query}"
    left = without_token(target).partition("?")[2]
    assert all(name != "qstash_token" for name, _ in service_keys(left))
    kept = [
        part for part in query.split("&") if not [n for n, _ in service_keys(part) if n == "qstash_token"]
    ]
    assert left == "&".join(kept)
    if len(kept) == len(query.split("&")):
        assert without_token(target) == target


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=10))
def test_whatever_comes_is_a_message_or_refused(path: bytes, value: bytes, body: bytes) -> None:
    """Any bytes of a target, a header and a body: no other exception, and what is read can be encoded."""
    target = "/v2/publish/https://e.x/" + quote(path, safe="/:?&=%#.~").replace(" ", "")
    encoder = Encoder(lambda: "id", draws_ids=True, max_message_bytes=MAX_BYTES)
    try:
        message = dialect().read_publish(target, [(b"Upstash-Forward-X", value)], body)
    except Refused:
        return
    assert encoder.encode(message).data is not None


# ------------------------------------------------------------------------------------------------- batches


def read(*items: Any) -> list[Message | Refused]:
    return dialect().read_batch(orjson.dumps(items), 100)


def test_items_are_messages() -> None:
    """As SDKs write them: `null`, `""` and nothing mean none, values are texts or arrays of one."""
    messages = read(
        {"destination": URL, "headers": {"upstash-retries": "1"}, "body": "a", "queue": "q"},
        {"destination": URL, "headers": {"Upstash-Retries": ["1"], "X": "1"}, "body": None, "queue": None},
        {"destination": "group", "headers": None, "body": "", "queue": ""},
        {"destination": "api/llm"},
    )
    first, second, third, fourth = (wire(plain(message)) for message in messages)
    id0 = {"Upstash-Deduplication-Id": "id0"}
    assert first == {
        "destination": URL,
        "queue": "q",
        "headers": {"Upstash-Retries": "1", **id0},
        "body": "a",
    }
    assert second == {"destination": URL, "headers": {"Upstash-Retries": "1", **id0}}
    assert (third, fourth) == (
        {"destination": "group", "headers": id0},
        {"destination": "api/llm", "headers": id0},
    )


def test_items_that_are_alike_are_read_once() -> None:
    """Whatever their bodies are; those with an id of their own keep it, and spoil nothing."""
    one = dialect()
    headers = {"Upstash-Retries": "1", "Content-Type": "text/plain"}
    alike = [{"destination": URL, "headers": headers, "queue": "q", "body": f"{n}"} for n in range(3)]
    own = [{**item, "headers": {**headers, "Upstash-Deduplication-Id": item["body"]}} for item in alike]
    for _ in range(2):
        messages = [plain(each) for each in one.read_batch(orjson.dumps(alike + own), 100)]
        assert [each.body for each in messages] == ["0", "1", "2"] * 2
        assert [each.deduplication_id for each in messages] == [None] * 3 + ["0", "1", "2"]
        assert len({id(each.options) for each in messages}) == 1
        assert {each.queue for each in messages} == {"q"}


def test_an_item_that_is_refused_has_its_place() -> None:
    """The others are messages all the same."""
    messages = read(
        {"destination": URL},
        {},
        {"destination": URL, "body": {"a": 1}},
        {"destination": "no/scheme"},
        {"destination": URL, "headers": {"Upstash-Forward-X": "a\r\nX-Evil: 1"}},
        {"destination": URL, "queue": "a b"},
        {"destination": URL, "headers": {"Upstash-Retries": 3}},
        {"destination": URL, "body": "x"},
    )
    assert [type(message) is Message for message in messages] == [True, *[False] * 6, True]
    texts = [message.text for message in messages if isinstance(message, Refused)]
    assert texts[:3] == [NO_DESTINATION, "body must be a string", NO_SCHEME]
    assert "`Upstash-Forward-X`" in texts[3]
    assert "Evil" not in texts[3]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[", b"[1]", b'[{"destination":1}]', b'["\xff"]', b'[{"headers":{"a":}}]']
)
def test_what_is_no_batch_is_refused_whole(body: bytes) -> None:
    """With a 400 that says where."""
    with pytest.raises(Refused, match="400: invalid batch: "):
        dialect().read_batch(body, 100)


def test_too_many_items_are_refused_whole() -> None:
    """Before any of them is sent; an empty batch is none to refuse."""
    with pytest.raises(Refused, match="412: too many messages in a batch: more than 2, the limit"):
        dialect().read_batch(orjson.dumps([{"destination": URL}] * 3), 2)
    assert dialect().read_batch(b"[]", 2) == []


def test_repeated_values_of_an_item_go_alone() -> None:
    """As the request that a single publish would have been, header lines and all."""
    headers = {
        "Upstash-Label": ["a", "b"],
        "upstash-deduplication-id": ["mine"],
        "Content-Type": "text/plain",
    }
    message = alone(
        read({"destination": f"{URL}?a=ü", "headers": headers, "body": "zwölf", "queue": "a?b"})[0]
    )
    assert message.reason == "repeated_header"
    assert message.request.target == f"/v2/enqueue/a%3Fb/{URL}?a=%C3%BC"
    assert message.request.headers == (
        ("Upstash-Label", "a"),
        ("Upstash-Label", "b"),
        ("Content-Type", "text/plain"),
    )
    assert (message.body, message.deduplication_id) == ("zwölf".encode(), "mine")


def test_large_items_go_alone_unless_their_query_would_be_lost() -> None:
    """In a request of its own the service would take such keys for its own."""
    body = "x" * (MAX_BYTES + 1)
    there, lost, repeated = read(
        {"destination": URL, "body": body},
        {"destination": f"{URL}?upstash-delay=1s", "body": body},
        {"destination": f"{URL}?upstash-delay=1s", "headers": {"Upstash-Label": ["a", "b"]}},
    )
    assert alone(there).reason == "too_large"
    assert isinstance(lost, Refused)
    assert lost.status == 413
    assert isinstance(repeated, Refused)
    assert repeated.status == 400
    assert type(read({"destination": f"{URL}?upstash-delay=1s", "body": "x"})[0]) is Message


def test_an_items_lines_cannot_break_a_head() -> None:
    """Also where they would become one."""
    headers = {"Upstash-Label": ["a", "b\r\nX-Evil: 1"]}
    found = read({"destination": URL, "headers": headers})[0]
    assert isinstance(found, Refused)
    assert found.status == 400


def test_a_line_is_an_item_or_refused() -> None:
    """A line that is none has an answer in its place, and raises nothing."""
    one = dialect()
    good = b'{"destination":"https://e.x","body":"a"}\r'
    bad = [b"", b"[]", b"\xff", b'{"destination":', b'{"destination":"https://e.x","body":"\\ud800"}']
    first, *found, last = one.read_lines([good, *bad, good])
    assert plain(first).body == plain(last).body == "a"
    assert [one.status for one in found if isinstance(one, Refused)] == [400] * len(bad)


# --------------------------------------------------------------------------------------------------- bounds


def test_what_is_kept_is_bounded_in_number() -> None:
    """Every target new: the cache starts anew, and what it gives stays right."""
    one = dialect()
    for number in range(TEMPLATES_MAX + 10):
        target = f"/v2/publish/{URL}/{number}"
        assert one.read_publish(target, [], b"").destination == f"{URL}/{number}"
    assert len(one._published.known) == 10


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """Long header sets, each of them new."""
    one = dialect()
    for number in range(40):
        value = b"%d" % number + b"x" * 1_000_000
        message = one.read_publish(f"/v2/publish/{URL}", [(b"Upstash-Forward-X", value)], b"")
        assert message.options is not None
        assert message.options.compiled["Upstash-Forward-X"] == value.decode()
    assert len(one._published.known) <= TEMPLATES_BYTES_MAX // 1_000_000


def test_names_that_are_kept_are_bounded() -> None:
    """Every header's name new: none is lost, and memory does not grow with them."""
    one = dialect()
    for number in range(3_000):
        name = b"Upstash-Forward-%d" % number
        message = one.read_publish(f"/v2/publish/{URL}", [(name, b"1")], b"")
        assert message.options is not None
        assert name.decode() in message.options.compiled
    assert len(one._raw_kinds) <= NAMES_MAX


@pytest.mark.parametrize(
    "target",
    [
        "/v2/publish/..",
        "/v2/enqueue/../keys",
        "/v2/enqueue/%2e%2E/keys",
        "/v2/enqueue/q/../../keys",
        "/v2/publish/api/../../keys/rotate",
        "/v2/publish/api/%2e%2e/%2e%2e%2fkeys",
        "/v2/publish/api/..\\..\\keys",
        "/v2/publish/api/..;/..;a=b/keys",
        "/v2/publish/https://e.x/../../../keys",
        "/v2/publish/https://e.x//////../../../keys",
        "/v2/publish/https://e.x/a/b/../../../../../keys?upstash-delay=1s",
    ],
)
def test_alone_no_destination_leads_elsewhere(target: str) -> None:
    """With the upstream's token, a path of dots would be another request to a server that resolves them."""
    with pytest.raises((Refused, MessageInvalid)) as caught:
        dialect().read_publish(target, [], b"\xff")
    assert "keys" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        f"/v2/publish/{URL}/a/../b?x=../../../../..",
        f"/v2/publish/{URL}/..a/../b/./..",
        "/v2/publish/https://e.x/../..",
        "/v2/enqueue/q/api/a/..",
    ],
)
def test_alone_other_dots_are_kept(target: str) -> None:
    """Byte for byte, as long as they stay below the path of a publish."""
    assert alone(dialect().read_publish(target, [], b"\xff")).request.target == target


ITEMS_MAX = 100


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"{}," * 3_000_000 + b"{}]",
        b"[" + b"{" * 3_000_000,
        b'[{"headers":{' + b",".join(b'"a%d":"{"' % number for number in range(200_000)) + b"}}]",
        b'[{"body":"' + b"{" * 1_000 + b'\\"' * 1_000_000,
        b'[{"body":"' + b"{" * 1_000_000 + b"\\",
        b"[" + b"[{}]," * 1_000_000 + b"1]",
    ],
    ids=["many", "deep", "headers", "unended", "unended escape", "arrays"],
)
def test_a_batch_of_too_much_is_refused_before_it_takes_memory(body: bytes) -> None:
    """Three bytes are a message; decoded they would be a hundred."""
    one = dialect()
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as caught:
            one.read_batch(body, ITEMS_MAX)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.status in (400, 412)


def test_a_batch_of_many_brackets_is_none_of_many_messages() -> None:
    """They may stand in its bodies, escaped or not."""
    text = orjson.dumps([{"a": {"b": [{}]}}] * 500).decode() + '{"{[\\"'
    items = [{"destination": URL, "body": text, "headers": {"Upstash-Label": ["{", "[{"]}}] * ITEMS_MAX
    read = dialect().read_batch(orjson.dumps(items), ITEMS_MAX)
    assert len(read) == ITEMS_MAX
    assert not any(isinstance(one, Refused) for one in read)
    with pytest.raises(Refused, match="412"):
        dialect().read_batch(orjson.dumps([*items, items[0]]), ITEMS_MAX)


@pytest.mark.parametrize(
    "part",
    [
        b'"body":[' + b"[]," * 1_000_000 + b"1]",
        b'"body":[' + b"".join(b"%d," % number for number in range(300_000)) + b"1]",
        b'"headers":{' + b",".join(b'"a%d":"b"' % number for number in range(100_000)) + b"}",
        b'"x":[' + b"[]," * 1_000_000 + b"1]",
    ],
    ids=["arrays", "numbers", "headers", "unknown"],
)
def test_what_is_no_message_takes_no_memory(part: bytes) -> None:
    """Its neighbours are read; it alone is refused, if what it has is wrong, and nothing of it is kept."""
    item = b'{"destination":"%b",%b}' % (URL.encode(), part)
    one = dialect()
    tracemalloc.start()
    try:
        batch = one.read_batch(b'[{"destination":"%b"},%b]' % (URL.encode(), item), ITEMS_MAX)
        lines = one.read_lines([item])
        assert tracemalloc.get_traced_memory()[1] < 3 * len(item) + 100_000
    finally:
        tracemalloc.stop()
    assert isinstance(batch[0], Message)
    for read in (batch[1], lines[0]):
        assert isinstance(read, Message if part.startswith(b'"x"') else Refused)
