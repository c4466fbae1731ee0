"""A task that does what it is asked for, in turn, until it is closed: `redis_appends` and `redis_owner`.

It rests while there is nothing to do, and closes only when everything that was asked for is done.
"""

from __future__ import annotations

import asyncio


class Worker:
    """Begins with its construction, in the running loop."""

    def __init__(self) -> None:
        self._has_work = asyncio.Event()
        self._is_closing = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Do what was asked for, and end."""
        self._is_closing = True
        self._has_work.set()
        await asyncio.wait([self._task])

    def abort(self) -> None:
        """End at once, as a process would that is killed."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            await self._do_all()
            if self._is_closing:
                return

    async def _do_all(self) -> None:
        """Return when nothing that was asked for is left."""
        raise NotImplementedError
