"""Messages to bytes: what is parsed back is what was meant; ids, prefixes, singles, refusals."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.batch import Batch, Entry, Run, SingleRequest
from dispatcher.core.wire import CACHED_PREFIXES, AloneMessage, Encoded, Encoder
from dispatcher.errors import MessageInvalid, MessageTooLarge
from dispatcher.message import Message
from dispatcher.options import Options

URL = "https://example.com/hook?x=1"


def encoder(*, draws_ids: bool = True, max_message_bytes: int = 1_000_000) -> Encoder:
    ids = count()
    return Encoder(lambda: f"id{next(ids)}", draws_ids=draws_ids, max_message_bytes=max_message_bytes)


def parsed(encoded: Encoded) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(encoded.data)
    return value


def test_the_least_item() -> None:
    """Destination and our id; no body, no queue."""
    encoded = encoder().encode(Message(URL))
    assert parsed(encoded) == {"destination": URL, "headers": {"Upstash-Deduplication-Id": "id0"}}
    assert (encoded.deduplication_id, encoded.idempotent, encoded.owns_id) == ("id0", True, True)


def test_everything_together() -> None:
    """Options, own headers merged over them, queue, body and an id."""
    options = Options(retries=3, content_type="text/plain", forward={"X-Tenant": "42"})
    message = Message(
        URL,
        "grüße ☃",
        options=options,
        queue="billing",
        headers={"content-type": "text/html", "Upstash-Label": "a"},
    )
    assert parsed(encoder().encode(message)) == {
        "destination": URL,
        "queue": "billing",
        "headers": {
            "Upstash-Retries": "3",
            "Upstash-Forward-X-Tenant": "42",
            "content-type": "text/html",
            "Upstash-Label": "a",
            "Upstash-Deduplication-Id": "id0",
        },
        "body": "grüße ☃",
    }


@pytest.mark.parametrize(
    "body", [b"caf\xc3\xa9", bytearray(b"caf\xc3\xa9"), memoryview(b"caf\xc3\xa9"), "café"]
)
def test_text_in_any_form(body: Any) -> None:
    """Bytes that are UTF-8 travel as text, in the batch."""
    assert parsed(encoder().encode(Message(URL, body)))["body"] == "café"


@pytest.mark.parametrize("body", [None, "", b"", bytearray()])
def test_no_body_in_any_form(body: Any) -> None:
    """An absent and an empty body are the same: none."""
    assert "body" not in parsed(encoder().encode(Message(URL, body)))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), ({"a": [1, "é"]}, '{"a":[1,"é"]}'), ("", '""'), (0, "0")]
)
def test_json(value: Any, text: str) -> None:
    """A value as JSON text with its Content-Type, `None` as null."""
    item = parsed(encoder().encode(Message(URL, json=value)))
    assert item["body"] == text
    assert item["headers"]["Content-Type"] == "application/json"


def test_json_keeps_a_given_content_type() -> None:
    """Whoever sets it in options or headers is believed."""
    options = Options(content_type="application/cloudevents+json")
    for message in (
        Message(URL, json=1, options=options),
        Message(URL, json=1, headers={"CONTENT-TYPE": "application/cloudevents+json"}),
    ):
        values = [
            v for k, v in parsed(encoder().encode(message))["headers"].items() if k.lower() == "content-type"
        ]
        assert values == ["application/cloudevents+json"]


def test_json_and_body_with_the_same_destination() -> None:
    """The cached prefix of the one is not used for the other."""
    one = encoder()
    assert "Content-Type" not in parsed(one.encode(Message(URL, "x")))["headers"]
    assert parsed(one.encode(Message(URL, json="x")))["headers"]["Content-Type"] == "application/json"
    assert "Content-Type" not in parsed(one.encode(Message(URL, "x")))["headers"]


def test_the_messages_own_id_wins() -> None:
    """Over the headers' and the options'; nothing is drawn, and it is there once."""
    options = Options(deduplication_id="from-options")
    one = encoder()
    for message, expected in (
        (Message(URL, options=options, deduplication_id="mine"), "mine"),
        (Message(URL, headers={"upstash-deduplication-id": "header"}, deduplication_id="mine"), "mine"),
        (Message(URL, options=options), "from-options"),
        (Message(URL, options=options, headers={"upstash-deduplication-id": "header"}), "header"),
    ):
        encoded = one.encode(message)
        found = [v for k, v in parsed(encoded)["headers"].items() if k.lower() == "upstash-deduplication-id"]
        assert found == [expected]
        assert (encoded.deduplication_id, encoded.idempotent, encoded.owns_id) == (expected, True, False)


def test_content_deduplicated_messages_are_untouched() -> None:
    """No id is drawn for them, in the batch and alone, and they are safe to repeat."""
    one = encoder()
    for message in (
        Message(URL, "x", options=Options(content_based_deduplication=True)),
        Message(URL, "x", headers={"upstash-content-based-deduplication": "True"}),
        Message(URL, b"\xff", options=Options(content_based_deduplication=True)),
    ):
        encoded = one.encode(message)
        headers = dict(encoded.single.headers) if encoded.single else parsed(encoded)["headers"]
        assert [name.lower() for name in headers] == ["upstash-content-based-deduplication"]
        assert (encoded.deduplication_id, encoded.idempotent, encoded.owns_id) == (None, True, False)


def test_deduplication_off() -> None:
    """Nothing is drawn; only what brings an id is safe to repeat."""
    one = encoder(draws_ids=False)
    plain, own = one.encode(Message(URL, "x")), one.encode(Message(URL, "x", deduplication_id="mine"))
    assert parsed(plain) == {"destination": URL, "body": "x"}
    assert (plain.deduplication_id, plain.idempotent) == (None, False)
    assert (own.deduplication_id, own.idempotent, own.owns_id) == ("mine", True, False)
    binary = one.encode(Message(URL, b"\xff"))
    assert binary.single is not None
    assert (binary.single.headers, binary.idempotent) == ((), False)


def test_off_and_auto_share_options() -> None:
    """Two encoders with the same `Options`, one of which draws ids: neither takes the other's prefix."""
    options = Options(retries=1)
    drawing, not_drawing = encoder(), encoder(draws_ids=False)
    for _ in range(2):
        assert drawing.encode(Message(URL, "x", options=options)).owns_id
        assert not not_drawing.encode(Message(URL, "x", options=options)).owns_id


