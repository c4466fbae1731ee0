"""The short ways of encoding: for whatever message, they say what `encode` says, or leave it to that."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from dispatcher.core.batch import Run
from dispatcher.core.wire import Encoded, Encoder
from dispatcher.errors import AdmissionError, MessageInvalid
from dispatcher.message import Message
from dispatcher.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

URL = "https://example.com/hook"
UNBOUNDED = 10_000, 1_000_000
OPTIONS = [
    Options(retries=2, forward={"X-Tenant": "42"}),
    Options(content_based_deduplication=True),
    Options(delay=5),
    Options(content_type="text/plain"),
]


class Kind(Message):
    """Somebody's own kind of message, which may do anything."""


class Text(str):
    """Somebody's own kind of text."""


def encoder(*, draws_ids: bool = True, max_message_bytes: int = 1_000) -> Encoder:
    ids = count()
    return Encoder(lambda: f"id{next(ids)}", draws_ids=draws_ids, max_message_bytes=max_message_bytes)


def run() -> Run:
    return Run([], [], [])


def plain(destination: str, body: str) -> Message:
    return Message(destination, body)


_bodies: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [None, "", "\ud800", "x" * 5_000, "é" * 600, '"' * 600, Text("own"), 7, {"a": 1}, [], ()]
    ),
    st.binary(max_size=10),
    st.builds(bytearray, st.binary(max_size=5)),
)
_destinations: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(URL, f"{URL}?qstash_token=secret", "subscribers", "api/llm", "https://exämple.com/ü", Text(URL)),
        *("", "no scheme/x", " https://a.example", "ftp://x", "https://", "\ud800", "a\nb"),
        *(None, 7, [], ("a",)),
    ]
)
_messages = st.builds(
    lambda kind, destination, body, extra: kind(destination, body, **extra),
    st.sampled_from([Message, Message, Message, Message, Kind]),
    _destinations,
    _bodies,
    st.fixed_dictionaries(
        {},
        optional={
            "json": st.sampled_from([UNSET, None, {"a": 1}, float("nan"), object(), "text"]),
            "options": st.sampled_from([None, *OPTIONS, {"retries": 2}, "fast"]),
            "headers": st.sampled_from(
                [
                    None,
                    {},
                    {"X": "y"},
                    {"Upstash-Deduplication-Id": "h"},
                    {"Upstash-Delay": "5s"},
                    {"": ""},
                    7,
                ]
            ),
            "queue": st.sampled_from([None, "", "q", "ü/?", "a b", 7, "q" * 300, []]),
            "deduplication_id": st.sampled_from([None, "own", "", "a:b", "a b", 7]),
            "deliver_within": st.sampled_from([None, 5.0, 0, "soon"]),
        },
    ),
)
_odd_and_plain = st.lists(
    st.one_of(st.builds(plain, st.sampled_from([URL, "subscribers"]), st.text(max_size=30)), _messages),
    max_size=12,
)


def outcome(encode: Callable[[Any], Any], message: Any) -> Any:
    """What it makes of the message, or the kind of its refusal."""
    try:
        return encode(message)
    except AdmissionError as error:
        return type(error)


@settings(max_examples=600)
@given(st.lists(_messages, min_size=1, max_size=4), st.booleans())
def test_encode_plain_agrees_with_encode(messages: list[Message], draws_ids: bool) -> None:
    """The same item with another id, the same refusal, or nothing: also with what the cache has by then."""
    long_way, short = encoder(draws_ids=draws_ids), encoder(draws_ids=draws_ids)
    for message in messages * 2:
        expected = outcome(long_way.encode, message)
        found = outcome(short.encode_plain, message)
        if isinstance(found, tuple):
            assert isinstance(expected, Encoded), f"{expected} goes out as {found}"
            _assert_same(expected, *found)
        else:
            assert found in (None, expected)


def _assert_same(expected: Encoded, item: bytes, identity: str) -> None:
    assert expected.deduplication_id is not None
    assert expected.single is None
    assert expected.owns_id
    assert expected.idempotent
    assert expected.data.count(expected.deduplication_id.encode()) >= 1
    ours, theirs = (f'"Upstash-Deduplication-Id":"{each}"' for each in (identity, expected.deduplication_id))
    assert item.replace(ours.encode(), theirs.encode()) == expected.data


@settings(max_examples=600)
@given(_odd_and_plain, st.booleans(), st.integers(1, 8), st.integers(1, 600))
def test_encode_run_agrees_with_encode(
    messages: list[Message], draws_ids: bool, most: int, most_bytes: int
) -> None:
    """Each item is what `encode` makes of the message; bounds hold; what ends a run is the next message."""
    long_way, short = encoder(draws_ids=draws_ids), encoder(draws_ids=draws_ids)
    one, source = run(), iter(messages)
    odd = short.encode_run(source, one, most, most_bytes)
    left = list(source)
    assert [id(each) for each in one.messages] == [id(each) for each in messages[: len(one)]]
    assert len(one) == len(one.items) == len(one.deduplication_ids) <= most
    assert len(set(one.deduplication_ids)) == len(one)
    assert one.size_bytes == sum(map(len, one.items)) <= most_bytes
    for message, item, identity in zip(one.messages, one.items, one.deduplication_ids, strict=True):
        expected = outcome(long_way.encode, message)
        assert isinstance(expected, Encoded), f"{expected} goes out as {item!r}"
        _assert_same(expected, item, identity)
        assert message.queue is None
        assert message.deliver_within is None
    if odd is UNSET:
        assert len(one) + len(left) == len(messages)
        assert len(one) == most or not left
    else:
        assert odd is messages[len(one)]
        assert len(one) + 1 + len(left) == len(messages)
        assert len(one) < most


