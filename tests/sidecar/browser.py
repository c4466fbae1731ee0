"""A headless Chromium, driven over its own debugging protocol: pages, what they complain of, whom they ask.

Needs no driver: the protocol is JSON over a WebSocket. Skips where no Chromium is installed.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-component-update --disable-default-apps --no-first-run --remote-debugging-port=0"
)
PATIENCE = 30.0


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        """What the console said, and exceptions nobody caught."""
        self.requested: list[str] = []
        """Every address that was asked for."""

    async def listen(self) -> None:
        """Read what the browser says, until it says no more."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            else:
                self._note(said["method"], said["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"{params['type']}: {params['args']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(f"{params['entry']['level']}: {params['entry']['text']}")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in said, f"{method}: {said['error']}"
        return dict(said["result"])

    async def open(self, url: str) -> None:
        """Go there."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def look(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until it is true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.look(expression):
                await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        """What stands in an element."""
        return str(await self.look(f"document.querySelector('{selector}').textContent"))

    async def show(self, width: int, *, dark: bool = False) -> None:
        """Make the window so wide, in one of the themes."""
        theme = "dark" if dark else "light"
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}]
        )
        await self.call(
            *("Emulation.setDeviceMetricsOverride",),
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    async def press(self, key: str, code: str, number: int, text: str = "") -> None:
        """A key, down and up."""
        named = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def picture(self) -> bytes:
        """The whole page as a PNG."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A fresh browser with one empty tab; ended with the context."""
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        *(BROWSER, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    drain: asyncio.Task[bytes] | None = None
    try:
        port = await asyncio.wait_for(_port(process.stderr), PATIENCE)
        drain = asyncio.ensure_future(process.stderr.read())
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                address = (await answer.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.ensure_future(page.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
                await page.call("Browser.close")
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        await asyncio.wait_for(process.wait(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if drain is not None:
            await drain


async def _port(output: asyncio.StreamReader) -> int:
    """The port it says it listens to."""
    said = b""
    async for line in output:
        found = re.search(rb"ws://[^:]+:(\d+)/", line)
        if found:
            return int(found[1])
        said += line
    raise AssertionError(f"the browser ended: {said.decode(errors='replace')[-2_000:]}")