def test_ids_are_drawn_once_a_message() -> None:
    """Each message gets the next one, in the order of encoding."""
    one = encoder()
    assert [one.encode(Message(URL)).deduplication_id for _ in range(3)] == ["id0", "id1", "id2"]


def test_bytes_that_are_no_text_travel_alone() -> None:
    """As the raw body of a publish, its options as header lines, the destination pasted as it is."""
    options = Options(delay="5m", forward={"X-Tenant": "42"})
    encoded = encoder().encode(Message("https://example.com//a%20b?q=1&r=ü", b"\xff\x00", options=options))
    assert encoded.data == b"\xff\x00"
    assert encoded.single is not None
    assert encoded.single.target == "/v2/publish/https://example.com//a%20b?q=1&r=%C3%BC"
    assert encoded.single.headers == (
        ("Upstash-Forward-X-Tenant", "42"),
        ("Upstash-Delay", "5m"),
        ("Upstash-Deduplication-Id", "id0"),
    )
    assert (encoded.deduplication_id, encoded.owns_id) == ("id0", True)


def test_bytes_for_a_queue_travel_alone_by_enqueue() -> None:
    """The queue's endpoint keeps them in the queue."""
    encoded = encoder().encode(Message("group-a", b"\xff", queue="billing"))
    assert encoded.single is not None
    assert encoded.single.target == "/v2/enqueue/billing/group-a"


def test_a_queues_name_cannot_leave_its_place_in_the_path() -> None:
    """What would end the path's segment is escaped where it goes into a path."""
    encoded = encoder().encode(Message("https://e.example", b"\xff", queue="a?b#c%d"))
    assert encoded.single is not None
    assert encoded.single.target == "/v2/enqueue/a%3Fb%23c%25d/https://e.example"


