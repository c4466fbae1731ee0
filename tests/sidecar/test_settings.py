"""The sidecar's configuration: its names, its sources, what it refuses, and what it never shows."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.config import Config, overrides_from
from dispatcher.errors import ConfigError
from dispatcher.sidecar.settings import (
    SHORT_FLAGS,
    ServeSettings,
    SidecarConfig,
    add_settings_arguments,
    every_setting,
    is_loopback,
    serve_settings,
    serve_settings_table,
)

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret"
TOKEN = {"QSTASH_TOKEN": SECRET}
SAMPLES: dict[str, tuple[str, Any]] = {
    "serve.host": ("::1", "::1"),
    "serve.admin_host": ("localhost", "localhost"),
    "serve.socket": ("/run/s.sock", "/run/s.sock"),
    "serve.authentication": ("none", "none"),
    "serve.tokens": ("a,b", "a,b"),
    "serve.proxy": ("messages", "messages"),
    "serve.log_level": ("debug", "debug"),
    "serve.log_format": ("json", "json"),
    "serve.workers": ("1", 1),
    "serve.tracing": ("forward", "forward"),
    "serve.max_head_bytes": ("2048", 2_048),
}


def refused(call: Any, *args: Any, **keywords: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call(*args, **keywords)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    return caught.value


def parsed(*words: str) -> dict[str, Any]:
    """What a command's flags say."""
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser)
    return overrides_from(parser.parse_args(words))


def test_the_defaults_are_safe_and_known() -> None:
    """Each default, by its name: loopback, with a token, with bounds."""
    assert dataclasses.asdict(ServeSettings()) == {
        "host": "127.0.0.1",
        "port": 8_090,
        "socket": None,
        "admin_host": "127.0.0.1",
        "admin_port": 8_091,
        "authentication": "token",
        "tokens": None,
        "tokens_file": None,
        "proxy": "all",
        "patience": 30.0,
        "max_connections": 1_024,
        "max_head_bytes": 65_536,
        "max_body_bytes": 16 * 1_048_576,
        "max_batch_bytes": 100_000_000,
        "max_items": 10_000,
        "head_timeout": 10.0,
        "body_timeout": 30.0,
        "request_timeout": 300.0,
        "idle_timeout": 75.0,
        "workers": 1,
        "log_level": "info",
        "log_format": "text",
        "tracing": "off",
    }
    assert len(serve_settings_table().splitlines()) == 2 + len(serve_settings())


@pytest.mark.parametrize("one", serve_settings(), ids=lambda one: one.path)
def test_each_setting_has_four_spellings(one: Any, tmp_path: Path) -> None:
    """Keyword, environment, TOML and flag reach the same field, and each tells where it came from."""
    tokens = tmp_path / "tokens"
    tokens.write_text("a\n")
    text, value = {**SAMPLES, "serve.tokens_file": (str(tokens), str(tokens))}.get(one.path, ("7", 7))
    file = tmp_path / "d.toml"
    file.write_text(f"[serve]\n{one.path.partition('.')[2]} = {value!r}\n")
    loads = {
        "flag": SidecarConfig.load(env=TOKEN, **{one.flat: value}),
        f"environment {one.env}": SidecarConfig.load(env={**TOKEN, one.env: text}),
        f"file {file}": SidecarConfig.load(env=TOKEN, file=file),
    }
    if not one.is_secret:
        loads["flag "] = SidecarConfig.load(env=TOKEN, **parsed(one.flag, text))
        if one.path in SHORT_FLAGS:
            loads["flag  "] = SidecarConfig.load(env=TOKEN, **parsed(SHORT_FLAGS[one.path], text))
    for origin, config in loads.items():
        assert config.value(one.path) == value, origin
        assert config.origins[one.path] == origin.rstrip()
        assert {path for path, from_ in config.origins.items() if from_ != "default"} == {"token", one.path}


def test_the_nearest_source_wins_and_is_told(tmp_path: Path) -> None:
    """Flags before the environment before the file before the defaults, of both parts at once."""
    file = tmp_path / "d.toml"
    file.write_text(
        "url = 'https://file.example'\ndrain_within = 1\n[serve]\nport = 1\npatience = 1\nmax_items = 1\n"
        "[queues.billing]\nstrict = true\n"
    )
    env = {**TOKEN, "DISPATCHER_SERVE_PORT": "2", "DISPATCHER_SERVE_PATIENCE": "2", "QSTASH_URL": "http://e"}
    config = SidecarConfig.load(env=env, file=file, serve_port=3)
    assert (config.serve.port, config.serve.patience, config.serve.max_items) == (3, 2.0, 1)
    assert (config.dispatcher.url, config.dispatcher.drain_within) == ("http://e", 1.0)
    assert config.dispatcher.queues["billing"].strict
    told = {path: origin for path, origin in config.origins.items() if origin != "default"}
    assert told == {
        "token": "environment QSTASH_TOKEN",
        "url": "environment QSTASH_URL",
        "drain_within": f"file {file}",
        "queues": f"file {file}",
        "serve.port": "flag",
        "serve.patience": "environment DISPATCHER_SERVE_PATIENCE",
        "serve.max_items": f"file {file}",
    }


