"""Many publishes at once by clients that know nothing of batches, straight to the upstream or to the sidecar.

Each round of each client is a process of its own, on one core; the upstream, which takes its time for an
answer, and the sidecar share the other one. Clients are used as their documentation shows, each publish
is a call of its own, and none knows whom it talks to. `python -m benchmarks.sidecar_burst CLIENT` is one
round; used by `sidecar`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from benchmarks.rows import DESTINATION
from benchmarks.sidecar_load import FailedError, served
from benchmarks.upstream import TOKEN
from benchmarks.upstream_process import ROOT, report, spent, upstream_process
from dispatcher.cli.loop import loop_factory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PUBLISHES: Final = 800
LATENCY: Final = 0.03
BODY: Final = "x" * 200
CLIENTS_OF_SDK: Final = 8
THREADS: Final = 50
ROUND_SECONDS: Final = 180.0
HEADERS: Final = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
PATH: Final = f"/v2/publish/{DESTINATION}"


class Burst(Struct, frozen=True):
    """What one round took."""

    seconds: float
    """From the first publish to the last answer."""
    confirmed: int
    errors: dict[str, int]
    """By name."""
    requests: int = 0
    """Upstream."""


async def _gathered(publish: Callable[[int], Awaitable[Any]], number: int) -> Burst:
    """All at once; one before them, so that nobody pays for the first call's imports."""
    await publish(0)
    began = time.perf_counter()
    outcomes = await asyncio.gather(*(publish(n) for n in range(number)), return_exceptions=True)
    return _burst(time.perf_counter() - began, outcomes)


def _burst(seconds: float, outcomes: Sequence[object]) -> Burst:
    errors = Counter(type(one).__name__ for one in outcomes if isinstance(one, BaseException))
    return Burst(seconds, len(outcomes) - errors.total(), dict(errors))


def _checked(status: int, body: bytes) -> None:
    if status != 200 or not json.loads(body).get("messageId"):
        raise FailedError(f"{status}: {body[:200]!r}")


async def with_aiohttp(url: str, number: int, limit: int = 100) -> Burst:
    """Its default pool: 100 connections."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=limit)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def publish(_: int) -> None:
            async with session.post(url + PATH, data=BODY) as response:
                _checked(response.status, await response.read())

        return await _gathered(publish, number)


async def with_aiohttp_unbounded(url: str, number: int) -> Burst:
    """A connection for each publish."""
    return await with_aiohttp(url, number, limit=0)


async def with_sdk(url: str, number: int, clients: int = 1) -> Burst:
    """`AsyncQStash.message.publish`, gathered, as one client."""
    from qstash import AsyncQStash

    made = [AsyncQStash(TOKEN, base_url=url) for _ in range(clients)]

    async def publish(place: int) -> None:
        response = await made[place % clients].message.publish(url=DESTINATION, body=BODY)
        if isinstance(response, list) or not response.message_id:
            raise FailedError("an answer without an id")

    return await _gathered(publish, number)


async def with_sdk_clients(url: str, number: int) -> Burst:
    """The same over several clients, each with a pool of its own."""
    return await with_sdk(url, number, CLIENTS_OF_SDK)


async def with_sdk_threads(url: str, number: int) -> Burst:
    """The synchronous `QStash.message.publish` in threads, one client."""
    from qstash import QStash

    client = QStash(TOKEN, base_url=url)

    def publish(_: int) -> object:
        try:
            response = client.message.publish(url=DESTINATION, body=BODY)
        except Exception as error:
            return error
        if isinstance(response, list) or not response.message_id:
            return FailedError("an answer without an id")
        return None

    def all_of_them() -> Burst:
        with ThreadPoolExecutor(THREADS) as pool:
            publish(0)
            began = time.perf_counter()
            outcomes = list(pool.map(publish, range(number)))
            return _burst(time.perf_counter() - began, outcomes)

    return await asyncio.to_thread(all_of_them)


class Client(Struct, frozen=True):
    """One way to publish."""

    label: str
    run: Callable[[str, int], Awaitable[Burst]]
    package: str


CLIENTS: Final[dict[str, Client]] = {
    "aiohttp": Client("aiohttp, its pool of 100", with_aiohttp, "aiohttp"),
    "aiohttp_unbounded": Client("aiohttp, a connection each", with_aiohttp_unbounded, "aiohttp"),
    "sdk": Client("AsyncQStash, one client", with_sdk, "qstash"),
    "sdk_clients": Client(f"AsyncQStash, {CLIENTS_OF_SDK} clients", with_sdk_clients, "qstash"),
    "sdk_threads": Client(f"QStash, {THREADS} threads", with_sdk_threads, "qstash"),
}


def bursts(
    clients: Sequence[str],
    rounds: int,
    number: int,
    cores: tuple[int | None, int | None],
    tell: Callable[[str], None],
) -> dict[tuple[str, bool], list[Burst]]:
    """All rounds, interleaved; by client, and whether it went through the sidecar.

    Raises:
        FailedError: Fewer messages arrived than were confirmed.
    """
    ways = [(client, is_through) for client in clients for is_through in (False, True)]
    taken: dict[tuple[str, bool], list[Burst]] = {way: [] for way in ways}
    with (
        upstream_process(LATENCY, cpu=cores[1]) as upstream,
        served("sidecar", "uvloop", upstream, cores[1]) as sidecar,
    ):
        for number_of_round in range(rounds):
            turn = number_of_round % len(ways)
            for way in (*ways[turn:], *ways[:turn]):
                client, is_through = way
                tell(f"burst, round {number_of_round + 1} of {rounds}: {client}{', sidecar' * is_through}")
                url = sidecar.url if is_through else upstream
                taken[way].append(_round(client, url, upstream, number, cores[0]))
    return taken


def _round(client: str, url: str, upstream: str, number: int, cpu: int | None) -> Burst:
    before = report(upstream)
    command = [sys.executable, "-m", "benchmarks.sidecar_burst", client, url, "--number", str(number)]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=ROUND_SECONDS, check=False
    )
    if done.returncode:
        raise FailedError(f"{client}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    burst = msgspec.json.decode(done.stdout, type=Burst)
    after = spent(before, report(upstream))
    if after.messages < burst.confirmed + 1:  # a client that repeats itself sends more
        raise FailedError(f"{client}: {burst.confirmed + 1} were confirmed, {after.messages} arrived")
    return msgspec.structs.replace(burst, requests=after.requests - 1)


def main() -> None:
    """One round as the command line says; prints a `Burst`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sidecar_burst", description=__doc__)
    parser.add_argument("client", choices=sorted(CLIENTS))
    parser.add_argument("url")
    parser.add_argument("--number", type=int, default=PUBLISHES)
    parser.add_argument("--cpu", type=int, help="the core to stay on")
    given = parser.parse_args()
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        burst = runner.run(_run(CLIENTS[given.client], given.url, given.number))
    print(msgspec.json.encode(burst).decode())


async def _run(client: Client, url: str, number: int) -> Burst:
    return await client.run(url, number)


if __name__ == "__main__":
    main()
