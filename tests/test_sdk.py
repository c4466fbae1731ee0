"""SDK requests, the service's items and NDJSON lines, read as messages."""

from __future__ import annotations

import base64
import copy
import json
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from qstash.chat import custom, openai
from qstash.message import (
    BatchJsonRequest,
    BatchRequest,
    convert_to_batch_messages,
    prepare_batch_message_body,
)

from dispatcher.errors import MessageInvalid
from dispatcher.message import Message
from dispatcher.sdk import ITEM_KEYS, SDK_KEYS, line_to_message, message_from_item, message_from_sdk

SECRET = "s3cret"
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

names = st.text(TOKEN_CHARACTERS, min_size=1, max_size=12)
values = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
durations = st.integers(0, 1_000_000) | st.from_regex(r"([0-9]{1,4}[smhd]){1,3}", fullmatch=True)
words = st.text("abcdefghijklmnopqrstuvwxyz-_./ äß", min_size=1, max_size=12).filter(str.strip)
urls = st.builds("https://{}.example/{}?q={}".format, *[st.text("abcxyz09", min_size=1, max_size=6)] * 3)


def headers(*prefixes: str) -> st.SearchStrategy[dict[str, str]]:
    """Headers, some with the prefix the SDK would add; no name twice, which we refuse and the SDK merges."""
    bare = st.lists(names, unique_by=str.lower, max_size=4)
    return st.builds(
        lambda chosen, prefix, text: {prefix[i] + name: text[i] for i, name in enumerate(chosen)},
        bare,
        st.lists(st.sampled_from(("", *prefixes)), min_size=4, max_size=4),
        st.lists(values, min_size=4, max_size=4),
    )


FLOW_CONTROL = st.fixed_dictionaries(
    {"key": words},
    optional={"rate": st.integers(1, 99), "period": st.integers(1, 604_800) | st.just("3d5h12m")},
).flatmap(lambda flow: st.just(flow) if "rate" in flow else st.just({**flow, "parallelism": 7}))
REDACT = st.fixed_dictionaries(
    {}, optional={"body": st.just(True), "header": st.just(True) | st.lists(names, max_size=3)}
)
OPTIONS = {
    "method": st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    "headers": headers("Upstash-Forward-", "upstash-forward-"),
    "callback_headers": headers("Upstash-Callback-", "upstash-callback-"),
    "failure_callback_headers": headers("Upstash-Failure-Callback-"),
    "retries": st.integers(0, 100),
    "retry_delay": st.sampled_from(["1000", "pow(2, retried)", "max(10, pow(2, retried))"]),
    "callback": urls,
    "failure_callback": urls,
    "delay": durations,
    "not_before": st.integers(0, 4_000_000_000),
    "deduplication_id": st.text("abc-_09/äß", min_size=1, max_size=20),
    "content_based_deduplication": st.booleans(),
    "timeout": durations,
    "flow_control": FLOW_CONTROL,
    "label": words,
    "redact": REDACT,
    "queue": st.text("abc-_", min_size=1, max_size=9),
}
TARGETS = st.one_of(
    urls.map(lambda url: {"url": url}),
    words.map(lambda group: {"url_group": group}),
    names.map(lambda token: {"api": {"name": "llm", "provider": openai(token)}}),
)
RAW = st.fixed_dictionaries({}, optional={**OPTIONS, "content_type": words, "body": values})
JSON_BODIES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(values, inner, max_size=3),
).filter(lambda body: not isinstance(body, str))
JSON = st.fixed_dictionaries({"body": JSON_BODIES}, optional=dict(OPTIONS))


def as_the_sdk_writes(request: dict[str, Any]) -> dict[str, Any]:
    """The item of the official SDK, with its documented differences to ours taken out.

    Names of headers count without capitals. `content_based_deduplication` is written `True` and `False`
    there; here it is `true`, or nothing at all.
    """
    item: dict[str, Any] = json.loads(
        prepare_batch_message_body([cast("BatchRequest", copy.deepcopy(request))])
    )[0]
    written = {name.lower(): value for name, value in item["headers"].items()}
    if written.get("upstash-content-based-deduplication") == "True":
        written["upstash-content-based-deduplication"] = "true"
    elif written.get("upstash-content-based-deduplication") == "False":
        del written["upstash-content-based-deduplication"]
    return {**item, "headers": written, "body": item["body"] or None}


