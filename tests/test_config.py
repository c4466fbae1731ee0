"""The configuration: defaults, checks of values, names, table and flags."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.config import (
    BatchSettings,
    Config,
    LimitSettings,
    Queue,
    QueueSettings,
    RetrySettings,
    TransportSettings,
    add_settings_arguments,
    overrides_from,
    settings,
    settings_table,
)
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret"


def refused(call: Any, *args: Any, **keywords: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call(*args, **keywords)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    return caught.value


def value_at(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_the_defaults_are_those_of_the_design() -> None:
    """Each default, in one place, by its dotted name."""
    config = Config("t")
    assert {one.path: value_at(config, one.path) for one in settings()} == {
        "token": "t",
        "url": "https://qstash.upstash.io",
        "deduplication": "auto",
        "after_window": "fail",
        "deliver_within": 120.0,
        "drain_within": 25.0,
        "batch.max_messages": 100,
        "batch.max_bytes": 1_000_000,
        "batch.linger": 0.010,
        "batch.soft_slots": 2,
        "batch.max_message_bytes": 1_048_576,
        "batch.quantum_bytes": 16_384,
        "queue.max_messages": 10_000,
        "queue.max_bytes": 67_108_864,
        "queue.resume_below": 0.75,
        "retry.base": 0.050,
        "retry.throttle_base": 1.0,
        "retry.max_delay": 20.0,
        "retry.max_attempts": None,
        "retry.budget": 500,
        "retry.error_entry_attempts": 5,
        "limit.mode": "adaptive",
        "limit.latency_trim": False,
        "limit.max_in_flight": 64,
        "limit.isolations": 2,
        "transport.attempt_timeout": 10.0,
        "transport.connect_timeout": 3.0,
        "transport.max_reply_bytes": 67_108_864,
        "transport.trust_env": False,
        "transport.ca_file": None,
    }


def test_a_config_is_frozen_comparable_and_picklable() -> None:
    """It is handed between processes and compared in tests; nothing changes it."""
    config = Config("t", retry=RetrySettings(max_attempts=3))
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert hash(config) == hash(copy.deepcopy(config))
    assert config != Config("t") != Config("u")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.url = "https://x"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.retry.base = 1.0  # type: ignore[misc]


def test_constructing_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `Config.load` looks at the environment."""
    monkeypatch.setenv("QSTASH_URL", "https://other.example")
    monkeypatch.setenv("DISPATCHER_RETRY_MAX_ATTEMPTS", "3")
    assert Config("t") == Config(token="t", url="https://qstash.upstash.io")


def test_repr_masks_the_token_and_shows_what_differs() -> None:
    """One line, for logs."""
    assert repr(Config(SECRET)) == repr(Config(SECRET, deliver_within=120)) == "<Config token=***>"
    config = Config(SECRET, deliver_within=5, retry=RetrySettings(max_attempts=3))
    assert repr(config) == "<Config token=*** deliver_within=5 retry.max_attempts=3>"
    assert SECRET not in str(config) + f"{config!r:>200}"


def test_an_int_becomes_a_float_where_seconds_are_wanted() -> None:
    """`deliver_within=5` and `5.0` are the same configuration."""
    config = Config("t", deliver_within=5)
    assert isinstance(config.deliver_within, float)
    assert config == Config("t", deliver_within=5.0)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        *((BatchSettings, "max_messages", bad) for bad in (0, 10_001, 1.5, True, "100", None)),
        *((BatchSettings, "max_bytes", bad) for bad in (0, 100_000_001)),
        *((BatchSettings, "linger", bad) for bad in (-0.001, 61, float("nan"), float("inf"), True, "0.01")),
        (BatchSettings, "linger", 10**400),
        *((BatchSettings, "soft_slots", bad) for bad in (-1, 1_025)),
        *((BatchSettings, "max_message_bytes", bad) for bad in (0, 67_108_865)),
        (BatchSettings, "quantum_bytes", 0),
        (QueueSettings, "max_messages", 0),
        (QueueSettings, "max_bytes", 0),
        *((QueueSettings, "resume_below", bad) for bad in (0, 1.01, -1)),
        *((RetrySettings, "base", bad) for bad in (0, 3_601, float("inf"))),
        (RetrySettings, "throttle_base", 0),
        (RetrySettings, "max_delay", 0),
        *((RetrySettings, "max_attempts", bad) for bad in (0, -1, True, 1.0, "none")),
        *((RetrySettings, "error_entry_attempts", bad) for bad in (0, None)),
        *((LimitSettings, "max_in_flight", bad) for bad in (0, 1_025)),
        *((LimitSettings, "isolations", bad) for bad in (0, 65)),
        *((TransportSettings, "attempt_timeout", bad) for bad in (0, -1, None)),
        (TransportSettings, "connect_timeout", 0),
        (TransportSettings, "max_reply_bytes", 0),
        *((TransportSettings, "trust_env", bad) for bad in (1, "true", None)),
        *((TransportSettings, "ca_file", bad) for bad in ("", 7)),
    ],
)
def test_a_wrong_value_is_refused_by_its_dotted_name(section: Any, field: str, value: Any) -> None:
    """Out of range or of another type: the error names the setting and what is allowed."""
    error = refused(section, **{field: value})
    assert error.field == f"{section.__name__.removesuffix('Settings').lower()}.{field}"
    assert error.value is value or error.value == value
    assert error.allowed.startswith("allowed is ")


