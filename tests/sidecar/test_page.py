"""The status page: its files as they are, and in a real browser, on a real listener, in every state."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher import Config, Dispatcher, Message, MessageRejected
from dispatcher.sidecar.admin import Admin
from dispatcher.sidecar.assets import FILES, load_assets
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.state import State
from dispatcher.testing import LocalUpstream, local_upstream
from tests.bench.test_page import ground
from tests.sidecar.browser import browser, needs_browser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

URL = "https://example.com/hook?key=hidden-query"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> & <script>document.title='taken'</script>"
PERIOD = 0.1
ASSETS = {name: load_assets()[path].body.decode() for path, (name, _) in FILES.items()}
CSS, SCRIPT, HTML = ASSETS["page.css"], ASSETS["page.js"], ASSETS["index.html"]


# ------------------------------------------------------------------------------------ the files themselves


def test_every_file_is_served_and_every_reference_is_a_file() -> None:
    """Nothing lies in the folder that nobody gets, and the page asks for nothing else."""
    folder = files("dispatcher.sidecar") / "page"
    assert {one.name for one in folder.iterdir()} == {name for name, _ in FILES.values()}
    found = re.findall(r'(?:src|href)="([^"#:]+)"', HTML)
    assert set(found) <= {path.removeprefix("/") for path in FILES} | {"status", "metrics", "readyz"}


def test_nothing_is_inline_and_nothing_is_elsewhere() -> None:
    """No script or style in the page, no address of another host; text is never made into markup."""
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", HTML)
    for name in ("index.html", "page.css", "page.js"):
        addresses = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+", ASSETS[name])) - {"http://www.w3.org"}
        assert not addresses, name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", SCRIPT)
    assert "@import" not in CSS
    assert "url(" not in CSS


def test_the_library_has_its_version_and_its_licence() -> None:
    """What is not ours says what it is and under which terms."""
    assert re.match(
        r"/\*! https://github.com/leeoniya/uPlot \(v\d+\.\d+\.\d+\) \*/", ASSETS["uPlot.iife.min.js"]
    )
    assert ASSETS["uPlot.LICENSE.txt"].startswith("The MIT License (MIT)")
    assert 'href="uPlot.LICENSE.txt"' in HTML


def luminance(colour: str) -> float:
    """Of a colour as `#rrggbb`, by the definition of WCAG 2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Between two colours, from 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_colours_can_be_told_apart(theme: int) -> None:
    """Text against its ground by 4.5 to 1, lines of charts by 3 to 1, in both themes."""
    block = re.findall(r":root \{([^}]*)\}", CSS)[theme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
    texts = [("ink", "card"), ("soft", "card"), ("soft", "ground"), ("link", "card"), ("link", "ground")]
    texts += [(f"{tone}-ink", f"{tone}-ground") for tone in ("ok", "warn", "bad", "idle")]
    for text, under in texts:
        assert contrast(colours[text], colours[under]) >= 4.5, (text, under)
    for line in ("blue", "green", "red", "amber", "violet"):
        assert contrast(colours[line], colours["card"]) >= 3, line


# ------------------------------------------------------------------------------------------- in a browser


class Sidecar:
    """A dispatcher before a local upstream, with its admin listener."""

    def __init__(self, upstream: LocalUpstream, dispatcher: Dispatcher) -> None:
        self.upstream = upstream
        self.dispatcher = dispatcher
        self.counters = IntakeCounters()
        self.state = State()
        self.port = 0
        self.admin: Admin
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}/"

    async def listen(self) -> None:
        """Open the listener, on the same port if there was one before."""
        self.admin = Admin(self.dispatcher, self.counters, self.state)
        self.admin.feed._period = PERIOD
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self.admin.make_server(), "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close it, and every connection."""
        if self._listener is not None:
            self._listener.close()
            await self.admin._server.shutdown(1.0)
            self._listener = None

    async def send(self, number: int, body: str = "x") -> None:
        """So many messages, their outcomes counted as the intake does."""
        outcomes = await self.dispatcher.send_many(Message(URL, body=body) for _ in range(number))
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                self.counters.failed(outcome)
            self.counters.request("publish", 400 if isinstance(outcome, Exception) else 200)


@asynccontextmanager
async def sidecar(faults: str | None = None) -> AsyncIterator[Sidecar]:
    """One that is ready."""
    async with local_upstream(token="the-first-token", faults=faults) as upstream:
        config = Config.load(env={}, token=upstream.token, url=upstream.url, drain_within=0.5)
        async with Dispatcher(config) as dispatcher:
            made = Sidecar(upstream, dispatcher)
            await made.listen()
            made.state.set_ready()
            try:
                yield made
            finally:
                await made.stop()