def test_a_token_file_is_told_as_the_token_s_origin(tmp_path: Path) -> None:
    """The file wins over `QSTASH_TOKEN`, so it is the file that is named."""
    file = tmp_path / "token"
    file.write_text("from-file\n")
    config = SidecarConfig.load(env={**TOKEN, "DISPATCHER_TOKEN_FILE": str(file)})
    assert (config.dispatcher.token, config.origins["token"]) == ("from-file", f"file {file}")


def test_rows_show_every_setting_and_no_secret(tmp_path: Path) -> None:
    """One row each, with its unit; the queues' too; tokens masked, in the rows and in the `repr`."""
    file = tmp_path / "d.toml"
    file.write_text("[queues.billing]\non_failure = 'stop'\n")
    config = SidecarConfig.load(env={**TOKEN, "DISPATCHER_SERVE_TOKENS": f"{SECRET}1"}, file=file)
    rows = {path: (value, origin) for path, value, origin in config.rows()}
    assert [*rows][: len(every_setting())] == [one.path for one in every_setting()]
    assert rows["token"] == ("***", "environment QSTASH_TOKEN")
    assert rows["serve.tokens"] == ("***", "environment DISPATCHER_SERVE_TOKENS")
    assert rows["serve.port"] == ("8090", "default")
    assert rows["serve.patience"] == ("30 s", "default")
    assert rows["queues.billing.on_failure"] == ("stop", f"file {file}")
    assert SECRET not in repr(config) + repr(config.serve) + str(rows)


# --------------------------------------------------------------------------------------------- unknown names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("DISPATCHER_SERVE_PROT", "DISPATCHER_SERVE_PORT"),
        ("DISPATCHER_SERVE_MAX_ITEM", "DISPATCHER_SERVE_MAX_ITEMS"),
        ("DISPATCHER_RETRY_BASES", "DISPATCHER_RETRY_BASE"),
        ("DISPATCHER_TOKEN", "QSTASH_TOKEN"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(name: str, near: str) -> None:
    """Its value is not shown: it may be a secret."""
    error = refused(SidecarConfig.load, env={**TOKEN, name: SECRET})
    assert str(error) == f"{name}: there is no such setting; did you mean `{near}`?"


def test_a_misspelt_name_in_a_file_is_refused(tmp_path: Path) -> None:
    """With the nearest, and the file."""
    file = tmp_path / "d.toml"
    file.write_text("[serve]\nmax_itmes = 3\n")
    error = refused(SidecarConfig.load, env=TOKEN, file=file)
    assert str(error) == (
        f"serve.max_itmes: there is no such setting; did you mean `serve.max_items`? (in {file})"
    )


def test_the_library_leaves_the_daemon_s_settings_alone(tmp_path: Path) -> None:
    """An application shares its file and environment; other strange names still are errors."""
    file = tmp_path / "d.toml"
    file.write_text("deliver_within = 7\n[serve]\nport = 'whatever'\nno_such = 1\n")
    env = {**TOKEN, "DISPATCHER_SERVE_PORT": "x", "DISPATCHER_SERVE_NO_SUCH": "x"}
    assert Config.load(env=env, file=file) == Config(SECRET, deliver_within=7)
    assert refused(Config.load, env={**TOKEN, "DISPATCHER_SERV_PORT": "1"}).field == "DISPATCHER_SERV_PORT"
    assert refused(Config.load, env={**TOKEN, "DISPATCHER_SERVE": "1"}).field == "DISPATCHER_SERVE"
    assert refused(Config.load, env=TOKEN, serve={"port": 1}).field == "serve"
    file.write_text("[server]\nport = 1\n")
    assert refused(Config.load, env=TOKEN, file=file).field == "server"


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("port", bad) for bad in (-1, 65_536, 1.5, True, "8090", None)),
        *(("admin_port", bad) for bad in (-1, 65_536)),
        *(("host", bad) for bad in ("", None, 1)),
        *(("patience", bad) for bad in (-0.1, float("nan"), float("inf"), 86_401, None)),
        *(("proxy", bad) for bad in ("some", "", None)),
        *(("authentication", bad) for bad in ("off", None)),
        *(("max_connections", bad) for bad in (0, None)),
        *(("max_head_bytes", bad) for bad in (1_023, 16 * 1_048_576 + 1)),
        *((name, 0) for name in ("max_body_bytes", "max_batch_bytes", "max_items", "workers")),
        *((name, 0) for name in ("head_timeout", "body_timeout", "request_timeout", "idle_timeout")),
        *(("log_level", bad) for bad in ("INFO", "trace")),
        ("log_format", "xml"),
    ],
)
def test_a_wrong_value_is_refused_by_its_dotted_name(name: str, value: Any) -> None:
    """Out of range or of another type."""
    assert refused(ServeSettings, **{name: value}).field == f"serve.{name}"