def as_we_read(message: Message) -> dict[str, Any]:
    compiled = {} if message.options is None else dict(message.options.compiled)
    if message.deduplication_id is not None:
        compiled["Upstash-Deduplication-Id"] = message.deduplication_id
    body = message.body
    if message.json is not UNSET:
        compiled.setdefault("Content-Type", "application/json")
        body = json.dumps(message.json)
    return {
        "destination": message.destination,
        "headers": {name.lower(): value for name, value in compiled.items()},
        "body": body,
        "queue": message.queue,
    }


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MessageInvalid) as caught:
        call(*args)
    return str(caught.value)


@given(TARGETS, RAW)
def test_a_raw_request_reads_as_the_sdk_writes_it(target: dict[str, Any], request: dict[str, Any]) -> None:
    """Whatever the official SDK would put on the wire for a batch request, our message says the same."""
    request |= target
    assert as_we_read(Message.from_sdk(request)) == as_the_sdk_writes(request)


@given(TARGETS, JSON)
def test_a_json_request_reads_as_batch_json_writes_it(
    target: dict[str, Any], request: dict[str, Any]
) -> None:
    """A body that is neither text nor bytes is what `batch_json` would have made of it."""
    request |= target
    converted = convert_to_batch_messages([cast("BatchJsonRequest", copy.deepcopy(request))])[0]
    # The SDK's conversion forgets some keys of newer options; what we compare is the body and its type.
    theirs = {**request, "body": converted["body"], "content_type": converted["content_type"]}
    assert as_we_read(message_from_sdk(request)) == as_the_sdk_writes(theirs)


@given(TARGETS, RAW | JSON)
def test_a_request_is_never_changed(target: dict[str, Any], request: dict[str, Any]) -> None:
    """The SDK writes a provider's token into the caller's headers; we do not."""
    request |= target
    before = copy.deepcopy(request)
    message_from_sdk(request)
    assert request == before


def test_the_keys_are_those_of_the_installed_sdk() -> None:
    """A new option of the SDK shows here first."""
    theirs = set(BatchRequest.__annotations__)
    ours = set(SDK_KEYS) - {"body_base64"}
    assert ours == theirs


def test_the_id_is_the_messages_and_not_the_options() -> None:
    """Encoded options are kept and shared; an id among them would make them useless."""
    message = message_from_sdk({"url": "https://a.example", "delay": 5, "deduplication_id": "order-7"})
    assert message.deduplication_id == "order-7"
    assert message.options is not None
    assert not message.options.has_deduplication_id


def test_a_provider_takes_its_token_along() -> None:
    """The provider's token stands in the place of any Authorization, in whatever capitals."""
    provider = custom("https://llm.example", SECRET)
    request = {
        "api": {"name": "llm", "provider": provider},
        "headers": {"authorization": "old", "Upstash-Forward-Authorization": "older", "A": "1"},
    }
    message = message_from_sdk(request)
    assert message.destination == "https://llm.example/v1/chat/completions"
    assert message.options is not None
    assert dict(message.options.compiled) == {
        "Upstash-Forward-A": "1",
        "Upstash-Forward-Authorization": f"Bearer {SECRET}",
    }
    assert SECRET not in repr(message) + repr(message.options)


def test_a_provider_may_be_a_mapping_or_absent() -> None:
    """A line of a file has no objects; and the service has its own route."""
    provider = {"name": "x", "base_url": "https://llm.example", "token": "t"}
    assert (
        message_from_sdk({"api": {"name": "llm", "provider": provider}}).destination
        == "https://llm.example/v1/chat/completions"
    )
    message = message_from_sdk({"api": {"name": "llm"}})
    assert (message.destination, message.options) == ("api/llm", None)


@pytest.mark.parametrize(
    "body", [b"\xff\x00", bytearray(b"a"), memoryview(b"a"), "text", None], ids=lambda b: type(b).__name__
)
def test_text_and_bytes_travel_as_they_are(body: Any) -> None:
    """Neither is JSON, whatever it looks like."""
    message = message_from_sdk({"url": "https://a.example", "body": body})
    assert message.body == body
    assert message.json is UNSET