@pytest.mark.parametrize(
    "message",
    [
        Message(""),
        Message("ftp://example.com"),
        Message("https://exa mple.com"),
        Message(7),  # type: ignore[arg-type]
        Message(["https://example.com"]),  # type: ignore[arg-type]
        Message(URL, 7),  # type: ignore[arg-type]
        Message(URL, {"a": 1}),  # type: ignore[arg-type]
        Message(URL, "\ud800"),
        Message(URL, "x", json=1),
        Message(URL, json=object()),
        Message(URL, json={"a": "\ud800"}),
        Message(URL, json=2**70),
        Message(URL, deduplication_id="a:b"),
        Message(URL, deduplication_id="a b"),
        Message(URL, deduplication_id=""),
        Message(URL, headers={"Hello": "x"}),
        Message(URL, headers={"Upstash-Label": "a\r\nb"}),
        Message(URL, headers={"Upstash-Label": "\ud800"}),
        Message(URL, headers={"Upstash-Label": 7}),  # type: ignore[dict-item]
        Message(URL, headers={"Upstash-Label": "a", "upstash-label": "b"}),
        Message(URL, queue="a/b"),
        Message(URL, queue=7),  # type: ignore[arg-type]
        Message(URL, queue=["q"]),  # type: ignore[arg-type]
        Message(URL, queue="q", options=Options(delay="5s")),
        Message(URL, queue="q", headers={"upstash-not-before": "1700000000"}),
    ],
)
def test_what_would_spoil_a_batch_is_refused(message: Message) -> None:
    """With words of ours, before it could; and the encoder goes on."""
    one = encoder()
    with pytest.raises(MessageInvalid, match=r"\w+ \w+"):
        one.encode(message)
    assert parsed(one.encode(Message(URL, "fine")))["body"] == "fine"


def test_a_refusal_names_the_cure() -> None:
    """A header that would not be forwarded says how it would be."""
    with pytest.raises(MessageInvalid, match=r'Options\(forward=\{"Hello"'):
        encoder().encode(Message(URL, headers={"Hello": "x"}))


def test_sizes_are_the_services() -> None:
    """The body's own bytes count, not the JSON's escapes; a character more is too large."""
    one = encoder(max_message_bytes=100)
    for body in ("x" * 100, "é" * 50, '"' * 100, "\n" * 100, b"\xff" * 100):
        one.encode(Message(URL, body))
    for body in ("x" * 101, "é" * 51, '"' * 101, b"\xff" * 101):
        with pytest.raises(MessageTooLarge) as raised:
            one.encode(Message(URL, body))
        assert raised.value.limit == 100
        assert raised.value.size > 100


def test_the_prefix_cache_is_bounded() -> None:
    """Destinations without end do not fill the memory, and are encoded right all the same."""
    one = encoder()
    options = Options(retries=1)
    for number in range(CACHED_PREFIXES + 10):
        url = f"https://example.com/{number}"
        assert parsed(one.encode(Message(url, options=options)))["destination"] == url
        assert parsed(one.encode(Message(url)))["destination"] == url
    assert len(options.cache) <= CACHED_PREFIXES
    assert len(one._cache) <= CACHED_PREFIXES


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_value = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
_names = st.sampled_from(["Content-Type", "Upstash-Label", "upstash-forward-a", "Upstash-Forward-B"])


@given(
    st.sampled_from([URL, "https://é.example/☃", "group-1", "api/llm"]),
    _text,
    st.dictionaries(_names, _value, max_size=3),
    st.sampled_from([None, "", "q1", "büro"]),
    st.none() | st.sampled_from(["mine", "µ-1"]),
    st.booleans(),
)
def test_what_is_parsed_back_is_what_was_meant(
    destination: str,
    body: str,
    headers: dict[str, str],
    queue: str | None,
    identity: str | None,
    draws_ids: bool,
) -> None:
    """Any text in any place comes out of the JSON as it went in, with and without the cached prefix."""
    one = encoder(draws_ids=draws_ids)
    for own in (headers, None):
        for _ in range(2):
            message = Message(destination, body, headers=own, queue=queue, deduplication_id=identity)
            encoded = one.encode(message)
            expected: dict[str, Any] = {"destination": destination}
            found = parsed(encoded)
            lines = dict(own or {})
            if encoded.deduplication_id is not None:
                lines["Upstash-Deduplication-Id"] = encoded.deduplication_id
            if lines:
                expected["headers"] = lines
            if queue:
                expected["queue"] = queue
            if body:
                expected["body"] = body
            assert found == expected
            assert (encoded.deduplication_id is None) == (identity is None and not draws_ids)


