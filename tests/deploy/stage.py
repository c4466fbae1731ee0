"""Sidecars in trouble, each in its own, scraped by one Prometheus: causes made for real, and mended.

`Story` is what happens, `EXPECTED` which alert has to fire on which of them. Used by the test and by
`panels`, which draws the dashboard from what Prometheus has seen.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from dispatcher.testing import LocalUpstream, local_upstream
from tests.sidecar.daemon_support import DESTINATION, Sidecar, environment, serving, write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

CALLER: Final = "caller-token-1"
TOKEN, NEW_TOKEN = "upstream-token-1", "upstream-token-2"
MIB: Final = 1_048_576
PAUSE: Final = 0.04
"""Seconds between two publishes to one sidecar."""
BATCH_PAUSE: Final = 0.2
DESCRIPTORS: Final = 120
"""What a sidecar may have while its callers leave connections open."""
IDLERS: Final = 90
BODY: Final = "x" * 200
POISON: Final = "POISON"
FAULTS: Final = "latency=5ms poison_400=POISON"
QUOTA_SECONDS: Final = 12
ROOM_MESSAGES: Final = 150
HEADROOM: Final = 1_536 * MIB
"""Left above `outbox.min_free_bytes` at the start: above the alert's threshold of 1 GiB."""
FILLER: Final = 768 * MIB

SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "healthy": ("--outbox", "{folder}/healthy.db"),
    "killed": (),
    "token": ("--token-file", "{folder}/token"),
    "throttled": (),
    "quota": ("--deliver-within", "3"),
    "outage": ("--deliver-within", "3", "--queue-max-messages", "40", "--patience", "0.2"),
    "messages": ("--deduplication", "off", "--config", "{folder}/messages.toml"),
    "errors": ("--retry-max-attempts", "3", "--retry-budget", "15"),
    "outbox": (
        *("--outbox", "{folder}/outbox.db", "--outbox-max-messages", str(ROOM_MESSAGES)),
        *("--outbox-respond-after", "0"),
    ),
    "disk": (
        *("--outbox", "{folder}/disk.db", "--outbox-min-free-bytes", "{min_free}"),
        *("--outbox-respond-after", "0"),
    ),
}
"""Words of each `dispatcher serve`."""
EXPECTED: Final[dict[str, set[str]]] = {
    "": {"DispatcherAbsent"},
    "healthy": set(),
    "killed": {"DispatcherDown", "DispatcherRestarting"},
    "token": {"DispatcherHalted", "DispatcherOpenFilesNearMax", "DispatcherIntakeErrors"},
    "throttled": {"DispatcherThrottled"},
    "quota": {"DispatcherQuotaExhausted", "DispatcherMessagesFailing", "DispatcherManyMessagesFailing"},
    "outage": {
        *("DispatcherUpstreamOutage", "DispatcherMessageAgeHigh", "DispatcherHeldNearBound"),
        *("DispatcherProducersRefused", "DispatcherRequestsFailing", "DispatcherIntakeErrors"),
    },
    "messages": {
        *("DispatcherMessagesRejected", "DispatcherOutcomesUnknown", "DispatcherOrderViolated"),
        "DispatcherQueueStopped",
    },
    "errors": {"DispatcherRetriesExhausted", "DispatcherRetriesHeldBack", "DispatcherRequestsFailing"},
    "outbox": {
        *("DispatcherOutboxDeadLettersGrowing", "DispatcherOutboxNearlyFull"),
        *("DispatcherOutboxRefusing", "DispatcherOutboxBacklogOld"),
    },
    "disk": {
        *("DispatcherOutboxFailing", "DispatcherOutboxErrors", "DispatcherOutboxRefusing"),
        "DispatcherOutboxDiskLow",
    },
}
"""What has to fire where; an empty name is no instance at all."""
BY_UNIT_TEST_ONLY: Final = {
    "DispatcherBusy": "a core used fully for long would disturb every other test of the machine",
    "DispatcherOutboxDeadLettersUndecided": "needs a day, in quick motion still a quarter of an hour",
    "DispatcherOutboxDamaged": "needs a file damaged on the disk",
    "DispatcherDuplicatesPossible": "needs 9.5 minutes of an unknown outcome",
}
"""Alerts that are not caused here, and why."""


