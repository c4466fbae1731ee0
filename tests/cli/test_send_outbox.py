"""`dispatcher send --outbox`: accepted first, sent then, taken up again where it ended."""

from __future__ import annotations

import asyncio
import io
import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher import Config
from dispatcher.cli._durable import send_durably
from dispatcher.cli._input import Input
from dispatcher.cli._screen import Screen
from dispatcher.outbox import SQLiteStore
from dispatcher.outbox.sqlite_lock import FileLock
from dispatcher.testing import local_upstream
from tests.cli.send_support import (
    PATIENCE_SECONDS,
    URL,
    environment,
    items,
    send,
    sending,
    until,
    write,
)
from tests.outbox.sqlite_support import opened

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_every_line_is_accepted_and_delivered(tmp_path: Path) -> None:
    """Queues keep the order of the lines; blank lines are skipped; a second start sends nothing again."""
    lines = [{"destination": URL, "queue": "q", "body": str(number)} for number in range(2_500)]
    words = (write(tmp_path / "in", [*lines, b""]), "--outbox", str(tmp_path / "out.db"))
    async with local_upstream() as upstream:
        done = await send(*words, url=upstream.url)
        assert done.code == 0, done.stderr
        assert [int(row.body or b"") for row in upstream.accepted()] == list(range(2_500))
        again = await send(*words, url=upstream.url)
        assert len(upstream.accepted()) == 2_500
    assert "2,501 lines: 2,500 accepted, 0 bad, 1 blank; 2,500 messages delivered now" in done.stderr
    assert again.code == 0
    assert "2,500 accepted (2,500 before), 0 bad, 1 blank; 0 messages delivered now" in again.stderr


async def test_what_was_added_to_the_input_is_sent(tmp_path: Path) -> None:
    """And an input that was changed before the mark is refused, and nothing of it is accepted."""
    words = (write(tmp_path / "in", items(5)), "--outbox", str(tmp_path / "out.db"))
    async with local_upstream() as upstream:
        await send(*words, url=upstream.url)
        write(tmp_path / "in", items(8))
        assert (await send(*words, url=upstream.url)).code == 0
        assert sorted(row.body or b"" for row in upstream.accepted()) == [b"%d" % n for n in range(8)]
        write(tmp_path / "in", items(9)[1:])
        changed = await send(*words, url=upstream.url)
        write(tmp_path / "in", items(3))
        shorter = await send(*words, url=upstream.url)
        other = await send(*words, "--run", "another", url=upstream.url)
        assert len(upstream.accepted()) == 8 + 3
    assert (changed.code, shorter.code, other.code) == (2, 2, 0)
    assert "its first 8 lines are not those that were accepted; give this one another --run" in changed.stderr
    assert "it has 3 lines, and 8 were accepted" in shorter.stderr


async def test_killed_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """From a pipe, which gives the same again: nothing twice, nothing left out."""
    write(tmp_path / "in", items(4_000))
    words = ("-", "--outbox", str(tmp_path / "out.db"), "--run", "pipe")
    async with local_upstream(faults="latency=30ms") as upstream:
        async with sending(*words, env=environment(upstream.url), stdin=asyncio.subprocess.PIPE) as process:
            assert process.stdin is not None
            with (tmp_path / "in").open("rb") as file:
                process.stdin.write(file.read(20_000))  # no end, and a line cut in two
            await until(lambda: len(upstream.accepted()) > 100)
            process.kill()
        with (tmp_path / "in").open("rb") as file:
            done = await send(*words, url=upstream.url, stdin=file.read())
        assert sorted(int(row.body or b"") for row in upstream.accepted()) == list(range(4_000))
    assert done.code == 0, done.stderr
    assert "4,000 lines: 4,000 accepted (" in done.stderr


