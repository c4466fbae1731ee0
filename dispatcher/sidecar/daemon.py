"""The process of `dispatcher serve`: what is opened in which order, what a signal does, how it ends.

Start: sockets are bound, the dispatcher, the outbox if there is one and the proxy opened, then both doors
served, then the service manager told. SIGTERM or SIGINT: not ready from that instant, then nothing more is
taken, what is held is delivered within `drain_within` (with an outbox only what has left: the rest stays in
it), every answer is written, and the process ends; a second one ends it at once.
SIGHUP: the configuration is read again. Nothing here looks into a request. Called by the command `serve`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from dispatcher.dispatcher import Dispatcher
from dispatcher.errors import ConfigError, MessageRejected
from dispatcher.sidecar import callers_spans, logs
from dispatcher.sidecar.admin import Admin
from dispatcher.sidecar.counters import IntakeCounters
from dispatcher.sidecar.generation import Generation, shut
from dispatcher.sidecar.listeners import Listener
from dispatcher.sidecar.outbox_service import OutboxService
from dispatcher.sidecar.refusal_news import RefusalNews
from dispatcher.sidecar.reload import change
from dispatcher.sidecar.settings import is_loopback
from dispatcher.sidecar.state import State
from dispatcher.sidecar.systemd import Notifier, inherited_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiohttp import web

    from dispatcher.sidecar.settings import SidecarConfig
    from dispatcher.statistics import DrainReport

EXIT_DONE: Final = 0
EXIT_UNCONFIRMED: Final = 1
"""It ended with messages it could not confirm, or its dispatcher died."""
STOPS: Final = (signal.SIGTERM, signal.SIGINT)
BEAT_SECONDS: Final = 1.0
"""How often the dispatcher's pulse is felt, at least."""
ANSWER_SECONDS: Final = 1.0
"""After the drain: for answers that are ready to be written, and for what the proxy still carries."""
ADMIN_SECONDS: Final = 0.2
OWN_DESCRIPTORS: Final = 256
"""Beside those of callers: connections to the upstream, the admin's, files."""

logger: Final = logging.getLogger("dispatcher.sidecar")


async def serve(config: SidecarConfig, load: Callable[[], SidecarConfig] | None = None) -> int:
    """Run the sidecar until a signal ends it; returns the exit code.

    Args:
        load: Reads the configuration again at SIGHUP; without it there is nothing to reload.

    Raises:
        ConfigError: It cannot listen where it should.
    """
    logs.set_up(config.serve.log_level, config.serve.log_format)
    return await Daemon(config, load).run()


