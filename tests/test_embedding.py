"""The README's embedding examples, as they stand there, driven by a client of each framework."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import uvicorn
from aiohttp.test_utils import TestClient as AiohttpClient
from aiohttp.test_utils import TestServer as AiohttpServer

from dispatcher.testing import local_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatcher.testing import LocalUpstream

pytestmark = pytest.mark.anyio
README = Path(__file__).parents[1] / "README.md"


def example(name: str) -> dict[str, Any]:
    """Run the README's block that begins with `# name`; its namespace."""
    found = re.search(
        rf"^```py\n(# {name}\b.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found, f"README.md has no ```py block that begins with `# {name}`"
    namespace: dict[str, Any] = {"__name__": "readme_example"}
    exec(compile(found[1], f"README.md ({name})", "exec"), namespace)
    return namespace


def point_at(upstream: LocalUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSTASH_URL", upstream.url)
    monkeypatch.setenv("QSTASH_TOKEN", upstream.token)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """An ASGI application under uvicorn, on a free port, in this loop; ended as SIGTERM ends it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "uvicorn did not start"
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("framework", ["FastAPI", "Starlette"])
async def test_asgi(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifespan opens and drains it; a request hands in a message; closing delivers it."""
    async with local_upstream() as upstream:
        point_at(upstream, monkeypatch)
        async with (
            served(example(framework)["app"]) as url,
            aiohttp.ClientSession() as session,
            session.post(f"{url}/orders") as response,
        ):
            assert response.status == 202
        assert [row.body for row in upstream.accepted()] == [b'{"order":1}']


async def test_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with aiohttp's clean-up context."""
    async with local_upstream() as upstream:
        point_at(upstream, monkeypatch)
        async with AiohttpClient(AiohttpServer(example("aiohttp")["app"])) as client:
            response = await client.post("/orders")
            assert response.status == 202
        assert [row.body for row in upstream.accepted()] == [b'{"order":1}']