async def test_a_signal_leaves_the_rest_in_the_file(tmp_path: Path) -> None:
    """Exit 1, it says how many stay, and the same command sends them."""
    words = (write(tmp_path / "in", items(3_000)), "--outbox", str(tmp_path / "out.db"))
    async with local_upstream(faults="unavailable=1 retry_after=5") as upstream:
        async with sending(*words, "--drain-within", "1", env=environment(upstream.url)) as process:
            await until(lambda: bool(upstream.requests))
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_SECONDS):
                stderr = (await process.communicate())[1].decode()
        upstream.set_faults(None)
        done = await send(*words, url=upstream.url)
        assert len(upstream.accepted()) == 3_000
    assert process.returncode == 1, stderr
    assert "SIGTERM was received" in stderr
    assert "messages are not settled and stay in" in stderr
    assert done.code == 0, done.stderr


async def test_what_is_rejected_is_a_dead_letter(tmp_path: Path) -> None:
    """Exit 1 for it and for a bad line, now and when it is taken up again."""
    lines: list[dict[str, Any] | bytes] = [
        *items(50),
        {"destination": URL, "body": "poison"},
        b"{",
        {"destination": "no where"},
    ]
    words = (write(tmp_path / "in", lines), "--outbox", str(tmp_path / "out.db"))
    async with local_upstream(faults="poison_400=poison") as upstream:
        done = await send(*words, url=upstream.url)
        again = await send(*words, url=upstream.url)
        assert len(upstream.accepted()) == 50
    assert (done.code, again.code) == (1, 1)
    for one in (done, again):
        assert "2 bad; " in one.stderr
        assert "1 dead letters: dispatcher outbox dead-letters" in one.stderr
    assert "line 52: BadLine" in done.stderr
    assert "line 53: MessageInvalid" in done.stderr


async def test_a_refused_token_ends_it(tmp_path: Path) -> None:
    """Exit 2; what was accepted stays."""
    words = (write(tmp_path / "in", items(10)), "--outbox", str(tmp_path / "out.db"))
    async with local_upstream() as upstream:
        refused = await send(*words, url=upstream.url, token="wrong")
        assert not upstream.accepted()
    assert refused.code == 2, refused.stderr
    assert "10 messages are not settled and stay in" in refused.stderr
    async with opened(tmp_path / "out.db") as store:
        assert store.status().waiting == 10


async def test_wrong_usage_is_told(tmp_path: Path) -> None:
    """Exit 2 for what does not go together; 1 where another process has the file, and which one."""
    name, file = write(tmp_path / "in", items(1)), str(tmp_path / "out.db")
    async with local_upstream() as upstream:
        for words, text in (
            ((name, "--run", "x"), "--run goes with --outbox"),
            ((name, "--outbox", file, "--receipts", "-"), "there are no --receipts and --failures"),
            (("-", "--outbox", file), "give it one with --run"),
        ):
            done = await send(*words, url=upstream.url)
            assert done.code == 2
            assert text in done.stderr
        lock = FileLock(tmp_path / "out.db")
        lock.announce()
        taken = await send(name, "--outbox", file, url=upstream.url)
        lock.release()
        assert not upstream.requests
    assert taken.code == 1
    assert "has this outbox open" in taken.stderr


async def test_a_relay_that_died_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for nothing that cannot come: exit 1, with the reason; what was accepted stays."""

    whole = SQLiteStore.claim

    async def claim(store: SQLiteStore, *asked: Any) -> Any:
        if store.status().waiting:
            raise ValueError("a fault of ours")
        return await whole(store, *asked)

    monkeypatch.setattr(SQLiteStore, "claim", claim)
    told = io.StringIO()
    with Input(write(tmp_path / "in", items(3))) as source:
        async with asyncio.timeout(PATIENCE_SECONDS):
            code = await send_durably(
                Config(token="t"),
                SQLiteStore(tmp_path / "out.db", min_free_bytes=0),
                source,
                "run",
                Screen(told, "send"),
                lambda *_: nullcontext(),
            )
    assert code == 1
    assert "the outbox's relay died of ValueError" in told.getvalue()
    assert "3 messages are not settled and stay in" in told.getvalue()
