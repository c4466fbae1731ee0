"""Where a configuration comes from: keywords, environment, file, flags, and which of them wins."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.config import (
    Config,
    LimitSettings,
    RetrySettings,
    add_settings_arguments,
    overrides_from,
    settings,
)
from dispatcher.errors import ConfigError
from dispatcher.sidecar.settings import ServeSettings, SidecarConfig

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret"
TOKEN = {"QSTASH_TOKEN": SECRET}


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


def test_load_takes_the_nearest_source(tmp_path: Path) -> None:
    """Keywords before the environment before the file before the defaults."""
    file = tmp_path / "dispatcher.toml"
    file.write_text(
        "deliver_within = 1\n[retry]\nmax_attempts = 1\nbase = 1\nmax_delay = 1\n[limit]\nisolations = 1\n"
    )
    env = {**TOKEN, "DISPATCHER_RETRY_BASE": "2", "DISPATCHER_RETRY_MAX_DELAY": "2"}
    config = Config.load(env=env, file=file, retry={"max_delay": 3}, limit_isolations=4)
    assert config == Config(
        SECRET,
        deliver_within=1,
        retry=RetrySettings(max_attempts=1, base=2, max_delay=3),
        limit=LimitSettings(isolations=4),
    )


def test_load_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`Dispatcher()` needs nothing but a token in the environment, and finds its file there."""
    file = tmp_path / "d.toml"
    file.write_text("[transport]\ntrust_env = true\n")
    monkeypatch.setenv("QSTASH_TOKEN", SECRET)
    monkeypatch.setenv("QSTASH_URL", "https://eu.example/")
    monkeypatch.setenv("DISPATCHER_CONFIG", str(file))
    config = Config.load()
    assert (config.token, config.url, config.transport.trust_env) == (SECRET, "https://eu.example", True)


SAMPLES: dict[str, tuple[str, Any]] = {
    "token": ("tok", "tok"),
    "url": ("https://u.example", "https://u.example"),
    "deduplication": ("off", "off"),
    "after_window": ("resend", "resend"),
    "transport.trust_env": ("Yes", True),
    "transport.ca_file": ("/etc/ca.pem", "/etc/ca.pem"),
    "queue.resume_below": ("0.5", 0.5),
    "retry.budget": ("70", 70),
    "limit.mode": ("fixed", "fixed"),
    "limit.latency_trim": ("on", True),
}


@pytest.mark.parametrize("one", settings(), ids=lambda one: one.path)
def test_each_setting_has_four_spellings(one: Any, tmp_path: Path) -> None:
    """Attribute, environment, TOML and flag all reach the same field."""
    text, value = SAMPLES.get(one.path, ("7", 7))
    section, _, name = one.path.rpartition(".")
    # Messages of 1 MiB need room, so a small room goes with small messages.
    also: dict[str, Any] = {"batch_max_message_bytes": 1} if one.path == "queue.max_bytes" else {}
    from_env = Config.load(env={**TOKEN, one.env: text}, **also)
    file = tmp_path / "d.toml"
    written = {True: "true"}.get(value, repr(value)) if not isinstance(value, str) else f'"{value}"'
    file.write_text((f"[{section}]\n" if section else "") + f"{name} = {written}\n")
    environment = {} if one.path == "token" else TOKEN
    from_file = Config.load(env=environment, file=file, **also)
    assert from_env == from_file
    assert value_at(from_env, one.path) == value != one.default
    if not one.is_secret:
        parser = argparse.ArgumentParser()
        add_settings_arguments(parser)
        given = overrides_from(parser.parse_args([one.flag, text]))
        assert Config.load(env=TOKEN, **also, **given) == from_env


@pytest.mark.parametrize("text", ["", "none", "None", " none "])
def test_none_can_be_written(text: str, tmp_path: Path) -> None:
    """An optional setting can be switched back to none from a nearer source."""
    file = tmp_path / "d.toml"
    file.write_text("[retry]\nmax_attempts = 3\n")
    env = {**TOKEN, "DISPATCHER_RETRY_MAX_ATTEMPTS": text}
    assert Config.load(env=env, file=file).retry.max_attempts is None
    assert Config.load(env=TOKEN, file=file, retry_max_attempts=None).retry.max_attempts is None
    file.write_text(f'[retry]\nmax_attempts = "{text}"\n')
    assert (
        Config.load(env={**TOKEN, "DISPATCHER_RETRY_MAX_ATTEMPTS": "none"}, file=file).retry
        == RetrySettings()
    )


