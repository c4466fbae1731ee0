"""Carries a schedule out in real time: each message is handed over when it is due, come what may.

Two tasks: the clockwork, which only ever puts what is due into `Work`, and the target, which takes it from
there as fast as it can. So a target that has no room does not hold the clockwork back, and what the clockwork
itself is late by is known apart. Called by the command and by `find`'s trials.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from itertools import islice
from time import perf_counter as now
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from dispatcher.bench.recorder import TICK_SECONDS, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dispatcher.bench.messages import Mix
    from dispatcher.bench.recorder import Gauges
    from dispatcher.bench.schedule import Schedule
    from dispatcher.message import Message

TURN_MESSAGES: Final = 2_000
"""Handed over in one turn of the loop at most."""
TURN_SECONDS: Final = 0.001
"""Sleep that long between two looks at what is due: uvloop would make a spin of anything shorter."""
NAP_SECONDS: Final = 0.05
"""The clockwork looks up at least so often, to see whether it is to stop."""
LEAD_SECONDS: Final = 0.01
"""Between the start of a run and the schedule's 0, so that the first message is not late."""


class Due(NamedTuple):
    """One message that is due."""

    intended: float
    handed_at: float
    full_before: float
    """For how long the target had been full by then."""


class Work:
    """What is due and not yet taken by the target, in order."""

    def __init__(self, messages: Iterator[Message]) -> None:
        self.due: deque[Due] = deque()
        self.messages = messages
        self.has_ended = False
        """Nothing more will come."""
        self._wake: asyncio.Future[None] | None = None
        self._full_seconds = 0.0
        self._full_since: float | None = None

    def fill(self, instant: float) -> None:
        """The target is full from now on: waiting is for room, and not for the generator."""
        if self._full_since is None:
            self._full_since = instant

    def unfill(self, instant: float) -> None:
        """It has room again."""
        self._full_seconds = self.full_seconds(instant)
        self._full_since = None

    def full_seconds(self, instant: float) -> float:
        """For how long it has been full, all in all."""
        return self._full_seconds + (0.0 if self._full_since is None else instant - self._full_since)

    def tell(self) -> None:
        """Something came, or the end."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def more(self) -> bool:
        """Wait for what comes next; false once that is nothing."""
        if self.has_ended:
            return False
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake
        return True


class Target(Protocol):
    """What the load is put on."""

    async def serve(self, work: Work, recorder: Recorder) -> None:
        """Take in all work until it has ended, and return when every message of it has its outcome."""
        ...

    def gauges(self) -> Gauges:
        """It now."""
        ...

    def unfinished(self) -> Iterable[float]:
        """Intended starts of what it has taken and has no outcome for."""
        ...


class Stop:
    """How urgently a run is to end."""

    def __init__(self) -> None:
        self.is_asked = False
        """No message starts any more."""
        self.is_urgent = False
        """Nothing is waited for any more."""
        self.why = ""

    def ask(self, why: str) -> None:
        """Once to end the load, twice to end the waiting."""
        self.is_urgent = self.is_asked
        self.is_asked = True
        self.why = self.why or why


async def run_load(
    schedule: Schedule,
    mix: Mix,
    target: Target,
    stop: Stop,
    *,
    max_messages: int | None = None,
    drain_within: float,
    on_tick: Callable[[Recorder], None] | None = None,
) -> Recorder:
    """Put this load on the target; returns what it met.

    What has no outcome `drain_within` seconds after the last start stays unfinished. A target that was left
    with unfinished messages must not be loaded again.
    """
    work = Work(mix.messages())
    recorder = Recorder(now() + LEAD_SECONDS, schedule.duration)
    clockwork = _Clockwork(schedule, work, target, recorder, stop, max_messages, on_tick)
    serving = asyncio.create_task(target.serve(work, recorder))
    try:
        await clockwork.run(serving)
        await clockwork.drain(serving, drain_within)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
    ended_at = now()
    recorder.leave([one.intended for one in work.due], ended_at)
    recorder.leave(target.unfinished(), ended_at)
    clockwork.close()
    return recorder


class _Clockwork:
    def __init__(
        self,
        schedule: Schedule,
        work: Work,
        target: Target,
        recorder: Recorder,
        stop: Stop,
        max_messages: int | None,
        on_tick: Callable[[Recorder], None] | None,
    ) -> None:
        self._instants = islice(schedule.instants(), max_messages)
        self._work = work
        self._target = target
        self._recorder = recorder
        self._stop = stop
        self._on_tick = on_tick
        self._next_tick_at = recorder.began + TICK_SECONDS

    async def run(self, serving: asyncio.Task[None]) -> None:
        """Hand over everything at its time."""
        began = self._recorder.began
        due_at = next(self._instants, None)
        while due_at is not None and not self._stop.is_asked and not serving.done():
            instant = now()
            due_at = self._hand_over(due_at, instant)
            self._tick(instant)
            if due_at is not None:
                wait = began + due_at - now()
                await asyncio.sleep(min(max(TURN_SECONDS, wait), NAP_SECONDS) if wait > 0 else 0)
        self._work.has_ended = True
        self._work.tell()

    def _hand_over(self, due_at: float, instant: float) -> float | None:
        """Everything that is due by now; returns what comes next. Both in the schedule's seconds."""
        began, recorder, due = self._recorder.began, self._recorder, self._work.due
        next_at: float | None = due_at
        full_before = self._work.full_seconds(instant)
        for _ in range(TURN_MESSAGES):
            if next_at is None or began + next_at > instant:
                break
            recorder.hand_over(began + next_at, instant)
            due.append(Due(began + next_at, instant, full_before))
            next_at = next(self._instants, None)
        if due:
            self._work.tell()
        return next_at

    async def drain(self, serving: asyncio.Task[None], within: float) -> None:
        """Wait for the target to be done, up to a bound or until that is too long for someone."""
        until = now() + within
        while not serving.done() and now() < until and not self._stop.is_urgent:
            await asyncio.wait([serving], timeout=min(NAP_SECONDS, max(0.0, until - now())))
            self._tick(now())
        if serving.done():
            serving.result()

    def close(self) -> None:
        """Record what is left."""
        self._recorder.close(now(), len(self._work.due), self._target.gauges())

    def _tick(self, instant: float) -> None:
        if instant < self._next_tick_at:
            return
        self._next_tick_at += TICK_SECONDS * max(1, int((instant - self._next_tick_at) / TICK_SECONDS) + 1)
        self._recorder.tick(instant, self._recorder.due, len(self._work.due), self._target.gauges())
        if self._on_tick is not None:
            self._on_tick(self._recorder)
