"""Delivery options: what each compiles to, and what is refused."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.errors import MessageInvalid
from dispatcher.options import (
    OPTION_NAMES,
    FlowControl,
    Options,
)

SECRET = "s3cret"


def refused(call: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(MessageInvalid) as caught:
        call(*args, **keywords)
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "headers"),
    [
        ("content_type", "text/plain", {"Content-Type": "text/plain"}),
        ("method", "PATCH", {"Upstash-Method": "PATCH"}),
        ("forward", {"X-Tenant": "42"}, {"Upstash-Forward-X-Tenant": "42"}),
        ("forward", {"X-Count": 42}, {"Upstash-Forward-X-Count": "42"}),
        ("forward", {"upstash-forward-x": "1"}, {"Upstash-Forward-x": "1"}),
        ("callback", "https://a.example/?k=v", {"Upstash-Callback": "https://a.example/?k=v"}),
        ("callback_headers", {"Foo": "1"}, {"Upstash-Callback-Foo": "1"}),
        ("callback_headers", {"Upstash-Callback-Method": "PUT"}, {"Upstash-Callback-Method": "PUT"}),
        ("failure_callback", "http://b.example", {"Upstash-Failure-Callback": "http://b.example"}),
        ("failure_callback_headers", {"Retries": "0"}, {"Upstash-Failure-Callback-Retries": "0"}),
        ("retries", 0, {"Upstash-Retries": "0"}),
        ("retry_delay", "pow(2, retried)", {"Upstash-Retry-Delay": "pow(2, retried)"}),
        ("delay", 5, {"Upstash-Delay": "5s"}),
        ("delay", "1d10h30m", {"Upstash-Delay": "1d10h30m"}),
        ("not_before", 1_700_000_000, {"Upstash-Not-Before": "1700000000"}),
        ("not_before", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), {"Upstash-Not-Before": "1700000000"}),
        ("deduplication_id", "order-7", {"Upstash-Deduplication-Id": "order-7"}),
        ("content_based_deduplication", True, {"Upstash-Content-Based-Deduplication": "true"}),
        ("content_based_deduplication", False, {}),
        ("timeout", 30, {"Upstash-Timeout": "30s"}),
        ("timeout", "2m", {"Upstash-Timeout": "2m"}),
        ("label", "a", {"Upstash-Label": "a"}),
        ("label", ("a", "b"), {"Upstash-Label": "a,b"}),
        ("redact", {"body": True}, {"Upstash-Redact-Fields": "body"}),
        ("redact", {"header": True}, {"Upstash-Redact-Fields": "header"}),
        (
            "redact",
            {"body": True, "header": ["Authorization", "X-Key"]},
            {"Upstash-Redact-Fields": "body,header[Authorization],header[X-Key]"},
        ),
        ("redact", {"body": False, "header": []}, {}),
        (
            "flow_control",
            {"key": "k", "parallelism": 10, "rate": 20, "period": 60},
            {
                "Upstash-Flow-Control-Key": "k",
                "Upstash-Flow-Control-Value": "parallelism=10, rate=20, period=60s",
            },
        ),
        (
            "flow_control",
            FlowControl("k", rate=3, period="7d"),
            {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "rate=3, period=7d"},
        ),
        ("headers", {"upstash-delay": "9s"}, {"Upstash-Delay": "9s"}),
        ("headers", {"content-type": "a/b"}, {"Content-Type": "a/b"}),
        ("headers", {"Upstash-Workflow-RunId": "wfr"}, {"Upstash-Workflow-RunId": "wfr"}),
    ],
)
def test_each_option_compiles_to_its_documented_header(
    option: str, value: Any, headers: dict[str, str]
) -> None:
    """An option becomes exactly the headers that the service documents, in its capitalisation."""
    assert dict(Options(**{option: value}).compiled) == headers


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("content_type", "", "non-empty"),
        ("content_type", 5, "int"),
        ("method", "post", "GET, POST, PUT, PATCH, DELETE"),
        ("method", ["GET"], "allowed are"),
        ("forward", [("a", "b")], "mapping"),
        ("forward", {"": "b"}, "empty"),
        ("forward", {"Upstash-Forward-": "b"}, "empty"),
        ("forward", {7: "b"}, "int"),
        ("forward", {"X Y": "b"}, "U+0020"),
        ("forward", {"X": b"b"}, "bytes"),
        ("forward", {"X": True}, "bool"),
        ("forward", {"X": "a\r\nb"}, "U+000D"),
        ("forward", {"X-A": "1", "x-a": "2"}, "twice"),
        ("callback", "example.com/x", "http:// or https://"),
        ("callback", "ftp://example.com/x", "http:// or https://"),
        ("failure_callback", 7, "http:// or https://"),
        ("retries", -1, ">= 0"),
        ("retries", True, "an int"),
        ("retries", "3", "an int"),
        ("retry_delay", " ", "non-empty"),
        ("retry_delay", 1000, "int"),
        ("delay", "5", "1d10h30m"),
        ("delay", "5x", "1d10h30m"),
        ("delay", "", "1d10h30m"),
        ("delay", -1, "1d10h30m"),
        ("delay", True, "1d10h30m"),
        ("delay", 1.5, "1d10h30m"),
        ("delay", "٣s", "1d10h30m"),
        ("not_before", 1.5, "an int"),
        ("not_before", True, "an int"),
        ("not_before", -1, ">= 0"),
        ("not_before", 1_700_000_000_000, "milliseconds"),
        ("not_before", datetime(2030, 1, 1), "time zone"),  # noqa: DTZ001 - the naive one is the point
        ("deduplication_id", "a:b", "':'"),
        ("deduplication_id", "a b", "U+0020"),
        ("deduplication_id", "", "empty"),
        ("content_based_deduplication", "true", "True or False"),
        ("timeout", "soon", "1d10h30m"),
        ("flow_control", {"rate": 1}, "`key`"),
        ("flow_control", {"key": " ", "rate": 1}, "`key`"),
        ("flow_control", {"key": "k"}, "`parallelism`, `rate`"),
        ("flow_control", {"key": "k", "period": 5}, "`parallelism`, `rate`"),
        ("flow_control", {"key": "k", "rate": 0}, ">= 1"),
        ("flow_control", {"key": "k", "parallelism": True}, ">= 1"),
        ("flow_control", {"key": "k", "rate": 1, "period": "8d"}, "7 days"),
        ("flow_control", {"key": "k", "rate": 1, "period": 604_801}, "7 days"),
        ("flow_control", {"key": "k", "rate": 1, "period": 0}, "1 second"),
        ("flow_control", {"key": "k", "rates": 1}, "'rates' is unknown"),
        ("flow_control", "k", "FlowControl"),
        ("label", "", "non-empty"),
        ("label", [], "one or more"),
        ("label", ["a,b"], "comma"),
        ("label", ["a", 5], "int"),
        ("redact", {"header": "Authorization"}, "list of names"),
        ("redact", {"header": ["a b"]}, "header's name"),
        ("redact", {"body": "yes"}, "`body`"),
        ("redact", {"headers": True}, "body, header"),
        ("redact", True, "mapping"),
        ("headers", {"Hello": "1"}, 'Options(forward={"Hello": …})'),
        ("headers", {"Upstash-Cron": "* * * * *"}, "schedules"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(option: str, value: Any, text: str) -> None:
    """Each wrong value raises MessageInvalid whose text says what would be right."""
    assert text in refused(Options, **{option: value})


def test_none_leaves_any_option_out() -> None:
    """`None` leaves any option out, so requests of the SDK pass through unchanged."""
    assert dict(Options(**dict.fromkeys(OPTION_NAMES)).compiled) == {}
    assert repr(Options()) == "<Options without any>"


def test_a_header_given_by_an_option_and_raw_is_refused() -> None:
    """Two sources for one header are an error, in whatever capitals."""
    assert "`upstash-delay` is given twice" in refused(Options, delay=3, headers={"upstash-delay": "4s"})


def test_delay_and_not_before_may_stand_together() -> None:
    """The service has a rule for both (Not-Before wins), so both pass."""
    assert len(Options(delay=1, not_before=2).compiled) == 2


def test_options_are_frozen_and_equal_only_to_themselves() -> None:
    """They are compiled once, so nothing about them may change afterwards."""
    options = Options(delay=5)
    with pytest.raises(AttributeError, match="immutable"):
        options.is_delayed = False
    with pytest.raises(AttributeError, match="immutable"):
        del options.compiled
    with pytest.raises(TypeError):
        options.compiled["Upstash-Delay"] = "6s"  # type: ignore[index]
    assert options != Options(delay=5)
    assert len({options, Options(delay=5)}) == 2
    assert not hasattr(options, "__dict__")


def test_options_take_only_keywords() -> None:
    """Eighteen options in a row would be guesswork."""
    with pytest.raises(TypeError):
        Options("text/plain")  # type: ignore[call-arg]


def test_options_do_not_follow_the_mapping_they_were_made_from() -> None:
    """What is compiled is a copy."""
    forward = {"A": "1"}
    options = Options(forward=forward)
    forward["A"] = "2"
    assert options.compiled["Upstash-Forward-A"] == "1"


def test_the_cache_is_empty_and_each_options_own() -> None:
    """The slot for the wire's encoded prefixes starts empty, in a copy too."""
    options = Options(delay=5)
    options.cache["x"] = b"y"
    assert Options(delay=5).cache == {}
    assert copy.copy(options).cache == {}


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_options_survive_copying_and_pickling(twin: Any) -> None:
    """A failed message is an attribute of its error, and errors are sent between processes."""
    options = Options(delay=5, forward={"A": "1"}, content_based_deduplication=True)
    other = twin(options)
    assert dict(other.compiled) == dict(options.compiled)
    assert (other.is_delayed, other.is_content_deduplicated) == (True, True)
    assert repr(other) == repr(options) == "<Options forward, delay, content_based_deduplication>"


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, (False, False, False)),
        ({"deduplication_id": "x"}, (True, False, False)),
        ({"headers": {"upstash-deduplication-id": "x"}}, (True, False, False)),
        ({"content_based_deduplication": True}, (False, True, False)),
        ({"headers": {"UPSTASH-Content-Based-Deduplication": "True"}}, (False, True, False)),
        ({"headers": {"Upstash-Content-Based-Deduplication": "false"}}, (False, False, False)),
        ({"delay": 0}, (False, False, True)),
        ({"not_before": 1}, (False, False, True)),
        ({"headers": {"upstash-delay": "1s"}}, (False, False, True)),
    ],
)
def test_what_the_core_asks_is_known_from_the_headers(
    keywords: dict[str, Any], expected: tuple[bool, bool, bool]
) -> None:
    """Ids, content deduplication and delays are seen whether given as options or as raw headers."""
    o = Options(**keywords)
    assert (o.has_deduplication_id, o.is_content_deduplicated, o.is_delayed) == expected


def test_repr_names_the_options_and_shows_no_value() -> None:
    """Headers may be secrets."""
    options = Options(forward={"Authorization": SECRET}, callback=f"https://x.example/?t={SECRET}")
    assert repr(options) == "<Options forward, callback>"


@pytest.mark.parametrize(
    "keywords",
    [
        {"forward": {"Authorization": f"{SECRET}\n"}},
        {"forward": {f"Authorization: {SECRET}": "x"}},
        {"callback": f"x.example/?token={SECRET}"},
        {"callback": f"ftp://user:{SECRET}@x.example/"},
        {"headers": {"Authorization": SECRET}},
        {"deduplication_id": f"{SECRET}:1"},
    ],
)
def test_a_refusal_shows_no_secret(keywords: dict[str, Any]) -> None:
    """Texts of errors end in logs; header values, queries and user information stay out of them."""
    assert SECRET not in refused(Options, **keywords)
