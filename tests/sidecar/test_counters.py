"""What the intake counts, what it says of failures, and how both are exported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dispatcher import (
    ConfigError,
    DeadlineExceeded,
    Dispatcher,
    DispatcherError,
    Message,
    MessageInvalid,
    MessageRejected,
    MessageTooLarge,
    OutcomeUnknown,
    QueueFull,
)
from dispatcher import errors as tree
from dispatcher.core.tally import OUTCOMES, REFUSALS
from dispatcher.errors import Attempt
from dispatcher.families import FAMILIES
from dispatcher.sidecar.counters import (
    FAILURE_WORDS,
    FAILURES_MAX,
    INTAKE_FAMILIES,
    TEXT_MAX,
    IntakeCounters,
    clean,
    families,
    intake_table,
)
from dispatcher.sidecar.exposition import Exposition
from dispatcher.testing import ManualClock
from tests.metrics_support import idle
from tests.test_metric_families import complaints

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = Message("https://example.com/hook?key=hidden", body="secret body")
TOKEN = "eyJVc2VySUQiOiJzZWNyZXQtdG9rZW4"


def rejected(reason: str = "invalid request", status: int = 400) -> MessageRejected:
    """A failure with the service's words."""
    return MessageRejected(reason, status=status, message=MESSAGE)


# ---------------------------------------------------------------------------------------------- counting


def test_requests_are_counted_by_route_and_code() -> None:
    """Every pair has its own count, in the order of the routes."""
    counters = IntakeCounters()
    for route, status in [("proxy", 200), ("publish", 429), ("publish", 200), ("publish", 200)]:
        counters.request(route, status)
    assert counters.by_route() == {"publish": {"200": 2, "429": 1}, "proxy": {"200": 1}}
    assert list(counters.by_route()) == ["publish", "proxy"]


def test_no_word_of_a_caller_becomes_a_key() -> None:
    """Unknown routes, codes and reasons are counted under one word, however many there are."""
    counters = IntakeCounters()
    for number in range(1_000):
        counters.request(f"/v2/{number}", 200)
        counters.request("publish", 600 + number)
        counters.alone(f"because {number}")
    assert counters.requests == {("other", 200): 1_000, ("publish", 0): 1_000}
    assert {key: one for key, one in counters.sent_alone.items() if one} == {"other": 1_000}


def test_gauges_rise_and_fall() -> None:
    """Callers that wait and connections are what is there now."""
    counters = IntakeCounters()
    for change in (1, 1, -1):
        counters.waiting(change)
        counters.connection(change)
    counters.connection(1)
    assert (counters.waiting_now, counters.connections_now) == (1, 2)


# ---------------------------------------------------------------------------------------------- failures


def errors_of(kind: type[DispatcherError]) -> Iterator[type[DispatcherError]]:
    """A class and all below it."""
    yield kind
    for one in kind.__subclasses__():
        yield from errors_of(one)


def test_every_error_a_message_can_end_in_has_its_word() -> None:
    """The words are those of the dispatcher's own counts."""
    ends = {
        one
        for base in (tree.AdmissionError, tree.DeliveryError)
        for one in errors_of(base)
        if not one.__subclasses__() and one.__module__ == tree.__name__
    }
    assert ends | {tree.OutboxError, tree.StoreFull} == FAILURE_WORDS.keys()
    own = {"store_full", "not_durable"}
    assert set(FAILURE_WORDS.values()) == set(OUTCOMES) - {"delivered", "withdrawn"} | set(REFUSALS) | own


def test_failures_are_counted_by_outcome() -> None:
    """A subclass by its parent's word, what is neither under `other`."""

    class OurOwn(MessageRejected):
        """An application's."""

    counters = IntakeCounters()
    counters.failed(rejected())
    counters.failed(OurOwn("no", status=400, message=MESSAGE))
    counters.failed(QueueFull(1, 1))
    counters.failed(ConfigError("field", 1, "nothing"))
    assert {key: one for key, one in counters.failures.items() if one} == {
        "rejected": 2,
        "full": 1,
        "other": 1,
    }