def test_empty_variables_and_none_count_as_absent() -> None:
    """Compose files and wrappers pass on what they do not have."""
    env = {**TOKEN, "QSTASH_URL": "", "DISPATCHER_DELIVER_WITHIN": " ", "DISPATCHER_CONFIG": ""}
    assert Config.load(env=env, url=None, deliver_within=None) == Config(SECRET)


def test_keywords_may_be_flat_nested_or_records() -> None:
    """All three are natural to write in Python."""
    expected = Config(SECRET, retry=RetrySettings(max_attempts=3))
    assert Config.load(env=TOKEN, retry_max_attempts=3) == expected
    assert Config.load(env=TOKEN, retry={"max_attempts": 3}) == expected
    assert Config.load(env=TOKEN, retry=RetrySettings(max_attempts=3)) == expected
    dotted: dict[str, Any] = {"retry.max_attempts": 3}
    assert Config.load(env=TOKEN, **dotted) == expected
    assert refused(Config.load, env=TOKEN, retry_max_attempts="3").field == "retry.max_attempts"
    assert refused(Config.load, env=TOKEN, retry=3).allowed == "wanted is a section: names and values"


@pytest.mark.parametrize("env", [{}, {"QSTASH_TOKEN": ""}, {"QSTASH_TOKEN": "  "}])
def test_a_missing_token_says_what_to_set(env: dict[str, str]) -> None:
    """The first error of every newcomer."""
    error = refused(Config.load, env=env)
    assert error.field == "token"
    assert error.allowed.startswith("set QSTASH_TOKEN")


def test_a_token_file_is_read_and_wins(tmp_path: Path) -> None:
    """A mounted secret, with the newline that editors leave."""
    file = tmp_path / "token"
    file.write_text("from-file\n")
    env = {"QSTASH_TOKEN": "from-env", "DISPATCHER_TOKEN_FILE": str(file)}
    assert Config.load(env=env).token == "from-file"
    assert Config.load(env=env, token="mine").token == "mine"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_an_unusable_token_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    """Absent, empty or no text."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    error = refused(Config.load, env={"DISPATCHER_TOKEN_FILE": str(file)})
    assert (error.field, error.value) == ("DISPATCHER_TOKEN_FILE", str(file))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DISPATCHER_RETRY_MAXATTEMPTS", "DISPATCHER_RETRY_MAX_ATTEMPTS"),
        ("DISPATCHER_MAX_IN_FLIGHT", "DISPATCHER_LIMIT_MAX_IN_FLIGHT"),
        ("DISPATCHER_DELIVERWITHIN", "DISPATCHER_DELIVER_WITHIN"),
        ("DISPATCHER_TOKENFILE", "DISPATCHER_TOKEN_FILE"),
        ("DISPATCHER_URL", "QSTASH_URL"),
        ("DISPATCHER_TOKEN", "QSTASH_TOKEN"),
    ],
)
def test_an_unknown_variable_names_the_nearest(name: str, nearest: str) -> None:
    """A misspelt variable would otherwise change nothing, silently."""
    error = refused(Config.load, env={**TOKEN, name: SECRET})
    assert error.field == name
    assert error.allowed == f"did you mean `{nearest}`?"


def test_other_programs_variables_are_left_alone() -> None:
    """Whatever they are called."""
    assert Config.load(env={**TOKEN, "PATH": "/bin", "QSTASH_OTHER": "x"}) == Config(SECRET)


def service_links(name: str, host: str = "10.0.0.1", port: int = 8090) -> dict[str, str]:
    """What Kubernetes puts into the environment of containers beside a Service."""
    url = f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
    return {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": url,
        f"{name}_PORT_{port}_TCP": url,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": host,
    }


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize(
    "name", ["DISPATCHER", "DISPATCHER_SERVE", "DISPATCHER_SERVE_ADMIN", "DISPATCHER_SIDECAR", "DISPATCHER_2"]
)
def test_service_links_are_left_alone(name: str, host: str) -> None:
    """A Service called like us is nobody's mistake, not even where a link has the name of a setting."""
    links = service_links(name, host)
    assert Config.load(env={**TOKEN, **links}) == Config(SECRET)
    sidecar = SidecarConfig.load(env={**TOKEN, **links})
    assert sidecar.serve == ServeSettings()
    assert not any(origin.startswith("environment DISPATCHER") for origin in sidecar.origins.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISPATCHER_PORT", "8090"),
        ("DISPATCHER_PORT", "http://10.0.0.1:80"),
        ("DISPATCHER_PORT", "tcp://10.0.0.1"),
        ("DISPATCHER_SERVICE_HOST", "somewhere"),
        ("DISPATCHER_SERVICE_PORT", "http"),
        ("DISPATCHER_PORT_80_TCP_ADDRESS", "10.0.0.1"),
        ("DISPATCHER_PORT_TCP", "tcp://10.0.0.1:80"),
        ("DISPATCHER_SERVE_HTTP_PORT", "80"),
        ("DISPATCHER_RETRY_HOST", "10.0.0.1"),
    ],
)
def test_what_only_looks_like_a_service_link_is_a_mistake(name: str, value: str) -> None:
    """Their exact forms, by name and value, and nothing else."""
    assert refused(SidecarConfig.load, env={**TOKEN, name: value}).field == name


