"""How `dispatcher send` ends before its input does: configuration, refusals, signals, broken files."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from dispatcher.testing import local_upstream
from tests.cli.send_support import (
    PATIENCE_SECONDS,
    URL,
    environment,
    items,
    lines_in,
    read,
    send,
    sending,
    until,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
SIGNALS = [signal.SIGINT, signal.SIGTERM]


async def test_a_wrong_token_ends_it_at_once(tmp_path: Path) -> None:
    """Exit 2 within 2 s, says what was refused, and does not read on."""
    name = write(tmp_path / "in", items(200_000))
    async with local_upstream() as upstream:
        idle = await send("/dev/null", url=upstream.url)  # what starting takes on this machine, now
        done = await send(name, "--receipts", str(tmp_path / "out"), url=upstream.url, token="wrong")
        assert upstream.accepted() == []
        assert len(upstream.requests) < 100
    assert done.code == 2
    assert done.seconds < idle.seconds + 1.5
    assert "the upstream refuses this token or URL with 401: unauthorized" in done.stderr
    assert done.stderr.count("401") == 1
    receipts = read(tmp_path / "out")
    assert len(receipts) < 20_000
    assert {receipt["error"] for receipt in receipts} <= {"Halted", "Stopped"}
    assert f"stopped at line {len(receipts):,}" in done.stderr


async def test_a_token_revoked_in_the_middle_ends_it(tmp_path: Path) -> None:
    """Something was delivered: exit 1, after one deadline, with the reason, and the rest is not read."""
    name, out = write(tmp_path / "in", items(60_000)), tmp_path / "out"
    words = (name, "--receipts", str(out), "--deliver-within", "2", "--limit-max-in-flight", "4")
    async with local_upstream(faults="latency=20ms") as upstream:
        async with sending(*words, env=environment(upstream.url)) as process:
            await until(lambda: lines_in(out) > 2_000)
            upstream.set_token("another")
            async with asyncio.timeout(PATIENCE_SECONDS):
                stderr = (await process.communicate())[1].decode()
        accepted = len(upstream.accepted())
    receipts = read(out)
    assert process.returncode == 1, stderr
    assert f"stopped at line {len(receipts):,}: " in stderr
    assert "401" in stderr
    assert 2_000 < sum("messageId" in receipt for receipt in receipts) == accepted
    assert len(receipts) < 60_000


async def test_a_wrong_base_url_ends_it_at_once(tmp_path: Path) -> None:
    """A path where no service is; and one that the configuration knows for a mistake, where nobody asks."""
    name = write(tmp_path / "in", items(5_000))
    async with local_upstream() as upstream:
        idle = await send("/dev/null", url=upstream.url)
        wrong = await send(name, url=f"{upstream.url}/nowhere")
        assert upstream.accepted() == []
        asked = len(upstream.requests)
        mistaken = await send(name, url=f"{upstream.url}/v2/batch")
        assert len(upstream.requests) == asked
        assert f"wanted is the base URL, {upstream.url}; the paths are added" in mistaken.stderr
    assert wrong.code == 2, wrong.stderr
    assert "the upstream refuses this token or URL with 404" in wrong.stderr
    assert mistaken.code == 2
    assert max(wrong.seconds, mistaken.seconds) < idle.seconds + 1.5


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["missing"], "missing cannot be read: No such file or directory"),
        (["."], ". cannot be read: it is a directory"),
        (["in", "--receipts", "no/where"], "no/where cannot be written: No such file or directory"),
        (["in", "--failures", "no/where"], "no/where cannot be written"),
        (["in", "--receipts", "in"], "in is read; writing it would destroy it"),
        (["in", "--failures", "link"], "link is read; writing it would destroy it"),
        (["in", "--receipts", "x", "--failures", "./x"], "two files, not both in ./x"),
        (["in", "--token-file", "missing"], "DISPATCHER_TOKEN_FILE: 'missing' cannot be read: No such"),
        (["in", "--config", "missing"], "file: 'missing' cannot be read: No such file"),
        (["in", "--deliver-within", "0"], "'0' is not allowed; allowed is a number, > 0"),
        ([], "required: FILE"),
    ],
)
async def test_wrong_usage_is_told_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    """Exit 2, with what is wrong; the input is left as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), _root()]))
    write(tmp_path / "in", items(3))
    (tmp_path / "link").hardlink_to(tmp_path / "in")
    async with local_upstream() as upstream:
        done = await send(*words, url=upstream.url)
        assert not upstream.requests
    assert done.code == 2
    assert text in done.stderr
    assert len(read(tmp_path / "in")) == 3


def _root() -> str:
    import dispatcher

    return os.path.dirname(os.path.dirname(dispatcher.__file__))  # noqa: PTH120


