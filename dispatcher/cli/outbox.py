"""`dispatcher outbox`: what an outbox's file holds, and what is to become of its dead letters.

Opens the file where nobody has it; else asks the process that has it, at its admin listener, and shows for
`export` the key that stands in the file's lock. Makes no file, sends no message, and shows no body but to
`export`.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, urlsplit

import anyio.to_thread
import msgspec
import orjson

from dispatcher.cli import EXIT_DONE, EXIT_UNDELIVERED, EXIT_USAGE
from dispatcher.cli.loop import run_in_loop
from dispatcher.errors import OutboxError
from dispatcher.outbox import SQLiteStore, StoreStatus
from dispatcher.outbox.export import ID_KEY, exported
from dispatcher.outbox.sqlite_lock import Holder, holder_of
from dispatcher.sdk import FAILURE_KEY
from dispatcher.sidecar.admin_outbox import HEADER, KEY_HEADER
from dispatcher.sidecar.kept_messages import letter_of
from dispatcher.sidecar.redis_url import is_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


NAME: Final = "dispatcher outbox"
ACTIONS: Final = ("status", "dead-letters", "retry", "export", "delete")
PAGE: Final = 1_000
"""Dead letters that are read at a time."""
LINES: Final = 100
"""Whole ones."""
SECONDS: Final = 30.0
"""That an admin listener may take."""
FACTS: Final = tuple(field.name for field in msgspec.structs.fields(StoreStatus))

DESCRIPTION: Final = "Look at an outbox's file and its dead letters, and decide about these."
EPILOG: Final = """\
status        what is held, and how the file does
dead-letters  what the service rejected: id, when, why, where to
export        the dead letters as lines for `dispatcher send`, on standard output; they stay in the file
retry         have them (ids or --all) wait again, in their old places
delete        forget them (ids or --all)

Where a process has the file open, it is asked at its admin listener (`dispatcher serve`).

