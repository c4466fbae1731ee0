"""The outbox on the admin listener: its status, its dead letters, who may change them; readiness; metrics."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
from prometheus_client import CollectorRegistry

from dispatcher import Config, Dispatcher, Message
from dispatcher.core.batch import Reply
from dispatcher.errors import ConfigError
from dispatcher.metrics import register_outbox
from dispatcher.outbox import MemoryStore, Outbox
from dispatcher.outbox.store import StoreStatus
from dispatcher.outbox_families import OUTBOX_FAMILIES
from dispatcher.sidecar.admin import Admin
from dispatcher.sidecar.admin_outbox import CHANGES
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.outbox_service import OutboxService
from dispatcher.sidecar.outbox_settings import OutboxSettings
from dispatcher.sidecar.state import State
from dispatcher.testing import ScriptedTransport
from tests.metrics_support import Scrape
from tests.sidecar.browser import browser, needs_browser
from tests.sidecar.support_intake import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio
HOOK = "https://user:secret-word@example.com/hook?secret-word=1"
MEANT = {"X-Dispatcher": "outbox"}
KEY = "the-key-in-the-lock"


class Asked:
    """An admin listener on a free port, and the outbox behind it."""

    def __init__(self, outbox: Outbox, base: str, session: aiohttp.ClientSession, admin: Admin) -> None:
        self.outbox = outbox
        self.base = base
        self.session = session
        self.admin = admin

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and value."""
        async with self.session.get(self.base + path) as response:
            return response.status, orjson.loads(await response.read())

    async def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        """The same for a change."""
        body = value if isinstance(value, bytes) else orjson.dumps(value)
        async with self.session.post(self.base + path, data=body, headers=headers) as response:
            text = await response.read()
            is_json = response.content_type == "application/json"
            return response.status, orjson.loads(text) if is_json else text.decode()


@asynccontextmanager
async def asked(transport: ScriptedTransport, *, has_outbox: bool = True) -> AsyncIterator[Asked]:
    """Both, over a memory store."""
    config = Config.load(env={}, token="a-secret-token")
    counters, state = IntakeCounters(), State()
    dispatcher = Dispatcher(config, transport=transport)
    async with dispatcher, Outbox(MemoryStore(), dispatcher) as outbox:
        admin = Admin(dispatcher, counters, state, outbox if has_outbox else None, KEY)
        admin.feed._period = 0.1
        server = admin.make_server()
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession() as session:
                port = listener.sockets[0].getsockname()[1]
                yield Asked(outbox, f"http://127.0.0.1:{port}", session, admin)
        finally:
            listener.close()
            await server.shutdown(1.0)


async def with_dead(one: Asked, number: int) -> list[str]:
    """The ids of so many dead letters, each of which was refused alone."""
    for _ in range(number):
        await one.outbox.put(Message(HOOK, body="secret-word"))
        before = one.outbox.status().dead
        await until(lambda before=before: one.outbox.status().dead == before + 1)  # type: ignore[misc]
    return [found.record.id for found in await one.outbox.store.dead_letters()]


async def test_without_an_outbox_it_says_so() -> None:
    """404 on each path, the status has none."""
    async with asked(ScriptedTransport(), has_outbox=False) as one:
        assert (await one.get("/outbox"))[0] == 404
        assert (await one.post("/outbox/retry", {"all": True}, **MEANT))[0] == 404
        assert (await one.get("/status"))[1]["outbox"] is None


async def test_the_status_has_what_the_store_says() -> None:
    """Held and dead messages, commits, ages; on its own path and in the page's status."""
    async with asked(ScriptedTransport(400)) as one:
        await with_dead(one, 1)
        status, value = await one.get("/outbox")
        assert (status, value["dead"], value["waiting"], value["claimed"]) == (200, 1, 0, 0)
        assert value["commits"] > 0
        assert value["failure"] == value["death"] == ""
        await one.admin.monitor.look()
        shown = (await one.get("/status"))[1]["outbox"]
        assert [letter["reason"][:4] for letter in shown["dead_letters"]] == ["400:"]