class Daemon:
    """One process's sidecar."""

    def __init__(self, config: SidecarConfig, load: Callable[[], SidecarConfig] | None) -> None:
        self._config = config
        self._load = load
        self._state = State()
        self._counters = IntakeCounters()
        self._dispatcher = Dispatcher(config.dispatcher, name="sidecar")
        callers_spans.begin(self._dispatcher, config.serve.tracing)
        self._refusals = RefusalNews(self._counters)
        self._notifier = Notifier(os.environ)
        file = config.outbox.file
        self._outbox = None if file is None else OutboxService(file, config.outbox, self._dispatcher)
        self._state.acceptance = self._outbox
        self._generation = self._new_generation(config)
        self._retired: list[Generation] = []
        kept, key = (None, "") if self._outbox is None else (self._outbox.outbox, self._outbox.key)
        admin = Admin(self._dispatcher, self._counters, self._state, kept, key)
        self._admin_server: web.Server = admin.make_server()
        self._intake = Listener("intake", self._generation.answer)
        self._admin = Listener("admin", self._admin_server)
        self._stop = asyncio.Event()
        self._stopped_by: signal.Signals | None = None
        self._hangups = 0
        """Signals to reload that were not looked at yet."""
        self._reload: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """From the first socket to the last answer."""
        loop = asyncio.get_running_loop()
        for number in STOPS:
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            await self._bind()
            async with self._dispatcher:
                try:
                    if self._outbox is not None:
                        await self._admin.serve()  # it is looked at meanwhile: a large file takes its time
                        if not await self._outbox.start(next(iter(self._admin.addresses), None), self._stop):
                            return EXIT_DONE
                    await self._generation.start()
                    await self._open()
                    await self._stop.wait()
                    return await self._close()
                finally:
                    if self._outbox is not None:
                        await self._outbox.aclose()
        finally:
            self._intake.close()
            self._admin.close()
            for task in self._tasks:
                task.cancel()
            self._notifier.close()
            for number in (*STOPS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    # --------------------------------------------------------------------------------------------- start

    def _new_generation(self, config: SidecarConfig) -> Generation:
        outbox = None if self._outbox is None else self._outbox.outbox
        return Generation(config, self._dispatcher, self._counters, outbox)

    async def _bind(self) -> None:
        serve, handed_over = self._config.serve, inherited_sockets(os.environ)
        if handed_over.intake:
            await self._intake.adopt(handed_over.intake, only_here=serve.authentication == "none")
        else:
            if serve.socket is not None:
                await self._intake.bind_unix(serve.socket)
            if self._config.has_tcp:
                await self._intake.bind_tcp(serve.host, serve.port)
        if handed_over.admin:
            await self._admin.adopt(handed_over.admin, only_here=False)
        else:
            await self._admin.bind_tcp(serve.admin_host, serve.admin_port, "serve.admin_")

    async def _open(self) -> None:
        self._warn()
        if self._outbox is None:
            await self._admin.serve()
        await self._intake.serve()
        self._state.set_ready()
        intake, admin = (" ".join(one.addresses) for one in (self._intake, self._admin))
        logger.info("listening: intake %s, admin %s", intake, admin)
        logger.info("upstream %s; settings: %s", self._config.dispatcher.url, _given(self._config))
        self._spawn(self._beat())
        self._notifier.ready(f"listening at {intake}")

    def _warn(self) -> None:
        """What is allowed and should be known."""
        for address in self._admin.addresses:
            if not _is_here(address):
                logger.warning("the admin listener asks for no token, and others reach %s", address)
        for address in self._intake.addresses:
            if not _is_here(address):
                logger.warning("others reach %s: tokens travel there unencrypted", address)
        wanted = 2 * self._config.serve.max_connections + OWN_DESCRIPTORS  # as many more may wait
        allowed = _raise_descriptors(wanted)
        if allowed < wanted:
            logger.warning("%d connections need %d descriptors; %d are allowed (ulimit -n)",
                           self._config.serve.max_connections, wanted, allowed)  # fmt: skip

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _beat(self) -> None:
        """Feel the dispatcher's pulse, and let the service manager know; end if there is none."""
        seconds, loop = self._notifier.watchdog_seconds, asyncio.get_running_loop()
        while True:
            self._refusals.look(loop.time())
            why = self._state.why_not_alive(self._dispatcher.statistics().state)
            if why:
                logger.critical("%s: the process ends", why)
                self._stop.set()
                return
            if seconds:
                self._notifier.alive()
            await asyncio.sleep(min(seconds or BEAT_SECONDS, BEAT_SECONDS))

    # ------------------------------------------------------------------------------------------- signals

    def _on_stop(self, number: signal.Signals) -> None:
        held = self._dispatcher.statistics().held
        if self._stopped_by is not None:
            where = "" if self._outbox is None else f"; what was accepted is in {self._outbox.file}"
            logger.error("%s again: ended at once, with %d messages unconfirmed%s", number.name, held, where)
            self._intake.remove_files()
            os._exit(128 + number)
        self._stopped_by = number
        self._state.set_draining()  # from this instant it is not ready; the rest follows
        within = self._config.dispatcher.drain_within
        logger.info("%s: nothing more is taken, %d held messages get %g s", number.name, held, within)
        self._notifier.stopping(f"draining {held} messages")
        self._stop.set()

    def _on_hangup(self) -> None:
        if self._load is None or self._state.phase != "ready":
            logger.warning("SIGHUP: there is nothing to reload now")
            return
        self._hangups += 1
        if self._hangups == 1:
            self._reload = self._spawn(self._reload_all(self._load))

    async def _reload_all(self, load: Callable[[], SidecarConfig]) -> None:
        """One after the other; all those that come during one need only one more."""
        while self._hangups and self._state.phase == "ready":
            seen = self._hangups
            self._notifier.reloading()
            try:
                await self._take(await asyncio.to_thread(load))
            except ConfigError as error:
                logger.error("SIGHUP: nothing is changed: %s", error)
            except Exception:
                logger.exception("SIGHUP: the reload failed")
            self._hangups = 1 if self._hangups > seen else 0
            if self._state.phase == "ready":
                self._notifier.ready("reloaded")

    async def _take(self, wanted: SidecarConfig) -> None:
        """Go on with what may change of a new configuration."""
        new = change(self._config, wanted)
        if new.taken:
            settings = new.config.dispatcher
            self._dispatcher.set_limits(
                max_messages=settings.queue.max_messages,
                max_bytes=settings.queue.max_bytes,
                max_in_flight=settings.limit.max_in_flight,
            )
            generation = self._new_generation(new.config)
            await generation.start()
            await self._retire(self._generation, generation)
            logs.set_up(new.config.serve.log_level, new.config.serve.log_format)
        if new.has_new_token:
            self._dispatcher.set_token(new.config.dispatcher.token)
        self._config = new.config
        logger.info("SIGHUP: changed: %s", "; ".join(new.taken) or "nothing")
        for words in new.refused:
            logger.error("SIGHUP: refused: %s; that needs a restart", words)

    async def _retire(self, before: Generation, after: Generation) -> None:
        """Hand every request over to another generation; drop those whose last connection has gone."""
        self._retired.append(before)
        for one in self._retired:
            one.succeed(after)
        self._generation, self._intake.answer = after, after.answer
        # The oldest first: a request of an older one's connection may still be answered by a younger one.
        while self._retired and not self._retired[0].connections:
            await self._retired.pop(0).aclose(ANSWER_SECONDS)

    # ----------------------------------------------------------------------------------------------- end

    async def _close(self) -> int:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._config.dispatcher.drain_within
        self._state.set_draining()
        self._intake.leave_to_successor()
        if self._reload is not None:
            await asyncio.wait([self._reload])
        if self._outbox is not None:
            await self._outbox.withdraw()
        report = await self._dispatcher.aclose()
        if self._outbox is not None:
            await self._outbox.aclose()
        self._intake.close()
        grace = max(ANSWER_SECONDS, ends_at - loop.time())
        await asyncio.gather(*(one.aclose(grace) for one in (self._generation, *self._retired)))
        self._state.set_closed()
        self._admin.close()
        await shut(self._admin_server, ADMIN_SECONDS)
        self._refusals.close(loop.time())
        return self._conclude(report)

    def _conclude(self, report: DrainReport) -> int:
        unconfirmed = sum(not isinstance(error, MessageRejected) for error in report.failures)
        is_lost = unconfirmed and self._outbox is None
        logger.log(
            logging.ERROR if is_lost else logging.INFO,
            "ended after %.1f s: %d messages delivered meanwhile, %d rejected, %d not confirmed",
            report.seconds, report.delivered, report.rejected, unconfirmed,
        )  # fmt: skip
        if self._outbox is not None:
            logger.info("outbox: %s", self._outbox.legacy())
            unconfirmed = 0  # these stay there
        has_died = self._stopped_by is None
        return EXIT_UNCONFIRMED if unconfirmed or has_died else EXIT_DONE


def _given(config: SidecarConfig) -> str:
    """What differs from the defaults, secrets masked."""
    told = [f"{path} = {value} ({origin})" for path, value, origin in config.rows() if origin != "default"]
    return ", ".join(told) or "all defaults"


def _is_here(address: str) -> bool:
    """Only this machine reaches it."""
    return address.startswith("unix:") or is_loopback(
        address.removeprefix("http://").rpartition(":")[0].strip("[]")
    )


def _raise_descriptors(wanted: int) -> int:
    """How many descriptors the process may have, after asking for as many as are wanted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        return more
    return soft
