"""The quick start's commands, all but the installation, with a real Prometheus: an alert fires and clears.

In a network of their own, as they name ports; and with rules that wait for seconds instead of minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.deploy.page import install_here
from tests.deploy.promtool import needs_prometheus
from tests.deploy.tools import DEPLOY, needs, tool

if TYPE_CHECKING:
    from pathlib import Path

TRY = DEPLOY / "try.sh"
ALONE = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
FASTER = (
    (re.compile(r"\[\d+m\]"), "[4s]"),
    (re.compile(r"for: \d+m"), "for: 1s"),
    (re.compile(r"_interval: 15s"), "_interval: 1s"),
)


def has_own_network() -> bool:
    """Whether this user may have one here."""
    if tool("unshare") is None or tool("ip") is None:
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0


@needs_prometheus
@needs("curl", "Debian: curl")
@pytest.mark.skipif(not has_own_network(), reason="no network namespace (unshare, ip) can be had here")
def test_from_a_checkout_to_an_alert(tmp_path: Path) -> None:
    """Served, scraped, the upstream stopped, alerted, the upstream back, cleared; and everything is ended."""
    env = install_here(tmp_path)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for path in (tmp_path / "deploy" / "prometheus").glob("**/*.yml"):
        hurried = path.read_text(encoding="utf-8")
        for pattern, shorter in FASTER:
            hurried = pattern.sub(shorter, hurried)
        path.write_text(hurried, encoding="utf-8")
    done = subprocess.run(
        [*ALONE, "bash", str(tmp_path / "deploy" / TRY.name), "--here"],
        cwd=tmp_path, env={**env, "TMPDIR": str(tmp_path)}, timeout=100,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith(("{", "ready", "scraped"))]
    assert done.returncode == 0, done.stderr[-5_000:]
    assert said[0].startswith("ready")
    assert '"dispatcher_build_info"' in said[1]
    assert '"alertname":"DispatcherUpstreamOutage"' in said[2]
    assert '"alertstate":"firing"' in said[2]
    assert said[3:] == ["scraped, alerted, cleared"]


def test_the_script_has_no_commands_of_its_own() -> None:
    """What it runs stands in the page: it names none of the programs outside of its own description."""
    lines = [line for line in TRY.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert os.access(TRY, os.X_OK)
    assert not re.search(r"\b(prometheus|dispatcher|clone|pip|curl)\b", "\n".join(lines))