async def test_dead_letters_are_paged_and_show_no_secret() -> None:
    """Reason and attempts, destination without user and query; page by page; bad limits refused."""
    async with asked(ScriptedTransport(*[400] * 3)) as one:
        ids = await with_dead(one, 3)
        status, first = await one.get("/outbox/dead-letters?limit=2")
        assert status == 200
        assert [letter["messageId"] for letter in first["deadLetters"]] == ids[:2]
        assert first["deadLetters"][0]["destination"] == "https://example.com/hook"
        assert len(first["deadLetters"][0]["attempts"]) == 1
        _, second = await one.get(f"/outbox/dead-letters?limit=2&after={first['after']}")
        assert [letter["messageId"] for letter in second["deadLetters"]] == ids[2:]
        assert second["after"] is None
        assert "secret-word" not in str(first)
        for limit in ("0", "1001", "x", "-1", "٣", "9" * 30, "0" * 8 + "9" * 30):
            assert (await one.get(f"/outbox/dead-letters?limit={limit}"))[0] == 400
        assert (await one.get("/outbox/nothing"))[0] == 404


@pytest.mark.parametrize("path", CHANGES)
async def test_a_page_of_the_web_changes_nothing(path: str) -> None:
    """Without the header, or marked as a browser's, or by GET: refused, the dead letter is still there."""
    async with asked(ScriptedTransport(400)) as one:
        await with_dead(one, 1)
        for headers in (
            {},
            {"X-Dispatcher": "x"},
            {**MEANT, "Origin": one.base},
            {**MEANT, "Origin": "null"},
            {**MEANT, "Sec-Fetch-Site": "same-origin"},
        ):
            assert (await one.post(path, {"all": True}, **headers))[0] == 403
        assert (await one.post(path, {"all": True}, **MEANT, Host="evil.example"))[0] == 421
        async with one.session.get(one.base + path) as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert (await one.post("/outbox", {"all": True}, **MEANT))[0] == 405
        assert one.outbox.status().dead == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", {"all": False}, {"ids": ["a"], "all": True}, {"id": "a"}]
)
async def test_an_unclear_wish_changes_nothing(body: Any) -> None:
    """400 with the right form, unless it says which ones or all."""
    async with asked(ScriptedTransport(400)) as one:
        await with_dead(one, 1)
        status, answer = await one.post("/outbox/delete", body, **MEANT)
        assert (status, '"ids"' in answer["error"]) == (400, True)
        assert one.outbox.status().dead == 1


async def test_dead_letters_are_retried_and_deleted() -> None:
    """By id and all; how many is answered; the retried one is delivered."""
    transport = ScriptedTransport(*[400] * 4)
    async with asked(transport) as one:
        ids = await with_dead(one, 4)
        assert await one.post("/outbox/retry", {"ids": [ids[0], "out_x"]}, **MEANT) == (200, {"messages": 1})
        await until(lambda: len(transport.batches) == 5)
        await until(lambda: one.outbox.status().dead == 3)
        assert await one.post("/outbox/delete", {"ids": [ids[1]]}, **MEANT) == (200, {"messages": 1})
        assert await one.post("/outbox/delete", {"all": True}, **MEANT) == (200, {"messages": 2})
        assert one.outbox.status().dead == 0


async def test_only_who_has_the_key_of_the_lock_is_shown_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """403 without it, else the dead letters as lines, page by page; the key is masked where texts are."""
    async with asked(ScriptedTransport(*[400] * 3)) as one:
        ids = await with_dead(one, 3)
        for headers in ({}, {"X-Dispatcher-Key": "x"}, {"X-Dispatcher-Key": KEY[:-1]}, MEANT):
            async with one.session.get(one.base + "/outbox/export", headers=headers) as response:
                assert response.status == 403
                assert "secret-word" not in await response.text()
        monkeypatch.setattr("dispatcher.sidecar.admin_outbox.EXPORT_BYTES", 10)
        found, after = [], ""
        while True:
            asking = one.session.get(
                f"{one.base}/outbox/export{after}", headers={"X-Dispatcher-Key": KEY, **MEANT}
            )
            async with asking as response:
                assert response.status == 200
                lines = (await response.read()).splitlines()
            if not lines:
                break
            assert len(lines) == 1
            found.append(orjson.loads(lines[0]))
            after = f"?after={found[-1]['_failure']['id']}"
        assert [item["_failure"]["id"] for item in found] == ids
        assert {item["body"] for item in found} == {"secret-word"}
        assert KEY in one.admin._outbox._counters.hidden


async def test_without_a_key_nobody_is_shown_bodies() -> None:
    """An empty one opens nothing."""
    async with asked(ScriptedTransport()) as one:
        one.admin._outbox._key = b""
        async with one.session.get(one.base + "/outbox/export", headers={"X-Dispatcher-Key": ""}) as response:
            assert response.status == 403