def test_the_edges_of_the_ranges_are_allowed() -> None:
    """A range's ends belong to it, unless it says `>`."""
    BatchSettings(max_messages=1, max_bytes=100_000_000, linger=0, soft_slots=0, quantum_bytes=1)
    QueueSettings(max_messages=1, max_bytes=1, resume_below=1)
    RetrySettings(base=1e-9, max_delay=3_600, max_attempts=1)
    LimitSettings(max_in_flight=1, isolations=1)
    Config("t", drain_within=0)


def test_the_allowed_text_says_type_range_and_unit() -> None:
    """What to write instead stands in the error."""
    assert str(refused(BatchSettings, max_messages=0)) == (
        "batch.max_messages: 0 is not allowed; allowed is an int, 1 to 10,000 messages"
    )
    assert refused(RetrySettings, max_attempts=0).allowed == "allowed is an int, ≥ 1 attempts, or none"
    assert refused(QueueSettings, resume_below=2).allowed == "allowed is a number, > 0, ≤ 1"
    assert refused(Config, "t", deduplication="on").allowed == "allowed is one of auto, off"
    assert refused(TransportSettings, trust_env=1).allowed == "allowed is true or false"


@pytest.mark.parametrize(
    "token", ["", " ", f"{SECRET} ", f"Bearer {SECRET}", f"{SECRET}\n", f"{SECRET}é", 7, None]
)
def test_a_wrong_token_is_refused_unseen(token: Any) -> None:
    """Empty, with white space or control characters, or no text; never shown."""
    error = refused(Config, token)
    assert error.field == "token"
    assert error.value == ("***" if token is not None else None)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "non-empty"),
        (None, "non-empty"),
        ("qstash.upstash.io", "with a host"),
        ("ftp://qstash.upstash.io", "with a host"),
        ("https://", "with a host"),
        ("https://:8080", "with a host"),
        ("https://a b", "with a host"),
        ("https://a\n", "with a host"),
        ("https://bücher.example", "with a host"),
        ("https://a:port", "a port that is a number"),
        ("https://a:70000", "a port that is a number"),
        ("https://[::1", "a port that is a number"),
        (f"https://user:{SECRET}@a", "without user information"),
        (f"https://{SECRET}@a", "without user information"),
        (f"https://a/?token={SECRET}", "without user information, query"),
        (f"https://a/#{SECRET}", "without user information, query"),
        (f"user:{SECRET}@a", "with a host"),
        ("https://a/v2", "the base URL, https://a;"),
        ("https://a/v2/", "the base URL, https://a;"),
        ("https://a/v2/batch", "the base URL, https://a;"),
        ("https://a/v2/publish/", "the base URL, https://a;"),
        ("https://a/p/v2/enqueue", "the base URL, https://a/p;"),
        ("https://a/v2/publish/https://b", "the base URL, https://a;"),
    ],
)
def test_a_wrong_url_is_refused_with_the_cure(url: Any, text: str) -> None:
    """The common mistakes, the path of an endpoint first, are named with what to write instead."""
    error = refused(Config, "t", url)
    assert error.field == "url"
    assert text in error.allowed


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://a.example/", "https://a.example"),
        ("http://127.0.0.1:8089", "http://127.0.0.1:8089"),
        ("http://[::1]:8089//", "http://[::1]:8089"),
        ("https://a.example/prefix/", "https://a.example/prefix"),
        ("https://a.example/v2x", "https://a.example/v2x"),
        ("HTTPS://A.example", "HTTPS://A.example"),
    ],
)
def test_a_url_is_kept_without_its_trailing_slash(url: str, kept: str) -> None:
    """Paths are appended to it, and a prefix is allowed."""
    assert Config("t", url).url == kept


