"""Every setting that a deployment file names exists, has an allowed value, and fits the others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from dispatcher.errors import ConfigError
from dispatcher.sidecar.settings import SidecarConfig, every_setting
from dispatcher.sources import CONFIG_FILE, TOKEN_FILE
from tests.deploy.tools import DEPLOY, OVERLAYS, compose, dockerfile, of_kind, rendered, tool
from tests.deploy.units import SERVICE, environment, unit

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = {one.env for one in every_setting()} | {CONFIG_FILE, TOKEN_FILE}
NAME = re.compile(r"\b(?:DISPATCHER|QSTASH)_[A-Z0-9_]+\b")
SECRET_FILES = (TOKEN_FILE, "DISPATCHER_SERVE_TOKENS_FILE")


def image_environment() -> dict[str, str]:
    """What the image sets for every container of it."""
    (text,) = (rest for name, rest in dockerfile() if name == "ENV" and "DISPATCHER" in rest)
    return dict(re.findall(r"(\S+)=(\S+)", text))


def environments() -> dict[str, dict[str, str]]:
    """What the process is given, by where that stands."""
    image = image_environment()
    service = dict(compose()["services"]["dispatcher"]["environment"])
    service["QSTASH_URL"] = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["QSTASH_URL"])
    found = {
        "Dockerfile": {**image, TOKEN_FILE: "/token"},
        "compose": {**image, **service},
        "systemd": environment(unit(SERVICE), {"d": "/credentials", "S": "/var/lib"}),
    }
    if tool("kubectl") is not None:
        for overlay in OVERLAYS:
            found[overlay] = {**image, **of_kind(rendered(overlay), "ConfigMap")["data"]}
    return found


def test_what_the_process_is_given_is_a_configuration(tmp_path: Path) -> None:
    """Read as `dispatcher serve` reads it; only the files of secrets are others here."""
    for name, given in environments().items():
        env = dict(given)
        for secret in SECRET_FILES:
            if secret in env:
                path = tmp_path / f"{name}{secret}"
                path.write_text("token\n")
                env[secret] = str(path)
        config = SidecarConfig.load(env=env)
        assert config.dispatcher.token == "token", name
        own = {key for key in env if NAME.fullmatch(key)}
        told = {origin.removeprefix("environment ") for origin in config.origins.values()}
        assert own - told <= {TOKEN_FILE}, f"{name}: {own - told} did nothing"


def test_a_mistake_would_be_seen(tmp_path: Path) -> None:
    """The reading above refuses a name that does not exist."""
    (tmp_path / "t").write_text("token")
    with pytest.raises(ConfigError, match="DISPATCHER_SERVE_PROT"):
        SidecarConfig.load(env={TOKEN_FILE: str(tmp_path / "t"), "DISPATCHER_SERVE_PROT": "1"})


def test_names_in_every_file_exist() -> None:
    """Also those in comments, commands and the operators' page."""
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert len(files) > 20
    for path in files:
        named = set(NAME.findall(path.read_text(encoding="utf-8")))
        unknown = {one for one in named - KNOWN if not any(known.startswith(one) for known in KNOWN)}
        assert not unknown, path