class Actor:
    """One sidecar with an upstream of its own, and its callers."""

    def __init__(self, name: str, folder: Path, upstream: LocalUpstream) -> None:
        self.name = name
        self.upstream = upstream
        self.words = [
            word.format(folder=folder, min_free=free_bytes(folder) - HEADROOM) for word in SETTINGS[name]
        ]
        self.statuses: list[int] = []
        self.sidecar: Sidecar
        self._stack = AsyncExitStack()
        self._callers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve; again on the same ports."""
        words = list(self.words)
        if hasattr(self, "sidecar"):
            ports = (url.rpartition(":")[2] for url in (self.sidecar.intake, self.sidecar.admin))
            words += [word for pair in zip(("--port", "--admin-port"), ports, strict=True) for word in pair]
        token = None if "--token-file" in words else TOKEN
        env = environment(self.upstream.url, token, DISPATCHER_SERVE_TOKENS=CALLER)
        self._stack = AsyncExitStack()
        self.sidecar = await self._stack.enter_async_context(serving(*words, env=env))

    async def stop(self) -> None:
        """Kill it."""
        await self._stack.aclose()

    async def call(self) -> None:
        """Publish on and on, whatever is answered, until cancelled; poison and queues where they belong."""
        with suppress(asyncio.CancelledError):
            number = 0
            while True:
                number += 1
                caller = asyncio.create_task(self.publish(BODY))
                self._callers.add(caller)
                caller.add_done_callback(self._callers.discard)
                await asyncio.sleep(PAUSE)
        for caller in tuple(self._callers):
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def publish(self, body: str, route: str = "publish") -> None:
        """One message; the status of the answer is kept, no answer is none."""
        url = f"{self.sidecar.intake}/v2/{route}/{DESTINATION}"
        await self._post(url, body.encode())

    async def batch(self, items: list[dict[str, Any]]) -> None:
        """Several at once."""
        await self._post(f"{self.sidecar.intake}/v2/batch", items)

    async def _post(self, url: str, body: bytes | list[dict[str, Any]]) -> None:
        given: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {"Authorization": f"Bearer {CALLER}"}
        with suppress(aiohttp.ClientError, RuntimeError):
            async with self.sidecar.session.post(url, headers=headers, **given) as response:
                await response.read()
                self.statuses.append(response.status)

    def limit(self, kind: int, most: int) -> None:
        """Set what its process may use."""
        _, hard = resource.prlimit(self.sidecar.process.pid, kind)
        resource.prlimit(self.sidecar.process.pid, kind, (most, hard))


def free_bytes(folder: Path) -> int:
    """What the disk has left."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Story:
    """The actors, and what happens to them.

    Args:
        folder: Of their files, on the disk that is filled.
    """

    def __init__(self, folder: Path, actors: Mapping[str, Actor]) -> None:
        self.folder = folder
        self.actors = actors
        self._idlers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble: list[asyncio.Task[None]] = []
        self._bench: asyncio.subprocess.Process | None = None

    def addresses(self) -> dict[str, str]:
        """What Prometheus is to scrape."""
        return {name: actor.sidecar.admin for name, actor in self.actors.items()}

    async def begin(self) -> None:
        """Everybody publishes, and is served; `dispatcher bench` loads the healthy one."""
        healthy = self.actors["healthy"].sidecar
        self._bench = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatcher", "bench", "--target", healthy.intake, "--rate", "100"),
            *("--duration", "5m", "--warm-up", "0", "--connections", "32", "--no-progress"),
            env=environment(None, CALLER),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        others = [actor for name, actor in self.actors.items() if name != "healthy"]
        self._tasks = [asyncio.create_task(actor.call()) for actor in others]

    async def end(self) -> tuple[int, str]:
        """Nobody publishes any more; exit code and report of the bench."""
        for task in self._tasks + self._trouble:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._trouble, return_exceptions=True)
        assert self._bench is not None
        self._bench.send_signal(signal.SIGTERM)
        said, _ = await self._bench.communicate()
        return self._bench.returncode or 0, said.decode()

    # -------------------------------------------------------------------------------------------- causes

    async def break_everything(self) -> None:
        """Make every cause."""
        actors = self.actors
        await actors["killed"].stop()
        actors["token"].upstream.set_token(NEW_TOKEN)
        await self._leave_connections_open(actors["token"])
        actors["throttled"].upstream.set_faults("throttle_burst=1 burst_reset=1")
        actors["quota"].upstream.set_faults(f"throttle_daily=1 daily_reset={QUOTA_SECONDS}")
        await actors["outage"].upstream.stop()
        actors["messages"].upstream.set_faults(f"{FAULTS} disconnect_after=0.1 error_entry=0.3")
        self._trouble.append(asyncio.create_task(self._spoil(actors["messages"])))
        actors["errors"].upstream.set_faults("error_before=1")
        await asyncio.gather(*(actors["outbox"].publish(POISON) for _ in range(5)))
        await self._until_dead(actors["outbox"])
        await actors["outbox"].upstream.stop()
        actors["disk"].limit(resource.RLIMIT_FSIZE, 4_096)
        with (self.folder / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, FILLER)

    async def come_back(self) -> None:
        """The killed one is started again."""
        await self.actors["killed"].start()

    async def die_again(self) -> None:
        """And killed."""
        await self.actors["killed"].stop()

    async def mend_everything(self) -> None:
        """Take every cause away; nothing is done about what follows from it."""
        actors = self.actors
        for task in self._trouble:
            task.cancel()
        write(self.folder / "token", NEW_TOKEN)
        actors["token"].sidecar.signal(signal.SIGHUP)
        for idler in self._idlers:
            idler.close()
        for name in ("throttled", "quota", "messages", "errors"):
            actors[name].upstream.set_faults("latency=5ms")
        for name in ("outage", "outbox"):
            await actors[name].upstream.start()
        await actors["messages"].stop()
        await actors["messages"].start()
        async with actors["outbox"].sidecar.session.post(
            f"{actors['outbox'].sidecar.admin}/outbox/delete",
            json={"all": True},
            headers={"X-Dispatcher": "outbox"},
        ) as response:
            assert response.status == 200, await response.text()
        actors["disk"].limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        (self.folder / "filler").unlink()

    async def _leave_connections_open(self, actor: Actor) -> None:
        actor.limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
        host, _, port = actor.sidecar.intake.removeprefix("http://").rpartition(":")
        for _ in range(IDLERS):
            _, writer = await asyncio.open_connection(host, int(port))
            self._idlers.append(writer)

    @staticmethod
    async def _spoil(actor: Actor) -> None:
        """Poison, one of it into a queue that stops then; batches for another queue."""
        with suppress(asyncio.CancelledError):
            await actor.publish(POISON, "enqueue/stops")
            while True:
                items = [{"destination": DESTINATION, "queue": "ordered", "body": BODY} for _ in range(10)]
                await asyncio.gather(actor.publish(POISON), actor.batch(items))
                await asyncio.sleep(BATCH_PAUSE)

    @staticmethod
    async def _until_dead(actor: Actor) -> None:
        """Until what was refused for good is known."""
        async with asyncio.timeout(10):
            while True:
                async with actor.sidecar.session.get(f"{actor.sidecar.admin}/outbox") as response:
                    if (await response.json())["dead"] == 5:
                        return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def sidecars(folder: Path) -> AsyncIterator[Story]:
    """All of them, up and unharmed; ended with the context."""
    write(folder / "token", TOKEN)
    write(folder / "messages.toml", '[queues.stops]\non_failure = "stop"\n')
    async with AsyncExitStack() as stack:
        actors: dict[str, Actor] = {}
        for name in SETTINGS:
            upstream = await stack.enter_async_context(local_upstream(token=TOKEN, faults=FAULTS))
            actors[name] = Actor(name, folder, upstream)
            stack.push_async_callback(actors[name].stop)
        await asyncio.gather(*(actor.start() for actor in actors.values()))
        yield Story(folder, actors)
