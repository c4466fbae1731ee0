"""The SDKs' own README examples, with `QSTASH_URL` and `QSTASH_TOKEN` set.

`dispatcher dev` and `dispatcher serve` as real processes. The examples are read out of the installed packages
and run as they stand, placeholders filled in. Each one is run, or has its reason here not to be.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import asynccontextmanager
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.devserver.support import dev_process
from tests.sidecar.daemon_support import TOKEN, environment, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.sidecar.javascript_support import Node

pytestmark = pytest.mark.anyio
NOT_RUN = {
    "Receiver": "it verifies the signature of a delivery, and nothing is delivered here",
    "devMode": "it starts the vendor's own server in place of this one",
    "enableTelemetry": "it sets an option and calls nothing",
}
"""What marks an example that is not run, and why."""
PLACEHOLDERS = {"<QSTASH_TOKEN>": TOKEN, "<OPENAI_API_KEY>": "placeholder"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE_SECONDS = 60.0


class Stand:
    """An upstream and a sidecar before it, both processes."""

    def __init__(self, upstream: str, intake: str, session: aiohttp.ClientSession) -> None:
        self.intake = intake
        self._upstream = upstream
        self._session = session

    @property
    def environment(self) -> dict[str, str]:
        """That of a program whose author set what the README says."""
        return environment(self.intake, TOKEN, OPENAI_API_KEY="placeholder")

    async def ask(self, path: str) -> Any:
        """A GET to the upstream itself."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self._session.get(self._upstream + path, headers=headers) as answer:
            return await answer.json()

    async def messages(self) -> int:
        """How many messages the upstream has."""
        return int((await self.ask("/dispatcher-dev/summary"))["accepted"])


@asynccontextmanager
async def stand(directory: Path) -> AsyncIterator[Stand]:
    """Both, while the context lasts."""
    with dev_process(directory, "--keep-bodies") as upstream:
        async with (
            serving(env=environment(upstream.url, TOKEN)) as sidecar,
            aiohttp.ClientSession() as session,
        ):
            yield Stand(upstream.url, sidecar.intake, session)


def examples(text: str, language: str) -> list[str]:
    """The examples to run, placeholders filled in."""
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    codes = [block[2] for block in FENCE.finditer(text) if block[1] == language]
    return [code for code in codes if not any(marker in code for marker in NOT_RUN)]


async def test_python(tmp_path: Path) -> None:
    """Each publishes one message or makes one schedule; the upstream has it under the id that it printed."""
    description = distribution("qstash").read_text("METADATA")
    assert description is not None
    codes = examples(description, "python")
    assert len(codes) >= 4
    async with stand(tmp_path) as where:
        for code in codes:
            before = await where.messages()
            output = await run([sys.executable, "-c", code], where.environment)
            is_schedule = "schedule.create" in code
            assert await where.messages() == before + (not is_schedule), code
            path = "schedules" if is_schedule else "messages"
            for printed in output.split() if "print(" in code else ():
                assert "error" not in await where.ask(f"/v2/{path}/{printed}"), code


async def test_javascript(tmp_path: Path, node: Node) -> None:
    """Each publishes one message; what one prints has the id under which the upstream has it.

    Left out of the text are the polyfill that it says is for older versions of node, and the one mark of
    TypeScript's that plain node does not read.
    """
    codes = examples((node.sdk / "README.md").read_text(encoding="utf-8"), "ts")
    assert len(codes) >= 2
    async with stand(tmp_path) as where:
        for number, code in enumerate(codes):
            before = await where.messages()
            script = f"example_{number}.mjs"
            plain = re.sub(r'^import "isomorphic-fetch";$', "", code, flags=re.MULTILINE)
            plain = re.sub(r"(process\.env\.\w+)!", r"\1", plain)
            (node.directory / script).write_text(plain, encoding="utf-8")
            output = await node.text(script, where.environment)
            assert await where.messages() == before + 1, code
            for printed in re.findall(r"msg_\w+", output):
                assert (await where.ask(f"/v2/messages/{printed}"))["body"] == '{"hello":"world"}', code
            assert ("console.log" in code) == ("msg_" in output)


async def run(command: list[str], env: dict[str, str]) -> str:
    """What a program prints; it has to end well."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(EXAMPLE_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()
