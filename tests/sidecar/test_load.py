"""Death under load: the sidecar ended, killed, or without its upstream while hundreds publish at once."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from dispatcher.devserver.chaos import ChaosProxy
from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import TOKEN, Sidecar, environment, serving
from tests.sidecar.load_support import (
    NO_ANSWER,
    NOT_CONNECTED,
    Crowd,
    Stream,
    address_of,
    upstream_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.testing import LocalUpstream

pytestmark = pytest.mark.anyio
CALLERS = 300
DRAIN_WITHIN = 5
MANY = ("--limit-max-in-flight", "8", "--batch-max-messages", "20")
"""So that under load there always is something that has not left yet."""
NO_UVLOOP = "raise ImportError('not in this test')"


def ids(upstream: LocalUpstream) -> Counter[str]:
    """Of what was accepted; one that is there twice was doubled."""
    return Counter(one for row in upstream.accepted() for one in row.message_ids)


def bodies(upstream: LocalUpstream) -> Counter[str]:
    """What was accepted, by its body."""
    return Counter((row.body or b"").decode() for row in upstream.accepted())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the load has to bring about."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def watch_the_end(sidecar: Sidecar) -> list[str]:
    """What a balancer sees of it, in order: `ready`, `not ready`, `refused`."""
    seen: list[str] = []
    while "refused" not in seen:
        try:
            seen.append("ready" if await sidecar.health("/readyz") == 200 else "not ready")
        except aiohttp.ClientError:
            seen.append("refused")
        try:
            _, writer = await asyncio.open_connection(*address_of(sidecar.intake))
            writer.close()
        except OSError:
            seen.append("refused")
        await asyncio.sleep(0.005)
    return seen


# ------------------------------------------------------------------------------------------- the sidecar ends


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_sigterm_under_load(loop: str, tmp_path: Path) -> None:
    """What was answered 200 is there once, the rest is not; with streams, and queues in their order."""
    env = {}
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text(NO_UVLOOP)
        env["PYTHONPATH"] = str(tmp_path)
    async with local_upstream(faults="latency=50ms") as upstream:
        words = (*MANY, "--drain-within", str(DRAIN_WITHIN))
        async with serving(*words, env=environment(upstream.url, **env)) as sidecar:
            maps = Path(f"/proc/{sidecar.process.pid}/maps")
            if maps.exists():
                assert ("uvloop" in maps.read_text()) == (loop == "uvloop")
            crowd = Crowd(address_of(sidecar.intake))
            streams = [Stream(crowd.address), Stream(crowd.address, "in-order"), Stream(crowd.address, "too")]
            load = [crowd.run(CALLERS), *(one.run() for one in streams)]
            watching = asyncio.create_task(watch_the_end(sidecar))
            running = asyncio.gather(*load)
            await until(lambda: len(crowd.told) > 2 * CALLERS and all(len(one.told) > 20 for one in streams))
            sidecar.signal(signal.SIGTERM)
            began = asyncio.get_running_loop().time()
            await running
            seen = await watching
            assert await sidecar.ended() == 0, sidecar.log
            assert asyncio.get_running_loop().time() - began < DRAIN_WITHIN
        _check_crowd(upstream, crowd)
        for stream in streams:
            _check_stream(upstream, stream)
    assert "not ready" in seen[: seen.index("refused")], seen[-20:]


def _check_crowd(upstream: LocalUpstream, crowd: Crowd) -> None:
    there, accepted = bodies(upstream), crowd.accepted()
    assert len(accepted) > 2 * CALLERS
    assert set(crowd.statuses) <= {200, 503, NO_ANSWER, NOT_CONNECTED}, crowd.statuses
    assert crowd.statuses[503] > 0
    assert all(ids(upstream)[message_id] == 1 for message_id in accepted.values())
    for told in crowd.told:
        assert there[told.body] == (told.status == 200), told


def _check_stream(upstream: LocalUpstream, stream: Stream) -> None:
    there, accepted = bodies(upstream), stream.accepted()
    assert len(accepted) > 20
    assert all(there[body] == 1 for body in accepted)
    assert all(told.get("status", 503) == 503 for told in stream.told)
    refused = [body for body, told in zip(stream.sent, stream.told, strict=False) if "error" in told]
    assert not any(there[body] for body in refused)
    if stream.queue is not None:
        rows = [(row.body or b"").decode() for row in upstream.accepted() if row.queue == stream.queue]
        assert rows == sorted(rows, key=lambda body: int(body.split()[1]))


async def test_a_stream_under_way_is_ended_with_the_rest() -> None:
    """A line sent after the drain is told 503, its answer has an end, and nothing waits for it."""
    async with (
        local_upstream() as upstream,
        serving("--drain-within", str(DRAIN_WITHIN), url=upstream.url) as sidecar,
    ):
        stream = Stream(address_of(sidecar.intake))
        async with stream.opened() as (reader, writer):
            stream.send(writer)
            await stream.read_line(reader)
            sidecar.signal(signal.SIGTERM)
            await sidecar.said("SIGTERM")
            began = asyncio.get_running_loop().time()
            while await sidecar.health("/readyz") == 200:
                pass
            await asyncio.sleep(0.3)  # the drain has nothing to do, and is over
            stream.send(writer)
            writer.write(b"0\r\n\r\n")
            async with asyncio.timeout(DRAIN_WITHIN / 2):
                await stream.read_line(reader)
                assert await reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
        assert await sidecar.ended() == 0
        assert asyncio.get_running_loop().time() - began < DRAIN_WITHIN / 2
    assert [one.get("status", 200) for one in stream.told] == [200, 503]


async def test_a_second_sigterm_under_load_is_now() -> None:
    """The upstream hangs, the drain has minutes: callers lose connections, nothing is said wrong."""
    async with (
        local_upstream(faults="hang_before=1") as upstream,
        serving(*MANY, "--drain-within", "600", url=upstream.url) as sidecar,
    ):
        crowd = Crowd(address_of(sidecar.intake))
        running = asyncio.create_task(crowd.run(CALLERS))
        await until(lambda: len(crowd.asked) == CALLERS and bool(upstream.requests))
        sidecar.signal(signal.SIGTERM)
        await sidecar.said("SIGTERM")
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 128 + signal.SIGTERM
        await running
    assert set(crowd.statuses) <= {503, NO_ANSWER, NOT_CONNECTED}
    assert crowd.statuses[NO_ANSWER] > 0


async def test_kill_9_under_load() -> None:
    """Callers lose their connections; another one starts on the same port at once, and takes on."""
    async with local_upstream(faults="latency=20ms") as upstream:
        async with serving(*MANY, url=upstream.url) as sidecar:
            crowd = Crowd(address_of(sidecar.intake))
            running = asyncio.create_task(crowd.run(CALLERS))
            await until(lambda: len(crowd.told) > CALLERS)
            sidecar.signal(signal.SIGKILL)
            assert await sidecar.ended() == -signal.SIGKILL
            await running
        there, accepted = ids(upstream), crowd.accepted()
        assert set(crowd.statuses) <= {200, NO_ANSWER, NOT_CONNECTED}
        assert all(there[message_id] == 1 for message_id in accepted.values())
        async with serving("--port", str(crowd.address[1]), url=upstream.url) as after:
            assert address_of(after.intake) == crowd.address
            assert (await after.publish("after"))[0] == 200
            assert bodies(upstream)["after"] == 1


# ------------------------------------------------------------------------------------------ the upstream dies


async def test_an_upstream_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """Nobody is told anything wrong meanwhile, and what was waiting is delivered once."""
    words = ("--retry-max-delay", "0.3", "--transport-attempt-timeout", "2")
    async with upstream_process(tmp_path) as upstream, serving(*MANY, *words, url=upstream.url) as sidecar:
        crowd = Crowd(address_of(sidecar.intake))
        running = asyncio.create_task(crowd.run(CALLERS))
        await until(lambda: len(crowd.told) > CALLERS)
        await upstream.kill()
        before = len(crowd.told)
        asked = set(crowd.asked)
        await upstream.start()
        await until(lambda: len(crowd.told) > before + 2 * CALLERS)
        crowd.is_over = True
        await running
        assert await sidecar.health("/readyz") == 200
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0
        there = await upstream.accepted()
    assert crowd.statuses.keys() == {200}, crowd.statuses
    assert asked <= crowd.accepted().keys()
    assert there == Counter(crowd.accepted().values())


async def test_an_upstream_that_hangs() -> None:
    """Silence amid every reply: each caller is told 504 at the deadline, and what is known of its message."""
    async with local_upstream() as upstream:
        host, port = address_of(upstream.url)
        async with ChaosProxy((host, port), "hang_reply=1") as chaos:
            words = ("--deliver-within", "1.5", "--transport-attempt-timeout", "0.4", "--drain-within", "1")
            async with serving(*words, url=chaos.url) as sidecar:
                crowd = Crowd(address_of(sidecar.intake))
                began = asyncio.get_running_loop().time()
                await crowd.run(CALLERS)  # each of them leaves after an answer that is none
                seconds = asyncio.get_running_loop().time() - began
                assert await sidecar.health("/livez") == 200
    assert crowd.statuses == {504: CALLERS}
    assert 1.0 < seconds < 10.0
    certainties = Counter(told.value["certainty"] for told in crowd.told)
    assert certainties["unknown"] > 0
    assert certainties.keys() <= {"unknown", "not_sent", "not_accepted"}


# -------------------------------------------------------------------------------------------------- elsewhere


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this system has no ::1")
async def test_ipv6() -> None:
    """Both doors on ::1, by a name that a URL can hold."""
    async with (
        local_upstream() as upstream,
        serving("--host", "::1", "--admin-host", "::1", url=upstream.url) as sidecar,
    ):
        assert sidecar.intake.startswith("http://[::1]:")
        assert sidecar.admin.startswith("http://[::1]:")
        assert (await sidecar.publish("over six", token=TOKEN))[0] == 200
        assert await sidecar.health("/readyz") == 200
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0
    assert bodies(upstream)["over six"] == 1