@pytest.mark.parametrize("body", [{}, [], 0, False, 1.5, {"a": None}])
def test_falsy_json_is_json(body: Any) -> None:
    """An empty object is a body, and not none."""
    assert message_from_sdk({"url": "https://a.example", "body": body}).json == body


def test_none_is_absent_in_a_request() -> None:
    """The SDK reads its requests with `get`, so `None` and absent are the same."""
    request: dict[str, Any] = dict.fromkeys(SDK_KEYS)
    message = message_from_sdk({**request, "url": "https://a.example"})
    assert as_we_read(message) == {
        "destination": "https://a.example",
        "headers": {},
        "body": None,
        "queue": None,
    }


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({}, "none of them"),
        ({"url": "https://a", "url_group": "g"}, "`url` and `url_group`"),
        ({"url": "https://a", "dely": 5}, "'dely' is unknown; did you mean `delay`?"),
        ({"url": "https://a", "forward": {}}, "'forward' is unknown"),
        ({"url": "https://a", "zzzzzz": 5}, "known: url, url_group"),
        ({"url": "https://a", 7: 5}, "the key 7 is unknown"),
        ({"url": "https://a", "body": {1, 2}}, "`body` is set"),
        ({"url": "https://a", "body": {}, "body_base64": "YQ=="}, "exclude each other"),
        ({"url": "https://a", "headers": ["a"]}, "`headers` is an array"),
        ({"url": "https://a", "deduplication_id": "a:b"}, "':'"),
        ({"url": "https://a", "delay": "soon"}, "delay='soon'"),
        ({"api": {"name": "email"}}, '{"name": "llm"}'),
        ({"api": "llm"}, '{"name": "llm"}'),
        ({"api": {"name": "llm", "providr": 1}}, "did you mean `provider`?"),
        ({"api": {"name": "llm", "provider": {"base_url": "https://x"}}}, "`token`"),
        ({"api": {"name": "llm", "provider": {"token": "x"}}}, "`base_url`"),
        ([], "an SDK request is a JSON object, not an array"),
    ],
)
def test_a_wrong_request_is_refused_by_name(request_: Any, text: str) -> None:
    """A key that would be dropped silently is the costliest mistake, so none is."""
    assert text in refused(message_from_sdk, request_)


def test_an_item_reads_as_it_stands() -> None:
    """Destination, headers, body and queue are the message's own."""
    item = {
        "destination": "https://a.example",
        "headers": {"Upstash-Delay": "5s", "Content-Type": ["a/b"], "Upstash-Forward-X": ["1", "2"], "Z": []},
        "body": "Hello World",
        "queue": None,
    }
    message = message_from_item(item)
    assert message.headers == {"Upstash-Delay": "5s", "Content-Type": "a/b", "Upstash-Forward-X": "1, 2"}
    assert (message.destination, message.body, message.queue) == ("https://a.example", "Hello World", None)
    assert (message.options, message.deduplication_id, message.json) == (None, None, UNSET)


@pytest.mark.parametrize("nothing", [{}, {"body": None, "queue": None}, {"body": "", "queue": ""}])
def test_absent_null_and_empty_mean_none(nothing: dict[str, Any]) -> None:
    """All three occur on the service's wire."""
    message = message_from_item({"destination": "g", "headers": None, **nothing})
    assert (message.body, message.queue, message.headers) == (None, None, None)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"headers": {}}, "`destination` is missing"),
        ({"destination": "g", "headres": {}}, "did you mean `headers`?"),
        ({"destination": "g", "deduplication_id": "x"}, "'deduplication_id' is unknown"),
        ({"destination": "g", "deliver_within": 5}, "'deliver_within' is unknown"),
        ({"destination": "g", "body": {"a": 1}}, "`body` is an object"),
        ({"destination": "g", "body": 5}, "`body` is a number"),
        ({"destination": "g", "body": False}, "`body` is a boolean"),
        ({"destination": "g", "headers": ["a"]}, "`headers` is an array"),
        ({"destination": "g", "headers": {"content-type": ["a", "b"]}}, "2 values"),
        ({"destination": "g", "headers": {"Upstash-Deduplication-Id": ["a", "b"]}}, "2 values"),
        ({"destination": "g", "headers": {"Upstash-Delay": ["5s", "6s"]}}, "2 values"),
        ({"destination": "g", "headers": {"Upstash-Label": [5]}}, "array of strings"),
        ("text", "an item is a JSON object, not a string"),
    ],
)
def test_a_wrong_item_is_refused_by_name(item: Any, text: str) -> None:
    """What the service would refuse, or silently ignore, does not get that far."""
    assert text in refused(message_from_item, item)