@needs_browser
async def test_the_page_shows_the_outbox(tmp_path: Path) -> None:
    """Held and dead messages, each dead letter with its reason as text; no card without an outbox."""
    hidden = "document.querySelector('#outbox').hidden"
    hostile = Reply(400, b'{"error":"<img src=x onerror=document.title=1> refused"}')
    async with asked(ScriptedTransport(hostile)) as one, browser(tmp_path) as page:
        await page.open(f"{one.base}/")
        await page.until(f"!{hidden}")
        (dead,) = await with_dead(one, 1)
        await page.until("document.querySelector('#letters tbody').textContent.includes('refused')")
        row = await page.text("#letters tbody")
        assert dead in row
        assert "https://example.com/hook" in row
        assert "<img" in row
        assert "secret-word" not in row
        assert "0 messages held" in await page.text("#outbox-facts")
        assert "1 dead letter" in await page.text("#outbox-facts")
        assert page.complaints == []
    async with asked(ScriptedTransport(), has_outbox=False) as one, browser(tmp_path / "b") as page:
        await page.open(f"{one.base}/")
        await page.until("document.querySelector('#link').textContent === 'live'")
        assert await page.look(hidden)


# ------------------------------------------------------------------------------------------------ readiness


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (StoreStatus(), ""),
        (StoreStatus(failure="disk on fire"), "disk on fire"),
        (StoreStatus(free_bytes=10), "min_free_bytes"),
        (StoreStatus(waiting=4, claimed=3, dead=3), "max_messages"),
        (StoreStatus(waiting=9), ""),
        (StoreStatus(held_bytes=600, dead_bytes=391), "max_bytes"),
        (StoreStatus(held_bytes=600, dead_bytes=300), ""),
    ],
)
async def test_readiness_is_whether_anything_can_be_kept(
    tmp_path: Path, status: StoreStatus, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not ready while nothing can be kept; a halt of the upstream's is no reason."""
    dispatcher = Dispatcher(Config.load(env={}, token="t"), transport=ScriptedTransport())
    service = OutboxService(
        str(tmp_path / "o.db"), OutboxSettings(max_messages=10, max_bytes=1_000), dispatcher
    )
    state = State()
    state.acceptance = service
    async with dispatcher:
        await service.start(None)
        state.set_ready()
        monkeypatch.setattr(service.outbox.store, "status", lambda: status)
        why = state.why_not_ready("halted")
        assert (words in why) if words else not why
        monkeypatch.setattr(service.outbox._relay, "death", "it died")
        assert state.why_not_ready("open") == state.why_not_alive("open") == "it died"
        monkeypatch.undo()
        await service.aclose()
        assert "not open" in state.why_not_ready("open")


async def test_a_file_that_cannot_be_opened_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    """`ConfigError` names the setting and says why."""
    dispatcher = Dispatcher(Config.load(env={}, token="t"), transport=ScriptedTransport())
    service = OutboxService(str(tmp_path / "none" / "o.db"), OutboxSettings(), dispatcher)
    async with dispatcher:
        with pytest.raises(ConfigError, match=r"outbox\.file"):
            await service.start(None)
        await service.aclose()


# -------------------------------------------------------------------------------------------------- metrics


async def test_every_family_is_exported_with_its_fixed_values() -> None:
    """From the start, under the dispatcher's name; commits and dead letters count."""
    registry = CollectorRegistry()
    async with asked(ScriptedTransport(400)) as one:
        register_outbox(one.outbox, registry)
        register_outbox(one.outbox, registry)
        before = Scrape(registry)
        for family in OUTBOX_FAMILIES:
            assert len(before.values[family.name]) == len(family.values or ("",))
        await with_dead(one, 1)
        after = Scrape(registry)
        assert after("dispatcher_outbox_dead_letters") == 1
        assert after("dispatcher_outbox_commits_total") > before("dispatcher_outbox_commits_total")
        async with one.session.get(f"{one.base}/metrics") as response:
            assert "dispatcher_outbox_dead_letters{" in await response.text()


async def test_two_open_outboxes_of_one_name_are_refused() -> None:
    """Their metrics would mix; one that was closed makes way."""
    registry = CollectorRegistry()
    async with asked(ScriptedTransport()) as first:
        register_outbox(first.outbox, registry)
        async with asked(ScriptedTransport()) as second:
            with pytest.raises(ConfigError, match="registered"):
                register_outbox(second.outbox, registry)
            await first.outbox.aclose()
            register_outbox(second.outbox, registry)
            assert Scrape(registry)("dispatcher_outbox_dead_letters") == 0
