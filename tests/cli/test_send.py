"""`dispatcher send` as a user runs it, against a real local upstream: lines in, receipts out."""

from __future__ import annotations

import base64
import os
import pty
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.testing import local_upstream
from tests.cli.send_support import TOKEN, URL, environment, items, read, send, sending, write
from tests.devserver.support import connected

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_every_form_of_line_gets_its_receipt(tmp_path: Path) -> None:
    """Items, SDK requests, groups, queues, bytes and blank lines, in the order of the file."""
    lines: list[dict[str, object] | bytes] = [
        {"destination": URL, "body": "ä€😀", "headers": {"Upstash-Method": "PUT"}},
        {"url": URL, "body": {"n": 1}, "retries": 0},
        b"",
        {"url_group": "team", "body": "g"},
        {"destination": "team", "queue": None, "body": "h"},
        {"destination": URL, "queue": "billing", "body": "q"},
        {"destination": URL, "body_base64": base64.b64encode(b"\xff\x00").decode()},
        {"destination": URL, "headers": {"Upstash-Deduplication-Id": "mine"}},
        {"destination": URL, "headers": {"Upstash-Deduplication-Id": "mine"}},
    ]
    name = write(tmp_path / "in", lines)
    async with connected() as (upstream, connection):
        endpoints = {"endpoints": [{"url": "https://a.example"}, {"url": "https://b.example"}]}
        assert (await connection.ask("POST", "/v2/topics/team/endpoints", endpoints))[0] == 200
        done = await send(name, "--receipts", str(tmp_path / "out"), url=upstream.url)
        accepted = upstream.accepted()
    assert done.code == 0, done.stderr
    receipts = read(tmp_path / "out")
    assert [receipt["line"] for receipt in receipts] == list(range(1, 10))
    assert receipts[2] == {"line": 3, "skipped": "blank"}
    for receipt in receipts[3:5]:
        assert receipt["messageId"] is None
        assert [one["url"] for one in receipt["endpoints"]] == ["https://a.example", "https://b.example"]
    assert receipts[7]["messageId"] == receipts[8]["messageId"]
    assert sum(receipt.get("deduplicated", False) for receipt in receipts) == 1
    assert {row.body for row in accepted} == {
        *("ä€😀".encode(), b'{"n":1}', b"g", b"h", b"q", b"\xff\x00", b""),
    }
    by_id = {message_id: row for row in accepted for message_id in row.message_ids}
    assert by_id[receipts[0]["messageId"]].body == "ä€😀".encode()
    assert by_id[receipts[6]["messageId"]].body == b"\xff\x00"
    assert "9 lines: 8 delivered (1 known to the service before), 0 failed, 1 blank" in done.stderr


@pytest.mark.parametrize("through_pipe", [False, True])
async def test_many_lines_keep_their_order(tmp_path: Path, *, through_pipe: bool) -> None:
    """Each receipt has the id of its own message, also from a pipe, and queues keep the file's order."""
    lines = [
        {"destination": URL, "body": f"{number}", **({"queue": f"q{number % 3}"} if number % 2 else {})}
        for number in range(5_000)
    ]
    name = write(tmp_path / "in", lines)
    async with local_upstream(faults="error_after=0.05 throttle_burst=0.02 burst_reset=50ms") as upstream:
        done = await send(
            *("-" if through_pipe else name, "--receipts", str(tmp_path / "out")),
            url=upstream.url,
            stdin=(tmp_path / "in").read_bytes() if through_pipe else None,
        )
        accepted = upstream.accepted()
    assert done.code == 0, done.stderr
    by_id = {message_id: row for row in accepted for message_id in row.message_ids}
    receipts = read(tmp_path / "out")
    assert [by_id[receipt["messageId"]].body for receipt in receipts] == [
        str(number).encode() for number in range(5_000)
    ]
    for queue in ("q0", "q1", "q2"):
        numbers = [int(row.body or b"") for row in accepted if row.queue == queue]
        assert len(numbers) > 800
        assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"destination":"https://a.example","body":"1"}\r\n{"url":"https://a.example","body":"2"}',
        b'{"destination":"https://a.example","body":"1"}\r\n{"url":"https://a.example","body":"2"}\r\n',
    ],
)
async def test_editors_of_all_kinds_are_understood(tmp_path: Path, content: bytes) -> None:
    """A byte order mark, carriage returns, a last line without an end."""
    (tmp_path / "in").write_bytes(content)
    async with local_upstream() as upstream:
        done = await send(str(tmp_path / "in"), "--receipts", "-", url=upstream.url)
        bodies = [row.body for row in upstream.accepted()]
    assert (done.code, bodies) == (0, [b"1", b"2"]), done.stderr
    assert [orjson.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 2]