def test_a_failure_says_what_the_service_said() -> None:
    """Its status and words, what is certain, the last attempt; when it came last, and how often."""
    clock = ManualClock(1_000.0)
    counters = IntakeCounters(wall=clock)
    counters.failed(rejected("invalid destination url"))
    clock.advance(5)
    attempts = (Attempt(0.0, "500 oh", 0.1), Attempt(1.0, "timeout", 10.0))
    late = DeadlineExceeded("not in time", message=MESSAGE, certainty="unknown", attempts=attempts)
    counters.failed(late)
    counters.failed(late)
    assert [one.as_dict() for one in counters.recent_failures()] == [
        {
            "at": 1_005.0,
            "certainty": "unknown",
            "last": "timeout",
            "number": 2,
            "outcome": "deadline_exceeded",
            "reason": "not in time",
            "status": None,
        },
        {
            "at": 1_000.0,
            "certainty": "not_accepted",
            "last": "",
            "number": 1,
            "outcome": "rejected",
            "reason": "invalid destination url",
            "status": 400,
        },
    ]


def test_failures_that_differ_in_numbers_only_are_one() -> None:
    """A flood of messages that are too large leaves room for the rest; the latest text stands."""
    counters = IntakeCounters()
    counters.failed(rejected())
    for size in range(2_000_000, 2_010_000):
        counters.failed(MessageTooLarge(size, 1_048_576))
    latest, first = counters.recent_failures()
    assert (latest.number, first.number) == (10_000, 1)
    assert "2009999 bytes" in latest.reason


def test_recent_failures_are_bounded() -> None:
    """The oldest kinds go first, and one that comes again is recent again."""
    counters = IntakeCounters()
    names = [chr(0x4E00 + number) for number in range(FAILURES_MAX + 10)]
    for name in names[:FAILURES_MAX]:
        counters.failed(rejected(name))
    counters.failed(rejected(names[0]))
    for name in names[FAILURES_MAX:]:
        counters.failed(rejected(name))
    kept = [one.reason for one in counters.recent_failures()]
    assert len(kept) == FAILURES_MAX
    assert kept[-1] == names[11]
    assert names[0] in kept
    assert names[1] not in kept
    assert counters.failures["rejected"] == FAILURES_MAX + 11


def test_failures_show_no_secret() -> None:
    """Where the service quotes the destination or the token, neither query nor token is kept."""
    counters = IntakeCounters()
    counters.hide(TOKEN, "t", "another-token")
    counters.failed(rejected(f"bad url https://user:pass@example.com/hook?key=hidden#part ({TOKEN})"))
    counters.failed(OutcomeUnknown("?", message=MESSAGE, certainty="unknown"))
    counters.failed(MessageInvalid("`X` is another-token"))
    text = orjson.dumps(counters.snapshot()).decode()
    for secret in (TOKEN, "hidden", "pass", "another-token", "secret body"):
        assert secret not in text
    assert "bad url https://example.com/hook?… (***)" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, é and 漢字", "plain words, é and 漢字"),
        ("what? nothing", "what? nothing"),
        ("see 'https://a.b/c?d=e&f' now", "see 'https://a.b/c?…' now"),
        ("two\r\nlines\x00\x1b[31m", "two lines [31m"),
        ("a lone \ud800 surrogate", "a lone   surrogate"),
        ("x" * 1_000, "x" * (TEXT_MAX - 1) + "…"),
    ],
)
def test_texts_are_cleaned(text: str, shown: str) -> None:
    """No query, no control character, no more than is useful."""
    assert clean(text) == shown


@given(st.text(), st.text(), st.sampled_from([TOKEN, "a+b.c(d)e[f]", "\\1\\2\\3\\4"]))
@example("", TOKEN * 100, TOKEN)
@example("https://x/?", "", TOKEN)
def test_a_secret_is_never_shown(before: str, after: str, secret: str) -> None:
    """Whatever stands around it, and what is kept is short and can be written as JSON."""
    shown = clean(before + secret + after, (secret,))
    assert secret not in shown
    assert len(shown) <= TEXT_MAX
    assert orjson.loads(orjson.dumps(shown)) == shown


