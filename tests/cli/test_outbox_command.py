"""`dispatcher outbox`: on a file that nobody has, and on one that a process has."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.outbox.sqlite_lock import FileLock
from dispatcher.testing import local_upstream
from tests.cli.send_support import PATIENCE_SECONDS, URL, Done, environment, items, send, write
from tests.sidecar.daemon_support import DESTINATION, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def outbox(*words: str) -> Done:
    """Run the command to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "outbox", *words),
        env=environment(None, None),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, stdout, stderr.decode(), 0.0)


async def fill(tmp_path: Path) -> str:
    """A file with three dead letters, one of them bytes; its name."""
    lines = [{"destination": URL, "body": f"poison {n}", "queue": "q"} for n in range(2)]
    lines.append({"destination": URL, "body_base64": "cG9pc29u/w=="})
    file = str(tmp_path / "out.db")
    async with local_upstream(faults="poison_400=poison") as upstream:
        done = await send(write(tmp_path / "in", [*items(20), *lines]), "--outbox", file, url=upstream.url)
        assert len(upstream.accepted()) == 20
    assert done.code == 1, done.stderr
    return file


async def test_dead_letters_of_a_file_are_told_exported_retried_and_deleted(tmp_path: Path) -> None:
    """What is exported can be sent, and is what it was."""
    file = await fill(tmp_path)
    status = orjson.loads((await outbox("status", file, "--json")).stdout)
    assert (status["waiting"], status["claimed"], status["dead"]) == (0, 0, 3)
    assert b"dead         3\n" in (await outbox("status", file)).stdout
    letters = [
        orjson.loads(line) for line in (await outbox("dead-letters", file, "--json")).stdout.splitlines()
    ]
    assert [letter["queue"] for letter in letters] == ["q", "q", None]
    assert all(letter["reason"].startswith("400") for letter in letters)
    told = (await outbox("dead-letters", file)).stdout.decode()
    assert [line.split()[0] for line in told.splitlines()] == [letter["messageId"] for letter in letters]
    assert "poison" not in told
    exported = await outbox("export", file)
    (tmp_path / "again").write_bytes(exported.stdout)
    async with local_upstream() as upstream:
        assert (await send(str(tmp_path / "again"), url=upstream.url)).code == 0
        bodies = {(row.queue, row.body) for row in upstream.accepted()}
        assert bodies == {("q", b"poison 0"), ("q", b"poison 1"), (None, b"poison\xff")}
    first, second, _ = (letter["messageId"] for letter in letters)
    assert (await outbox("delete", file, first)).stdout == b"1 messages\n"
    assert (await outbox("delete", file, first)).code == 1
    assert (await outbox("retry", file, second)).code == 0
    assert (await outbox("retry", file, "--all", "--json")).stdout == b'{"messages":1}\n'
    status = orjson.loads((await outbox("status", file, "--json")).stdout)
    assert (status["waiting"], status["dead"]) == (2, 0)


async def test_a_running_daemon_is_asked(tmp_path: Path) -> None:
    """It has the file; the command speaks to its admin listener, and shows the lock's key for the bodies."""
    file = str(tmp_path / "out.db")
    async with (
        local_upstream(faults="poison_400=poison") as upstream,
        serving("--outbox", file, url=upstream.url) as sidecar,
    ):
        status, _ = await sidecar.publish("poison")
        assert status == 400
        (line,) = (await outbox("dead-letters", file, "--json")).stdout.splitlines()
        letter = orjson.loads(line)
        assert letter["destination"] == DESTINATION
        assert orjson.loads((await outbox("status", file, "--json")).stdout)["dead"] == 1
        exported = await outbox("export", file, letter["messageId"])
        assert exported.code == 0, exported.stderr
        assert orjson.loads(exported.stdout)["body"] == "poison"
        assert (await outbox("export", file, "out_x")).code == 1
        upstream.set_faults(None)
        assert (await outbox("retry", file, letter["messageId"])).stdout == b"1 messages\n"
        await sidecar.until(lambda: len(upstream.accepted()) == 1)
        assert (await outbox("delete", file, "--all")).stdout == b"0 messages\n"


async def test_wrong_usage_and_a_holder_without_a_listener_are_told(tmp_path: Path) -> None:
    """No file is made, and the holder is named."""
    file = tmp_path / "out.db"
    missing = await outbox("status", str(file))
    assert (missing.code, file.exists()) == (2, False)
    assert "there is no such file" in missing.stderr
    file.touch()
    for words in (("retry", str(file)), ("delete", str(file), "--all", "x"), ("status", str(file), "x")):
        assert (await outbox(*words)).code == 2
    lock = FileLock(file)
    lock.announce()
    taken = await outbox("status", str(file))
    lock.release()
    assert taken.code == 1
    assert "has this outbox open" in taken.stderr