@pytest.mark.parametrize("target", [{"destination": "g"}, {"url": "https://a.example"}])
@given(data=st.binary(max_size=40))
def test_base64_carries_any_bytes(target: dict[str, Any], data: bytes) -> None:
    """In both kinds of line; nothing at all is no body."""
    line = {**target, "body_base64": base64.b64encode(data).decode()}
    assert line_to_message(line).body == (data or None)


@pytest.mark.parametrize("target", [{"destination": "g"}, {"url": "https://a.example"}])
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"body_base64": "YQ"}, "not base64"),
        ({"body_base64": "Y Q=="}, "not base64"),
        ({"body_base64": "Y-_="}, "not base64"),
        ({"body_base64": "ä==="}, "not base64"),
        ({"body_base64": 5}, "`body_base64` is a number"),
        ({"body_base64": "YQ==", "body": "a"}, "exclude each other"),
    ],
)
def test_wrong_base64_is_refused(target: dict[str, Any], body: dict[str, Any], text: str) -> None:
    """Guessing would deliver other bytes than were meant."""
    assert text in refused(line_to_message, {**target, **body})


def test_a_line_is_an_item_or_a_request() -> None:
    """`destination` marks the one, `url`, `url_group` or `api` the other."""
    assert line_to_message({"destination": "g", "body": "x"}).destination == "g"
    assert line_to_message({"url": "https://a.example", "body": {"a": 1}}).json == {"a": 1}
    assert line_to_message({"url_group": "g", "delay": 5}).options is not None
    assert line_to_message({"api": {"name": "llm"}}).destination == "api/llm"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"destination": "g", "url": "https://a"}, "`destination` (the service's item) or `url`"),
        ({"destination": "g", "api": {"name": "llm"}}, "or `api` (an SDK request), not both"),
        ({"body": "x"}, "the destination is missing"),
        ({}, "the destination is missing"),
        ({"destination": None}, "`destination` is missing"),
        ({"url": None}, "the destination is missing"),
        ([{"destination": "g"}], "a line is a JSON object, not an array"),
        (None, "not null"),
        (5, "not a number"),
        (True, "not a boolean"),
    ],
)
def test_a_line_of_neither_or_both_kinds_is_refused(line: Any, text: str) -> None:
    """A line that could be read in two ways is read in none."""
    assert text in refused(line_to_message, line)


@pytest.mark.parametrize(
    "line", [{"destination": "g", "body": "x"}, {"url": "https://a.example", "body": "x", "delay": 5}]
)
def test_a_line_that_failed_before_is_a_line_like_any_other(line: dict[str, Any]) -> None:
    """What is known of its failure is ignored in a file, and nowhere else."""
    failed = {**line, "_failure": {"line": 3, "error": "MessageRejected"}}
    before = copy.deepcopy(failed)
    assert line_to_message(failed).body == "x"
    assert line_to_message({**line, "_failure": None}).body == "x"
    assert failed == before
    reader = message_from_sdk if "url" in line else message_from_item
    assert "the key '_failure' is unknown" in refused(reader, failed)


@pytest.mark.parametrize("raw", ["_raw", "_raw_base64"])
def test_a_line_that_could_not_be_read_is_refused_with_the_cure(raw: str) -> None:
    """Its text is there to be corrected, not to be guessed at."""
    assert f"put the corrected text of `{raw}`" in refused(line_to_message, {raw: "{", "_failure": {}})
    assert "the destination is missing" in refused(line_to_message, {raw: "{"})


@given(
    st.dictionaries(
        st.sampled_from(sorted({*ITEM_KEYS, *SDK_KEYS, "other"})),
        st.none()
        | st.integers()
        | st.text(max_size=5)
        | st.lists(st.text(max_size=3), max_size=2)
        | st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.none(), max_size=2),
        max_size=6,
    )
)
def test_no_line_dies_of_anything_else(line: dict[str, Any]) -> None:
    """Whatever a file holds, a line becomes a message or a MessageInvalid."""
    with suppress(MessageInvalid):
        assert isinstance(line_to_message(line), Message)