@settings(max_examples=300)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=8))
def test_what_is_plain_is_not_declined(bodies: list[str]) -> None:
    """A text to any destination, with any options that bring no id, has the short way."""
    short = encoder()
    messages = [
        Message(URL if place % 2 else "subscribers", body, options=None if place % 3 else OPTIONS[0])
        for place, body in enumerate(bodies)
    ]
    one = run()
    assert short.encode_run(messages, one, *UNBOUNDED) is UNSET
    assert one.messages == messages
    assert all(short.encode_plain(message) is not None for message in messages)
    assert short.encode_plain(Message(URL, "text", queue="q")) is not None


@pytest.mark.parametrize(
    "message",
    [
        Message(URL),
        Message(URL, ""),
        Message(URL, b"text"),
        Message(URL, json=None),
        Message(URL, "text", headers={"X": "y"}),
        Message(URL, "text", headers={}),
        Message(URL, "text", deduplication_id="own"),
        Message(URL, "text", options=OPTIONS[1]),
        Message(URL, "\ud800"),
        Message(URL, "x" * 2_000),
        Message(URL, Text("own")),
        Message(URL, "text", deliver_within=5.0),
        Kind(URL, "text"),
    ],
)
def test_what_is_not_plain_is_declined(message: Message) -> None:
    """By both, and without an id drawn for it."""
    drawn = count()
    short = Encoder(lambda: f"id{next(drawn)}", draws_ids=True, max_message_bytes=1_000)
    assert short.encode_plain(message) is None
    one = run()
    assert short.encode_run([message], one, *UNBOUNDED) is message
    assert len(one) == one.size_bytes == next(drawn) == 0


def test_what_has_a_queue_is_no_part_of_a_run() -> None:
    """It keeps an order with others."""
    one, message = run(), Message(URL, "text", queue="q")
    assert encoder().encode_run([message], one, *UNBOUNDED) is message
    assert len(one) == 0


@pytest.mark.parametrize("odd", ["text", None, 7, {"destination": URL}, object()])
def test_what_is_no_message_ends_a_run(odd: Any) -> None:
    """It is handed back to whoever says what is wrong with it."""
    one = run()
    assert encoder().encode_run([Message(URL, "a"), odd, Message(URL, "b")], one, *UNBOUNDED) is odd
    assert [message.body for message in one.messages] == ["a"]


def test_a_run_ends_at_its_messages() -> None:
    """It takes no more from the source than it holds."""
    source = iter([Message(URL, str(number)) for number in range(5)])
    one = run()
    assert encoder().encode_run(source, one, 3, 1_000_000) is UNSET
    assert [message.body for message in one.messages] == ["0", "1", "2"]
    assert next(source).body == "3"


def test_a_run_ends_at_its_bytes() -> None:
    """What fits exactly is in it; one byte less, and the last one is handed back."""
    messages = [Message(URL, "x" * 50) for _ in range(3)]
    size = len(encoder().encode(messages[0]).data)
    for most_bytes, fitting in ((3 * size, 3), (3 * size - 1, 2), (size, 1), (size - 1, 0), (0, 0)):
        one = run()
        odd = encoder().encode_run(messages, one, 10, most_bytes)
        assert len(one) == fitting
        assert one.size_bytes == fitting * size
        assert odd is (UNSET if fitting == 3 else messages[fitting])


def test_a_run_that_has_something_goes_on() -> None:
    """Its bytes count to the bound, its messages do not: they are the caller's to subtract."""
    short, one = encoder(), run()
    short.encode_run([Message(URL, "a")], one, 5, 1_000)
    size = one.size_bytes
    last = Message(URL, "c")
    assert short.encode_run([Message(URL, "b"), last], one, 5, 2 * size) is last
    assert [message.body for message in one.messages] == ["a", "b"]
    assert one.deduplication_ids == ["id0", "id1"]


def test_a_source_that_raises_leaves_what_it_gave() -> None:
    """The columns are of one length, the bytes are right, and the error is the source's own."""

    def source() -> Iterator[Message]:
        yield Message(URL, "a")
        yield Message(URL, "b")
        raise OSError("the file ends here")

    one = run()
    with pytest.raises(OSError, match="the file ends here"):
        encoder().encode_run(source(), one, *UNBOUNDED)
    assert [message.body for message in one.messages] == ["a", "b"]
    assert len(one.items) == len(one.deduplication_ids) == 2
    assert one.size_bytes == sum(map(len, one.items)) > 0


def test_a_destination_is_checked_on_the_short_way_too() -> None:
    """`encode_plain` says what is wrong as `encode` does; a run leaves that to who comes after it."""
    bad = Message("no scheme/x", "text")
    with pytest.raises(MessageInvalid) as short:
        encoder().encode_plain(bad)
    with pytest.raises(MessageInvalid) as long_way:
        encoder().encode(bad)
    assert str(short.value) == str(long_way.value)
    one = run()
    assert encoder().encode_run([bad], one, *UNBOUNDED) is bad