def test_a_message_must_find_room() -> None:
    """A message above what may be held at all could wait for ever."""
    error = refused(Config, "t", queue=QueueSettings(max_bytes=1_000))
    assert (error.field, error.value) == ("batch.max_message_bytes", 1_048_576)
    assert "queue.max_bytes (1,000)" in error.allowed
    Config("t", queue=QueueSettings(max_bytes=1_000), batch=BatchSettings(max_message_bytes=1_000))


def test_a_section_of_another_kind_is_refused() -> None:
    """Mappings are for `Config.load`."""
    assert refused(Config, "t", retry={"base": 1}).field == "retry"
    assert refused(Config, "t", retry=BatchSettings()).field == "retry"


def test_names_are_unique_and_every_field_is_a_setting() -> None:
    """No spelling is ambiguous, and no field is left without meaning, range or unit."""
    every = settings()
    for spelling in ("path", "env", "flag", "flat"):
        assert len({getattr(one, spelling) for one in every}) == len(every)
    sections = (BatchSettings, QueueSettings, RetrySettings, LimitSettings, TransportSettings)
    own = len(dataclasses.fields(Config)) - len(sections) - 1  # `queues` has names of the user's
    assert len(every) == own + sum(len(dataclasses.fields(section)) for section in sections)
    for one in every:
        assert one.meaning.endswith(".")
        assert one.range or one.kind is str
        assert not one.advice or one.advice.endswith(".")


def test_a_setting_knows_its_spellings() -> None:
    """The record behind README, flags and errors."""
    one = next(one for one in settings() if one.path == "retry.max_attempts")
    assert (one.env, one.flag) == ("DISPATCHER_RETRY_MAX_ATTEMPTS", "--retry-max-attempts")
    assert (one.type, one.default, one.range, one.unit) == ("int or none", None, "≥ 1", "attempts")


def test_the_table_has_a_row_for_each_setting() -> None:
    """GitHub Markdown: a head, a rule, and one row of four cells for each."""
    lines = settings_table().splitlines()
    assert len(lines) == 2 + len(settings()) + len(dataclasses.fields(Queue))
    assert "| `queues.NAME.strict` | false | true, false |" in settings_table()
    assert all(line.replace("\\|", "").count("|") == 5 for line in lines)
    assert "| `batch.linger` | 0.01 s | 0 to 60 |" in settings_table()
    assert "| `token` (`QSTASH_TOKEN`) | required | text |" in settings_table()
    assert "| `retry.max_attempts` | none | ≥ 1 or none |" in settings_table()


def test_flags_leave_no_trace_unless_given_and_never_take_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """Absent flags must not override the environment; a token on a command line is seen by everyone."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--other")
    add_settings_arguments(parser)
    assert overrides_from(parser.parse_args(["--other", "x"])) == {}
    given = overrides_from(parser.parse_args(["--retry-max-attempts", "none", "--batch-linger", "0.5"]))
    assert given == {"retry_max_attempts": None, "batch_linger": 0.5}
    assert "--token" not in parser.format_help()
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--batch-linger", "soon"])
    assert "'soon' is not allowed; allowed is a number, 0 to 60 s" in capsys.readouterr().err


def test_queues_from_every_source(tmp_path: Path) -> None:
    """A `Queue`, a mapping, or a TOML table; each under the upstream queue's own name."""
    wanted = {"billing": Queue(strict=True, on_failure="stop"), "mail": Queue()}
    assert Config("t", queues=wanted).queues == wanted
    mapped = {"billing": {"strict": True, "on_failure": "stop"}, "mail": {}}
    assert Config.load(env={}, token="t", queues=mapped).queues == wanted
    file = tmp_path / "settings.toml"
    file.write_text('[queues.billing]\nstrict = true\non_failure = "stop"\n[queues.mail]\n', encoding="utf-8")
    loaded = Config.load(env={"QSTASH_TOKEN": "t"}, file=file)
    assert loaded.queues == wanted
    assert "queues.billing=" in repr(loaded)


@pytest.mark.parametrize(
    ("queues", "field", "allowed"),
    [
        ({"billing": {"strictly": True}}, "queues.billing", "on_failure, strict"),
        ({"billing": {"strict": "yes"}}, "queues.billing.strict", "true or false"),
        ({"billing": {"on_failure": "halt"}}, "queues.billing.on_failure", "one of continue, stop"),
        ({"billing": True}, "queues.billing", "on_failure, strict"),
        ({"a b": {}}, "queues", "white space"),
        (["billing"], "queues", "mapping"),
    ],
)
def test_a_wrong_queue_is_refused(queues: object, field: str, allowed: str) -> None:
    """The error names the queue, what it was, and what would be right."""
    error = refused(Config.load, env={}, token="t", queues=queues)
    assert error.field == field
    assert allowed in error.allowed
