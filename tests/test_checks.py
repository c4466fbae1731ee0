"""The checks of single headers, ids, queues and destinations, made on every admission."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import checks
from dispatcher import options as options_module
from dispatcher.errors import MessageInvalid
from dispatcher.options import (
    check_deduplication_id,
    check_destination,
    check_header,
    check_queue,
    says_true,
)

SECRET = "s3cret"


def refused(call: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(MessageInvalid) as caught:
        call(*args, **keywords)
    return str(caught.value)


@pytest.mark.parametrize("value", ["true", "True", " TRUE "])
def test_true_is_true_in_any_capitals(value: str) -> None:
    """One official SDK writes `True`."""
    assert says_true(value)
    assert not says_true("1" + value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("Hello", "x", 'would not be forwarded: `Options(forward={"Hello": …})`'),
        ("Upstash-", "x", "would not be forwarded"),
        ("", "x", "empty"),
        (7, "x", "int"),
        ("Upstash-A B", "x", "U+0020"),
        ("Upstash-Ä", "x", "U+00C4"),
        ("Content-Type\n", "x", "U+000A"),
        ("Upstash-A", 7, "int"),
        ("Upstash-A", None, "NoneType"),
        ("Upstash-A", "a\rb", "U+000D"),
        ("Upstash-A", "a\nb", "U+000A"),
        ("Upstash-A", "a\0b", "U+0000"),
        ("Upstash-A", "\udc80", "U+DC80"),
        ("upstash-deduplication-id", "a:b", "':'"),
        ("upstash-deduplication-id", "a\tb", "U+0009"),
        ("UPSTASH-CRON", "* * * * *", "schedules"),
    ],
)
def test_a_header_that_would_spoil_the_batch_is_refused(name: Any, value: Any, text: str) -> None:
    """One such item would make the service refuse its neighbours too."""
    assert text in refused(check_header, name, value)


def test_without_cure_the_text_stays_general() -> None:
    """An intake whose callers write no Python does not speak of `Options`."""
    text = refused(check_header, "Hello", "x", cure=False)
    assert "Options" not in text
    assert "`Content-Type` and `Upstash-*`" in text


@pytest.mark.parametrize(
    "name", ["content-type", "Content-Type", "upstash-x", "UPSTASH-New-Thing", "Upstash-!#$"]
)
@pytest.mark.parametrize("value", ["", "plain", "grüße 你好", "a\tb", "x" * 10_000])
def test_known_and_unknown_service_headers_pass(name: str, value: str) -> None:
    """There is no allow-list: undocumented `Upstash-*` headers are in use."""
    check_header(name, value)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\t")))
def test_any_text_but_controls_is_a_header_value(value: str) -> None:
    """A header in a batch is a JSON string: any Unicode text fits."""
    check_header("Upstash-Forward-X", value)


@given(st.text(min_size=1), st.sampled_from("\r\n\0\x01\x7f\ud800\udfff"), st.text())
def test_a_bad_character_is_found_wherever_it_stands(before: str, bad: str, after: str) -> None:
    """The short cut for printable text lets nothing through."""
    refused(check_header, "Upstash-Forward-X", before + bad + after)


@pytest.mark.parametrize("value", ["a", "order-7", "ü", "a/b?c", "x" * 1_000])
def test_ids_without_colon_and_white_space_pass(value: str) -> None:
    """Everything else may be an id."""
    check_deduplication_id(value)


@pytest.mark.parametrize("value", ["", "a:b", "a b", "a\u00a0b", "a\u2003b", "\x7f", "\ud800", None, 7, b"a"])
def test_ids_the_service_refuses_are_refused(value: Any) -> None:
    """They would draw 400 for the whole batch."""
    refused(check_deduplication_id, value)


def test_queue_names_are_checked() -> None:
    """A queue's name stands in a path."""
    for good in ("billing", "a.b_c-d:e", "größe"):
        check_queue(good)
    for bad in ("", "a/b", "a b", "a\n", "\x00", None, 7):
        refused(check_queue, bad)


@pytest.mark.parametrize(
    "destination",
    [
        *("https://example.com", "http://localhost:3000/a//b?c=d#e", "HTTPS://EXAMPLE.COM/"),
        *("https://user:pw@example.com/x@y", "http://[::1]:8080/", "https://bücher.example/ü?q=ä"),
        *("my-group", "my_group.v2", "group", "example.com", "api/llm", "api/email?x=https://y"),
    ],
)
def test_urls_groups_and_routes_are_destinations(destination: str) -> None:
    """A URL with a scheme, a URL group's name, or a provider's route."""
    check_destination(destination)


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        ("", "empty"),
        (None, "NoneType"),
        (b"https://a", "bytes"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("http://:80/", "no host"),
        ("https://user@/x", "no host"),
        ("https://?x", "no host"),
        ("ftp://example.com", "only http:// and https://"),
        ("ws://example.com", "only http:// and https://"),
        ("httpſ://example.com", "only http:// and https://"),
        ("example.com/hook", "https://example.com/hook"),
        ("localhost:3000", "https://localhost:3000"),
        ("group?x=1", "scheme"),
        ("group#x", "scheme"),
        ("/path", "scheme"),
        ("api/", "`api/llm`"),
        ("https://example.com/a b", "U+0020"),
        ("https://example.com/\n", "U+000A"),
        ("my group", "U+0020"),
        ("https://exa\u2003mple.com", "U+2003"),
        ("https://example.com/\ud800", "U+D800"),
    ],
)
def test_what_is_no_destination_is_refused_with_the_cure(destination: Any, text: str) -> None:
    """The commonest mistakes (no scheme, a blank) are named as what they are."""
    assert text in refused(check_destination, destination)


@pytest.mark.parametrize(
    "destination",
    [
        f"example.com/x?token={SECRET}",
        f"user:{SECRET}@localhost:3000/x",
        f"ftp://user:{SECRET}@example.com/?{SECRET}",
        f"group#{SECRET}",
    ],
)
def test_a_refused_destination_shows_no_secret(destination: str) -> None:
    """Neither query nor fragment nor user information."""
    assert SECRET not in refused(check_destination, destination)


@pytest.mark.parametrize("module", [checks, options_module])
def test_the_modules_are_pure(module: Any) -> None:
    """The core calls them on every admission: no clock, loop, randomness or log."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in plain | froms} & {"asyncio", "time", "os", "random", "logging"}
