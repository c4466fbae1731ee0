"""`dispatcher serve --outbox FILE`, killed while real callers hand in. A program of `kills`.

    python -m tests.outbox.kill_serve serve --outbox FILE …

The module itself, called so, is the control: the same command over a store that answers before the commit.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import aiohttp

from dispatcher.cli import main
from dispatcher.sidecar import outbox_service
from tests.cli.send_support import environment
from tests.outbox.kill_callers import Callers
from tests.outbox.kill_child import EarlyStore
from tests.outbox.kill_programs import DRAIN_SECONDS, SETTINGS, Child, Killing
from tests.outbox.kill_stage import Killed, look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from dispatcher.testing import LocalUpstream

ADDRESSES = re.compile(r"listening: intake (\S+), admin (\S+)")
OPEN = "listening: "
LOOK_SECONDS = 0.02
WORDS = ("serve", "--port", "0", "--admin-port", "0", "--outbox-respond-after", "0.1")
"""So quickly some are answered with the outbox's id who had waited for the service's."""


class Serve:
    """The command `dispatcher serve`.

    Args:
        module: What has the command; this one for the store that answers too early.
    """

    def __init__(self, folder: Path, upstream: LocalUpstream, module: str = "dispatcher") -> None:
        self.path = folder / "outbox.db"
        self._upstream = upstream
        self._module = module
        self._killing = Killing()

    async def round(self, number: int, rng: Random) -> Killed:
        """Have it called, until it is killed."""
        child = await self._start()
        callers = Callers(self._upstream.token, number, rng)
        calling = asyncio.create_task(self._call(child, callers))
        try:
            phase = await self._killing.kill(child, rng, lambda: child.said(OPEN))
        finally:
            await child.kill()
            await calling
        assert child.process.returncode in (0, -signal.SIGKILL), child.lines[-3:]
        return Killed(phase, callers.acknowledged, callers.handed_in, look(self.path))

    @staticmethod
    async def _call(child: Child, callers: Callers) -> None:
        if said := await child.said(OPEN):
            await callers.run(addresses(said)[0])

    async def drain(self) -> Killed:
        """Until all is settled; then a signal ends it."""
        child = await self._start()
        try:
            said = await child.said(OPEN)
            assert said, child.lines[-3:]
            await settled(addresses(said)[1], DRAIN_SECONDS)
            child.tell(signal.SIGTERM)
            assert await child.ended() == 0, child.lines[-3:]
        finally:
            await child.kill()
        return Killed("ended", {}, (), look(self.path))

    async def _start(self) -> Child:
        words = ("-m", self._module, *WORDS, "--outbox", str(self.path))
        return await Child.start(
            *words, env=environment(self._upstream.url, self._upstream.token, **SETTINGS)
        )


def addresses(said: str) -> tuple[str, str]:
    """URLs of the intake and of the admin listener, by the line of the log."""
    found = ADDRESSES.search(said)
    assert found is not None, said
    return found[1], found[2]


async def until(admin: str, is_so: Callable[[dict[str, Any]], bool], seconds: float) -> None:
    """Return once a sidecar's outbox is in a state."""
    async with aiohttp.ClientSession(admin) as session, asyncio.timeout(seconds):
        while True:
            async with session.get("/outbox") as response:
                if is_so(await response.json()):
                    return
            await asyncio.sleep(LOOK_SECONDS)


async def settled(admin: str, seconds: float) -> None:
    """Return once it holds nothing but dead letters."""
    await until(admin, lambda status: not status["waiting"] + status["claimed"], seconds)


class EarlySidecarStore(EarlyStore, outbox_service.LastingStore):
    """The sidecar's store, in a hurry."""


if __name__ == "__main__":
    vars(outbox_service)["LastingStore"] = EarlySidecarStore
    sys.exit(main())