def test_a_port_that_is_a_link_is_no_port_elsewhere() -> None:
    """Only in the environment: a flag or a file of that value is wrong."""
    assert refused(SidecarConfig.load, env=TOKEN, serve_port="tcp://10.0.0.1:80").field == "serve.port"
    assert (
        refused(SidecarConfig.load, env={**TOKEN, "DISPATCHER_SERVE_PORT": "tcp://h:1"}).field == "serve.port"
    )


@pytest.mark.parametrize(
    ("content", "field", "text"),
    [
        ("[retry]\nmax_atempts = 3", "retry.max_atempts", "did you mean `retry.max_attempts`?"),
        (f"tokn = '{SECRET}'", "tokn", "did you mean `token`?"),
        ("[retyr]\nbase = 3", "retyr", "did you mean `retry."),
        ("retry = 3", "retry", "names and values"),
        ("[retry]\nbase = '1'", "retry.base", "a number"),
        ("[retry]\nmax_attempts = '3'", "retry.max_attempts", "an int"),
        ("[retry]\nbase = nan", "retry.base", "a number"),
        ("[batch]\nlinger = 2024-01-01", "batch.linger", "a number"),
        ("[retry", "file", "TOML"),
        ("deliver_within = 5\ndeliver_within = 6", "file", "TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(content: str, field: str, text: str, tmp_path: Path) -> None:
    """Unknown names, wrong types and broken syntax, each with the file's name."""
    file = tmp_path / "d.toml"
    file.write_text(content)
    error = refused(Config.load, env=TOKEN, file=file)
    assert error.field == field
    assert text in error.allowed
    assert field in ("file", "retry") or str(file) in error.allowed


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file that was asked for and is not there is no default."""
    for path in (tmp_path / "absent.toml", tmp_path):
        error = refused(Config.load, env={**TOKEN, "DISPATCHER_CONFIG": str(path)})
        assert (error.field, error.value) == ("file", str(path))
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe")
    assert refused(Config.load, env=TOKEN, file=str(binary)).value == str(binary)


def test_a_wrong_variable_is_named_with_its_setting() -> None:
    """Both names stand in the text: the one to look up and the one to change."""
    error = refused(Config.load, env={**TOKEN, "DISPATCHER_RETRY_MAX_ATTEMPTS": "many"})
    assert (error.field, error.value) == ("retry.max_attempts", "many")
    assert error.allowed.endswith("(in DISPATCHER_RETRY_MAX_ATTEMPTS)")
    assert refused(Config.load, env={**TOKEN, "DISPATCHER_TRANSPORT_TRUST_ENV": "maybe"}).value == "maybe"
    assert refused(Config.load, env={**TOKEN, "DISPATCHER_BATCH_LINGER": "nan"}).field == "batch.linger"


def test_an_unknown_keyword_names_the_nearest() -> None:
    """As everywhere, and the value, which may be a secret, is not shown."""
    assert refused(Config.load, env=TOKEN, tokn=SECRET).allowed == "did you mean `token`?"
    assert (
        refused(Config.load, env=TOKEN, retry={"max_attempt": 3}).allowed
        == "did you mean `retry.max_attempts`?"
    )