@needs_browser
@pytest.mark.anyio
async def test_the_page_shows_what_happens(tmp_path: Path) -> None:
    """Numbers, failures, routes, charts, live; no complaint, and nobody else is asked for anything."""
    async with sidecar("poison_400=POISON latency=constant(5ms)") as one, browser(tmp_path) as page:
        await page.open(one.url)
        await page.until("document.querySelector('#link').textContent === 'live'")
        await one.send(250)
        await one.send(1, "POISON")
        await page.until("document.querySelector('#failed').textContent === '1'")
        assert await page.text("#state") == "Ready"
        assert await page.look("document.title") == "Ready · dispatcher"
        assert await page.text("#in-more") == "251 messages taken in all"
        assert await page.text("#out-more") == "250 messages confirmed in all"
        assert "200 ×250" in await page.text("#routes")
        assert "400 ×1" in await page.text("#routes")
        failures = await page.text("#failures tbody")
        assert "rejected (400)" in failures
        assert "https://example.com/hook was rejected with 400" in failures
        await page.until("/^[0-9.]+ .?s · [0-9.]+ .?s$/.test(document.querySelector('#latency').textContent)")
        labels = await page.look(
            "[...document.querySelectorAll('.plot')].map(e => e.getAttribute('aria-label'))"
        )
        assert [label.partition(":")[0] for label in labels] == [
            "Throughput, messages/s",
            "Held messages and age",
            "Requests in flight",
            "Latency, last 10 s",
        ]
        assert all(" now " in label and "NaN" not in label for label in labels)
        everything = await page.look("document.documentElement.outerHTML")
        assert page.complaints == []
        assert page.requested
        assert all(address.startswith((one.url, "data:")) for address in page.requested)
    for secret in ("the-first-token", "hidden-query", "POISON"):
        assert secret not in everything


INK = """(() => {
  const shown = document.querySelector('#chart-throughput canvas');
  const copy = document.createElement('canvas');
  [copy.width, copy.height] = [shown.width, shown.height];
  const context = copy.getContext('2d', { willReadFrequently: true });
  context.drawImage(shown, 0, 0);
  const data = context.getImageData(0, 0, copy.width, copy.height).data;
  const colours = new Set();
  for (let at = 0; at < data.length; at += 4)
    if (data[at + 3] > 250)
      colours.add('#' + [0, 1, 2].map(n => data[at + n].toString(16).padStart(2, '0')).join(''));
  return [...colours];
})()"""
"""The colours that one of the charts is drawn in."""


@needs_browser
@pytest.mark.anyio
async def test_both_themes_and_all_widths(tmp_path: Path) -> None:
    """Nothing overflows from a small phone to a desk, the ground and the lines follow the reader's theme."""
    async with sidecar("poison_400=POISON") as one, browser(tmp_path) as page:
        await one.send(100)
        await one.send(1, "POISON")
        one.counters.failed(MessageRejected("unbroken" * 40, status=400, message=Message(URL)))
        await page.open(one.url)
        await page.until("document.querySelectorAll('#failures tbody tr').length === 2")
        blocks = re.findall(r":root \{([^}]*)\}", CSS)
        for dark, block in enumerate(blocks):
            colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block))
            for width in (320, 390, 768, 1024, 1400):
                await page.show(width, dark=bool(dark))
                widest = await page.look("document.documentElement.scrollWidth")
                assert widest <= width, f"{widest} px wide in a window of {width}"
                canvas = "document.querySelector('#chart-held canvas').clientWidth"
                await page.until(f"150 < {canvas} && {canvas} < {width}")  # it follows in the next frame
            await page.until(f"{INK}.includes('{colours['green']}')")
            await page.show(1400, dark=bool(dark))
            # The header stands on the cards' ground.
            assert f"#{ground(await page.picture()).hex()}" == colours["card"]
        assert page.complaints == []


@needs_browser
@pytest.mark.anyio
async def test_text_stays_text(tmp_path: Path) -> None:
    """What the service says is shown as it is, also where it looks like markup."""
    async with sidecar() as one, browser(tmp_path) as page:
        one.counters.failed(MessageRejected(HOSTILE, status=400, message=Message(URL)))
        await page.open(one.url)
        await page.until("document.querySelectorAll('#failures tbody tr').length === 1")
        await page.until("document.querySelector('#failures tbody').textContent.includes('onerror')")
        assert HOSTILE in await page.text("#failures tbody")
        assert await page.look("document.querySelectorAll('#failures img, #failures script').length") == 0
        assert await page.look("document.title") == "Ready · dispatcher"
        assert page.complaints == []


@needs_browser
@pytest.mark.anyio
async def test_the_policy_is_in_force(tmp_path: Path) -> None:
    """A script, a style or a request that someone managed to plant does nothing."""
    plant = """
      const script = document.createElement('script'); script.textContent = 'window.taken = 1';
      const style = document.createElement('style'); style.textContent = 'body { display: none }';
      document.head.append(script, style);
      fetch('http://192.0.2.1/').catch(() => { window.refused = 1 }); 0
    """
    async with sidecar() as one, browser(tmp_path) as page:
        await page.open(one.url)
        await page.look(plant)
        await page.until("window.refused === 1")
        assert (
            await page.look("window.taken === undefined && getComputedStyle(document.body).display")
            == "block"
        )
        complaints = "\n".join(page.complaints)
        for directive in ("script-src 'self'", "style-src 'self'", "connect-src 'self'"):
            assert directive in complaints


