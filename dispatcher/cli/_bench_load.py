"""Puts the load of `dispatcher bench` on its target: once, or in the windows of a search.

Each run opens what it needs (a local upstream in a process of its own, a dispatcher or a transport) and
closes it again; a search does so for every window, so that none inherits what another left behind. Called by
`bench`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from dispatcher import __version__
from dispatcher.bench.counts import between, read_dispatcher, read_http
from dispatcher.bench.find import Search, Window, find
from dispatcher.bench.generator import Stop, run_load
from dispatcher.bench.http import HTTPTarget
from dispatcher.bench.machine import Effort, description
from dispatcher.bench.report import finding_line, live_line, trial_line
from dispatcher.bench.result import Report, sum_up
from dispatcher.bench.schedule import constant
from dispatcher.bench.targets import LibraryTarget, Stopwatch
from dispatcher.cli._demo_upstream import Upstream
from dispatcher.cli.loop import spare_collector
from dispatcher.config import Config, settings
from dispatcher.dispatcher import Dispatcher
from dispatcher.transport import HTTPTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from dispatcher.bench.counts import Reading
    from dispatcher.bench.find import Finding, Goal, Trial
    from dispatcher.bench.histogram import LogHistogram
    from dispatcher.bench.messages import Mix
    from dispatcher.bench.recorder import Recorder
    from dispatcher.bench.result import Result
    from dispatcher.bench.schedule import Schedule
    from dispatcher.cli._screen import Screen

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
SIGNALS_PATIENCE: Final = 2
"""After so many, the next one ends the process."""
WINDOW_SECONDS: Final = 60.0
"""For which the local upstream remembers a deduplication id."""
WARM_UP_DRAIN: Final = 5.0
REFUSED: Final = "refused"
METHOD: Final = (
    "open loop: every message has its start from the schedule, whatever became of those before it",
    "latencies are from the intended start; waiting for the generator, for room or for a connection counts",
    "a message without an outcome when the waiting ends counts in `total` with its age",
    "quantiles are from logarithmic buckets and exact to within 1 %; latencies are of delivered messages",
    "queue and delivery are by the dispatcher's own clock, whole milliseconds with uvloop",
    "over time, a latency stands where its message was confirmed",
    "seconds run from the schedule's beginning to its end or the last outcome; the warm-up is not in them",
    "processor time and memory are the whole process's, the generator included",
)


class Plan(Struct, frozen=True, kw_only=True):
    """What to do; read from the arguments by `bench`."""

    config: Config
    schedule: Schedule
    mix: Mix
    goal: Goal | None
    """Of a search."""
    precision: float
    warm_up: float
    max_messages: int | None
    api: str | None
    """Of a bare upstream; `None` for the library."""
    connections: int
    is_local: bool
    """The upstream is to be one of ours."""
    faults: str
    options: dict[str, Any]


class Bench:
    """A target that is open, and what it has counted."""

    def __init__(
        self, target: LibraryTarget | HTTPTarget, read: Callable[[], Reading], upstream_pid: int | None
    ) -> None:
        self.target = target
        self.read = read
        self.upstream_pid = upstream_pid


class Session:
    """One call of the command: how it is stopped, what it shows, and what it may still send."""

    def __init__(self, plan: Plan, screen: Screen, *, has_progress: bool) -> None:
        self.plan = plan
        self.stop = Stop()
        self.is_refused = False
        self._screen = screen
        self._has_progress = has_progress
        self._left = plan.max_messages
        self._prefix = ""

    async def run(self, schedule: Schedule) -> tuple[Result, LogHistogram] | None:
        """One run from opening to closing, and its total latencies; `None` if it did not come to that."""
        async with opened(self.plan) as bench:
            if self.plan.warm_up:
                rate = schedule.rate_at(0.0)
                warm_up = constant(rate, self.plan.warm_up, seed=self.plan.mix.seed)
                await self._load(bench, warm_up, WARM_UP_DRAIN)
            if self._left == 0 or self.stop.is_asked:
                return None
            return await self._measure(bench, schedule)

    async def _measure(self, bench: Bench, schedule: Schedule) -> tuple[Result, LogHistogram]:
        gc.collect()
        before, effort = bench.read(), Effort.now(bench.upstream_pid)
        recorder = await self._load(bench, schedule, self.plan.config.drain_within)
        counts, efforts = between(before, bench.read()), (effort, Effort.now(bench.upstream_pid))
        why = self.stop.why or self.why_short()
        return sum_up(recorder, counts, schedule.duration, efforts, why), recorder.total

    async def _load(self, bench: Bench, schedule: Schedule, drain_within: float) -> Recorder:
        def on_tick(recorder: Recorder) -> None:
            self._look(bench, recorder)

        try:
            recorder = await run_load(
                schedule,
                self.plan.mix,
                bench.target,
                self.stop,
                max_messages=self._left,
                drain_within=drain_within,
                on_tick=on_tick,
            )
        finally:
            self._screen.draw("")
        if self._left is not None:
            self._left -= recorder.due
        return recorder

    def _look(self, bench: Bench, recorder: Recorder) -> None:
        gauges = bench.target.gauges()
        if gauges.state == REFUSED and not recorder.delivered and not self.stop.is_asked:
            self.is_refused = True
            self.stop.ask(f"the upstream refuses the token or the URL ({gauges.reason})")
            self._screen.fail(self.stop.why)
        if self._has_progress:
            waiting = recorder.due - recorder.taken - recorder.refused
            self._screen.draw((self._prefix + live_line(recorder, gauges, waiting))[: _columns() - 1])

    def why_short(self) -> str:
        """Why there are fewer messages than planned, if so."""
        return "--max-messages is reached" if self._left == 0 else ""

    async def search(self, goal: Goal, seed: int) -> Finding:
        """Windows of several rates."""
        plan = self.plan
        base, is_poisson = plan.schedule.duration, plan.schedule.is_poisson

        async def measure(rate: float) -> Window | None:
            if self.stop.is_asked or self._left == 0:
                return None
            self._prefix = f"{rate:,.0f} msg/s: "
            seconds = goal.window_seconds(rate, base)
            measured = await self.run(constant(rate, seconds, is_poisson=is_poisson, seed=seed))
            is_whole = measured is not None and not self.stop.is_asked and self._left != 0
            return _window(goal, *measured) if measured is not None and is_whole else None

        def on_trial(trial: Trial) -> None:
            self._screen.say(trial_line(goal, trial))

        start = plan.schedule.rate_at(0.0)
        return await find(goal, Search(start, plan.precision), measure, on_trial)


async def bench(plan: Plan, screen: Screen, *, has_progress: bool) -> Report:
    """Do what is planned, and report. Raises `DispatcherError`."""
    spare_collector()
    session = Session(plan, screen, has_progress=has_progress)
    with _signals_ask(session.stop, screen):
        if plan.goal is None:
            measured = await session.run(plan.schedule)
            return _report(session, None if measured is None else measured[0], None)
        finding = await session.search(plan.goal, plan.mix.seed)
        if finding.rate is None:
            screen.fail(finding_line(finding))
        return _report(session, None, finding)


def _window(goal: Goal, result: Result, total: LogHistogram) -> Window:
    return Window(
        value=total.quantile(goal.share),
        messages=result.delivered,
        achieved=result.achieved_rate,
        failed=result.failed + result.unfinished,
        late_share=result.late_share,
    )


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[Bench]:
    """The target, and its upstream if that is to be ours, while the context lasts."""
    # The run has waited for what was out: what is still held is abandoned, and was counted as unfinished.
    config = replace(plan.config, drain_within=0.0)
    if not plan.is_local:
        async with _target(plan, config, None) as target:
            yield target
        return
    token = secrets.token_hex(8)
    upstream = Upstream(token, plan.faults, seed=plan.mix.seed, window=WINDOW_SECONDS)
    await upstream.start()
    try:
        async with _target(plan, replace(config, url=upstream.url, token=token), upstream.pid) as target:
            yield target
    finally:
        await upstream.stop()


@asynccontextmanager
async def _target(plan: Plan, config: Config, upstream_pid: int | None) -> AsyncIterator[Bench]:
    if plan.api is None:
        watch = Stopwatch(HTTPTransport(config))
        async with Dispatcher(config, name="bench", transport=watch) as dispatcher:
            target = LibraryTarget(dispatcher)
            yield Bench(target, lambda: read_dispatcher(dispatcher, watch.requests), upstream_pid)
        return
    transport = HTTPTransport(config)
    await transport.start()
    try:
        bare = HTTPTarget(
            transport,
            api=plan.api,
            connections=plan.connections,
            batch_messages=config.batch.max_messages,
            timeout=config.transport.attempt_timeout,
        )
        yield Bench(bare, lambda: read_http(bare), upstream_pid)
    finally:
        await transport.aclose()


@contextmanager
def _signals_ask(stop: Stop, screen: Screen) -> Iterator[None]:
    """The first signal ends the load, the second one the waiting, the third one the process."""
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > SIGNALS_PATIENCE:
            os._exit(128 + number)
        if len(received) == 1:
            screen.say(f"{number.name}: no message starts any more; once more to stop waiting for those out")
        stop.ask(f"{number.name} was received")

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _report(session: Session, result: Result | None, finding: Finding | None) -> Report:
    plan = session.plan
    load = f"{plan.schedule.words}; {plan.mix.words}"
    if plan.goal is not None:
        load = f"search for {plan.goal.words}, windows of {plan.schedule.duration:g} s; {plan.mix.words}"
    return Report(
        version=__version__,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        target=_target_words(plan),
        load=load,
        method=METHOD,
        machine=description(type(asyncio.get_running_loop()).__module__.partition(".")[0]),
        options=plan.options,
        settings={path: _value(plan.config, path) for path in _shown_settings()},
        result=result,
        finding=finding,
        is_refused=session.is_refused,
        stopped=session.stop.why or session.why_short(),
    )


def _target_words(plan: Plan) -> str:
    if plan.api is not None:
        each = "one message a request" if plan.api == "publish" else "batches of what is waiting"
        return f"{plan.config.url}, {each}, up to {plan.connections:,} requests at once"
    where = "a local upstream in a process of its own" if plan.is_local else plan.config.url
    return f"the library in this process, and {where}"


def _shown_settings() -> list[str]:
    """All but secrets, and the URL: the target has it, and a local upstream's is another one."""
    return [one.path for one in settings() if not one.is_secret and one.path != "url"]


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
