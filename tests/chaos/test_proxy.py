"""The chaos proxy on real sockets: each fault as a plain client and a plain server see it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.devserver.chaos import ChaosProxy, main
from dispatcher.devserver.chaosplan import CHAOS, ChaosKind
from tests.chaos.support import PATIENCE, REPLY, REQUEST, Client, Peer, stage

if TYPE_CHECKING:
    from collections import Counter

pytestmark = pytest.mark.anyio


async def test_without_faults_no_byte_is_altered() -> None:
    """Three exchanges on one connection, and the end in both directions, pass as they are."""
    async with stage("") as here:
        client = await here.connect()
        assert [await client.ask() for _ in range(3)] == ["whole"] * 3
        client.writer.write_eof()
        assert await client.reader.read() == b""
        assert await here.ended() == "eof"
        assert here.peer.received == REQUEST * 3
        assert await here.is_empty()
        assert here.proxy.counts == {"connections": 1, "exchanges": 3}


async def test_more_than_any_buffer_passes() -> None:
    """Ten megabytes up and as many down, while both sides are slow to read: all of it arrives."""
    async with stage("") as here:
        client = await here.connect()
        number = 10_000

        async def send() -> None:
            for _ in range(number):
                client.writer.write(REQUEST)
                await client.writer.drain()

        sending = asyncio.create_task(send())
        async with asyncio.timeout(30):
            assert await client.reader.readexactly(number * len(REPLY)) == REPLY * number
        await sending
        assert here.peer.received == REQUEST * number


async def test_refuse() -> None:
    """The connection is reset, and the upstream never hears of it."""
    async with stage("refuse=1") as here:
        with suppress(ConnectionError):  # the reset may come before the connection's own notice
            assert await (await here.connect()).ask() == "reset"
        assert await here.is_empty()
        assert here.peer.connections == 0
        assert here.proxy.counts == {"connections": 1, "refuse": 1}


async def test_an_upstream_that_is_down_and_comes_back() -> None:
    """Clients are reset while nobody listens; the proxy lives, and passes on once somebody does."""
    async with stage("") as here:
        server = await asyncio.start_server(Peer().serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        server.close()
        await server.wait_closed()
        async with ChaosProxy(address) as proxy:
            here.proxy = proxy
            for _ in range(3):
                with suppress(ConnectionError):  # the reset may come before the connection's own notice
                    assert await (await here.connect()).ask() == "reset"
            assert proxy.counts["upstream_down"] == 3
            back = await asyncio.start_server(here.peer.serve, *address)
            assert await (await here.connect()).ask() == "whole"
            back.close()


async def test_latency_delays_both_directions() -> None:
    """An exchange takes at least twice the latency."""
    async with stage("latency=40ms") as here:
        client = await here.connect()
        began = asyncio.get_running_loop().time()
        assert await client.ask() == "whole"
        assert asyncio.get_running_loop().time() - began >= 0.08


@pytest.mark.parametrize("side", ["request", "reply"])
async def test_stall(side: str) -> None:
    """A part, silence, the rest: the exchange is whole in the end."""
    async with stage(f"stall_{side}=1 stall_for=80ms", seed=3) as here:
        client = await here.connect()
        began = asyncio.get_running_loop().time()
        assert await client.ask() == "whole"
        assert asyncio.get_running_loop().time() - began >= 0.08
        assert here.peer.received == REQUEST
        assert here.proxy.counts[f"stall_{side}"] == 1
        if side == "request":
            assert [len(part) for part in here.peer.arrivals] == [cut_of(3), len(REQUEST) - cut_of(3)]


def cut_of(seed: int) -> int:
    """Where the first exchange of the first connection is struck."""
    proxy = ChaosProxy(("127.0.0.1", 1), "reset_reply=1", seed=seed)
    cut = int(len(REPLY) * proxy.plan.dice(seed, 1).throw().share)
    assert 0 < cut < len(REPLY)
    return cut


async def test_a_stalled_request_arrives_after_its_client_has_gone() -> None:
    """An abandoned request is late, not gone: the upstream receives all of it."""
    async with stage("stall_request=1 stall_for=100ms", seed=3) as here:
        client = await here.connect()
        client.writer.write(REQUEST)
        await here.received(cut_of(3))
        assert len(here.peer.received) < len(REQUEST)
        await client.close()
        assert await here.received(len(REQUEST)) == REQUEST
        assert await here.is_empty()


@pytest.mark.parametrize("side", ["request", "reply"])
async def test_hang(side: str) -> None:
    """Silence amid one direction, for as long as the client stays; when it goes, the upstream is let go."""
    async with stage(f"hang_{side}=1", seed=3) as here:
        client = await here.connect()
        client.writer.write(REQUEST)
        cut = cut_of(3)
        if side == "request":
            await here.received(cut)
        else:
            assert await client.reader.readexactly(cut) == REPLY[:cut]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
        assert len(here.peer.received) == (cut if side == "request" else len(REQUEST))
        assert here.proxy.connections == 1
        await client.close()
        await here.ended()
        assert await here.is_empty()


async def test_reset_request() -> None:
    """The client is reset; the upstream has a part of the request, and no more."""
    async with stage("reset_request=1", seed=3) as here:
        assert await (await here.connect()).ask() == "reset"
        await here.ended()
        assert here.peer.received == REQUEST[: cut_of(3)]
        assert here.proxy.counts["reset_request"] == 1


async def test_reset_reply() -> None:
    """The upstream has answered; the client gets a part of it and a reset, no clean end."""
    async with stage("reset_reply=1", seed=3) as here:
        client = await here.connect()
        client.writer.write(REQUEST)
        with pytest.raises(ConnectionResetError):
            await client.reader.readexactly(len(REPLY))
        assert len(client.reader._buffer) <= cut_of(3)  # type: ignore[attr-defined]
        assert here.peer.received == REQUEST
        assert await here.is_empty()


async def test_half_close_request() -> None:
    """The upstream is told the end amid the request, and its reply to that still reaches the client."""
    async with stage("half_close_request=1", seed=3) as here:
        here.peer.answers_cut_requests = True
        assert await (await here.connect()).ask() == "whole"
        assert await here.ended() == "eof"
        assert here.peer.received == REQUEST[: cut_of(3)]


async def test_half_close_reply() -> None:
    """The client is told the end amid the reply, and what it sends after it still arrives."""
    async with stage("half_close_reply=1", seed=3) as here:
        client = await here.connect()
        assert await client.ask() == f"eof after {cut_of(3)}"
        client.writer.write(REQUEST)
        assert await here.received(2 * len(REQUEST)) == REQUEST * 2
        await client.close()
        assert await here.ended() == "eof"
        assert await here.is_empty()


@pytest.mark.parametrize("seed", range(5))
async def test_truncate(seed: int) -> None:
    """A part of the reply, at least a byte and not all, then a clean end for the client."""
    async with stage("truncate=1", seed=seed) as here:
        outcome = await (await here.connect()).ask()
        assert outcome.startswith("eof after ")
        assert 0 < int(outcome.rpartition(" ")[2]) < len(REPLY)
        assert here.peer.received == REQUEST
        await here.ended()


@pytest.mark.parametrize("side", ["request", "reply"])
async def test_drip(side: str) -> None:
    """All of it arrives, in pieces, over the time asked for."""
    async with stage(f"drip_{side}=1 drip_over=80ms") as here:
        client = await here.connect()
        client.writer.write(REQUEST)
        began, pieces, reply = asyncio.get_running_loop().time(), 0, b""
        async with asyncio.timeout(PATIENCE):
            while len(reply) < len(REPLY):
                reply += await client.reader.read(65_536)
                pieces += 1
        assert reply == REPLY
        assert (len(here.peer.arrivals) if side == "request" else pieces) >= 4
        assert asyncio.get_running_loop().time() - began >= 0.06


async def test_reset_on_reuse() -> None:
    """The first exchange passes; the second meets a reset before a byte of it was forwarded."""
    async with stage("reuse_reset=1") as here:
        client = await here.connect()
        assert [await client.ask() for _ in range(2)] == ["whole", "reset"]
        await here.ended()
        assert here.peer.received == REQUEST
        assert here.proxy.counts["reuse_reset"] == 1


async def test_reset_on_reuse_after_the_request_was_forwarded() -> None:
    """The first exchange passes; the second is received upstream, and a reset is its reply."""
    async with stage("reuse_reset_after=1") as here:
        client = await here.connect()
        assert await client.ask() == "whole"
        client.writer.write(REQUEST)
        with pytest.raises(ConnectionResetError):
            await client.reader.readexactly(1)
        await here.ended()
        assert here.peer.received == REQUEST * 2


async def test_a_run_is_exact_for_a_seed() -> None:
    """Forty connections one after the other: the same outcomes and counts for the same seed."""
    plan = " ".join(f"{kind}=0.1" for kind in EXACT)
    first, second, other = [await run(plan, seed) for seed in (1, 1, 2)]
    assert first == second
    assert first != other
    assert set(first[1]) >= set(EXACT)


EXACT = ("reset_request", "reset_reply", "half_close_reply", "truncate", "reuse_reset", "reuse_reset_after")


async def run(plan: str, seed: int) -> tuple[list[str], Counter[str]]:
    outcomes = []
    async with stage(plan, seed=seed) as here:
        for _ in range(40):
            client = await here.connect()
            for _ in range(4):
                outcomes.append(await client.ask())
                if outcomes[-1] != "whole":
                    break
            await client.close()
            await here.is_empty()
        return outcomes, here.proxy.counts


async def test_stopping_resets_what_is_open() -> None:
    """Nobody is left waiting for a proxy that is gone."""
    async with stage("hang_reply=1") as here:
        client = await here.connect()
        client.writer.write(REQUEST)
        await here.received(len(REQUEST))
        await here.proxy.stop()
        with pytest.raises(ConnectionResetError):
            await client.reader.readexactly(len(REPLY))
        assert here.proxy.connections == 0


async def test_as_a_program() -> None:
    """It says where it listens, passes on, and says at SIGTERM what it did."""
    async with stage("") as here:
        address = f"127.0.0.1:{here.proxy.upstream[1]}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "dispatcher.devserver.chaos", "--upstream", address),
            *("--plan", "reuse_reset=1", "--seed", "5"),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            announced = re.fullmatch(
                r"CHAOS_URL=http://(.+):(\d+)\n", (await process.stdout.readline()).decode()
            )
        assert announced
        client = Client(*await asyncio.open_connection(announced[1], int(announced[2])))
        assert [await client.ask() for _ in range(2)] == ["whole", "reset"]
        await client.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            said = orjson.loads(await process.stdout.read())
            assert await process.wait() == 0
        assert said == {"connections": 1, "exchanges": 2, "reuse_reset": 1}


@pytest.mark.parametrize(
    "words", [[], ["--upstream", "nowhere"], ["--upstream", "h:1", "--plan", "typo=1"], ["--wrong"]]
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is right."""
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("usage: --upstream HOST:PORT")


def test_every_kind_has_its_test() -> None:
    """A kind that nothing here strikes with would be untested."""
    text = Path(__file__).read_text(encoding="utf-8")
    for kind in CHAOS:
        stem = kind.removesuffix("_request").removesuffix("_reply")
        assert re.search(rf'"{kind}=1|{stem}_{{side}}=1', text), kind
    assert ChaosKind.NONE not in CHAOS
