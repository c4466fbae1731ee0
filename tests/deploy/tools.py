"""What the tests of deployment files share: where tools are, what the files say.

Tools come with the extra `test` (hadolint, kubectl, docker-compose) or with the system (systemd-analyze);
where one is missing its tests skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from tests.imports import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Documents = list[dict[str, Any]]
DEPLOY: Final = ROOT / "deploy"
OVERLAYS: Final = ("sidecar", "standalone", "outbox")
PATH: Final = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def tool(name: str) -> str | None:
    """Where a program is: beside this Python, or on the path."""
    return shutil.which(name, path=PATH)


def needs(name: str, comes_with: str) -> pytest.MarkDecorator:
    """Skip where it is not installed."""
    return pytest.mark.skipif(tool(name) is None, reason=f"{name} ({comes_with}) is not installed")


def ran(
    name: str, *words: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a tool: its exit code, and all that it printed."""
    program = tool(name)
    assert program is not None
    command = [program, *map(str, words)]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def compose() -> dict[str, Any]:
    """The compose file as it is written."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, continued lines joined: name and rest."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    words = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in words]


def rendered(overlay: str) -> Documents:
    """What kustomize makes of an overlay."""
    code, text = ran("kubectl", "kustomize", DEPLOY / "kubernetes" / "overlays" / overlay)
    assert code == 0, text
    return [dict(one) for one in yaml.safe_load_all(text)]


def of_kind(documents: Documents, kind: str) -> dict[str, Any]:
    """The one of them that is of a kind."""
    (found,) = (one for one in documents if one["kind"] == kind)
    return found


def workload(documents: Documents) -> dict[str, Any]:
    """What makes the pods."""
    (found,) = (one for one in documents if one["kind"] in ("Deployment", "StatefulSet"))
    return found


def pod(documents: Documents) -> dict[str, Any]:
    """The pods' specification."""
    return dict(workload(documents)["spec"]["template"]["spec"])


def sidecar(documents: Documents) -> dict[str, Any]:
    """The dispatcher's container."""
    spec = pod(documents)
    every = [*spec.get("initContainers", []), *spec["containers"]]
    (found,) = (one for one in every if one["name"] == "dispatcher")
    return dict(found)


def probes(documents: Documents) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each probe of the dispatcher, with its name."""
    for name, value in sidecar(documents).items():
        if name.endswith("Probe"):
            yield name, value