@given(st.lists(_text, min_size=1, max_size=30))
def test_a_batch_is_the_array_of_its_items(bodies: list[str]) -> None:
    """Joined bytes parse as one array, and the size that was counted is the size on the wire."""
    one = encoder()
    entries = []
    for body in bodies:
        message = Message(URL, body)
        encoded = one.encode(message)
        entries.append(Entry(message, encoded.data, None, encoded.deduplication_id, True, True, 0.0, 1.0))
    batch = Batch(entries, sum(len(entry.data) for entry in entries), "linger")
    wire = batch.body()
    assert [item.get("body", "") for item in json.loads(wire)] == bodies
    assert len(wire) == 2 + batch.size_bytes + len(entries) - 1


def alone(**fields: Any) -> AloneMessage:
    request = SingleRequest("/v2/publish/https://e.x/?upstash-delay=1s", (("Upstash-Label", "a"),) * 2)
    return AloneMessage("https://e.x/", b"body", request=request, **fields)


def test_a_ready_request_is_taken_as_it_is() -> None:
    """Target, repeated lines and bytes stay; the id that makes repeating it safe is one more line."""
    encoded = encoder().encode(alone())
    assert encoded.data == b"body"
    assert encoded.single == SingleRequest(
        "/v2/publish/https://e.x/?upstash-delay=1s",
        (("Upstash-Label", "a"), ("Upstash-Label", "a"), ("Upstash-Deduplication-Id", "id0")),
    )
    assert (encoded.deduplication_id, encoded.idempotent, encoded.owns_id) == ("id0", True, True)


def test_a_ready_request_with_an_id_of_its_own() -> None:
    """The caller's id is the line; where the request itself brings one, or ids are off, none is added."""
    own = encoder().encode(alone(deduplication_id="mine"))
    assert own.single is not None
    assert own.single.headers[-1] == ("Upstash-Deduplication-Id", "mine")
    assert (own.deduplication_id, own.idempotent, own.owns_id) == ("mine", True, False)
    brought = encoder().encode(alone(is_idempotent=True))
    off = encoder(draws_ids=False).encode(alone())
    for encoded, is_safe in ((brought, True), (off, False)):
        assert encoded.single == alone().request
        assert (encoded.deduplication_id, encoded.idempotent, encoded.owns_id) == (None, is_safe, False)
    with pytest.raises(MessageInvalid, match="deduplication id"):
        encoder().encode(alone(deduplication_id="a:b"))


def test_a_ready_request_is_never_taken_for_a_plain_message() -> None:
    """The fast ways leave it to the one that knows it, whatever it holds; and of its size nothing is said."""
    one = Encoder(lambda: "id", draws_ids=True, max_message_bytes=1)
    assert one.encode_plain(alone()) is None
    run = Run([], [], [])
    message = alone()
    assert one.encode_run([message], run, 10, 10_000) is message
    assert len(run) == 0
    assert one.encode(alone()).data == b"body"


@pytest.mark.parametrize("query", ["qstash_token=x", "a=1&Upstash-Delay=5s", "upstash-any", "QSTASH_TOKEN"])
def test_a_query_that_the_service_would_keep(query: str) -> None:
    """In a request of its own it would not reach the destination: refused, with the cure."""
    encoder = Encoder(lambda: "id", draws_ids=True, max_message_bytes=1000)
    with pytest.raises(MessageInvalid, match="which the service keeps for itself") as caught:
        encoder.encode(Message(f"https://example.com/?{query}", b"\xff"))
    assert "5s" not in str(caught.value)
    assert "send such a body as text (base64), or to another query" in str(caught.value)


@pytest.mark.parametrize("tail", ["?a=1&x-upstash-b=1", "#?upstash-a=1", "?a=qstash_token", "/upstash-a?"])
def test_a_query_that_passes(tail: str) -> None:
    """Other keys, values, fragments and paths are the destination's; text travels in a batch anyway."""
    encoder = Encoder(lambda: "id", draws_ids=True, max_message_bytes=1000)
    assert encoder.encode(Message(f"https://example.com{tail}", b"\xff")).single is not None
    assert encoder.encode(Message("https://example.com/?upstash-delay=1", "text")).single is None