async def test_no_token_is_told(tmp_path: Path) -> None:
    """With the names of the two places where it may be."""
    done = await send(write(tmp_path / "in", items(1)), url=None, token=None)
    assert done.code == 2
    assert done.stderr.startswith(
        "dispatcher send: token: it is missing; set QSTASH_TOKEN, or DISPATCHER_TOKEN_FILE"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_an_unreachable_host_is_told_and_tried(tmp_path: Path, host: str) -> None:
    """It says so within 3 s, keeps trying for `--deliver-within`, and gives up with exit 1."""
    name = write(tmp_path / "in", items(30_000))
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        env = environment(f"http://{host}:{taken.getsockname()[1]}")
        began = asyncio.get_running_loop().time()
        async with sending(name, "--deliver-within", "4", "--drain-within", "1", env=env) as process:
            assert process.stderr is not None
            async with asyncio.timeout(PATIENCE_SECONDS):
                first = (await process.stderr.readline()).decode()
                told_after = asyncio.get_running_loop().time() - began
                rest = (await process.communicate())[1].decode()
            seconds = asyncio.get_running_loop().time() - began
    assert first.startswith(f"dispatcher send: cannot connect to http://{host}")
    assert told_after < 3
    assert rest.count("trying again") == 0
    assert process.returncode == 1, rest
    assert 4 <= seconds < 12
    assert "was not reached within 4 s; nothing after it was read" in rest
    assert len(rest.splitlines()) < 10
    assert "more lines\n" in rest
    assert "0 delivered, " in rest


async def test_an_outage_at_the_start_is_waited_out(tmp_path: Path) -> None:
    """What is unreachable first and comes up later gets everything."""
    name = write(tmp_path / "in", items(500))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with sending(name, env=environment(f"http://127.0.0.1:{port}")) as process:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert b"cannot connect" in await process.stderr.readline()
            async with local_upstream(port=port) as upstream:
                assert b"the upstream is reached again" in (await process.communicate())[1]
                assert len(upstream.accepted()) == 500
    assert process.returncode == 0


async def test_an_upstream_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """It takes connections and says nothing: after one deadline, and not after one for every 10,000 lines."""
    name, out = write(tmp_path / "in", items(30_000)), tmp_path / "out"
    words = (name, "--receipts", str(out), "--deliver-within", "2", "--drain-within", "1", "--quiet")
    async with local_upstream(faults="hang_before=1") as upstream:
        done = await send(*words, url=upstream.url)
        assert f"{upstream.url} did not answer within 2 s; nothing after it was read" in done.stderr
    assert done.code == 1
    assert done.seconds < 10
    assert 10_000 < len(read(out)) < 30_000


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_stops_the_reading_and_drains(tmp_path: Path, number: signal.Signals) -> None:
    """What was taken is delivered, every line that was read has its record, the rest is said not to be."""
    name, out, failed = write(tmp_path / "in", items(50_000)), tmp_path / "out", tmp_path / "failed"
    words = (name, "--receipts", str(out), "--failures", str(failed), "--limit-max-in-flight", "4")
    async with local_upstream(faults="latency=50ms") as upstream:
        async with sending(*words, env=environment(upstream.url)) as process:
            await until(lambda: lines_in(out) > 1_000)
            process.send_signal(number)
            async with asyncio.timeout(PATIENCE_SECONDS):
                stderr = (await process.communicate())[1].decode()
        accepted = len(upstream.accepted())
    receipts = read(out)
    assert process.returncode == 1, stderr
    assert f"{number.name}: reading stops" in stderr
    assert f"stopped at line {len(receipts):,}: {number.name} was received; nothing after it" in stderr
    assert [receipt["line"] for receipt in receipts] == list(range(1, len(receipts) + 1))
    assert 10_000 < len(receipts) < 20_000
    assert sum("messageId" in receipt for receipt in receipts) == accepted
    left = [receipt["line"] for receipt in receipts if "messageId" not in receipt]
    assert left == [line["_failure"]["line"] for line in read(failed)]
    assert {receipt["error"] for receipt in receipts if "messageId" not in receipt} <= {"Stopped"}


async def test_a_drain_ends(tmp_path: Path) -> None:
    """After `--drain-within` what is still held fails, with what is known of it."""
    name, out = write(tmp_path / "in", items(100)), tmp_path / "out"
    async with local_upstream(faults="hang_after=1") as upstream:
        words = (name, "--receipts", str(out), "--drain-within", "0.5")
        async with sending(*words, env=environment(upstream.url), stdin=asyncio.subprocess.PIPE) as process:
            await until(lambda: len(upstream.accepted()) == 100)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(5):
                stderr = (await process.communicate())[1].decode()
    assert process.returncode == 1
    assert {receipt["certainty"] for receipt in read(out)} == {"unknown"}
    assert "0 delivered, 100 failed" in stderr
    assert stderr.count("Abandoned: ") == 1
    assert "as line 1: 99 more lines" in stderr


async def test_a_signal_after_the_last_line_is_no_failure(tmp_path: Path) -> None:
    """Everything was read and everything is delivered: exit 0."""
    name = write(tmp_path / "in", items(100))
    async with local_upstream(faults="latency=1s") as upstream:
        async with sending(name, env=environment(upstream.url)) as process:
            await until(lambda: bool(upstream.requests) or len(upstream.accepted()) > 0)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_SECONDS):
                stderr = (await process.communicate())[1].decode()
        assert len(upstream.accepted()) == 100
    assert "stopped at line 100: SIGTERM was received; it is the last one" in stderr
    assert process.returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
