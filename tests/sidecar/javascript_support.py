"""The official JavaScript SDK under node: installed for the run, its scripts run, what they print read.

It comes from the registry that npm is set up with, in the version that `javascript/package.json` names, and
goes into a folder outside the tree. Where node, npm or the registry is missing the tests skip and say so;
where `CI` is set they fail instead: `.ci/run` installs both tools.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from tests.sidecar.daemon_support import DESTINATION, environment

SCRIPTS: Final = Path(__file__).parent / "javascript"
SDK: Final = Path("node_modules", "@upstash", "qstash")
FETCH_SINCE: Final = 18
"""The first major version of node that has a `fetch` of its own."""
INSTALL_SECONDS: Final = 120.0
RUN_SECONDS: Final = 60.0


class Node:
    """A folder with the SDK and the scripts in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def sdk(self) -> Path:
        """The folder of the installed SDK."""
        return self.directory / SDK

    async def run(self, script: str, url: str, **others: str) -> Any:
        """Run one script against an intake: what it printed last, as JSON."""
        output = await self.text(script, environment(url, **{"DESTINATION": DESTINATION, **others}))
        return json.loads(output.splitlines()[-1])

    async def text(self, script: str, env: dict[str, str]) -> str:
        """Run one script in this environment: all that it printed."""
        process = await asyncio.create_subprocess_exec(
            *("node", str(self.directory / script)),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(RUN_SECONDS):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode()
        return output.decode()


def installed(directory: Path) -> Node:
    """The SDK and the scripts in this folder; skips the test, or fails it, where that cannot be."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            _cannot(f"{tool} is not installed here")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < FETCH_SINCE:
        _cannot(f"the SDK needs node {FETCH_SINCE} or newer, this is {version.strip()}")
    shutil.copytree(SCRIPTS, directory, dirs_exist_ok=True)
    command = ["npm", "install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        _cannot(f"npm install took more than {INSTALL_SECONDS:g} s")
    if done.returncode:
        _cannot(f"npm install failed: {done.stderr.strip()[-500:]}")
    return Node(directory)


def _cannot(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