@pytest.mark.parametrize("source", ["file", "pipe", "/dev/null"])
async def test_nothing_is_all_delivered(tmp_path: Path, source: str) -> None:
    """An empty input is no error, and nobody is asked."""
    (tmp_path / "in").touch()
    name = {"file": str(tmp_path / "in"), "pipe": "-"}.get(source, source)
    async with local_upstream() as upstream:
        done = await send(name, url=upstream.url, stdin=b"" if source == "pipe" else None)
        assert not upstream.requests
    assert done.code == 0, done.stderr
    assert "0 lines: 0 delivered, 0 failed" in done.stderr


async def test_the_token_comes_from_a_file(tmp_path: Path) -> None:
    """Which wins over the environment; there is no argument that takes the token itself."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    name = write(tmp_path / "in", items(1))
    async with local_upstream() as upstream:
        words = (name, "--token-file", str(tmp_path / "token"))
        assert (await send(*words, url=upstream.url, token="wrong")).code == 0
        assert (await send(*words, url=upstream.url, token=None)).code == 0
        refused = await send(name, "--token", TOKEN, url=upstream.url)
    assert refused.code == 2
    assert "unrecognized arguments: --token" in refused.stderr


async def test_settings_come_from_flags_and_a_file(tmp_path: Path) -> None:
    """A flag wins over the TOML file that `--config` names."""
    name = write(tmp_path / "in", items(20))
    (tmp_path / "c.toml").write_text("[batch]\nmax_messages = 5\n")
    words = (name, "--config", str(tmp_path / "c.toml"), "--limit-max-in-flight", "1")
    async with local_upstream() as upstream:
        assert (await send(*words, url=upstream.url)).code == 0
        assert upstream.summary()["batch_sizes"] == {"5": 4}
        assert (await send(*words, "--batch-max-messages", "10", url=upstream.url)).code == 0
        assert upstream.summary()["batch_sizes"] == {"5": 4, "10": 2}


async def test_progress_is_for_a_terminal(tmp_path: Path) -> None:
    """There one line is redrawn and taken away at the end; `--no-progress` and a pipe have none."""
    name = write(tmp_path / "in", items(300))
    words = (name, "--batch-max-messages", "100", "--limit-max-in-flight", "1")
    async with local_upstream(faults="latency=400ms") as upstream:
        shown = await _on_terminal(*words, url=upstream.url)
        plain = await _on_terminal(*words, "--no-progress", url=upstream.url)
        piped = await send(*words, url=upstream.url)
    assert "\r\x1b[K100 delivered · 0 failed · 200 held · 1 requests in flight · " in shown
    assert "/s · 100% read" in shown
    assert "dispatcher send: 300 lines: 300 delivered" in shown.rpartition("\x1b[K")[2]
    for text in (plain, piped.stderr):
        assert "in flight" not in text
        assert "\x1b" not in text
        assert "300 lines: 300 delivered" in text


async def _on_terminal(*words: str, url: str) -> str:
    ours, theirs = pty.openpty()
    try:
        async with sending(*words, env=environment(url), stderr=theirs) as process:
            assert await process.wait() == 0
        os.set_blocking(ours, False)
        return os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


async def test_quiet_says_nothing_of_a_good_run(tmp_path: Path) -> None:
    """Nor of lines that fail: for those there is the exit code, and the files."""
    name = write(tmp_path / "in", [*items(2), b"{"])
    async with local_upstream() as upstream:
        done = await send(name, "--quiet", url=upstream.url)
    assert (done.code, done.stderr, done.stdout) == (1, "", b"")


async def test_help_documents_the_files(tmp_path: Path) -> None:
    """Forms of the lines, exit codes and every setting."""
    done = await send("--help", url=None)
    assert done.code == 0
    for text in (b"_failure", b'"skipped": "blank"', b"exit code", b"--deliver-within", b"--token-file"):
        assert text in done.stdout
