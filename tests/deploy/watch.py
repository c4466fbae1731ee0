"""What fires, looked at again and again, while the story of `stage` is played.

Used by the test and by `panels`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tests.deploy.stage import EXPECTED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tests.deploy.prometheus import Prometheus
    from tests.deploy.stage import Story

Fired = tuple[str, str]
"""An instance, empty where an alert has none, and an alert."""
PATIENCE: Final = 60.0
LOOK_SECONDS: Final = 0.25
CALM_SECONDS: Final = 1.5
"""Of load without a trouble, first."""
LIVES: Final = 3
"""Starts within the window that are a crash loop."""


class Watch:
    """What has fired and cleared.

    Args:
        prometheus: The one that is asked.
    """

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self._began = time.monotonic()
        self.fired: dict[Fired, float] = {}
        """When each fired first, in seconds since the start."""
        self.cleared: dict[Fired, float] = {}
        """When it was seen not to fire any more."""
        self.firing: set[Fired] = set()

    async def look(self) -> None:
        """Once."""
        self.firing = await self._prometheus.firing()
        now = time.monotonic() - self._began
        for one in self.firing:
            self.fired.setdefault(one, now)
            self.cleared.pop(one, None)
        for one in self.fired.keys() - self.firing:
            self.cleared.setdefault(one, now)

    async def until_fired(self, wanted: Collection[Fired]) -> None:
        """Until each of them has fired at least once; fails after `PATIENCE`."""
        await self._until(lambda: set(wanted) - self.fired.keys(), "has not fired")

    async def until_calm(self) -> None:
        """Until nothing fires; fails after `PATIENCE`."""
        await self._until(lambda: self.firing, "still fires")

    async def _until(self, left: Callable[[], set[Fired]], words: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self.look()
                while left():
                    await asyncio.sleep(LOOK_SECONDS)
                    await self.look()
        except TimeoutError:
            raise AssertionError(f"{sorted(left())} {words}\n{self.table()}") from None

    async def until_started_since(self, instance: str, start: float) -> float:
        """Until a process that started later than this was scraped: its start."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self._prometheus.value(f'process_start_time_seconds{{instance="{instance}"}}')
                if found is not None and found > start:
                    return found
                await asyncio.sleep(LOOK_SECONDS / 4)

    def table(self) -> str:
        """When what fired and cleared, in seconds since the start."""
        rows = sorted(self.fired.items(), key=lambda item: item[1])
        return "\n".join(
            f"{instance or '-':10} {alert:36} {at:6.1f} {self.cleared.get((instance, alert), 0.0):6.1f}"
            for (instance, alert), at in rows
        )


async def play(story: Story, watch: Watch) -> None:
    """Calm, every trouble until each alert has fired, and mended until none does."""
    await asyncio.sleep(CALM_SECONDS)
    await watch.look()
    assert not watch.firing, watch.firing
    await story.break_everything()
    await watch.until_fired([("killed", "DispatcherDown")])
    wanted = [(name, alert) for name, alerts in EXPECTED.items() for alert in alerts if name]
    loop = asyncio.create_task(crash_loop(story, watch))
    try:
        await watch.until_fired(wanted)
    finally:
        await loop
    await story.mend_everything()
    await watch.until_calm()


async def crash_loop(story: Story, watch: Watch) -> None:
    """Start the killed one again and again, each life seen by Prometheus; the last one lasts."""
    started = 0.0
    for life in range(LIVES):
        if life:
            await story.die_again()
        await story.come_back()
        started = await watch.until_started_since("killed", started)