def test_no_authentication_only_on_this_machine() -> None:
    """Loopback by address or name, or a Unix socket without TCP; all else is refused, also beside one."""

    def load(**given: Any) -> SidecarConfig:
        return SidecarConfig.load(env=TOKEN, serve_authentication="none", **given)

    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST."):
        assert load(serve_host=host).serve.host == host
    assert not load(serve_socket="/run/s").has_tcp
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example.com"):
        for also in ({}, {"serve_socket": "/run/s"}):
            error = refused(load, serve_host=host, **also)
            assert error.field == "serve.authentication"
            assert host in str(error)
    assert SidecarConfig.load(env=TOKEN, serve_host="0.0.0.0").has_tcp


def test_a_unix_socket_stands_instead_of_a_port_unless_one_is_given() -> None:
    """The default port would be a second door that nobody asked for."""
    assert SidecarConfig.load(env=TOKEN).has_tcp
    assert not SidecarConfig.load(env=TOKEN, serve_socket="/run/s").has_tcp
    assert SidecarConfig.load(env=TOKEN, serve_socket="/run/s", serve_port=8_090).has_tcp
    assert SidecarConfig.load(env={**TOKEN, "DISPATCHER_SERVE_HOST": "::1"}, serve_socket="/run/s").has_tcp


def test_several_workers_are_refused_with_reason_and_cure() -> None:
    """It is the order of a queue that two processes would break."""
    error = refused(ServeSettings, workers=2)
    assert error.field == "serve.workers"
    assert "keeps its order only inside one process" in str(error)
    assert "run several daemons" in str(error)


# ------------------------------------------------------------------------------------------- callers' tokens


def test_callers_present_the_upstream_s_token_by_default() -> None:
    """Nothing more has to be configured."""
    assert SidecarConfig.load(env=TOKEN).tokens == (SECRET,)
    assert SidecarConfig.load(env={**TOKEN, "DISPATCHER_SERVE_TOKENS": ""}).tokens == (SECRET,)


def test_callers_tokens_by_list_and_by_file(tmp_path: Path) -> None:
    """Separated by commas, or a line each with comments; blanks around them and repetitions do not matter."""
    file = tmp_path / "tokens"
    file.write_text("# of the shop\none\n\n  two \none\n#three\n")
    assert SidecarConfig.load(env={**TOKEN, "DISPATCHER_SERVE_TOKENS": " one, two,,one "}).tokens == (
        "one",
        "two",
    )
    env = {**TOKEN, "DISPATCHER_SERVE_TOKENS_FILE": str(file)}
    assert SidecarConfig.load(env=env).tokens == ("one", "two")
    assert refused(SidecarConfig.load, env={**env, "DISPATCHER_SERVE_TOKENS": SECRET}).field == (
        "serve.tokens_file"
    )


@pytest.mark.parametrize("text", [",", " , ", f"{SECRET} x", f"{SECRET}\x7f", f"{SECRET}é"])
def test_a_list_that_is_none_is_refused(text: str) -> None:
    """No token at all would let nobody in, or everybody; none of it is shown."""
    error = refused(SidecarConfig.load, env={**TOKEN, "DISPATCHER_SERVE_TOKENS": text})
    assert error.field == "serve.tokens"


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe", f"{SECRET} {SECRET}\n".encode()])
def test_a_tokens_file_that_is_none_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """Missing, empty, no text, or with something else in it."""
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    error = refused(SidecarConfig.load, env={**TOKEN, "DISPATCHER_SERVE_TOKENS_FILE": str(file)})
    assert error.field == "serve.tokens_file"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("fe80::1%eth0", False), ("localhost", True), ("0.0.0.0", False)],
)
def test_is_loopback(host: str, expected: bool) -> None:
    """Only what cannot be reached from another machine."""
    assert is_loopback(host) is expected