@needs_browser
@pytest.mark.anyio
async def test_a_halt_and_its_end_are_shown(tmp_path: Path) -> None:
    """With the service's words and what to do; and it is over when the token is replaced."""
    async with sidecar() as one, browser(tmp_path) as page:
        await one.send(1)
        one.upstream.set_token("the-second-token")
        delivery = await one.dispatcher.put(Message(URL))
        await page.open(one.url)
        await page.until("document.querySelector('#state').textContent === 'Halted'")
        note = await page.text("#notes")
        assert "401: unauthorized" in note
        assert "What is held (1 message) waits" in note
        assert "SIGHUP" in note
        assert await page.look("document.querySelector('#state').dataset.tone") == "bad"
        assert "Halted" in await page.text("#events")
        one.dispatcher.set_token("the-second-token")
        await delivery
        await page.until("document.querySelector('#state').textContent === 'Ready'")
        assert await page.text("#notes") == ""
        assert page.complaints == []


@needs_browser
@pytest.mark.anyio
async def test_a_drain_and_the_end_are_shown(tmp_path: Path) -> None:
    """While held messages leave; then that the process has ended, and that it is tried again."""
    async with sidecar("latency=constant(30s)") as one, browser(tmp_path) as page:
        await one.dispatcher.put(Message(URL))
        await page.open(one.url)
        await page.until("document.querySelector('#held').textContent === '1'")
        one.state.set_draining()
        await page.until("document.querySelector('#state').textContent === 'Draining'")
        assert "what is held (1 message) is delivered" in await page.text("#notes")
        await one.stop()
        await page.until("document.querySelector('#link').textContent.startsWith('the sidecar has ended')")
        assert await page.look("document.querySelector('#link').dataset.link") == "lost"


@needs_browser
@pytest.mark.anyio
async def test_a_broken_stream_is_told_and_mended(tmp_path: Path) -> None:
    """Reset without a word, the page says so, keeps what it has, and goes on when there is someone again."""
    async with sidecar() as one, browser(tmp_path) as page:
        await one.send(7)
        await page.open(one.url)
        await page.until("document.querySelector('#in-more').textContent === '7 messages taken in all'")
        assert one._listener is not None
        one._listener.close()
        for connection in list(one.admin._server.connections):
            assert connection.transport is not None
            connection.transport.abort()
        await page.until("document.querySelector('#link').textContent.startsWith('connection lost, as of ')")
        assert await page.text("#in-more") == "7 messages taken in all"
        await one.stop()
        await one.send(5)
        await one.listen()
        await page.until("document.querySelector('#link').textContent === 'live'")
        await page.until("document.querySelector('#in-more').textContent === '12 messages taken in all'")


@needs_browser
@pytest.mark.anyio
async def test_it_is_paused_by_the_keyboard(tmp_path: Path) -> None:
    """The first stop of the tab key holds the page still; pressed again it is of the moment at once."""
    async with sidecar() as one, browser(tmp_path) as page:
        await page.open(one.url)
        await page.until("document.querySelector('#link').textContent === 'live'")
        await page.press("Tab", "Tab", 9)
        assert await page.look("document.activeElement.id") == "pause"
        await page.press(" ", "Space", 32, " ")
        assert await page.look("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
        assert (await page.text("#link")).startswith("paused, as of ")
        shown = await page.text("#in-more")
        await one.send(9)
        asked = await page.look("performance.now()")
        await page.until(f"performance.now() > {asked} + {5 * PERIOD * 1_000}")  # several events later
        assert await page.text("#in-more") == shown == "0 messages taken in all"
        await page.press("Enter", "Enter", 13, "\r")
        await page.until("document.querySelector('#in-more').textContent === '9 messages taken in all'")
        assert await page.text("#link") == "live"


@needs_browser
@pytest.mark.anyio
async def test_a_screen_reader_finds_its_way(tmp_path: Path) -> None:
    """Landmarks, one heading of the page, names for every chart, region, table header, button and meter."""
    async with sidecar() as one, browser(tmp_path) as page:
        await page.open(one.url)
        await page.until("document.querySelector('#link').textContent === 'live'")
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        found: dict[str, list[str]] = {}
        for node in tree:
            if not node.get("ignored"):
                name = node.get("name", {}).get("value", "")
                found.setdefault(node["role"]["value"], []).append(name)
        assert len(found["main"]) == len(found["banner"]) == len(found["contentinfo"]) == 1
        headings = await page.look("document.querySelectorAll('h1').length")
        assert headings == 1
        for role, number in [("image", 4), ("figure", 4), ("region", 7), ("meter", 2), ("button", 1)]:
            assert len(found[role]) == number, role
            assert all(found[role]), f"a {role} without a name"
        assert await page.look("document.querySelectorAll('thead th:not([scope])').length") == 0
        assert orjson.dumps(found)
