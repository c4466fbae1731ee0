"""The recipes and the contributors' examples, as they stand in `dispatcher/docs`: each is run and watched."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from importlib.util import module_from_spec, spec_from_loader
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import anyio.to_thread
import pytest

from dispatcher import Config, Dispatcher
from dispatcher.cli import COMMANDS, main
from dispatcher.outbox import Outbox, SQLiteStore
from dispatcher.testing import local_upstream
from tests.imports import ROOT
from tests.readme import BLOCK_SECONDS, DOCS, Block, blocks, environment_of, run_block, titled
from tests.test_embedding import point_at, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dispatcher.testing import LocalUpstream

pytestmark = pytest.mark.anyio
RECIPES = DOCS / "recipes.md"
CONTRIBUTING = DOCS / "contributing.md"
PROJECT = """
from settings import *
ALLOWED_HOSTS = ["testserver"]
SECRET_KEY = "tests"
ROOT_URLCONF = "urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""
URLS = """
from django.urls import path
from orders.views import order
urlpatterns = [path("orders/<int:number>", order)]
"""
VISITS = """
import django
django.setup()
from django.apps import apps
from django.db import transaction
from django.test import Client
answers = [Client().post(f"/orders/{number}").status_code for number in range(5)]
with transaction.atomic():
    answers.append(Client().post("/orders/99").status_code)
    transaction.set_rollback(True)
dispatcher = apps.get_app_config("orders").dispatcher
assert dispatcher.config.deliver_within == 60 and dispatcher.config.batch.linger == 0.005
dispatcher.close()
print(answers)
"""
"""Five orders, and one whose transaction is rolled back."""


@pytest.fixture
async def upstream(anyio_backend: str) -> AsyncIterator[LocalUpstream]:
    async with local_upstream() as upstream:
        yield upstream


def python_block(page: Path, word: str) -> Block:
    """The one ```python block with this word in it."""
    found = [one for one in blocks(page.read_text(encoding="utf-8")) if one.language == "python"]
    (block,) = [one for one in found if word in one.text]
    return block


def namespace_of(block: Block) -> dict[str, Any]:
    """What a block defines; it is not run as a program."""
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(block.text, f"recipe, line {block.line}", "exec", dont_inherit=True), namespace)
    return namespace