exit code: 0 done; 1 it could not be done, or not of every id; 2 wrong usage, or there is no such file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dispatcher outbox`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("action", metavar="ACTION", choices=ACTIONS, help=", ".join(ACTIONS))
    add("file", metavar="FILE", help="the outbox's file")
    add("ids", metavar="ID", nargs="*", help="dead letters, for export, retry and delete")
    add("--all", action="store_true", help="every dead letter, for retry and delete")
    add("--json", action="store_true", help="print JSON, one object a line")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code. Raises `OutboxError`."""
    path, ids = Path(arguments.file), arguments.ids or None
    if problem := _misuse(arguments, path):
        print(f"{NAME}: {problem}", file=sys.stderr)
        return EXIT_USAGE
    return run_in_loop(_do(arguments.action, path, ids, as_json=arguments.json))


def _misuse(arguments: argparse.Namespace, path: Path) -> str:
    action = arguments.action
    if action in ("retry", "delete") and bool(arguments.ids) == arguments.all:
        return f"{action} wants ids, or --all"
    if action in ("status", "dead-letters") and (arguments.ids or arguments.all):
        return f"{action} takes neither ids nor --all"
    if is_url(arguments.file):
        return "this reads files; of an outbox in Redis ask a sidecar's admin listener (GET /outbox)"
    return "" if path.is_file() else f"{path}: there is no such file"


class Desk(Protocol):
    """Who answers for a file."""

    async def status(self) -> dict[str, Any]:
        """How it does."""
        ...

    async def letters(self, after: str | None) -> list[dict[str, Any]]:
        """Some dead letters, those behind an id; none: there are no more."""
        ...

    async def lines(self, after: str | None) -> list[bytes]:
        """The same whole, as lines for `dispatcher send`."""
        ...

    async def change(self, action: str, ids: Sequence[str] | None) -> int:
        """Retry or delete; how many."""
        ...


class LocalDesk:
    """The file itself, open here."""

    def __init__(self, store: SQLiteStore) -> None:
        self.store = store

    async def status(self) -> dict[str, Any]:
        """See `Desk`."""
        facts: dict[str, Any] = msgspec.to_builtins(self.store.status())
        return facts

    async def letters(self, after: str | None) -> list[dict[str, Any]]:
        """See `Desk`."""
        return [letter_of(found) for found in await self.store.dead_letters(after, PAGE)]

    async def lines(self, after: str | None) -> list[bytes]:
        """See `Desk`."""
        return [exported(found) for found in await self.store.dead_letters(after, LINES)]

    async def change(self, action: str, ids: Sequence[str] | None) -> int:
        """See `Desk`."""
        return await (self.store.retry(ids) if action == "retry" else self.store.delete(ids))


class HolderDesk:
    """The process that has the file open, at its admin listener."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path = path
        self._pid = holder.pid
        self._admin = holder.admin or ""
        self._key = holder.key or ""

    async def status(self) -> dict[str, Any]:
        """See `Desk`."""
        said = await self._ask("GET", "/outbox")
        return {name: said[name] for name in FACTS if name in said}

    async def letters(self, after: str | None) -> list[dict[str, Any]]:
        """See `Desk`."""
        behind = "" if after is None else f"&after={quote(after)}"
        said = await self._ask("GET", f"/outbox/dead-letters?limit={PAGE}{behind}")
        letters: list[dict[str, Any]] = said["deadLetters"]
        return letters

    async def lines(self, after: str | None) -> list[bytes]:
        """See `Desk`."""
        behind = "" if after is None else f"?after={quote(after)}"
        return (await self._read("GET", f"/outbox/export{behind}", None)).splitlines(keepends=True)

    async def change(self, action: str, ids: Sequence[str] | None) -> int:
        """See `Desk`."""
        wish = {"all": True} if ids is None else {"ids": list(ids)}
        return int((await self._ask("POST", f"/outbox/{action}", orjson.dumps(wish)))["messages"])

    async def _ask(self, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
        said: dict[str, Any] = orjson.loads(await self._read(method, target, body))
        return said

    async def _read(self, method: str, target: str, body: bytes | None) -> bytes:
        return await anyio.to_thread.run_sync(self._asked, method, target, body)

    def _asked(self, method: str, target: str, body: bytes | None) -> bytes:
        place = urlsplit(self._admin)
        connection = HTTPConnection(place.hostname or "", place.port or 80, timeout=SECONDS)
        headers = {KEY_HEADER: self._key}
        if body:
            headers |= {HEADER: "outbox", "Content-Type": "application/json"}
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            said = response.read()
            words = "" if response.status == 200 else orjson.loads(said).get("error", "")
        except (OSError, HTTPException, orjson.JSONDecodeError) as error:
            who = f"process {self._pid}, which has {self._path} open,"
            raise OutboxError(f"{who} does not answer at {self._admin}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise OutboxError(f"{self._admin} answers {response.status}: {words}")
        return said


@asynccontextmanager
async def desk_of(path: Path) -> AsyncIterator[Desk]:
    """Who answers for the file.

    Raises:
        OutboxError: Another process has it and has no admin listener, or it cannot be opened.
    """
    holder = holder_of(path)
    if holder is not None and holder.admin:
        yield HolderDesk(path, holder)
        return
    store = SQLiteStore(path, min_free_bytes=0)
    await store.open()  # says who has it, if somebody has
    try:
        yield LocalDesk(store)
    finally:
        await store.aclose()


async def _do(action: str, path: Path, ids: Sequence[str] | None, *, as_json: bool) -> int:
    async with desk_of(path) as desk:
        if action == "status":
            _tell_status(await desk.status(), as_json=as_json)
            return EXIT_DONE
        if action == "dead-letters":
            await _tell_letters(desk, as_json=as_json)
            return EXIT_DONE
        if action == "export":
            return await _export(desk, ids)
        done = await desk.change(action, ids)
        print(orjson.dumps({"messages": done}).decode() if as_json else f"{done:,} messages")
        return EXIT_DONE if ids is None or done == len(set(ids)) else EXIT_UNDELIVERED


def _tell_status(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(orjson.dumps(facts).decode())
        return
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        if value is None or value == "":
            text = "-"
        elif name.endswith("_at"):
            text = _instant(value)
        elif isinstance(value, dict):
            text = ", ".join(f"{count:,} {what}" for what, count in value.items()) or "-"
        print(f"{name:<12} {text}")


async def _tell_letters(desk: Desk, *, as_json: bool) -> None:
    after = None
    while letters := await desk.letters(after):
        for letter in letters:
            if as_json:
                print(orjson.dumps(letter).decode())
            else:
                where = letter["destination"] + (f" ({letter['queue']})" if letter["queue"] else "")
                print(f"{letter['messageId']}  {_instant(letter['settledAt'])}  {where}  {letter['reason']}")
        after = letters[-1]["messageId"]


async def _export(desk: Desk, ids: Sequence[str] | None) -> int:
    wanted, after = None if ids is None else set(ids), None
    while lines := await desk.lines(after):
        for line in lines:
            after = orjson.loads(line)[FAILURE_KEY][ID_KEY]
            if wanted is None or after in wanted:
                sys.stdout.buffer.write(line)
                (wanted or set()).discard(after)
    sys.stdout.flush()
    return EXIT_UNDELIVERED if wanted else EXIT_DONE


def _instant(at: float | None) -> str:
    return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