# ---------------------------------------------------------------------------------------------- exported


def scraped(text: str, parse: Any = parse_text) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Samples by name and labels."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in parse(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series, f"{sample.name} has a series twice"
            series[labels] = sample.value
    return found


def labels(**named: str) -> frozenset[tuple[str, str]]:
    """As `scraped` has them."""
    return frozenset(named.items())


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_everything_counted_is_exported(accept: str) -> None:
    """In both formats, with the dispatcher's own and the process's, by the client's own parser."""
    counters, dispatcher = IntakeCounters(), idle("sidecar")
    counters.request("publish", 200)
    counters.request("publish", 429)
    counters.alone("query")
    counters.failed(rejected())
    counters.waiting(1)
    counters.connection(1)
    body, content_type = Exposition(dispatcher, counters).render(accept)
    found = scraped(body.decode(), parse_openmetrics if accept else parse_text)
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    requests = found["dispatcher_intake_requests_total"]
    assert requests == {labels(route="publish", code=code): 1.0 for code in ("200", "429")}
    assert found["dispatcher_intake_alone_total"][labels(reason="query")] == 1
    assert found["dispatcher_intake_failed_messages_total"][labels(outcome="rejected")] == 1
    assert found["dispatcher_intake_waiting"] == {labels(): 1}
    assert found["dispatcher_intake_connections"] == {labels(): 1}
    assert {f"{one.name}_count" if one.kind == "histogram" else one.name for one in FAMILIES} <= found.keys()
    assert found["process_open_fds"][labels()] > 0


def test_fixed_label_values_are_exported_from_the_start() -> None:
    """A rate over a counter that appears with its first event would miss that event."""
    body, _ = Exposition(idle(), IntakeCounters()).render("")
    found = scraped(body.decode())
    for family in INTAKE_FAMILIES:
        if len(family.labels) == 1:
            expected = {labels(**{family.labels[0]: one}): 0.0 for one in family.values}
            assert found[family.name] == expected


def test_two_sidecars_in_one_process_do_not_meet() -> None:
    """Each has a registry of its own, also with dispatchers of one name."""
    one, other = IntakeCounters(), IntakeCounters()
    dispatchers: list[Dispatcher] = [idle(), idle()]
    expositions = [Exposition(each, each_of) for each, each_of in zip(dispatchers, (one, other), strict=True)]
    one.connection(1)
    texts = [exposition.render("")[0].decode() for exposition in expositions]
    assert [scraped(text)["dispatcher_intake_connections"] for text in texts] == [
        {labels(): 1},
        {labels(): 0},
    ]


def test_families_are_what_is_exported() -> None:
    """Names, kinds and help of the text are the declared ones, in the declared order."""
    text = Exposition(idle(), IntakeCounters()).render("")[0].decode()
    exported = re.findall(r"^# TYPE (dispatcher_intake\S+) (\S+)$", text, re.MULTILINE)
    assert exported == [(one.name, one.kind) for one in families()]
    for family in families():
        assert f"# HELP {family.name} {family.help}\n" in text


@pytest.mark.parametrize("family", INTAKE_FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_rules_of_prometheus(family: Any) -> None:
    """Prefix, `_total`, help, and no reserved word; none is one of the dispatcher's."""
    assert not list(complaints(family.name, family.kind, family.help, family.labels))
    assert family.name.startswith("dispatcher_intake_")
    assert family.name not in {one.name for one in FAMILIES}


def test_the_table_has_a_row_for_each_family() -> None:
    """One row a family, each with its help, its labels and their values."""
    lines = intake_table().splitlines()
    assert lines[:2] == ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    assert len(lines) == 2 + len(INTAKE_FAMILIES)
    for family, line in zip(INTAKE_FAMILIES, lines[2:], strict=True):
        assert line.startswith(f"| `{family.name}` | {family.kind} | ")
        assert all(f"`{label}`" in line for label in family.labels)
        assert all(value in line for value in family.values)
        assert line.endswith(f"| {family.help} |")