async def test_an_idle_pipe_does_not_hold_it(number: signal.Signals, tmp_path: Path) -> None:
    """Nobody writes and nobody closes the pipe: a signal ends it all the same, and a second is not needed."""
    out = tmp_path / "out"
    async with local_upstream() as upstream:
        words = ("-", "--receipts", str(out))
        async with sending(*words, env=environment(upstream.url), stdin=asyncio.subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b'{"destination":"%s"}\n{"dest' % URL.encode())
            await until(lambda: lines_in(out) == 1)
            process.send_signal(number)
            async with asyncio.timeout(5):
                assert await process.wait() == 1
    assert len(read(out)) == 1


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_second_signal_is_now(tmp_path: Path, number: signal.Signals) -> None:
    """It does not wait for the drain, and exits as the shell expects."""
    name = write(tmp_path / "in", items(100))
    async with (
        local_upstream(faults="hang_before=1") as upstream,
        sending(name, env=environment(upstream.url)) as process,
    ):
        assert process.stderr is not None
        await until(lambda: bool(upstream.connections))
        process.send_signal(number)
        async with asyncio.timeout(5):
            assert b"reading stops" in await process.stderr.readline()
            process.send_signal(number)
            stderr = (await process.communicate())[1]
    assert process.returncode == 128 + number
    assert b"stopped at once, with 100 messages unconfirmed" in stderr


async def test_a_reader_that_leaves_ends_it(tmp_path: Path) -> None:
    """`dispatcher send FILE --receipts - | head -1`: no traceback, and not exit 0."""
    name = write(tmp_path / "in", items(100_000))
    ours, theirs = os.pipe()
    async with local_upstream() as upstream:
        async with sending(name, "--receipts", "-", env=environment(upstream.url), stdout=theirs) as process:
            os.close(theirs)
            with os.fdopen(ours, "rb") as pipe:
                assert (await asyncio.to_thread(pipe.readline)).startswith(b'{"line":1,')
            async with asyncio.timeout(PATIENCE_SECONDS):
                stderr = (await process.communicate())[1].decode()
        assert len(upstream.accepted()) < 100_000
    assert process.returncode == 1
    assert "receipts or failures cannot be written: Broken pipe" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "2>/dev/full"])
async def test_it_needs_no_standard_error(tmp_path: Path, closed: str) -> None:
    """Started without one, or with one that takes nothing, it sends all the same."""
    name, out = write(tmp_path / "in", [*items(3), b"{"]), tmp_path / "out"
    command = f'exec "{sys.executable}" -m dispatcher send "{name}" --receipts "{out}" {closed}'
    async with local_upstream() as upstream:
        process = await asyncio.create_subprocess_shell(command, env=environment(upstream.url))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.wait() == 1
        assert len(upstream.accepted()) == 3
    assert [receipt["line"] for receipt in read(out)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("- <&-", "- cannot be read: Bad file descriptor"),
        ("/dev/null --receipts - >&-", "standard output cannot be written: Bad file descriptor"),
    ],
)
async def test_a_closed_stream_that_is_wanted_is_refused(words: str, text: str) -> None:
    """Nothing is read from nowhere, and no receipt is lost there."""
    async with local_upstream() as upstream:
        process = await asyncio.create_subprocess_shell(
            f'exec "{sys.executable}" -m dispatcher send {words}',
            env=environment(upstream.url),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            stderr = (await process.communicate())[1].decode()
    assert process.returncode == 2, stderr
    assert text in stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")  # noqa: PTH110
async def test_a_full_disk_ends_it(tmp_path: Path) -> None:
    """Without its receipts nobody could tell what was sent: it stops, says so, and does not exit 0."""
    async with local_upstream() as upstream:
        done = await send(write(tmp_path / "in", items(3)), "--receipts", "/dev/full", url=upstream.url)
    assert done.code == 1
    assert "cannot be written: No space left on device" in done.stderr