async def program(folder: Path, *words: str, **environment: str) -> str:
    """What a program prints; it has to end well."""
    with anyio.fail_after(2 * BLOCK_SECONDS):
        done = await anyio.run_process([sys.executable, *words], cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


# --------------------------------------------------------------------------------------------- frameworks


async def test_fastapi(upstream: LocalUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of handing in, the metrics, and a full dispatcher that is told to the caller."""
    point_at(upstream, monkeypatch)
    monkeypatch.setenv("DISPATCHER_QUEUE_MAX_MESSAGES", "3")
    namespace = namespace_of(titled(RECIPES, "FastAPI: the whole application"))
    async with served(namespace["app"]) as url, aiohttp.ClientSession() as session:

        async def ask(method: str, path: str) -> tuple[int, str]:
            async with session.request(method, url + path) as response:
                return response.status, await response.text()

        assert (await ask("POST", "/orders/1"))[0] == 202
        status, text = await ask("POST", "/payments/2")
        by_body = {row.body: row.message_ids[0] for row in upstream.accepted()}
        assert (status, json.loads(text)) == (201, {"message": by_body[b'{"payment":2}']})
        status, text = await ask("GET", "/metrics")
        assert 'dispatcher_messages_admitted_total{dispatcher="orders"} 2.0' in text
        upstream.set_faults("unavailable=1")
        refused = [(await ask("POST", f"/orders/{number}"))[0] for number in range(10, 14)]
        assert refused == [202, 202, 202, 503]
        upstream.set_faults(None)


async def test_django(upstream: LocalUpstream, tmp_path: Path) -> None:
    """Its app makes the dispatcher; a view's message leaves after the commit, and not after a rollback."""
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "__init__.py").touch()
    for name in ("settings.py", "orders/apps.py", "orders/views.py"):
        (tmp_path / name).write_text(titled(RECIPES, name).text, encoding="utf-8")
    for name, text in (("project.py", PROJECT), ("urls.py", URLS), ("visits.py", VISITS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = environment_of(upstream)
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    printed = await program(tmp_path, "visits.py", DJANGO_SETTINGS_MODULE="project", **environment)
    assert printed == "[202, 202, 202, 202, 202, 202]\n"
    bodies = sorted(row.body or b"" for row in upstream.accepted())
    assert bodies == [b'{"order":%d}' % number for number in range(5)]


async def test_cron(upstream: LocalUpstream, tmp_path: Path) -> None:
    """Started twice, it sends once; what the service refuses makes it exit with 1 and say what."""
    block = python_block(RECIPES, "def reports")
    for _ in range(2):
        assert await run_block(block, tmp_path, upstream) == (0, "")
    rows = upstream.accepted()
    assert len(rows) == 300
    assert {row.repeats for row in rows} == {1}
    upstream.set_faults("poison_400=:7,")  # customer 7
    changed = block._replace(text=block.text.replace("report-{", "again-{"))
    code, errors = await run_block(changed, tmp_path, upstream)
    assert code == 1
    assert "400" in errors
    assert len(errors.splitlines()) == 1
    assert len(upstream.accepted()) == 599


# ------------------------------------------------------------------------------------- tests of one's own


async def test_the_readers_own_tests(tmp_path: Path) -> None:
    """Their fixtures and tests pass; and one's own store passes the conformance suite."""
    for page, name in (
        (RECIPES, "conftest.py"),
        (RECIPES, "test_orders.py"),
        (CONTRIBUTING, "test_my_store.py"),
    ):
        (tmp_path / name).write_text(titled(page, name).text, encoding="utf-8")
    words = ("-m", "pytest", "-v", "-W", "error", "-p", "no:cacheprovider", str(tmp_path))
    printed = await program(tmp_path, *words, PATH=os.environ["PATH"], PYTHONPATH=str(ROOT))
    assert printed.count("test_orders.py::") == 4
    assert printed.count("test_my_store.py::TestMyStore::") > 20


def test_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found by its name in the table, counts what can be sent, and says what cannot."""
    block = titled(CONTRIBUTING, "dispatcher/cli/count.py")
    spec = spec_from_loader("dispatcher.cli.count", loader=None)
    assert spec is not None
    module = module_from_spec(spec)
    exec(compile(block.text, "count.py", "exec", dont_inherit=True), module.__dict__)
    monkeypatch.setitem(sys.modules, "dispatcher.cli.count", module)
    monkeypatch.setitem(COMMANDS, "count", "count messages")
    lines = tmp_path / "lines"
    lines.write_text('{"destination": "https://example.com"}\n{"url": "https://example.com"}\n')
    assert main(["count", str(lines)]) == 0
    assert capsys.readouterr() == ("2 messages\n", "")
    lines.write_text('{"destination": "https://example.com"}\n{"url": "https://example.com", "nobody": 1}\n')
    assert main(["count", str(lines)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "1 messages\n"
    assert printed.err.startswith("line 2: the key 'nobody' is unknown")


# ---------------------------------------------------------------------------------- the transactional write


class Crash(Exception):  # noqa: N818 - it is what happens, not an error of ours
    """The process ends here."""


class Shop:
    """The recipe's functions over a database, a store and an upstream; each run may crash somewhere."""

    def __init__(self, folder: Path, upstream: LocalUpstream) -> None:
        self.recipe = namespace_of(titled(RECIPES, "transactional.py"))
        self.folder = folder
        self.config = Config(token=upstream.token, url=upstream.url)
        self.database = sqlite3.connect(folder / "shop.db")
        self.database.executescript(self.recipe["SCHEMA"])

    def place(self, *numbers: int) -> None:
        """Orders, each with its message."""
        for number in numbers:
            self.recipe["place_order"](self.database, number, 1)

    async def run(self) -> None:
        """One life of the relay, until all of it is delivered."""
        store = SQLiteStore(self.folder / "outbox.db", min_free_bytes=0)
        with anyio.fail_after(BLOCK_SECONDS):
            async with Dispatcher(self.config) as dispatcher, Outbox(store, dispatcher) as outbox:
                await self.recipe["relay"](self.database, outbox)
                while outbox.status().waiting + outbox.status().claimed:
                    await anyio.sleep(0.005)

    def rows(self) -> list[tuple[int, str | None]]:
        """What waits in the application's own table."""
        return self.database.execute("SELECT id, problem FROM outgoing").fetchall()


async def test_transactional_as_it_stands(upstream: LocalUpstream, tmp_path: Path) -> None:
    """The program: one order, one message."""
    block = titled(RECIPES, "transactional.py")
    assert await run_block(block, tmp_path, upstream) == (0, "")
    assert [(row.body, row.queue) for row in upstream.accepted()] == [(b'{"order": 1}', "orders")]


async def test_a_transactional_write_survives_a_crash_anywhere(
    upstream: LocalUpstream, tmp_path: Path
) -> None:
    """Rolled back: nothing. Killed before the acceptance, or between it and the deletion: each order once."""
    shop = Shop(tmp_path, upstream)
    with closing(shop.database):
        shop.place(*range(700))
        with pytest.raises(sqlite3.IntegrityError):
            shop.place(5)  # its message is rolled back with it
        forget = shop.recipe["forget"]

        def crash(database: sqlite3.Connection, ids: list[int]) -> None:
            if ids:
                raise Crash

        shop.recipe["forget"] = crash  # accepted, and not deleted any more
        with pytest.raises(Crash):
            await shop.run()
        assert len(shop.rows()) == 700
        shop.recipe["forget"] = forget
        shop.place(700)
        await shop.run()
        await shop.run()
        assert shop.rows() == []
    bodies = [json.loads(row.body or b"")["order"] for row in upstream.accepted()]
    assert bodies == list(range(701))
    assert {row.repeats for row in upstream.accepted()} == {0}


async def test_a_row_that_is_wrong_stays_with_its_reason(
    upstream: LocalUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds up nothing, and is not lost."""
    shop = Shop(tmp_path, upstream)
    with closing(shop.database):
        shop.place(1)
        with shop.database:
            shop.database.execute("INSERT INTO outgoing (destination, body) VALUES ('ftp://x', '')")
        shop.place(2)
        await shop.run()
        ((number, problem),) = shop.rows()
    assert number == 2
    assert "ftp://x" in str(problem)
    assert "row 2 of outgoing" in caplog.text
    assert len(upstream.accepted()) == 2


async def test_numbers_are_never_given_twice(upstream: LocalUpstream, tmp_path: Path) -> None:
    """An order placed after everything was accepted is not taken for one that was."""
    shop = Shop(tmp_path, upstream)
    with closing(shop.database):
        shop.place(1)
        await shop.run()
        shop.place(2)
        await shop.run()
        assert shop.rows() == []
    assert len(upstream.accepted()) == 2
