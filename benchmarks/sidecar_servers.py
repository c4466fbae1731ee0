"""One server in a process of its own, for `benchmarks.sidecar` and `benchmarks.durable`.

*application* is what anybody writes with aiohttp: `web.Application` with one route, whose handler reads the
body and answers a constant. *server* is the same handler on aiohttp's low-level `web.Server`, without a
router. *sidecar* is the daemon that `dispatcher serve` runs, with its default settings but for those of the
environment; *watched* the same with a watch on its loop, which says at each SIGUSR1 how long it was kept.
Each says where it listens as the daemon's log does, and serves until it is told to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from benchmarks.callbacks import watched_loop
from benchmarks.loop_watch import LoopWatch
from dispatcher.cli.loop import loop_factory, spare_collector
from dispatcher.sidecar.daemon import serve
from dispatcher.sidecar.settings import SidecarConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ANSWER: Final = b'{"messageId":"msg_00000000000100000000"}'
"""As long as what the upstream of the benchmarks gives."""


async def constant(request: web.BaseRequest) -> web.Response:
    """Read the body, answer a constant."""
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


async def application() -> None:
    """With a router, as anybody would."""
    app = web.Application()
    app.router.add_post("/v2/publish/{destination:.+}", constant)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await _until_told(web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024), runner)


async def server() -> None:
    """Without one."""
    runner = web.ServerRunner(web.Server(constant, access_log=None))
    await runner.setup()
    await _until_told(web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024), runner)


async def sidecar() -> None:
    """The daemon, as its command runs it."""
    words: dict[str, Any] = {"serve.port": 0, "serve.admin_port": 0, "serve.log_format": "json"}
    await serve(SidecarConfig.load(**words))


async def watched(watch: LoopWatch) -> None:
    """The same; at each SIGUSR1 it says on standard output how long its loop was kept since the last one."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: print(watch.take(), flush=True))
    watching = asyncio.create_task(watch.watch())
    await sidecar()
    watching.cancel()


async def _until_told(site: web.TCPSite, runner: web.BaseRunner) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await site.start()
    host, port = runner.addresses[0][:2]
    words = f"listening: intake http://{host}:{port}, admin http://{host}:{port}"
    print(json.dumps({"message": words}), file=sys.stderr, flush=True)
    await ended.wait()
    await runner.cleanup()


SERVERS: Final[dict[str, Callable[[], Coroutine[None, None, None]]]] = {
    "application": application,
    "server": server,
    "sidecar": sidecar,
}
WATCHED: Final = "watched"


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sidecar_servers", description=__doc__)
    parser.add_argument("server", choices=[*SERVERS, WATCHED])
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--cpu", type=int, help="the core to stay on")
    given = parser.parse_args()
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    spare_collector()
    if given.server == WATCHED:
        watch = LoopWatch()
        with (
            watched_loop(given.loop, watch) as factory,
            asyncio.Runner(loop_factory=factory) as runner,
        ):
            runner.run(watched(watch))
        return
    with asyncio.Runner(loop_factory=loop_factory() if given.loop == "uvloop" else None) as runner:
        runner.run(SERVERS[given.server]())


if __name__ == "__main__":
    main()
